"""What is said of an evaluation before it begins."""

from pathlib import Path

import pytest

from pgolf.core.evals.exact_cache import ExactCache
from pgolf.core.evals.plain import PlainEval
from pgolf.core.evals.token_tilt import TokenTilt
from pgolf.stages import eval_cost
from pgolf.stages.eval_cost import available_bytes, cost_of, foreseen, stated_bytes

FULL = 40_540_160
CACHED = PlainEval(cache=ExactCache())


def test_what_memory_is_there() -> None:
    assert stated_bytes("MemTotal:  900 kB\nMemAvailable:   123 kB\n") == 123 * 1024
    for text in ("", "MemTotal: 9 kB\n", "MemAvailable:\n", "MemAvailable: much kB\n"):
        assert stated_bytes(text) is None
    if Path("/proc/meminfo").is_file():
        assert (available_bytes() or 0) > 0


def test_cost_goes_with_targets_and_orders() -> None:
    assert cost_of(PlainEval(), FULL) == (0, 0)
    size, seconds = cost_of(CACHED, FULL)
    assert size == 3 * FULL * eval_cost.CACHE_BYTES and seconds == pytest.approx(3 * FULL * eval_cost.CACHE_S)
    one = cost_of(PlainEval(cache=ExactCache(lowest=4, highest=4)), FULL)
    assert one[0] * 3 == size
    both = cost_of(PlainEval(cache=ExactCache(), tilt=TokenTilt()), FULL)
    assert both[0] - size == FULL * eval_cost.TILT_BYTES and both[1] > seconds


def test_warnings_of_memory_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_cost, "available_bytes", lambda: 20_000_000_000)
    (slow,) = foreseen("eval", CACHED, FULL, 1)
    assert "by themselves, the budget is 600 s" in slow
    large, _ = foreseen("eval", CACHED, FULL, 2)
    assert "14.6 GB in each of 2 processes, and 20.0 GB are available" in large
    assert foreseen("eval", PlainEval(cache=ExactCache(), budget_seconds=0.0), FULL, 1) == []
    assert foreseen("eval", CACHED, FULL // 100, 1) == foreseen("eval", PlainEval(), FULL, 8) == []
    monkeypatch.setattr(eval_cost, "available_bytes", lambda: None)
    assert len(foreseen("eval", CACHED, FULL, 64)) == 1, "where nobody says what is free"
