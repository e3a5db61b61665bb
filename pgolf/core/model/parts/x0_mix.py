"""Every block's input is a learned mix of the stream and the embedding (naive baseline)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.model.params import CONTROL, SCALAR, ParamSpec
from pgolf.core.model.slots import LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class X0Mix(Part):
    """x <- a x + b x0 per channel, a = 1 and b = 0 at the start. Source: naive baseline (resid_mix)."""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """resid_mix (2,C): row 0 is a, row 1 is b."""
        if shape.layer < 0:
            return ()
        return (ParamSpec("resid_mix", (2, shape.model_dim), ("rows", 1.0), SCALAR, CONTROL),)

    def apply(self, block: Any, x_BTC: "Tensor", x0_BTC: "Tensor") -> "Tensor":
        """The mixed stream."""
        mix = block.resid_mix.to(x_BTC.dtype)
        return mix[0] * x_BTC + mix[1] * x0_BTC
