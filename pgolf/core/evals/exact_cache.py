"""Exact counts of what followed the same tokens before, with the model as their prior (spec: evaluation 7.4)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.evals.adjustment import Adjustment
from pgolf.core.evals.base import Adjuster

if TYPE_CHECKING:
    from torch import Tensor

    from pgolf.core.evals.adjusted import AdjustedLedger


@dataclass(frozen=True, kw_only=True)
class ExactCache(Adjuster):
    """p_n(v) = (c_n(v) + prior p_(n-1)(v)) / (c_n + prior), where c_n(v) counts how often v followed the n - 1 tokens
    before the target, from the lowest order, whose p_(n-1) is the model's, to the highest. Effect: small or negative
    (PR #1740, #1741). Source: spec: evaluation 7.4.
    """

    lowest: int = 4
    """Lowest order n: the n - 1 tokens before."""
    highest: int = 8
    """Highest order."""
    step: int = 2
    """From one order to the next."""
    prior: float = 8.0
    """Occurrences that the distribution below an order counts for."""
    stored_share: float = 0.1
    """What an occurrence counts for that the model has stored (model.counts), since it knows much of that itself. 0
    starts from nothing.
    """

    def __post_init__(self) -> None:
        if not 1 <= self.lowest <= self.highest or self.step < 1:
            raise ConfigError("orders need 1 <= lowest <= highest, and a step of at least 1", "lowest")
        if self.prior <= 0:
            raise ConfigError(f"prior must be above 0, not {self.prior}", "prior")
        if self.stored_share < 0:
            raise ConfigError(f"stored_share must not be negative, not {self.stored_share}", "stored_share")

    def begin(self, ledger: "AdjustedLedger") -> "Caching":
        """Nothing seen but what the model has stored. ConfigError if that is of another order."""
        return Caching(ledger, self)


class Caching(Adjustment):
    """The counts of one stream: what followed each context, by its bytes (uint16). Most contexts come once, so a single
    follower is kept as its id, without a table of its own.
    """

    def __init__(self, ledger: "AdjustedLedger", settings: ExactCache) -> None:
        super().__init__(ledger)
        self.prior, self.counted = settings.prior, 0
        self.orders = range(settings.lowest, settings.highest + 1, settings.step)
        self.tables: list[dict[bytes, int | dict[int, float]]] = [{} for _ in self.orders]
        self.sizes = [2 * order - 2 for order in self.orders]
        self.ids: dict[int, int] = {}
        for part in ledger.model.parts if settings.stored_share else ():
            for (*context, token), count in part.stored(ledger.model):
                self.start(context, token, settings.stored_share * count)

    def start(self, context: list[int], token: int, count: float) -> None:
        """Count what came before the stream. ConfigError if no order has contexts so long."""
        import numpy as np

        if len(context) + 1 not in self.orders:
            what = f"the model has counts of order {len(context) + 1}, the cache of {', '.join(map(str, self.orders))}"
            raise ConfigError(what, "cache", "choose lowest, highest and step so that the model's is among them")
        table = self.tables[self.orders.index(len(context) + 1)]
        counts = table.setdefault(np.array(context, np.uint16).tobytes(), {})
        assert isinstance(counts, dict)
        counts[token] = count

    def contexts(self, content: bytes, target: int) -> list[bytes]:
        """The tokens before a target, by order as far as there are as many. `content` has them as uint16."""
        stop = 2 * target + 2
        return [content[stop - size : stop] for size in self.sizes if size <= stop]

    def count(self, contexts: list[bytes], found: list[int | dict[int, float] | None], came: int) -> None:
        """Note what came after these contexts, one of each order, after which `found` came before."""
        came = self.ids.setdefault(came, came)
        for table, context, counts in zip(self.tables, contexts, found):
            if counts is None:
                table[context] = came
                continue
            if isinstance(counts, int):
                counts = table[context] = {counts: 1}
            counts[came] = counts.get(came, 0) + 1

    def apply(self, position: int, logp_SV: "Tensor") -> "Tensor":
        """Mix in the counts, for each position those of what came before it; what is context is counted on the way."""
        import numpy as np
        import torch

        stop = position + len(logp_SV)
        tokens = self.ledger.context(stop)
        oldest = max(self.counted + 2 - self.orders[-1], 0)
        content = tokens[oldest:].astype(np.uint16).tobytes()
        scale = torch.ones(len(logp_SV), dtype=torch.float64)
        places, columns, parts = list[int](), list[int](), list[float]()
        for target in range(self.counted, stop):
            contexts = self.contexts(content, target - oldest)
            found = [table.get(context) for table, context in zip(self.tables, contexts)]
            if target >= position:
                kept, added = 1.0, dict[int, float]()
                for counts in found:
                    if counts is not None:
                        if isinstance(counts, int):
                            counts = {counts: 1}
                        norm = sum(counts.values()) + self.prior
                        factor = self.prior / norm
                        kept *= factor
                        added = {token: part * factor for token, part in added.items()}
                        for token, count in counts.items():
                            added[token] = added.get(token, 0.0) + count / norm
                scale[target - position] = kept
                places += [target - position] * len(added)
                columns += added
                parts += added.values()
            if target + 1 < stop:
                self.count(contexts, found, int(tokens[target + 1]))
        self.counted = stop - 1
        if not places:
            return logp_SV
        device = logp_SV.device
        p = logp_SV.double().exp() * scale.to(device)[:, None]
        where = torch.tensor(places, device=device), torch.tensor(columns, device=device)
        p[where] += torch.tensor(parts, dtype=torch.float64, device=device)
        return p.log().float()
