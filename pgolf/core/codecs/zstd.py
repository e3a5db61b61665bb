"""Zstandard (RFC 8878)."""

from collections.abc import Sequence
from dataclasses import dataclass

from pgolf.core.errors import ConfigError, InputError

STEP_BYTES = 256
"""Input is fed in steps this small because four bytes of zstd may stand for a block of 128 KiB."""


@dataclass(frozen=True, kw_only=True)
class Zstd:
    """Zstandard. Source: PR #65, PR #414."""

    level: int = 22
    """1 (fast) to 22 (small)."""

    codec_id = 4

    def __post_init__(self) -> None:
        if not 1 <= self.level <= 22:
            raise ConfigError(f"level must be 1 to 22, not {self.level}", "level")

    def encode(self, raw: bytes, shapes: Sequence[tuple[int, ...]] = ()) -> bytes:
        """Compress; the frame states its content size."""
        import zstandard

        return zstandard.ZstdCompressor(level=self.level).compress(raw)

    def decode(self, coded: bytes, raw_len: int) -> bytes:
        """Decompress to exactly `raw_len` bytes: the stated size is checked first, then the output is counted."""
        import zstandard

        try:
            stated = zstandard.frame_content_size(coded)
            if stated != raw_len:
                raise InputError(f"a zstd section holds {stated:,} bytes, {raw_len:,} promised", "artifact")
            stream = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
            pieces, total = [], 0
            for start in range(0, len(coded), STEP_BYTES):
                pieces.append(stream.decompress(coded[start : start + STEP_BYTES]) if not stream.eof else b"")
                total += len(pieces[-1])
                if total > raw_len or (stream.eof and start + STEP_BYTES < len(coded)):
                    break
            if total == raw_len and stream.eof and not stream.unused_data:
                return b"".join(pieces)
        except zstandard.ZstdError as error:
            raise InputError(f"zstd: {error}", "artifact") from None
        raise InputError(f"a zstd section does not hold the {raw_len:,} bytes it promises", "artifact")
