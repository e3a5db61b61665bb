"""Running the cells that are not finished, each in its place, a row for each as soon as it ends.

Only the sweep itself writes rows; the processes that compute are told to end when it ends, however it ends. A sweep
holds a lock on each cell under way. Other sweeps on the same directory leave that cell alone, and once it is free look
again whether it still has to be done.
"""

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

from pgolf.core.files import make_dir
from pgolf.report.console import Console, ProgressLine, bar, clock
from pgolf.sweep.plan import Cell, Plan
from pgolf.sweep.summary import outcome
from pgolf.sweep.table import Row, append_row, latest, rows_of
from pgolf.sweep.workers import STOP_S, Running, Workers

POLL_S = 0.05


@dataclass
class Tally:
    """How the cells of a sweep came by their rows."""

    found: list[str] = field(default_factory=list)
    """Keys that were finished before."""
    done: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    """Keys that another sweep finished meanwhile."""
    failed: list[str] = field(default_factory=list)

    @property
    def ended(self) -> int:
        """Cells that are over."""
        return len(self.found) + len(self.done) + len(self.elsewhere) + len(self.failed)


@dataclass
class Started:
    """A cell under way and the lock on it."""

    cell: Cell
    running: Running
    lock: Any


def finished(plan: Plan) -> set[str]:
    """Keys of the table's finished cells."""
    return {key for key, row in latest(rows_of(plan.table)).items() if row["state"] == "done"}


def claim(plan: Plan, cell: Cell) -> Any:
    """A lock on a cell, or None while another sweep is at work on it. The system frees the lock of a dead process."""
    from filelock import FileLock, Timeout

    make_dir(plan.folder(cell))
    lock = FileLock(plan.folder(cell) / ".claim.lock")
    try:
        return lock.acquire(timeout=0).lock
    except Timeout:
        return None


def row_of(plan: Plan, cell: Cell, result: dict[str, Any]) -> Row:
    """The row of a cell's result."""
    return {
        "key": cell.key,
        "cell": cell.id,
        "sweep": plan.sweep,
        "preset": plan.preset,
        "settings": cell.settings,
        "inputs": plan.inputs,
        "scored_on": plan.scored_on,
        "folder": str(plan.folder(cell).relative_to(plan.out)),
        **result,
    }


class Queue:
    """The state of a sweep while it runs."""

    def __init__(self, plan: Plan, workers: Workers, console: Console) -> None:
        self.plan, self.workers, self.console = plan, workers, console
        self.tally = Tally()
        self.begun = self.last_end = time.monotonic()
        self.started: list[Started] = []
        before = finished(plan)
        self.keys = {cell.key for cell in plan.cells}
        self.pending = [cell for cell in plan.cells if cell.key not in before]
        self.tally.found = [cell.key for cell in plan.cells if cell.key in before]

    def run(self) -> Tally:
        """Run every cell that has no finished row. Whatever ends the sweep ends the cells under way first."""
        if self.pending and self.plan.scored is not None:
            self.plan.scored.prepare()
        try:
            with self.console.progress() as line:
                while self.pending or self.started:
                    self.start_some()
                    self.collect()
                    self.show(line)
                    time.sleep(POLL_S)
        finally:
            self.stop()
        return self.tally

    def start_some(self) -> None:
        """Fill the free slots, passing over cells that another sweep has."""
        for cell in [*self.pending]:
            if len(self.started) >= self.workers.slots:
                return
            lock = claim(self.plan, cell)
            if lock is None:
                continue
            self.pending.remove(cell)
            if cell.key in finished(self.plan):
                self.tally.elsewhere.append(cell.key)
                lock.release()
                continue
            task = cell.task | {"sweep": self.plan.sweep, "folder": str(self.plan.folder(cell))}
            try:
                self.started.append(Started(cell, self.workers.start(task), lock))
            except BaseException:
                lock.release()
                raise

    def collect(self) -> None:
        """Write the rows of cells that have ended."""
        for started in [*self.started]:
            result = started.running.result()
            if result is None:
                continue
            self.started.remove(started)
            self.last_end = time.monotonic()
            try:
                append_row(self.plan.table, row := row_of(self.plan, started.cell, result))
            finally:
                started.lock.release()
            (self.tally.done if row["state"] == "done" else self.tally.failed).append(row["key"])
            place = f"cell {self.tally.ended} of {len(self.plan.cells)}"
            self.console.line(f"{place}: {started.cell.label}: {outcome(row)}")

    def show(self, line: ProgressLine) -> None:
        """The live line; the time left is told by the cells that have ended."""
        ended, of = self.tally.ended, len(self.plan.cells)
        text = f"sweep {bar(ended / of)} {ended} of {of} cells · {len(self.started)} under way"
        if (here := len(self.tally.done) + len(self.tally.failed)) and ended < of:
            left_s = (self.last_end - self.begun) / here * (of - ended) - (time.monotonic() - self.last_end)
            text += f" · ETA {clock(max(left_s, 0))}"
        line.show(text + (" · waiting for another sweep's" if self.pending and not self.started else ""))

    def stop(self) -> None:
        """Tell what still runs to end, and wait for it."""
        for started in self.started:
            started.running.stop()
        until = time.monotonic() + STOP_S
        for started in self.started:
            with contextlib.suppress(OSError):
                started.running.join(max(until - time.monotonic(), 0))
            started.lock.release()
