"""A bias on the vocabulary that learns from what has been scored (spec: evaluation 7.5)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.evals.adjustment import Adjustment
from pgolf.core.evals.base import Adjuster

if TYPE_CHECKING:
    from torch import Tensor

    from pgolf.core.evals.adjusted import AdjustedLedger

FIXED_POINT = float(1 << 40)
"""Probabilities are summed as whole multiples of its inverse: the sum is the same in any order and on any ranks."""


@dataclass(frozen=True, kw_only=True)
class OnlineBias(Adjuster):
    """softmax(logits + b), and after each scored chunk b <- b - lr (mean of the probabilities - share of each token).
    Effect: -0.015 for a streaming version (unverified). Source: PR #1399, #959 without their rescoring.
    """

    replayable = False
    lr: float = 1.0
    """Rate of the bias, logits per unit of probability."""
    chunk_tokens: int = 8192
    """Targets between two steps."""

    def __post_init__(self) -> None:
        if self.lr < 0 or self.chunk_tokens < 1:
            raise ConfigError("lr must not be negative, chunk_tokens at least 1", "lr")

    def begin(self, ledger: "AdjustedLedger") -> "Biasing":
        """No bias."""
        return Biasing(ledger, self)


class Biasing(Adjustment):
    """The bias (V,) of one stream, and what was predicted since it last changed."""

    def __init__(self, ledger: "AdjustedLedger", settings: OnlineBias) -> None:
        import torch

        super().__init__(ledger)
        self.settings, self.since = settings, 0
        size = ledger.model.config.vocab_size
        self.bias = torch.zeros(size, device=ledger.device)
        self.sums = torch.zeros(size, dtype=torch.int64, device=ledger.device)

    def due(self, position: int) -> bool:
        """At the first window of each chunk."""
        return position // self.settings.chunk_tokens > self.since // self.settings.chunk_tokens

    def learn(self, position: int) -> None:
        """One step."""
        import numpy as np
        import torch

        came = np.bincount(self.ledger.reveal(self.since + 1, position + 1), minlength=len(self.bias))
        predicted = self.ledger.watch.world.sum_(self.sums).double() / FIXED_POINT
        surplus = (predicted - torch.from_numpy(came).to(self.bias.device)) / (position - self.since)
        self.bias -= self.settings.lr * surplus.float()
        self.sums.zero_()
        self.since = position

    def apply(self, position: int, logp_SV: "Tensor") -> "Tensor":
        """Add it and normalise."""
        import torch

        logp = torch.log_softmax(logp_SV + self.bias, -1)
        self.sums += (logp.double().exp() * FIXED_POINT).long().sum(0)
        return logp
