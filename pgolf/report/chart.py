"""Charts as inline SVG for the report's page: lines over one axis, and bars. Colours are the page's, so that they
follow its light or dark.
"""

import math
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 960.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 14.0, 10.0, 40.0
TICKS = 6
MOST_POINTS = 600
"""A line has no more points than can be told apart; longer ones are thinned evenly, first and last kept."""
ROW = 17.0
LABEL = 250.0
"""Height of a bar's row, and the room for its name."""


@dataclass(frozen=True)
class Line:
    """A series of finite (x, y), by rising x; `tone` is the number of its colour."""

    name: str
    tone: int
    points: list[tuple[float, float]]
    dots: bool = False


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart; `text` stands behind the bar."""

    name: str
    value: float
    text: str
    tone: int = 0


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Round numbers in [low, high], about `count` of them: steps are 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next((factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= count), 10)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def shown(value: float) -> str:
    """A tick's number."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS of them."""
    if len(points) <= MOST_POINTS:
        return points
    step = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(number * step)] for number in range(MOST_POINTS)]


def text(x: float, y: float, words: str, kind: str = "tick", anchor: str = "start") -> str:
    """A label."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def legend(lines: list[Line]) -> str:
    """The names of the lines behind their colours."""
    items = [f'<span><i class="swatch ink{line.tone}"></i>{escape(line.name)}</span>' for line in lines]
    return f'<p class="legend">{"".join(items)}</p>'


def line_chart(lines: list[Line], across: str, title: str) -> str:
    """The lines in one frame, with ticks, a grid and a legend; empty where there is nothing to draw. Values far above
    the rest, as the first losses of a training, are cut off at twice the middle half's distance above it.
    """
    lines = [Line(line.name, line.tone, thinned(line.points), line.dots) for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = sorted(y for line in lines for _, y in line.points)
    quarter, three = ys[len(ys) // 4], ys[3 * len(ys) // 4]
    low, high = ys[0], min(ys[-1], three + 2 * (three - quarter)) if three > quarter else ys[-1]
    left, right = min(xs), max(xs)
    pad = 0.04 * (high - low) or abs(low) * 0.01 or 1.0
    low, high = low - pad, high + pad

    def place(x: float, y: float) -> tuple[float, float]:
        across_ = (x - left) / (right - left) if right > left else 0.5
        up = (min(max(y, low), high) - low) / (high - low)
        return LEFT + across_ * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = []
    for value in ticks(low, high):
        _, y = place(left, value)
        parts.append(f'<path class="grid" d="M{LEFT:.1f} {y:.1f}H{WIDTH - RIGHT:.1f}"/>')
        parts.append(text(LEFT - 6, y + 4, shown(value), anchor="end"))
    for value in ticks(left, right):
        x, _ = place(value, low)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP:.1f}V{HEIGHT - BOTTOM:.1f}"/>')
        parts.append(text(x, HEIGHT - BOTTOM + 16, shown(value), anchor="middle"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, across, "axis", "middle"))
    for line in lines:
        where = [place(x, y) for x, y in line.points]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in where)
        parts.append(f'<path class="line ink{line.tone}" d="{path}"><title>{escape(line.name)}</title></path>')
        for (x, y), (left_x, value) in zip(where, line.points) if line.dots else ():
            hint = f"{line.name}: {value:.6g} at {left_x:,.6g}"
            parts.append(
                f'<circle class="ink{line.tone}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(hint)}</title></circle>'
            )
    frame = f'<svg role="img" aria-label="{escape(title, quote=True)}" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}">'
    return f"{frame}{''.join(parts)}</svg>{legend(lines)}"


def bar_chart(bars: list[Bar], title: str, least: float = 0.0) -> str:
    """Horizontal bars from `least` on, one below the other, in the order given."""
    if not bars:
        return ""
    most = max(bar.value for bar in bars)
    room, height = WIDTH - LABEL - 110, ROW * len(bars) + 6
    parts = []
    for number, bar in enumerate(bars):
        y = ROW * number + 3
        width = room * max(bar.value - least, 0.0) / (most - least) if most > least else 0.0
        parts.append(text(LABEL - 8, y + 12, bar.name, anchor="end"))
        hint = f"<title>{escape(f'{bar.name}: {bar.text}')}</title>"
        shape = f'x="{LABEL:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{ROW - 4:.1f}"'
        parts.append(f'<rect class="bar tone{bar.tone}" {shape}>{hint}</rect>')
        parts.append(text(LABEL + width + 6, y + 12, bar.text))
    frame = f'<svg role="img" aria-label="{escape(title, quote=True)}" viewBox="0 0 {WIDTH:.0f} {height:.0f}">'
    return f"{frame}{''.join(parts)}</svg>"
