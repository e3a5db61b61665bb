"""submission.json: means, spreads, times, conditions and the comparison, from entries made here."""

import math
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from pgolf.accounting import Size
from pgolf.audit.triple import TEXT_BYTES
from pgolf.config.load import resolve
from pgolf.core.errors import ConfigError
from pgolf.submission.document import (
    reference,
    schema_errors,
    submission_document,
    technique_summary,
    training_seconds,
    used_techniques,
)
from pgolf.submission.entries import Entry
from pgolf.submission.folder import folder_name
from pgolf.submission.log_lines import seed_log

TOKENS = 47_851_520
PER_TOKEN = TEXT_BYTES / TOKENS
BPBS = (1.0590, 1.0594, 1.0602)


def entry(path: Path, seed: int, bpb: float, **facts: Any) -> Entry:
    """A seed scored on the challenge's text on eight H100."""
    artifact = path / f"{seed}.pgz"
    artifact.write_bytes(b"x" * (1000 + seed))
    loss = bpb * math.log(2) * PER_TOKEN
    score: dict[str, Any] = {
        "score": {"nats": loss * TOKENS, "tokens": TOKENS, "bytes": TEXT_BYTES, "val_loss": loss, "bpb": bpb},
        "method": {"name": "phased"},
        "seconds": {"score": 400.0 + seed, "total": 410.0 + seed},
        "clock": {"kept": True},
        "model": {"sha256": "0" * 64},
        "date": "2026-04-27T10:00:00+00:00",
        "device": "cuda",
        "world_size": 8,
        "hardware": {"gpu": "NVIDIA H100 80GB HBM3"},
    } | facts
    train = {"train_seconds": 590.0 + seed, "steps": 5000, "world_size": 8, "parameters": 10}
    tensors = [{"name": "a", "bits": 6}, {"name": "b", "scheme": "float"}, {"name": "c", "bits": 6}]
    quantize = {"seconds": {"hessians": 3.5}, "method": "gptq", "tensors": tensors}
    return Entry(artifact, seed, score, train, quantize)


def document(path: Path, *entries: Entry, **package: str) -> dict[str, Any]:
    """Of a submission of the leader's preset."""
    sets = [f"package.{key}={value}" for key, value in package.items()]
    largest = max(one.artifact.stat().st_size for one in entries)
    made = submission_document(list(entries), Size(largest, 30_000), resolve("leader", sets).config, "t", {})
    return made | {"files": {"train_gpt.py": {"bytes": 1, "sha256": "0" * 64}}}


def test_means_spreads_and_conditions(tmp_path: Path) -> None:
    entries = [entry(tmp_path, seed, bpb) for seed, bpb in zip((1, 2, 3), BPBS, strict=True)]
    made = document(tmp_path, *entries)
    assert schema_errors(made) == []
    assert made["val_bpb"] == pytest.approx(sum(BPBS) / 3) and made["val_bpb_std"] == pytest.approx(
        0.000611010, abs=1e-8
    )
    assert made["train_time_s_max"] == 596.5 and made["eval_time_s_max"] == 403.0
    assert made["artifact_bytes_max"] == made["bytes_total"] == 31_003 and made["artifact_bytes_mean"] == 31_002
    assert made["seed_results"]["2"]["step_avg_ms"] == pytest.approx(118.4)
    assert made["hardware"] == "8xNVIDIA H100 80GB HBM3" and made["date"] == "2026-04-27"
    conditions = dict(made["compliance"])
    assert all(conditions.values()) and len(conditions) == 10


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"clock": {"kept": False}}, {"eval_under_600s"}),
        ({"hardware": {"gpu": "NVIDIA H200"}}, {"challenge_hardware"}),
        ({"world_size": 4}, {"challenge_hardware"}),
    ],
)
def test_what_does_not_hold_is_said(tmp_path: Path, changes: dict[str, Any], broken: set[str]) -> None:
    entries = [entry(tmp_path, 1, 1.06), entry(tmp_path, 2, 1.06), entry(tmp_path, 3, 1.06, **changes)]
    assert {key for key, value in document(tmp_path, *entries)["compliance"].items() if not value} == broken


def test_calibration_counts_as_training(tmp_path: Path) -> None:
    late = entry(tmp_path, 8, 1.06)
    made = document(tmp_path, late)
    assert made["train_time_s_max"] == 601.5 and not made["compliance"]["train_under_600s"]
    assert not made["compliance"]["three_seeds"] and made["val_bpb_std"] is None


