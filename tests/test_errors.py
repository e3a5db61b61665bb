"""docs/errors.md: every error as the user sees it, none with a name of Python's, none that is no more."""

import re
from pathlib import Path

import pytest

from benchmarks.errors import HEAD, HEADINGS, Site, page, plain, seen, sites

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "errors.md"
SITES = sites()


def rows() -> list[tuple[int, str]]:
    """Exit code and text of every line."""
    found = []
    for part in PAGE.read_text().split("\n## Exit code ")[1:]:
        table = part[part.index(HEAD) + len(HEAD) :].partition("\n## ")[0]
        found += [(int(part[0]), line.strip("| ")) for line in table.splitlines() if line.strip()]
    return found


def test_errors_are_for_people() -> None:
    """Python's own names and the source's paths say nothing to whoever reads an error."""
    for _, text in rows():
        assert not re.search(r"\b[A-Z]\w*(Error|Exception)\b|Traceback|<class|object at 0x|\bNoneType\b|Errno", text), (
            text
        )
        assert not re.search(r"pgolf/\w+/\w+\.py|site-packages", text), text
        assert text and not text.startswith("("), text


def test_every_error_is_still_made() -> None:
    """If this fails, a message has changed: python -m pytest --errors FILE, python -m benchmarks.errors --seen FILE."""
    open_ended = {site.code for site in SITES if not site.pattern}
    for code, text in rows():
        texts = [site.pattern for site in SITES if site.code == code and site.pattern]
        known = any(re.match(rf"{plain_pattern(pattern)}( \(|\. |$)", text, re.S) for pattern in texts)
        assert known or code in open_ended, text


def plain_pattern(pattern: str) -> str:
    """A pattern of what stands in the page, where bars are escaped and back-quotes are none."""
    return pattern.replace("`", "'")


def test_every_place_is_on_the_page() -> None:
    """As it was seen, or as the source has it."""
    shown = [text for _, text in rows()]
    rest = PAGE.read_text().partition("\n## As the source has them")[2]
    for site in SITES:
        if site.shape:
            seen_so = any(re.match(plain_pattern(site.pattern), text, re.S) for text in shown)
            assert seen_so or f"| {site.code} | {plain(site.shape)} |" in rest, site
    assert not re.search(r"\b[A-Z]\w*(Error|Exception)\b|Traceback|pgolf/\w+/\w+\.py", rest)


def test_the_share_that_was_seen_is_told() -> None:
    stated = re.search(r"Seen are\s(\d+) of the (\d+) places", PAGE.read_text())
    assert stated and len(SITES) / 3 < int(stated[1]) <= int(stated[2])
    assert set(HEADINGS) == {code for code, _ in rows()}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no such file (/home/me/run/x.pgz). check the path", "no such file (…/x.pgz). check the path"),
        ("a|b `c`", "a\\|b 'c'"),
        ("by process 12 on box since yesterday", "by process 4242 on host since 2026-01-01T00:00:00+00:00"),
        ("two  lines\nof it", "two lines?of it"),
    ],
)  # fmt: skip
def test_folders_and_processes_are_left_out(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_the_shortest_text_of_a_place_is_shown() -> None:
    site = Site("pgolf/x.py", 3, 5, 3, "bad")
    made = ((3, 3, "bad, at length"), (5, 3, "bad"), (9, 3, "x"), (4, 3, "no"), (4, 2, "bad"))
    lines = [{"module": "pgolf/x.py", "line": number, "code": code, "text": text} for number, code, text in made]
    found = seen(lines, [site])
    other = Site("pgolf/x.py", 7, 7, 5, "no", "no … (there). go away")
    text = page(found, [site, other])
    assert found == {site: "bad"} and "| bad |" in text and "1 of the 2 places" in text
    assert "| 5 | no … (there). go away |" in text
