"""Training on several processes, which --gpus or torchrun starts, on one node or two; ranks that fail or are killed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from harness import command, run_here, stray_files, tensor_hash

LIMIT_S = 60
"""Seconds within which a job ends when one of its ranks does."""
SMALL = ["--preset", "tiny", "--set", "train.micro_batch_tokens=512", "--device", "cpu"]
EXACT = [
    *(*SMALL, "--set", "optim.matrix.bfloat16=false", "--set", "train.iterations=12", "--set", "train.val_every=0"),
    *("--set", "train.val_max_tokens=256", "--set", "train.checkpoint_every=4"),
]
BANKS = ["--set", "optim.parallel=banks", "--set", "optim.grad_clip=0.3"]
LONG = [
    *(*SMALL, *BANKS, "--set", "train.iterations=90", "--set", "train.checkpoint_every=5"),
    *("--set", "train.val_every=0", "--set", "train.val_max_tokens=256"),
]


def losses(out: Path) -> dict[int, float]:
    """Step -> loss, of the steps logged so far."""
    path = out / "events.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return {event["step"]: event["loss"] for event in map(json.loads, lines) if event["event"] == "step"}


def start(argv: list[str]) -> subprocess.Popen[str]:
    """A process of its own."""
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    """Until training has logged this step."""
    deadline = time.monotonic() + 120
    while max(losses(out), default=0) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "training did not get there"
        time.sleep(0.02)


def ranks_of(launcher: int) -> dict[int, int]:
    """Rank -> process, of the ranks a process has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    environments = {int(child): Path(f"/proc/{child}/environ").read_bytes() for child in children}
    found = {process: re.search(rb"(?:^|\0)RANK=(\d+)\0", text) for process, text in environments.items()}
    return {int(match[1]): process for process, match in found.items() if match}


def gone(process: int) -> bool:
    """Whether a process has ended, be it that nobody has asked how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def torchrun(*argv: object) -> list[str]:
    """torchrun's command line."""
    return [sys.executable, "-m", "torch.distributed.run", *map(str, argv)]


