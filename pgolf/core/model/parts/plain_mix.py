"""No embedding in the blocks: the plain residual stream."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.model.slots import Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PlainMix(Part):
    """The stream as it is. Source: arXiv:1706.03762."""

    def apply(self, block: Any, x_BTC: "Tensor", x0_BTC: "Tensor") -> "Tensor":
        """x."""
        return x_BTC
