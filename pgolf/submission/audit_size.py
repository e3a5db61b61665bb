"""What a reviewer would count in a folder or file, ours or not: code, model, and why the rest does not (spec:
submission 1 and compression 8).
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.accounting import CAP_BYTES, size_on_disk
from pgolf.core.errors import InputError
from pgolf.core.files import read_bytes, read_head
from pgolf.core.shards import SHARD_MAGIC
from pgolf.submission.imports import programs

SCRIPT = "train_gpt.py"
READABLE = ("train_gpt_readable.py", "train_gpt_human.py", "train_gpt_decode.py")
"""Names under which submissions ship the source of a packed script."""
CODED, PLAIN = (".pgz", ".ptz", ".bin", ".xz", ".zst", ".br", ".lzma"), (".pt", ".safetensors")
"""Models as compressed, and as they are before."""
STATED = re.compile(rb"Total submission size[^:\n]*: *([\d,]+) bytes")
MAX_TEXT = 64 << 20
MIB = 1 << 20


@dataclass(frozen=True)
class Counted:
    """A file, what it counts as (code, model or -), and why."""

    path: Path
    counts_as: str
    why: str


def program(script: Path) -> list[ast.Module]:
    """The program of a script, and that inside where it is packed; empty if it is no Python."""
    try:
        return programs(read_bytes(script, MAX_TEXT), str(script))
    except InputError:
        return []


def local_imports(script: Path) -> set[str]:
    """Names of modules that a script imports."""
    names: set[str] = set()
    for node in (node for tree in program(script) for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {(node.module or "").split(".")[0], *(alias.name for alias in node.names if node.level)}
    return names


def reached(script: Path) -> set[Path]:
    """Files beside a script that it imports, and those that these import."""
    found, waiting = {script}, [script]
    while waiting:
        for name in local_imports(waiting.pop()):
            for path in (script.parent / f"{name}.py", *sorted((script.parent / name).glob("**/*.py"))):
                if name and path.is_file() and path not in found:
                    found.add(path)
                    waiting.append(path)
    return found


def judged(files: list[Path]) -> Iterator[Counted]:
    """What every file counts as."""
    scripts = [path for path in files if path.name == SCRIPT]
    imported = set().union(*map(reached, scripts))
    coded = any(path.suffix in CODED and not is_shard(path) for path in files)
    for path in files:
        if path.suffix == ".py":
            yield code_file(path, bool(scripts), imported)
        elif path.suffix in CODED + PLAIN:
            if is_shard(path):
                yield Counted(path, "-", "token shard")
            elif path.suffix in PLAIN and coded:
                yield Counted(path, "-", "not compressed, beside a model that is")
            else:
                yield Counted(path, "model", "weights")
        elif path.suffix in (".model", ".vocab"):
            yield Counted(path, "-", "tokenizer, not counted at present")
        else:
            yield Counted(path, "-", "neither code nor weights")


def code_file(path: Path, scripted: bool, imported: set[Path]) -> Counted:
    """What a Python file counts as."""
    if path in imported:
        return Counted(path, "code", "the script" if path.name == SCRIPT else "imported by the script")
    if path.name in READABLE:
        return Counted(path, "-", "readable copy of the script")
    if scripted:
        return Counted(path, "-", "not imported by the script; counts if an evaluation runs it")
    return Counted(path, "code", f"there is no {SCRIPT}")


def is_shard(path: Path) -> bool:
    """Whether a file is a token shard."""
    return path.suffix == ".bin" and int.from_bytes(read_head(path, 4), "little") == SHARD_MAGIC


def doubts(rows: list[Counted], total: int, cap: int) -> list[str]:
    """What a reviewer would ask about."""
    found, models = [], [row.path for row in rows if row.counts_as == "model"]
    if not models:
        found.append("there is no model in it: only code is counted")
    if models and not any(row.counts_as == "code" for row in rows):
        found.append("there is no script in it: only the model is counted")
    if len(models) > 1:
        found.append(f"{len(models)} models, one for each seed: the largest counts")
    if cap < total <= cap / 1e6 * MIB:
        found.append(f"{total:,} bytes are {total / MIB:.2f} MiB, but the cap is decimal")
    for row in rows:
        if row.path.suffix in (".log", ".txt") and (stated := STATED.findall(read_bytes(row.path, MAX_TEXT))):
            size = int(stated[-1].replace(b",", b""))
            if size > total or size > cap:
                found.append(f"{row.path.name} states {size:,} bytes, where {total:,} are counted; reviewers read logs")
    return found


def folder_size(path: Path, cap: int = CAP_BYTES) -> dict[str, Any]:
    """Files with what they count as and why, the totals, and what is doubtful; of several models the largest counts."""
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    if not files:
        raise InputError("the folder is empty", str(path))
    rows = list(judged(files))
    size = size_on_disk(
        [row.path for row in rows if row.counts_as == "model"],
        sum(row.path.stat().st_size for row in rows if row.counts_as == "code"),
        cap,
    )
    listed = [
        {
            "file": str(row.path.relative_to(path)) if path.is_dir() else row.path.name,
            "counts_as": row.counts_as,
            "bytes": row.path.stat().st_size,
            "why": row.why,
        }
        for row in rows
    ]
    return {"files": listed, "doubts": doubts(rows, size.total_bytes, cap), **size.document()}
