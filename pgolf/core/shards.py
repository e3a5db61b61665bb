"""Token shards in the challenge's binary format (spec: docs/formats.md).

256 little-endian int32 (magic, version, count, zeros), then `count` little-endian uint16 ids.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pgolf.core.errors import InputError, assure
from pgolf.core.files import storage_error, write_bytes

if TYPE_CHECKING:
    from typing import Literal, overload

    class TrainPaths(list[Path]):
        """Files of the training split: for type checkers, which see them where `list_shards` is asked for it."""

    class TrainShards(list[np.ndarray]):
        """Arrays of the training split: for type checkers, which see them where its files are opened."""


SHARD_MAGIC, SHARD_VERSION, HEADER_BYTES = 20240520, 1, 1024
SHARD_NAME = re.compile(r"^[A-Za-z0-9]+_(train|val)_\d{6}\.bin$")
SIDECAR_NAME = re.compile(r"^[A-Za-z0-9]+_val_bytes_\d{6}\.bin$")


def write_shard(path: Path, ids: np.ndarray) -> None:
    """Write ids (N,) below 65,536 atomically. InputError for larger ones."""
    if len(ids) and int(ids.max()) > 65535:
        raise InputError(f"token id {int(ids.max())} does not fit uint16 shards", str(path), "use a smaller vocabulary")
    write_bytes(path, (shard_header(len(ids)), np.ascontiguousarray(ids, dtype="<u2").tobytes()))


def shard_header(count: int) -> bytes:
    """The header of a shard with `count` entries."""
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = SHARD_MAGIC, SHARD_VERSION, count
    return header.tobytes()


def open_shard(path: Path) -> np.ndarray:
    """Memory-map the ids of a shard, (N,) uint16. InputError names what is wrong with the file."""
    try:
        size = path.stat().st_size
        header = np.fromfile(path, dtype="<i4", count=256).tolist()
    except OSError as error:
        raise storage_error(error, path, "reading") from None
    large_enough = size > HEADER_BYTES and len(header) == 256
    what = f"the shard has {size:,} bytes; header and one id need {HEADER_BYTES + 2:,}"
    assure(large_enough, what, str(path), "make it anew")
    what = f"magic number {header[0]}, expected {SHARD_MAGIC}"
    assure(header[0] == SHARD_MAGIC, what, str(path), magic_hint(header[0]))
    what = f"shard version {header[1]}, expected {SHARD_VERSION}"
    assure(header[1] == SHARD_VERSION, what, str(path), "a newer pgolf may read it")
    ids = (size - HEADER_BYTES) / 2
    what = f"the header promises {header[2]:,} ids, the file holds {ids:,g}"
    assure(header[2] == ids, what, str(path), "the shard is truncated or damaged; make it anew")
    if ids < 1 or header[:3] != [SHARD_MAGIC, SHARD_VERSION, ids]:
        raise InputError("not a whole token shard", str(path))
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES)


def magic_hint(number: int) -> str:
    """What a file may be that begins with another number."""
    big = number.to_bytes(4, "little", signed=True) == SHARD_MAGIC.to_bytes(4, "big")
    return "the file is big-endian" if big else "this is not a token shard"


if TYPE_CHECKING:

    @overload
    def list_shards(folder: Path, split: Literal["train"]) -> TrainPaths: ...

    @overload
    def list_shards(folder: Path, split: str) -> list[Path]: ...


def list_shards(folder: Path, split: str) -> list[Path]:
    """Shards of a split in stream order; byte sidecars (`_bytes_`) never match."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    found = [match for match in map(SHARD_NAME.match, names) if match and match[1] == split]
    return [folder / match[0] for match in found]


def list_sidecars(folder: Path) -> list[Path]:
    """Byte sidecars of the validation shards, in stream order."""
    return sorted(path for path in folder.iterdir() if SIDECAR_NAME.match(path.name)) if folder.is_dir() else []


def load_sidecars(paths: list[Path], shards: list[np.ndarray], folder: Path) -> np.ndarray:
    """Bytes charged to targets 1 .. N-1 of a validation stream, (N-1,) uint16, from the sidecars of its shards.

    InputError if they are missing or are not as long as the shards.
    """
    sidecars = [open_shard(path) for path in paths]
    entries, ids = [len(part) for part in sidecars], [len(part) for part in shards]
    if entries != ids:
        raise InputError(
            f"the text was transformed, so its shards of {ids} ids need byte sidecars as long, not {entries}",
            str(folder),
            "expected files like fineweb_val_bytes_000000.bin",
        )
    return np.concatenate(sidecars)[1:]


if TYPE_CHECKING:

    @overload
    def load_split(paths: TrainPaths, vocab_size: int) -> TrainShards: ...

    @overload
    def load_split(paths: list[Path], vocab_size: int) -> list[np.ndarray]: ...


def load_split(paths: list[Path], vocab_size: int) -> list[np.ndarray]:
    """Open the shards of one split and check that every id is below `vocab_size`."""
    shards = [open_shard(path) for path in paths]
    for path, ids in zip(paths, shards):
        if (largest := int(ids.max())) >= vocab_size:
            raise InputError(
                f"token id {largest} is beyond the vocabulary of {vocab_size}",
                str(path),
                "use the tokenizer that made the shards",
            )
    return shards


@dataclass
class TokenStream:
    """An endless stream over the shards of a split; `position` counts ids from the start of the first shard."""

    shards: list[np.ndarray]
    position: int = 0

    def take(self, count: int) -> np.ndarray:
        """The next `count` ids as int64, wrapping from the last shard to the first."""
        skip, pieces = self.position % sum(map(len, self.shards)), []
        self.position += count
        while count:
            for ids in self.shards:
                pieces.append(ids[skip : skip + count])
                skip = max(skip - len(ids), 0)
                count -= len(pieces[-1])
        return np.concatenate(pieces).astype(np.int64)


class TrainStream(TokenStream):
    """A stream of the training split: what calibration and tuning take, so that validation tokens cannot get into
    them: a type checker lets it be made of that split's arrays alone.
    """

    if TYPE_CHECKING:

        def __init__(self, shards: TrainShards, position: int = 0) -> None: ...
