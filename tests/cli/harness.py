"""What the end-to-end tests share: pgolf in this process or in its own, and one small finished run to copy from."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest

from pgolf.catalog import CATALOG
from pgolf.config.describe import slot_keys
from pgolf.config.run import RunConfig

CRASH = re.compile(r"The traceback is in (\S+)")
DOCUMENTS = 79
os.environ["OMP_NUM_THREADS"] = "1"
"""Models this small gain nothing from a second thread, and on a busy machine spinning threads cost minutes."""
QUICK = ("--preset", "tiny", "--quiet")

TECHNIQUES = [(slot, name) for slot, names in CATALOG.items() for name in names if len(names) > 1]
"""Every choice there is: its slot and its name."""
FITTING = {
    "layers": ("start=0", "end=1"),
    "parallel": ("start=1",),
    "two_lanes": ("start=1",),
    "two_lanes_in_turn": ("start=1",),
    "ternary": ("group=32",),
    "binary": ("group=32",),
    "shared": ("on=1",),
    "Window-sliding": ("full_layers=1", "tokens=16"),
    "Window-pattern": ("tokens=16",),
    "backout": ("after=0",),
    "LengthSchedule-growing": ("first=16",),
    "WindowSchedule-growing": ("first=8", "last=32"),
    "emas": ("tokens=3000", "decays=0.5,0.9"),
}
"""What makes a technique fit the two layers of width 64 of preset tiny."""
BESIDE = {
    "Loader-documents": ["model.documents=by_document"],
    "Qat-noise": ["model.loop=layers", "model.loop.start=0", "model.loop.end=1"],
    "EvalRope-ntk": ["ttt.seq_len=128"],
    "EvalRope-yarn": ["ttt.seq_len=128"],
}
"""What a technique needs elsewhere."""


def technique_sets(slot: str, name: str) -> list[str]:
    """What switches a technique on in preset tiny."""
    key = slot_keys(RunConfig())[slot]
    fitting = FITTING.get(f"{slot}-{name}", FITTING.get(name, ()))
    return [f"{key}={name}", *(f"{key}.{value}" for value in fitting), *BESIDE.get(f"{slot}-{name}", [])]


@dataclass(frozen=True)
class Result:
    """How a command ended and what it said; `crash` is the traceback pgolf saved if it met a bug of its own."""

    code: int
    out: str
    err: str
    crash: str = ""

    @property
    def document(self) -> dict[str, Any]:
        """Standard output, which must be exactly one JSON object."""
        found = json.loads(self.out)
        assert isinstance(found, dict), self.out
        return found

    def good(self) -> "Result":
        """Itself, after asserting exit code 0."""
        assert self.code == 0, f"exit code {self.code}\n{self.err}\n{self.crash}"
        return self

    def refused(self, code: int, *words: str) -> str:
        """The one error line, after asserting the exit code, that it is one line for people, and that it has words."""
        assert self.code == code, f"exit code {self.code}, expected {code}\n{self.out}\n{self.err}\n{self.crash}"
        errors = [line for line in self.err.splitlines() if line.startswith("error:")]
        rest = [line for line in self.err.splitlines() if line.strip() and not line.startswith(("error:", "warning:"))]
        assert len(errors) == 1, self.err
        assert not rest, f"more than the error on standard error: {rest}"
        line = errors[0]
        assert "Traceback" not in self.err and not re.search(r"\b[A-Z]\w+(Error|Exception)\b", self.err), self.err
        assert "<class" not in line and "object at 0x" not in line, line
        for word in words:
            assert word in line, f"{word!r} is not in: {line}"
        return line


@contextlib.contextmanager
def captured() -> Iterator[list[str]]:
    """Collects what is written to the file descriptors 1 and 2, from Python or from C."""
    result: list[str] = []
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    streams = sys.stdout, sys.stderr
    with TemporaryFile() as out, TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout = io.TextIOWrapper(os.fdopen(os.dup(1), "wb"), encoding="utf-8", write_through=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(os.dup(2), "wb"), encoding="utf-8", write_through=True)
        try:
            yield result
        finally:
            sys.stdout.close()
            sys.stderr.close()
            sys.stdout, sys.stderr = streams
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])
            for file in (out, err):
                file.seek(0)
                result.append(file.read().decode(errors="replace"))


def run_here(*argv: object) -> Result:
    """Run a command line in this process."""
    import torch

    from pgolf.cli.main import main

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with captured() as texts:
            code = main([str(item) for item in argv])
    finally:
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    crash = ""
    if found := CRASH.search(texts[1]):
        crash = Path(found[1]).read_text()
        Path(found[1]).unlink()
    return Result(code, texts[0], texts[1], crash)


def command(*argv: object) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-m", "pgolf", *(str(item) for item in argv)]


def run_apart(*argv: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Result:
    """Run a command line in a process of its own."""
    done = subprocess.run(command(*argv), cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, timeout=120)
    out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    if found := CRASH.search(err):
        Path(found[1]).unlink(missing_ok=True)
    return Result(done.returncode, out, err)


def write_corpus(path: Path) -> Path:
    """English documents that ship with Python, one JSON object a line."""
    from pydoc_data.topics import topics

    lines = [json.dumps({"text": topics[name]}) + "\n" for name in sorted(topics)[:DOCUMENTS]]
    path.write_text("".join(lines))
    return path


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file below a directory: name -> time of change and hash. Locks, which are empty, are left out."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def tensor_hash(path: Path) -> str:
    """SHA-256 over the tensors of a safetensors file, metadata left out."""
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(path, framework="np") as file:
        for name in sorted(file.keys()):
            array = file.get_tensor(name)
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()


def stray_files(folder: Path) -> list[str]:
    """Temporary files that a command left behind."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in (".part", ".tmp", ".old")]


def flip(path: Path, position: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


_made: dict[str, Path] = {}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl file of English text, half a megabyte."""
    if "corpus" not in _made:
        _made["corpus"] = write_corpus(tmp_path_factory.mktemp("text") / "topics.jsonl")
    return _made["corpus"]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The directory of one finished run of preset tiny. Tests read it; those that write copy it with `copy_run`."""
    if "run" not in _made:
        folder = tmp_path_factory.mktemp("finished") / "run"
        run_here("run", *QUICK, "--text", corpus, "--out", folder).good()
        _made["run"] = folder
    return _made["run"]


@pytest.fixture
def copy_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run for one test."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def pgolf() -> Callable[..., Result]:
    """pgolf in this process: arguments -> Result."""
    return run_here


@pytest.fixture(scope="session")
def spawn() -> Callable[..., Result]:
    """pgolf in a process of its own, where signals, pipes, start-up or isolation matter: arguments -> Result."""
    return run_apart
