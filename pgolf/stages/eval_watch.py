"""What pgolf hears of an evaluation: progress, clocks, the budget, and the ledger kept on disk."""

import math
from typing import Any

import numpy as np

from pgolf.core.dist import World
from pgolf.core.evals.ledger import EvalWatch, Ledger
from pgolf.report.console import Console, ProgressLine, bar, clock
from pgolf.stages.eval_clock import EvalClock
from pgolf.stages.eval_partial import PartialLedger

SAVE_S, SHOW_S, TELL_S = 10.0, 0.5, 30.0
"""Seconds between two saves, two live lines, and two lines where nothing is live."""


class ScoringWatch(EvalWatch):
    """Passes on what happens, on the first rank; decisions are those of all ranks."""

    def __init__(
        self,
        label: str,
        timer: EvalClock,
        console: Console,
        line: ProgressLine,
        world: World,
        partial: PartialLedger | None = None,
    ) -> None:
        super().__init__(world)
        self.label, self.timer, self.console, self.line = label, timer, console, line
        self.partial, self.known = partial, np.empty(0, np.float32)
        self.saved_s = self.shown_s = self.told_s = timer.now()
        self.start_s = timer.now()
        self.first = 0
        self.warned = False
        self.stopped_at: int | None = None

    def resume(self, targets: int) -> None:
        """Go on where the same evaluation was, if it was interrupted. All ranks read the same file."""
        found = self.partial.load(targets) if self.partial else None
        if found is None:
            return
        self.known, self.timer.before = found
        self.first = int(np.isfinite(self.known).sum())
        self.console.line(f"{self.label}: going on after {self.first:,} of {targets:,} targets")

    def recalled(self, ledger: Ledger, windows: np.ndarray) -> bool:
        """Commit what the interrupted evaluation knew of these windows, if it knew all of them."""
        parts = [(start + first, self.known[start + first : start + end]) for start, first, end in windows.tolist()]
        if any(not len(losses) or np.isnan(losses).any() for _, losses in parts):
            return False
        for position, losses in parts:
            ledger.commit(position, losses)
        return True

    def slow(self, ledger: Ledger) -> bool:
        """Whether any rank expects to overrun the budget."""
        return bool(self.timer.budget_s) and self.world.any(self.timer.too_slow(ledger.done, ledger.targets))

    def adapting(self, ledger: Ledger) -> bool:
        """Adapt until the budget will not suffice; from then on only score."""
        if self.stopped_at is None and self.slow(ledger):
            self.stopped_at = ledger.done
            share = ledger.done / ledger.targets
            self.console.warn(
                f"{self.label} would take {self.timer.forecast(ledger.done, ledger.targets):.0f} s of "
                f"{self.timer.budget_s:g} s: no adaptation after {share:.1%} of the targets"
            )
        if self.stopped_at is None:
            self.timer.enter("adapt")
        return self.stopped_at is None

    def scoring(self, ledger: Ledger) -> None:
        """On with the score."""
        self.timer.enter("score")

    def advanced(self, ledger: Ledger) -> None:
        """Show, warn and save, each now and then."""
        moment = self.timer.now()
        if not self.warned and self.timer.too_slow(ledger.done, ledger.targets):
            self.warned = True
            forecast = self.timer.forecast(ledger.done, ledger.targets)
            self.console.warn(f"{self.label} will take about {forecast:.0f} s, its budget is {self.timer.budget_s:g} s")
        if moment - self.shown_s >= SHOW_S and self.line.live is not None:
            self.shown_s = moment
            self.line.show(self.text(ledger))
        elif moment - self.told_s >= TELL_S and self.line.live is None:
            self.told_s = moment
            self.console.line(self.text(ledger))
        if self.partial and self.world.leads and moment - self.saved_s >= SAVE_S:
            self.partial.save(ledger.losses, self.timer.seconds())
            self.saved_s = self.timer.now()

    def text(self, ledger: Ledger) -> str:
        """Progress, BPB so far, speed, time to go."""
        done, of, spent = ledger.done, ledger.targets, max(self.timer.now() - self.start_s, 1e-9)
        scored = np.isfinite(ledger.losses)
        nats, size = float(ledger.losses[scored].sum(dtype=np.float64)), int(ledger.charges[scored].sum(dtype=np.int64))
        so_far = f"BPB {nats / (math.log(2) * size):.4f} · " if size else ""
        rate = max(done - self.first, 1) / spent
        return (
            f"{self.label} {bar(done / of)} {done:,} of {of:,} · {so_far}ETA {clock((of - done) / rate)} "
            f"· {rate:,.0f} tok/s"
        )

    def document(self) -> dict[str, Any]:
        """The clocks, and what the budget and an interruption have done."""
        return self.timer.document() | {"adaptation_stopped_at": self.stopped_at, "resumed_at": self.first}
