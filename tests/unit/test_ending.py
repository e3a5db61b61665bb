"""A command that a signal reaches while it ends has that signal's exit code."""

import signal
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
