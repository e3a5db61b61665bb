"""Token shards in the challenge's binary format (spec: docs/formats.md).

256 little-endian int32 (magic, version, count, zeros), then `count` little-endian uint16 ids.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pgolf.core.errors import InputError
from pgolf.core.files import storage_error, write_bytes

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
        header = np.fromfile(path, dtype="<i4", count=256)
    except OSError as error:
        raise storage_error(error, path, "reading") from None
    if size <= HEADER_BYTES or len(header) < 256:
        raise InputError(
            f"the shard has {size:,} bytes; header and one id need {HEADER_BYTES + 2:,}", str(path), "make it anew"
        )
    if header[0] != SHARD_MAGIC:
        big = int(header[0]).to_bytes(4, "little", signed=True) == SHARD_MAGIC.to_bytes(4, "big")
        hint = "the file is big-endian" if big else "this is not a token shard"
        raise InputError(f"magic number {header[0]}, expected {SHARD_MAGIC}", str(path), hint)
    if header[1] != SHARD_VERSION:
        raise InputError(f"shard version {header[1]}, expected {SHARD_VERSION}", str(path), "a newer pgolf may read it")
    if header[2] < 1 or size != HEADER_BYTES + 2 * int(header[2]):
        raise InputError(
            f"the header promises {header[2]:,} ids, the file holds {(size - HEADER_BYTES) / 2:,g}",
            str(path),
            "the shard is truncated or damaged; make it anew",
        )
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES)


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
    """A stream of the training split: what calibration takes, so that validation tokens cannot get into it."""