@pytest.mark.parametrize(
    ("sets", "tuned", "seconds"),
    [
        ((), {"seconds": 4.0}, 599.5),
        (("quant.calibration_source=self",), {}, 592.0),
        (("quant.method=sdclip",), {}, 592.0),
    ],
)
def test_what_reads_training_tokens_is_training(
    tmp_path: Path, sets: tuple[str, ...], tuned: dict[str, float], seconds: float
) -> None:
    """Tuning does, text that the model makes up does not."""
    one, config = entry(tmp_path, 2, 1.06), resolve("leader", list(sets)).config
    one.quantize["tuned"] = tuned
    assert training_seconds(one, config) == seconds
    log = seed_log(one, Size(1002, 30_000), config, "f" * 64).decode().splitlines()
    assert f"train_data_last_read: {seconds}s" in log
    one.train.pop("train_seconds")
    assert training_seconds(one, config) is None
    assert "train_data_last_read" not in seed_log(one, Size(1002, 30_000), config, "f" * 64).decode()


def test_the_comparison_is_welchs_test(tmp_path: Path) -> None:
    entries = [entry(tmp_path, seed, bpb) for seed, bpb in zip((1, 2, 3), BPBS, strict=True)]
    found = document(tmp_path, *entries)["comparison"]
    assert found["pr"] == "#1855" and found["val_bpb"] == 1.06108
    mean, spread = sum(BPBS) / 3, 0.000611010
    assert found["delta_bpb"] == pytest.approx(mean - 1.06108)
    assert found["delta_nats"] == pytest.approx((mean - 1.06108) * math.log(2) * PER_TOKEN)
    welch = stats.ttest_ind_from_stats(mean, spread, 3, 1.06108, 0.0009, 3, equal_var=False, alternative="less")
    assert found["p_progression"] == pytest.approx(welch.pvalue, rel=1e-4)
    assert found["beats_progression"] and not found["beats_strict"] and found["p_strict"] > 0.25
    older = document(tmp_path, *entries, against="pr1394")["comparison"]
    assert older["pr"] == "#1394" and older["delta_bpb"] < found["delta_bpb"] and older["beats_strict"]


def test_other_texts_are_not_compared_and_unknown_rivals_refused(tmp_path: Path) -> None:
    one = entry(tmp_path, 1, 1.06)
    one.score["score"]["bytes"] = 4614
    assert document(tmp_path, one)["comparison"] is None
    with pytest.raises(ConfigError, match="no published score '#7'"):
        reference("#7")
    assert reference("")["status"] == "merged" and reference("1493")["pr"] == "#1493"


def test_credits_are_of_what_is_used() -> None:
    leader, baseline = used_techniques(resolve("leader").config), used_techniques(resolve("baseline_sp1024").config)
    names = {f"{row['key']} {row['name']}": row for row in leader}
    assert "PR #1787" in names["model.head_gate sparse"]["source"] and not names["model.head_gate sparse"]["baseline"]
    assert all(row["baseline"] for row in baseline if row["key"].startswith(("model", "optim", "train")))
    assert "head_gate sparse" in technique_summary(leader) and "head_gate" not in technique_summary(baseline)
    assert not any(row["name"] == "none" for row in leader)


def test_folders_are_named_without_spaces_in_ascii(tmp_path: Path) -> None:
    config = resolve("leader", ["package.track=non_record_16mb"]).config
    assert folder_name(tmp_path, config, "größe + LQER, v2.1", "2026-04-27", 1.06108) == (
        tmp_path / "track_non_record_16mb" / "2026-04-27_Gr_E_LQER_V2.1_1.0611"
    )
    assert folder_name(tmp_path, config, "你好", "2026-04-27", 1.0).name == "2026-04-27_Pgolf_1.0000"


def test_a_log_ends_with_the_claimed_metric(tmp_path: Path) -> None:
    one = entry(tmp_path, 3, 1.0602)
    lines = seed_log(one, Size(1003, 30_000), resolve("leader").config, "f" * 64).decode().splitlines()
    assert lines[0].startswith("no training log") and "Quantized weights:" in lines
    assert "  gptq (int6): a, c" in lines and "  gptq (float): b" in lines
    assert "artifact: code=30000 model=1003 total=31003 cap=16000000 margin=+15968997" in lines
    assert [line for line in lines if "val_bpb" in line][-1].startswith("quantized_ttt_phased val_loss:2.3")
    assert lines[-1] == "total_eval_time:413.0s"
