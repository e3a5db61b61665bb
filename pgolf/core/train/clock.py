"""The budget clock: monotonic, paused during validation, carried over a resume."""

import time
from collections.abc import Callable

import torch


class Clock:
    """Seconds spent training. `now` is injected so that budgets can be tested without waiting."""

    def __init__(self, elapsed_s: float = 0.0, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.spent_s = elapsed_s
        self.since: float | None = None

    def start(self) -> None:
        """Let time count."""
        self.since = self.now()

    def pause(self) -> None:
        """Stop counting until the next `start`. What a GPU has still to do of the work so far counts."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.spent_s = self.elapsed_s
        self.since = None

    @property
    def elapsed_s(self) -> float:
        """Counted seconds so far; a clock that jumps back never takes time away."""
        running = max(self.now() - self.since, 0.0) if self.since is not None else 0.0
        return self.spent_s + running
