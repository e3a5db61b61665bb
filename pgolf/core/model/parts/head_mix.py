"""Interleaved heads: learned mixing before attention (spec: model 2.6)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.model.params import CONTROL, MLP, SCALAR, ParamSpec
from pgolf.core.model.slots import Flow, LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class HeadMixing(Part):
    """Queries, keys and optionally values become learned mixtures of heads, the identity at the start. Since this is
    linear in the projections, it is folded into them before calibration, and what is exported has no mixers; they stay
    where model.precision makes the projections' weights, a gate reads queries before they are mixed, or later passes of
    a loop have mixers of their own. Effect: +0.0006 on PR #1493, rejected there. Source: IHA,
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

    def leaves(self, parts: dict[str, Any]) -> bool:
        """Where nothing else depends on the projections as they were trained, and each has one mixer."""
        made = getattr(parts.get("precision"), "blocks", MLP) != MLP
        read = getattr(parts.get("head_gate"), "reads", "") == "q"
        return not made and not read and getattr(parts.get("loop"), "own", "none") == "none"

    def fold(self, weights: "dict[str, Tensor]") -> None:
        """W'[h] = sum over i of M[h,i] W[i], in float64; so too the rows of what later passes add to a projection."""
        from torch import einsum

        for name, mix in [*weights.items()]:
            block, _, last = name.partition(".attn.")
            if last in ("q_mix", "k_mix", "v_mix"):
                ends = tuple(f".attn.c_{last[0]}.{end}weight" for end in ("", "lora_b."))
                for other in [key for key in weights if key.startswith(f"{block}.") and key.endswith(ends)]:
                    rows = weights[other].double().unflatten(0, (len(mix), -1))
                    weights[other] = einsum("hi,idc->hdc", mix.double(), rows).flatten(0, 1).float()

    def projected(
        self, attn: Any, flow: Flow, layer: int, n_BTC: "Tensor", q: "Tensor", k: "Tensor", v: "Tensor"
    ) -> "tuple[Tensor, Tensor, Tensor]":
        """Mix heads."""
        from torch import einsum

        q = einsum("hi,btid->bthd", attn.q_mix.to(q.dtype), q)
        k = einsum("hi,btid->bthd", attn.k_mix.to(k.dtype), k)
        return q, k, einsum("hi,btid->bthd", attn.v_mix.to(v.dtype), v) if self.values else v
