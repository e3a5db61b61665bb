"""The embedding mix with a depth-dependent start (spec: model 4.7)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.model.params import CONTROL, SCALAR, ParamSpec, control
from pgolf.core.model.parts.x0_mix import X0Mix
from pgolf.core.model.slots import LayerShape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PhaseMix(X0Mix):
    """x <- a x + b x0 per channel, with a = sigma(3 (l / (L-1) - 1/2)) and b = 1 - a at the start. Source: the 1.1748
    record.
    """

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """resid_mix (2,C)."""
        if shape.layer < 0:
            return ()
        share = 1 / (1 + math.exp(-3 * (shape.layer / max(shape.num_layers - 1, 1) - 0.5)))
        return (ParamSpec("resid_mix", (2, shape.model_dim), ("split", share), SCALAR, CONTROL),)


@dataclass(frozen=True, kw_only=True)
class ScalarMix(X0Mix):
    """x <- r x + c x0 with two numbers a layer, that start between the first and the last layer's. Source: nanochat."""

    first: float = 1.15
    """r of layer 0 at the start."""
    last: float = 1.05
    """r of the last layer at the start."""
    embed_first: float = 0.2
    """c of layer 0 at the start."""
    embed_last: float = 0.05
    """c of the last layer at the start."""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """resid_lambda (1,) and x0_lambda (1,)."""
        if shape.layer < 0:
            return ()
        depth = shape.layer / max(shape.num_layers - 1, 1)
        return (
            control("resid_lambda", (1,), self.first + depth * (self.last - self.first)),
            control("x0_lambda", (1,), self.embed_first + depth * (self.embed_last - self.embed_first)),
        )

    def apply(self, block: Any, x_BTC: "Tensor", x0_BTC: "Tensor") -> "Tensor":
        """The mixed stream."""
        return block.resid_lambda.to(x_BTC.dtype) * x_BTC + block.x0_lambda.to(x_BTC.dtype) * x0_BTC
