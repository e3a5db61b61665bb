"""Long steps with an overlap (spec: evaluation 4)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.evals.base import Evaluator
from pgolf.core.evals.sliding import sliding_windows

if TYPE_CHECKING:
    from pgolf.core.evals.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class OverlapEval(Evaluator):
    """Windows that see `overlap` tokens before those they score. A model of attention alone carries no other state from
    window to window, so these are sliding windows of stride seq_len - overlap. Effect: within 0.0003 of sliding at an
    overlap of 1,024 in a fifteenth of its time (thread on stateful evaluation). Source: spec: evaluation 4.
    """

    overlap: int = 0
    """Tokens of context that every window but the first repeats; 0 is half a window."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.overlap < self.seq_len:
            raise ConfigError(f"overlap {self.overlap} must lie between 0 and seq_len {self.seq_len} - 1", "overlap")

    def context(self) -> int:
        """The overlap."""
        return self.overlap or self.seq_len // 2

    def run(self, ledger: "Ledger") -> None:
        """Score the windows in order."""
        ledger.score(sliding_windows(ledger.targets, self.seq_len, self.seq_len - self.context()))
