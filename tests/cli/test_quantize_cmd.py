"""pgolf quantize: what a budget counts, what a dry run foretells, and errors that name what they are about."""

from pathlib import Path
from typing import Any

import pytest
from harness import Result
from test_calibration import CURVED, calibrated, quantize

from pgolf.config.load import resolve
from pgolf.config.tree import to_values
from pgolf.core.errors import ConfigError
from pgolf.core.tensorfile import load_tensors, save_tensors
from pgolf.stages.calibrate import CALIBRATION_SCHEMA
from pgolf.stages.model_files import CHECKPOINT_SCHEMA

__all__ = ["calibrated"]

BROTLI = ("--set", "compress.method=brotli")


def checkpoint(run: Path) -> Path:
    """That of a finished run."""
    return run / "train" / "checkpoint.safetensors"


@pytest.fixture(scope="module")
def imported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as if it had been imported: it does not say whose tokens it reads."""
    path = tmp_path_factory.mktemp("imported") / "checkpoint.safetensors"
    tensors, meta, _ = load_tensors(checkpoint(tiny_run), CHECKPOINT_SCHEMA)
    save_tensors(path, tensors, meta | {"tokenizer_sha256": ""})
    return path


def test_a_budget_counts_the_tokenizers_hash_of_the_data(
    pgolf: Any, tiny_run: Path, imported: Path, tmp_path: Path
) -> None:
    out = tmp_path / "q.safetensors"
    argv = ("quantize", imported, "--data", tiny_run / "data", "--out", out, "--quiet", *BROTLI)
    found = pgolf(*argv, "--budget", "50000", "--json").good().document["budget"]
    made = pgolf("compress", out, "--out", tmp_path / "model.pgz", "--json").good().document
    assert made["total_bytes"] == found["total_bytes"] <= 50_000
    plain = (*argv, "--set", "quant.method=sdclip")
    predicted = pgolf(*plain, "--dry-run", "--json").good().document
    pgolf(*plain).good()
    made = pgolf("compress", out, "--out", tmp_path / "model.pgz", "--json").good().document
    sizes = ("artifact_bytes", "code_bytes")
    assert [predicted[name] for name in sizes] == [made[name] for name in sizes], "rounding to nearest foretells itself"


def test_matrices_in_turn_lose_less(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    """With the calibration's tokens, whose reading counts as training; at no more bytes."""
    size = ("--set", "quant.calibration_seqs=128", "--calibration", tmp_path / "kept.safetensors")
    pgolf(*quantize(tiny_run, "--calibrate-only", *size)).good()
    argv = quantize(tiny_run, "--json", *size, *CURVED[:-1], "quant.bits_per_weight=2")
    turn, out = ("--set", "quant.sequential=true"), tmp_path / "q.safetensors"
    usual, better = (pgolf(*argv, *sets, "--out", out).good().document for sets in ((), turn))
    assert better["kl_bpb"] < 0.95 * usual["kl_bpb"] and better["entropy_bits"] < 1.02 * usual["entropy_bits"]
    assert better["sequential"]["tokens"] == 8192 and "sequential" not in usual
    assert "last_training_token" not in usual
    spent, read = better["sequential"]["seconds"], better["last_training_token"]["elapsed_s"]
    trained = load_tensors(checkpoint(tiny_run), CHECKPOINT_SCHEMA)[1]["figures"]["train_seconds"]
    assert read == pytest.approx(trained + spent, abs=0.01)
    refused = quantize(tiny_run, "--out", out, "--set", "quant.method=lqer", *turn)
    pgolf(*refused).refused(2, "quant.sequential", "not in turn")


