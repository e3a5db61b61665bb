"""A rank says how it ended, whatever comes meanwhile."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
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


class Left(BaseException):
    """In the place of the end of a process."""


def test_a_rank_that_waits_for_one_that_is_gone_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Signals do not get through to where it waits, so it looks for itself. While all live it waits however long."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        asked: list[bool] = []

        def waits() -> bool:
            asked.append(launch.lives(other.pid))
            if len(asked) == 20:
                other.kill()  # and nobody asks for its exit code: it stays as a zombie
            if len(asked) == 22:
                return False  # what it does next is no waiting: it counts anew
            assert len(asked) < 1000
            return True

        def leave(code: int) -> None:
            raise Left(code)

        monkeypatch.setattr(launch, "waits_for_ranks", waits)
        monkeypatch.setattr(launch, "ranks_of", lambda launcher: {other.pid, os.getpid()})
        monkeypatch.setattr(launch, "WATCH_S", 0.02)
        monkeypatch.setattr(launch, "STUCK_S", 0.1)
        monkeypatch.setattr(os, "_exit", leave)
        with pytest.raises(Left, match="143"):
            launch.end_with(os.getppid(), tmp_path)
    assert all(asked[:20]) and not asked[-1] and 26 < len(asked) < 40


def test_ranks_are_the_children_that_were_started_as_such() -> None:
    waiting = [sys.executable, "-c", "input()"]
    with (
        subprocess.Popen(waiting, stdin=subprocess.PIPE, env={**os.environ, "RANK": "3"}) as rank,
        subprocess.Popen(waiting, stdin=subprocess.PIPE) as other,
    ):
        deadline = time.monotonic() + 60
        while rank.pid not in (found := launch.ranks_of(os.getpid())):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert other.pid not in found
        for one in (rank, other):
            one.communicate(b"\n")
    assert not launch.lives(rank.pid) and launch.lives(os.getpid())
    assert launch.ranks_of(rank.pid) == set()


def test_only_a_collective_operation_counts_as_waiting() -> None:
    assert not launch.waits_for_ranks()
    code = compile("wait()", "/somewhere/torch/distributed/distributed_c10d.py", "exec")
    seen: list[bool] = []
    exec(code, {"wait": lambda: seen.append(launch.waits_for_ranks())})
    assert seen == [False], "the innermost frame is not torch's"
    told: list[bool] = []

    def look() -> None:
        deadline = time.monotonic() + 60
        while not (waits := launch.waits_for_ranks()) and time.monotonic() < deadline:
            pass
        told.append(waits)

    threading.Thread(target=look).start()
    exec(compile("while not told: pass", "/torch/distributed/distributed_c10d.py", "exec"), {"told": told})
    assert told == [True]


def raised(where: str, code: str) -> BaseException:
    """What code raises that stands in a file of this name."""
    try:
        exec(compile(code, where, "exec"))
    except Exception as error:
        return error
    raise AssertionError


def test_a_failed_collective_operation_is_told_as_a_lost_rank() -> None:
    broken = "raise RuntimeError('Connection reset by peer\\nmore')"
    found = launch.lost_rank(raised("/torch/distributed/distributed_c10d.py", broken))
    assert found is not None and found.exit_code == 5 and "broke: Connection reset by peer" in found.what
    assert "more" not in str(found)
    assert "RuntimeError" in str(launch.lost_rank(raised("distributed_c10d.py", "raise RuntimeError")))
    assert launch.lost_rank(raised("/torch/nn/modules/linear.py", broken)) is None
    assert launch.lost_rank(raised("/torch/distributed/distributed_c10d.py", "1 / 0")) is None


def test_the_rank_that_was_seen_to_end_first_is_named(tmp_path: Path) -> None:
    """Another may have been killed because it did not end by itself."""
    error = launch.first_failure(tmp_path, 4, {2: -9, 0: -9, 1: 143}, {}, "train")
    assert "rank 2 of 4 was ended by SIGKILL" in str(error)
