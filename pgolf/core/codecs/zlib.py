"""zlib (RFC 1950), the naive baseline's compressor."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from pgolf.core.errors import ConfigError, InputError


@dataclass(frozen=True, kw_only=True)
class Zlib:
    """Deflate. Source: naive baseline."""

    level: int = 9
    """0 (fast) to 9 (small)."""

    codec_id = 1

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 9:
            raise ConfigError(f"level must be 0 to 9, not {self.level}", "level")

    def encode(self, raw: bytes, shapes: Sequence[tuple[int, ...]] = ()) -> bytes:
        """Compress."""
        return zlib.compress(raw, self.level)

    def decode(self, coded: bytes, raw_len: int) -> bytes:
        """Decompress to exactly `raw_len` bytes, never allocating more. InputError otherwise."""
        stream = zlib.decompressobj()
        try:
            raw = stream.decompress(coded, raw_len + 1)
        except zlib.error as error:
            raise InputError(f"zlib: {error}", "artifact") from None
        if len(raw) != raw_len or not stream.eof or stream.unused_data:
            raise InputError(f"a zlib section does not hold the {raw_len:,} bytes it promises", "artifact")
        return raw
