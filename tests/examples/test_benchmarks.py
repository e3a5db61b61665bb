"""Every benchmark runs at its smallest setting and prints the document it promises. No timing is asserted."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretended_gpu import pretended_gpu
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.floors import Hardware, Work
from benchmarks.step_parts import Parts, half_of, pairs_seen
from benchmarks.train_speed import DOCUMENT_SPREAD, Bench, document_ids, part_rows, real_shards
from pgolf.config.load import resolve
from pgolf.core.dist import World, join_world
from pgolf.core.model.attend import seen
from pgolf.core.train.loop import start_state
from pgolf.report.watch.flops import linear_flops

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = ("__init__", "report", "ideal_coder", "errors", "floors", "step_parts")
GOLDEN = ROOT / "tests" / "golden" / "formats_v1"
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in SHARED)
SMALLEST = {
    "startup": ["--rounds", "1"],
    "train_speed": [
        *("--preset", "leader_tiny", "--steps", "1", "--rounds", "1", "--threads", "1", "--schedule"),
        *("--muon", "leader_tiny", "--eager", "--parts"),
    ],
    "checkpoint_cost": ["--steps", "1", "--rounds", "1"],
    "loader_speed": [
        "--shards",
        "2",
        "--shard-tokens",
        "20000",
        "--tokens",
        "1024",
        "--seq-len",
        "64",
        "--rounds",
        "1",
    ],
    "codec_overhead": ["--rows", "64", "--columns", "64", "--steps", "0.8", "0.06"],
    "decoder_bytes": ["--preset", "tiny", "--codecs", "rans"],
    "fuzz_artifacts": ["--rounds", "600"],
    "soak": ["--minutes", "0.05", "--seed", "3"],
    "codecs": ["--preset", "tiny", "--codecs", "rans", "zlib", "--check"],
    "size_prediction": ["--presets", "tiny", "--quantizers", "sdclip int6", "--codecs", "zlib", "brotli"],
    "kernels": ["--tokens", "256", "--vocab", "1024", "--widths", "64", "--rounds", "1"],
    "ablate": ["--steps", "2", "--seeds", "1", "--targets", "256", "--jobs", "1", "--only", "model.xsa xsa"],
    "tokenize_speed": ["--megabytes", "0.05", "--vocab-size", "400", "--rounds", "1"],
    "quantizer_speed": ["--preset", "tiny", "--rounds", "1"],
    "sweep_cell": ["--preset", "tiny", "--threads", "1", "--ways", "gptq", "8 states"],
    "budget": ["--preset", "tiny", "--method", "sdclip", "--bytes", "70000"],
    "evaluation": [
        *("--model", str(GOLDEN / "checkpoint.safetensors"), "--data", str(GOLDEN / "data"), "--targets", "200"),
        *("--window", "48", "--stride", "24", "--set", "ttt.chunk_tokens=64"),
    ],
    "stored_counts": [
        *("--checkpoint", str(GOLDEN / "checkpoint.safetensors"), "--data", str(GOLDEN / "data"), "--targets", "1200"),
        *("--seq-len", "48", "--stride", "24", "--entries", "50", "--shares", "0", "0.1"),
    ],
    "eval_speed": [
        *("--preset", "tiny", "--window", "64", "--stride", "32", "--targets", "200", "--ngram-tokens", "4000"),
        *("--rounds", "1", "--cache-tokens", "2000"),
    ],
    "quantization": [
        *("--checkpoint", str(GOLDEN / "checkpoint.safetensors"), "--data", str(GOLDEN / "data"), "--rates", "4"),
        *(
            "--targets",
            "256",
            "--seq-len",
            "32",
            "--calibration-seqs",
            "8",
            "--methods",
            "a,b4r,c,ct,g,k,ds,ks",
            "--ttt",
            "512",
        ),
    ],
    "test_time_training": [
        *("--checkpoint", str(GOLDEN / "checkpoint.safetensors"), "--data", str(GOLDEN / "data"), "--targets", "1200"),
        *("--seq-len", "48", "--stride", "24"),
    ],
}
RIVALS = {"lrzip", "zpaq"}
"""Columns that stand only where these programs are installed."""
KEYS = {
    "evaluation": {"method", "BPB", "gain", "se", "seconds", "kind", "documents"},
    "stored_counts": {"order", "entries", "bytes", "share", "gain", "se"},
    "eval_speed": {
        *("measure", "min_s", "median_s", "tokens_per_s", "over_the_loop", "over_the_last", "peak_mib"),
        "bytes_per_token",
    },
    "startup": {"command", "min_s", "median_s", "over_bare_python", "over_import_torch"},
    "train_speed": {"what", "times", "floor_s", "min_s", "median_s", "tokens_per_s", "ratio", "against"},
    "checkpoint_cost": {"preset", "MB", "every", "step_s", "waits_s", "written_s", "lost_s", "share_percent"},
    "loader_speed": {"loader", "prefetch", "min_s", "median_s", "tokens_per_s", "over_model"},
    "codec_overhead": {
        "step",
        "codec",
        "entropy_bits",
        "bits_per_weight",
        "over_entropy",
        "in_sizing_py",
        "matches",
        "encode_s",
    },
    "decoder_bytes": {"codec", "packed", "over_store", "decoder"},
    "soak": {"fault", "times", "exit codes"},
    "fuzz_artifacts": {"damage", "rounds", "refused", "identical", "wrong", "crashed"},
    "codecs": {
        "file",
        "role",
        "codes",
        "entropy",
        "entropy_by_matrix",
        "rans",
        "zlib",
        "encode_s",
        "decode_s",
        "rans_over_entropy",
        "rans_over_best_rival",
    },
    "size_prediction": {
        "preset",
        "quantizer",
        "codec",
        "parameters",
        "predicted_bytes",
        "actual_bytes",
        "predicted_over_actual",
        "within_stated_interval",
    },
    "kernels": {"what", "way", "min_s", "median_s", "over_eager", "peak_mb"},
    "ablate": {"technique", "bpb", "gain", "standard_error", "time", "parameters_percent", "artifact_bytes_added"},
    "quantizer_speed": {"way", "s", "over_gptq"},
    "sweep_cell": {"way", "read_s", "solve_s", "write_s", "cell_s", "over_gptq", "peak_MB", "artifact_bytes"},
    "budget": {"role", "theta", "code_bytes", "worth"},
    "quantization": {
        *("model", "bits", "method", "what", "bytes", "b/w", "KL", "ratio", "gap", "se", "gap ratio", "s"),
        *("ttt gap", "ttt se", "ttt ratio"),
    },
    "tokenize_speed": {"what", "min_s", "median_s", "mb_per_s", "over_encode"},
    "test_time_training": {
        *("method", "BPB", "gain", "± gain", "by learning", "± by learning", "seconds", "label", "each document alone"),
    },
}


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A benchmark as the README says to run it."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def document(name: str, *arguments: str) -> dict[str, Any]:
    """What a benchmark prints under --json."""
    done = run(name, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_every_benchmark_is_tested_and_explained() -> None:
    assert set(NAMES) == set(SMALLEST) == set(KEYS)
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    assert all(f"python -m benchmarks.{name}" in readme for name in NAMES)


ON_GPU = pytest.param(
    "kernels",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_benchmark_of_kernels_says_what_it_needs() -> None:
    done = run("kernels")
    assert done.returncode == 5 and not done.stdout
    assert done.stderr.startswith("error: this benchmark needs a CUDA device")


SLOW = (
    *("quantization", "soak", "fuzz_artifacts", "decoder_bytes", "ablate", "startup", "test_time_training"),
    *("tokenize_speed", "stored_counts", "sweep_cell"),
)
ON_CPU = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in NAMES if name != "kernels"]


@pytest.mark.parametrize("name", [*ON_CPU, ON_GPU])
def test_benchmark_prints_its_document(name: str) -> None:
    result = document(name, *SMALLEST[name])
    assert result["schema"] == "pgolf.benchmark/1" and result["benchmark"] == name
    assert result["machine"]["cpus"] == os.cpu_count()
    assert result["rows"] and all(set(row) - RIVALS == KEYS[name] for row in result["rows"])
    for row in result["rows"]:
        signed = ("gap", "gap ratio", "ttt gap", "ttt ratio", "gain", "by learning")
        values = [value for key, value in row.items() if key not in signed and not isinstance(value, bool)]
        numbers = [value for value in values if isinstance(value, float | int)]
        assert all(value >= 0 for value in numbers)
    check = CHECKS.get(name)
    if check:
        check(result["rows"])


def check_codecs(rows: list[dict[str, Any]]) -> None:
    """No codec beats the entropy of independent codes, and none stores more than a little over a byte each."""
    assert {row["codec"] for row in rows} == {"brotli", "lzma", "rans", "zlib", "zstd"}
    assert all(row["entropy_bits"] < row["bits_per_weight"] < 8.5 for row in rows)


def check_sizes(rows: list[dict[str, Any]]) -> None:
    """Even at this size the prediction is of the right kind."""
    assert all(0.8 < row["predicted_over_actual"] < 1.2 for row in rows)


def check_quantizers(rows: list[dict[str, Any]]) -> None:
    """All methods at about the same bytes, and the yardstick is one."""
    sizes = [row["bytes"] for row in rows]
    assert max(sizes) < 1.02 * min(sizes)
    assert all(0 < row["KL"] < 1e-3 for row in rows), "a model that has hardly been trained loses little"
    (yardstick,) = (row for row in rows if row["method"] == "c")
    assert yardstick["ratio"] == yardstick["gap ratio"] == 1 and 3.9 < yardstick["b/w"] < 4.1


def check_decoder(rows: list[dict[str, Any]]) -> None:
    """pgolf's own decoder adds at most 3,000 bytes to a script."""
    assert all(0 < row["decoder"] <= 3000 and row["decoder"] < row["over_store"] for row in rows)


