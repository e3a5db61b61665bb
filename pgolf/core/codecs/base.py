"""What a byte compressor promises."""

from collections.abc import Sequence
from typing import Protocol


class Codec(Protocol):
    """A byte compressor with a number that the artifact's header records."""

    @property
    def codec_id(self) -> int:
        """The number in the header."""

    def encode(self, raw: bytes, shapes: Sequence[tuple[int, ...]] = ()) -> bytes:
        """Compress. `shapes` are those of the int8 matrices that `raw` consists of, if it does, for codecs that look at
        more than bytes.
        """

    def decode(self, coded: bytes, raw_len: int) -> bytes:
        """Decompress to exactly `raw_len` bytes, bounded in memory, or raise InputError."""
