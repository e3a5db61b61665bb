"""Models that hold less, or other parameters, than were trained: files of before, and calibrations of either kind."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import run_here
from test_calibration import quantize

from pgolf.core.model.config import param_specs
from pgolf.core.quant.base import quantize_model
from pgolf.core.tensorfile import load_tensors, save_tensors
from pgolf.stages.model_files import ModelFile, load_model, save_quantized

PARTS = ("model.head_mix=learned", "model.multi_token=mtp_heads")
CURVED = ("quant.steps=curvature", "quant.rounding=trellis", "quant.states=4", "quant.bits_per_weight=4")


def sets(*assignments: str) -> list[str]:
    """--set for each."""
    return [word for one in assignments for word in ("--set", one)]


@pytest.fixture(scope="module")
def trained(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps with mixers and heads for later tokens, its checkpoint alone."""
    out = tmp_path_factory.mktemp("trained") / "run"
    more = ("train.iterations=6", "train.val_every=0", "optim.scalar_lr=0.2", "quant.max_gap=9")
    size = ("quant.calibration_seqs=8", "quant.calibration_seq_len=64")
    argv = ("run", "--preset", "tiny", "--data", tiny_run / "data", "--out", out, "--until", "train", "--quiet")
    run_here(*argv, *sets(*PARTS, *more, *size)).good()
    return out


def as_before(model: ModelFile, out: Path) -> Path:
    """The file as it was written when nothing was left out."""
    quantizer = dataclasses.replace(model.config.quant, bits=6)
    whole = quantize_model(model.config.model, model.weights, quantizer, {})
    save_quantized(out, whole, {"config": model.stored, "tokenizer_sha256": model.tokenizer_sha256, "tensors": []})
    return out


def test_quantized_models_and_artifacts_of_before_are_read(pgolf: Any, trained: Path, tmp_path: Path) -> None:
    model = load_model(trained / "train" / "checkpoint.safetensors")
    old = load_model(as_before(model, tmp_path / "old.safetensors"))
    assert old.config.model == model.config.model
    assert old.weights.keys() == {spec.name for spec in param_specs(model.config.model)}
    pgolf("compress", old.path, "--out", tmp_path / "old.pgz", "--quiet").good()
    artifact = load_model(tmp_path / "old.pgz")
    assert artifact.config.model == model.config.model
    ids = torch.randint(0, 512, (2, 33), generator=torch.Generator().manual_seed(1))
    networks = [one.build(torch.device("cpu")) for one in (old, artifact)]
    with torch.no_grad():
        first, second = (network.nll(ids[:, :-1], ids[:, 1:]) for network in networks)
    assert torch.equal(first, second)
    argv = ("package-submission", artifact.path, "--out", tmp_path / "folder", "--data", trained / "data", "--quiet")
    pgolf(*argv).refused(3, "does not export", "quantize the checkpoint again")


def test_a_model_that_lacks_more_is_refused(trained: Path, tmp_path: Path) -> None:
    model = load_model(trained / "train" / "checkpoint.safetensors")
    path = as_before(model, tmp_path / "old.safetensors")
    tensors, meta, _ = load_tensors(path, "pgolf.quantized/1")
    del tensors["blocks.0.attn.q_mix"]
    save_tensors(path, tensors, {key: value for key, value in meta.items() if key != "tensors_sha256"})
    with pytest.raises(Exception, match="tensors the configuration does not know"):
        load_model(path)


def test_calibrations_of_before_are_not_taken_for_those_of_the_exported_model(
    pgolf: Any, trained: Path, tmp_path: Path
) -> None:
    kept, out = tmp_path / "kept.safetensors", tmp_path / "out.safetensors"
    argv = quantize(trained, "--calibration", kept, *sets(*CURVED), "--json")
    pgolf(*argv, "--out", out).good()
    assert pgolf(*argv, "--out", tmp_path / "again.safetensors").good().document["hessians_cached"]
    tensors, meta, _ = load_tensors(kept, "pgolf.hessians/2")
    assert not [name for name in tensors if "mtp_heads" in name]
    assert meta.pop("exported_without") == ["head_mix", "multi_token"]
    save_tensors(kept, tensors, {key: value for key, value in meta.items() if key != "tensors_sha256"})
    pgolf(*argv, "--out", tmp_path / "third.safetensors").refused(3, "exported_without")


def test_the_predicted_size_is_that_of_what_is_exported(pgolf: Any) -> None:
    plain, less = (
        pgolf("size", "tiny", "--json", *sets(*parts)).good().document
        for parts in ((), ("model.multi_token=mtp_heads", "model.head_mix=learned"))
    )
    assert less["tensors"] == plain["tensors"] and less["total_bytes"] == plain["total_bytes"]


def test_plans_count_what_is_trained(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    argv = ("train", tiny_run / "data", "--out", tmp_path / "train", "--preset", "tiny", "--dry-run", "--json")
    plain, more = (
        json.loads(pgolf(*argv, *sets(*parts)).good().out) for parts in ((), ("model.multi_token=mtp_heads",))
    )
    assert more["parameters"] - plain["parameters"] == 2 * 512 * 64
    assert more["artifact_bytes"] == plain["artifact_bytes"]


def test_a_budget_is_met_by_what_is_exported(pgolf: Any, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    argv = quantize(trained, "--out", out, "--budget", 70_000, *sets("quant.steps=curvature"), "--json")
    found = pgolf(*argv).good().document
    assert 66_000 < found["budget"]["total_bytes"] <= 70_000
    assert not [name for name in load_model(out).weights if "mtp_heads" in name or "q_mix" in name]
