"""A learned gain per query head (naive baseline)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.model.params import ParamSpec, control
from pgolf.core.model.slots import LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class QkGain(Part):
    """Multiplies normalised queries: the largest attention logit becomes gain * sqrt(D). Effect: better up to 5.25 with
    a vocabulary of 8,192 (PR #1493). Source: naive baseline.
    """

    init: float = 1.5
    """Initial gain (upstream: qk_gain_init)."""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """attn.q_gain (H,)."""
        return () if shape.layer < 0 else (control("attn.q_gain", (shape.num_heads,), self.init),)

    def queries(self, attn: Any, q_BTHD: "Tensor") -> "Tensor":
        """Scale each head."""
        return q_BTHD * attn.q_gain.to(q_BTHD.dtype)[:, None]
