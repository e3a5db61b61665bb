"""The stages that write: how each is called, and what its folder holds before, after, and after a fault."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.victims import Ended, run, warm
from pgolf.cli.main import main
from pgolf.core.errors import InputError, PgolfError
from pgolf.core.files import parse_json, read_json
from pgolf.core.tensorfile import load_tensors, tensor_meta
from pgolf.dataset import DATASET_SCHEMA, open_dataset
from pgolf.stages.model_files import load_artifact

LEFT = (".part", ".growing", ".owner", ".old", ".tmp", ".ledger")
"""Endings of files that a finished command leaves none of."""
LOGS = (".log", ".md")
"""Endings of files that state dates and seconds."""
SMALL = ["--preset", "tiny", "--quiet"]


@dataclass(frozen=True)
class Stage:
    """`argv` takes the finished run, the folder it works in and settings; `before` and `after` are the settings of an
    older output and of the one wanted. `resumes`: output of other settings is in its way, so there is no older one.
    `packs`: it makes scripts, which are remembered.
    """

    name: str
    argv: Callable[[Path, Path, "Bench"], list[str]]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    resumes: bool = False
    packs: bool = False

    def line(self, bench: "Bench", place: Path, older: bool = False) -> list[str]:
        """The command line."""
        sets = [word for setting in (self.before if older else self.after) for word in ("--set", setting)]
        return [*map(str, self.argv(bench.run, place, bench)), *sets]


def tokenize(base: Path, place: Path, bench: "Bench") -> list[Any]:
    """One worker, so that all requests are made in one process."""
    known = ["--tokenizer", base / "data" / "tokenizer.model", "--set", "tokenize.workers=1"]
    return ["tokenize", bench.text, "--out", place / "data", *SMALL, *known, "--force"]


def train(base: Path, place: Path, bench: "Bench") -> list[Any]:
    """A few steps, with a checkpoint every fourth."""
    return ["train", base / "data", "--out", place / "train", *SMALL]


def quantize(base: Path, place: Path, bench: "Bench") -> list[Any]:
    """With its calibration, which is kept beside it."""
    model = base / "train" / "checkpoint.safetensors"
    return ["quantize", model, "--data", base / "data", "--out", place / "quantized.safetensors", *SMALL]


def compress(base: Path, place: Path, bench: "Bench") -> list[Any]:
    """The artifact."""
    return ["compress", base / "quantize" / "quantized.safetensors", "--out", place / "model.pgz", *SMALL]


def evaluate(base: Path, place: Path, bench: "Bench") -> list[Any]:
    """In order."""
    model = base / "compress" / "model.pgz"
    return ["eval", model, "--data", base / "data", "--out", place / "score.json", *SMALL]


def ttt(base: Path, place: Path, bench: "Bench") -> list[Any]:
    """With learning."""
    model = base / "compress" / "model.pgz"
    return ["ttt", model, "--data", base / "data", "--out", place / "score.json", *SMALL]


def package(base: Path, place: Path, bench: "Bench") -> list[Any]:
    """Without its proofs, which write only in places of their own, and take seconds."""
    model = base / "compress" / "model.pgz"
    argv = ["package-submission", model, "--data", base / "data", "--out", place / "submission", *SMALL, "--force"]
    return [*argv, "--set", "package.prove=false"]


def get(base: Path, place: Path, bench: "Bench") -> list[Any]:
    """From a hub on this machine, one file after the other."""
    return ["data", "get", "sp1024", "--dest", place, "--endpoint", bench.hub, "--workers", 1, "--quiet"]


STAGES = (
    Stage("tokenize", tokenize, ("tokenize.val_share=0.3",), ("tokenize.shard_tokens=40000",)),
    Stage("train", train, after=("train.iterations=16", "train.checkpoint_every=4"), resumes=True),
    Stage("quantize", quantize, ("quant.bits=5",), ("quant.bits=7",)),
    Stage("compress", compress, ("compress=lzma",), ("compress=zlib",), packs=True),
    Stage("eval", evaluate, ("eval.max_tokens=128",), ("eval.batch_seqs=4",)),
    Stage("ttt", ttt, ("ttt.max_tokens=128",), ("ttt.chunk_tokens=512",)),
    Stage("package-submission", package, ("package.name=Old",), ("package.name=New",), packs=True),
    Stage("data get", get, resumes=True),
)


@dataclass
class Bench:
    """A finished run of preset tiny, its text, room to work in, and a hub."""

    room: Path
    text: Path
    run: Path
    made: dict[str, "Prepared"] = field(default_factory=dict)
    server: Any = None

    @property
    def hub(self) -> str:
        """The address of a hub in a process of its own, which ends with this one."""
        if self.server is None:
            line = [sys.executable, "-m", "benchmarks.faults.hub_server"]
            self.server = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.server.address = self.server.stdout.readline().strip()
        return str(self.server.address)

    def close(self) -> None:
        """End the hub."""
        if self.server is not None:
            self.server.communicate()

    def prepared(self, stage: Stage) -> "Prepared":
        """The stage's folders, made once."""
        if stage.name not in self.made:
            self.made[stage.name] = Prepared(self, stage)
        return self.made[stage.name]


