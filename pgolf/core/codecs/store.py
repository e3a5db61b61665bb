"""No compression."""

from collections.abc import Sequence
from dataclasses import dataclass

from pgolf.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Store:
    """Bytes as they are, to see what the others save. Source: pgolf."""

    codec_id = 0

    def encode(self, raw: bytes, shapes: Sequence[tuple[int, ...]] = ()) -> bytes:
        """The same bytes."""
        return raw

    def decode(self, coded: bytes, raw_len: int) -> bytes:
        """The same bytes; InputError unless there are `raw_len`."""
        if len(coded) != raw_len:
            raise InputError(f"a stored section has {len(coded):,} bytes, {raw_len:,} expected", "artifact")
        return coded
