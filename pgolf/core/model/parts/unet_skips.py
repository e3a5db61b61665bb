"""U-Net connections between the two halves of the layers (naive baseline)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.model.params import ParamSpec, control
from pgolf.core.model.slots import LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class UnetSkips(Part):
    """x <- x + w_j * (output of the mirrored layer), w_j a vector that starts at one. Source: naive baseline."""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """skip_weights (S,C), one row per joined layer of the second half of the longest plan."""
        return (control("skip_weights", (shape.skips, shape.model_dim), 1.0),) if shape.layer < 0 else ()

    def apply(self, root: Any, x_BTC: "Tensor", skip_BTC: "Tensor", row: int) -> "Tensor":
        """Add the weighted skip."""
        return x_BTC + root.skip_weights[row].to(x_BTC.dtype) * skip_BTC
