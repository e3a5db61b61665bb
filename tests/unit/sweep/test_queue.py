"""The queue of a sweep, with workers that compute nothing: who runs when, what becomes a row, what an end leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgolf.report.console import Console
from pgolf.sweep.cell import failed
from pgolf.sweep.plan import Cell, Plan
from pgolf.sweep.queue import Queue, Tally, claim
from pgolf.sweep.table import append_row, rows_of


class Fake:
    """A cell that is done after it was looked at a few times."""

    def __init__(self, workers: "FakeWorkers", name: str) -> None:
        self.workers, self.name, self.looks = workers, name, 0

    def result(self) -> dict[str, Any] | None:
        """The result in the end."""
        self.looks += 1
        if self.looks < 3:
            return None
        self.workers.active.remove(self)
        if self.name in self.workers.broken:
            return failed(3, "InputError", f"{self.name} is broken")
        return {"state": "done", "figures": {"total_bytes": 5, "bpb": 1.0}, "seconds": {"eval": 1.0}, "notes": []}

    def stop(self) -> None:
        """Noted."""
        self.workers.stopped.append(self.name)

    def join(self, wait_s: float) -> None:
        """Noted."""
        self.workers.joined.append(self.name)


class FakeWorkers:
    """Slots for fakes."""

    def __init__(self, slots: int = 2, broken: tuple[str, ...] = ()) -> None:
        self.slots, self.broken = slots, broken
        self.active: list[Fake] = []
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.joined: list[str] = []
        self.most = 0
        self.on_start: Callable[[str], None] = lambda name: None

    def start(self, task: dict[str, Any]) -> Fake:
        """A fake under the task's name."""
        self.on_start(task["name"])
        self.started.append(task["name"])
        self.active.append(Fake(self, task["name"]))
        self.most = max(self.most, len(self.active))
        return self.active[-1]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Five cells named a to e."""
    cells = [Cell(settings={"x": name}, key=name * 64, task={"name": name}, predicted_bytes=0) for name in "abcde"]
    return Plan(sweep="quantize", out=tmp_path, cells=cells, inputs={}, preset="")


def run(plan: Plan, workers: FakeWorkers) -> Tally:
    """Run a plan."""
    return Queue(plan, workers, Console(quiet=True)).run()


def test_every_cell_runs_once_within_the_slots(plan: Plan) -> None:
    workers = FakeWorkers(slots=2)
    tally = run(plan, workers)
    assert workers.started == list("abcde") and workers.most == 2
    assert [row["settings"]["x"] for row in rows_of(plan.table)] == list("abcde")
    assert len(tally.done) == 5 and not tally.failed and not workers.stopped


def test_finished_cells_are_left_alone(plan: Plan) -> None:
    run(plan, FakeWorkers())
    before, workers = plan.table.read_bytes(), FakeWorkers()
    tally = run(plan, workers)
    assert workers.started == [] and len(tally.found) == 5
    assert plan.table.read_bytes() == before


def test_a_failed_cell_ends_no_other_and_is_done_again(plan: Plan) -> None:
    tally = run(plan, FakeWorkers(broken=("b", "d")))
    assert len(tally.done) == 3 and tally.failed == ["b" * 64, "d" * 64]
    assert [row["error"]["what"] for row in rows_of(plan.table) if row["state"] == "failed"] == [
        "b is broken",
        "d is broken",
    ]
    workers = FakeWorkers(broken=("d",))
    tally = run(plan, workers)
    assert workers.started == ["b", "d"] and len(tally.found) == 3
    assert tally.done == ["b" * 64] and tally.failed == ["d" * 64]


def test_whatever_ends_the_sweep_stops_what_runs_and_keeps_what_is_done(plan: Plan) -> None:
    workers = FakeWorkers(slots=2)

    def interrupt(name: str) -> None:
        if name == "d":
            raise KeyboardInterrupt

    workers.on_start = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(plan, workers)
    assert [row["settings"]["x"] for row in rows_of(plan.table)] == ["a", "b"]
    assert workers.stopped == workers.joined == ["c"]
    again = FakeWorkers()
    assert len(run(plan, again).done) == 3 and again.started == ["c", "d", "e"]


def test_a_cell_that_another_sweep_has_is_waited_for(plan: Plan) -> None:
    """Another sweep holds a, and finishes it while this one does the others."""
    lock, workers = claim(plan, plan.cells[0]), FakeWorkers(slots=1)
    assert lock is not None and claim(plan, plan.cells[0]) is None

    def finish(name: str) -> None:
        if name == "e":
            append_row(plan.table, {"key": "a" * 64, "state": "done", "settings": {"x": "a"}})
            lock.release()

    workers.on_start = finish
    tally = run(plan, workers)
    assert workers.started == list("bcde") and tally.elsewhere == ["a" * 64]
    assert len(rows_of(plan.table)) == 5


def test_a_cell_that_another_sweep_gave_up_is_taken_over(plan: Plan) -> None:
    lock, workers = claim(plan, plan.cells[2]), FakeWorkers(slots=1)
    assert lock is not None
    workers.on_start = lambda name: lock.release() if name == "e" else None
    tally = run(plan, workers)
    assert workers.started == list("abdec") and len(tally.done) == 5
