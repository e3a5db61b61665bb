"""Sections of rans as its first version wrote them, which predicted codes from vectors sent ahead of each column. They
can still be read, at home; no script carries this.
"""

import math
import struct
from fractions import Fraction
from typing import TYPE_CHECKING

from pgolf.core.codecs.adaptive import Rans
from pgolf.core.errors import InputError
from pgolf.layouts.second_rans import (
    ALONG_THEN,
    SECOND_MATRICES,
    STEPS_THEN,
    STRIDES_THEN,
    along_then,
    decode_second,
    order_zero_then,
    table_then,
)

if TYPE_CHECKING:
    import numpy as np

    from pgolf.core.codecs.rans import Reader, Tables

MATRICES_THEN = 255
"""First byte of such a section."""
PREDICTED, MOST_NUMBERS = 2, 8
"""Model of a matrix: 0 order 0, 1 order 0 that goes on, 2 + K prediction by K numbers, 32 + m a trellis of 2^m."""
FIXED = 20
"""Fractional bits of predictions and of errors."""


class EveryRans(Rans):
    """The codec of today that reads those sections too, and those of the second version."""

    def decode(self, coded: bytes, raw_len: int) -> bytes:
        """Decompress to exactly `raw_len` bytes, bounded in memory. InputError otherwise."""
        kind = coded[0] if coded else 0
        if kind in (*STRIDES_THEN, STEPS_THEN, SECOND_MATRICES):
            return decode_second(coded, raw_len)
        if kind != MATRICES_THEN:
            return super().decode(coded, raw_len)
        import numpy as np

        count = struct.unpack_from("<H", coded, 1)[0] if len(coded) > 2 else 65535
        start = 3 + 8 * count
        if len(coded) < start:
            raise InputError("a coded section is cut off", "artifact")
        shapes = [struct.unpack_from("<II", coded, 3 + 8 * i) for i in range(count)]
        if sum(rows * columns for rows, columns in shapes) != raw_len:
            raise InputError(f"a coded section does not hold the {raw_len:,} bytes it promises", "artifact")
        found = decode_earlier(coded[start:], [(rows, columns) for rows, columns in shapes])
        return b"".join(matrix.astype(np.int8).tobytes() for matrix in found)


def decode_earlier(coded: bytes, shapes: list[tuple[int, int]]) -> "list[np.ndarray]":
    """The matrices (R,C), int16. InputError when they cannot be had from the bytes."""
    import numpy as np

    from pgolf.core.codecs.rans import CODED_HEAD, MAX_LANES, Reader

    if len(coded) < CODED_HEAD.size:
        raise InputError("a coded section is cut off", "artifact")
    low, high, lanes = CODED_HEAD.unpack_from(coded)
    reach, place, ahead = high - low, CODED_HEAD.size, list[tuple[int, bytes]]()
    if not 0 <= reach < 256 or not 1 <= lanes <= MAX_LANES:
        raise InputError("a coded section is damaged", "artifact")
    for rows, columns in shapes:
        if rows * columns:
            model = coded[place] if place < len(coded) else 0
            if PREDICTED + MOST_NUMBERS < model < ALONG_THEN:
                raise InputError("a coded section names an unknown model", "artifact")
            size = 1 + columns * (model - PREDICTED + 1) if ALONG_THEN > model >= PREDICTED else 0
            ahead.append((model, coded[place + 1 : place + 1 + size]))
            place += 1 + size
    reader, found = Reader(coded[place:], lanes), list[np.ndarray]()
    tables, trail = table_then(reach), table_then(reach, 2)
    for shape in shapes:
        codes = np.zeros(shape, np.int16)
        if codes.size:
            model, side = ahead.pop(0)
            if model < PREDICTED:
                tables = tables if model else table_then(reach)
                order_zero_then(reader, tables, codes.reshape(-1))
                codes += low
            elif model >= ALONG_THEN:
                along_then(reader, trail, codes, low, model - ALONG_THEN)
            else:
                predicted_earlier(reader, codes, low, high, side)
        found.append(codes)
    reader.finish()
    return found


