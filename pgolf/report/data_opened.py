"""What an audit works on: findings, rows of shards, and a dataset of which anything may be missing."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.core.errors import PgolfError
from pgolf.corpus.transforms import TextTransform, get_transform

LEVELS = ("corrupt", "violation", "warning", "note")
SPLITS = ("val", "train")
CHUNK = 1 << 22


@dataclass(frozen=True)
class Finding:
    """One thing an audit has to say; `level` is one of LEVELS, `check` the short name of what was tested."""

    level: str
    check: str
    what: str
    where: str = ""
    fix: str = ""


def counted(count: int, noun: str) -> str:
    """A number of things in words."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


class Findings(list[Finding]):
    """Everything found so far."""

    def add(self, level: str, check: str, what: str, where: Any = "", fix: str = "") -> None:
        """One more."""
        self.append(Finding(level, check, what, str(where), fix))

    def error(self, check: str, error: PgolfError) -> None:
        """An error that was caught: something is corrupt."""
        self.add("corrupt", check, error.what, error.where, error.fix)

    def of(self, level: str) -> list[Finding]:
        """Those of one level."""
        return [finding for finding in self if finding.level == level]

    def document(self) -> list[dict[str, str]]:
        """For JSON, the worst first."""
        return [asdict(finding) for level in LEVELS for finding in self.of(level)]


@dataclass
class Row:
    """Shards that make one stream, memory-mapped: ids, or the bytes charged to them. Unreadable ones are left out, and
    then it is not `whole`.
    """

    paths: list[Path] = field(default_factory=list)
    shards: list[np.ndarray] = field(default_factory=list)
    whole: bool = True

    @cached_property
    def ends(self) -> list[int]:
        """Position behind the last entry of every shard; asked for when the row is complete."""
        return list(accumulate(len(shard) for shard in self.shards))

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def chunks(self) -> Iterator[np.ndarray]:
        """The stream in pieces of bounded size."""
        for shard in self.shards:
            for start in range(0, len(shard), CHUNK):
                yield shard[start : start + CHUNK]

    def cut(self, start: int, stop: int) -> np.ndarray:
        """Entries `start` to `stop`; copied only where they straddle shards."""
        pieces = []
        for index in range(bisect_right(self.ends, start), len(self.shards)):
            shard = self.shards[index]
            first = self.ends[index] - len(shard)
            pieces.append(shard[max(start - first, 0) : stop - first])
            if stop <= self.ends[index]:
                break
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, np.uint16), *pieces])

    def path_of(self, position: int) -> Path:
        """The shard that holds a position."""
        return self.paths[bisect_right(self.ends, position)]


@dataclass
class Opened:
    """What could be opened. `manifest` is empty where there is none or it is unusable; `hashes` and `counts` are what
    it, or the record of a download, says of every file.
    """

    folder: Path
    manifest: dict[str, Any] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    sidecars: Row = field(default_factory=Row)
    lists: dict[str, np.ndarray] = field(default_factory=dict)
    tokenizer: Any = None
    tokenizer_path: Path = Path()
    model: bytes = b""
    transform: TextTransform = field(default_factory=lambda: get_transform("none"))

    @property
    def tokenizer_sha256(self) -> str:
        """SHA-256 of the tokenizer's model file, in hex."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def transformed(self) -> bool:
        """Whether the text was transformed, so that a byte table miscounts it."""
        return bool(self.transform.operators)

    @property
    def source(self) -> Path:
        """Where the shards are."""
        adopted = self.manifest.get("adopted_from")
        return Path(adopted) if isinstance(adopted, str) and adopted else self.folder

    def recorded(self, split: str) -> dict[str, Any]:
        """What the manifest says of a split."""
        return dict(self.manifest["splits"][split]) if self.manifest else {}
