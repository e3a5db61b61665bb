"""No long connections."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.model.slots import Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NoSkips(Part):
    """Layers only follow one another. Source: arXiv:1706.03762."""

    def apply(self, root: Any, x_BTC: "Tensor", skip_BTC: "Tensor", row: int) -> "Tensor":
        """x."""
        return x_BTC
