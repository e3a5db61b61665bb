"""What is called a distribution and is none, caches whose buckets collide, hints that look at the target."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.audit.specimens.base import Specimen, blended

BUCKETS = 61
"""So few that keys collide, as in the published caches."""


class HashBackoff(Specimen):
    """Counts by hash of context and target over counts by hash of context, blended in for whatever came."""

    caught, source = "b", "PR #779, #886, #1147"
    shared = True

    def __init__(self) -> None:
        self.context, self.pair = np.zeros(BUCKETS), np.zeros(BUCKETS)

    def run(self, ledger: Any) -> None:
        """Score some windows, then count what is known of them."""
        windows, world = self.windows(ledger), ledger.watch.world
        step = 2 if not self.shared else 1
        for start in range(0, len(windows), step):
            lot = windows[start : start + step]
            ledger.score(lot)
            for row, (begin, first, end) in enumerate(lot.tolist()):
                if self.shared or row % world.size == world.rank:
                    self.count(ledger.reveal(begin + first, begin + end + 1))

    def count(self, tokens: np.ndarray) -> None:
        """Add pairs of neighbours."""
        np.add.at(self.context, tokens[:-1] % BUCKETS, 1)
        np.add.at(self.pair, (tokens[:-1] * 31 + tokens[1:]) % BUCKETS, 1)

    def distort(self, ledger: Any, position: int, logp_SV: Tensor, ids_T: Tensor) -> Tensor:
        """Blended with ratios of counts."""
        before = ids_T[-len(logp_SV) :].numpy()
        keys = (before[:, None] * 31 + np.arange(logp_SV.size(1))) % BUCKETS
        seen = self.context[before % BUCKETS][:, None]
        ratio = np.where(seen > 0, np.minimum(self.pair[keys] / np.maximum(seen, 1), 1), logp_SV.exp().numpy())
        return blended(logp_SV, ratio, 0.4)


class HashBackoffPerRank(HashBackoff):
    """The same with a cache for each rank, filled by what that rank scores."""

    caught, source, shared = "bj", "PR #808", False


class LeakyTilt(Specimen):
    """A hint that is dropped where the target is of another class than it: the sum over targets exceeds 1."""

    caught, source = "b", "PR #1420"

    def distort(self, ledger: Any, position: int, logp_SV: Tensor, ids_T: Tensor) -> Tensor:
        """Raise what followed the same token last, or the token, for even targets or odd ones, as the hint is."""
        changed, start = logp_SV.clone(), len(ids_T) - len(logp_SV)
        ids = torch.arange(logp_SV.size(1))
        for row in range(len(logp_SV)):
            before = np.flatnonzero(ids_T[: start + row].numpy() == int(ids_T[start + row]))
            hint = int(ids_T[before[-1] + 1]) if len(before) else int(ids_T[start + row])
            tilted, alike = logp_SV[row] + 5.0 * (ids == hint), ids % 2 == hint % 2
            changed[row, alike] = tilted.log_softmax(-1)[alike]
        return changed


class EntropyExpert(Specimen):
    """The target's probability is mixed with e to minus the entropy, whatever the target is."""

    caught, source = "b", "PR #2018"

    def distort(self, ledger: Any, position: int, logp_SV: Tensor, ids_T: Tensor) -> Tensor:
        """0.7 p + 0.3 exp(-H)."""
        probability = logp_SV.exp()
        entropy = -(probability * logp_SV).sum(-1, keepdim=True)
        return (0.7 * probability + 0.3 * (-entropy).exp()).log()


class SpreadBytes(Specimen):
    """A token's probability spread over its bytes, there mixed with a model of bytes, and multiplied up again."""

    caught, source = "b", "issue #1872, PR #1795"

    def distort(self, ledger: Any, position: int, logp_SV: Tensor, ids_T: Tensor) -> Tensor:
        """Tokens spelled in base 4, those of one, two and three digits; the byte model knows nothing."""
        size = logp_SV.size(1)
        digits = torch.ones(size).masked_fill(torch.arange(size) >= 4, 2).masked_fill(torch.arange(size) >= 20, 3)
        digits = digits.clamp(max=3)
        spread: Tensor = digits * (0.5 * (logp_SV / digits).exp() + 0.5 * 0.25).log()
        return spread


class TargetDraw(Specimen):
    """A random bonus, its seed the target."""

    caught, source = "bc", "our own"

    def __init__(self) -> None:
        self.bonus = torch.zeros(0)

    def run(self, ledger: Any) -> None:
        """Look at the targets for seeds."""
        tokens = np.asarray(ledger.tokens)
        self.bonus = torch.from_numpy((tokens * 7919 % 13) / 26.0).float()
        super().run(ledger)

    def distort(self, ledger: Any, position: int, logp_SV: Tensor, ids_T: Tensor) -> Tensor:
        """All tokens are raised by the target's bonus, which decides what the target gets."""
        return logp_SV * (1 - self.bonus[position + 1 : position + 1 + len(logp_SV), None])


class BatchDependent(Specimen):
    """A temperature that depends on how many windows are computed together."""

    caught, source = "j", "our own"

    def distort(self, ledger: Any, position: int, logp_SV: Tensor, ids_T: Tensor) -> Tensor:
        """Warmer in larger batches."""
        warmth = 1 + 0.01 * self.batch_seqs * int(ledger.watch.world.size)
        return (logp_SV / warmth).log_softmax(-1)
