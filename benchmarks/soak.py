"""Random pipelines with random faults, for as long as asked: whatever happens, nothing is lost but time.

A pipeline of random settings runs twice: undisturbed, and with faults at random places. Its stages are killed,
interrupted, refused by the disk (the n-th request fails, or files may not grow further); files that they have made get
a flipped bit or lose their end. After each fault every file that verified must verify still, the exit code must be one
of those documented, and there must be no traceback; in the end both pipelines must have made the same, and left nothing
else behind. Exit code 1 when anything was wrong.
"""

import errno
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.__main__ import write_text
from benchmarks.faults.disk import CRASH, Disk
from benchmarks.faults.stages import LEFT, good, lasting, limit_threads, moving, state, unfinished
from benchmarks.faults.stopping import SIGNALS
from benchmarks.faults.victims import Ended, Hang, Victim, run
from benchmarks.report import parser, show
from pgolf.core.errors import PgolfError

FAULTS = ("kill", "crash", "signal", "two signals", "request fails", "disk full", "file limit", "flip", "cut")
SETTINGS: dict[str, tuple[tuple[str, ...], ...]] = {
    "tokenize": (("tokenize.shard_tokens=40000",), ("tokenize.shard_tokens=100000", "tokenize.val_share=0.2"), ()),
    "train": (
        *(("train.checkpoint_every=3",), ("train.average=ema", "train.checkpoint_every=4")),
        *(("train.loader.kind=shuffled",), ("model.mlp=swiglu",), ("train.prefetch=0", "train.seed=7")),
    ),
    "quantize": (("quant.bits=5",), ("quant=sdclip",), ("quant.bits=7",), ("quant=int8_rows",)),
    "compress": (("compress=zlib",), ("compress=zstd",), ("compress=lzma",), ("compress=rans",), ("compress=brotli",)),
    "eval": ((), ("eval.stride=16",), ("eval.batch_seqs=3",)),
    "ttt": ((), ("ttt.chunk_tokens=512",), ("ttt=lora",)),
    "package-submission": ((),),
}
"""Stage -> settings to choose from."""
ALLOWED = {
    "kill": {-signal.SIGKILL}, "crash": {-signal.SIGKILL}, "signal": {*SIGNALS.values()},
    "two signals": {*SIGNALS.values()}, "request fails": {6}, "disk full": {6}, "file limit": {6},
    "flip": {2, 3}, "cut": {2, 3},
}  # fmt: skip
"""Exit codes beside 0, which a command ends with that was faster, or did not need what failed."""


