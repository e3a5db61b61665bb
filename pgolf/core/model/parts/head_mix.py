"""Interleaved heads: learned mixing before attention (spec: model 2.6)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.model.params import CONTROL, SCALAR, ParamSpec
from pgolf.core.model.slots import Flow, LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class HeadMixing(Part):
    """Queries, keys and optionally values become learned mixtures of heads, the identity at the start. Since this is
    linear in the projections, it can be folded into them. Effect: +0.0006 on PR #1493, rejected there. Source: IHA,
    tried on PR #1493.
    """

    values: bool = False
    """Mix values too."""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """attn.q_mix (H,H), attn.k_mix (K,K), and attn.v_mix (K,K) if asked."""
        if shape.layer < 0:
            return ()
        sizes = {"q_mix": shape.num_heads, "k_mix": shape.num_kv_heads}
        sizes |= {"v_mix": shape.num_kv_heads} if self.values else {}
        return tuple(ParamSpec(f"attn.{key}", (n, n), ("eye", 1.0), SCALAR, CONTROL) for key, n in sizes.items())

    def projected(
        self, attn: Any, flow: Flow, layer: int, n_BTC: "Tensor", q: "Tensor", k: "Tensor", v: "Tensor"
    ) -> "tuple[Tensor, Tensor, Tensor]":
        """Mix heads."""
        from torch import einsum

        q = einsum("hi,btid->bthd", attn.q_mix.to(q.dtype), q)
        k = einsum("hi,btid->bthd", attn.k_mix.to(k.dtype), k)
        return q, k, einsum("hi,btid->bthd", attn.v_mix.to(v.dtype), v) if self.values else v