@pytest.fixture(scope="module")
def alone(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training in one process."""
    out = tmp_path_factory.mktemp("alone")
    run_here("train", tiny_run / "data", "--out", out, *EXACT, *BANKS, "--quiet").good()
    return out


@pytest.fixture(scope="module")
def straight(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A longer training on two ranks, never interrupted."""
    out = tmp_path_factory.mktemp("straight")
    run_here("train", tiny_run / "data", "--out", out, *LONG, "--gpus", 2, "--quiet").good()
    return out


# Started by pgolf


def test_two_ranks_train_like_one(spawn: Any, tiny_run: Path, alone: Path, tmp_path: Path) -> None:
    argv = ["train", tiny_run / "data", "--out", tmp_path / "two", *EXACT, *BANKS, "--gpus", 2]
    result = spawn(*argv, "--json").good()
    document = result.document
    assert (document["world_size"], document["steps"], document["warnings"]) == (2, 12, [])
    assert losses(tmp_path / "two") == pytest.approx(losses(alone), rel=1e-5) and len(losses(alone)) == 12
    assert result.err.count("10/12 train_loss: ") == 1 and "torchrun" not in result.err
    assert stray_files(tmp_path) == []
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert "--gpus" in manifest["outputs"]["checkpoint.safetensors"]["argv"]
    before = tensor_hash(tmp_path / "two" / "checkpoint.safetensors")
    assert run_here(*argv, "--json", "--quiet").good().document["fresh"] is True
    assert tensor_hash(tmp_path / "two" / "checkpoint.safetensors") == before


def test_more_ranks_go_on_where_fewer_were(pgolf: Any, tiny_run: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "ckpt").mkdir(parents=True)
    for path in (alone / "ckpt").iterdir():
        (out / "ckpt" / path.name).write_bytes(path.read_bytes())
    pgolf("train", tiny_run / "data", "--out", out, *EXACT, *BANKS, "--gpus", 2, "--quiet").good()
    assert min(losses(out)) == 9, "the last checkpoint before the end is that of step 8"
    assert losses(out) == pytest.approx({step: loss for step, loss in losses(alone).items() if step > 8}, rel=1e-5)


def test_a_whole_run_trains_on_ranks(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    argv = ["run", "--data", tiny_run / "data", "--out", tmp_path / "run", *EXACT, "--until", "quantize", "--gpus", 2]
    before = signal.getsignal(signal.SIGHUP)  # ignored under nohup
    document = pgolf(*argv, "--json", "--quiet").good().document
    train = next(stage for stage in document["stages"] if stage["stage"] == "train")
    assert train["figures"]["world_size"] == 2 and train["figures"]["steps"] == 12
    assert signal.getsignal(signal.SIGHUP) == before, "torchrun's launcher has left a handler"


@pytest.mark.fault(row="F4")
def test_a_killed_rank_ends_the_job_and_is_named(pgolf: Any, tiny_run: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "train"
    argv = ["train", tiny_run / "data", "--out", out, *LONG, "--gpus", 2]
    process = start(command(*argv, "--json"))
    wait_for_step(process, out, 12)
    os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
    text, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 5, err
    line = "error: rank 1 of 2 was ended by SIGKILL (train). the other ranks were stopped; the same command goes on"
    assert line in err and "Traceback" not in err
    assert json.loads(text)["error"]["what"] == "rank 1 of 2 was ended by SIGKILL"
    assert not (out / "checkpoint.safetensors").exists()
    result = pgolf(*argv).good()
    assert tensor_hash(out / "checkpoint.safetensors") == tensor_hash(straight / "checkpoint.safetensors")
    assert losses(out) == losses(straight) and stray_files(out) == []
    assert "resumed at step" in result.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.fault(row="F3")
def test_a_signal_ends_all_ranks_with_a_checkpoint(tiny_run: Path, tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "train"
    process = start(command("train", tiny_run / "data", "--out", out, *LONG, "--gpus", 2))
    wait_for_step(process, out, 4)
    ranks = ranks_of(process.pid)
    process.send_signal(number)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code, err
    stopped = re.search(r"interrupted: stopped at step (\d+); the same command goes on from there", err)
    assert stopped and err.count("interrupted:") == 1 and "Traceback" not in err
    assert (out / "ckpt" / f"step_{int(stopped[1]):08d}.safetensors").is_file()
    assert len(ranks) == 2 and all(map(gone, ranks.values()))


@pytest.mark.fault(row="F3")
def test_a_second_signal_ends_at_once(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "train"
    argv = [*LONG, "--set", "train.iterations=1000000", "--set", "train.micro_batch_tokens=64", "--gpus", "2"]
    process = start(command("train", tiny_run / "data", "--out", out, *argv))
    wait_for_step(process, out, 2)
    ranks = ranks_of(process.pid)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143 and "Traceback" not in err, err
    assert all(map(gone, ranks.values()))


def test_ranks_do_not_outlive_their_launcher(tiny_run: Path, tmp_path: Path) -> None:
    out, place = tmp_path / "train", tmp_path / "place"
    place.mkdir()
    argv = command("train", tiny_run / "data", "--out", out, *LONG, "--gpus", 2)
    process = subprocess.Popen(
        argv, env=os.environ | {"TMPDIR": str(place)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_step(process, out, 4)
    ranks = ranks_of(process.pid)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + LIMIT_S
    while not all(map(gone, ranks.values())):
        assert time.monotonic() < deadline, "ranks go on without their launcher"
        time.sleep(0.1)
    last = max(losses(out))
    assert last < 160 and (out / "ckpt" / f"step_{last:08d}.safetensors").is_file(), "they did not save"
    torchs = ["_remote_module_non_scriptable.py"]  # what torch 2.9 writes into a folder of its own
    assert [path for path in place.iterdir() if [one.name for one in path.glob("*")] != torchs] == []


# Refused


def test_ranks_that_cannot_be_had_are_refused(pgolf: Any, spawn: Any, tiny_run: Path, tmp_path: Path) -> None:
    import torch

    argv = ["train", tiny_run / "data", "--out", tmp_path / "out", "--preset", "tiny", "--quiet"]
    many = torch.cuda.device_count() + 1
    pgolf(*argv, "--gpus", many).refused(5, f"--gpus {many}", "GPUs are asked for")
    pgolf("run", "--data", tiny_run / "data", *argv[2:], "--gpus", many).refused(5, f"--gpus {many}")
    pgolf(*argv, "--gpus", 2, "--device", "cuda:0").refused(2, "--device cuda:0", "leave out --device")
    pgolf(*argv, "--gpus", 2, "--device", "cpu").refused(2, "train.batch_tokens", "2 ranks")
    assert pgolf(*argv, "--gpus", 0).code == 2
    under = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    spawn(*argv, "--gpus", 2, "--device", "cpu", env=under).refused(2, "torchrun", "leave out --gpus")
    assert not (tmp_path / "out").exists()


def test_what_a_rank_refuses_is_said_once_with_its_number(spawn: Any, tiny_run: Path, tmp_path: Path) -> None:
    argv = ["train", tiny_run / "data", "--out", tmp_path, *SMALL, "--set", "train.loader.kind=shuffled", "--gpus", 2]
    result = spawn(*argv, "--quiet", "--json")
    assert result.code == 3 and len(result.err.strip().splitlines()) == 1, result.err
    said = r"rank [01] of 2: 1 training shards are fewer than 2 ranks"
    assert re.match(rf"error: {said} \(train\.loader\)", result.err)
    assert re.fullmatch(said, json.loads(result.out)["error"]["what"])


# Started by torchrun


def free_port() -> int:
    """A port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_two_nodes_train_like_one_process(tiny_run: Path, alone: Path, tmp_path: Path) -> None:
    out, port = tmp_path / "out", free_port()
    train = ["-m", "pgolf", "train", tiny_run / "data", "--out", out, *EXACT, *BANKS, "--json", "--quiet"]
    nodes = [
        start(
            torchrun("--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1", "--master-addr=127.0.0.1",
                     f"--master-port={port}", *train)
        )
        for node in range(2)
    ]  # fmt: skip
    results = [(*process.communicate(timeout=180), process.returncode) for process in nodes]
    assert [code for _, _, code in results] == [0, 0], results
    assert json.loads(results[0][0])["world_size"] == 2 and results[1][0] == ""
    assert losses(out) == pytest.approx(losses(alone), rel=1e-5)


def test_nodes_without_shared_storage_do_not_go_on_apart(tiny_run: Path, alone: Path, tmp_path: Path) -> None:
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    (tmp_path / "0" / "ckpt").mkdir(parents=True)
    for path in (alone / "ckpt").iterdir():
        (tmp_path / "0" / "ckpt" / path.name).write_bytes(path.read_bytes())
    argv = [("train", tiny_run / "data", "--out", tmp_path / str(rank), *EXACT, *BANKS, "--quiet") for rank in (0, 1)]
    ranks = [
        subprocess.Popen(command(*argv[rank]), env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    results = [(process.communicate(timeout=120)[1], process.returncode) for process in ranks]
    assert [code for _, code in results] == [3, 3], results
    assert "this one that of step 8" in results[0][0] and "this one that of step 0" in results[1][0]


@pytest.mark.fault(row="F4")
def test_torchrun_names_the_rank_that_was_killed(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "train"
    train = ["-m", "pgolf", "train", tiny_run / "data", "--out", out, *LONG, "--quiet"]
    process = start(torchrun("--standalone", "--nproc-per-node=2", *train))
    wait_for_step(process, out, 6)
    os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode != 0 and re.search(r"rank +: 1 ", err) and "SIGKILL" in err
    assert "a bug in pgolf" not in err


def test_a_batch_that_does_not_divide_among_processes_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    argv = ["train", tiny_run / "data", "--out", tmp_path / "out", "--preset", "tiny", "--device", "cpu", "--quiet"]
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(command(*argv), env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    results = [(process.communicate(timeout=60)[1], process.returncode) for process in ranks]
    assert [code for _, code in results] == [2, 2], results
    assert "train.batch_tokens" in results[0][0] and "Traceback" not in results[0][0]
