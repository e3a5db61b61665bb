"""Smaller inputs for deeper layers (PR #315)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.model.slots import Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DepthScale(Part):
    """Inputs of attention and MLP are divided by sqrt(l + 1), l the physical layer. Effect: with partial rotation
    -0.0023 (PR #315). Source: PR #315 (ln_scale).
    """

    def scaled(self, layer: int, n_BTC: "Tensor") -> "Tensor":
        """n / sqrt(l + 1)."""
        return n_BTC * (layer + 1) ** -0.5
