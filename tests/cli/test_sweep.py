"""pgolf sweep on the tiny preset: rows, what is skipped, failures, interruptions, pictures."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from harness import Result, command, run_here, tree

from pgolf.sweep.cell import run_cell
from pgolf.sweep.table import rows_of

PLAIN = ("--set", "eval.method=plain")
JOBS = ("--jobs", "2")


def sweep(*argv: object) -> Result:
    """pgolf sweep, two cells at once, quiet."""
    return run_here("sweep", *argv, *JOBS, "--quiet")


def rows_by(document: dict[str, Any], *keys: str) -> dict[Any, dict[str, Any]]:
    """The rows of a result by their settings."""
    return {tuple(row["settings"][key] for key in keys): row for row in document["rows"]}


@pytest.fixture(scope="module")
def trained(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A sweep of two rates and two seeds, its directory and its JSON."""
    out = tmp_path_factory.mktemp("sweeps") / "train"
    done = sweep("train", tiny_run / "data", "--out", out, "--preset", "tiny", *RATES, "--json").good()
    return out, done.document


RATES = ("--set", "train.iterations=6", "--set", "optim.matrix.lr=0.02,0.04", "--seeds", "1,2")


@pytest.fixture(scope="module")
def quantized(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A list of three cells of one checkpoint, with a picture."""
    out = tmp_path_factory.mktemp("sweeps") / "quantize"
    grid = out.parent / "grid.toml"
    cells = (("4", "zlib"), ("4", "brotli"), ("6", "brotli"))
    grid.write_text("".join(f'[[cell]]\nquant.bits = {bits}\ncompress.method = "{name}"\n' for bits, name in cells))
    done = sweep(*quantize_command(tiny_run, out), "--grid", grid, "--json").good()
    return out, done.document


def quantize_command(run: Path, out: Path) -> tuple[object, ...]:
    """The words that every sweep over the tiny checkpoint has in common."""
    model = run / "train" / "checkpoint.safetensors"
    return ("quantize", model, "--data", run / "data", "--out", out, "--eval", "plain", "--tokens", 3000)


def test_training_runs_have_rows_and_statistics(trained: tuple[Path, dict[str, Any]]) -> None:
    out, document = trained
    assert (document["schema"], document["cells"], document["computed"]) == ("pgolf.sweep/1", 4, 4)
    rows = rows_by(document, "optim.matrix.lr", "train.seed")
    assert set(rows) == {(rate, seed) for rate in (0.02, 0.04) for seed in (1, 2)}
    for (rate, seed), row in rows.items():
        entry = json.loads((out / row["folder"] / "manifest.json").read_text())["outputs"]["checkpoint.safetensors"]
        assert row["figures"]["bpb"] == entry["figures"]["bpb"] and row["figures"]["steps"] == 6
        assert (entry["resolved"]["optim"]["matrix"]["lr"], entry["resolved"]["train"]["seed"]) == (rate, seed)
    assert len({row["figures"]["bpb"] for row in rows.values()}) == 4
    best, worst = document["groups"][0]["configurations"]
    for mean in (best, worst):
        scores = [rows[mean["settings"]["optim.matrix.lr"], seed]["figures"]["bpb"] for seed in (1, 2)]
        assert mean["mean_bpb"] == pytest.approx(sum(scores) / 2)
        assert mean["std_bpb"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
        assert mean["n"] == 2 and sorted(mean["seeds"]) == [1, 2]
    assert worst["behind_bpb"] == pytest.approx(worst["mean_bpb"] - best["mean_bpb"])


def test_a_run_that_lost_its_row_is_not_trained_again(trained: tuple[Path, dict[str, Any]], tiny_run: Path) -> None:
    """The last row is torn as a crash leaves it; the finished run behind it is only looked at."""
    out, _ = trained
    table = out / "results.jsonl"
    whole = rows_of(table)
    table.write_bytes(table.read_bytes()[:-50])
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/checkpoint.safetensors")}
    given = ("train", tiny_run / "data", "--out", out, "--preset", "tiny", *RATES)
    again = sweep(*given, "--json").good().document
    assert (again["found"], again["computed"]) == (3, 1)
    assert [row["figures"] for row in rows_of(table)] == [row["figures"] for row in whole]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    files = tree(out)
    third = sweep(*given).good()
    assert tree(out) == files and "4 found" in third.out and "computed" not in third.out
    assert "± " in third.out and "fewer than three runs" in third.out


def test_a_list_of_cells_is_quantized_compressed_and_scored(
    quantized: tuple[Path, dict[str, Any]], tiny_run: Path, tmp_path: Path
) -> None:
    out, document = quantized
    rows = rows_by(document, "quant.bits", "compress.method")
    assert set(rows) == {(4, "zlib"), (4, "brotli"), (6, "brotli")} and document["computed"] == 3
    assert (
        rows[4, "zlib"]["figures"]["bpb"] == rows[4, "brotli"]["figures"]["bpb"] != rows[6, "brotli"]["figures"]["bpb"]
    )
    row, figures = rows[6, "brotli"], rows[6, "brotli"]["figures"]
    artifact = out / row["folder"] / "model.pgz"
    assert figures["artifact_bytes"] == artifact.stat().st_size
    assert figures["total_bytes"] == figures["artifact_bytes"] + figures["code_bytes"]
    (held_out,) = out.glob("held_out_*")
    score = run_here("eval", artifact, "--data", held_out, *PLAIN, "--json").good().document
    assert score["score"]["bpb"] == figures["bpb"] and score["score"]["tokens"] == row["scored_on"]["targets"] <= 3000
    by_hand = ("--data", tiny_run / "data", "--out", tmp_path / "q", "--set", "quant.bits=6", "--quiet")
    run_here("quantize", tiny_run / "train" / "checkpoint.safetensors", *by_hand).good()
    alone = ("--set", "compress.method=brotli", "--json", "--quiet")
    by_hand_bytes = run_here("compress", tmp_path / "q", "--out", tmp_path / "m.pgz", *alone).good().document
    assert by_hand_bytes["total_bytes"] == figures["total_bytes"]


def test_rows_say_what_was_scored_and_the_front_what_is_not_beaten(quantized: tuple[Path, dict[str, Any]]) -> None:
    _, document = quantized
    (group,) = document["groups"]
    assert group["scored_on"]["split"] == "train" and group["scored_on"]["seen_in_training"] is False
    rows = {row["cell"]: row for row in document["rows"]}
    front = [rows[cell] for cell in group["front"]]
    assert "zlib" not in [row["settings"]["compress.method"] for row in front]
    points = [(row["figures"]["total_bytes"], row["figures"]["bpb"]) for row in front]
    assert points == sorted(points) and [score for _, score in points] == sorted((s for _, s in points), reverse=True)


def test_cells_share_calibration_and_codes_and_leave_no_trace_of_training(
    quantized: tuple[Path, dict[str, Any]],
) -> None:
    out, _ = quantized
    assert len([*out.glob("shared/hessians_*.safetensors")]) == 1
    assert len([*out.glob("shared/quantized_*.safetensors")]) == 2
    names = {path.name for path in out.rglob("*")}
    assert not names & {"ckpt", "events.jsonl", "train.log", "checkpoint.safetensors", "runs"}


@pytest.mark.parametrize(
    ("axes", "held"),
    [
        (("quant.steps=sigma,curvature",), (True, False)),
        (("quant.rounding=trellis", "quant.couple=none,rows"), (True, True)),
    ],
)
def test_a_shared_calibration_holds_what_any_cell_needs(
    tiny_run: Path,
    quantized: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    axes: tuple[str, ...],
    held: tuple[bool, bool],
) -> None:
    """Also one that an earlier sweep, of cells that need less, has left."""
    from pgolf.stages.calibrate import read_calibration

    shutil.copytree(quantized[0], tmp_path / "shallow")
    (path,) = (tmp_path / "shallow").glob("shared/hessians_*.safetensors")
    assert not read_calibration(path)[1]["gradients"] and not read_calibration(path)[1]["couplings"]
    for name in ("fresh", "shallow"):
        given = quantize_command(tiny_run, tmp_path / name)
        more = [word for axis in ("quant.bits=5", *axes) for word in ("--set", axis)]
        document = sweep(*given, *more, "--json").good().document
        assert (document["failed"], document["computed"]) == (0, 2)
        (path,) = (tmp_path / name).glob("shared/hessians_*.safetensors")
        facts = read_calibration(path)[1]
        assert (facts["gradients"], facts["couplings"]) == held


def test_a_cell_of_quantize_cannot_train(
    quantized: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same task again, in this process, with everything that trains taken away."""

    def refuse(*given: object, **named: object) -> None:
        raise AssertionError("a cell wanted to train")

    for name in ("pgolf.stages.train.train", "pgolf.stages.train.run_training", "pgolf.core.train.loop.fit"):
        monkeypatch.setattr(name, refuse)
    out, document = quantized
    row = document["rows"][0]
    task = json.loads((out / row["folder"] / "task.json").read_text()) | {"folder": str(tmp_path / "again")}
    result = run_cell(
        task | {"quantized": str(tmp_path / "q.safetensors"), "hessians": str(tmp_path / "h.safetensors")}
    )
    assert result["state"] == "done"
    assert result["figures"] == row["figures"]


def test_finished_cells_are_found_and_a_larger_grid_adds_to_them(
    quantized: tuple[Path, dict[str, Any]], tiny_run: Path
) -> None:
    out, _ = quantized
    before = (out / "results.jsonl").read_bytes()
    more = ("--set", "quant.bits=4,5", "--set", "compress.method=brotli")
    plan = sweep(*quantize_command(tiny_run, out), *more, "--dry-run", "--json").good().document
    assert [cell["finished"] for cell in plan["cells"]] == [True, False]
    assert all(10_000 < cell["predicted_total_bytes"] < 100_000 for cell in plan["cells"])
    assert (out / "results.jsonl").read_bytes() == before
    document = sweep(*quantize_command(tiny_run, out), *more, "--json").good().document
    assert (document["found"], document["computed"]) == (1, 1)
    assert (out / "results.jsonl").read_bytes().startswith(before)
    assert len([*out.glob("shared/hessians_*.safetensors")]) == 1


def test_a_table_is_shown_drawn_and_written_as_csv(quantized: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, _ = quantized
    rows = rows_of(out / "results.jsonl")
    shown = run_here("sweep", "show", out, "--csv", tmp_path / "rows.csv").good().out
    for word in ("bits", "compress.method", "Pareto front", "training documents", *(row["cell"] for row in rows)):
        assert word in shown
    read = [*csv.DictReader((tmp_path / "rows.csv").read_text().splitlines())]
    assert [(row["cell"], float(row["bpb"])) for row in read] == [(row["cell"], row["figures"]["bpb"]) for row in rows]
    document = run_here("sweep", "show", out / "results.jsonl", "--json").good().document
    assert document["rows"] == rows
    pytest.importorskip("matplotlib")
    for name, magic in (("a.png", b"\x89PNG"), ("b.svg", b"<?xml")):
        run_here("sweep", "show", out, "--plot", tmp_path / name).good()
        assert (tmp_path / name).read_bytes().startswith(magic)
    run_here("sweep", "show", out, "--plot", tmp_path / "c.pdf").refused(2, ".svg")


def test_means_are_drawn(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run_here("sweep", "show", trained[0], "--plot", tmp_path / "means.svg").good()
    assert (tmp_path / "means.svg").read_bytes().count(b'id="LineCollection_') == 2, "an error bar each"


def test_without_matplotlib_nothing_starts(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    given = quantize_command(tiny_run, tmp_path / "out")
    sweep(*given, "--plot", tmp_path / "a.png").refused(5, "pip install 'pgolf[plot]'")
    assert not list(tmp_path.iterdir())


def test_a_failed_cell_is_a_row_and_the_exit_code(tiny_run: Path, tmp_path: Path) -> None:
    """More calibration than there is text is only noticed when the cell runs."""
    out = tmp_path / "out"
    done = sweep(*quantize_command(tiny_run, out), "--set", "quant.calibration_seqs=1000000,8", "--json")
    done.refused(3, "1 of 2 cells failed", "calibration wants")
    assert (done.document["failed"], done.document["computed"]) == (1, 1)
    states = {row["settings"]["quant.calibration_seqs"]: row["state"] for row in rows_of(out / "results.jsonl")}
    assert states == {1000000: "failed", 8: "done"}
    assert "failed: quant.calibration_seqs=1000000" in run_here("sweep", "show", out).good().out


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--set", "quant.bits=5,99"), ("bits must be 4 to 8", "quant.bits=99")),
        (("--set", "quant.bits=5,x"), ("'x' is not a value of type int",)),
        (("--set", "quant.bitz=5,6"), ("quant.bitz", "did you mean")),
        (("--set", "quant.bits=5,05"), ("two cells are the same",)),
        (("--set", "model.num_layers=2,3"), ("model cannot be changed", "model.num_layers=3")),
        (("--set", "eval.max_tokens=10,20"), ("--tokens",)),
        (("--set", "quant.bits=4,,5"), ("empty value",)),
        (("--eval", "slided"), ("unknown method 'slided'",)),
        (("--cluster-set", "timeout_min=5"), ("--cluster",)),
        (("--cluster", "condor"), ("neither slurm nor local",)),
    ],
)
def test_all_cells_are_checked_before_the_first_runs(
    tiny_run: Path, tmp_path: Path, given: tuple[str, ...], words: tuple[str, ...]
) -> None:
    sweep(*quantize_command(tiny_run, tmp_path / "out"), *given).refused(2, *words)
    assert not list(tmp_path.iterdir())


def test_training_cells_are_checked_before_the_first_runs(tiny_run: Path, tmp_path: Path) -> None:
    given = ("train", tiny_run / "data", "--out", tmp_path / "out", "--preset", "tiny")
    sweep(*given, "--set", "train.batch_tokens=1024,1024000000").refused(3, "one batch needs")
    sweep(*given, "--set", "train.batch_tokens=1024,1000").refused(2, "train.batch_tokens=1000")
    sweep(*given, "--seeds", "1,1").refused(2, "names a seed twice")
    sweep(*given, "--set", "train.needs_gpu=true", "--device", "cuda:99").refused(5)
    sweep(*given, "--dry-run", "--seeds", "1,2").good()
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_kind_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    model = tiny_run / "train" / "checkpoint.safetensors"
    sweep("compress", model, "--out", tmp_path / "out").refused(3, "kind quantized")
    artifact = tiny_run / "compress" / "model.pgz"
    sweep("quantize", artifact, "--data", tiny_run / "data", "--out", tmp_path / "out").refused(3, "kind checkpoint")


def test_an_evaluator_is_chosen_on_training_documents_unless_told_otherwise(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("eval", tiny_run / "compress" / "model.pgz", "--data", tiny_run / "data", "--out", out)
    grid = ("--set", "eval.stride=16,32", "--tokens", "2000", "--json")
    document = sweep(*given, *grid).good().document
    for row in document["rows"]:
        assert row["scored_on"]["split"] == "train" and row["figures"]["tokens"] == row["scored_on"]["targets"]
    looked = sweep(*given, "--set", "eval.stride=32", "--on-validation", "--json").good().document
    (row,) = looked["rows"]
    assert row["scored_on"]["split"] == "val"
    recorded = json.loads((tiny_run / "eval" / "score.json").read_text())
    assert row["figures"]["bpb"] == recorded["score"]["bpb"]
    assert row["figures"]["tokens"] == recorded["score"]["tokens"] == row["scored_on"]["targets"]
    shown = run_here("sweep", "show", out).good().out
    assert "training documents" in shown and "VALIDATION" in shown
    assert len(run_here("sweep", "show", out, "--json").good().document["groups"]) == 2


def test_test_time_training_is_swept(tiny_run: Path, tmp_path: Path) -> None:
    given = ("ttt", tiny_run / "compress" / "model.pgz", "--data", tiny_run / "data", "--out", tmp_path / "out")
    document = sweep(*given, "--set", "ttt.lr=0.0,0.01", "--tokens", "2000", "--json").good().document
    rows = rows_by(document, "ttt.lr")
    assert rows[0.0,]["figures"]["bpb"] != rows[0.01,]["figures"]["bpb"]
    assert {row["figures"]["method"] for row in rows.values()} == {"chunk"}


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line names a directory."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def wait_until(condition: Any, seconds: float = 60) -> None:
    """Wait for something to become true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_end_in_the_middle_leaves_checkpoints_and_nobody_running(
    tiny_run: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    long = ("--set", "train.iterations=100000", "--set", "train.val_every=0", "--seeds", "1,2")
    words = command("sweep", "train", tiny_run / "data", "--out", out, "--preset", "tiny", *long, *JOBS)
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: len({path.parent for path in out.glob("runs/*/ckpt/step_*[0-9].safetensors")}) == 2)
        assert len(processes_of(out)) == 3
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "0 of 2 cells are finished; the same command goes on" in errors
        assert processes_of(out) == []
    wait_until(lambda: not processes_of(out))
    assert rows_of(out / "results.jsonl") == []
    logs = [path.read_text() for path in out.glob("runs/*/log.txt")]
    assert len(logs) == 2 and not any("Traceback" in text for text in logs)


def test_a_process_that_dies_is_a_failed_cell(tiny_run: Path, tmp_path: Path) -> None:
    """As when the system runs out of memory."""
    out = tmp_path / "out"
    given = ("train", tiny_run / "data", "--out", out, "--preset", "tiny", "--set", "train.iterations=100000")
    with subprocess.Popen(command("sweep", *given), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(lambda: [*out.glob("runs/*/ckpt/step_*[0-9].safetensors")])
        (child,) = set(processes_of(out)) - {process.pid}
        os.kill(child, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and b"signal 9" in errors
    (row,) = rows_of(out / "results.jsonl")
    assert row["state"] == "failed" and "log.txt" in row["error"]["where"]


def test_cells_run_as_jobs_of_submitit(tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs the extra slurm")
    given = ("compress", tiny_run / "quantize" / "quantized.safetensors", "--out", tmp_path / "out")
    grid = ("--set", "compress.method=zlib,brotli", "--cluster", "local", "--cluster-set", "timeout_min=5", "--json")
    document = sweep(*given, *grid).good().document
    assert document["computed"] == 2 and [*(tmp_path / "out" / "jobs").iterdir()]
    assert {row["settings"]["compress.method"] for row in document["rows"]} == {"zlib", "brotli"}
    sweep(*given, "--cluster", "local", "--cluster-set", "colour=green").refused(2, "submitit does not take")


def test_without_submitit_there_is_a_remedy(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    given = ("compress", tiny_run / "quantize" / "quantized.safetensors", "--out", tmp_path / "out")
    sweep(*given, "--cluster", "slurm").refused(5, "pip install 'pgolf[slurm]'")
    assert not list(tmp_path.iterdir())
