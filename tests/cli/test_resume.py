"""Interrupted training: kill -9, signals, damaged checkpoints, changed settings, spent budgets."""

import json
import random
import shutil
import signal
import subprocess
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from harness import command, flip, run_here, stray_files, tensor_hash

from pgolf.report.train_log import TrainLog
from pgolf.stages.checkpoints import Checkpoints

STEPS = 60
SHORT = [
    "--preset", "tiny", "--set", f"train.iterations={STEPS}", "--set", "train.checkpoint_every=3",
    "--set", "train.average=ema", "--set", "train.average.decay=0.9", "--set", "train.val_every=20",
    "--set", "train.val_max_tokens=256", "--set", "train.log_every=1",
]  # fmt: skip
ENDLESS = [
    *("--preset", "tiny", "--set", "train.iterations=1000000", "--set", "train.checkpoint_every=3"),
    *("--set", "train.val_every=0", "--set", "train.val_max_tokens=256"),
]


def events(out: Path, kind: str = "step") -> list[dict[str, Any]]:
    """Complete lines of events.jsonl of one kind."""
    path = out / "events.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def start(data: Path, out: Path, options: list[str]) -> subprocess.Popen[str]:
    """Training in a process of its own."""
    argv = command("train", data, "--out", out, *options)
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int, more_than: int = 0) -> None:
    """Until training has logged this step; events of an earlier process do not count."""
    deadline = time.monotonic() + 90
    while len(seen := events(out)) <= more_than or seen[-1]["step"] < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "training did not get there"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def straight(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training, never interrupted."""
    out = tmp_path_factory.mktemp("straight")
    run_here("train", tiny_run / "data", "--out", out, *SHORT, "--quiet").good()
    return out


@pytest.mark.parametrize(("kills", "steps"), [(3, 14), pytest.param(20, 2, marks=pytest.mark.slow)])
@pytest.mark.fault(row="F1")
def test_kill_9_at_random_points_changes_nothing(
    pgolf: Any, tiny_run: Path, straight: Path, tmp_path: Path, kills: int, steps: int
) -> None:
    draw, out = random.Random(20240520), tmp_path / "train"
    reached = 0
    for _ in range(kills):
        before = len(events(out))
        process = start(tiny_run / "data", out, SHORT)
        reached = draw.randint(reached + 1, reached + steps)
        wait_for_step(process, out, reached, before)
        time.sleep(draw.random() * 0.05)
        process.kill()
        process.communicate()
        assert not (out / "checkpoint.safetensors").exists(), "it was over before it was killed"
    result = pgolf("train", tiny_run / "data", "--out", out, *SHORT).good()
    assert "resumed at step" in result.err
    assert tensor_hash(out / "checkpoint.safetensors") == tensor_hash(straight / "checkpoint.safetensors")
    losses = {event["step"]: event["loss"] for event in events(out)}
    assert losses == {event["step"]: event["loss"] for event in events(straight)} and len(losses) == STEPS
    assert stray_files(out) == []


def test_training_goes_on_while_a_checkpoint_is_written(
    pgolf: Any, tiny_run: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread may write the checkpoint of step 20 only after step 25: it holds what was at step 20 all the same."""
    later, waited = threading.Event(), []
    write, event = Checkpoints.write, TrainLog.event

    def late(saved: Checkpoints, step: int, *content: Any) -> None:
        waited.append(later.wait(60))
        write(saved, step, *content)

    def seen(log: TrainLog, told: dict[str, Any]) -> None:
        event(log, told)
        if told["step"] == 25:
            later.set()

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", late)
        patch.setattr(TrainLog, "event", seen)
        out = tmp_path / "train"
        run_here("train", tiny_run / "data", "--out", out, *SHORT, "--set", "train.checkpoint_every=20").good()
    assert waited[0] and events(out)[-1]["step"] == STEPS
    for path in (out / "checkpoint.safetensors", *out.glob("ckpt/step_00000040.*")):
        path.unlink()
    pgolf("train", tiny_run / "data", "--out", out, *SHORT, "--set", "train.checkpoint_every=20").good()
    assert tensor_hash(out / "checkpoint.safetensors") == tensor_hash(straight / "checkpoint.safetensors")


@pytest.mark.fault(row="F1")
def test_files_left_by_a_killed_writer_are_cleaned_up(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "train"
    (out / "ckpt").mkdir(parents=True)
    (out / ".checkpoint.safetensors.4194000.part").write_bytes(b"half")
    (out / "ckpt" / ".step_00000003.safetensors.4194000.part").write_bytes(b"half")
    pgolf("train", tiny_run / "data", "--out", out, "--preset", "tiny", "--set", "train.iterations=4").good()
    assert stray_files(out) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.fault(row="F3")
def test_a_signal_ends_cleanly_with_a_resumable_checkpoint(
    pgolf: Any, tiny_run: Path, straight: Path, tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "train"
    process = start(tiny_run / "data", out, SHORT)
    wait_for_step(process, out, 4)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err and "interrupted:" in err and "the same command goes on" in err
    stopped = events(out, "stop")[-1]
    assert stopped["reason"] == "signal" and (out / "ckpt" / f"step_{stopped['step']:08d}.safetensors").is_file()
    result = pgolf("train", tiny_run / "data", "--out", out, *SHORT).good()
    assert f"resumed at step {stopped['step']}" in result.err
    assert tensor_hash(out / "checkpoint.safetensors") == tensor_hash(straight / "checkpoint.safetensors")


@pytest.mark.fault(row="F3")
def test_a_signal_in_the_last_step_keeps_that_step(
    pgolf: Any, tiny_run: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = TrainLog.event

    def event(log: TrainLog, told: dict[str, Any]) -> None:
        seen(log, told)
        if told["event"] == "step" and told["step"] == STEPS:
            signal.raise_signal(signal.SIGTERM)

    out = tmp_path / "train"
    with monkeypatch.context() as patch:
        patch.setattr(TrainLog, "event", event)
        result = pgolf("train", tiny_run / "data", "--out", out, *SHORT)
    assert result.code == 143 and f"stopped at step {STEPS}" in result.err, result
    pgolf("train", tiny_run / "data", "--out", out, *SHORT).good()
    assert tensor_hash(out / "checkpoint.safetensors") == tensor_hash(straight / "checkpoint.safetensors")


@pytest.mark.parametrize("signals", [2, 40])
@pytest.mark.fault(row="F3")
def test_more_signals_end_at_once(tiny_run: Path, tmp_path: Path, signals: int) -> None:
    process = start(tiny_run / "data", tmp_path / "train", ENDLESS)
    wait_for_step(process, tmp_path / "train", 4)
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
        if process.poll() is not None:
            break
    _, err = process.communicate(timeout=30)
    assert process.returncode in (143, -signal.SIGTERM) and "Traceback" not in err, err


@pytest.mark.fault(row="F3")
def test_sigterm_outside_training_leaves_nothing_half_made(tiny_run: Path, tmp_path: Path) -> None:
    argv = [
        "ttt",
        tiny_run / "compress" / "model.pgz",
        "--data",
        tiny_run / "data",
        "--out",
        tmp_path / "t" / "score.json",
    ]
    process = subprocess.Popen(
        command(*argv, "--set", "ttt.epochs=100000"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "t" / ".score.json.owner").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert out == "" and "Traceback" not in err
    assert [path.name for path in (tmp_path / "t").iterdir() if path.suffix != ".lock"] == []


@pytest.fixture
def half_way(straight: Path, tmp_path: Path) -> Path:
    """A training directory as a kill -9 near the end leaves it: resumable checkpoints, no final one."""
    out = tmp_path / "half"
    shutil.copytree(straight, out)
    (out / "checkpoint.safetensors").unlink()
    (out / "manifest.json").unlink()
    return out


def newest(out: Path) -> list[Path]:
    """Weights files of the resumable checkpoints, newest first."""
    return sorted((path for path in (out / "ckpt").iterdir() if ".resume" not in path.name), reverse=True)


@pytest.mark.parametrize("damage", ["flipped weights", "flipped state", "truncated", "no state", "empty"])
@pytest.mark.fault(row="F7")
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    pgolf: Any, tiny_run: Path, straight: Path, half_way: Path, damage: str
) -> None:
    last, before = newest(half_way)
    state = last.with_name(last.name.replace(".safetensors", ".resume.safetensors"))
    if damage == "flipped weights":
        flip(last, last.stat().st_size - 1000)
    elif damage == "flipped state":
        flip(state, state.stat().st_size // 2)
    elif damage == "truncated":
        last.write_bytes(last.read_bytes()[:-1])
    elif damage == "no state":
        state.unlink()
    else:
        last.write_bytes(b"")
    result = pgolf("train", tiny_run / "data", "--out", half_way, *SHORT).good()
    step = int(before.stem.split("_")[1])
    assert f"resumed at step {step}," in result.err
    assert f"warning: checkpoint of step {int(last.stem.split('_')[1])} is not usable" in result.err
    assert tensor_hash(half_way / "checkpoint.safetensors") == tensor_hash(straight / "checkpoint.safetensors")


@pytest.mark.fault(row="F7")
def test_when_no_checkpoint_can_be_read_nothing_is_overwritten(pgolf: Any, tiny_run: Path, half_way: Path) -> None:
    for path in newest(half_way):
        flip(path, path.stat().st_size - 5)
    before = {path.name: path.read_bytes() for path in (half_way / "ckpt").iterdir()}
    pgolf("train", tiny_run / "data", "--out", half_way, *SHORT, "--quiet").refused(3, "--fresh")
    assert {path.name: path.read_bytes() for path in (half_way / "ckpt").iterdir()} == before
    pgolf("train", tiny_run / "data", "--out", half_way, *SHORT, "--quiet", "--fresh").good()


@pytest.mark.parametrize("change", ["train.iterations=61", "optim.token_lr=0.051", "model.qk_gain.init=1.25"])
def test_a_changed_configuration_is_refused_and_the_key_named(
    pgolf: Any, tiny_run: Path, half_way: Path, change: str
) -> None:
    argv = ["train", tiny_run / "data", "--out", half_way, *SHORT, "--set", change, "--quiet"]
    pgolf(*argv).refused(2, change.split("=")[0], change.split("=")[1])


def test_settings_that_change_no_result_may_change(pgolf: Any, tiny_run: Path, half_way: Path) -> None:
    argv = ["train", tiny_run / "data", "--out", half_way, *SHORT, "--set", "train.checkpoint_every=7"]
    assert "resumed at step" in pgolf(*argv).good().err


def test_other_data_is_refused(pgolf: Any, tiny_run: Path, half_way: Path, corpus: Path, tmp_path: Path) -> None:
    argv = ["tokenize", corpus, "--preset", "tiny", "--set", "tokenize.val_share=0.2", "--out", tmp_path / "other"]
    pgolf(*argv, "--quiet").good()
    pgolf("train", tmp_path / "other", "--out", half_way, *SHORT, "--quiet").refused(2, "data")


def test_a_finished_training_is_not_repeated(pgolf: Any, tiny_run: Path, straight: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(straight, tmp_path / "done"))
    before = (out / "checkpoint.safetensors").stat().st_mtime_ns
    assert "nothing to do" in pgolf("train", tiny_run / "data", "--out", out, *SHORT).good().out
    assert (out / "checkpoint.safetensors").stat().st_mtime_ns == before


LOADERS = {
    "shuffled": ("train.loader.kind=shuffled", "train.prefetch=0"),
    "coprime": ("train.loader.kind=coprime",),
    "documents": ("train.loader.kind=documents", "model.documents.kind=by_document"),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_every_loader_goes_on_where_it_was(pgolf: Any, tiny_run: Path, tmp_path: Path, kind: str) -> None:
    options = [*SHORT, "--set", "train.iterations=9", "--set", "train.micro_batch_tokens=512"]
    options += [word for value in LOADERS[kind] for word in ("--set", value)]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    pgolf("train", tiny_run / "data", "--out", straight, *options, "--quiet").good()
    shutil.copytree(straight, resumed)
    for path in (resumed / "checkpoint.safetensors", resumed / "manifest.json"):
        path.unlink()
    result = pgolf("train", tiny_run / "data", "--out", resumed, *options, "--set", "train.prefetch=3").good()
    assert "resumed at step 6" in result.err
    assert tensor_hash(resumed / "checkpoint.safetensors") == tensor_hash(straight / "checkpoint.safetensors")


@pytest.mark.fault(row="F25")
def test_the_wall_clock_cap_stops_training(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "train"
    argv = ["train", tiny_run / "data", "--out", out, *ENDLESS, "--set", "train.max_wallclock_seconds=0.4"]
    document = pgolf(*argv, "--quiet", "--json").good().document
    assert document["stopped_by"] == "wallclock_cap" and 0 < document["steps"] < 1_000_000
    lines = map(json.loads, (out / "events.jsonl").read_text().splitlines())
    ends = [event["elapsed_s"] for event in lines if event["event"] == "step"]
    assert len(ends) == document["steps"] and [0.0, *ends][-2] < 0.4, "no step began after the budget was over"
    moments = [0.0, *ends[:-1], document["train_seconds"]]
    slowest = max(after - before for before, after in pairwise(moments))
    assert 0.4 <= document["train_seconds"] <= 0.4 + slowest
    assert "stopping_early: wallclock_cap" in (out / "train.log").read_text()


@pytest.mark.fault(row="F25")
def test_a_spent_budget_stops_a_resumed_run_at_once(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    from pgolf.core.tensorfile import load_tensors, save_tensors

    out = tmp_path / "train"
    argv = ["train", tiny_run / "data", "--out", out, *ENDLESS, "--set", "train.max_wallclock_seconds=0.4", "--quiet"]
    pgolf(*argv).good()
    (out / "checkpoint.safetensors").unlink()
    (out / "manifest.json").unlink()
    path = max((out / "ckpt").glob("*.resume.safetensors"))
    tensors, facts, _ = load_tensors(path, "pgolf.resume/1")
    save_tensors(path, tensors, facts | {"elapsed_s": 0.4})
    document = pgolf(*argv, "--json").good().document
    assert (document["steps"], document["stopped_by"]) == (facts["step"], "wallclock_cap")
