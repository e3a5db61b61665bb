"""Non-overlapping windows (spec: evaluation 2)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.evals.base import Evaluator

if TYPE_CHECKING:
    import numpy as np

    from pgolf.core.evals.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class PlainEval(Evaluator):
    """Cuts the stream into windows of seq_len and scores all of each; the last may be short. Source: naive baseline."""

    def windows(self, targets: int) -> "np.ndarray":
        """Rows (start, first, end) covering every target once."""
        import numpy as np

        starts = np.arange(0, targets, self.seq_len)
        return np.stack([starts, np.zeros_like(starts), np.minimum(self.seq_len, targets - starts)], axis=1)

    def run(self, ledger: "Ledger") -> None:
        """Score the windows in order."""
        ledger.score(self.windows(ledger.targets))
