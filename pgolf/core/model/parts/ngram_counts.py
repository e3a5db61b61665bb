"""Counts of phrases in the training tokens, stored with the model (spec: evaluation 7.4)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import ParamSpec, control
from pgolf.core.model.slots import LayerShape, Part

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class NgramCounts(Part):
    """Keeps the n-grams that training tokens repeat most often, and how often, for `eval.cache` to start from. They are
    counted when training begins, never change, and take their bytes of the artifact; the model does not read them.
    Effect: ours -0.0008 for 27 KB, -0.0015 for 240 KB (docs/evaluation.md). Source: spec: evaluation 7.4.
    """

    order: int = 6
    """Tokens of an n-gram, n."""
    entries: int = 4096
    """N-grams kept at most, among those that occur twice."""
    tokens: int = 1048576
    """Training tokens that are counted, from the first shard on."""

    def __post_init__(self) -> None:
        if self.order < 2 or self.entries < 1 or self.tokens < 1:
            raise ConfigError("order must be at least 2, entries and tokens at least 1", "order")

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """ngram_counts (n+1,N): a column has an n-gram's ids and its count, 0 where there is none."""
        return (control("ngram_counts", (self.order + 1, self.entries), 0.0),) if shape.layer < 0 else ()

    def collect(self, root: Any, shards: "list[np.ndarray]") -> None:
        """Count; n-grams are equal if their 64-bit hashes are."""
        import numpy as np
        import torch

        from pgolf.core.evals.token_hints import rolling_hashes

        taken, missing = [np.zeros(0, np.int64)], self.tokens
        for shard in shards:
            taken.append(shard[:missing].astype(np.int64))
            missing -= len(taken[-1])
        tokens = np.concatenate(taken)
        hashes = rolling_hashes(tokens, [self.order])[self.order][self.order - 1 :]
        _, first, count = np.unique(hashes, return_index=True, return_counts=True)
        best = np.argsort(-count, kind="stable")[: self.entries]
        best = best[count[best] > 1]
        columns = np.stack([*(tokens[first[best] + place] for place in range(self.order)), count[best]])
        columns = columns[:, np.lexsort(columns[::-1])]
        with torch.no_grad():
            root.ngram_counts[:, : columns.shape[1]] = torch.from_numpy(columns)

    def stored(self, root: Any) -> list[tuple[tuple[int, ...], int]]:
        """N-grams and their counts."""
        columns: list[list[int]] = root.ngram_counts.round().long().T.tolist()
        return [(tuple(ids), count) for *ids, count in columns if count]
