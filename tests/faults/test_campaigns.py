"""The campaigns of benchmarks/faults in a few rounds, and the page that tells what they found in full."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults.__main__ import HEAD, TESTS, merged, table_line
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.rows import CAMPAIGNS, ROWS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
GROUPS = (("F1", "F2", "F3", "F5", "F6"), ("F7", "F8", "F9", "F10", "F13"))
"""Rows of a group share the folders that their stages begin with, which take as long to make as some rounds."""


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(
            rows,
            marks=[*(pytest.mark.fault(row=row) for row in rows), *([pytest.mark.slow] if "F1" in rows else [])],
            id=" ".join(rows),
        )
        for rows in GROUPS
    ],
)
def test_a_few_rounds_find_nothing_wrong(rows: tuple[str, ...], tiny_run: Path, corpus: Path) -> None:
    given = ["--run", str(tiny_run), "--text", str(corpus), "--rounds", "reduced", "--no-tests", "--json"]
    line = [sys.executable, "-m", "benchmarks.faults", *given, "--row", *rows]
    done = subprocess.run(line, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["rows"]
    expected = [(campaign.row, campaign.how) for campaign in CAMPAIGNS if campaign.row in rows]
    assert [(row["row"], row["how"]) for row in found] == expected
    for row in found:
        assert "wrong" in row["outcome"] and (row["rounds"] > 0 or "skipped" in row["outcome"]), row


def test_every_campaign_is_in_a_group() -> None:
    assert {row for rows in GROUPS for row in rows} == {campaign.row for campaign in CAMPAIGNS}


def marked() -> set[str]:
    """Rows that some test is marked with."""
    own = {row for rows in GROUPS for row in rows}
    texts = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path.name != "test_campaigns.py"]
    return own | set(re.findall(r"fault\(row=\"(F\d+)\"\)", "\n".join(texts)))


def test_every_row_has_its_tests() -> None:
    assert marked() == set(ROWS)


def test_the_page_has_every_campaign_as_it_is_now() -> None:
    text = PAGE.read_text()
    table = text[text.index(HEAD) + len(HEAD) :].partition("\n\n")[0].splitlines()
    found = {tuple(line.strip("| ").split(" | ")[:2]) for line in table}
    wanted = {(campaign.row, f"{ROWS[campaign.row]}: {campaign.how}") for campaign in CAMPAIGNS}
    assert wanted <= found <= wanted | {(row, f"{what}: {TESTS}") for row, what in ROWS.items()}
    for line in table:
        _, _, rounds, outcome = line.strip("| ").split(" | ")
        assert int(rounds.replace(",", "")) > 0 and outcome.startswith("nothing wrong"), line


def test_a_row_that_is_run_again_replaces_its_line() -> None:
    text = f"before\n\n{HEAD}\nafter\n"
    first = merged(text, [table_line("F2", "a way", Outcome(3)), table_line("F1", TESTS, Outcome(2))])
    lines = first.splitlines()
    assert lines[4] == "| F1 | kill -9 in train: tests | 2 | nothing wrong |" and lines[-1] == "after"
    again = merged(first, [table_line("F2", "a way", Outcome(5, ["bad"], "said"))])
    assert again.splitlines()[5] == "| F2 | kill -9 in the other stages: a way | 5 | 1 wrong; said |"
    assert merged(again, []) == again and len(again.splitlines()) == len(lines)
