"""Soft bound on the logits by tanh (naive baseline)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.model.kernels import softcapped_nll
from pgolf.core.model.slots import Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TanhSoftcap(Part):
    """s * tanh(z / s). Source: naive baseline, arXiv:2408.00118."""

    cap: float = 30.0
    """The bound s, in logits (upstream: logit_softcap)."""

    def __post_init__(self) -> None:
        if self.cap <= 0:
            raise ConfigError(f"cap must be positive, not {self.cap}", "cap")

    def apply(self, logits: "Tensor") -> "Tensor":
        """Bounded logits."""
        return self.cap * (logits / self.cap).tanh()

    def fused_nll(self, logits_NV: "Tensor", targets_N: "Tensor") -> "Tensor":
        """(N,) float32; s tanh(z/s) = 2s sigma(2z/s) - s, and the constant cancels."""
        return softcapped_nll(logits_NV, targets_N, 2 * self.cap, 0.0, self.cap / 2)
