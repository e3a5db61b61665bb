"""Published figures, reports and folders under audit."""

import json
from pathlib import Path
from typing import Any

import pytest

from pgolf.audit.report import audit_document, audit_of, is_violated, read_report, spoken, verdict_error, write_report
from pgolf.audit.triple import judge_triple, published_rows, rules
from pgolf.audit.verdict import HOLDS, VIOLATED, Finding
from pgolf.core.errors import ConfigError, InputError


@pytest.mark.parametrize("row", published_rows(), ids=lambda row: row["name"])
def test_published_figures_are_told_apart(row: dict[str, Any]) -> None:
    assert row["said"] == [row["expected"]]


@pytest.mark.parametrize(
    "row", [row for row in published_rows() if "bpb" in row and "tokens" in row], ids=lambda r: r["name"]
)
def test_as_triples(row: dict[str, Any]) -> None:
    found = judge_triple(f"{row['loss']:.5f}", f"{row['bpb']:.5f}", row["tokens"])
    assert found["sound"] == (row["expected"] in ("sound", "another export"))
    assert row["expected"] in [one["name"] for one in found["signatures"]]


def test_digits_decide_how_exact_a_triple_is() -> None:
    rough, fine = judge_triple("2.32", "1.061", 47851520), judge_triple("2.3220", "1.06108", 47851520)
    assert rough["sound"] and fine["sound"] and rough["slack"] > 10 * fine["slack"]
    assert not judge_triple("2.3230", "1.06108", 47851520)["sound"]
    for bad in ("nan", "-1", "x", "0"):
        with pytest.raises(ConfigError, match="positive"):
            judge_triple(bad, "1.0", 10)


def test_rules_are_complete() -> None:
    for rule in rules()["rule"]:
        assert set(rule) == {"id", "topic", "holding", "source", "confidence", "default"}
        assert rule["confidence"] in ("high", "thread", "unverified")
    ranges = sorted((one["low"], one["high"]) for one in rules()["signature"])
    assert all(high < low for (_, high), (low, _) in zip(ranges, ranges[1:])), "signatures overlap"


def test_the_table_of_published_figures_stands_in_the_documents() -> None:
    docs = Path(__file__).parents[3] / "docs"
    lines = (docs / "legality.md").read_text().splitlines()
    rows = [line for line in (docs / "rules.md").read_text().splitlines() if line.startswith(("| PR #", "| naive"))]
    assert len(rows) >= 6 and set(rows) <= set(lines)


METHOD = {"name": "plain", "seq_len": 8, "batch_seqs": 4}


def report(folder: Path, verdict: str = HOLDS, method: dict[str, Any] = METHOD) -> dict[str, Any]:
    """A written report about a method."""
    findings = [Finding(check=name, verdict=HOLDS, what="seen", n=9) for name in "0bcdf"]
    case = {"schema": "pgolf.counterexample/1", "property": "a"} if verdict == VIOLATED else None
    findings.append(Finding(check="a", verdict=verdict, what="flips", n=3, counterexample=case))
    about = {
        "kind": "evaluator",
        "stage": "eval",
        "method": method,
        "architecture": {"dim": 2},
        "model": {"sha256": "abc"},
    }
    document = audit_document(findings, "quick", about)
    write_report(folder, document)
    return document


def test_a_report_comes_back_and_cannot_be_edited(tmp_path: Path) -> None:
    document = report(tmp_path)
    assert document["verdict"] == "passed" and verdict_error(document) is None
    assert read_report(tmp_path) == document
    assert "| a | a score depends" in (tmp_path / "audit.md").read_text()
    (tmp_path / "audit.json").write_text(json.dumps(document | {"verdict": "passed", "level": "full"}))
    with pytest.raises(InputError, match="not as it was written"):
        read_report(tmp_path)


def test_a_violation_is_an_error_with_a_counterexample(tmp_path: Path) -> None:
    document = report(tmp_path, VIOLATED)
    error = verdict_error(document)
    assert error is not None and "a" in error.what and error.exit_code == 4
    assert (tmp_path / "counterexample-a.json").is_file()
    assert is_violated(audit_of(tmp_path, "eval", {"name": "plain", "seq_len": 8}, {"dim": 2}, "abc"))


def test_an_audit_that_passes_leaves_no_old_counterexample(tmp_path: Path) -> None:
    report(tmp_path, VIOLATED)
    assert "pgolf audit replay" in json.loads((tmp_path / "counterexample-a.json").read_text())["replay"]
    report(tmp_path)
    assert not (tmp_path / "counterexample-a.json").exists()


def test_a_report_without_its_parts_is_no_crash(tmp_path: Path) -> None:
    document = audit_document([], "quick", {"kind": "evaluator", "stage": "eval"})
    (tmp_path / "audit.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="form"):
        audit_of(tmp_path, "eval", {}, {}, "abc")


def test_a_score_takes_the_audit_of_its_own_method(tmp_path: Path) -> None:
    document = report(tmp_path)
    audit = audit_of(tmp_path, "eval", {"name": "plain", "seq_len": 8, "batch_seqs": 99}, {"dim": 2}, "abc")
    assert audit["id"] == document["id"] and audit["same_weights"] and not is_violated(audit)
    assert "these weights" in spoken(audit) and spoken("unaudited") == "unaudited"
    assert not audit_of(tmp_path, "eval", {"name": "plain", "seq_len": 8}, {"dim": 2}, "xyz")["same_weights"]
    for stage, method, model in (
        ("ttt", {"name": "plain", "seq_len": 8}, {"dim": 2}),
        ("eval", {"name": "plain", "seq_len": 16}, {"dim": 2}),
        ("eval", {"name": "plain", "seq_len": 8}, {"dim": 3}),
    ):
        with pytest.raises(InputError, match="audit"):
            audit_of(tmp_path, stage, method, model, "abc")


def test_batches_that_make_a_queue_are_part_of_the_method(tmp_path: Path) -> None:
    report(tmp_path, method=METHOD | {"order": "stream"})
    assert audit_of(tmp_path, "eval", METHOD | {"order": "stream", "batch_seqs": 5}, {"dim": 2}, "abc")
    report(tmp_path, method=METHOD | {"order": "longest"})
    assert audit_of(tmp_path, "eval", METHOD | {"order": "longest"}, {"dim": 2}, "abc")
    with pytest.raises(InputError, match="another method: batch_seqs is 4 there, 5 here"):
        audit_of(tmp_path, "eval", METHOD | {"order": "longest", "batch_seqs": 5}, {"dim": 2}, "abc")
