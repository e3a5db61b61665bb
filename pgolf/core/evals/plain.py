"""Non-overlapping windows (spec: evaluation 2)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.evals.base import Evaluator
from pgolf.core.evals.sliding import sliding_windows

if TYPE_CHECKING:
    from pgolf.core.evals.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class PlainEval(Evaluator):
    """Cuts the stream into windows of seq_len and scores all of each; the last may be short. Source: naive baseline."""

    def run(self, ledger: "Ledger") -> None:
        """Score the windows in order."""
        ledger.score(sliding_windows(ledger.targets, self.seq_len, self.seq_len))
