"""Brotli (RFC 7932), the compressor of most records."""

from collections.abc import Sequence
from dataclasses import dataclass

from pgolf.core.errors import ConfigError, InputError


@dataclass(frozen=True, kw_only=True)
class Brotli:
    """Brotli. Source: PR #1218 and later."""

    quality: int = 11
    """0 (fast) to 11 (small)."""
    lgwin: int = 24
    """log2 of the window, 10 to 24."""

    codec_id = 3

    def __post_init__(self) -> None:
        if not 0 <= self.quality <= 11 or not 10 <= self.lgwin <= 24:
            raise ConfigError("quality must be 0 to 11, lgwin 10 to 24", "")

    def encode(self, raw: bytes, shapes: Sequence[tuple[int, ...]] = ()) -> bytes:
        """Compress."""
        import brotli

        return brotli.compress(raw, quality=self.quality, lgwin=self.lgwin)

    def decode(self, coded: bytes, raw_len: int) -> bytes:
        """Decompress to exactly `raw_len` bytes. The limit makes brotli stop soon after it, so a bomb costs little."""
        import brotli

        stream, raw = brotli.Decompressor(), b""
        try:
            raw = stream.process(coded, output_buffer_limit=raw_len + 1)
            while (
                len(raw) < raw_len
                and not stream.is_finished()
                and (more := stream.process(b"", output_buffer_limit=raw_len + 1))
            ):
                raw += more
        except brotli.error as error:
            raise InputError(f"brotli: {error}", "artifact") from None
        if len(raw) != raw_len or not stream.is_finished():
            raise InputError(f"a brotli section does not hold the {raw_len:,} bytes it promises", "artifact")
        return raw
