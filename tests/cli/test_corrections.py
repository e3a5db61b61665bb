"""What comes on top of GPTQ, from a checkpoint to the score: low-rank corrections, layers made coarse."""

from pathlib import Path
from typing import Any

import pytest
from test_calibration import quantize

from pgolf.core.tensorfile import load_tensors, save_tensors
from pgolf.stages.model_files import load_model


def sets(*assignments: str) -> list[str]:
    """--set for each."""
    return [word for one in assignments for word in ("--set", one)]


@pytest.mark.parametrize("more", [(), ("quant.weighting=hessian", "quant.packing=sym4", "quant.rounding=trellis")])
def test_corrections_go_all_the_way_to_a_score(pgolf: Any, tiny_run: Path, tmp_path: Path, more: tuple[str]) -> None:
    coded, artifact, data = tmp_path / "q.safetensors", tmp_path / "model.pgz", ("--data", tiny_run / "data", "--quiet")
    argv = quantize(tiny_run, "--out", coded, *sets("quant.method=lqer", "quant.top=2", "quant.bits=4", "quant.k=7"))
    pgolf(*argv, *sets(*more)).good()
    pgolf("compress", coded, "--out", artifact, "--quiet", *sets("compress.method=rans")).good()
    few = sets("eval.max_tokens=4096")
    scores = [pgolf("eval", model, *data, "--json", *few).good().document["score"] for model in (coded, artifact)]
    assert scores[0] == scores[1]
    names = [name for name in load_tensors(coded, "pgolf.quantized/3")[0] if name.endswith(".a_codes")]
    stored = {row["tensor"]: row["stored"] for row in pgolf("inspect", artifact, "--json").good().document["tensors"]}
    assert len(names) == 2 and all(stored[name[:-8]].endswith("with rank 4") for name in names)


@pytest.mark.slow
def test_a_budget_is_met_with_corrections(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    out, argv = tmp_path / "q.safetensors", sets("quant.method=lqer", "quant.top=1", "compress.method=rans")
    document = pgolf(*quantize(tiny_run, "--out", out, *argv, "--budget", 75000, "--json")).good().document
    assert 73000 <= document["budget"]["total_bytes"] <= 75000
    made = pgolf("compress", out, "--out", tmp_path / "model.pgz", "--json").good().document
    assert made["total_bytes"] == document["budget"]["total_bytes"]
    assert any(name.endswith(".a_codes") for name in load_tensors(out, "pgolf.quantized/3")[0])


def test_a_file_with_half_a_correction_is_refused(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    out, broken = tmp_path / "q.safetensors", tmp_path / "broken.safetensors"
    pgolf(*quantize(tiny_run, "--out", out, *sets("quant.method=lqer"))).good()
    tensors, meta, _ = load_tensors(out, "pgolf.quantized/3")
    assert load_model(out).quantized is not None
    name = next(name for name in tensors if name.endswith(".a_codes"))
    without = {key: value for key, value in tensors.items() if key != name.replace("a_codes", "b_scale")}
    save_tensors(broken, without, {key: value for key, value in meta.items() if "sha256" not in key})
    pgolf("inspect", broken).refused(3, "b_scale is missing")


@pytest.mark.slow
def test_layers_are_downgraded_until_a_budget_is_met(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    out, argv = tmp_path / "q.safetensors", sets("quant.method=coarse_layers", "quant.coarse.bits=4", "quant.max_gap=0")
    plain = pgolf(*quantize(tiny_run, "--out", out, *argv, "--dry-run", "--json")).good().document["total_bytes"]
    document = pgolf(*quantize(tiny_run, "--out", out, *argv, "--budget", plain - 3000, "--json")).good().document
    found = document["budget"]
    assert found["total_bytes"] <= plain - 3000 and found["compressions"] == 2 and found["roles"] == {}
    assert load_tensors(out, "pgolf.quantized/1")[1]["config"]["quant"]["layers"] == "1"
    assert load_tensors(out, "pgolf.quantized/1")[1]["bits"]["blocks.1.mlp.fc.weight"] == 4
    pgolf(*quantize(tiny_run, "--out", out, *argv, "--budget", 30000)).refused(4, "with all layers coarse it has")


TUNE = ("quant.tune=kl", "quant.tune.steps=8", "quant.tune.seqs=2", "quant.tune.seq_len=64")


def test_tuning_comes_closer_and_says_so(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    plain, out, coarse = tmp_path / "plain.safetensors", tmp_path / "q.safetensors", sets("quant.bits=4", "quant.k=7")
    before = pgolf(*quantize(tiny_run, "--out", plain, *coarse, "--json")).good().document
    found = pgolf(*quantize(tiny_run, "--out", out, *coarse, *sets(*TUNE), "--json")).good().document
    assert found["tuned"] | {"seconds": 0} == {
        "kind": "kl",
        "tokens": 1024,
        "seconds": 0,
        "kl_bpb_before": before["kl_bpb"],
        "kl_bpb_after": found["kl_bpb"],
    }
    assert found["kl_bpb"] < before["kl_bpb"] and "tuned" not in before
    models = [load_model(path) for path in (plain, out)]
    assert models[1].config.quant.tune.steps == 8
    old, new = (model.quantized.tensors["blocks.0.mlp.fc.weight"] for model in models)
    assert (old.codes == new.codes).all() and (old.scale != new.scale).any()
    assert pgolf(*quantize(tiny_run, "--out", out, *coarse, *sets(*TUNE), "--json")).good().document["fresh"]


def test_a_budget_holds_after_tuning(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    out, argv = tmp_path / "q.safetensors", sets("quant.method=coarse_layers", "quant.max_gap=0", *TUNE)
    document = pgolf(*quantize(tiny_run, "--out", out, *argv, "--budget", 100000, "--json")).good().document
    made = pgolf("compress", out, "--out", tmp_path / "model.pgz", "--json").good().document
    assert made["total_bytes"] == document["budget"]["total_bytes"] <= 100000


def test_bytes_that_tuning_adds_beyond_the_budget_are_told(
    pgolf: Any, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = iter([99_000, 100_007])
    monkeypatch.setattr("pgolf.stages.quantize.submission_bytes", lambda *given: next(sizes))
    out, argv = tmp_path / "q.safetensors", sets("quant.method=coarse_layers", "quant.max_gap=0", *TUNE)
    pgolf(*quantize(tiny_run, "--out", out, *argv, "--budget", 100000)).refused(
        4, "tuning made 100,007 bytes of 99,000, 7 too many", "--budget 100000", "give a budget smaller by that"
    )
    assert not out.exists()
