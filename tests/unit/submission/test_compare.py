"""Comparing runs: tests over seeds against scipy's own, units, doubts, and the published table."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from pgolf.core.errors import InputError
from pgolf.submission.compare import compare_published, compare_runs, leaderboard, published, published_entry
from pgolf.submission.gather import gather
from pgolf.submission.significance import Sample, compared, load_rules, sample_of

RULES = load_rules(None)
SCORE: dict[str, Any] = {
    "schema": "pgolf.score/2",
    "stage": "eval",
    "partial": False,
    "share": 1.0,
    "seconds": {"score": 1.0, "total": 2.0},
    "score": {"nats": 0.0, "tokens": 1000, "bytes": 3000, "val_loss": 0.0, "bpb": 0.0},
    "method": {"name": "sliding"},
    "model": {"kind": "artifact", "sha256": "x", "path": "m"},
    "data": {"sha256": "d", "path": "p"},
    "device": "cpu",
    "hardware": {"cpus": 2},
    "versions": {"torch": "2"},
    "audit": "unaudited",
}


def made(folder: Path, bpbs: list[float], seeds: list[int] | None = None, **settings: Any) -> Path:
    """A folder of runs with these scores."""
    for index, bpb in enumerate(bpbs):
        run = folder / f"run{index}"
        (run / "train").mkdir(parents=True)
        (run / "eval").mkdir()
        score = copy.deepcopy(SCORE)
        score["score"]["bpb"] = bpb
        (run / "eval" / "score.json").write_text(json.dumps(score))
        (run / "settings.json").write_text("{}")
        resolved = {"train": {"seed": (seeds or range(99))[index], "iterations": 5}, **settings}
        entry = {"stage": "train", "resolved": resolved}
        manifest = {"schema": "pgolf.manifest/1", "outputs": {"checkpoint.safetensors": entry}}
        (run / "train" / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_welch_as_scipy_has_it() -> None:
    old, new = [1.0732, 1.0741, 1.0729, 1.0735], [1.0701, 1.0713, 1.0699]
    found = compared(sample_of(old), sample_of(new), 3.0, RULES)
    theirs = stats.ttest_ind(new, old, equal_var=False)
    less = stats.ttest_ind(new, old, equal_var=False, alternative="less")
    ends = theirs.confidence_interval()
    assert math.isclose(found["p_two_sided"], theirs.pvalue, rel_tol=1e-9)
    assert math.isclose(found["p_one_sided"], less.pvalue, rel_tol=1e-9)
    assert found["interval_bpb"] == pytest.approx([ends.low, ends.high], rel=1e-9)
    assert found["delta_nats"] == pytest.approx(found["delta_bpb"] * math.log(2) * 3.0)
    assert [rule["beats"] for rule in found["rules"]] == [False, True], "0.003 BPB is 0.006 nats, too near the bar"


def test_the_bar_is_in_nats_of_the_new_runs() -> None:
    """The written rule against an exact mean: t = (mu - bar - mean) / (s / sqrt n), as one sample."""
    new = [1.0600, 1.0604, 1.0597]
    found = compared(Sample(1.0650, 0.0, 1, exact=True), sample_of(new), 3.157152, RULES)
    bar = 0.005 / (math.log(2) * 3.157152)
    theirs = stats.ttest_1samp(new, 1.0650 - bar, alternative="less")
    assert math.isclose(found["rules"][0]["p_found"], theirs.pvalue, rel_tol=1e-9)
    assert found["df"] == pytest.approx(2.0)


def test_one_run_proves_nothing() -> None:
    found = compared(sample_of([1.2]), sample_of([1.0]), 3.0, RULES)
    assert found["p_two_sided"] is None and found["interval_bpb"] is None
    assert not any(rule["beats"] for rule in found["rules"])


@pytest.mark.parametrize("place", ["score.json", "eval/score.json"])
def test_a_score_knows_the_run_around_it(tmp_path: Path, place: str) -> None:
    """In the folder of the run as in that of a stage."""
    run = made(tmp_path, [1.1], seeds=[7]) / "run0"
    if place == "score.json":
        (run / "eval" / "score.json").rename(run / place)
    (score,) = gather(run / place)
    assert score.seed == 7 and score.settings == {"train.iterations": 5}
    assert [one.seed for one in gather(run)] == [7]


def test_seeds_of_two_configurations(tmp_path: Path) -> None:
    old, new = made(tmp_path / "a", [1.10, 1.11, 1.12]), made(tmp_path / "b", [1.00, 1.01, 1.02])
    found = compare_runs(old, new, RULES)
    (row,) = found["rows"]
    assert row["view"] == "artifact, eval sliding" and row["old"]["n"] == row["new"]["n"] == 3
    assert row["delta_bpb"] == pytest.approx(-0.1) and row["bytes_per_token"] == 3.0
    assert all(rule["beats"] for rule in row["rules"]) and found["warnings"] == []


def test_what_is_doubtful_is_said(tmp_path: Path) -> None:
    old = made(tmp_path / "a", [1.1, 1.1], [7, 7])
    new = made(tmp_path / "b", [1.0, 1.0, 1.0])
    path = new / "run2" / "train" / "manifest.json"
    path.write_text(path.read_text().replace('"iterations": 5', '"iterations": 6'))
    score = new / "run1" / "eval" / "score.json"
    score.write_text(score.read_text().replace('"sha256": "d"', '"sha256": "e"').replace('"cpus": 2', '"cpus": 64'))
    said = "\n".join(compare_runs(old, new, RULES)["warnings"])
    for words in ("2 runs, a record needs three", "a seed occurs twice", "several configurations", "train.iterations"):
        assert words in said
    assert "validation data differ" in said and "hardware differ" in said


def test_stages_apart_and_their_gaps(tmp_path: Path) -> None:
    folder = made(tmp_path / "a", [1.1, 1.2])
    for run in ("run0", "run1"):
        score = json.loads((folder / run / "eval" / "score.json").read_text())
        score["model"]["kind"], score["score"]["bpb"] = "checkpoint", score["score"]["bpb"] - 0.01
        (folder / run / "train" / "score.json").write_text(json.dumps(score))
    found = compare_runs(folder, folder, RULES)
    assert [row["view"] for row in found["rows"]] == ["float, eval sliding", "artifact, eval sliding"]
    (gap,) = found["gaps"]["new"]
    assert gap["bpb"] == pytest.approx(0.01) and gap["n"] == 2


def test_a_run_beside_a_published_score(tmp_path: Path) -> None:
    entry = published_entry("pr1855")
    assert entry is not None and entry is published_entry("1855") and published_entry("no such") is None
    found = compare_published(entry, made(tmp_path / "a", [1.05, 1.051, 1.0505]), RULES)
    assert found["rows"][0]["old"] == {"n": 3, "bpb": 1.06108, "std": 0.0009, "seeds": []}
    assert found["rows"][0]["rules"][0]["beats"]
    assert any("cannot be compared" in warning for warning in found["warnings"])
    for path in (tmp_path / "a").glob("*/eval/score.json"):
        path.write_text(path.read_text().replace('"bytes": 3000', '"bytes": 151074499'))
    assert not any("compared" in one for one in compare_published(entry, tmp_path / "a", RULES)["warnings"])


def test_the_table_and_ones_own_place_in_it(tmp_path: Path) -> None:
    rows = leaderboard([made(tmp_path / "mine", [1.07, 1.072])])["rows"]
    assert [row["bpb"] for row in rows] == sorted(row["bpb"] for row in rows)
    place = next(index for index, row in enumerate(rows) if row["own"])
    assert rows[place - 1]["pr"] == "#1729" and rows[place + 1]["pr"] == "#1667"
    assert rows[place]["audit"] == "unaudited" and rows[place]["status"] == "own, on another text"


def test_the_published_table_is_complete() -> None:
    for entry in published():
        assert {"pr", "name", "bpb", "status", "source"} <= set(entry) and entry["status"] in (
            "merged",
            "open",
            "closed",
            "disputed",
        )
        for one in entry.get("corrections", []):
            assert one["after"] == entry[one["field"]] and one["before"] != one["after"] and one["reason"]


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run"):
        compare_runs(tmp_path / "none", tmp_path, RULES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no score"):
        compare_runs(tmp_path / "empty", tmp_path, RULES)
    (tmp_path / "rules.toml").write_text("[[rule]]\nname = 'x'\n")
    with pytest.raises(InputError, match="no rules"):
        load_rules(tmp_path / "rules.toml")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="not a score"):
        compare_runs(tmp_path / "x.json", tmp_path, RULES)


def test_remarks_on_training_stand_beside_whatever_is_made_of_the_run(tmp_path: Path) -> None:
    old, new = made(tmp_path / "a", [1.1, 1.1, 1.1]), made(tmp_path / "b", [1.0, 1.01, 1.02])
    path = new / "run1" / "train" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["outputs"]["checkpoint.safetensors"]["figures"] = {"notes": ["the machine was asleep"]}
    path.write_text(json.dumps(manifest))
    note = f"{new / 'run1'}: the machine was asleep"
    entry = published_entry("pr1855")
    assert entry is not None
    for found in (compare_runs(old, new, RULES), compare_runs(new, old, RULES), compare_published(entry, new, RULES)):
        assert found["warnings"].count(note) == 1
    assert "asleep" not in "".join(compare_runs(old, old, RULES)["warnings"])
    (row,) = [row for row in leaderboard([new])["rows"] if row["own"]]
    assert row["notes"] == [note]
    (row,) = [row for row in leaderboard([new / "run1" / "eval" / "score.json"])["rows"] if row["own"]]
    assert row["notes"] == [f"{new / 'run1' / 'eval' / 'score.json'}: the machine was asleep"]
