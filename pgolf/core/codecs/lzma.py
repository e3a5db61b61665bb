"""Raw LZMA2: the xz format without its container."""

import lzma
from collections.abc import Sequence
from dataclasses import dataclass

from pgolf.core.errors import ConfigError, InputError


@dataclass(frozen=True, kw_only=True)
class Lzma:
    """LZMA2. Source: PR #549, PR #1019."""

    preset: int = 9
    """0 (fast) to 9 (small)."""

    codec_id = 2

    def __post_init__(self) -> None:
        if not 0 <= self.preset <= 9:
            raise ConfigError(f"preset must be 0 to 9, not {self.preset}", "preset")

    def encode(self, raw: bytes, shapes: Sequence[tuple[int, ...]] = ()) -> bytes:
        """Compress; the first byte states log2 of the dictionary size (16 to 26), which a decoder needs."""
        bits = min(max(len(raw) - 1, 1).bit_length(), 26)
        bits = max(bits, 16)
        chain = [{"id": lzma.FILTER_LZMA2, "preset": self.preset | lzma.PRESET_EXTREME, "dict_size": 1 << bits}]
        return bytes([bits]) + lzma.compress(raw, lzma.FORMAT_RAW, filters=chain)

    def decode(self, coded: bytes, raw_len: int) -> bytes:
        """Decompress to exactly `raw_len` bytes, never allocating more. InputError otherwise."""
        if not coded or not 16 <= coded[0] <= 26:
            raise InputError("an LZMA section names no valid dictionary size", "artifact")
        chain = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << coded[0]}]
        try:
            stream = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=chain)
            raw = stream.decompress(coded[1:], raw_len + 1)
        except (lzma.LZMAError, EOFError) as error:
            raise InputError(f"LZMA: {error}", "artifact") from None
        if len(raw) != raw_len or not stream.eof or stream.unused_data:
            raise InputError(f"an LZMA section does not hold the {raw_len:,} bytes it promises", "artifact")
        return raw
