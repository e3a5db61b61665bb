"""Score-first test-time training of a model's weights, chunk by chunk (spec: evaluation 9.1)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.evals.sliding import SlidingEval, sliding_windows
from pgolf.core.ttt.weights import Learner, WeightTraining

if TYPE_CHECKING:
    from pgolf.core.evals.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class ChunkTtt(WeightTraining, SlidingEval):
    """Scores a chunk's sliding windows, then all weights learn from that chunk. Effect: -0.002 to -0.007 on strong
    models (PR #549, #1493). Source: PR #461, #549, #995, #1493.
    """

    learns = True

    def __post_init__(self) -> None:
        SlidingEval.__post_init__(self)
        WeightTraining.__post_init__(self)
        if self.chunk_tokens < self.seq_len:
            raise ConfigError(
                f"chunk_tokens {self.chunk_tokens} must be at least seq_len {self.seq_len}", "chunk_tokens"
            )

    def run(self, ledger: "Ledger") -> None:
        """Alternate scoring and learning; nothing is learned from the last chunk, nor from what remains of a chunk when
        it is cut into sequences of seq_len.
        """
        windows = sliding_windows(ledger.targets, self.seq_len, self.stride)
        chunk_of = (windows[:, 0] + windows[:, 1]) // self.chunk_tokens
        chunks = math.ceil(ledger.targets / self.chunk_tokens)
        learner = Learner(self, ledger.model, ledger.watch.world) if self.epochs and chunks > 1 else None
        for chunk in range(chunks):
            ledger.score(windows[chunk_of == chunk])
            if learner and chunk + 1 < chunks and ledger.watch.adapting(ledger):
                start = chunk * self.chunk_tokens
                rows = self.sequences(ledger.reveal(start, start + self.chunk_tokens + 1), self.seq_len)
                steps = learner.learn(rows, self.rate(chunk, chunks))
                ledger.watch.learned(steps)
        if learner:
            learner.end()
