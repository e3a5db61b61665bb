"""Score-first test-time training of all weights, chunk by chunk (spec: evaluation 9.1)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.evals.sliding import SlidingEval, sliding_windows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, optim

    from pgolf.core.evals.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class ChunkSgd(SlidingEval):
    """Scores a chunk's sliding windows, then takes SGD steps on that chunk. Source: PR #549, PR #1493."""

    chunk_tokens: int = 32768
    """Targets per chunk."""
    lr: float = 0.005
    """Peak learning rate; a cosine over the chunks brings it to zero."""
    momentum: float = 0.9
    """SGD momentum, kept from chunk to chunk."""
    epochs: int = 3
    """Passes over each scored chunk; 0 only scores."""
    train_seqs: int = 32
    """Sequences per SGD step."""
    grad_clip: float = 1.0
    """Global gradient norm limit."""
    freeze_blocks: int = 0
    """Number of first blocks that do not adapt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk_tokens < self.seq_len:
            raise ConfigError(
                f"chunk_tokens {self.chunk_tokens} must be at least seq_len {self.seq_len}", "chunk_tokens"
            )
        if self.train_seqs < 1 or self.epochs < 0 or self.freeze_blocks < 0:
            raise ConfigError("train_seqs must be at least 1, epochs and freeze_blocks not negative")
        if self.lr < 0 or self.grad_clip <= 0 or not 0 <= self.momentum < 1:
            raise ConfigError("lr must not be negative, grad_clip above 0, momentum in [0, 1)")

    def run(self, ledger: "Ledger") -> None:
        """Alternate scoring and training; nothing is trained on after the last chunk."""
        import torch

        windows = sliding_windows(ledger.targets, self.seq_len, self.stride)
        chunk_of = (windows[:, 0] + windows[:, 1]) // self.chunk_tokens
        chunks = math.ceil(ledger.targets / self.chunk_tokens)
        frozen = tuple(f"blocks.{layer}." for layer in range(self.freeze_blocks))
        weights = [
            weight for name, weight in ledger.model.named_parameters() if not (frozen and name.startswith(frozen))
        ]
        optimizer = torch.optim.SGD(weights, lr=self.lr, momentum=self.momentum)
        for chunk in range(chunks):
            ledger.score(windows[chunk_of == chunk])
            if chunk + 1 < chunks and ledger.watch.adapting(ledger):
                optimizer.param_groups[0]["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * chunk / max(chunks - 1, 1)))
                self.adapt(ledger, chunk * self.chunk_tokens, optimizer, weights)
        ledger.model.zero_grad(set_to_none=True)

    def adapt(self, ledger: "Ledger", start: int, optimizer: "optim.SGD", weights: "Sequence[Tensor]") -> None:
        """SGD over the sequences of one scored chunk; a tail shorter than seq_len is left out."""
        import numpy as np
        import torch

        sequences = self.chunk_tokens // self.seq_len
        tokens = ledger.reveal(start, start + sequences * self.seq_len + 1)
        ids = torch.from_numpy(np.stack([tokens[:-1], tokens[1:]])).view(2, sequences, self.seq_len).to(ledger.device)
        for _ in range(self.epochs):
            for first in range(0, sequences, self.train_seqs):
                ledger.model.zero_grad(set_to_none=True)
                ledger.model(
                    ids[0, first : first + self.train_seqs], ids[1, first : first + self.train_seqs]
                ).backward()
                torch.nn.utils.clip_grad_norm_(weights, self.grad_clip)
                optimizer.step()
