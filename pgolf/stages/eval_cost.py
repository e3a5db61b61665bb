"""What an evaluation is about to take beyond the model, said before the first score."""

from pathlib import Path
from typing import Any

from pgolf.core.evals.exact_cache import ExactCache
from pgolf.core.evals.token_tilt import TokenTilt

CACHE_BYTES, CACHE_S = 120, 7e-6
"""Of the exact cache for each target and order, in every process; seconds at least (benchmarks.eval_speed --shards)."""
TILT_BYTES, TILT_S = 130, 4e-7
"""Of the n-gram pass for each target, in every process."""


def available_bytes() -> int | None:
    """Memory that the system says is free to take; None where it does not say."""
    try:
        return stated_bytes(Path("/proc/meminfo").read_text())
    except OSError:
        return None


def stated_bytes(text: str) -> int | None:
    """What a system's account of its memory says is free to take; None if it does not."""
    try:
        return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("MemAvailable:"))
    except (ValueError, IndexError, StopIteration):
        return None


def cost_of(method: Any, targets: int) -> tuple[float, float]:
    """Bytes and seconds in each process of what a method remembers of the stream."""
    size = seconds = 0.0
    if isinstance(cache := method.cache, ExactCache):
        orders = len(range(cache.lowest, cache.highest + 1, cache.step))
        size, seconds = targets * orders * CACHE_BYTES, targets * orders * CACHE_S
    if isinstance(method.tilt, TokenTilt):
        size, seconds = size + targets * TILT_BYTES, seconds + targets * TILT_S
    return size, seconds


def foreseen(stage: str, method: Any, targets: int, processes: int) -> list[str]:
    """Warnings: what is remembered of so many targets needs more memory than there is, or more than the budget."""
    size, seconds = cost_of(method, targets)
    found, free, what = list[str](), available_bytes(), f"{stage}: cache and tilt over {targets:,} targets"
    if free is not None and size * processes > free:
        each = f" in each of {processes} processes" if processes > 1 else ""
        found.append(f"{what} need about {size / 1e9:.1f} GB{each}, and {free / 1e9:.1f} GB are available")
    if method.budget_seconds and seconds > method.budget_seconds:
        found.append(f"{what} take at least {seconds:.0f} s by themselves, the budget is {method.budget_seconds:g} s")
    return found
