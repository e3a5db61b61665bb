"""Which training tokens come when, for which rank (spec: training 7)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from pgolf.core.shards import TokenStream


@dataclass(frozen=True, kw_only=True)
class SequentialLoader:
    """The concatenation of the shards, wrapping at the end: each micro-step takes world * (n + 1) ids and rank r the
    r-th slice of n + 1. One token per rank and micro-step is context only. Source: naive baseline.
    """

    def batch(
        self, stream: "TokenStream", tokens: int, seq_len: int, rank: int, world_size: int
    ) -> "tuple[np.ndarray, np.ndarray]":
        """Inputs and targets of one micro-step for one rank, (tokens / seq_len, seq_len) int64 each."""
        span = stream.take(world_size * (tokens + 1))[rank * (tokens + 1) : (rank + 1) * (tokens + 1)]
        return span[:-1].reshape(-1, seq_len), span[1:].reshape(-1, seq_len)