def check_mutants(rows: list[dict[str, Any]]) -> None:
    """Every mutant was read, none as something else, none with a crash."""
    assert rows[-1]["rounds"] == 600 and all(row["wrong"] == row["crashed"] == 0 for row in rows)
    assert all(row["refused"] + row["identical"] == row["rounds"] for row in rows)


def check_counts(rows: list[dict[str, Any]]) -> None:
    """Counts that weigh nothing gain nothing, others change the score."""
    assert {row["order"] for row in rows} == {4, 6} and all(0 < row["entries"] <= 50 for row in rows)
    assert all((row["gain"] == row["se"] == 0) == (row["share"] == 0) for row in rows)


def check_adaptation(rows: list[dict[str, Any]]) -> None:
    """Every method scores in its own way, and only what learns is called adaptive."""
    assert len({row["BPB"] for row in rows}) > 8
    plain = rows[0]
    assert (plain["method"], plain["gain"], plain["label"]) == ("plain", 0, "fixed")
    for row in rows:
        assert (row["label"] == "adaptive") == (row["method"].split(",")[0].split()[0] in ("chunk", "lora", "phased"))


def check_evaluation(rows: list[dict[str, Any]]) -> None:
    """Every method scores the same targets, plain first."""
    assert rows[0]["method"] == "plain" and rows[0]["gain"] == 0.0
    for row in rows:
        assert abs(rows[0]["BPB"] - row["gain"] - row["BPB"]) < 3e-5