def test_a_budget_is_met_anew_when_the_script_is_another(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.safetensors"
    other = ("--set", "package.claim=ttt")
    argv = (*quantize(tiny_run, "--out", out, "--json"), *BROTLI, "--set", "quant.method=sdclip")
    assert not pgolf(*argv).good().document["fresh"]
    assert pgolf(*argv, *other).good().document["fresh"], "without a budget no script is counted"
    first = pgolf(*argv, "--budget", "50000").good().document
    again = pgolf(*argv, *other, "--budget", "50000").good().document
    assert not first["fresh"] and not again["fresh"]
    made = pgolf("compress", out, "--out", tmp_path / "model.pgz", "--json").good().document
    assert made["total_bytes"] == again["budget"]["total_bytes"] <= 50_000
    assert pgolf(*argv, *other, "--budget", "50000").good().document["fresh"]


def test_a_dry_run_refuses_a_calibration_as_quantizing_does(
    pgolf: Any, tiny_run: Path, calibrated: Path, tmp_path: Path
) -> None:
    other, out = tmp_path / "other.safetensors", tmp_path / "q.safetensors"
    tensors, meta, _ = load_tensors(calibrated, CALIBRATION_SCHEMA)
    save_tensors(other, tensors, meta | {"checkpoint_sha256": "f" * 64})
    for sets in (CURVED, ()):
        argv = quantize(tiny_run, "--out", out, "--calibration", other, *sets)
        said = [pgolf(*argv, *more).refused(3, "checkpoint_sha256 is ffff") for more in ((), ("--dry-run",))]
        assert said[0] == said[1]
    result = pgolf(*quantize(tiny_run, "--out", out, "--calibration", other, *CURVED, "--dry-run", "--force")).good()
    assert "has no calibration to plan by" in result.err


def test_a_dry_run_without_a_calibration_says_that_it_is_rough(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    argv = quantize(tiny_run, "--out", tmp_path / "q.safetensors", "--dry-run", "--json")
    assert pgolf(*argv).good().document["warnings"] == [], "steps by row need none"
    (text,) = pgolf(*argv, *CURVED).good().document["warnings"]
    assert "hessians.safetensors has no calibration to plan by" in text


@pytest.mark.parametrize(
    "sets",
    [
        ("quant.theta=4",),
        ("quant.steps=curvature", "quant.bits_per_weight=2.5"),
        ("quant.rounding=trellis", "quant.bits_per_weight=2.5"),
        ("quant.steps=curvature", "quant.rounding=trellis", "quant.bits_per_weight=2.5"),
    ],
)
def test_a_dry_run_knows_how_wide_coarse_codes_get(
    pgolf: Any, tiny_run: Path, calibrated: Path, tmp_path: Path, sets: tuple[str, ...]
) -> None:
    """Compensation, and a trellis, make codes of two and a half bits wider than rounding to nearest does."""
    out, model = tmp_path / "q.safetensors", tmp_path / "model.pgz"
    argv = quantize(tiny_run, "--out", out, "--calibration", calibrated, "--json", "--set", "quant.max_gap=0")
    more = [word for one in sets for word in ("--set", one)]
    predicted = pgolf(*argv, *more, "--dry-run").good().document
    bits = pgolf(*argv, *more).good().document["entropy_bits"]
    made = pgolf("compress", out, "--out", model, "--json").good().document
    assert 2.3 < bits < 2.9 and predicted["warnings"] == []
    assert predicted["artifact_bytes"] == pytest.approx(made["artifact_bytes"], rel=0.02)


@pytest.mark.parametrize("part", ["", "mlp."])
def test_bits_that_codes_cannot_have_are_told(
    pgolf: Any, tiny_run: Path, calibrated: Path, tmp_path: Path, part: str
) -> None:
    argv = quantize(tiny_run, "--out", tmp_path / "q.safetensors", "--json")
    argv += () if part else ("--calibration", calibrated)
    sets = ["quant.method=by_role", "quant.attn.method=sdclip", "quant.embed.method=sdclip"] if part else []
    sets += [f"quant.{part}steps=curvature", "quant.max_gap=0"]
    few, many = (
        pgolf(*argv, *(word for one in (*sets, f"quant.{part}bits_per_weight={bits}") for word in ("--set", one)))
        for bits in (4, 9)
    )
    assert few.good().document["warnings"] == []
    (text,) = many.good().document["warnings"]
    assert text.startswith(f"quant.{part}bits_per_weight=9 cannot be had: codes of 8 bits have ")


def test_coarse_layers_are_layers_of_the_model(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    argv = quantize(tiny_run, "--out", tmp_path / "q.safetensors")
    for method, key in (("coarse_layers", "quant."), ("by_role", "quant.mlp.")):
        sets = ["--set", f"quant.method={method}", "--set", f"{key}layers=0,4"]
        sets += ["--set", f"{key}method=coarse_layers"] if method == "by_role" else []
        for more in ((), ("--dry-run",)):
            pgolf(*argv, *sets, *more).refused(2, f"{key}layers", "there is no 4")
    chosen = ["quant.method=coarse_layers", "quant.layers=0,4"]
    with pytest.raises(ConfigError, match="there is no 4"):
        resolve("tiny", chosen)
    stored = to_values(resolve("tiny").config) | {"quant": {"method": "coarse_layers", "layers": "0,4"}}
    kept: Any = resolve(stored=stored).config.quant
    assert kept.layers == "0,4", "a file of before, in which it had no effect, is read"


def test_a_calibration_has_no_budget(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    argv = quantize(tiny_run, "--out", tmp_path / "q.safetensors", "--calibrate-only", "--budget", 100_000)
    pgolf(*argv).refused(2, "--budget", "has no bytes to fit")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["sdclip", "gptq"])
def test_a_giant_outlier_is_named(pgolf: Any, tiny_run: Path, tmp_path: Path, method: str) -> None:
    path, name = tmp_path / "checkpoint.safetensors", "blocks.1.mlp.fc.weight"
    tensors, meta, _ = load_tensors(checkpoint(tiny_run), CHECKPOINT_SCHEMA)
    tensors[name][3, 2] = -1e9
    save_tensors(path, tensors, meta)
    argv = ("quantize", path, "--data", tiny_run / "data", "--out", tmp_path / "q.safetensors", "--quiet")
    sets = ("--set", f"quant.method={method}", "--set", "quant.max_gap=0")
    for more in ((), ("--dry-run",)):
        pgolf(*argv, *sets, *more).refused(3, "too large for a float16 scale", f"{name}, row 3, which has -1e+09")


def test_several_ranks_only_calibrate(tiny_run: Path, tmp_path: Path, spawn: Any) -> None:
    ranks = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    argv = quantize(tiny_run, "--out", tmp_path / "q.safetensors")
    done: Result = spawn(*argv, env=ranks)
    done.refused(2, "pgolf quantize is one process", "torchrun", "--calibrate-only")
    assert not list(tmp_path.iterdir())


def test_what_compress_warns_of_is_in_its_document(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    source, out = tiny_run / "quantize" / "quantized.safetensors", tmp_path / "model.pgz"
    result = pgolf("compress", source, "--out", out, "--json", *BROTLI, "--set", "package.cap_bytes=1000").good()
    (text,) = result.document["warnings"]
    assert f"warning: {text}\n" in result.err and "over the cap" in text
