"""A program under audit: any command that reads tokens from a file and writes a loss for each target.

It is told nothing else, gets of the environment what is listed here alone, and has a time limit.
"""

import contextlib
import io
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pgolf.audit.stream import Vocabulary
from pgolf.audit.subject import Subject
from pgolf.audit.trace import Trial, blank
from pgolf.audit.verdict import HOLDS, VIOLATED, Finding, case_of, untested
from pgolf.core.errors import ConfigError, InputError
from pgolf.core.files import open_log, open_pieces, read_bytes
from pgolf.core.shards import write_shard

TOKENS, SCORES = "{tokens}", "{scores}"
PASSED = ("PATH", "HOME", "LANG", "TMPDIR", "SYSTEMROOT")
"""What a program is given of the environment."""
TAIL = 4096
BYTES_PER_LOSS = 64
"""A scores file may be so long per target, and a kilobyte beside."""
ALONE = ("unshare", "--user", "--map-root-user", "--net", "--")
"""Runs a command without a network."""


def check_command(command: list[str]) -> None:
    """ConfigError unless a command names both files and can be found."""
    text = " ".join(command)
    for mark in (TOKENS, SCORES):
        if mark not in text:
            raise ConfigError(f"the command does not say where {mark} goes", "--", f"write {mark} in it")
    if shutil.which(command[0]) is None:
        raise ConfigError(f"{command[0]} cannot be run", "--", "give a program on PATH or a path to one")


@cache
def can_isolate() -> bool:
    """Whether programs can be run without a network here."""
    try:
        return subprocess.run([*ALONE, "true"], capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@dataclass(frozen=True)
class Program:
    """A command, `{tokens}` and `{scores}` in it, run in `folder`."""

    command: tuple[str, ...]
    vocabulary: Vocabulary
    folder: Path
    timeout_s: float = 60.0
    others: tuple[tuple[str, ...], ...] = ()
    """Other commands that must give the same losses."""
    alone: bool = False
    """Whether it runs without a network."""
    jobs: int = 1
    slack: float = 0.0
    records: bool = False

    def run(self, tokens: np.ndarray, limit: int = 0, hashes: bool = False) -> Trial:
        """Its losses for a stream (N,) uint16; what went wrong is told in the trial."""
        trial = blank(len(tokens) - 1)
        trial.nll = trial.nll.astype(np.float64)
        with TemporaryDirectory() as place:
            source, scores = Path(place) / "tokens.bin", Path(place) / "scores.txt"
            write_shard(source, np.asarray(tokens, np.uint16))
            filled = [part.replace(TOKENS, str(source)).replace(SCORES, str(scores)) for part in self.command]
            trial.error = self.execute([*(ALONE if self.alone else ()), *filled], Path(place) / "said.txt")
            if trial.error:
                return trial
            try:
                losses = read_losses(scores, len(trial.nll))
            except InputError as error:
                trial.error = str(error)
                return trial
        count = len(losses)
        trial.nll[:count], trial.commits[:count] = losses, 1
        trial.rank[:], trial.window[:], trial.batch[:] = np.arange(len(trial.nll)), np.arange(len(trial.nll)), 0
        return trial

    def execute(self, command: list[str], said: Path) -> str:
        """Run it in a process group of its own, its standard error into the file `said`; how it failed, if it did."""
        kept = {name: os.environ[name] for name in PASSED if name in os.environ}
        try:
            with open_log(said) as file:
                process = subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=kept,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=file,
                    start_new_session=True,
                )
        except OSError as error:
            return f"the program does not start: {error.strerror}"
        try:
            process.wait(self.timeout_s)
        except subprocess.TimeoutExpired:
            return f"the program had not ended after {self.timeout_s:g} s"
        finally:
            # Whatever it has started goes with it, also when the audit is interrupted.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode:
            return f"the program ended with code {process.returncode}: {last_line(said)}"
        return ""

    def likely(self, tokens: np.ndarray, position: int) -> np.ndarray:
        """By how often each token occurs in the stream."""
        counts = np.bincount(np.asarray(tokens, np.int64), minlength=self.vocabulary.size)
        return np.argsort(-counts, kind="stable")

    def variants(self) -> dict[str, Subject]:
        """The other commands."""
        return {" ".join(other): replace(self, command=other, others=()) for other in self.others}

    def describe(self) -> dict[str, Any]:
        """What it is."""
        return {
            "kind": "program",
            "command": list(self.command),
            "folder": str(self.folder),
            "vocab_size": self.vocabulary.size,
            "bos_id": self.vocabulary.bos_id,
            "timeout_s": self.timeout_s,
        }


def last_line(path: Path) -> str:
    """The last line of a text file, shortened, of which no more than its end is read."""
    with open_pieces(path) as file:
        file.seek(-min(path.stat().st_size, TAIL), os.SEEK_END)
        lines: list[str] = file.read().decode(errors="replace").strip().splitlines()
    return (lines or ["it said nothing"])[-1][:200]


def read_losses(path: Path, targets: int) -> np.ndarray:
    """Losses in nats, (n,) float64 with n <= targets, of a text file with one number per line or a .npy array.
    InputError for anything else, or for more than there are targets.
    """
    if not path.is_file():
        raise InputError("the program wrote no scores", "scores", "it must write them to {scores}")
    most = BYTES_PER_LOSS * targets + 1024
    if path.stat().st_size > most:
        raise InputError(f"the scores take {path.stat().st_size:,} bytes, too many for {targets:,} targets", "scores")
    content = read_bytes(path, most)
    try:
        if content.startswith(b"\x93NUMPY"):
            found = np.asarray(np.load(io.BytesIO(content), allow_pickle=False), np.float64).reshape(-1)
        else:
            found = np.array([float(word) for word in content.split()], np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(f"the scores are no numbers: {error}", "scores", "one number per line, or .npy") from None
    if len(found) > targets:
        raise InputError(f"{len(found):,} scores for {targets:,} targets", "scores", "one per target, none for token 0")
    return found


def without_network(program: Program, tokens: np.ndarray) -> Finding:
    """(h): the same losses where there is no network."""
    if not can_isolate():
        return untested("h", "this machine cannot run a program without its network")
    here, alone = program.run(tokens), replace(program, alone=True).run(tokens)
    if not alone.error and np.array_equal(here.nll, alone.nll, equal_nan=True):
        return Finding(check="h", verdict=HOLDS, what="the same losses without a network", n=1)
    if here.error or not np.array_equal(here.nll, program.run(tokens).nll, equal_nan=True):
        return untested("h", "the program is not steady enough to compare")
    what = f"without a network the losses differ: {alone.error or 'other numbers'}"
    case = case_of("h", program.describe(), tokens=tokens.tolist())
    return Finding(check="h", verdict=VIOLATED, what=what, n=1, counterexample=case)
