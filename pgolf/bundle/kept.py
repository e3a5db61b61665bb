"""Programs made before. To make one takes two seconds and depends on pgolf's own code and the recipe alone, so that
every command after the first finds it in the user's folder of caches, which anybody may empty at any time.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import platformdirs

from pgolf.core.errors import PgolfError
from pgolf.core.files import clean_parts, parse_json, read_bytes, write_bytes
from pgolf.source import changed_since_start, source_sha256

PROGRAM_SCHEMA = "pgolf.program/1"
MAX_BYTES = 16 << 20
MOST_PROGRAMS = 256
DIGEST_CHARS = 64

Program = tuple[str, str, dict[str, str]]
"""Readable and minified source, and the core module of each name in it."""


def programs_folder() -> Path:
    """Where programs are kept: `~/.cache/pgolf/programs` on Linux."""
    return platformdirs.user_cache_path("pgolf") / "programs"


def program_name(recipe: str) -> str:
    """SHA-256 over all that a program is made from and with: the recipe, pgolf's source code, and the versions of
    Python and of the packages that write it or whose names it may not take.
    """
    makers = [f"{package} {version(package)}" for package in ("python-minifier", "torch", "numpy")]
    parts = (PROGRAM_SCHEMA, recipe, source_sha256(), sys.version, *makers)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def kept_program(recipe: str, make: Callable[[], Program]) -> Program:
    """The program of a recipe, from the folder if a whole one is there, else made and kept for next time. A folder that
    cannot be read or written costs time and nothing else.
    """
    folder = programs_folder()
    if changed_since_start() or not folder.is_absolute():  # as it is not for a user without a home
        return make()
    path = folder / f"{program_name(recipe)}.json"
    found = read_program(path)
    if found is not None:
        return found
    made = make()
    if not changed_since_start():
        write_program(path, made)
    return made


def read_program(path: Path) -> Program | None:
    """The program in a file, None unless it is there and whole: a line with the SHA-256 of what follows, as JSON."""
    try:
        content = read_bytes(path, MAX_BYTES) if path.is_file() else b""
        digest, body = content[:DIGEST_CHARS], content[DIGEST_CHARS + 1 :]
        if hashlib.sha256(body).hexdigest().encode() != digest:
            return None
        found = parse_json(body, str(path))
    except (PgolfError, OSError):
        return None
    return found["readable"], found["minified"], found["modules"]


def write_program(path: Path, program: Program) -> None:
    """Keep a program, if it can be, and only the newest of all."""
    content = json.dumps({"schema": PROGRAM_SCHEMA} | dict(zip(("readable", "minified", "modules"), program))).encode()
    with contextlib.suppress(PgolfError, OSError):
        write_bytes(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        clean_parts(path.parent)
        kept = sorted(path.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-MOST_PROGRAMS]:
            old.unlink(missing_ok=True)
