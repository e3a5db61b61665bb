"""A rank says how it ended, whatever comes meanwhile."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import distributed

from pgolf.config.load import resolve
from pgolf.core import tensorfile
from pgolf.core.dist import World, arrived
from pgolf.core.errors import SetupError
from pgolf.core.train.loop import start_state
from pgolf.report.console import Console
from pgolf.stages import launch
from pgolf.stages.checkpoints import Checkpoints, generator_states, restore_generators
from pgolf.stages.signals import Interrupted


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the report goes; signal handlers are as before afterwards, and nothing is redirected."""
    monkeypatch.setattr(launch, "redirect", lambda folder, rank: None)
    before = {number: signal.getsignal(number) for number in launch.ENDING}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


def report(folder: Path) -> dict[str, object]:
    """What the first rank said."""
    found: dict[str, object] = json.loads(launch.report_path(folder, 0).read_text())
    return found


def test_a_signal_while_a_failure_is_noted_loses_no_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(place: Path) -> dict[str, object]:
        raise RuntimeError("the connection is closed")

    def stopped() -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return "never"

    monkeypatch.setattr(launch, "work_as_rank", fail)
    monkeypatch.setattr(traceback, "format_exc", stopped)
    assert launch.main(folder, 0) == 143
    assert report(folder)["signal"] == signal.SIGTERM


def test_failures_are_told_with_their_exit_codes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(place: Path) -> dict[str, object]:
        raise SetupError("no GPU", "here", "buy one")

    monkeypatch.setattr(launch, "work_as_rank", fail)
    assert launch.main(folder, 0) == 5
    assert {"error": "SetupError", "what": "no GPU", "where": "here", "fix": "buy one"}.items() <= report(
        folder
    ).items()
    monkeypatch.setattr(launch, "work_as_rank", lambda place: {"entry": {}, "warnings": []})
    assert launch.main(folder, 0) == 0 and report(folder)["entry"] == {}


def test_a_signal_while_things_are_put_away_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it comes while the generator that reads batches waits for its thread."""
    told: list[object] = []
    monkeypatch.setattr(sys, "__unraisablehook__", told.append)
    signals, others = SimpleNamespace(exc_value=Interrupted(15)), SimpleNamespace(exc_value=KeyError("lost"))
    launch.unraisable(signals)  # type: ignore[arg-type]
    launch.unraisable(others)  # type: ignore[arg-type]
    assert told == [others]


class Left(BaseException):
    """In the place of the end of a process."""


def test_a_rank_ends_when_another_is_lost_and_nothing_is_being_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """While all live it goes on however long."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        looks: list[bool] = []
        written: list[bool] = []

        def found(launcher: int) -> set[int]:
            looks.append(launch.lives(other.pid))
            if len(looks) == 20:
                other.kill()  # and nobody asks for its exit code: it stays as a zombie
            assert len(looks) < 1000
            return {other.pid, os.getpid()}

        def writes() -> bool:
            written.append(len(written) < 7)
            return written[-1]

        def leave(code: int) -> None:
            raise Left(code)

        monkeypatch.setattr(launch, "ranks_of", found)
        monkeypatch.setattr(launch, "writes", writes)
        monkeypatch.setattr(launch, "WATCH_S", 0.02)
        monkeypatch.setattr(launch, "LOST_S", 0.1)
        monkeypatch.setattr(os, "_exit", leave)
        with pytest.raises(Left, match="143"):
            launch.end_with(os.getppid(), tmp_path)
    assert all(looks[:20]) and not looks[-1] and len(written) == 8 and 30 < len(looks) < 40


RANK = """if True:
    import os, sys, threading, time
    from pathlib import Path
    from pgolf.stages import launch
    launch.WATCH_S, launch.LOST_S = 0.05, 0.3
    threading.Thread(target=launch.end_with, args=(os.getppid(), Path(sys.argv[1])), daemon=True).start()
    print("up", flush=True)
    {hang}
"""


