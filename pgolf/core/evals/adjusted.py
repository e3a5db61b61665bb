"""Scores by distributions that adjusters have changed.

The ledger hands an adjuster the model's distribution at the scored positions of one window and takes back another; it
looks up the targets itself, after that. A window at a time, so that nothing depends on how windows are put into batches
or shared among ranks.

Shapes: B windows, T time, S scored positions of one window, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.core.errors import RuleError
from pgolf.core.evals.adjustment import Adjustment
from pgolf.core.evals.ledger import Ledger
from pgolf.core.model.gpt import GPT

TOLERANCE = 1e-4
"""How far from 0 the logarithm of a distribution's sum may be."""
PROBE, PROBES = 1 << 16, 3
"""Tokens at most of the streams on which a function is tried for looking ahead, and their number."""


class AdjustedLedger(Ledger):
    """The ledger of a method with adjusters. They read the stream in order, so windows must come in order."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.in_flight, self.tuning = 0, True
        self.adjustments: list[Adjustment] = [adjuster.begin(self) for adjuster in self.method.adjusters()]
        self.tunes = any(adjustment.tunes for adjustment in self.adjustments)

    def score(self, windows: np.ndarray, length: int = 0) -> None:
        """As the ledger scores, with a pause for learning wherever an adjuster wants one. RuleError when the windows do
        not go on where the last ones ended.
        """
        if not len(windows):
            return
        begins, ends = windows[:, 0] + windows[:, 1], windows[:, 0] + windows[:, 2]
        if begins[0] != self.done or (begins[1:] != ends[:-1]).any():
            raise RuleError(
                "adjusters read the stream in order, and this method scores it in another",
                f"target {self.done}",
                "set the method's slot, temperature, bias, cache, mixer and tilt to none",
            )
        lot = self.method.batch_seqs * self.watch.world.size if self.tunes else len(windows)
        while len(windows):
            for adjustment in self.adjustments:
                if adjustment.due(self.done):
                    adjustment.learn(self.done)
            if self.tunes:
                self.tuning = self.watch.adapting(self)
            most = min(lot, len(windows))
            count = next((place for place in range(1, most) if self.pauses(int(begins[place]))), most)
            super().score(windows[:count], length)
            windows, begins, ends = windows[count:], begins[count:], ends[count:]

    def pauses(self, position: int) -> bool:
        """Whether an adjuster wants to learn before the target at `position` is scored."""
        return any(adjustment.due(position) for adjustment in self.adjustments)

    def context(self, stop: int) -> np.ndarray:
        """The first `stop` tokens, for distributions of targets from position `stop` - 1 on (target i is token i + 1).
        RuleError beyond the inputs of the window that is being scored, so for its last target.
        """
        if stop > self.in_flight:
            raise RuleError("an adjuster asked for a token that is not context yet", f"token {stop - 1}")
        return self._tokens[:stop]

    def causal(self, function: Callable[[np.ndarray], tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        """What a function makes of the whole stream, arrays (N-1,...) with an entry per target, each a function of the
        tokens before that target alone. That is tried on streams which end early, on another token: RuleError if an
        entry differs.
        """
        found, draw = function(self._tokens), np.random.default_rng(0)
        for stop in draw.integers(1, min(self.targets, PROBE), PROBES, endpoint=True):
            cut = self._tokens[: stop + 1].copy()
            cut[-1] = self._tokens[0] if cut[-1] != self._tokens[0] else self._tokens.min() ^ 1
            for ours, others in zip(found, function(cut)):
                if not np.array_equal(ours[:stop], others):
                    raise RuleError("an adjuster looks ahead", f"{function.__qualname__}, before target {stop}")
        return found

    def changed(self, position: int, logp_SV: Tensor) -> Tensor:
        """What all adjusters make of a distribution for each target from `position` on. RuleError if it is none."""
        for adjustment in self.adjustments:
            logp_SV = adjustment.apply(position, logp_SV)
            total = float(logp_SV[-1].detach().logsumexp(-1))
            if not abs(total) <= TOLERANCE:
                raise RuleError(
                    f"the probabilities at target {position + len(logp_SV) - 1} do not sum to 1 but to {np.exp(total)}",
                    type(adjustment).__name__,
                    "this is a fault of the adjuster",
                )
        return logp_SV

    def score_learnable(self, model: GPT, windows: np.ndarray, length: int, skip: int) -> Tensor:
        """As the ledger scores. The windows come in any order, which suits adjusters that learn nothing."""
        return super().score_learnable(Changed(self, model, windows), windows, length, skip)  # type: ignore[arg-type]

    def nll(self, windows: np.ndarray, ids_BT: Tensor, targets_BT: Tensor, start: int) -> Tensor:
        """Losses of a batch of windows from position `start` on, (B, T - start) float32. RuleError when an adjuster's
        vector is no distribution.
        """
        begin = 0 if self.tunes else start
        context = torch.arange(ids_BT.size(1)) <= torch.from_numpy(windows[:, 1:2])
        known_BT = ids_BT * context.to(ids_BT.device)
        hidden = self.model.hidden(ids_BT, start=begin)
        tuned: dict[int, Tensor] = {}
        for adjustment in self.adjustments:
            tuned |= adjustment.logits(windows, hidden, known_BT)
        losses = torch.zeros(len(windows), ids_BT.size(1) - start, device=self.device)
        for row, (place, first, end) in enumerate(windows.tolist()):
            own = hidden[row : row + 1, first - begin : end - begin]
            logits = tuned[row] if row in tuned else self.model.head(own)[0]
            self.in_flight = place + end
            logp, position, targets = F.log_softmax(logits, -1), place + first, targets_BT[row, first:end]
            logp = self.changed(position, logp)
            losses[row, first - start : end - start] = F.nll_loss(logp, targets, reduction="none")
            for adjustment in self.adjustments:
                adjustment.settled(position, targets)
        return losses


class Changed:
    """A model whose losses are those of changed distributions, to learn from."""

    def __init__(self, ledger: AdjustedLedger, model: GPT, windows: np.ndarray) -> None:
        self.ledger, self.model, self.windows = ledger, model, windows

    def nll(self, ids_BT: Tensor, targets_BT: Tensor, start: int) -> Tensor:
        """Losses (B, T - start), as the model's own."""
        logp_BSV = F.log_softmax(self.model.head(self.model.hidden(ids_BT, start=start)), -1)
        rows = [self.ledger.changed(place + start, logp) for logp, place in zip(logp_BSV, self.windows[:, 0].tolist())]
        return F.nll_loss(torch.cat(rows), targets_BT[:, start:].flatten(), reduction="none").view(len(ids_BT), -1)
