"""Shards that must not change while they are read."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pgolf.core.errors import InputError

MEND = "restore it or make the dataset anew; the last checkpoint is kept"


def mark(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written or replaced. InputError when it is gone."""
    try:
        facts = path.stat()
    except OSError as error:
        raise InputError(f"a training shard is gone: {(error.strerror or '').lower()}", str(path), MEND) from None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def unchanged(read: Callable[[int], Any], paths: Sequence[Path]) -> Callable[[int], Any]:
    """`read`, with a look at the files before each time: a memory-mapped file that was cut short kills the process that
    reads it. InputError when one is not as it is now.
    """
    known = {path: mark(path) for path in paths}

    def careful(number: int) -> Any:
        for path, before in known.items():
            if mark(path) != before:
                raise InputError("a training shard was changed while it was read", str(path), MEND)
        return read(number)

    return careful
