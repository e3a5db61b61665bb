"""A learned bias per token id (ternary record)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.model.params import ParamSpec, control
from pgolf.core.model.slots import LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class VocabBias(Part):
    """Adds a number per token id to the raw logits, zero at the start. Source: ternary record (PR #640)."""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """vocab_bias (V,)."""
        return (control("vocab_bias", (shape.vocab_size,), 0.0),) if shape.layer < 0 else ()

    def scored(self, root: Any, logits_BTV: "Tensor") -> "Tensor":
        """Add it."""
        return logits_BTV + root.vocab_bias.to(logits_BTV.dtype)