@pytest.mark.parametrize("hang", ["time.sleep(600)", "all(iter(lambda: 1, 0))", "open(sys.argv[1] + '/pipe').read()"])
def test_a_rank_ends_with_another_wherever_it_is(tmp_path: Path, hang: str) -> None:
    """In no collective operation that a frame would show, as one that waits for its GPU; signals change nothing."""
    os.mkfifo(tmp_path / "pipe")
    ranked = {**os.environ, "RANK": "0"}
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=ranked) as other,
        subprocess.Popen(
            [sys.executable, "-c", RANK.format(hang=hang), str(tmp_path)], stdout=subprocess.PIPE, env=ranked
        ) as stuck,
    ):
        try:
            assert stuck.stdout is not None and stuck.stdout.readline() == b"up\n"
            time.sleep(1.0)
            assert stuck.poll() is None, "all ranks live"
            other.kill()
            assert stuck.wait(timeout=60) == 143
        finally:
            stuck.kill()


def test_a_rank_is_lost_that_has_ended_without_its_result(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as other:
        ranks = {other.pid, os.getpid()}
        deadline = time.monotonic() + 60
        while launch.lives(other.pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert launch.is_lost(ranks, tmp_path) and not launch.is_lost({os.getpid()}, tmp_path)
    launch.write_json(launch.report_path(tmp_path, 1), {"bug": "none", "traceback": "", "time": 0.0})
    assert launch.is_lost(ranks, tmp_path), "it has failed"
    launch.write_json(launch.report_path(tmp_path, 1), {"entry": {}, "warnings": [], "time": 0.0})
    assert not launch.is_lost(ranks, tmp_path), "it has done what it was to do"


def test_ranks_are_the_children_that_were_started_as_such() -> None:
    waiting = [sys.executable, "-c", "input()"]
    with (
        subprocess.Popen(waiting, stdin=subprocess.PIPE, env={**os.environ, "RANK": "3"}) as rank,
        subprocess.Popen(waiting, stdin=subprocess.PIPE) as other,
    ):
        deadline = time.monotonic() + 60
        while rank.pid not in (found := launch.ranks_of(os.getpid())):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert other.pid not in found
        for one in (rank, other):
            one.communicate(b"\n")
    assert not launch.lives(rank.pid) and launch.lives(os.getpid())
    assert launch.ranks_of(rank.pid) == set()


def test_a_checkpoint_under_way_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As its own thread writes it."""
    assert not launch.writes()
    held, begun, real = threading.Event(), threading.Event(), tensorfile.write_bytes

    def slow(path: Path, content: bytes) -> None:
        begun.set()
        assert held.wait(60)
        real(path, content)

    config = resolve("tiny").config
    shards = [np.random.default_rng(0).integers(1, 500, 20_000).astype(np.uint16)]
    state = start_state(config.model, config.train, config.optim, shards, 3, World())
    monkeypatch.setattr(tensorfile, "write_bytes", slow)
    with Checkpoints(tmp_path, {}, "key", 2, Console(quiet=True)) as saved:
        assert not launch.writes(), "its thread has nothing to do"
        saved.save(state, state.optimizers.state(), {})
        assert begun.wait(60) and launch.writes()
        held.set()
        saved.settle()
        assert not launch.writes()
    assert len(list(tmp_path.iterdir())) == 2
    seen: list[bool] = []
    launch.write_bytes(tmp_path / "other", (seen.append(launch.writes()) or b"" for _ in range(1)))
    assert seen == [True]


def test_generators_of_a_device_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with noise draws on the device."""
    place, states = torch.device("cuda", 0), {"now": torch.arange(16, dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states["now"].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({device.type: state}))
    torch.manual_seed(5)
    held = generator_states(place)
    drawn = torch.rand(3)
    restore_generators(held, place)
    assert torch.equal(torch.rand(3), drawn) and torch.equal(states["cuda"], states["now"])
    del states["cuda"]
    restore_generators(generator_states(torch.device("cpu")), place)
    assert "cuda" not in states, "a file of a run on a CPU has none"


def raised(where: str, code: str) -> BaseException:
    """What code raises that stands in a file of this name."""
    try:
        exec(compile(code, where, "exec"))
    except Exception as error:
        return error
    raise AssertionError


def test_a_failed_collective_operation_is_told_as_a_lost_rank() -> None:
    broken = "raise RuntimeError('Connection reset by peer\\nmore')"
    found = launch.lost_rank(raised("/torch/distributed/distributed_c10d.py", broken))
    assert found is not None and found.exit_code == 5 and "broke: Connection reset by peer" in found.what
    assert "more" not in str(found)
    assert "RuntimeError" in str(launch.lost_rank(raised("distributed_c10d.py", "raise RuntimeError")))
    assert launch.lost_rank(raised("/torch/nn/modules/linear.py", broken)) is None
    assert launch.lost_rank(raised("/torch/distributed/distributed_c10d.py", "1 / 0")) is None


@pytest.mark.parametrize(
    ("kind", "lost"), [(RuntimeError, True), (distributed.DistBackendError, True), (torch.AcceleratorError, False)]
)
def test_errors_of_the_gpu_are_no_lost_rank(kind: type[RuntimeError], lost: bool) -> None:
    class Work:
        """What is waited for."""

        def wait(self) -> None:
            """In torch it is not written in Python."""
            raise kind("it broke")

    with pytest.raises(kind) as caught:
        arrived(torch.ones(1), Work())
    inner = caught.tb.tb_next
    assert inner is not None and inner.tb_frame.f_code is arrived.__code__
    inner.tb_next = None
    assert (launch.lost_rank(caught.value.with_traceback(caught.tb)) is not None) == lost


@pytest.mark.fault(row="F4")
def test_who_reads_what_all_ranks_agree_on_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's collective operation breaks where its result is read, in no frame of torch's."""

    def broken(tensor: torch.Tensor) -> float:
        raise RuntimeError("it broke")

    monkeypatch.setattr(distributed, "all_reduce", lambda tensor, op: None)
    for name in ("tolist", "item", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, broken)
    with pytest.raises(RuntimeError, match="it broke") as caught:
        World(size=2).largest(1.0)
    frames = caught.tb
    while frames.tb_next and frames.tb_next.tb_frame.f_code is not broken.__code__:
        frames = frames.tb_next
    frames.tb_next = None
    assert launch.lost_rank(caught.value.with_traceback(caught.tb)) is not None


def test_the_rank_that_was_seen_to_end_first_is_named(tmp_path: Path) -> None:
    """Another may have been killed because it did not end by itself."""
    error = launch.first_failure(tmp_path, 4, {2: -9, 0: -9, 1: 143}, {}, "train")
    assert "rank 2 of 4 was ended by SIGKILL" in str(error)


def test_a_rank_without_a_report_is_named_before_those_that_lost_it(tmp_path: Path) -> None:
    lost = {"error": "SetupError", "what": "broke", "where": "torchrun", "fix": "", "time": 1.0, "lost": True}
    found = launch.first_failure(tmp_path, 2, {0: 5, 1: 9}, {0: lost}, "train")
    assert "rank 1 of 2 ended with exit code 9 and no report" in str(found)
    told = {"error": "InputError", "what": "no shard", "where": "here", "fix": "", "time": 2.0}
    found = launch.first_failure(tmp_path, 3, {0: 5, 2: 3, 1: -6}, {0: lost, 2: told}, "train")
    assert "rank 2 of 3: no shard" in str(found)
    assert "rank 0 of 2: broke" in str(launch.first_failure(tmp_path, 2, {0: 5}, {0: lost}, "train"))


WAITING = """if True:
    import os, sys, time, torch
    from pgolf.core.dist import World, arrived, join_world
    from pgolf.stages.launch import attempt, lost_rank
    from pgolf.stages import launch
    world = join_world("cpu")
    world.barrier()
    if world.rank:
        os._exit(9)
    waits = [
        lambda: arrived(*world.gather(torch.ones(4, 4))),
        lambda: arrived(*world.scatter(torch.ones(4, 4))),
        lambda: world.largest(1.0),
        lambda: world.barrier(),
    ]
    for wait in waits:
        launch.work_as_rank = lambda folder: wait()
        report, code = attempt(None)
        print(code, report.get("lost"), report.get("what"), flush=True)
    os._exit(0)
"""


def test_waiting_for_a_rank_that_has_gone_is_told_as_that() -> None:
    """By gloo itself, in two processes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    place = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True, env=place | {"RANK": rank})
        for rank in "01"
    ]
    said, _ = [rank.communicate(timeout=120)[0].splitlines() for rank in ranks]
    assert len(said) == 4, said
    assert all(line.startswith("5 True the connection to another rank broke: ") for line in said), said