def tables_then(reach: int) -> "Tables":
    """Logistic curves for 40 widths, four to a doubling, and four places between two codes."""
    import numpy as np

    from pgolf.core.codecs.rans import SEEN, TRUST, Tables, bell

    spreads = np.sqrt(np.sqrt(np.ldexp(1.0, np.arange(40) - 8)))[:, None, None]
    away = np.arange(-reach, reach + 1) - ((np.arange(4) + 0.5) / 4 - 0.5)[:, None]
    share = bell((away + 0.5) * 1.7 / spreads) - bell((away - 0.5) * 1.7 / spreads)
    counts = np.floor(share * (SEEN * (TRUST * spreads + 16))).astype(np.int64)
    return Tables(counts.reshape(-1, 2 * reach + 1) + 1)


def weights_of(gram: list[list[int]], vector: list[int]) -> list[int]:
    """G^-1 v with 32 fractional bits, rounded down; G is positive definite."""
    size = len(vector)
    rows = [[*map(Fraction, gram[i]), Fraction(vector[i])] for i in range(size)]
    for i in range(size):
        for j in range(i + 1, size):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [one - factor * other for one, other in zip(rows[j], rows[i], strict=True)]
    found = [Fraction(0)] * size
    for i in reversed(range(size)):
        found[i] = (rows[i][size] - sum((rows[i][j] * found[j] for j in range(i + 1, size)), Fraction(0))) / rows[i][i]
    return [math.floor(value * (1 << 32)) for value in found]


def predicted_earlier(reader: "Reader", codes_RC: "np.ndarray", low: int, high: int, side: bytes) -> None:
    """Fill a matrix column by column; `side` is log2 of the ridge, scales (C,) in sixteenths of a doubling, and vectors
    (C,K).
    """
    import numpy as np

    (rows, columns), reach, ridge = codes_RC.shape, high - low, 0
    if not side or len(side) % columns != 1 % columns:
        raise InputError("a coded section is cut off", "artifact")
    ridge, scales = min(side[0], 40), np.frombuffer(side, np.uint8, columns, 1)
    vectors = np.frombuffer(side, np.int8, offset=1 + columns).reshape(columns, -1)
    tables, rank = tables_then(reach), vectors.shape[1]
    size = tables.counts.shape[1]
    edges = np.sqrt(np.sqrt(np.ldexp(1.0, np.arange(1, 40) - 8) / math.sqrt(2)))
    limits = np.floor(edges * (1 << FIXED)).astype(np.int64)
    gram = [[(i == j) << ridge for j in range(rank)] for i in range(rank)]
    moments_RK, errors_R, all_errors = np.zeros((rows, rank), np.int64), np.zeros(rows, np.int64), 1 << FIXED
    units = np.floor(np.sqrt(np.sqrt(np.sqrt(np.sqrt(np.ldexp(1.0, np.arange(256)))))) * 256).astype(np.int64)
    for column, (scale, vector) in enumerate(zip(units[scales], vectors.tolist(), strict=True)):
        guess = moments_RK @ np.array(weights_of(gram, vector), np.int64) >> 32 - FIXED
        guess = np.clip(guess, low << FIXED, high << FIXED)
        near = (guess + (1 << FIXED - 1)) >> FIXED
        shift = ((guess - (near << FIXED) + (1 << FIXED - 1)) * 4 >> FIXED).clip(0, 3)
        error = (errors_R + 4 * all_errors // max(column, 1)) // (column + 4)
        spread = np.searchsorted(limits, error * scale * 5 // 4 >> 8, "right")
        off_R = np.zeros(rows, np.int64)
        tables.add(reader.code(tables, (spread * 4 + shift) * size, off_R))
        tables.refresh()
        code = off_R + near - reach
        if int(code.min()) < low or int(code.max()) > high:
            raise InputError("a coded section is damaged", "artifact")
        codes_RC[:, column] = code
        error = (np.abs((code << FIXED) - guess) << 8) // scale
        errors_R += error
        all_errors += int(error.sum()) // rows
        moments_RK += code[:, None] * np.array(vector, np.int64)
        gram = [[gram[i][j] + vector[i] * vector[j] for j in range(rank)] for i in range(rank)]
