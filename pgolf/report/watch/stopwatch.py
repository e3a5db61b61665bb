"""Where the seconds of a run go: every moment belongs to exactly one phase."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STEP_PHASES = ("data", "forward_backward", "communication", "optimizer", "other")
"""Parts of a training step: waiting for its batch; the model; reduction over the ranks; the update; schedule, average
and all else.
"""
PHASES = ("setup", "warm_up", *STEP_PHASES, "training", "validation", "checkpoint", "logging")
"""All parts of a run, in the order in which they are told; `training` is a step's where a device's clock divides it."""


class Stopwatch:
    """Seconds by phase since it was made, in phase `setup` at first."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.phase, self.since = now, "setup", now()
        self.spent: dict[str, float] = {}

    def carry(self, before: dict[str, float]) -> None:
        """Add what an earlier process of the same run has spent."""
        for phase, seconds in before.items():
            self.spent[phase] = self.spent.get(phase, 0.0) + seconds

    def enter(self, phase: str) -> str:
        """Time belongs to another phase from now on; returns the one it belonged to."""
        ended, moment = self.phase, self.now()
        self.spent[ended] = self.spent.get(ended, 0.0) + max(moment - self.since, 0.0)
        self.phase, self.since = phase, moment
        return ended

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """The block belongs to a phase."""
        outer = self.enter(phase)
        try:
            yield
        finally:
            self.enter(outer)

    def seconds(self) -> dict[str, float]:
        """Seconds by phase until now, also where the run went on: in the order of PHASES, then others as they came."""
        self.enter(self.phase)
        known = {phase: self.spent[phase] for phase in PHASES if phase in self.spent}
        return known | self.spent


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    """To the microsecond."""
    return {phase: round(spent, 6) for phase, spent in seconds.items()}


class StepMarks:
    """Phases of a step by the device's own clock. `event` makes something recorded in the device's queue, with
    `elapsed_time(later)` in milliseconds, as CUDA events are; asking it waits for nothing where the loss has been read.
    """

    def __init__(self, event: Callable[[], Any]) -> None:
        self.event = event
        self.running: list[tuple[str, Any]] = []
        self.finished: list[tuple[str, Any]] = []
        self.shares: dict[str, float] = {}
        self.timed = 0

    def add(self, phase: str) -> None:
        """A phase begins; `other`, the last of a step, also begins the next one's marks. Those that are none of
        STEP_PHASES are not counted.
        """
        mark = (phase, self.event())
        self.running.append(mark)
        if phase == "other":
            self.finished, self.running = self.running, [mark]

    def interrupted(self) -> None:
        """Something that is no part of a step has come between."""
        self.running, self.finished = [], []

    def read(self) -> dict[str, float]:
        """Seconds by phase of the step that just ended, whose loss has been read; empty if it was interrupted."""
        marks, self.finished = self.finished, []
        found: dict[str, float] = {}
        for (phase, start), (_, end) in zip(marks, marks[1:]):
            if phase not in STEP_PHASES:
                continue
            found[phase] = found.get(phase, 0.0) + start.elapsed_time(end) / 1000
        if found:
            self.timed += 1
            for phase, spent in found.items():
                self.shares[phase] = self.shares.get(phase, 0.0) + spent
        return found

    def split(self, seconds: float) -> dict[str, float]:
        """Seconds divided among the phases of a step as they were in the steps that were read."""
        total = sum(self.shares.values())
        return {phase: seconds * self.shares.get(phase, 0.0) / total for phase in STEP_PHASES} if total else {}
