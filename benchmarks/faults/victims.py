"""pgolf command lines in processes that are forked from this one, so that hundreds of them can be killed in minutes."""

import contextlib
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE_S = 300
"""A command that takes longer hangs."""


class Hang(Exception):
    """A command did not end."""


@dataclass(frozen=True)
class Ended:
    """How a process ended (the exit code, or minus the signal) and what it said."""

    code: int
    text: str
    seconds: float

    @property
    def traceback(self) -> bool:
        """Whether a bug showed."""
        return self.code == 1 or "Traceback" in self.text or "a bug in pgolf" in self.text


class Victim:
    """A forked process that runs one command line. `prepare` is called in it before; the names of all modules go to the
    file `note` afterwards.
    """

    def __init__(self, argv: list[str], prepare: Callable[[], Any] | None = None, note: Path | None = None) -> None:
        self.began = time.monotonic()
        self.reader, self.writer = os.pipe()
        self.said = b""
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self.live(argv, prepare, note)
        os.close(self.writer)
        os.set_blocking(self.reader, False)

    def live(self, argv: list[str], prepare: Callable[[], Any] | None, note: Path | None) -> None:
        """The child."""
        code = 99
        try:
            os.setsid()
            os.dup2(self.writer, 1)
            os.dup2(self.writer, 2)
            from pgolf.cli.main import ended

            if prepare:
                prepare()
            code = ended(argv)
            if note:
                note.write_text("\n".join(sys.modules))
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def running(self) -> bool:
        """Whether it has not ended."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def listen(self) -> None:
        """Take what it says."""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.reader, 65536):
                self.said += piece

    def send(self, number: int) -> None:
        """A signal."""
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Until it has ended; what it started is ended too."""
        deadline = self.began + PATIENCE_S
        while self.running() and time.monotonic() < deadline:
            self.listen()
            time.sleep(0.002)
        hangs = self.running()
        if hangs:
            self.send(signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        seconds = time.monotonic() - self.began
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.listen()
        os.close(self.reader)
        text = self.said.decode(errors="replace")
        if hangs:
            raise Hang(f"it had not ended after {PATIENCE_S} s: {text[-300:]}")
        return Ended(os.waitstatus_to_exitcode(status), text, seconds)


def run(argv: list[str], prepare: Callable[[], Any] | None = None) -> Ended:
    """A command line to its end."""
    return Victim(argv, prepare).wait()


def warm(argv: list[str], note: Path) -> Ended:
    """A command line to its end; what it imports is imported here, so that later victims start at once."""
    ended = Victim(argv, note=note).wait()
    for name in note.read_text().split() if note.is_file() else []:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    return ended
