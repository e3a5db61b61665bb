"""What pgolf hears of an evaluation: progress, clocks, the budget, and the ledger kept on disk."""

import math
from typing import Any

import numpy as np
import torch

from pgolf.core.dist import World
from pgolf.core.evals.ledger import EvalWatch, Ledger
from pgolf.report.console import Console, ProgressLine, bar, clock
from pgolf.stages.eval_clock import EvalClock
from pgolf.stages.eval_partial import PartialLedger

SAVE_S, SHOW_S, TELL_S = 10.0, 0.5, 30.0
"""Seconds between two saves, two live lines, and two lines where nothing is live."""
SHARE = 0.02
"""Of the time, what saves may take, and live lines: over a full validation split each save is 160 MB."""


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
        self.work = self.work_done = self.recalled_work = 0
        self.weight_steps = self.adapter_steps = self.phases = 0

    def resume(self, targets: int) -> None:
        """Go on where the same evaluation was, if it was interrupted. All ranks read the same file."""
        found = self.partial.load(targets) if self.partial else None
        if found is None:
            return
        self.known, self.timer.before, self.stopped_at = found
        self.first = int(np.isfinite(self.known).sum())
        self.console.line(f"{self.label}: going on after {self.first:,} of {targets:,} targets")

    def recalled(self, ledger: Ledger, windows: np.ndarray) -> bool:
        """Commit what the interrupted evaluation knew of these windows, if it knew all of them."""
        parts = [(start + first, self.known[start + first : start + end]) for start, first, end in windows.tolist()]
        if any(not len(losses) or np.isnan(losses).any() for _, losses in parts):
            return False
        for position, losses in parts:
            ledger.commit(position, losses)
        self.recalled_work = self.progress(ledger)[0]
        return True

    def expects(self, work: int) -> None:
        """From here on progress is measured by this."""
        self.work = work

    def worked(self, work: int) -> None:
        """Progress."""
        self.work_done += work

    def progress(self, ledger: Ledger) -> tuple[int, int]:
        """How much this rank has done, and of how much: work, or targets if the method does not say what it is."""
        return (self.work_done, self.work) if self.work else (ledger.done, ledger.targets)

    def slow(self, ledger: Ledger) -> bool:
        """Whether this rank expects to overrun the budget; it does not know as long as it recalls, which is fast."""
        return ledger.done >= self.first and self.timer.too_slow(*self.progress(ledger))

    def adapting(self, ledger: Ledger, alone: bool = False) -> bool:
        """Adapt until the budget will not suffice; from then on only score. A rank that ends `alone` ends for itself,
        and for all ranks as soon as they ask together.
        """
        slow = self.slow(ledger)
        stop = slow or self.stopped_at is not None
        if self.timer.budget_s and not alone:
            stop = self.world.any(stop)
        if stop and self.stopped_at is None:
            self.stopped_at = ledger.done
            done, of = self.progress(ledger)
            self.console.warn(
                f"{self.label} would take {f'{self.timer.forecast(done, of):.0f} s' if slow else 'another rank more'} "
                f"of {self.timer.budget_s:g} s: no adaptation after {done / of:.1%} of the "
                f"{'work' if self.work else 'targets'}"
            )
        if not stop:
            self.timer.enter("adapt")
        return not stop

    def tuning_begins(self) -> None:
        """Tuning is adaptation."""
        self.timer.enter("adapt")

    def tuning_ends(self, ledger: Ledger) -> None:
        """On with the score, when a GPU has done what it was told."""
        if ledger.device.type == "cuda":
            torch.cuda.synchronize(ledger.device)
        self.timer.enter("score")

    def learned(self, steps: int) -> None:
        """Count steps of the weights, and how often they took some."""
        self.weight_steps += steps
        self.phases += steps > 0

    def adapted(self) -> None:
        """Count steps of adapters."""
        self.adapter_steps += 1

    def agree(self) -> None:
        """At the end every rank learns where the first one ended adaptation, and how many steps all adapters took."""
        ended = math.inf if self.stopped_at is None else self.stopped_at
        first = -self.world.largest(-ended)[0]
        if self.stopped_at is None and first < math.inf:
            self.console.warn(
                f"{self.label}: no adaptation on another rank after {first:,.0f} targets, for want of time"
            )
        self.stopped_at = int(first) if first < math.inf else None
        steps = torch.tensor(self.adapter_steps, dtype=torch.float64, device=self.world.device)
        self.adapter_steps = int(self.world.sum_(steps))

    def scoring(self, ledger: Ledger) -> None:
        """On with the score."""
        self.timer.enter("score")

    def advanced(self, ledger: Ledger) -> None:
        """Show, warn and save, each now and then."""
        moment = self.timer.now()
        if not self.warned and self.slow(ledger):
            self.warned = True
            forecast = self.timer.forecast(*self.progress(ledger))
            self.console.warn(f"{self.label} will take about {forecast:.0f} s, its budget is {self.timer.budget_s:g} s")
        if moment - self.shown_s >= SHOW_S and self.line.live is not None:
            self.line.show(self.text(ledger))
            self.shown_s = self.rested(moment, SHOW_S)
        elif moment - self.told_s >= TELL_S and self.line.live is None:
            self.told_s = moment
            self.console.line(self.text(ledger))
        if self.partial and self.world.leads and moment - self.saved_s >= SAVE_S:
            began = self.timer.now()
            self.partial.save(ledger.losses, self.timer.seconds(), self.stopped_at)
            self.saved_s = self.rested(began, SAVE_S)

    def rested(self, began_s: float, pause_s: float) -> float:
        """From when the pause counts before something is done again that began then: from now, or from later where it
        took so long that it would take more than its share of the time.
        """
        ended_s = self.timer.now()
        return ended_s + max((ended_s - began_s) / SHARE - pause_s, 0.0)

    def text(self, ledger: Ledger) -> str:
        """Progress, BPB so far, speed, time to go."""
        done, of = self.progress(ledger)
        spent = max(self.timer.now() - self.start_s, 1e-9)
        scored = np.isfinite(ledger.losses)
        nats, size = float(ledger.losses[scored].sum(dtype=np.float64)), int(ledger.charges[scored].sum(dtype=np.int64))
        so_far = f"BPB {nats / (math.log(2) * size):.4f} · " if size else ""
        ahead = spent * (of - done) / max(done - self.recalled_work, 1)
        return (
            f"{self.label} {bar(done / of)} {ledger.done:,} of {ledger.targets:,} · {so_far}ETA {clock(ahead)} "
            f"· {max(ledger.done - self.first, 1) / spent:,.0f} tok/s"
        )

    def learning(self) -> dict[str, int]:
        """What was learned, for the score document."""
        steps = {"weight_steps": self.weight_steps, "adapter_steps": self.adapter_steps}
        return steps | {"phases": self.phases}

    def document(self) -> dict[str, Any]:
        """The clocks, and what the budget and an interruption have done."""
        return self.timer.document() | {"adaptation_stopped_at": self.stopped_at, "resumed_at": self.first}