class Prepared:
    """A stage's folder as it is before (`old`), and what it must hold afterwards (`goal`)."""

    def __init__(self, bench: Bench, stage: Stage) -> None:
        self.bench, self.stage, self.count = bench, stage, 0
        self.template = bench.room / f"{stage.name} before"
        self.template.mkdir(parents=True)
        note = bench.room / "imported"
        if not stage.resumes:
            good(warm(stage.line(bench, self.template, older=True), note))
        self.old = state(self.template)
        place = self.fresh()
        good(warm(stage.line(bench, place), note))
        if stage.packs:
            pack_here(stage.line(bench, self.fresh()))
        self.goal = state(place)
        self.seconds = good(run(stage.line(bench, self.fresh()))).seconds
        assert self.goal != self.old, f"{stage.name} does nothing"

    def fresh(self) -> Path:
        """The folder as it is before, copied."""
        self.count += 1
        place = self.bench.room / f"{self.stage.name} {self.count}"
        return Path(shutil.copytree(self.template, place))

    def harmed(self, place: Path) -> str:
        """What is lost after a fault, if anything: every file of a folder is the old or the new one, and verifies."""
        try:
            now = state(place)
        except PgolfError as error:
            return f"damaged: {error}"
        for name, identity in now.items():
            known = {self.old.get(name), self.goal.get(name)}
            if name in lasting(self.goal) and identity not in known and not unfinished(place / name):
                return f"{name} is neither the old nor the new one"
        gone = [name for name in self.old if name not in now]
        return f"{gone[0]} is gone" if gone and not moving(place) else ""

    def recovered(self, place: Path) -> str:
        """What the same command, run again, does not put right."""
        again = run(self.stage.line(self.bench, place))
        if again.code:
            return f"running it again ends with {again.code}: {again.text.strip()[-300:]}"
        try:
            now, goal = lasting(state(place)), lasting(self.goal)
        except PgolfError as error:
            return f"running it again leaves damage: {error}"
        shutil.rmtree(place)
        if now != goal:
            wrong = sorted(name for name in now.keys() | goal.keys() if now.get(name) != goal.get(name))
            return f"running it again gives other files: {', '.join(wrong[:3])}"
        return ""


def pack_here(line: list[str]) -> None:
    """Run a command in this process, so that victims find the scripts that it makes made."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(line) == 0
    for number, handler in handlers.items():
        signal.signal(number, handler)


def good(ended: Ended) -> Ended:
    """Itself, if it went well."""
    assert ended.code == 0, ended.text
    return ended


def lasting(found: dict[str, str]) -> dict[str, str]:
    """Without the checkpoints on the way: which are kept depends on where a run was interrupted."""
    return {name: identity for name, identity in found.items() if "/ckpt/" not in name or name.endswith(LEFT)}


def unfinished(path: Path) -> bool:
    """Whether a file is no result: it grows with what has been done so far."""
    return path.name in ("events.jsonl", "fetched.json")


def moving(place: Path) -> bool:
    """Whether an older dataset is being replaced by a new one that is complete in its working folder."""
    return (place / "data" / ".partial" / "manifest.json").is_file()


def state(folder: Path) -> dict[str, str]:
    """Every file of a folder -> what it is, whenever it was made; PgolfError for one that is damaged. Locks, which are
    empty, and what a killed command left behind to go on from are left out.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and path.suffix != ".lock":
            found[name] = identity(path)
    return found


def identity(path: Path) -> str:
    """What a file is, without dates and seconds."""
    if path.suffix in LEFT or ".partial" in path.parts or ".fetch" in path.parts or path.suffix in LOGS:
        return "there"
    if path.suffix == ".safetensors":
        meta, _ = tensor_meta(path)
        _, meta, _ = load_tensors(path, str(meta["schema"]))
        return f"{meta['tensors_sha256']} {meta.get('step')}"
    if path.suffix == ".pgz":
        return load_artifact(path).sha256
    if path.name == "events.jsonl":
        events = [parse_json(line, str(path)) for line in path.read_text().split("\n")[:-1]]  # the last may be cut off
        return str(sorted({(event["step"], event["loss"]) for event in events if event["event"] == "step"}))
    if path.suffix == ".json":
        return plain(read_json(path), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plain(document: Any, path: Path) -> str:
    """What a document says, without dates and seconds; of a dataset, after all its files were checked."""
    schema = document.get("schema", "") if isinstance(document, dict) else ""
    if schema == DATASET_SCHEMA:
        open_dataset(path.parent).verify()
        return str([document[key] for key in ("key", "splits", "tokenizer")])
    if schema == "pgolf.manifest/1":
        for name, entry in document["outputs"].items():
            if not (path.parent / name).exists():
                raise InputError(f"{name} is in the manifest and not there", str(path))
            assert entry["key"]
        return str({name: entry["key"] for name, entry in document["outputs"].items()})
    if str(schema).startswith("pgolf.score/"):
        return str([document[key] for key in ("score", "method")])
    return "there" if path.parent.name == "submission" else json.dumps(document, sort_keys=True)


def limit_threads() -> None:
    """One thread a process: models this small gain nothing from more, and forks want none."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
