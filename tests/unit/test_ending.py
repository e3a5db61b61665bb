"""A command that a signal reaches while it ends has that signal's exit code."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pgolf.cli import main as cli
from pgolf.stages.signals import Interrupted


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """As before, afterwards."""
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_while_the_exit_code_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(argv: list[str] | None, began_s: float | None) -> int:
        raise Interrupted(signal.SIGHUP)

    monkeypatch.setattr(cli, "main", late)
    assert cli.ended(["version"]) == 129


def test_signals_after_the_end_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "main", lambda argv, began_s: 3)
    assert cli.ended(["version"]) == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


SWALLOWED = """
import signal, time, weakref
from pgolf.stages.signals import Interrupted, install

class Thing:
    pass

install()
thing = Thing()
listening = weakref.ref(thing, lambda gone: signal.raise_signal(signal.SIGTERM))
try:
    del thing
    time.sleep(60)
except Interrupted as error:
    print("ended by", error.number)
thing = Thing()
listening = weakref.ref(thing, lambda gone: int("no number"))
del thing
"""


def test_a_signal_that_python_swallows_ends_the_command_all_the_same() -> None:
    """In the callback of a weak reference nothing can be raised."""
    done = subprocess.run([sys.executable, "-c", SWALLOWED], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (0, f"ended by {signal.SIGTERM.value}\n")
    assert "Interrupted" not in done.stderr and "ValueError: invalid literal" in done.stderr
