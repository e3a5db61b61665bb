"""pgolf's own source code: what it is, and whether this process runs it."""

import hashlib
from functools import cache
from pathlib import Path

import pgolf

ROOT = Path(pgolf.__file__).parent


def source_files() -> list[Path]:
    """Every source file and preset of the installed package, sorted."""
    return sorted(path for path in ROOT.rglob("*") if path.suffix in (".py", ".toml"))


@cache
def source_sha256() -> str:
    """SHA-256 over the names and contents of all source files, in hex."""
    digest = hashlib.sha256()
    for path in source_files():
        digest.update(f"{path.relative_to(ROOT).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def changed_since_start() -> bool:
    """Whether source files may be others than those this process has loaded."""
    return any(path.stat().st_mtime >= pgolf.STARTED for path in source_files())
