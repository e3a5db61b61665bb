"""The first layer's values in later layers (arXiv:2410.17897)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.model.params import ParamSpec, control
from pgolf.core.model.slots import Flow, LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ValueMix(Part):
    """v <- a v0 + b v from layer 1 on, a = b = 1/2 at the start. Effect: with gated attention -0.002 (PR #638); +0.14
    in a looped model (PR #363). Source: arXiv:2410.17897, PR #638, #549.
    """

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """attn.vr_lambda (2,)."""
        return () if shape.layer < 0 else (control("attn.vr_lambda", (2,), 0.5),)

    def projected(
        self, attn: Any, flow: Flow, layer: int, n_BTC: "Tensor", q: "Tensor", k: "Tensor", v: "Tensor"
    ) -> "tuple[Tensor, Tensor, Tensor]":
        """Layer 0 leaves its values, the others mix them in."""
        if layer == 0:
            flow.memory["first_values"] = v
            return q, k, v
        mix = attn.vr_lambda.to(v.dtype)
        return q, k, mix[0] * flow.memory["first_values"] + mix[1] * v


@dataclass(frozen=True, kw_only=True)
class ValueAdd(Part):
    """v <- v + sigma(alpha) v0 from layer 1 on, alpha = 0 at the start. Source: PR #569, #1512."""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """attn.vrl_alpha (1,)."""
        return () if shape.layer < 0 else (control("attn.vrl_alpha", (1,), 0.0),)

    def projected(
        self, attn: Any, flow: Flow, layer: int, n_BTC: "Tensor", q: "Tensor", k: "Tensor", v: "Tensor"
    ) -> "tuple[Tensor, Tensor, Tensor]":
        """Layer 0 leaves its values, the others add them."""
        if layer == 0:
            flow.memory["first_values"] = v
            return q, k, v
        return q, k, v + attn.vrl_alpha.to(v.dtype).sigmoid() * flow.memory["first_values"]
