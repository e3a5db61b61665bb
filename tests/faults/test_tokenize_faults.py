"""Tokenization that is interrupted, damaged, short of disk or of memory: nothing is lost, and the same command again
gives what it would have given.
"""

import errno
import json
import os
import random
import resource
import shutil
import signal
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Result, command, run_here

from benchmarks.faults.disk import Disk
from pgolf.config.run import TokenizeConfig
from pgolf.core.shards import write_shard
from pgolf.corpus.tokenizer import train_tokenizer
from pgolf.dataset import open_dataset
from pgolf.stages.signals import Interrupted

DRIVER = """
import sys, time
from pgolf.cli.main import main
from pgolf.corpus import workers
from pgolf.stages import tokenize

if __name__ == "__main__":
    workers.BATCH_BYTES, tokenize.NOTE_EVERY_S = 2000, 0
    add = tokenize.add_tokens
    tokenize.add_tokens = lambda *args: (time.sleep(float(sys.argv[1])), add(*args))[1]
    sys.exit(main(sys.argv[2:]))
"""
"""pgolf, but with small batches, a note after each of them, and a pause before."""
SHARDS = ["--set", "tokenize.shard_tokens=700"]
CASED = [*SHARDS, "--set", "tokenize.transform=caseops_v1", "--set", "tokenize.val_share=0.3"]


def topics() -> list[str]:
    """English text that ships with Python."""
    from pydoc_data.topics import topics as found

    return [found[name][:1500] for name in sorted(found)[:50]]


