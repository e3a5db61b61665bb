"""Calibration as a file: written once, reused by every setting, refused when it is another's."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import flip

from pgolf.core.tensorfile import load_tensors, save_tensors
from pgolf.stages.calibrate import CALIBRATION_SCHEMA, COUPLED_SCHEMA, read_calibration

CURVED = ("--set", "quant.steps=curvature", "--set", "quant.rounding=trellis", "--set", "quant.bits_per_weight=4")


def quantize(run: Path, *argv: object) -> list[object]:
    """The command on a finished run's checkpoint and data."""
    return ["quantize", run / "train" / "checkpoint.safetensors", "--data", run / "data", "--quiet", *argv]


@pytest.fixture(scope="module")
def calibrated(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The calibration of the tiny run's checkpoint."""
    from harness import run_here

    path = tmp_path_factory.mktemp("calibration") / "kept.safetensors"
    document = run_here(*quantize(tiny_run, "--calibrate-only", "--calibration", path, "--json")).good().document
    assert document["schema"] == "pgolf.calibrate/1" and not document["fresh"]
    assert document["tokens"] == 8 * 64 and document["tables"] == 1
    return path


def test_the_file_is_written_once_and_says_what_it_is(pgolf: Any, tiny_run: Path, calibrated: Path) -> None:
    before = calibrated.read_bytes()
    document = pgolf(*quantize(tiny_run, "--calibrate-only", "--calibration", calibrated, "--json")).good().document
    assert document["fresh"] and calibrated.read_bytes() == before
    found, facts = read_calibration(calibrated)
    assert facts["gradients"] and facts["tokens"] == found.tokens == 512
    assert set(found.inputs) == set(found.outputs) and set(found.lookups) == set(found.energies) == {"tok_emb.weight"}
    shown = pgolf("inspect", calibrated, "--json").good().document
    assert shown["kind"] == CALIBRATION_SCHEMA and len(shown["tensors"]) == 2 * len(found.inputs) + 2


def test_every_setting_uses_it(pgolf: Any, tiny_run: Path, calibrated: Path, tmp_path: Path) -> None:
    bits = {}
    for name, sets in {"records": (), "curved": CURVED, "rough": (*CURVED[:-1], "quant.bits_per_weight=3")}.items():
        out = tmp_path / name / "q.safetensors"
        document = (
            pgolf(*quantize(tiny_run, "--out", out, "--calibration", calibrated, *sets, "--json")).good().document
        )
        assert document["hessians_cached"] and not document["warnings"]
        assert not (out.parent / "hessians.safetensors").exists()
        bits[name] = document["entropy_bits"]
    assert bits["curved"] == pytest.approx(4, abs=0.1) and bits["rough"] == pytest.approx(3, abs=0.1)


def test_a_trellis_goes_all_the_way_to_a_score(pgolf: Any, tiny_run: Path, calibrated: Path, tmp_path: Path) -> None:
    """Codes, artifact, and the same bits per byte from both."""
    coded, artifact = tmp_path / "q.safetensors", tmp_path / "model.pgz"
    pgolf(*quantize(tiny_run, "--out", coded, "--calibration", calibrated, *CURVED)).good()
    pgolf("compress", coded, "--out", artifact, "--quiet").good()
    assert set(load_tensors(coded, "pgolf.quantized/2")[1]["forms"].values()) == {5}
    data = ("--data", tiny_run / "data", "--quiet", "--json", "--set", "eval.max_tokens=4096")
    scores = [pgolf("eval", model, *data).good().document["score"] for model in (coded, artifact)]
    exact = pgolf("eval", tiny_run / "train" / "checkpoint.safetensors", *data).good().document["score"]
    assert scores[0] == scores[1] and abs(scores[0]["bpb"] - exact["bpb"]) < 0.02
    rows = {row["tensor"]: row for row in pgolf("inspect", artifact, "--json").good().document["tensors"]}
    assert rows["tok_emb.weight"]["stored"] == "8-bit trellis"


def test_a_wrong_calibration_is_refused_with_the_reason(
    pgolf: Any, tiny_run: Path, calibrated: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "other.safetensors", tmp_path / "q.safetensors"
    tensors, meta, _ = load_tensors(calibrated, CALIBRATION_SCHEMA)
    argv = quantize(tiny_run, "--out", out, "--calibration", path)
    save_tensors(path, tensors, meta | {"checkpoint_sha256": "f" * 64})
    pgolf(*argv).refused(3, "checkpoint_sha256 is ffffffffffffffff", "--force")
    save_tensors(path, tensors, meta | {"data_sha256": "e" * 64})
    pgolf(*argv).refused(3, "data_sha256 is eeeeeeeeeeeeeeee")
    save_tensors(path, tensors, meta)
    pgolf(*argv, "--set", "quant.calibration_seqs=4").refused(3, "calibration_seqs is 8, wanted is 4")
    pgolf(*argv, "--set", "quant.calibration_source=self").refused(3, "data_sha256 is")
    save_tensors(path, {}, meta | {"tokens": 0})
    pgolf(*argv).refused(3, "holds no tokens")
    save_tensors(path, {f"strange.{name}": tensor for name, tensor in tensors.items()}, meta)
    pgolf(*argv).refused(3, "unknown tensor strange.")
    save_tensors(path, {n: t for n, t in tensors.items() if n.startswith("inputs.")}, meta | {"gradients": False})
    pgolf(*argv, *CURVED).refused(3, "it has no gradients")
    pgolf(*argv).good()
    flip(path, 5000)
    out.unlink()
    pgolf(*argv).refused(3, "SHA-256 does not match")
    assert not out.exists()
    pgolf(*argv, "--force").good()
    assert read_calibration(path)[1]["gradients"] is False


def test_a_stale_calibration_beside_the_output_is_made_anew(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    out, kept = tmp_path / "q.safetensors", tmp_path / "hessians.safetensors"
    first = pgolf(*quantize(tiny_run, "--out", out, "--json")).good().document
    assert not first["hessians_cached"] and not read_calibration(kept)[1]["gradients"]
    again = pgolf(*quantize(tiny_run, "--out", out, "--json", *CURVED)).good().document
    assert not again["hessians_cached"] and read_calibration(kept)[1]["gradients"]
    last = pgolf(*quantize(tiny_run, "--out", out, "--json", "--set", "quant.bits=5")).good().document
    assert last["hessians_cached"]
    flip(kept, 5000)
    result = pgolf(*quantize(tiny_run, "--out", out, "--json", "--set", "quant.bits=4")).good()
    assert not result.document["hessians_cached"] and "not usable and is collected anew" in result.err


def test_couplings_are_collected_when_asked_for(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    out, kept = tmp_path / "q.safetensors", tmp_path / "hessians.safetensors"
    curved = (*CURVED, "--set", "quant.bits_per_weight=2", "--set", "quant.calibration_seqs=256")
    apart = pgolf(*quantize(tiny_run, "--out", out, "--json", *curved)).good().document
    assert not read_calibration(kept)[0].couplings
    coupled = (*curved, "--set", "quant.couple=rows")
    pgolf(*quantize(tiny_run, "--out", out, "--calibration", kept, *coupled)).refused(3, "it has no couplings")
    together = pgolf(*quantize(tiny_run, "--out", out, "--json", *coupled)).good().document
    found, facts = read_calibration(kept)
    assert facts["schema"] == COUPLED_SCHEMA and set(found.couplings) == {
        name for name in found.inputs if name.startswith("blocks.")
    }
    for name, matrix in found.couplings.items():
        torch.testing.assert_close(matrix.diagonal(), found.outputs[name], rtol=1e-4, atol=0)
    assert together["kl_bpb"] < apart["kl_bpb"]
    assert pgolf(*quantize(tiny_run, "--out", out, "--json", *curved)).good().document["hessians_cached"]
    pgolf(*quantize(tiny_run, "--out", out, "--set", "quant.couple=rows")).refused(
        2, "quant.couple", "rounding=trellis"
    )


def test_text_that_the_model_makes_up_needs_no_data_of_its_own(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "self.safetensors"
    sets = ("--set", "quant.calibration_source=self", "--set", "quant.calibration_seq_len=24")
    pgolf(*quantize(tiny_run, "--calibrate-only", "--calibration", path, *sets)).good()
    found, facts = read_calibration(path)
    assert facts["data_sha256"] == "" and facts["calibration_source"] == "self" and found.tokens == 8 * 24
    document = pgolf(*quantize(tiny_run, "--out", tmp_path / "q.safetensors", "--calibration", path, *sets, "--json"))
    assert document.good().document["hessians_cached"]


def test_wrong_usage_is_named(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    pgolf(*quantize(tiny_run)).refused(2, "name the file to write", "--out")
    pgolf(*quantize(tiny_run, "--calibrate-only")).refused(2, "--calibration FILE is enough")
    argv = quantize(tiny_run, "--calibrate-only", "--calibration", tmp_path / "c.safetensors")
    pgolf(*argv, "--set", "quant=sdclip").refused(3, "needs no calibration")
    document = pgolf(*argv, "--dry-run", "--json").good().document
    assert document["command"] == "calibrate" and not list(tmp_path.iterdir())


def test_two_ranks_calibrate_like_one(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    options = ("--calibrate-only", "--set", "quant.calibration_batch=2", "--device", "cpu")
    pgolf(*quantize(tiny_run, *options, "--calibration", one)).good()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "pgolf"]
    argv = [*launcher, *map(str, quantize(tiny_run, *options, "--calibration", two, "--json"))]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"] == 512
    (alone, facts), (together, same) = (read_calibration(path) for path in (one, two))
    own = ("tensors_sha256", "seconds")
    assert {k: v for k, v in facts.items() if k not in own} == {k: v for k, v in same.items() if k not in own}
    assert facts["seconds"] > 0 and same["seconds"] > 0
    for group, sums in alone.groups().items():
        for name, value in sums.items():
            error = (together.groups()[group][name] - value).abs().max()
            assert float(error) <= 1e-5 * float(value.abs().max()), name
    few = [*argv, "--force", "--set", "quant.calibration_seqs=1"]
    done = subprocess.run(few, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "1 calibration batches for 2 ranks" in done.stderr


def test_calibration_beyond_the_budget_is_warned_of(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    given = ("--data", tiny_run / "data", "--json", "--preset", "tiny", "--set", "train.val_max_tokens=256")
    budget = ("--set", "train.max_wallclock_seconds=0.5", "--set", "train.iterations=1000000")
    pgolf("train", tiny_run / "data", "--out", tmp_path / "a", "--quiet", "--preset", "tiny", *budget).good()
    model, out = tmp_path / "a" / "checkpoint.safetensors", tmp_path / "q" / "quantized.safetensors"
    first = pgolf("quantize", model, "--out", out, *given).good()
    assert "more than train.max_wallclock_seconds=0.5: raise train.reserve_seconds" in first.err
    (warning,) = first.document["warnings"]
    assert f"warning: {warning}\n" in first.err and warning.endswith("raise train.reserve_seconds")
    assert "the last training token was read" in first.err and "of 0.5 s" in first.err
    manifest = json.loads((out.parent / "manifest.json").read_text())["outputs"]["quantized.safetensors"]
    read, trained = manifest["figures"]["last_training_token"], load_tensors(model, "pgolf.checkpoint/1")[1]["figures"]
    assert read == first.document["last_training_token"] and read["within_budget"] is False
    spent = manifest["seconds"]["hessians"]
    assert read["budget_s"] == 0.5 and read["elapsed_s"] == pytest.approx(trained["train_seconds"] + spent, abs=0.01)
    again = pgolf("quantize", model, "--out", out, *given, "--set", "quant.bits=5").good()
    assert "reserve" not in again.err, "the second time nothing was calibrated"
    assert "last_training_token" not in again.document
    made_up = ("--set", "quant.calibration_source=self", "--set", "quant.calibration_seqs=2")
    own = pgolf("quantize", model, "--out", out, *given, *made_up, "--set", "quant.calibration_seq_len=4").good()
    assert not own.document["hessians_cached"] and "last_training_token" not in own.document
    assert "training token was read" not in own.err and "reserve" not in own.err, "it has read none"


def test_a_budget_is_met_with_the_script_counted(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    model, out = tiny_run / "train" / "checkpoint.safetensors", tmp_path / "q.safetensors"
    argv = ("quantize", model, "--data", tiny_run / "data", "--out", out, "--set", "compress.method=brotli")
    argv += ("--set", "quant.sequential=true")  # what is counted before the last tries is not what is stored
    found = pgolf(*argv, "--budget", "50000", "--json").good().document["budget"]
    assert 48_000 <= found["total_bytes"] <= 50_000 and found["compressions"] <= 12
    made = pgolf("compress", out, "--out", tmp_path / "model.pgz", "--json").good().document
    assert made["total_bytes"] == found["total_bytes"], "the thetas found are those of the file"
    again = pgolf(*argv, "--budget", "50000").good()
    assert "nothing to do" in again.out and "BPB per kilobyte" in again.out and "of 50,000 bytes" in again.out
    tight = pgolf(*argv, "--budget", "9000", "--quiet")
    tight.refused(4, "9,000 bytes", "smallest")


def test_a_model_that_quantization_has_broken_is_refused(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    model, out = tiny_run / "train" / "checkpoint.safetensors", tmp_path / "q.safetensors"
    argv = ("quantize", model, "--data", tiny_run / "data", "--out", out, "--quiet", "--set", "quant.theta=8")
    pgolf(*argv, "--set", "quant.max_gap=0.01").refused(4, "worse than the float model", "quant.max_gap 0.01")
    assert not out.exists()
    figures = pgolf(*argv, "--set", "quant.max_gap=0", "--json").good().document
    assert "gap_bpb" not in figures
    seen = pgolf(*argv, "--set", "quant.max_gap=8", "--json").good().document
    assert 0.01 < seen["gap_bpb"] < 8 and seen["kl_bpb"] > 0.01 and seen["judged_targets"] > 500


@pytest.mark.parametrize("setting", ["quant.method=sdclip", "quant.method=row_quantile", "quant.steps=curvature"])
def test_a_dry_run_predicts_bytes_within_two_percent(pgolf: Any, tiny_run: Path, tmp_path: Path, setting: str) -> None:
    model, out = tiny_run / "train" / "checkpoint.safetensors", tmp_path / "q.safetensors"
    argv = ("quantize", model, "--data", tiny_run / "data", "--out", out, "--set", setting)
    predicted = pgolf(*argv, "--dry-run", "--json").good().document
    assert not out.exists()
    pgolf(*argv, "--quiet").good()
    made = pgolf("compress", out, "--out", tmp_path / "model.pgz", "--json").good().document
    assert predicted["total_bytes"] == pytest.approx(made["total_bytes"], rel=0.02)


def test_inspect_tells_bits_errors_and_shares(pgolf: Any, tiny_run: Path, calibrated: Path, tmp_path: Path) -> None:
    model, out = tiny_run / "train" / "checkpoint.safetensors", tmp_path / "q.safetensors"
    argv = ("quantize", model, "--data", tiny_run / "data", "--calibration", calibrated, "--quiet")
    pgolf(*argv, "--out", out).good()
    rows = pgolf("inspect", out, "--json").good().document["tensors"]
    coded = [row for row in rows if row["coded_bits"]]
    assert sum(row["loss_share"] for row in coded) == pytest.approx(1.0)
    for row in coded:
        assert row["stored"].endswith("-bit rows") and 0 < row["output_error"] < 0.1
        assert row["entropy_bits"] * 0.8 < row["coded_bits"] < row["entropy_bits"] * 1.6
    assert {row["coded_bits"] for row in rows} - {row["coded_bits"] for row in coded} == {None}
    picture = tmp_path / "errors.svg"
    shown = pgolf("inspect", out, "--plot", picture).good().out
    assert "loss_share" in shown and str(picture) in shown and "share of the loss" in picture.read_text()
    pgolf("inspect", model, "--plot", picture).refused(3, "no quantization errors")