def check_budget(rows: list[dict[str, Any]]) -> None:
    """No role's bytes are worth much more than another's."""
    assert {row["role"] for row in rows} == {"embed", "attn", "mlp"}
    assert max(row["worth"] for row in rows) < 1.25 * min(row["worth"] for row in rows)


def check_parts(rows: list[dict[str, Any]]) -> None:
    """Every part of a step is there with its floor, beside the whole loop."""
    found = {row["what"]: row for row in rows}
    assert {"bare steps, eager", "pgolf's loop, eager", "phase optimizer"} <= set(found)
    parts = {name.removeprefix("part "): row for name, row in found.items() if name.startswith("part ")}
    passes = ("6 blocks, loop off", "10 blocks, loop on")
    inner = [f"{part}, {one}" for one in passes for part in ("whole model", "attention", "MLP")]
    assert set(parts) == {*inner, "head and loss", "optimizer", "loader", *(f"all else, {one}" for one in passes)}
    for name, row in parts.items():
        if name.startswith("all else"):
            assert row["times"] == row["floor_s"] == 0 and row["ratio"] <= 1
            continue
        assert row["times"] == 1 and row["floor_s"] > 0 and row["min_s"] > 0
        assert row["against"] == f"the floor, bound by {'memory' if name == 'loader' else 'arithmetic'}"


