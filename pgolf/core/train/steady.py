"""The default of everything that may change in the course of a run: nothing does."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Steady:
    """Training is the same from its first step to its last. Source: naive baseline."""

    fusible = True
    """Whether the fused kernels compute what training then computes."""

    def enlist(self, extras: list[Any], device: Any, token_bytes: Any) -> None:
        """Before the first step, join `extras` with what acts; `token_bytes` is the `token_table`."""

    def token_table(self, tokenizer: Any, vocab_size: int) -> Any:
        """Every id's bytes, (V,) int64, for losses that ask for them."""
        return None

    def extra_parts(self, fraction: float, lr_scale: float) -> tuple[Any, ...]:
        """Parts that act on the model at a fraction of the run, in training only."""
        return ()

    def length(self, fraction: float, seq_len: int) -> int:
        """Tokens per row at a fraction of the run; 0 leaves rows as the loader made them."""
        return 0

    def check(self, seq_len: int) -> None:
        """Rows of any length stay as they are."""
