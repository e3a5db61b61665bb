"""Soft bound on the logits by a polynomial (ternary record)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.model.parts.tanh_softcap import TanhSoftcap

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Poly5Softcap(TanhSoftcap):
    """s clamp(u (1 - u^2/3 + u^4/15), -1, 1) with u = clamp(z / s, -2, 2). Source: ternary record (PR #640), whose last
    coefficient is 1/15 and not the 2/15 of tanh's series.
    """

    cap: float = 10.0
    """The bound s, in logits."""

    def apply(self, logits: "Tensor") -> "Tensor":
        """Bounded logits."""
        u = (logits / self.cap).clamp(-2, 2)
        square = u * u
        return self.cap * (u * (1 - square / 3 + square * square / 15)).clamp(-1, 1)
