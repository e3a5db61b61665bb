"""Sections that are arranged before they are coded, each in a way with a number of its own (docs/formats.md).

The codec byte of an artifact's header is 16 times the arrangement plus the codec's own number; arrangement 0 is none.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.codecs.base import Codec
from pgolf.core.errors import InputError
from pgolf.layouts.bits import (
    NARROWEST,
    SIGNS,
    TRITS,
    WIDEST,
    pack_bits,
    pack_signs,
    pack_trits,
    shuffle,
    unpack_bits,
    unpack_signs,
    unpack_trits,
    unshuffle,
)

if TYPE_CHECKING:
    import numpy as np

COLUMNS, PLANES_2, PLANES_4, BASE_3, BASE_2 = 1, 2, 8, 9, 10
"""Arrangements; NARROWEST to WIDEST are codes of as many bits."""
ARRANGEMENTS = {
    COLUMNS: "columns",
    PLANES_2: "planes of 2",
    **{width: f"{width} bits" for width in range(NARROWEST, WIDEST + 1)},
    PLANES_4: "planes of 4",
    BASE_3: "base 3",
    BASE_2: "signs",
}
FLOAT_PLANES = {3: PLANES_2, 4: PLANES_2, 5: PLANES_4}
"""Section of floats -> bytes of each."""
SHAPE = struct.Struct("<IIB")
"""Rows, columns, whether rows are sorted."""


@dataclass(frozen=True)
class Arranged:
    """A codec behind an arrangement of known length: packed codes, or planes of bytes."""

    layout: int
    coder: Codec

    @property
    def codec_id(self) -> int:
        """The codec byte."""
        return 16 * self.layout + self.coder.codec_id

    def size(self, raw_len: int) -> int:
        """Bytes of so many when arranged."""
        if self.layout in (PLANES_2, PLANES_4):
            return raw_len
        if self.layout in (BASE_3, BASE_2):
            return -(-raw_len // (TRITS if self.layout == BASE_3 else SIGNS))
        return -(-raw_len * self.layout // 8)

    def encode(self, raw: bytes, shapes: Sequence[tuple[int, ...]] = ()) -> bytes:
        """Arrange and compress; codes must be such that the arrangement can hold them."""
        import numpy as np

        codes = np.frombuffer(raw, np.int8)
        if self.layout in (PLANES_2, PLANES_4):
            arranged = shuffle(raw, 2 if self.layout == PLANES_2 else 4)
        elif self.layout in (BASE_3, BASE_2):
            arranged = (pack_trits if self.layout == BASE_3 else pack_signs)(codes)
        else:
            arranged = pack_bits(codes, self.layout)
        return self.coder.encode(arranged)

    def decode(self, coded: bytes, raw_len: int) -> bytes:
        """Decompress to exactly `raw_len` bytes, bounded in memory. InputError otherwise."""
        arranged = self.coder.decode(coded, self.size(raw_len))
        if self.layout in (PLANES_2, PLANES_4):
            return unshuffle(arranged, 2 if self.layout == PLANES_2 else 4)
        if self.layout in (BASE_3, BASE_2):
            return (unpack_trits if self.layout == BASE_3 else unpack_signs)(arranged, raw_len).tobytes()
        return unpack_bits(arranged, self.layout, raw_len).tobytes()


@dataclass(frozen=True)
class Columns:
    """A codec behind matrices that stand column by column, those of one shape together; with `similar` the rows of each
    are sorted so that neighbours resemble one another, and their order is stored (PR #1855).
    """

    coder: Codec
    similar: bool = False

    @property
    def codec_id(self) -> int:
        """The codec byte."""
        return 16 * COLUMNS + self.coder.codec_id

    def encode(self, raw: bytes, shapes: Sequence[tuple[int, ...]] = ()) -> bytes:
        """u16 matrices; per matrix u32 rows, u32 columns, u8 sorted; u32 length of the orders, zlib; the codec's."""
        import numpy as np

        matrices, start = [], 0
        for rows, columns in shapes or [(1, len(raw))]:
            matrices.append(np.frombuffer(raw, np.int8, rows * columns, start).reshape(rows, columns))
            start += rows * columns
        orders = [
            similar_order(matrix) if self.similar and matrix.size and len(matrix) > 1 else None for matrix in matrices
        ]
        head = b"".join(
            SHAPE.pack(*matrix.shape, order is not None) for matrix, order in zip(matrices, orders, strict=True)
        )
        side = zlib.compress(b"".join(order.astype("<u2").tobytes() for order in orders if order is not None), 9)
        sorted_ones = [m if order is None else m[order] for m, order in zip(matrices, orders, strict=True)]
        stream = b"".join(sorted_ones[i].T.tobytes() for i in by_shape([m.shape for m in matrices]))
        return struct.pack("<H", len(matrices)) + head + struct.pack("<I", len(side)) + side + self.coder.encode(stream)

    def decode(self, coded: bytes, raw_len: int) -> bytes:
        """Decompress to exactly `raw_len` bytes, bounded in memory. InputError otherwise."""
        import numpy as np

        count = struct.unpack_from("<H", coded)[0] if len(coded) >= 2 else 0
        at = 2 + SHAPE.size * count
        if len(coded) < at + 4:
            raise InputError("a section by columns is cut off", "artifact")
        table = [SHAPE.unpack_from(coded, 2 + SHAPE.size * i) for i in range(count)]
        side_len, places = struct.unpack_from("<I", coded, at)[0], 2 * sum(rows for rows, _, way in table if way)
        total = sum(rows * columns for rows, columns, _ in table)
        if total != raw_len or places > 2 * raw_len or any(way > 1 for *_, way in table):
            raise InputError(f"a section by columns does not hold the {raw_len:,} bytes it promises", "artifact")
        stream = zlib.decompressobj()
        try:
            side = stream.decompress(coded[at + 4 : at + 4 + side_len], places + 1)
        except zlib.error as error:
            raise InputError(f"zlib: {error}", "artifact") from None
        if len(side) != places or not stream.eof or stream.unused_data:
            raise InputError("the order of rows is damaged", "artifact")
        codes = np.frombuffer(self.coder.decode(coded[at + 4 + side_len :], raw_len), np.int8)
        raw, orders, read, taken = np.empty(raw_len, np.int8), np.frombuffer(side, "<u2"), 0, 0
        inverse = {}
        for index, (rows, _, way) in enumerate(table):
            if way:
                order, taken = orders[taken : taken + rows], taken + rows
                if bool((np.bincount(order, minlength=rows)[:rows] != 1).any()):
                    raise InputError("an order of rows is no permutation", "artifact")
                inverse[index] = np.argsort(order)
        starts = np.cumsum([0, *(rows * columns for rows, columns, _ in table)])
        for index in by_shape([(rows, columns) for rows, columns, _ in table]):
            rows, columns, _ = table[index]
            matrix = codes[read : read + rows * columns].reshape(columns, rows).T
            read += rows * columns
            raw[starts[index] : starts[index + 1]] = matrix[inverse.get(index, slice(None))].ravel()
        return raw.tobytes()


def by_shape(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """The matrices' numbers, those of one shape together."""
    return sorted(range(len(shapes)), key=lambda i: shapes[i])


def similar_order(codes_RC: "np.ndarray") -> "np.ndarray":
    """Rows from the first on, each followed by the nearest of those left, by the sum of absolute differences; (R,)."""
    import numpy as np

    left, numbers, here, order = codes_RC.astype(np.int16), np.arange(len(codes_RC)), 0, [0]
    for size in range(len(codes_RC) - 1, 0, -1):
        row = left[here].copy()
        left[here], numbers[here] = left[size], numbers[size]
        away = np.abs(left[:size] - row).sum(1, dtype=np.int64)
        nearest = np.flatnonzero(away == away.min())
        here = int(nearest[numbers[nearest].argmin()])
        order.append(int(numbers[here]))
    return np.array(order)
