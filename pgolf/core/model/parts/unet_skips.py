"""U-Net connections between the two halves of the layers (naive baseline)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.model.params import ParamSpec, control
from pgolf.core.model.slots import LayerShape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class UnetSkips:
    """x <- x + w_j * (output of the mirrored layer), w_j a vector that starts at one. Source: naive baseline."""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """skip_weights (L // 2, C), one row per joined layer of the second half."""
        return (control("skip_weights", (shape.num_layers // 2, shape.model_dim), 1.0),)

    def apply(self, root: Any, x_BTC: "Tensor", skip_BTC: "Tensor", row: int) -> "Tensor":
        """Add the weighted skip."""
        return x_BTC + root.skip_weights[row].to(x_BTC.dtype) * skip_BTC
