"""Rows of docs/reliability.md that no other test covers as they stand there."""

import ast
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from harness import command, run_here

from pgolf.core.tensorfile import load_tensors, save_tensors
from pgolf.stages.calibrate import CALIBRATION_SCHEMA
from pgolf.stages.model_files import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def ranks_of(launcher: int) -> dict[int, int]:
    """Rank -> process, of the ranks a process has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    texts = {child: Path(f"/proc/{child}/environ").read_bytes() for child in children}
    found = {child: re.search(rb"(?:^|\0)RANK=(\d+)\0", text) for child, text in texts.items()}
    return {int(match[1]): int(child) for child, match in found.items() if match}


@pytest.mark.slow
@pytest.mark.fault(row="F4")
def test_one_of_four_ranks_is_killed(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "train"
    sets = ["train.micro_batch_tokens=256", "train.iterations=100000", "train.val_every=0", "train.checkpoint_every=2"]
    line = ["train", tiny_run / "data", "--out", out, "--preset", "tiny", "--device", "cpu", "--gpus", 4]
    process = subprocess.Popen(
        command(*line, *(word for text in sets for word in ("--set", text))), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("ckpt/step_????????.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    began = time.monotonic()
    os.kill(ranks_of(process.pid)[2], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5 and time.monotonic() - began < 30, err
    assert "error: rank 2 of 4 was ended by SIGKILL" in err and "Traceback" not in err
    kept = sorted(out.glob("ckpt/step_????????.safetensors"))
    assert kept and all(load_checkpoint(path) for path in kept)


@pytest.mark.fault(row="F19")
def test_a_hessian_that_stays_indefinite_is_rounded_and_told(copy_run: Path) -> None:
    path = copy_run / "quantize" / "hessians.safetensors"
    tensors, meta, _ = load_tensors(path, CALIBRATION_SCHEMA)
    name = next(name for name in tensors if name.startswith("inputs.") and "mlp" in name)
    tensors[name] = -torch.eye(len(tensors[name]))
    del meta["tensors_sha256"]
    save_tensors(path, tensors, meta)
    out = copy_run / "quantize" / "quantized.safetensors"
    line = ["quantize", copy_run / "train" / "checkpoint.safetensors", "--data", copy_run / "data", "--out", out]
    document = run_here(*line, "--set", "quant.bits=7", "--quiet", "--json").good().document
    (warning,) = [text for text in document["warnings"] if "rounded to nearest" in text]
    assert name.removeprefix("inputs.") in warning


@pytest.mark.fault(row="F22")
@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "dangling"])
def test_what_is_no_file_is_refused_and_does_not_block(copy_run: Path, tmp_path: Path, kind: str) -> None:
    def alarmed(number: int, frame: object) -> None:
        pytest.fail("it waits for what is no file")

    signal.signal(signal.SIGALRM, alarmed)
    signal.alarm(60)

    def put(path: Path) -> None:
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            subprocess.run(["python3", "-c", f"import socket; socket.socket(socket.AF_UNIX).bind({path.name!r})"],
                           cwd=path.parent, check=True)  # fmt: skip
        else:
            path.symlink_to("/dev/zero" if kind == "device" else "/nowhere/at/all")

    for name in ("model.pgz", "checkpoint.safetensors", "model.pt"):
        put(tmp_path / name)
        argv = ["import", tmp_path / name, "--out", tmp_path / "out.safetensors"]
        result = run_here(*argv) if name.endswith("pt") else run_here("inspect", tmp_path / name)
        assert result.code in (3, 6), result
        result.refused(result.code, name)
    shards = copy_run / "data"
    put(shards / "fineweb_val_000000.bin")
    line = ["eval", copy_run / "compress" / "model.pgz", "--data", shards, "--quiet"]
    for _ in range(2):
        result = run_here(*line)
        assert result.code in (3, 6), result
        (shards / "manifest.json").unlink(missing_ok=True)
    signal.alarm(0)


@pytest.mark.fault(row="F25")
def test_durations_are_taken_from_a_clock_that_never_jumps() -> None:
    """The wall clock is read for dates only."""
    for path in sorted((ROOT / "pgolf").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) != ("time", "time"), path


@pytest.mark.fault(row="F25")
def test_a_clock_that_is_set_back_changes_no_run(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10**9, 0, -1000))
    monkeypatch.setattr("time.time", lambda: float(next(ticks)))
    argv = ["train", tiny_run / "data", "--out", tmp_path / "t", "--preset", "tiny", "--quiet", "--json"]
    document = run_here(*argv, "--set", "train.max_wallclock_seconds=100").good().document
    assert document["steps"] == 20 and 0 < document["train_seconds"] < 100
    events = [json.loads(line) for line in (tmp_path / "t" / "events.jsonl").read_text().splitlines()]
    times = [event["elapsed_s"] for event in events if event["event"] == "step"]
    assert times == sorted(times)
