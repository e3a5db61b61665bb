"""Treemaps fill their box with the right areas, and the page around them is whole and loads nothing."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.report.page import Section, html_table, page
from pgolf.report.treemap import HEIGHT, WIDTH, Box, Group, Leaf, squarified, treemap


@given(st.lists(st.floats(0.5, 1e6), min_size=1, max_size=40).map(lambda sizes: sorted(sizes, reverse=True)))
def test_boxes_have_the_areas_of_their_sizes(sizes: list[float]) -> None:
    boxes = squarified(sizes, Box(5, 7, 300, 200))
    assert len(boxes) == len(sizes)
    for size, box in zip(sizes, boxes, strict=True):
        assert box.width * box.height == pytest.approx(size / sum(sizes) * 60_000, rel=1e-6)
        assert box.x >= 5 - 1e-6 and box.x + box.width <= 305 + 1e-6
        assert box.y >= 7 - 1e-6 and box.y + box.height <= 207 + 1e-6


def test_boxes_do_not_overlap() -> None:
    boxes = squarified([9.0, 5, 4, 3, 2, 1, 1], Box(0, 0, 100, 60))
    for index, one in enumerate(boxes):
        for other in boxes[:index]:
            across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
            down = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
            assert across < 1e-9 or down < 1e-9


def test_equal_sizes_are_nearly_square() -> None:
    assert all(0.4 < box.width / box.height < 2.5 for box in squarified([1.0] * 12, Box(0, 0, 90, 60)))


def test_the_picture_names_what_is_large_and_leaves_out_what_is_empty() -> None:
    leaves = [Leaf("a <matrix>", 900, "a: 900"), Leaf("tiny", 0.001, "tiny"), Leaf("empty", 0, "empty")]
    text = treemap([Group("codes", 0, leaves), Group("nothing", 1)], 'what is "in" it')
    assert "a &lt;matrix&gt;" in text and "codes 900" in text and "nothing" not in text
    assert ">tiny<" in text and ">empty<" not in text
    assert f'viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}"' in text and "what is &quot;in&quot; it" in text


class Tags(HTMLParser):
    """Checks that tags close in order, and collects what could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [
            str(value) for key, value in attrs if key in ("src", "href", "data", "srcset") and str(value)[:1] != "#"
        ]
        assert tag not in ("script", "link", "iframe", "img")
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def well_formed(html: str) -> None:
    """Fails unless all tags close and nothing is loaded."""
    tags = Tags()
    tags.feed(html)
    assert tags.open == [] and tags.loads == []
    assert not re.search(r"url\(|@import|https?:", html)


def test_a_page_is_whole_and_escapes_text() -> None:
    body = html_table(["what", "bytes"], [["<b>", 1200], ["c & d", 7]]) + treemap(
        [Group("g", 0, [Leaf("x", 1, "")])], "t"
    )
    html = page("a <title>", [Section("one", body), Section("two", "<p>text</p>")])
    well_formed(html)
    assert "&lt;b&gt;" in html and "1,200" in html and "a &lt;title&gt;" in html
    assert "prefers-color-scheme: dark" in html
    assert html_table(["what"], []) == "<table></table>"
