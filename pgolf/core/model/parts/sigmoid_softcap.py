"""Logits rescaled by a sigmoid (modded-nanogpt)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.model.kernels import softcapped_nll
from pgolf.core.model.slots import Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SigmoidSoftcap(Part):
    """scale * sigma((z + shift) / width). Effect: a wider quantization gap on PR #1512, rejected there. Source:
    modded-nanogpt; rejected on PR #1512, where it widened the loss from quantization.
    """

    scale: float = 23.0
    """Upper bound of the logits."""
    shift: float = 5.0
    """Added before the sigmoid."""
    width: float = 7.5
    """Divides before the sigmoid."""

    def __post_init__(self) -> None:
        for key in ("scale", "width"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"{key} must be positive, not {getattr(self, key)}", key)

    def apply(self, logits: "Tensor") -> "Tensor":
        """Bounded logits."""
        return self.scale * ((logits + self.shift) / self.width).sigmoid()

    def fused_nll(self, logits_NV: "Tensor", targets_N: "Tensor") -> "Tensor":
        """(N,) float32."""
        return softcapped_nll(logits_NV, targets_N, self.scale, self.shift, self.width)
