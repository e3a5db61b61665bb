"""The model mixed with counts of tokens and pairs, by weights that learn (spec: evaluation 7.3)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.evals.adjustment import Adjustment
from pgolf.core.evals.base import Adjuster

if TYPE_CHECKING:
    from torch import Tensor

    from pgolf.core.evals.adjusted import AdjustedLedger

MOST_IDS = 16384
"""The pair counts are a table of all pairs, 1 GiB for so many ids."""


@dataclass(frozen=True, kw_only=True)
class HedgeMixer(Adjuster):
    """p = sum of w_k p_k over the model, the tokens so far (add-delta) and what followed the last token (with the
    former as prior), all of them distributions; after each chunk ln w_k <- ln w_k - rate (nats of expert k). Counts and
    weights rest while a chunk is scored. Effect: -0.051 claimed with experts that are none (PR #688, #856). Source:
    PR #688, spec: evaluation 7.3.
    """

    replayable = False
    rate: float = 0.02
    """How fast weights follow the nats of a chunk."""
    first_weight: float = 0.98
    """The model's weight at the start; the others share the rest."""
    chunk_tokens: int = 8192
    """Targets between two changes."""
    delta: float = 1.0
    """Added to every count of single tokens."""
    prior: float = 32.0
    """Occurrences that single tokens count for in the estimate from pairs."""

    def __post_init__(self) -> None:
        if self.rate < 0 or self.chunk_tokens < 1:
            raise ConfigError("rate must not be negative, chunk_tokens at least 1", "rate")
        if not 0 < self.first_weight < 1 or self.delta <= 0 or self.prior <= 0:
            raise ConfigError("first_weight must lie between 0 and 1, delta and prior above 0", "first_weight")

    def begin(self, ledger: "AdjustedLedger") -> "Hedging":
        """Nothing counted. ConfigError for a vocabulary whose pairs take too much memory."""
        if (size := ledger.model.config.vocab_size) > MOST_IDS:
            raise ConfigError(f"pairs of {size:,} ids need {4 * size**2:,} bytes", "mixer", "set mixer=none")
        return Hedging(ledger, self)


class Hedging(Adjustment):
    """Counts and weights of one stream, and every expert's loss at each target."""

    def __init__(self, ledger: "AdjustedLedger", settings: HedgeMixer) -> None:
        import numpy as np
        import torch

        super().__init__(ledger)
        self.settings, self.since, size = settings, 0, ledger.model.config.vocab_size
        self.single = torch.zeros(size, dtype=torch.float64, device=ledger.device)
        self.pairs = torch.zeros(size, size, dtype=torch.int32, device=ledger.device)
        rest = (1 - settings.first_weight) / 2
        self.log_weights = np.log([settings.first_weight, rest, rest])
        self.nats = torch.zeros(3, ledger.targets, device=ledger.device)
        self.experts: Tensor | None = None

    def due(self, position: int) -> bool:
        """At the first window of each chunk."""
        return position // self.settings.chunk_tokens > self.since // self.settings.chunk_tokens

    def learn(self, position: int) -> None:
        """Count the targets since the last time, and weigh the experts by what they cost."""
        import numpy as np
        import torch

        tokens = torch.from_numpy(self.ledger.reveal(self.since, position + 1)).to(self.single.device)
        self.single += torch.bincount(tokens[1:], minlength=len(self.single))
        ones = torch.ones(len(tokens) - 1, dtype=torch.int32, device=tokens.device)
        self.pairs.index_put_((tokens[:-1], tokens[1:]), ones, accumulate=True)
        spent = self.ledger.watch.world.sum_(self.nats[:, self.since : position].contiguous())
        weights = self.log_weights - self.settings.rate * spent.cpu().numpy().sum(axis=1, dtype=np.float64)
        self.log_weights = weights - np.logaddexp.reduce(weights)
        self.since = position

    def apply(self, position: int, logp_SV: "Tensor") -> "Tensor":
        """The mixture."""
        import torch

        before = torch.from_numpy(self.ledger.context(position + len(logp_SV))[position:]).to(logp_SV.device)
        single = (self.single + self.settings.delta) / (self.single.sum() + self.settings.delta * len(self.single))
        pairs = self.pairs[before].double()
        paired = (pairs + self.settings.prior * single) / (pairs.sum(-1, keepdim=True) + self.settings.prior)
        others = torch.stack((single.expand_as(paired), paired)).log().float()
        self.experts = torch.cat((logp_SV[None], others))
        weighted = [expert + weight for expert, weight in zip(self.experts, self.log_weights.tolist())]
        return torch.stack(weighted).logsumexp(0)

    def settled(self, position: int, targets_S: "Tensor") -> None:
        """Note what each expert would have cost."""
        assert self.experts is not None
        rows = targets_S[None, :, None].expand(3, -1, 1)
        self.nats[:, position : position + len(targets_S)] = -self.experts.gather(-1, rows)[..., 0]
