"""Keys that speak of the token before (partial key offset)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.slots import Flow, LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PartialKeyOffset(Part):
    """The dimensions of a key from `dims` on come from the token before, on layers `first` .. L-1. Test-time training
    by SGD suffers from it (+0.02 BPB in PR #1512). Effect: with a gain of 2.5 -0.0026 (PR #1512); +0.0009 on PR #1493,
    and +0.02 after TTT. Source: modded-nanogpt, PR #1512.
    """

    dims: int = 0
    """First dimension that shifts: those that rotate stay; 0 shifts the upper half of the head."""
    first: int = 0
    """First layer that does (in PR #1512 those with full attention)."""

    def suits(self, shape: LayerShape) -> None:
        """Some dimension is left to shift."""
        if not 0 <= self.dims < shape.head_dim:
            raise ConfigError(f"dims must lie in [0, {shape.head_dim}), not {self.dims}", "dims")

    def layers(self, num_layers: int) -> range:
        """From `first` on."""
        return range(max(self.first, 0), num_layers)

    def keys(self, attn: Any, flow: Flow, k_BTKD: "Tensor") -> "Tensor":
        """Shift by one token within a document; a document's first key stays."""
        from torch import cat, where

        kept, shifted = k_BTKD.tensor_split([self.dims or k_BTKD.size(-1) // 2], dim=-1)
        shifted = where(flow.same_BT[..., None, None], flow.before(shifted), shifted)
        return cat((kept, shifted), dim=-1)