CHECKS = {
    "train_speed": check_parts,
    "budget": check_budget,
    "evaluation": check_evaluation,
    "quantization": check_quantizers,
    "codec_overhead": check_codecs,
    "size_prediction": check_sizes,
    "decoder_bytes": check_decoder,
    "fuzz_artifacts": check_mutants,
    "test_time_training": check_adaptation,
    "stored_counts": check_counts,
}


def test_random_ids_come_in_documents_of_the_stated_lengths() -> None:
    ids = document_ids(400_000, 512, 1, 100, np.random.default_rng(0))
    lengths = np.diff(np.flatnonzero(ids == 1))
    assert len(ids) == 400_000 and ids[0] == 1 and set(np.unique(ids)) == set(range(512))
    assert 95 < np.median(lengths) < 105 and lengths.min() >= 2
    assert DOCUMENT_SPREAD * 0.95 < np.log(lengths).std() < DOCUMENT_SPREAD * 1.05


@pytest.fixture(scope="module")
def step() -> Parts:
    """The parts of a step of a model in which all kinds of layers are."""
    changes = ["model.window=sliding", "model.window.tokens=15", "train.attention=reference"]
    config = resolve("leader_tiny", changes).config
    shards = [document_ids(5000, 512, 1, 30, np.random.default_rng(0))]
    state = start_state(config.model, config.train, config.optim, shards, 0, World())
    return Parts(state, config.train, state.model, False)


@pytest.mark.parametrize("number", [0, 1])
def test_pairs_of_queries_and_keys_are_counted_as_attention_sees_them(step: Parts, number: int) -> None:
    model, plan = step.model, step.model.plans[number]
    windows = [min((r for p in model.acting[one.layer] if (r := p.reach(1024))), default=0) for one in plan]
    segments = model.config.documents.segments(step.ids)
    assert set(windows) == {0, 15} and int(segments.max()) > 20
    expected = sum(int(seen(window, segments, step.ids, {}).sum()) for window in windows)
    assert pairs_seen(model, step.ids, plan) == expected


def test_halves_of_blocks_are_what_they_are_called(step: Parts) -> None:
    """Only a half's own parameters have gradients, and torch counts its products as its floor does."""
    model = step.model
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("attn.proj.weight", "mlp.proj.weight")):
                weight.normal_(0.0, 0.02)
    for role, other in (("attn", "mlp"), ("mlp", "attn")):
        forward = half_of(model, role, model.plans[0])
        with FlopCounterMode(display=False) as counted:
            y = forward(step.x, step.ids, None)
        torch.autograd.backward(y, step.grad_x)
        changed = [name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()]
        assert any(f".{role}." in name for name in changed) and not any(f".{other}." in name for name in changed)
        step.reset(False)
        linear = linear_flops(model.config, False)[role] * step.tokens
        attention = 4 * 64 * step.tokens**2 * len(model.plans[0]) if role == "attn" else 0
        assert counted.get_total_flops() == pytest.approx(linear + attention, rel=0.02)


def test_parts_are_timed_on_a_gpu_beside_its_data_sheet(tmp_path: Path) -> None:
    """On one that is pretended: tensors are where they belong, and the floors are the H100's."""
    options = Namespace(steps=1, rounds=1, data="", document_tokens=30)
    with pretended_gpu():
        config = resolve("tiny", ["train.micro_batch_tokens=512", "train.attention=sdpa"]).config
        rows = {row["what"]: row for row in part_rows(Bench(config, tmp_path, join_world("cuda"), options, False))}
    whole, loader = rows["part whole model, 2 blocks, loop off"], rows["part loader"]
    # A weight of a map is read twice and its gradient written; of the table, in one half of the bytes.
    weights = 3 * (4 * (2 * (64 * 64 * 2 + 64 * 32 * 2 + 2 * 64 * 128)) + 2 * 512 * 64)
    moved = 512 * 64 * 2 * (4 * 2 * 2 + 2) + weights
    assert whole["times"] == loader["times"] == 2 and whole["against"] == "the floor, bound by memory"
    assert whole["floor_s"] == pytest.approx(2 * moved / 3.35e12, rel=1e-3)
    assert loader["floor_s"] == pytest.approx(2 * 2 * 512 * 8 / 64e9)
    assert loader["against"] == "the floor, bound by host link"