def lines(place: Path, text: Path, tokenizer: Path, sets: dict[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """Stage -> command line, of a pipeline in one folder."""
    data, train, quantized = place / "data", place / "train", place / "quantize" / "quantized.safetensors"
    artifact = place / "compress" / "model.pgz"
    found: dict[str, list[Any]] = {
        "tokenize": ["tokenize", text, "--out", data, "--tokenizer", tokenizer, "--set", "tokenize.workers=1"],
        "train": ["train", data, "--out", train],
        "quantize": ["quantize", train / "checkpoint.safetensors", "--data", data, "--out", quantized],
        "compress": ["compress", quantized, "--out", artifact],
        "eval": ["eval", artifact, "--data", data, "--out", place / "eval" / "score.json"],
        "ttt": ["ttt", artifact, "--data", data, "--out", place / "ttt" / "score.json"],
        "package-submission": [
            *("package-submission", artifact, "--data", data, "--out", place / "submission"),
            *("--set", "package.prove_steps=0"),
        ],
    }
    common = ["--preset", "tiny", "--quiet"]
    return {
        name: [*map(str, [*found[name], *common]), *(word for text in sets[name] for word in ("--set", text))]
        for name in sets
    }


@dataclass
class Soak:
    """What was done so far, and what went wrong."""

    draw: random.Random
    room: Path
    text: Path
    tokenizer: Path
    done: Counter[str] = field(default_factory=Counter)
    codes: dict[str, Counter[int]] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)

    def pipeline(self) -> None:
        """One pipeline, undisturbed and disturbed."""
        stages = [name for name in SETTINGS if name != "package-submission" or self.draw.random() < 0.3]
        sets = {name: self.draw.choice(SETTINGS[name]) for name in stages}
        if "package-submission" in sets:
            sets["package-submission"] = sets["compress"]
        straight, place = self.room / "straight", self.room / "disturbed"
        goals: dict[str, dict[str, str]] = {}
        for name, line in lines(straight, self.text, self.tokenizer, sets).items():
            ended = run(line)
            if ended.code:
                self.note(f"undisturbed {' '.join(line)}", ended, {0})
                return
            goals[name] = state(straight)
        place.mkdir()
        made = lines(place, self.text, self.tokenizer, sets)
        for name, line in made.items():
            for _ in range(self.draw.choice((0, 1, 1, 2))):
                self.stop(name, line, place, goals[name])
            self.finish(name, line, place)
            if self.draw.random() < 0.25:
                self.damage([made[each] for each in list(made)[: list(made).index(name) + 1]], place)
            try:
                now, goal = lasting(state(place)), lasting(goals[name])
            except PgolfError as error:
                self.bad.append(f"{name} {sets} leaves damage: {error}")
                return
            if now != goal:
                wrong = sorted(file for file in now.keys() | goal.keys() if now.get(file) != goal.get(file))
                self.bad.append(f"{name} {sets} made other files: {', '.join(wrong[:4])}")
        self.done["pipelines"] += 1
        shutil.rmtree(straight)
        shutil.rmtree(place)

    def note(self, fault: str, ended: Ended, allowed: set[int]) -> None:
        """Look at how a command ended."""
        if ended.code not in allowed or ended.traceback:
            self.bad.append(f"{fault}: exit code {ended.code}: {ended.text.strip()[-400:]}")

    def stop(self, name: str, line: list[str], place: Path, goal: dict[str, str]) -> None:
        """Run a stage with a fault on the way."""
        fault = self.draw.choice(FAULTS[:7])
        before = state(place)
        if fault in ("kill", "signal", "two signals"):
            victim = Victim(line)
            time.sleep(self.draw.random() * (4.0 if name == "package-submission" else 1.0))
            sent = signal.SIGKILL if fault == "kill" else self.draw.choice(tuple(SIGNALS))
            for _ in range(2 if fault == "two signals" else 1):
                victim.send(sent)
                time.sleep(0.004)
            ended = victim.wait()
        else:
            at = self.draw.randrange(1, 60)
            number = self.draw.choice((errno.EIO, errno.EINTR, errno.ENOSPC, errno.EDQUOT))
            most = self.draw.choice((0, 1000, 20_000, 100_000, 300_000))
            prepare = {
                "crash": lambda: Disk(at, CRASH),
                "request fails": lambda: Disk(at, number),
                "disk full": lambda: Disk(at, errno.ENOSPC, once=False),
                "file limit": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
            }[fault]
            ended = run(line, prepare)
        self.count(fault, ended)
        self.note(f"{fault} in {name}", ended, ALLOWED[fault] | {0})
        try:
            after = state(place)
        except PgolfError as error:
            self.bad.append(f"{fault} in {name}: damaged: {error}")
            return
        for file, known in before.items():
            if "/ckpt/" in file or "/.partial/" in file or file.endswith(LEFT) or unfinished(place / file):
                continue
            if file not in after and not moving(place):
                self.bad.append(f"{fault} in {name}: {file} is gone")
            elif after.get(file, known) not in (known, goal.get(file)):
                self.bad.append(f"{fault} in {name}: {file} is neither the old nor the new one")

    def count(self, fault: str, ended: Ended) -> None:
        """One more."""
        self.done[fault] += 1
        self.codes.setdefault(fault, Counter())[ended.code] += 1

    def finish(self, name: str, line: list[str], place: Path) -> None:
        """Run a stage to its end."""
        self.note(f"{name} run again", run(line), {0})

    def damage(self, made: list[list[str]], place: Path) -> None:
        """Flip or cut one file that the stages have made; run them again, by force where they refuse it."""
        fault = self.draw.choice(("flip", "cut"))
        kinds = (".bin", ".safetensors", ".pgz", ".npy", ".model")
        found = (path for path in sorted(place.rglob("*")) if path.suffix in kinds)
        files = [path for path in found if not {"submission", "ckpt"} & {*path.parts}]
        path = self.draw.choice(files)
        size = path.stat().st_size
        if fault == "cut":
            os.truncate(path, self.draw.randrange(size))
        else:
            with open(path, "r+b") as file:
                at = self.draw.randrange(size)
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 1 << self.draw.randrange(8)]))
        where = f"{fault} of {path.relative_to(place)}"
        reader = next(line for line in made if line[0] == "quantize") if "hess" in path.name else self.draw.choice(made)
        ended = run([*reader, force(reader[0])])
        self.count(fault, ended)
        self.note(f"{where}, then {reader[0]} by force", ended, ALLOWED[fault] | {0})
        for line in made:
            ended = run(line)
            self.note(f"{where}, then {line[0]}", ended, ALLOWED[fault] | {0})
            if ended.code:
                self.note(f"{where}, then {line[0]} by force", run([*line, force(line[0])]), {0})


def force(command: str) -> str:
    """The option to give up what is there."""
    return "--fresh" if command == "train" else "--force"


def main() -> int:
    """Go on until the time is up."""
    arguments = parser(__doc__)
    arguments.add_argument("--minutes", type=float, default=30)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    limit_threads()
    with tempfile.TemporaryDirectory(prefix="pgolf-soak-") as name:
        room = Path(name)
        text = write_text(room / "topics.jsonl")
        good(run(["tokenize", str(text), "--out", str(room / "first"), "--preset", "tiny", "--quiet"]))
        soak = Soak(random.Random(options.seed), room, text, room / "first" / "tokenizer.model")
        until = time.monotonic() + 60 * options.minutes
        while time.monotonic() < until or not soak.done["pipelines"]:
            told = len(soak.bad)
            try:
                soak.pipeline()
            except Hang as hang:
                soak.bad.append(f"hang: {hang}")
            for folder in ("straight", "disturbed"):
                shutil.rmtree(room / folder, ignore_errors=True)
            for line in soak.bad[told:]:
                print(line, file=sys.stderr, flush=True)
    rows = [
        {"fault": fault, "times": soak.done[fault], "exit codes": ", ".join(
            f"{code} {count} times" for code, count in sorted(soak.codes.get(fault, Counter()).items())
        ) or "none"}
        for fault in FAULTS
    ]  # fmt: skip
    total = sum(soak.done[fault] for fault in FAULTS)
    what = f"{soak.done['pipelines']} pipelines, {total} faults in {options.minutes:g} minutes; {len(soak.bad)} wrong"
    show("soak", options, rows, [what, *soak.bad])
    return bool(soak.bad)


if __name__ == "__main__":
    sys.exit(main())
