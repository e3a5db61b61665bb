"""SIGINT, SIGTERM and SIGHUP: once ends cleanly, twice ends at once."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

AGAIN_S = 0.01
"""How long after a signal that Python swallowed it is sent again."""


class Interrupted(BaseException):
    """A signal ended the command; its exit code is 128 + the signal's number."""

    def __init__(self, number: int, message: str = "") -> None:
        self.number = number
        super().__init__(message or f"ended by {signal.Signals(number).name}")


def raise_interrupted(number: int, frame: FrameType | None) -> None:
    """The handler outside training: stop where the program stands. Temporary files are removed on the way out, unless
    another signal comes, which ends the process there and then.
    """
    for each in ending():
        signal.signal(each, leave)
    raise Interrupted(number)


def leave(number: int, frame: FrameType | None) -> None:
    """The handler of the second signal."""
    os._exit(128 + number)


def ending() -> tuple[signal.Signals, ...]:
    """The signals that end a command. SIGHUP is none of them in a process that was started with nohup."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    return numbers if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (*numbers, signal.SIGHUP)


class Unswallowed:
    """Takes what Python cannot raise. It hands on everything but `Interrupted`, which a signal raises wherever the
    program stands, be it in a finalizer or in the callback of a weak reference: that signal is sent again.
    """

    def __init__(self, before: Callable[[Any], Any]) -> None:
        self.before = before

    def __call__(self, found: Any) -> None:
        """As `sys.unraisablehook`."""
        if not isinstance(found.exc_value, Interrupted):
            self.before(found)
            return
        install()
        threading.Timer(AGAIN_S, os.kill, (os.getpid(), found.exc_value.number)).start()


def install() -> None:
    """Make them raise `Interrupted`."""
    for number in ending():
        signal.signal(number, raise_interrupted)
    if not isinstance(sys.unraisablehook, Unswallowed):
        sys.unraisablehook = Unswallowed(sys.unraisablehook)


class StopFlag:
    """Within the block the first signal only sets `raised`; a second one raises at once."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        self.numbers, self.raised = numbers, 0
        self.before: dict[int, object] = {}

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal, raise on the second."""
        if self.raised:
            raise_interrupted(number, frame)
        self.raised = number

    def __enter__(self) -> "StopFlag":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.handle) for number in self.numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
