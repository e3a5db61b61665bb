"""Soft bound on the logits by tanh (naive baseline)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
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
