"""The ledger owns the tokens, the byte charges and the sums of an evaluation.

A method decides which windows to score in which order and may learn from tokens whose scores are committed. It cannot
score a target twice or leave one out. Tokens it gets by `reveal` after their scores, and where documents begin by
`layout` (spec: evaluation 1). That guards against mistakes and is no wall: what reads private names, or computes losses
of its own, is for the audit to find.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pgolf.core.bpb import Score
from pgolf.core.dist import World
from pgolf.core.errors import InputError, RuleError
from pgolf.core.evals.base import EvalMethod
from pgolf.core.model.gpt import GPT


@dataclass
class EvalWatch:
    """What an evaluation tells and asks its surroundings: the ranks that share it, and hooks. These do nothing here:
    pgolf's own watch overrides them, and the submission's script leaves out what calls them.
    """

    world: World = World()

    def recalled(self, ledger: "Ledger", windows: np.ndarray) -> bool:
        """Whether the losses of these windows were known, and are now committed."""
        return False

    def expects(self, work: int) -> None:
        """How much this rank will compute in all: input positions, those learned from included. What a method does not
        say is measured by targets.
        """

    def worked(self, work: int) -> None:
        """So much of it is done, or will be next."""

    def adapting(self, ledger: "Ledger", alone: bool = False) -> bool:
        """Whether there is time to adapt; a method asks before each adaptation, which begins here for the clock. All
        ranks ask together and get one answer, but for one `alone` with its share of the documents.
        """
        return True

    def tuning_begins(self) -> None:
        """Something is tuned to contexts."""

    def tuning_ends(self, ledger: "Ledger") -> None:
        """It is tuned, and scoring goes on."""

    def learned(self, steps: int) -> None:
        """The weights have taken so many steps, every rank with its share of each."""

    def adapted(self) -> None:
        """This rank's adapters have taken a step."""

    def scoring(self, ledger: "Ledger") -> None:
        """Scoring begins or goes on."""

    def advanced(self, ledger: "Ledger") -> None:
        """Some more targets are committed."""


