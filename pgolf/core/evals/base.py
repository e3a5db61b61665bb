"""What every evaluation method shares. Loaded without torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pgolf.core.errors import ConfigError

if TYPE_CHECKING:
    from pgolf.core.evals.ledger import Ledger


class EvalMethod(Protocol):
    """A way to score a stream with fixed weights."""

    @property
    def seq_len(self) -> int:
        """Tokens the model sees at once."""

    @property
    def max_tokens(self) -> int:
        """Targets to score; 0 means all."""

    @property
    def batch_seqs(self) -> int:
        """Windows per forward pass."""

    def run(self, ledger: "Ledger") -> None:
        """Score every target of the ledger exactly once."""


class TttMethod(EvalMethod, Protocol):
    """A way to score a stream with weights that learn from what has been scored."""


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """The options every method has."""

    seq_len: int = 1024
    """Tokens the model sees at once."""
    max_tokens: int = 0
    """Score only this many targets from the start of the validation stream; 0 means all."""
    batch_seqs: int = 32
    """Windows per forward pass."""

    def __post_init__(self) -> None:
        if self.seq_len < 1 or self.batch_seqs < 1 or self.max_tokens < 0:
            raise ConfigError("seq_len and batch_seqs must be at least 1, max_tokens not negative", "")
