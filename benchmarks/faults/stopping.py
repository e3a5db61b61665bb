"""Commands that are stopped: killed, interrupted, refused by the disk. Nothing that was there is lost, and the same
command run again makes what it would have made undisturbed.
"""

import errno
import random
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.faults.disk import CRASH, Disk
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.stages import STAGES, Bench, Prepared, Stage
from benchmarks.faults.victims import Ended, Hang, Victim, run

EVERY = (errno.EIO, errno.ENOSPC, errno.EINTR, errno.EDQUOT)
SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


def stages(names: Iterable[str]) -> list[Stage]:
    """Stages by name."""
    return [stage for stage in STAGES if stage.name in names]


def judged(outcome: Outcome, prepared: Prepared, place: Path, ended: Ended, codes: set[int], fault: str) -> None:
    """Count a round, and note what is wrong after it."""
    where = f"{prepared.stage.name}, {fault}"
    outcome.rounds += 1
    if ended.code not in codes:
        outcome.bad.append(f"{where}: exit code {ended.code}: {ended.text.strip()[-300:]}")
    if ended.traceback or (ended.code > 0 and "Errno" in ended.text):
        outcome.bad.append(f"{where}: {ended.text.strip()[-300:]}")
    try:
        lost = prepared.harmed(place) or prepared.recovered(place)
    except Hang as hang:
        lost = str(hang)
    if lost:
        outcome.bad.append(f"{where}: {lost}")


def kill(bench: Bench, rounds: int, names: Iterable[str]) -> Outcome:
    """kill -9 at a random moment, `rounds` times for each stage; a command that was faster does not count."""
    outcome, draw = Outcome(), random.Random(rounds)
    for stage in stages(names):
        prepared, killed, late = bench.prepared(stage), 0, 0
        while killed < rounds and late < 20 * rounds + 20:
            place = prepared.fresh()
            victim = Victim(stage.line(bench, place))
            time.sleep(draw.random() * prepared.seconds)
            victim.send(signal.SIGKILL)
            ended = victim.wait()
            if ended.code != -signal.SIGKILL:
                late += 1
                continue
            killed += 1
            judged(outcome, prepared, place, ended, {-signal.SIGKILL}, f"kill {killed}")
        if killed < rounds:
            outcome.bad.append(f"{stage.name}: only {killed} of {rounds} were killed in time")
    return outcome


