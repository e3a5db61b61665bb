"""Zstandard (RFC 8878)."""

from dataclasses import dataclass

from pgolf.core.errors import ConfigError, InputError


@dataclass(frozen=True, kw_only=True)
class Zstd:
    """Zstandard. Source: PR #65, PR #414."""

    level: int = 22
    """1 (fast) to 22 (small)."""

    codec_id = 4

    def __post_init__(self) -> None:
        if not 1 <= self.level <= 22:
            raise ConfigError(f"level must be 1 to 22, not {self.level}", "compress.level")

    def encode(self, raw: bytes) -> bytes:
        """Compress; the frame states its content size."""
        import zstandard

        return zstandard.ZstdCompressor(level=self.level).compress(raw)

    def decode(self, coded: bytes, raw_len: int) -> bytes:
        """Decompress to exactly `raw_len` bytes: the stated size is checked first, then the read is limited."""
        import zstandard

        try:
            stated = zstandard.frame_content_size(coded)
            if stated != raw_len:
                raise InputError(f"a zstd section holds {stated:,} bytes, {raw_len:,} promised", "artifact")
            with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
                coded, read_across_frames=True
            ) as reader:
                raw = reader.read(raw_len)
                if len(raw) == raw_len and not reader.read(1):
                    return raw
        except zstandard.ZstdError as error:
            raise InputError(f"zstd: {error}", "artifact") from None
        raise InputError(f"a zstd section does not hold the {raw_len:,} bytes it promises", "artifact")
