"""A rank says how it ended, whatever comes meanwhile."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pgolf.core.errors import SetupError
from pgolf.stages import launch
from pgolf.stages.signals import Interrupted


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the report goes; signal handlers are as before afterwards, and nothing is redirected."""
    monkeypatch.setattr(launch, "redirect", lambda folder, rank: None)
    before = {number: signal.getsignal(number) for number in launch.ENDING}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


def report(folder: Path) -> dict[str, object]:
    """What the first rank said."""
    found: dict[str, object] = json.loads(launch.report_path(folder, 0).read_text())
    return found


def test_a_signal_while_a_failure_is_noted_loses_no_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(place: Path) -> dict[str, object]:
        raise RuntimeError("the connection is closed")

    def stopped() -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return "never"

    monkeypatch.setattr(launch, "work_as_rank", fail)
    monkeypatch.setattr(traceback, "format_exc", stopped)
    assert launch.main(folder, 0) == 143
    assert report(folder)["signal"] == signal.SIGTERM


def test_failures_are_told_with_their_exit_codes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(place: Path) -> dict[str, object]:
        raise SetupError("no GPU", "here", "buy one")

    monkeypatch.setattr(launch, "work_as_rank", fail)
    assert launch.main(folder, 0) == 5
    assert {"error": "SetupError", "what": "no GPU", "where": "here", "fix": "buy one"}.items() <= report(
        folder
    ).items()
    monkeypatch.setattr(launch, "work_as_rank", lambda place: {"entry": {}, "warnings": []})
    assert launch.main(folder, 0) == 0 and report(folder)["entry"] == {}


def test_a_signal_while_things_are_put_away_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it comes while the generator that reads batches waits for its thread."""
    told: list[object] = []
    monkeypatch.setattr(sys, "__unraisablehook__", told.append)
    signals, others = SimpleNamespace(exc_value=Interrupted(15)), SimpleNamespace(exc_value=KeyError("lost"))
    launch.unraisable(signals)  # type: ignore[arg-type]
    launch.unraisable(others)  # type: ignore[arg-type]
    assert told == [others]
