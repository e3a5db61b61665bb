"""What a byte compressor promises."""

from typing import Protocol


class Codec(Protocol):
    """A byte compressor with a number that the artifact's header records."""

    @property
    def codec_id(self) -> int:
        """The number in the header."""

    def encode(self, raw: bytes) -> bytes:
        """Compress."""

    def decode(self, coded: bytes, raw_len: int) -> bytes:
        """Decompress to exactly `raw_len` bytes, bounded in memory, or raise InputError."""
