"""pgolf compare and pgolf leaderboard on the tiny run."""

import json
from pathlib import Path

from harness import run_here


def test_a_run_with_itself_and_with_a_record(tiny_run: Path) -> None:
    found = run_here("compare", tiny_run, tiny_run, "--json").good().document
    assert {row["view"] for row in found["rows"]} >= {"artifact, eval sliding"}
    assert all(row["delta_bpb"] == 0 for row in found["rows"])
    beside = run_here("compare", "pr1855", tiny_run, "--json").good().document
    assert beside["old"] == "#1855" and not any(rule["beats"] for row in beside["rows"] for rule in row["rules"])
    assert run_here("compare", tiny_run, "pr1855", "--json").good().document == beside
    assert run_here("compare", "leader", tiny_run, "--json").good().document == beside
    run_here("compare", tiny_run, "pr9").refused(3, "pr9")
    assert "a record needs three" in run_here("compare", "pr1855", tiny_run).good().out
    run_here("compare", "nothing", tiny_run).refused(3, "no such run")


def test_the_board_hides_what_is_not_audited(tiny_run: Path, copy_run: Path) -> None:
    hidden = run_here("leaderboard", tiny_run, "--json").good().document
    assert hidden["hidden"] > 0 and not any(row["own"] for row in hidden["rows"])
    shown = run_here("leaderboard", tiny_run, "--all", "--json").good().document
    assert sum(row["own"] for row in shown["rows"]) == 1 and shown["hidden"] == 0
    for path in copy_run.glob("*/score.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"audit": {"verdict": "passed"}}))
    assert any(row["own"] for row in run_here("leaderboard", copy_run, "--json").good().document["rows"])
    text = run_here("leaderboard", "--all").good().out
    assert "was 1.0108" in text and "#1855" in text