class Ledger:
    """Tokens (N,), their byte charges, and the loss of each of the N - 1 targets, committed once. Every rank has the
    whole ledger; each scores its share of the windows.
    """

    def __init__(
        self,
        model: GPT,
        tokens: np.ndarray,
        charges: np.ndarray,
        method: EvalMethod,
        watch: EvalWatch = EvalWatch(),  # noqa: B008, it holds nothing
    ) -> None:
        if len(tokens) < 2:
            raise InputError("the validation stream has fewer than two tokens", "validation split")
        if len(charges) != len(tokens) - 1:
            raise InputError(
                f"{len(charges):,} byte charges for {len(tokens) - 1:,} targets", "validation split", "make both anew"
            )
        limit = method.max_tokens or len(charges)
        self._tokens = np.asarray(tokens[: limit + 1], dtype=np.int64)
        self.charges = charges[:limit]
        self.losses = np.full(len(self.charges), np.nan, dtype=np.float32)
        self.model, self.method, self.watch = model, method, watch
        self.device = next(model.parameters()).device
        self.done = 0

    @property
    def targets(self) -> int:
        """Number of targets."""
        return len(self.losses)

    @torch.no_grad()
    def score(self, windows: np.ndarray, length: int = 0) -> None:
        """Score windows (n,3) of (start, first, end): inputs are tokens[start : start + end], and positions
        first .. end - 1 inside the window are committed as targets start + position + 1. `length` is what windows are
        padded to, the method's seq_len if not given.
        """
        length, world = length or self.method.seq_len, self.watch.world
        step, own = self.method.batch_seqs * world.size, slice(world.rank, None, world.size)
        for place in range(0, len(windows), step):
            lot = windows[place : place + step]
            self.watch.scoring(self)
            self.watch.worked(len(lot) * length)
            if self.watch.recalled(self, lot):
                continue
            ids = np.zeros((len(lot), length + 1), dtype=np.int64)
            for row, (start, _, end) in zip(ids, lot):
                row[: end + 1] = self._tokens[start : start + end + 1]
            # Products of a few rows are summed in another order; with 64 and more, batches do not matter.
            skip = max(min(int(lot[:, 1].min()), length - 64), 0)
            losses = torch.zeros(len(lot), length - skip, device=self.device)
            if len(lot[own]):
                block = torch.from_numpy(ids[own]).to(self.device)
                losses[own] = self.nll(lot[own], block[:, :-1], block[:, 1:], skip)
            for row, (start, first, end) in zip(world.sum_(losses).cpu().numpy(), lot):
                self.commit(start + first, row[first - skip : end - skip])
            self.watch.advanced(self)

    def nll(self, windows: np.ndarray, ids_BT: Tensor, targets_BT: Tensor, start: int) -> Tensor:
        """Losses of a batch of windows from position `start` on, (B, T - start) float32."""
        return self.model.nll(ids_BT, targets_BT, start).float()

    def score_learnable(self, model: GPT, windows: np.ndarray, length: int, skip: int) -> Tensor:
        """Score windows (n,3), padded to `length`, in one pass of a model that shares this one's weights. Returns what
        was committed, to learn from: losses (n, length - skip) from position `skip` on, 0 where nothing was. For the
        same bits `skip` must not depend on which windows are side by side: gradients are sums over these positions.
        """
        self.watch.scoring(self)
        place = np.arange(length + 1)
        ids = self._tokens[np.minimum(windows[:, :1] + place, self.targets)] * (place <= windows[:, 2:])
        taken = (place[skip:-1] >= windows[:, 1:2]) & (place[skip:-1] < windows[:, 2:])
        block = torch.from_numpy(ids).to(self.device)
        losses = model.nll(block[:, :-1], block[:, 1:], skip).float()
        losses = torch.where(torch.from_numpy(taken).to(self.device), losses, 0.0)
        for row, (start, first, end) in zip(losses.detach().cpu().numpy(), windows):
            self.commit(start + first, row[first - skip : end - skip])
        self.watch.worked(len(windows) * length)
        self.watch.advanced(self)
        return losses

    def exchange(self, start: int, stop: int) -> None:
        """Take over what other ranks have committed of targets start .. stop - 1; all of them call it together."""
        place = self.losses[start:stop]
        known = torch.from_numpy(np.nan_to_num(place, nan=-1.0)).to(self.device)
        theirs = self.watch.world.max_(known).cpu().numpy()
        news = np.isnan(place) & (theirs >= 0)
        place[news] = theirs[news]
        self.done += int(news.sum())

    def commit(self, position: int, losses: np.ndarray) -> None:
        """Fix the losses of consecutive targets. RuleError if one was scored before or is not finite."""
        place = self.losses[position : position + len(losses)]
        if not np.isnan(place).all():
            raise RuleError(
                "a target was scored twice", f"target {position}", "this is a fault of the evaluation method"
            )
        if not (finite := np.isfinite(losses)).all():
            position += int(finite.argmin())
            raise RuleError("a loss is not finite", f"target {position}", "the model is broken")
        place[:] = losses
        self.done += len(losses)

    def reveal(self, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop - 1, to learn from. RuleError unless every target among them has been scored."""
        if np.isnan(self.losses[max(start - 1, 0) : stop - 1]).any():
            raise RuleError(
                "a token was asked for before it was scored",
                f"tokens {start} to {stop - 1}",
                "score first, adapt after",
            )
        return self._tokens[start:stop]

    def layout(self) -> np.ndarray:
        """Where documents begin, which a method may know beforehand: the stream (N,) with -1 for all tokens but the
        method's bos_id.
        """
        bos_id: int = self.method.bos_id  # type: ignore[attr-defined]
        return np.where(self._tokens == bos_id, bos_id, -1)

    def total(self) -> Score:
        """The score. RuleError if a target is missing."""
        if self.done != self.targets:
            raise RuleError(
                f"{self.targets - self.done:,} targets were never scored", "evaluation", "this is a fault of the method"
            )
        if not self.charges.any():
            raise InputError("no target is charged a byte", "validation split")
        return Score(float(self.losses.sum(dtype=np.float64)), self.targets, int(self.charges.sum(dtype=np.int64)))


def evaluate(
    model: GPT,
    tokens: np.ndarray,
    charges: np.ndarray,
    method: EvalMethod,
    watch: EvalWatch = EvalWatch(),  # noqa: B008
) -> tuple[Score, Ledger]:
    """Run a method over a stream (N,), its targets charged (N-1,) bytes; returns the checked score and its ledger. The
    method may change the model.
    """
    from pgolf.core.evals.adjusted import AdjustedLedger

    method.arrange(model)
    ledger = (AdjustedLedger if method.adjusters() else Ledger)(model, tokens, charges, method, watch)
    method.run(ledger)
    return ledger.total(), ledger
