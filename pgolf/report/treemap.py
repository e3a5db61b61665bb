"""A treemap as inline SVG: rectangles whose areas are bytes, groups of one colour (squarified; Bruls, Huizing, van Wijk
2000).
"""

from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT, HEADER = 960.0, 540.0, 18.0
"""Of the picture, and of the line above a group, in its own units."""
LETTER = 6.6
"""Width of a letter of a label, about."""


@dataclass(frozen=True)
class Leaf:
    """One rectangle: a name, its size, and what a pointer over it is told."""

    name: str
    size: float
    hint: str


@dataclass(frozen=True)
class Group:
    """Leaves that belong together; `tone` is the number of their colour."""

    name: str
    tone: int
    leaves: list[Leaf] = field(default_factory=list)

    @property
    def size(self) -> float:
        """All of it."""
        return sum(leaf.size for leaf in self.leaves)


@dataclass(frozen=True)
class Box:
    """A rectangle of the picture."""

    x: float
    y: float
    width: float
    height: float

    def inside(self, header: float) -> "Box":
        """What is left below a header and within a margin."""
        left = max(self.width - 2, 0.0), max(self.height - header - 1, 0.0)
        return Box(self.x + 1, self.y + min(header, self.height), *left)


def worst(row: list[float], side: float) -> float:
    """The largest ratio of a rectangle's sides when areas stand in a row along a side."""
    total = sum(row)
    return max(max(side * side * area / total**2, total**2 / (side * side * area)) for area in row)


def squarified(sizes: list[float], box: Box) -> list[Box]:
    """One box for each size, all above zero and falling, that fill `box` and are as square as can be."""
    whole = sum(sizes)
    areas = [size / whole * box.width * box.height for size in sizes]
    found: list[Box] = []
    while areas and box.width > 0 and box.height > 0:
        side, count = min(box.width, box.height), 1
        while count < len(areas) and worst(areas[: count + 1], side) <= worst(areas[:count], side):
            count += 1
        row, areas = areas[:count], areas[count:]
        depth, at = sum(row) / side, 0.0
        for area in row:
            length = area / depth
            if box.width >= box.height:
                found.append(Box(box.x, box.y + at, depth, length))
            else:
                found.append(Box(box.x + at, box.y, length, depth))
            at += length
        if box.width >= box.height:
            box = Box(box.x + depth, box.y, box.width - depth, box.height)
        else:
            box = Box(box.x, box.y + depth, box.width, box.height - depth)
    return found + [Box(box.x, box.y, 0.0, 0.0)] * (len(sizes) - len(found))


def label(text: str, box: Box, x: float, y: float, kind: str) -> str:
    """The text, cut to what fits, or nothing."""
    room = int((box.width - 6) / LETTER)
    if room < 3 or box.height < 12:
        return ""
    shown = text if len(text) <= room else text[: room - 1] + "…"
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(shown)}</text>'


def rectangle(box: Box, kind: str, hint: str) -> str:
    """A rectangle with a hint."""
    shape = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
    return f'<rect class="{kind}" {shape}><title>{escape(hint)}</title></rect>'


def treemap(groups: list[Group], title: str) -> str:
    """The picture of groups that have leaves; those without size are left out."""
    groups = sorted((group for group in groups if group.size > 0), key=lambda group: -group.size)
    parts = []
    for group, box in zip(groups, squarified([group.size for group in groups], Box(0, 0, WIDTH, HEIGHT))):
        parts.append(rectangle(box, f"tone{group.tone} frame", f"{group.name}: {group.size:,.0f} bytes"))
        header = HEADER if box.height > 3 * HEADER else 0.0
        if header:
            parts.append(label(f"{group.name} {group.size:,.0f}", box, box.x + 4, box.y + 13, "head"))
        leaves = sorted((leaf for leaf in group.leaves if leaf.size > 0), key=lambda leaf: -leaf.size)
        for leaf, place in zip(leaves, squarified([leaf.size for leaf in leaves], box.inside(header))):
            parts.append(rectangle(place, f"tone{group.tone}", leaf.hint))
            parts.append(label(leaf.name, place, place.x + 4, place.y + 12, "leaf"))
            if place.height > 30:
                parts.append(label(f"{leaf.size:,.0f}", place, place.x + 4, place.y + 26, "leaf"))
    head = f'<svg role="img" aria-label="{escape(title, quote=True)}" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}">'
    return f"{head}{''.join(parts)}</svg>"
