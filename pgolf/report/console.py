"""What a person sees on standard error: lines, warnings and one live progress line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Console:
    """Plain lines anywhere; on a terminal a live line too. `quiet` keeps only warnings and errors."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live: Any = None
        self.warnings: list[str] = []

    @property
    def terminal(self) -> bool:
        """Whether standard error is a terminal that can redraw a line."""
        if not sys.stderr.isatty():
            return False
        from rich.console import Console as RichConsole

        return not RichConsole(stderr=True).is_dumb_terminal

    def line(self, text: str) -> None:
        """One line of progress."""
        if not self.quiet:
            self.write(text)

    def warn(self, text: str) -> None:
        """A warning, shown even when quiet and kept for the JSON document."""
        self.warnings.append(text)
        self.write(f"warning: {text}")

    def warn_once(self, text: str) -> None:
        """A warning, unless it has been given."""
        if text not in self.warnings:
            self.warn(text)

    def write(self, text: str) -> None:
        """Print above the live line, if there is one."""
        if self.live is not None:
            self.live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self) -> Iterator["ProgressLine"]:
        """A line that redraws itself on a terminal and stays silent elsewhere."""
        if self.quiet or not self.terminal:
            yield ProgressLine(None)
            return
        from rich.console import Console as RichConsole
        from rich.live import Live
        from rich.text import Text

        with Live(Text(""), console=RichConsole(stderr=True), refresh_per_second=8, transient=True) as live:
            self.live = live
            try:
                yield ProgressLine(live)
            finally:
                self.live = None


class ProgressLine:
    """The live line; does nothing where there is no terminal."""

    def __init__(self, live: Any) -> None:
        self.live = live

    def show(self, text: str) -> None:
        """Replace the line, cut to the terminal's width."""
        if self.live is not None:
            from rich.text import Text

            self.live.update(Text(text, no_wrap=True, overflow="ellipsis"))

    def count(self, label: str, done: int, of: int) -> None:
        """Progress of a known number of things."""
        if self.live is not None:
            self.show(f"{label} {bar(done / max(of, 1))} {done:,} of {of:,}")


def bar(fraction: float, width: int = 20) -> str:
    """A textual bar."""
    full = round(max(0.0, min(fraction, 1.0)) * width)
    return "█" * full + "·" * (width - full)


def clock(seconds: float) -> str:
    """m:ss or h:mm:ss."""
    whole = int(seconds)
    minutes = f"{whole // 60 % 60}:{whole % 60:02d}" if whole < 3600 else f"{whole // 60 % 60:02d}:{whole % 60:02d}"
    return minutes if whole < 3600 else f"{whole // 3600}:{minutes}"