def test_real_ids_are_those_of_a_folder(tmp_path: Path) -> None:
    config = resolve("tiny", ["model.vocab_size=300"]).config
    (ids,) = real_shards(GOLDEN / "data", config)
    assert len(ids) > 1000 and int(ids.max()) < 300
    with pytest.raises(SystemExit, match="has no training shards"):
        real_shards(tmp_path, config)


def test_a_floor_is_the_longer_of_arithmetic_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hardware, "name", "NVIDIA H200")
    hardware = Hardware(device=torch.device("cpu"))
    product = Work(flops=989e12, product=(8, 8, 8), half=True, moved=1.2e12)
    assert hardware.floor(product) == (1.0, "arithmetic")
    assert hardware.floor(replace(product, moved=9.6e12)) == (2.0, "memory")
    assert hardware.floor(Work(carried=64e9, moved=64e9)) == (1.0, "host link")
    assert hardware.floor(Work(sent=45e9, moved=45e9)) == (0.1, "peer link")
    measured = hardware.floor(replace(product, flops=1e6, half=False, moved=0.0))
    assert measured[1] == "arithmetic" and measured[0] > 1e6 / 989e12


def test_a_table_is_printed_without_json() -> None:
    done = run("codec_overhead", "--rows", "32", "--columns", "32", "--steps", "0.8", "--codecs", "zlib")
    assert done.returncode == 0 and "bits_per_weight" in done.stdout and "0.8" in done.stdout


TABLE = """Before.

| method | BPB | gain | se | seconds | predictor | documents |
| --- | ---: | ---: | ---: | ---: | --- | --- |
| plain | 2.0000 | - | - | 21 | fixed | in a row |
| sliding | 1.9000 | +0.1000 | 0.0007 | 61 | fixed | in a row |
| ttt chunk | 1.8000 | +0.2000 | 0.0036 | 323 | adaptive | in a row |

After."""


def test_rows_join_the_table_of_a_document() -> None:
    from benchmarks.evaluation import joined

    def row(name: str, bpb: Any) -> dict[str, Any]:
        gain = 2 - bpb if isinstance(bpb, float) else "-"
        rest = {"se": 0.00123, "seconds": 7.4, "kind": "fixed", "documents": "alone"}
        return {"method": name, "BPB": bpb, "gain": gain, **rest}

    order = ["plain", "sliding", "sliding + temperature fixed", "ttt chunk", "ttt lora"]
    rows = [row("plain", 2.00001), row("ttt lora", 1.75), row("sliding + temperature fixed", 1.95), row("x", "-")]
    text = joined(TABLE, rows, order)
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert [line.split("|")[1].strip() for line in lines] == order
    assert lines[4] == "| ttt lora | 1.7500 | +0.2500 | 0.0012 | 7 | fixed | alone |"
    assert [lines[0], lines[1], lines[3]] == [line for line in TABLE.splitlines() if line.startswith("|")][2:]
    assert text.startswith("Before.\n") and text.endswith("\nAfter.")
    again = joined(text, [row("plain", 2.0), row("sliding", 1.5)], order)
    assert "| sliding | 1.5000 | +0.5000 |" in again and again.count("| sliding |") == 1
    with pytest.raises(SystemExit, match=r"plain score is 2\.0000, now it is 2\.1000"):
        joined(TABLE, [row("plain", 2.1), row("ttt lora", 1.75)], order)
    with pytest.raises(SystemExit, match="no table"):
        joined("Nothing.", rows, order)


def test_pairs_are_of_parts_of_a_model_and_bytes_of_what_is_stored() -> None:
    from benchmarks.ablate import best_parts, bytes_added
    from pgolf.config.describe import measured

    rows = [
        {"technique": name} for name in ("train.loader shuffled", "model.a b", "baseline", "mlp.mult 3", "model.c d")
    ]
    assert best_parts(rows, 1) == ["model.a b"] and best_parts(rows, 5) == ["model.a b", "model.c d"]
    found = measured()
    best = best_parts([{"technique": name} for name in found["techniques"]], 5)
    assert {one for pair in found["pairs"] for one in pair.split(" + ")} == set(best)
    for name, row in {**found["techniques"], **found["settings"], **found["pairs"]}.items():
        assert row["artifact_bytes_added"] == bytes_added(name, 1024), name
    assert found["techniques"]["optim.matrix normuon"]["artifact_bytes_added"] == 0
    assert found["techniques"]["model.precision ternary"]["artifact_bytes_added"] < -50_000
