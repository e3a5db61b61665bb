"""Charts put values where they belong, number their axes roundly, and write nothing that is not there."""

import math
import re

from hypothesis import given
from hypothesis import strategies as st

from pgolf.report.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Bar,
    Line,
    bar_chart,
    line_chart,
    thinned,
    ticks,
)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_round_and_inside(low: float, length: float) -> None:
    found = ticks(low, low + length)
    assert 1 <= len(found) <= 8
    assert all(low - 1e-6 * length <= value <= low + length * (1 + 1e-6) for value in found)
    if len(found) > 1:
        step = found[1] - found[0]
        digits = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(digits - round_) for round_ in (1, 2, 5, 10)) < 1e-3


def coordinates(path: str) -> list[tuple[float, float]]:
    """Points of a path."""
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]


def test_a_line_keeps_its_shape_and_stays_in_its_frame() -> None:
    points = [(0.0, 1.0), (5.0, 3.0), (10.0, 2.0)]
    svg = line_chart([Line("a <b>", 2, points, dots=True)], "steps", "t")
    (path,) = re.findall(r'class="line ink2" d="M([^"]+)"', svg)
    (x0, y0), (x1, y1), (x2, y2) = coordinates(path)
    assert (x0, x2) == (LEFT, WIDTH - RIGHT) and abs(x1 - (x0 + x2) / 2) < 0.1
    assert y1 < y2 < y0 and all(TOP <= y <= HEIGHT - BOTTOM for y in (y0, y1, y2))
    assert abs((y0 - y2) - (y0 - y1) / 2) < 0.2, "2 is half-way between 1 and 3"
    assert svg.count("<circle") == 3 and "a &lt;b&gt;: 3 at 5" in svg and "<b>" not in svg


def test_a_first_loss_far_above_the_rest_is_cut_off() -> None:
    points = [(0.0, 900.0), *((float(step), 3 + step / 100) for step in range(1, 100))]
    svg = line_chart([Line("loss", 0, points)], "steps", "t")
    (path,) = re.findall(r'class="line ink0" d="M([^"]+)"', svg)
    ys = [y for _, y in coordinates(path)]
    assert min(ys) == TOP and max(ys) - min(ys[1:]) > 100


def test_nothing_to_draw_gives_nothing() -> None:
    assert line_chart([Line("empty", 0, [])], "steps", "t") == bar_chart([], "t") == ""
    assert "<path" in line_chart([Line("one", 0, [(1.0, 2.0)])], "steps", "t")


def test_long_lines_are_thinned_and_keep_their_ends() -> None:
    points = [(float(step), float(step * step)) for step in range(10_000)]
    found = thinned(points)
    assert len(found) == MOST_POINTS and found[0] == points[0] and found[-1] == points[-1]
    assert found == sorted(found) and set(found) <= set(points) and thinned(points[:9]) == points[:9]


def test_bars_are_as_long_as_their_values() -> None:
    svg = bar_chart([Bar("a", 4.0, "four"), Bar("b", 2.0, "two"), Bar("c", 0.5, "half")], "t", least=1.0)
    widths = [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', svg)]
    assert abs(widths[1] / widths[0] - 1 / 3) < 1e-3 and widths[2] == 1.0
