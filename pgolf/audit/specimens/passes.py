"""Scores that come after learning from what they score, and choices among several."""

from typing import Any

import numpy as np
from torch import Tensor

from pgolf.audit.specimens.base import Specimen, blended, counted_pairs, share_of_pairs, train
from pgolf.audit.specimens.slots import SlotContextPerBatch
from pgolf.core.evals.sliding import sliding_windows


class PreEvalTtt(Specimen):
    """Trains on the whole stream, then scores it."""

    caught, source = "abc", "issues #402, #677, #1082"

    def run(self, ledger: Any) -> None:
        """Train, score."""
        train(ledger, np.asarray(ledger.tokens))
        super().run(ledger)


class LastEpochScored(Specimen):
    """Scores before it learns, but does both twice, and reports the second."""

    caught, source = "abcd", "PR #568, #525, #713"

    def run(self, ledger: Any) -> None:
        """Two epochs."""
        for epoch in range(2):
            super().run(ledger)
            if not epoch:
                train(ledger, ledger.reveal(0, ledger.targets + 1))


class TwoPass(Specimen):
    """Scores all, fills a cache with all, and scores all again with it."""

    caught, source = "abcd", "PR #846, #853, #959"

    def __init__(self) -> None:
        self.table: np.ndarray | None = None

    def run(self, ledger: Any) -> None:
        """Two passes."""
        super().run(ledger)
        self.table = counted_pairs(ledger.reveal(0, ledger.targets + 1), ledger.model.config.vocab_size)
        super().run(ledger)

    def distort(self, ledger: Any, position: int, logp_SV: Tensor, ids_T: Tensor) -> Tensor:
        """With what followed, once it is known."""
        if self.table is None:
            return logp_SV
        return blended(logp_SV, share_of_pairs(self.table, ids_T[-len(logp_SV) :].numpy()), 0.5)


class MinOfPasses(Specimen):
    """The better of two scores, each of them sound."""

    caught, source = "bd", "PR #573"

    def run(self, ledger: Any) -> None:
        """Long context, short context, and the smaller loss."""
        ledger.score(self.windows(ledger))
        first = ledger.losses.copy()
        self.again(ledger)
        ledger.commit(0, np.minimum(first, ledger.losses))

    def again(self, ledger: Any) -> None:
        """The second pass."""
        ledger.score(sliding_windows(ledger.targets, self.seq_len // 2, self.stride // 2))


class MinWithSharedSlot(MinOfPasses, SlotContextPerBatch):
    """The better of two scores, one of which looks ahead."""

    caught, source = "abd", "PR #573, #1333"

    def again(self, ledger: Any) -> None:
        """The second pass tunes to several contexts."""
        SlotContextPerBatch.run(self, ledger)


class ValTemperature(Specimen):
    """A temperature fitted on the stream that is scored with it."""

    caught, perhaps, source = "ac", "b", "PR #991, #1004"

    def __init__(self) -> None:
        self.temperature = 1.0

    def run(self, ledger: Any) -> None:
        """Fit, then score."""
        tokens = np.asarray(ledger.tokens)
        rare = 1 / np.bincount(tokens, minlength=ledger.model.config.vocab_size)[tokens]
        self.temperature = 1 + 0.1 * float(rare.mean() + tokens.mean() / tokens.max())
        super().run(ledger)

    def distort(self, ledger: Any, position: int, logp_SV: Tensor, ids_T: Tensor) -> Tensor:
        """Warmer or colder."""
        return (logp_SV / self.temperature).log_softmax(-1)


class EarlyWindowList(Specimen):
    """Windows that are cut off at the end of the stream, each scoring its last targets again."""

    caught, source = "d", "the first sliding evaluations"

    def windows(self, ledger: Any) -> np.ndarray:
        """One window for every stride, to the very end."""
        starts = np.arange(0, ledger.targets, self.stride)
        ends = np.minimum(self.seq_len, ledger.targets - starts)
        first = np.where(starts > 0, np.maximum(ends - self.stride, 0), 0)
        return np.stack([starts, first, ends], 1)


class CutTail(Specimen):
    """Leaves out what does not fill a window."""

    caught, source = "d", "batches without a remainder"

    def windows(self, ledger: Any) -> np.ndarray:
        """Whole windows only."""
        windows = super().windows(ledger)
        whole: np.ndarray = windows[windows[:, 2] == self.seq_len]
        return whole

    def run(self, ledger: Any) -> None:
        """All of them but the last, which would be whole by chance."""
        ledger.score(self.windows(ledger)[:-1])
