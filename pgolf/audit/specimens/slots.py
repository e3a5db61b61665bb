"""Tuning to a window: on what is scored, on the context alone, and on the contexts of a whole batch."""

from typing import Any

import torch
from torch import Tensor

from pgolf.audit.specimens.base import Specimen, tuned_delta


class SlotContext(Specimen):
    """A vector for each window, tuned to its context: legal."""

    source = "PR #1306"
    group = 1

    def __init__(self) -> None:
        self.delta: Tensor | None = None

    def run(self, ledger: Any) -> None:
        """Group by group: tune to the contexts, then score."""
        windows = self.windows(ledger)
        ledger.score(windows[:1])
        for start in range(1, len(windows), self.group):
            lot = windows[start : start + self.group]
            self.delta = self.tuned(ledger, lot)
            ledger.score(lot)

    def tuned(self, ledger: Any, lot: Any) -> Tensor:
        """From the inputs of these windows, which end where their scored parts begin."""
        ids, context = ledger.inputs(lot), self.seq_len - self.stride
        with torch.no_grad():
            hidden = ledger.model.hidden(ids)
        return tuned_delta(ledger, hidden[:, :context], ids[:, 1 : context + 1])

    def hidden(self, hidden_TC: Tensor) -> Tensor:
        """With the vector added."""
        return hidden_TC if self.delta is None else hidden_TC + self.delta


class SlotContextPerBatch(SlotContext):
    """One vector for eight windows, tuned to their contexts: those of later windows hold targets of earlier ones."""

    caught, source, group = "ab", "PR #1333", 8


class SlotScored(SlotContext):
    """Tuned to the very targets that are scored."""

    caught, source = "abc", "PR #1176, #1229, #1240"

    def tuned(self, ledger: Any, lot: Any) -> Tensor:
        """From the scored targets."""
        (begin, first, end) = lot[0].tolist()
        with torch.no_grad():
            hidden = ledger.model.hidden(ledger.inputs(lot))
        targets = torch.from_numpy(ledger.tokens[begin + first + 1 : begin + end + 1].__array__())
        return tuned_delta(ledger, hidden[:, first:end], targets[None])
