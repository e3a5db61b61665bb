"""The scripts in examples/, run on the tiny preset as far as a machine without GPU and Slurm allows."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples"
SMALL = ["train.iterations=4", "model.vocab_size=400", "quant.calibration_seqs=4"]
"""Settings that make the tiny preset smaller still."""
Runner = Callable[..., subprocess.CompletedProcess[str]]
SCRIPTS = sorted(EXAMPLES.glob("*.sh"))
WORST_BPB = 16.0
"""Far above any model's score."""


@pytest.fixture(scope="session")
def run_example(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Script name and arguments -> the finished process, with this interpreter's pgolf and torchrun found on PATH."""
    tools = tmp_path_factory.mktemp("bin")
    for name, module in (("pgolf", "pgolf"), ("torchrun", "torch.distributed.run")):
        wrapper = tools / name
        wrapper.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m {module} "$@"\n')
        wrapper.chmod(0o755)
    hidden = ("SLURM_", "PYTHONPATH")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    environment |= {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def run(script: str, *arguments: object, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(EXAMPLES / script), *map(str, arguments)]
        return subprocess.run(
            command, cwd=cwd, env=environment | more, capture_output=True, text=True, timeout=300, check=False
        )

    return run


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a space in its name, holding 150 KB of English as short documents."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("examples") / "a place"
    folder.mkdir()
    text = "\n".join(topics[name] for name in sorted(topics))[:150_000]
    parts = [text[start : start + 600] for start in range(0, len(text), 600)]
    (folder / "some text.jsonl").write_text("".join(json.dumps({"text": part}) + "\n" for part in parts))
    return folder


@pytest.fixture(scope="session")
def road(run_example: Runner, workplace: Path) -> Path:
    """The output directory of road.sh."""
    done = run_example("road.sh", "some text.jsonl", "runs/the road", "tiny", *SMALL, cwd=workplace)
    assert done.returncode == 0, done.stderr
    return workplace / "runs" / "the road"


def read(path: Path) -> Any:
    """A JSON document."""
    return json.loads(path.read_text())


def sane_bpb(path: Path) -> float:
    """The score of a document, checked to be one."""
    score = read(path)["score"]
    assert 1.0 < score["bpb"] < WORST_BPB and score["bytes"] > 0 and score["tokens"] > 0
    return float(score["bpb"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_strict_and_explains_itself(script: Path) -> None:
    text = script.read_text()
    code = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert text.startswith("#!/usr/bin/env bash\n#") and os.access(script, os.X_OK)
    assert code.lstrip().startswith("set -euo pipefail\n")
    assert not re.search(r"\btee\b", code)
    assert not re.search(r"(pgolf|torchrun) [^|\n]*(?<!\|)\|(?!\|)", code), "a pipe behind a command hides what it does"
    assert f"examples/{script.name} " in text and "Writes below OUT" in text
    assert script.name in (EXAMPLES / "README.md").read_text()


def test_there_are_all_six() -> None:
    names = {script.stem for script in SCRIPTS}
    assert names == {"road", "requantize_sweep", "baseline_and_leader", "torchrun", "slurm_array", "rented_gpu"}


@pytest.mark.parametrize("script", [script.name for script in SCRIPTS])
def test_without_arguments_a_script_shows_its_usage(script: str, run_example: Runner, tmp_path: Path) -> None:
    done = run_example(script, cwd=tmp_path)
    assert done.returncode == 2 and f"{script} " in done.stderr
    assert not list(tmp_path.iterdir())


def test_road_goes_all_the_way(road: Path) -> None:
    for stage in ("tokenize", "train", "quantize", "compress", "eval", "ttt", "package"):
        assert (road / "logs" / f"{stage}.log").stat().st_size > 0
    claimed = sane_bpb(road / "eval" / "score.json")
    sane_bpb(road / "ttt" / "score.json")
    submission = read(road / "submission" / "submission.json")
    assert submission["val_bpb"] == pytest.approx(claimed)
    assert submission["bytes_total"] == submission["bytes_code"] + (road / "compress" / "model.pgz").stat().st_size
    assert read(road / "train" / "manifest.json")["outputs"]["checkpoint.safetensors"]["figures"]["steps"] == 4


def test_a_failing_middle_stage_ends_the_road(road: Path, run_example: Runner, tmp_path: Path) -> None:
    """Tokenize and train are up to date in the copy; quantize then wants more calibration text than there is."""
    out = tmp_path / "broken road"
    for stage in ("data", "train"):
        shutil.copytree(road / stage, out / stage)
    wrong = [*SMALL, "quant.calibration_seqs=100000"]
    done = run_example("road.sh", "some text.jsonl", out, "tiny", *wrong, cwd=road.parent.parent)
    assert done.returncode == 3
    assert "calibration wants" in done.stderr and "quantize.log" in done.stderr
    assert "nothing to do" in (out / "logs" / "train.log").read_text()
    assert not (out / "quantize" / "quantized.safetensors").exists()
    for later in ("compress", "eval", "ttt", "submission", "logs/compress.log"):
        assert not (out / later).exists()


def test_a_figure_that_is_not_good_enough_ends_the_run(road: Path, run_example: Runner, tmp_path: Path) -> None:
    """Exit code 4 after the stage that --require names, and nothing later is made."""
    given = ["--rehearse", "--data", road / "data", "--out", tmp_path / "out"]
    done = run_example("rented_gpu.sh", *given, "--require", "train.bpb<=0.5", *SMALL, cwd=tmp_path)
    assert done.returncode == 4
    assert "required <=0.5" in done.stderr
    assert read(tmp_path / "out" / "result.json")["error"]["code"] == 4
    assert (tmp_path / "out" / "train" / "checkpoint.safetensors").exists()
    assert not (tmp_path / "out" / "quantize").exists()


def test_sweep_trains_once_and_computes_only_new_cells(road: Path, run_example: Runner, tmp_path: Path) -> None:
    out = tmp_path / "a sweep"

    def sweep(bits: str) -> list[dict[str, Any]]:
        done = run_example("requantize_sweep.sh", road / "data", out, "tiny", bits, "10", *SMALL, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "Pareto front" in done.stdout
        return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]

    first = sweep("4")
    made = (out / first[0]["folder"] / "model.pgz").stat().st_mtime_ns
    both = sweep("4,6")
    assert both[:1] == first
    assert [(row["settings"]["quant.bits"], row["settings"]["quant.k"]) for row in both] == [(4, 10.0), (6, 10.0)]
    for figure in ("artifact_bytes", "entropy_bits"):
        assert both[0]["figures"][figure] < both[1]["figures"][figure]
    for row in both:
        assert row["figures"]["artifact_bytes"] == (out / row["folder"] / "model.pgz").stat().st_size
        assert row["figures"]["bpb"] == sane_bpb(out / row["folder"] / "score.json")
    assert (out / first[0]["folder"] / "model.pgz").stat().st_mtime_ns == made
    assert "nothing to do" in (out / "logs" / "train.log").read_text()
    assert len([*out.glob("shared/hessians_*.safetensors")]) == 1


@pytest.mark.slow
def test_two_presets_train_at_reduced_width(road: Path, run_example: Runner, tmp_path: Path) -> None:
    small = ["model.model_dim=64", "train.iterations=2", "train.val_max_tokens=512", "train.compile=off"]
    small += ["train.seq_len=64", "train.batch_tokens=512", "train.micro_batch_tokens=512"]
    out = tmp_path / "a pair"
    done = run_example("baseline_and_leader.sh", road / "data", out, "1,2", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, averaged in (("baseline", 0), ("leader", 2)):
        runs = [read(out / f"{name}-{seed}" / "manifest.json") for seed in (1, 2)]
        figures = [run["outputs"]["checkpoint.safetensors"]["figures"] for run in runs]
        assert [one["averaged_steps"] for one in figures] == [averaged] * 2
        assert figures[0]["steps"] == figures[1]["steps"] == 2 and figures[0]["bpb"] != figures[1]["bpb"]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "leader" in done.stdout and "BPB" in done.stdout


@pytest.mark.slow
def test_torchrun_trains_with_two_processes(road: Path, run_example: Runner, tmp_path: Path) -> None:
    out = tmp_path / "two"
    done = run_example("torchrun.sh", road / "data", out, 2, "tiny", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = read(out / "manifest.json")["outputs"]["checkpoint.safetensors"]["figures"]
    assert figures["world_size"] == 2 and figures["steps"] == 4 and 1.0 < figures["bpb"] < WORST_BPB
    assert "BPB" in done.stdout and (out / "checkpoint.safetensors").stat().st_size > 0


@pytest.mark.slow
def test_slurm_job_runs_by_its_index(road: Path, run_example: Runner, tmp_path: Path) -> None:
    done = run_example("slurm_array.sh", "--index", 1, road / "data", "seeds", "tiny", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "seeds" / "seed_42"
    document = read(folder / "result.json")
    assert [row["stage"] for row in document["stages"]] == ["tokenize", "train", "quantize", "compress", "eval"]
    assert document["stages"][-1]["figures"]["bpb"] == sane_bpb(folder / "eval" / "score.json")
    resolved = read(folder / "train" / "manifest.json")["outputs"]["checkpoint.safetensors"]["resolved"]
    assert resolved["train"]["seed"] == 42
    assert (folder / "compress" / "model.pgz").stat().st_size > 0


@pytest.mark.parametrize("index", ["3", "x", ""])
def test_slurm_job_refuses_an_index_without_a_seed(index: str, run_example: Runner, tmp_path: Path) -> None:
    done = run_example("slurm_array.sh", "data", cwd=tmp_path, SLURM_ARRAY_TASK_ID=index)
    assert done.returncode == 2 and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_rented_machine_rehearses_without_gpu(road: Path, run_example: Runner, tmp_path: Path) -> None:
    done = run_example("rented_gpu.sh", "--rehearse", "--data", road / "data", "--out", "out", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = read(tmp_path / "out" / "result.json")
    assert document["stages"][-1]["stage"] == "package"
    assert 0 < document["stages"][-1]["figures"]["total_bytes"] < 16_000_000
    for log in ("doctor", "plan", "run"):
        assert (tmp_path / "out" / "logs" / f"{log}.log").stat().st_size > 0
    assert not (tmp_path / "out" / "venv").exists()


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has an NVIDIA driver")
def test_rented_machine_without_gpu_is_refused_at_once(run_example: Runner, tmp_path: Path) -> None:
    done = run_example("rented_gpu.sh", "--data", "shards", cwd=tmp_path)
    assert done.returncode == 5 and "nvidia-smi" in done.stderr