def write(path: Path, texts: list[str]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus."""
    return write(tmp_path_factory.mktemp("text") / "docs.jsonl", topics())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with case operators."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train_tokenizer(topics(), 400, TokenizeConfig(transform="caseops_v1")))
    return path


@pytest.fixture(scope="module")
def argv(source: Path, model: Path) -> list[object]:
    """The command but for --out."""
    return ["tokenize", source, "--tokenizer", model, *CASED]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, argv: list[object]) -> Path:
    """The same, never interrupted."""
    out = tmp_path_factory.mktemp("straight") / "data"
    run_here(*argv, "--out", out, "--quiet").good()
    assert len(list(out.glob("*.bin"))) > 30
    return out


@pytest.fixture
def older(argv: list[object], tmp_path: Path) -> Path:
    """A directory that holds a finished dataset of other settings."""
    out = tmp_path / "data"
    settings = ["--set", "tokenize.val_share=0.6", "--set", "tokenize.shard_tokens=30000"]
    run_here(*argv, *settings, "--out", out, "--quiet").good()
    return out


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset but the manifest, hidden ones and working folders included."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json" and path.suffix != ".lock"
    }


def whole(out: Path, straight: Path) -> None:
    """Assert that a directory holds what the uninterrupted run made, and nothing else."""
    assert files(out) == files(straight)
    first, second = (json.loads((folder / "manifest.json").read_text()) for folder in (out, straight))
    assert all(first[key] == second[key] for key in ("key", "splits", "rule", "tokenizer", "empty_documents"))


def usable(out: Path) -> int:
    """Assert that a directory holds a dataset that verifies; the number of its validation tokens."""
    dataset = open_dataset(out)
    dataset.verify()
    return len(dataset.validation()[0])


def start(folder: Path, pause: float, *argv: object, **options: Any) -> subprocess.Popen[str]:
    """The driver in a session of its own."""
    script = folder / "driver.py"
    script.write_text(DRIVER)
    line = [sys.executable, str(script), str(pause), *map(str, argv)]
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )


def reached(out: Path) -> int:
    """The document that the note names; -1 without a note."""
    try:
        return int(json.loads((out / ".partial" / "progress.json").read_text())["next_document"])
    except FileNotFoundError:
        return -1


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """Until something is so."""
    deadline = time.monotonic() + 60
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it did not get there"
        time.sleep(0.005)


def session(leader: int) -> list[int]:
    """Live processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def workers(leader: int) -> list[int]:
    """The worker processes of a session."""
    found = []
    for process in session(leader):
        try:
            line = Path(f"/proc/{process}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"spawn_main" in line:
            found.append(process)
    return found


def gone(leader: int) -> None:
    """Assert that no process of a session outlives it."""
    deadline = time.monotonic() + 10
    while session(leader):
        assert time.monotonic() < deadline, f"left behind: {session(leader)}"
        time.sleep(0.01)


# Kill and signals


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.fault(row="F2")
def test_kill_9_at_random_moments_changes_nothing(
    tmp_path: Path, argv: list[object], straight: Path, older: Path, count: int
) -> None:
    draw, before, place = random.Random(count), usable(older), 0
    line = [*argv, "--out", older, "--set", f"tokenize.workers={count}"]
    for _ in range(4):
        process = start(tmp_path, 0.01, *line)
        target = place + draw.randint(1, 9)
        wait_for(process, lambda target=target: reached(older) >= target)  # type: ignore[misc]
        time.sleep(draw.random() * 0.03)
        process.kill()
        _, err = process.communicate()
        gone(process.pid)
        assert ("going on at document" in err) == (place > 0), err
        assert usable(older) == before, "the older dataset is no longer whole"
        place = reached(older)
    result = run_here(*line).good()
    assert f"going on at document {place:,}" in result.err
    whole(older, straight)


@pytest.mark.slow
@pytest.mark.fault(row="F2")
def test_kill_9_very_often(tmp_path: Path, argv: list[object], straight: Path, older: Path) -> None:
    draw, key, complete = random.Random(7), json.loads((straight / "manifest.json").read_text())["key"], 0
    for round_ in range(40):
        process = start(tmp_path, 0.0, *argv, "--out", older, "--set", f"tokenize.workers={1 + round_ % 2}")
        while process.poll() is None and reached(older) < 0:
            time.sleep(0.005)
        time.sleep(0.2 + draw.random())
        process.kill()
        process.communicate()
        gone(process.pid)
        if not (older / "manifest.json").exists():
            assert (older / ".partial" / "manifest.json").exists()
        elif json.loads((older / "manifest.json").read_text())["key"] != key:
            usable(older)
        else:
            shutil.rmtree(older / ".partial", ignore_errors=True)  # the very last step
            (older / ".manifest.json.owner").unlink(missing_ok=True)
            whole(older, straight)
            shutil.rmtree(older)
            older.mkdir()
            complete += 1
        if complete and not (older / "manifest.json").exists() and not (older / ".partial").exists():
            shutil.copytree(straight, older, dirs_exist_ok=True)
            run_here(*argv, "--set", "tokenize.shard_tokens=30000", "--out", older, "--quiet").good()
    run_here(*argv, "--out", older, "--quiet").good()
    whole(older, straight)
    assert complete > 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.fault(row="F3")
def test_a_signal_ends_cleanly(
    tmp_path: Path, argv: list[object], straight: Path, number: int, code: int, count: int
) -> None:
    out = tmp_path / "data"
    line = [*argv, "--out", out, "--set", f"tokenize.workers={count}"]
    process = start(tmp_path, 0.02, *line)
    wait_for(process, lambda: reached(out) > 5)
    assert len(workers(process.pid)) == (count if count > 1 else 0)
    os.killpg(process.pid, number)  # as a terminal does
    stdout, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    gone(process.pid)
    name = signal.Signals(number).name
    assert stdout == "" and err.splitlines()[-1].startswith(f"interrupted: ended by {name}"), err
    assert len(err.splitlines()) == 1 and f"the same command goes on at document {reached(out):,}" in err, err
    result = run_here(*line).good()
    assert f"going on at document {reached(out) if (out / '.partial').exists() else ''}" in result.err
    whole(out, straight)


def test_a_signal_while_the_workers_start(tmp_path: Path, argv: list[object], straight: Path) -> None:
    out = tmp_path / "data"
    line = [*argv, "--out", out, "--set", "tokenize.workers=4"]
    process = start(tmp_path, 0.02, *line)
    wait_for(process, lambda: len(workers(process.pid)) > 0)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and len(err.splitlines()) == 1 and "interrupted" in err, err
    gone(process.pid)
    run_here(*line).good()
    whole(out, straight)


@pytest.mark.parametrize("count", [2, 30])
@pytest.mark.fault(row="F3")
def test_more_signals_than_one(tmp_path: Path, argv: list[object], straight: Path, count: int) -> None:
    out = tmp_path / "data"
    line = [*argv, "--out", out, "--set", "tokenize.workers=2"]
    process = start(tmp_path, 0.02, *line)
    wait_for(process, lambda: reached(out) > 5)
    for _ in range(count):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.002)
    _, err = process.communicate(timeout=30)
    assert process.returncode in (143, -signal.SIGTERM) and "bug" not in err, err
    gone(process.pid)
    run_here(*line).good()
    whole(out, straight)


def test_a_signal_while_a_tokenizer_is_trained() -> None:
    """SentencePiece must not take the end of its input for the end of the text."""

    def interrupted() -> Iterator[str]:
        yield from topics()[:30]
        raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        train_tokenizer(interrupted(), 300, TokenizeConfig())
    assert caught.value.number == signal.SIGTERM


class Stop(BaseException):
    """A signal that arrives just here."""


@pytest.mark.parametrize("place", ["add", "publish", "hash", "note", "mark"])
@pytest.mark.parametrize("nth", [1, 4])
def test_an_exception_in_the_middle_of_writing(
    tmp_path: Path, argv: list[object], straight: Path, monkeypatch: pytest.MonkeyPatch, place: str, nth: int
) -> None:
    """What was half written when the signal came is written again, and nothing twice."""
    from pgolf.core.files import GrowingFile
    from pgolf.corpus import writer

    targets: dict[str, tuple[Any, str]] = {
        "add": (writer.Stream, "add"),
        "publish": (GrowingFile, "publish"),
        "hash": (writer, "sha256_file"),
        "note": (writer.DatasetWriter, "note"),
        "mark": (writer.DatasetWriter, "mark"),
    }
    owner, name = targets[place]
    function, left = getattr(owner, name), nth + 3

    def fails(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise Interrupted(signal.SIGTERM)
        return function(*args)

    monkeypatch.setattr("pgolf.corpus.workers.BATCH_BYTES", 6000)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        result = run_here(*argv, "--out", tmp_path / "data", "--quiet")
    assert result.code == 143 and left <= 0, (result.err, result.crash)
    result = run_here(*argv, "--out", tmp_path / "data").good()
    assert "going on at document" in result.err
    whole(tmp_path / "data", straight)


@pytest.mark.parametrize("step", [1, 2, 3, 10, 30, -2, -1])
@pytest.mark.fault(row="F2")
def test_the_end_of_the_process_while_files_move_into_place(
    argv: list[object], straight: Path, older: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    from pgolf.corpus import writer

    total = len(list(straight.glob("*.bin"))) + 4  # two lists, the tokenizer, the manifest
    moved, move = 0, writer.move_file

    def ends(source: Path, target: Path) -> None:
        nonlocal moved
        moved += target.parent == older
        if moved == (step if step > 0 else total + 1 + step):
            raise Stop
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "move_file", ends)
        with pytest.raises(Stop):
            run_here(*argv, "--out", older, "--quiet")
    assert not (older / "manifest.json").exists()
    run_here("train", older, "--out", older.parent / "t", "--preset", "tiny", "--quiet").refused(3, "not finished")
    monkeypatch.setattr("pgolf.stages.tokenize.tokenized", None)  # there is nothing left to tokenize
    assert run_here(*argv, "--out", older, "--json").good().document["fresh"] is False
    whole(older, straight)
    assert run_here(*argv, "--out", older, "--json").good().document["fresh"] is True


# What is left lying around


@pytest.fixture
def half(tmp_path: Path, argv: list[object], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a run that was interrupted after a good part of the documents."""
    from pgolf.corpus import writer

    monkeypatch.setattr("pgolf.corpus.workers.BATCH_BYTES", 3000)
    mark, left = writer.DatasetWriter.mark, 12

    def fails(self: Any, place: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Interrupted(signal.SIGTERM)
        mark(self, place)

    with monkeypatch.context() as patch:
        patch.setattr(writer.DatasetWriter, "mark", fails)
        assert run_here(*argv, "--out", tmp_path / "data").code == 143
    assert reached(tmp_path / "data") > 20
    return tmp_path / "data"


def test_it_goes_on_and_says_where(argv: list[object], straight: Path, half: Path) -> None:
    assert f"going on at document {reached(half)}\n" in run_here(*argv, "--out", half).good().err
    whole(half, straight)


@pytest.mark.parametrize("kind", ["shard", "sidecar", "growing", "list", "tokenizer", "note", "empty note", "no note"])
def test_damaged_leftovers_mean_starting_over(argv: list[object], straight: Path, half: Path, kind: str) -> None:
    partial = half / ".partial"
    noted = json.loads((partial / "progress.json").read_text())["splits"]["train"]["fineweb_train"]
    assert noted["entries"] > 0
    names = {
        "shard": "fineweb_train_000002.bin",
        "sidecar": "fineweb_val_bytes_000001.bin",
        "growing": next(partial.glob(f"fineweb_train_{len(noted['shards']):06d}.bin*")).name,
        "list": "documents_train.growing",
        "tokenizer": "tokenizer.model",
    }
    path = partial / names.get(kind, "progress.json")
    content = path.read_bytes()
    if kind in ("growing", "list", "note"):
        path.write_bytes(content[:200])
    elif kind == "no note":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if kind != "empty note" else b"")
    assert "going on" not in run_here(*argv, "--out", half).good().err
    whole(half, straight)


def test_other_settings_start_over(argv: list[object], straight: Path, half: Path, tmp_path: Path) -> None:
    other = ["--set", "tokenize.shard_tokens=900"]
    assert "going on" not in run_here(*argv, *other, "--out", half).good().err
    run_here(*argv, *other, "--out", tmp_path / "fresh").good()
    whole(half, tmp_path / "fresh")
    run_here(*argv, "--out", half).good()
    whole(half, straight)


def test_force_starts_over(argv: list[object], straight: Path, half: Path) -> None:
    assert "going on" not in run_here(*argv, "--out", half, "--force").good().err
    whole(half, straight)


@pytest.mark.parametrize("force", [False, True])
def test_a_complete_working_folder_that_is_damaged(
    argv: list[object], straight: Path, tmp_path: Path, force: bool
) -> None:
    out = tmp_path / "data"
    shutil.copytree(straight, out / ".partial")
    path = out / ".partial" / "fineweb_train_000003.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    (out / ".partial" / "fineweb_train_000001.bin").unlink()
    assert run_here(*argv, "--out", out, "--json", *["--force"] * force).good().document["fresh"] is False
    whole(out, straight)


def test_a_trained_tokenizer_is_kept(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pgolf.corpus import writer

    line = ["tokenize", source, *CASED, "--set", "tokenize.vocab_size=400"]
    run_here(*line, "--out", tmp_path / "straight", "--quiet").good()
    with monkeypatch.context() as patch:

        def stop(*args: Any) -> None:
            raise Interrupted(signal.SIGTERM)

        patch.setattr(writer.SplitWriter, "add", stop)
        assert run_here(*line, "--out", tmp_path / "data").code == 143
    monkeypatch.setattr("pgolf.stages.tokenize.train_tokenizer", None)
    run_here(*line, "--out", tmp_path / "data").good()
    whole(tmp_path / "data", tmp_path / "straight")


# Errors in text and workers


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_first_bad_document_is_named(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("pgolf.corpus.workers.BATCH_BYTES", 3000)
    path, out = write(tmp_path / "docs.jsonl", topics()), tmp_path / "data"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[40], lines[42], lines[48] = b'{"text": "\xff"}\n', b"{\n", b'{"text": 5}\n'
    path.write_bytes(b"".join(lines))
    line = ["tokenize", path, "--tokenizer", model, *CASED, "--out", out, "--quiet"]
    for _ in range(2):
        result = run_here(*line, "--json", "--set", f"tokenize.workers={count}")
        result.refused(3, "UTF-8", "byte 10", f"{path}, line 41", "convert")
        assert result.document["error"]["kind"] == "InputError"
        assert not (out / "manifest.json").exists() and reached(out) > 20


def spoon_fed(tmp_path: Path, model: Path, out: Path, count: int) -> subprocess.Popen[bytes]:
    """Tokenization of standard input, which has not ended."""
    line = ["tokenize", "-", "--tokenizer", model, *CASED, "--out", out, "--set", f"tokenize.workers={count}"]
    process = subprocess.Popen(
        command(*line), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    process.stdin.write(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in topics() * 20))
    process.stdin.flush()
    return process


def wait_for_workers(process: subprocess.Popen[bytes], count: int) -> None:
    """Until all are there."""
    deadline = time.monotonic() + 60
    while len(workers(process.pid)) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_is_killed(tmp_path: Path, model: Path, number: int) -> None:
    process = spoon_fed(tmp_path, model, tmp_path / "data", 2)
    wait_for_workers(process, 2)
    for worker in workers(process.pid):
        os.kill(worker, number)
    _, err = process.communicate(topics()[0].encode(), timeout=60)
    assert process.returncode == 5, err
    line = err.decode()
    assert line.startswith("error:") and len(line.splitlines()) == 1 and f"signal {int(number)}" in line, line
    assert ("tokenize.workers=1" in line) == (number == signal.SIGKILL)
    gone(process.pid)
    assert not (tmp_path / "data" / "manifest.json").exists()


@pytest.mark.fault(row="F20")
def test_a_second_process_is_turned_away(tmp_path: Path, model: Path, argv: list[object], straight: Path) -> None:
    out = tmp_path / "data"
    process = spoon_fed(tmp_path, model, out, 2)
    try:
        wait_for_workers(process, 2)
        before = files(out)
        for more in ([], ["--force"]):
            run_here(*argv, "--out", out, *more, "--quiet").refused(7, f"process {process.pid}", "--out")
        assert set(files(out)) >= set(before)
    finally:
        process.kill()
        process.communicate()
    gone(process.pid)
    run_here(*argv, "--out", out, "--quiet").good()
    whole(out, straight)


# Disk


LEFT_OPEN = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""A file may stay open when the very first write fails: the process ends then."""


def fails_at_every(step: int, number: int, argv: list[object], straight: Path, older: Path, patches: Any) -> None:
    """The disk is full from every `step`-th request on: exit code 6, the older dataset or all of the new one is there,
    and the same command goes through once there is room.
    """
    before, failures, fail_at = usable(older), 0, 1
    while True:
        out = older.parent / f"at{fail_at}"
        shutil.copytree(older, out)
        with patches.context() as patch:
            patch.setattr("pgolf.corpus.workers.BATCH_BYTES", 20_000)
            Disk(fail_at, number, once=False, put=partial(patch.setattr, raising=False))
            result = run_here(*argv, "--out", out, "--quiet")
        if result.code == 0:
            break
        line = result.refused(6)
        assert ("no space left" in line) == (number == errno.ENOSPC), line
        if (out / "manifest.json").exists():
            assert usable(out) == before
        else:
            assert json.loads((out / ".partial" / "manifest.json").read_text())["splits"]
        run_here(*argv, "--out", out, "--quiet").good()
        whole(out, straight)
        shutil.rmtree(out)
        failures, fail_at = failures + 1, fail_at + step
    assert failures * step > 120, "shards, sidecars, lists, notes, tokenizer, manifest, and all the renames"


@LEFT_OPEN
@pytest.mark.parametrize(("step", "number"), [(37, errno.ENOSPC), (61, errno.EIO)])
@pytest.mark.fault(row="F6")
def test_a_full_disk_loses_nothing(
    argv: list[object], straight: Path, older: Path, monkeypatch: pytest.MonkeyPatch, step: int, number: int
) -> None:
    fails_at_every(step, number, argv, straight, older, monkeypatch)


@pytest.mark.slow
@LEFT_OPEN
@pytest.mark.fault(row="F6")
def test_a_full_disk_at_many_more_requests(
    argv: list[object], straight: Path, older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_at_every(11, errno.ENOSPC, argv, straight, older, monkeypatch)


@pytest.mark.fault(row="F5")
def test_a_limit_on_file_sizes(tmp_path: Path, model: Path, older: Path) -> None:
    """As the system itself refuses, and with workers."""
    before, limit = usable(older), 300_000
    assert model.stat().st_size < limit
    path = write(tmp_path / "docs.jsonl", topics() * 16)
    line: list[object] = ["tokenize", path, "--tokenizer", model, *CASED, "--set", "tokenize.shard_tokens=1000000"]
    done = subprocess.run(
        command(*line, "--out", older, "--quiet", "--set", "tokenize.workers=2"),
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    Result(done.returncode, done.stdout, done.stderr).refused(6, "no space left", "fineweb_train_000000.bin")
    assert usable(older) == before
    for out in (older, tmp_path / "straight"):
        run_here(*line, "--out", out, "--quiet").good()
    whole(older, tmp_path / "straight")


@pytest.mark.fault(row="F24")
def test_a_place_that_cannot_be_written(argv: list[object]) -> None:
    run_here(*argv, "--out", "/proc/nowhere/data", "--quiet").refused(6, "/proc/nowhere")


@pytest.mark.parametrize(("stdout", "code"), [(">&-", 0), ("| true", 0), (">/dev/full", 6), ("2>&- >&- <&-", 0)])
@pytest.mark.fault(row="F28")
def test_nobody_reads_the_result(tmp_path: Path, argv: list[object], straight: Path, stdout: str, code: int) -> None:
    import shlex

    line = shlex.join(command(*argv, "--out", tmp_path / "data", "--set", "tokenize.workers=2"))
    script = f'set -o pipefail; {line} {stdout}; echo "code $?" >&3'
    done = subprocess.run(
        ["bash", "-c", f"exec 3>{tmp_path / 'code'}; {script}"], capture_output=True, text=True, timeout=60
    )
    assert (tmp_path / "code").read_text() == f"code {code}\n", done.stderr
    assert "Traceback" not in done.stderr and "bug" not in done.stderr
    whole(tmp_path / "data", straight)


def test_standard_input_that_is_closed(tmp_path: Path, model: Path) -> None:
    import shlex

    line = shlex.join(command("tokenize", "-", "--tokenizer", model, *CASED, "--out", tmp_path / "data", "--quiet"))
    done = subprocess.run(["bash", "-c", f"{line} <&-"], capture_output=True, text=True, timeout=60)
    Result(done.returncode, done.stdout, done.stderr).refused(3, "standard input", "closed")


# Size


def peak_bytes(process: subprocess.Popen[Any]) -> int:
    """The most memory that a process and its children had at one time, looked at every few milliseconds."""
    peak = 0
    while process.poll() is None:
        used = 0
        for member in session(process.pid):
            try:
                used += int(Path(f"/proc/{member}/statm").read_text().split()[1]) * resource.getpagesize()
            except (FileNotFoundError, ProcessLookupError):
                continue
        peak = max(peak, used)
        time.sleep(0.03)
    return peak


def random_words(kind: str, draw: random.Random) -> str:
    """100 MB of random characters without any blank; a million of them, again and again."""
    alphabets = {
        "letters": string.ascii_letters,
        "capitals": string.ascii_uppercase,
        "printable": string.ascii_letters + string.digits + string.punctuation,
        "planes": "".join(map(chr, (*range(0xC0, 0x250), *range(0x4E00, 0x5E00), *range(0x1F300, 0x1F600)))),
    }
    text = "".join(draw.choices(alphabets[kind], k=1_000_000))
    return text * (100_000_000 // len(text.encode()) + 1)


def large(path: Path, kind: str) -> Path:
    """A large source."""
    text = " ".join(topics())
    text *= 100_000_000 // len(text) + 1
    text = text[:100_000_000]
    if kind == "emoji":
        text = text[: len(text) // 2] + "\U0001f600" + text[len(text) // 2 :]
    elif kind == "escapes":
        text = text[:20_000_000].replace("e", "\U0001f600")
    elif kind == "no blank":
        text = text.replace(" ", "").replace("\n", "")
    elif kind in RANDOM:
        text = random_words(kind, random.Random(1))
    with path.open("w", encoding="utf-8") as file:
        if kind == "many":
            for index in range(0, 300_000_000, 3000):
                place = index % 99_000_000
                file.write(json.dumps({"text": f"{index} {text[place : place + 3000]}"}) + "\n")
        else:
            for document in (text, "a short one", "and another"):
                file.write(json.dumps({"text": document}, ensure_ascii=kind == "escapes") + "\n")
    return path


LIMITS = {"many": 400e6, "ascii": 500e6, "emoji": 500e6, "escapes": 500e6, "no blank": 600e6}
"""The most bytes of memory that pgolf and its workers may take for a kind of source; 700 MB for others."""
UNCUTTABLE = {("capitals", "caseops_v1")}
"""Capitals alone are one word to CaseOps, which is refused."""
RANDOM = ("letters", "capitals", "printable", "planes")


@pytest.mark.slow
@pytest.mark.parametrize("transform", ["none", "caseops_v1"])
@pytest.mark.parametrize("kind", [*LIMITS, *RANDOM])
def test_memory_stays_bounded(tmp_path: Path, kind: str, transform: str) -> None:
    model = tmp_path / "tokenizer.model"
    model.write_bytes(train_tokenizer(topics() * 2, 1024, TokenizeConfig(transform=transform)))
    path = large(tmp_path / "docs.jsonl", kind)
    settings = [f"tokenize.transform={transform}", "tokenize.split=first", "tokenize.val_docs=1", "tokenize.workers=2"]
    sets = [word for setting in settings for word in ("--set", setting)]
    line = command("tokenize", path, "--tokenizer", model, *sets, "--out", tmp_path / "data", "--quiet")
    with (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=err, start_new_session=True)
        peak = peak_bytes(process)
    print(f"{kind}, {transform}: {peak / 1e6:,.0f} MB")
    assert peak < LIMITS.get(kind, 700e6)
    message = (tmp_path / "err").read_text()
    if (kind, transform) in UNCUTTABLE:
        Result(process.returncode, "", message).refused(3, f"{path}, line 1", "no place to cut", "blanks")
        assert not (tmp_path / "data" / "manifest.json").exists()
        return
    assert process.returncode == 0, message
    usable(tmp_path / "data")


def test_shards_that_nobody_accounts_for_are_not_removed(tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"{topic} {index}"}) + "\n" for index, topic in enumerate(topics())))
    out = tmp_path / "data"
    out.mkdir()
    write_shard(out / "fineweb_train_000007.bin", np.array([1, 2, 3]))
    before = (out / "fineweb_train_000007.bin").read_bytes()
    line = ("tokenize", text, "--out", out, "--preset", "tiny", "--quiet")
    run_here(*line).refused(2, "fineweb_train_000007.bin", "--force")
    assert (out / "fineweb_train_000007.bin").read_bytes() == before
    run_here(*line, "--force").good()
    assert not (out / "fineweb_train_000007.bin").exists()
