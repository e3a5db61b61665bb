"""Schemes mixed by role, from training to the submission's script: the artifact is the model that was quantized."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_calibration import quantize

from pgolf.core.tensorfile import load_tensors
from pgolf.stages.model_files import load_model

MIXED = (
    "model.precision=ternary",
    "model.precision.group=32",
    "model.precision.blocks=mlp",
    "model.precision.tables=float",
    "model.precision.scales=float16",
    "model.head_gate=dense",
    "quant.method=by_role",
    "quant.mlp.method=ternary",
    "quant.mlp.group=32",
    "quant.attn.calibration_seqs=8",
    "quant.attn.calibration_seq_len=64",
    "quant.embed.method=row_quantile",
    "quant.embed.keep_numel=0",
    "quant.head.method=sdclip",
    "quant.control.method=int8_rows",
)
"""Three values for MLPs, 6-bit GPTQ for attention, the baseline's 8 bits for the embedding, int8 gates."""


def sets(*assignments: str) -> list[str]:
    """--set for each."""
    return [word for one in assignments for word in ("--set", one)]


@pytest.fixture(scope="module")
def mixed_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two hundred steps with mixed schemes, all the way to the folder of a submission."""
    from harness import run_here

    out = tmp_path_factory.mktemp("mixed") / "run"
    argv = ("run", "--preset", "tiny", "--data", tiny_run / "data", "--out", out, "--until", "package", "--quiet")
    more = ("train.iterations=200", "train.val_every=0", "compress.method=rans")
    run_here(*argv, *sets(*MIXED, *more)).good()
    return out


def test_the_artifacts_loss_is_that_of_the_dequantized_model(mixed_run: Path) -> None:
    coded = load_model(mixed_run / "quantize" / "quantized.safetensors")
    artifact = load_model(mixed_run / "compress" / "model.pgz")
    exact = load_model(mixed_run / "train" / "checkpoint.safetensors")
    ids = torch.randint(0, 512, (4, 65), generator=torch.Generator().manual_seed(1))
    networks = [model.build(torch.device("cpu")) for model in (coded, artifact, exact)]
    losses = [float(network(ids[:, :-1], ids[:, 1:]).detach()) for network in networks]
    assert losses[0] == losses[1] != losses[2]
    for layer in range(2):
        for name in ("fc", "proj"):
            used = [network.get_submodule(f"blocks.{layer}.mlp.{name}").used() for network in networks[1:]]
            assert torch.equal(*used), "three values are stored as they were trained"
    assert artifact.quantized is not None
    forms = {name: type(tensor).__name__ for name, tensor in artifact.quantized.tensors.items()}
    assert forms["blocks.0.mlp.fc.weight"] == "GroupTensor32" and forms["blocks.0.attn.attn_gate_w"] == "QTensor"


def test_score_and_inspection_are_the_same_from_codes_and_artifact(pgolf: Any, mixed_run: Path) -> None:
    """The submission's script has been run alone and compared before it was packaged."""
    coded, artifact = mixed_run / "quantize" / "quantized.safetensors", mixed_run / "compress" / "model.pgz"
    data = ("--data", mixed_run / "data", "--quiet", "--json")
    scores = [pgolf("eval", model, *data).good().document["score"] for model in (coded, artifact)]
    assert scores[0] == scores[1] and (mixed_run / "submission" / "train_gpt.py").is_file()
    assert set(load_tensors(coded, "pgolf.quantized/3")[1]["forms"].values()) == {1, 32}
    document = pgolf("inspect", artifact, "--json").good().document
    stored = {row["tensor"]: row["stored"] for row in document["tensors"]}
    assert stored["blocks.1.mlp.proj.weight"] == "2-bit groups of 32"
    assert stored["blocks.1.attn.c_k.weight"] == "6-bit rows" and stored["tok_emb.weight"] == "8-bit rows"
    assert {"scales of groups", "codes of gates"} <= {row["section"] for row in document["sections"]}


@pytest.mark.slow
def test_a_dry_run_knows_every_scheme(pgolf: Any, mixed_run: Path, tmp_path: Path) -> None:
    model, out = mixed_run / "train" / "checkpoint.safetensors", tmp_path / "q.safetensors"
    argv = ("quantize", model, "--data", mixed_run / "data", "--out", out)
    for more in ((), ("quant.attn.steps=curvature", "quant.attn.rounding=trellis")):
        predicted = pgolf(*argv, *sets(*more), "--dry-run", "--json").good().document
        pgolf(*argv, *sets(*more), "--quiet").good()
        made = pgolf("compress", out, "--out", tmp_path / "model.pgz", "--json").good().document
        assert predicted["total_bytes"] == pytest.approx(made["total_bytes"], rel=0.02)


@pytest.mark.slow
def test_a_budget_is_met_by_the_roles_that_have_steps(pgolf: Any, mixed_run: Path, tmp_path: Path) -> None:
    model, out = mixed_run / "train" / "checkpoint.safetensors", tmp_path / "q.safetensors"
    argv = ("quantize", model, "--data", mixed_run / "data", "--out", out)
    more = sets("quant.attn.steps=curvature", "quant.attn.rounding=trellis", "quant.embed.method=sdclip")
    before = pgolf(*argv, *more, "--dry-run", "--json").good().document["total_bytes"]
    budget = before - 4000
    document = pgolf(*argv, *more, "--budget", budget, "--json").good().document["budget"]
    assert budget - 2000 <= document["total_bytes"] <= budget and set(document["roles"]) == {"embed", "attn"}
    made = pgolf("compress", out, "--out", tmp_path / "model.pgz", "--json").good().document
    assert made["total_bytes"] == document["total_bytes"]
    stored = load_model(out).config.quant
    assert stored.attn.theta == document["roles"]["attn"]["theta"] != 1.0


def test_wrong_mixtures_are_refused(pgolf: Any, tiny_run: Path) -> None:
    argv = (*quantize(tiny_run, "--out", tiny_run / "never.safetensors"), "--set", "quant.method=by_role")
    pgolf(*argv, *sets("quant.mlp.method=by_role")).refused(2, "quant.mlp.method", "one tensor at a time")
    pgolf(*argv, *sets("quant.mlp.method=quinary")).refused(2, "unknown method 'quinary'")
    fixed = [f"quant.{role}.method=float" for role in ("embed", "attn", "mlp", "head")]
    pgolf(*argv, *sets(*fixed), "--budget", 100000).refused(2, "the steps of this quantizer cannot be scaled")
    assert not (tiny_run / "never.safetensors").exists()
