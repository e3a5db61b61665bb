"""Overlapping windows, so that every target but the first few has a long context (spec: evaluation 3)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.evals.base import Evaluator

if TYPE_CHECKING:
    import numpy as np

    from pgolf.core.evals.ledger import Ledger


def sliding_windows(targets: int, seq_len: int, stride: int) -> "np.ndarray":
    """Rows (start, first, end): window 0 scores all it holds, every later one its last `stride` positions."""
    import numpy as np

    context = seq_len - stride
    starts = np.arange(0, max(targets - context, 1), stride)
    first = np.full_like(starts, context)
    first[0] = 0
    return np.stack([starts, first, np.minimum(seq_len, targets - starts)], axis=1)


@dataclass(frozen=True, kw_only=True)
class SlidingEval(Evaluator):
    """Windows of seq_len that advance by stride. Source: the sliding-window records, in the generation that scores
    each target exactly once.
    """

    stride: int = 64
    """Targets scored per window; context is seq_len - stride."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.stride <= self.seq_len:
            raise ConfigError(f"stride {self.stride} must lie between 1 and seq_len {self.seq_len}", "stride")

    def context(self) -> int:
        """All but the stride."""
        return self.seq_len - self.stride

    def run(self, ledger: "Ledger") -> None:
        """Score the windows in order."""
        ledger.score(sliding_windows(ledger.targets, self.seq_len, self.stride))
