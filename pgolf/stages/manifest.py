"""manifest.json beside every output: what made it, from what, with which configuration.

One manifest per directory, one entry per output file. An output is fresh when its stage, format version, configuration
and inputs are unchanged and the file still has the recorded hash.
"""

import datetime
import hashlib
import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pgolf
from pgolf.core.errors import LockedError, PgolfError
from pgolf.core.files import (
    clean_parts,
    make_dir,
    read_bytes,
    read_json,
    sha256_file,
    storage_error,
    write_bytes,
    write_json,
)
from pgolf.source import source_sha256

if TYPE_CHECKING:
    import torch

MANIFEST_SCHEMA = "pgolf.manifest/1"
STAGE_FORMAT = {"tokenize": 1, "train": 1, "quantize": 1, "compress": 2, "eval": 2, "ttt": 2, "package": 2, "import": 1}
"""Raised when a stage's output changes for the same inputs, so that old outputs count as stale."""


@cache
def git_state() -> dict[str, Any]:
    """Commit and dirty flag when the package runs from a checkout, else nothing."""
    root = Path(pgolf.__file__).parent.parent
    if not (root / ".git").exists():
        return {}
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
        dirty = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"git_commit": commit.stdout.strip(), "git_dirty": bool(dirty.stdout.strip())}


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    found = {"python": platform.python_version(), "pgolf": pgolf.__version__}
    for name in ("torch", "numpy", "sentencepiece", "brotli", "zstandard", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def processor(device: "torch.device") -> str:
    """The name of what computes: a GPU's or the CPU's model."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def hardware(device: str) -> dict[str, Any]:
    """The machine, without its name."""
    info: dict[str, Any] = {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "device": device,
    }
    if device.startswith("cuda"):
        import torch

        info["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return info


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Who made it: versions, source hash, command line, hardware, date."""
    return {
        "versions": package_versions(),
        "source_sha256": source_sha256(),
        **git_state(),
        "argv": sys.argv[1:],
        "hardware": hardware(device),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def stage_key(stage: str, config: dict[str, Any], inputs: dict[str, str]) -> str:
    """What an output depends on, as one hash."""
    text = json.dumps([stage, STAGE_FORMAT[stage], config, inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_entries(folder: Path) -> dict[str, Any]:
    """Entries of a directory's manifest; none if there is no manifest or it is not readable as one."""
    try:
        document = read_json(folder / "manifest.json")
    except PgolfError:
        return {}
    good = (
        isinstance(document, dict)
        and document.get("schema") == MANIFEST_SCHEMA
        and isinstance(document.get("outputs"), dict)
    )
    return document["outputs"] if good else {}


def notes_of(figures: Any) -> list[str]:
    """Remarks on a training run, from the figures of its checkpoint's entry; none of what is nothing of the kind."""
    found = figures.get("notes") if isinstance(figures, dict) else None
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def fresh_entry(output: Path, key: str) -> dict[str, Any] | None:
    """The manifest entry of an output that needs no new run, or None."""
    entry = read_entries(output.parent).get(output.name)
    if not isinstance(entry, dict) or entry.get("key") != key or not output.is_file():
        return None
    return entry if entry.get("sha256") == sha256_file(output) else None


def describe_output(
    output: Path,
    stage: str,
    key: str,
    resolved: dict[str, Any],
    inputs: dict[str, str],
    figures: dict[str, Any],
    seconds: dict[str, float],
    device: str = "cpu",
) -> dict[str, Any]:
    """The manifest entry of an output. `resolved` is the complete configuration, so that defaults may change later."""
    return {
        "stage": stage,
        "format_version": STAGE_FORMAT[stage],
        "key": key,
        "sha256": sha256_file(output),
        "bytes": output.stat().st_size,
        "inputs": inputs,
        "figures": figures,
        "seconds": seconds,
        "resolved": resolved,
        **provenance(device),
    }


def write_entry(folder: Path, name: str, entry: dict[str, Any]) -> None:
    """Add an entry to a directory's manifest."""
    write_json(folder / "manifest.json", {"schema": MANIFEST_SCHEMA, "outputs": read_entries(folder) | {name: entry}})


def record(output: Path, *facts: Any) -> dict[str, Any]:
    """Write an output's manifest entry, which is what makes the output count; takes what `describe_output` takes."""
    entry = describe_output(output, *facts)
    with guarded(output.parent / "manifest.json", wait_s=30):
        write_entry(output.parent, output.name, entry)
    return entry


@contextmanager
def guarded(output: Path, wait_s: float = 0) -> Iterator[None]:
    """Hold an output for this process. LockedError names the process that has it; a dead one's lock is free at once."""
    from filelock import FileLock, Timeout

    make_dir(output.parent)
    owner = output.parent / f".{output.name}.owner"
    lock = FileLock(output.parent / f".{output.name}.lock", timeout=wait_s)
    try:
        lock.acquire()
    except Timeout:
        try:
            holder = read_bytes(owner, 4096).decode(errors="replace").strip()
        except PgolfError:
            holder = "an unknown process"
        raise LockedError(
            f"{output.name} is being written by {holder}", str(output.parent), "wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise storage_error(error, output, "locking") from None
    try:
        if not wait_s:
            clean_parts(output.parent)
            started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            write_bytes(owner, f"process {os.getpid()} on {socket.gethostname()} since {started}\n".encode())
        yield
    finally:
        if not wait_s:
            owner.unlink(missing_ok=True)
        lock.release()