def chosen(total: int, most: int) -> Iterator[int]:
    """The numbers 1 to `total`, or `most` of them evenly spread."""
    yield from (
        range(1, total + 1) if total <= most else sorted({1 + i * (total - 1) // (most - 1) for i in range(most)})
    )


def requests(bench: Bench, stage: Stage) -> int:
    """How often a stage asks to write."""
    prepared = bench.prepared(stage)
    told = bench.room / "requests"
    ended = run(stage.line(bench, prepared.fresh()), partial(Disk, 0, CRASH, told=told))
    assert ended.code == 0, ended.text
    return int(told.read_text())


def crash(bench: Bench, most: int, names: Iterable[str]) -> Outcome:
    """The process ends at its n-th request to write, for every n (or `most` of them)."""
    outcome, counts = Outcome(), Counter[str]()
    for stage in stages(names):
        prepared, total = bench.prepared(stage), requests(bench, stage)
        counts[stage.name] = total
        for number in chosen(total, most):
            place = prepared.fresh()
            ended = run(stage.line(bench, place), partial(Disk, number, CRASH))
            judged(outcome, prepared, place, ended, {-signal.SIGKILL}, f"crash at request {number}")
    return outcome.saying("requests to write: " + ", ".join(f"{name} {count}" for name, count in counts.items()))


def failing(bench: Bench, most: int, names: Iterable[str]) -> Outcome:
    """The n-th request to write fails, for every n and each error number (or for `most` n, with one number each). A
    full disk stays full. Exit code 6, or 0 where the request was not needed and the result is whole.
    """
    outcome, codes = Outcome(), Counter[int]()
    for stage in stages(names):
        prepared, total = bench.prepared(stage), requests(bench, stage)
        for index, at in enumerate(chosen(total, most)):
            for number in EVERY if most >= total * len(EVERY) else (EVERY[index % len(EVERY)],):
                full = number in (errno.ENOSPC, errno.EDQUOT)
                place = prepared.fresh()
                ended = run(stage.line(bench, place), partial(Disk, at, number, once=not full))
                codes[ended.code] += 1
                judged(outcome, prepared, place, ended, {0, 6}, f"{errno.errorcode[number]} at request {at} of {total}")
                if ended.code == 6 and ("no space left" in ended.text) != full:
                    outcome.bad.append(f"{stage.name}, {errno.errorcode[number]}: says {ended.text.strip()[-200:]}")
    return outcome.saying(f"{codes[6]:,} ended with 6, {codes[0]:,} did not need it")


def file_limit(bench: Bench, rounds: int, names: Iterable[str]) -> Outcome:
    """RLIMIT_FSIZE: no file may grow beyond so many bytes, `rounds` limits for each stage, from 0 to its largest."""
    outcome = Outcome()
    for stage in stages(names):
        prepared = bench.prepared(stage)
        place = prepared.fresh()
        assert run(stage.line(bench, place)).code == 0
        largest = max(path.stat().st_size for path in place.rglob("*") if path.is_file())
        for index in range(rounds):
            most = largest * index // rounds
            place = prepared.fresh()
            ended = run(stage.line(bench, place), partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most)))
            judged(outcome, prepared, place, ended, {0, 6}, f"files of at most {most:,} bytes")
    return outcome


def small_disk(bench: Bench, rounds: int, names: Iterable[str]) -> Outcome:
    """A file system of its own in memory, with room for the old files and a share of the new ones, `rounds` shares for
    each stage. Skipped where this process may not mount one.
    """
    outcome = Outcome()
    for stage in stages(names):
        prepared = bench.prepared(stage)
        place = prepared.fresh()
        assert run(stage.line(bench, place)).code == 0
        old, new = (sum(path.stat().st_size for path in folder.rglob("*")) for folder in (prepared.template, place))
        for index in range(rounds):
            room = bench.room / f"{stage.name} disk {index}"
            room.mkdir()
            size = old + (64 << 10) + new * index // rounds
            if subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", room], capture_output=True
            ).returncode:
                return outcome.saying("skipped: no right to mount a file system")
            try:
                place = Path(shutil.copytree(prepared.template, room / "in"))
                ended = run(stage.line(bench, place))
                subprocess.run(["mount", "-o", "remount,size=256m", room], check=True)
                judged(outcome, prepared, place, ended, {0, 6}, f"a disk of {size:,} bytes")
            finally:
                subprocess.run(["umount", room], check=True)
    return outcome


def interrupted(bench: Bench, rounds: int, names: Iterable[str]) -> Outcome:
    """SIGTERM, SIGINT or SIGHUP, once or twice, at a random moment, `rounds` times for each stage."""
    outcome, draw = Outcome(), random.Random(rounds)
    ways = [(number, times) for number in SIGNALS for times in (1, 2)]
    for offset, stage in enumerate(stages(names)):
        prepared = bench.prepared(stage)
        for index in range(rounds):
            number, times = ways[(index + 2 * offset) % len(ways)]
            place = prepared.fresh()
            victim = Victim(stage.line(bench, place))
            time.sleep((0.1 + 0.85 * draw.random()) * prepared.seconds)
            for _ in range(times):
                victim.send(number)
                time.sleep(0.005)
            fault = f"{signal.Signals(number).name}, {times} times, {index}"
            judged(outcome, prepared, place, victim.wait(), {0, SIGNALS[number], -number}, fault)
    return outcome
