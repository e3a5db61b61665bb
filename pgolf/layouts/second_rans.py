"""Sections of rans as its second version wrote them: tables were renewed each time they had seen twice as much, and for
scales there was prediction, no levels. They can still be read, at home; no script carries this.
"""

import struct
from typing import TYPE_CHECKING, Any

from pgolf.core.codecs.zlib import Zlib
from pgolf.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from pgolf.core.codecs.rans import Reader, Tables

STRIDES_THEN, STEPS_THEN, SECOND_MATRICES = (1, 2, 4), 3, 254
"""First byte of such a section: planes of every first, second or fourth byte, of differences, or matrices."""
LONGEST_THEN, CURVES = 1 << 16, 40
SCALED, LEARNT_THEN, ALONG_THEN = 2, 3, 32
"""Model of a matrix: 0 order 0, 1 order 0 that goes on, 2 prediction by means and scales, 3 by regression too, 32 + m a
trellis of 2^m.
"""


def decode_second(coded: bytes, raw_len: int) -> bytes:
    """Decompress to exactly `raw_len` bytes, bounded in memory. InputError otherwise."""
    import numpy as np

    kind = coded[0]
    if kind == SECOND_MATRICES:
        count, size = struct.unpack_from("<HH", coded, 1) if len(coded) > 4 else (0, 0)
        shapes = list(struct.iter_unpack("<II", Zlib().decode(coded[5 : 5 + size], 8 * count)))
        if sum(rows * columns for rows, columns in shapes) != raw_len:
            raise InputError(f"a coded section does not hold the {raw_len:,} bytes it promises", "artifact")
        found = matrices_then(coded[5 + size :], shapes)
        return b"".join(matrix.astype(np.int8).tobytes() for matrix in found)
    if kind == STEPS_THEN and raw_len % 2:
        raise InputError("a coded section is damaged", "artifact")
    stride = 2 if kind == STEPS_THEN else kind
    values = np.empty(raw_len, np.uint8)
    for i, plane in enumerate(matrices_then(coded[1:], [(1, len(range(i, raw_len, stride))) for i in range(stride)])):
        values[i::stride] = plane[0]
    if kind == STEPS_THEN:
        folded = values.view("<u2")
        values = np.cumsum(folded >> 1 ^ -(folded & 1), dtype="<u2").view(np.uint8)
    return values.tobytes()


def matrices_then(coded: bytes, shapes: list[Any]) -> "list[np.ndarray]":
    """The matrices (R,C), int16. InputError when they cannot be had from the bytes."""
    import numpy as np

    from pgolf.core.codecs.rans import CODED_HEAD, MAX_LANES, Reader, Tables

    if len(coded) < CODED_HEAD.size + len(shapes):
        raise InputError("a coded section is cut off", "artifact")
    low, high, lanes = CODED_HEAD.unpack_from(coded)
    if not 0 <= high - low < 256 or not 1 <= lanes <= MAX_LANES:
        raise InputError("a coded section is damaged", "artifact")
    stop = CODED_HEAD.size + len(shapes)
    reader, found, predictions = Reader(coded[stop:], lanes), list[np.ndarray](), list[Tables]()
    tables, trail = table_then(high - low), table_then(high - low, 2)
    for model, shape in zip(coded[CODED_HEAD.size : stop], shapes, strict=True):
        codes = np.zeros(shape, np.int16)
        if not codes.size:
            pass
        elif model < SCALED:
            tables = tables if model else table_then(high - low)
            symbols = codes.ravel().astype(np.int64)
            order_zero_then(reader, tables, symbols)
            codes[:] = symbols.reshape(shape) + low
        elif model <= LEARNT_THEN:
            predictions = predictions or [curves_then(high - low)]
            predicted_then(reader, predictions[0], codes, low, high, model == LEARNT_THEN)
        else:
            along_then(reader, trail, codes, low, model - ALONG_THEN)
        found.append(codes)
    reader.finish()
    return found


def table_then(reach: int, count: int = 1) -> "Tables":
    """Tables of symbols 0 .. reach, each as if seen half a time."""
    import numpy as np

    from pgolf.core.codecs.rans import SEEN, Tables

    return Tables(np.full((count, reach + 1), SEEN // 2, np.int64))


def curves_then(reach: int) -> "Tables":
    """Tables of predictions before anything is seen."""
    from pgolf.core.codecs.rans import SHIFTS, Tables, expected

    return Tables(expected(-reach, reach, SHIFTS)[: CURVES * SHIFTS])


def order_zero_then(
    reader: "Reader", tables: "Tables", symbols: "np.ndarray", base: "np.ndarray | None" = None, least: int = 64
) -> None:
    """Fill symbols (M,) with tables that are renewed after `least` symbols, as many more, twice as many, ...; `base` is
    where in the flat table each one's begins, without it there is but one.
    """
    import numpy as np

    start, base = 0, np.zeros(len(symbols), np.int64) if base is None else base
    while start < len(symbols):
        stop = start + min(max(start, least), LONGEST_THEN)
        tables.add(reader.code(tables, base[start:stop], symbols[start:stop]))
        tables.refresh()
        start = stop


def along_then(reader: "Reader", tables: "Tables", codes_RC: "np.ndarray", low: int, memory: int) -> None:
    """Fill a matrix whose columns lead through a trellis, all segments of all columns side by side."""
    import numpy as np

    from pgolf.core.quant.trellis import PARITY_CHECKS, SEGMENT, next_state

    if 2.0**memory not in PARITY_CHECKS:
        raise InputError("a coded section is damaged", "artifact")
    size = tables.counts.shape[1]
    state: Any = np.zeros((-(-len(codes_RC) // SEGMENT), codes_RC.shape[1]), np.int64)
    for row in range(min(len(codes_RC), SEGMENT)):
        part: Any = codes_RC[row::SEGMENT]
        state, symbols = state[: len(part)], part.ravel().astype(np.int64)
        order_zero_then(reader, tables, symbols, (state & 1).ravel() * size, LONGEST_THEN if row else 64)
        part[:] = symbols.reshape(part.shape) + low
        state = next_state(1 << memory, state, part & 1)


def predicted_then(
    reader: "Reader", tables: "Tables", codes_RC: "np.ndarray", low: int, high: int, learns: bool
) -> None:
    """Fill a matrix of codes low .. high, column by column, after the groups of its rows."""
    import numpy as np

    from pgolf.core.codecs.rans import MOST_TRAITS, SHIFTS, SPREADS, WHOLE, rounded

    rows, columns = codes_RC.shape
    groups = np.zeros(rows, np.int64)
    order_zero_then(reader, table_then(1), groups)
    order = np.argsort(np.arange(rows) * 40503 % WHOLE, kind="stable")
    mixed, groups = codes_RC[order], groups[order]
    parts = [slice(8)]
    while (stop := parts[-1].stop) < rows:
        parts.append(slice(stop, min(2 * stop, stop + rows // 8 + 8)))
    reach, size, most = high - low, tables.counts.shape[1], min(columns, MOST_TRAITS * learns)
    traits, inverse, coarse = np.zeros((rows, most)), *np.zeros((2, len(parts) - 1, 0, 0))
    errors, off, usual = np.ones(rows), np.zeros(rows), np.full(2, reach / 16)
    for column in range(columns):
        known = min(column, most)
        units = (errors + 3 * errors.mean() / (column + 1)) / (column + 4)
        units = np.maximum(units * usual[groups], 0.02)
        moments, mean, away, total, seen = np.zeros(known), *np.zeros((4, 2))
        for index, part in enumerate(parts):
            group, unit, before = groups[part], units[part], traits[part, :known]
            guess = mean[group]
            if index:
                learnt = coarse[index - 1] @ moments
                guess += unit * (before @ rounded(learnt, 16))
            guess = np.clip(np.nan_to_num(guess), low, high)
            near = np.rint(guess).astype(np.int64)
            shift = ((guess - near + 0.5) * SHIFTS).astype(np.int64).clip(0, SHIFTS - 1)
            spread = np.searchsorted(SPREADS[1:CURVES], unit * ((2 + away) / (2 + seen))[group] * 1.36)
            code = np.zeros(len(unit), np.int64)
            tables.add(reader.code(tables, (spread * SHIFTS + shift) * size, code))
            code += near - reach
            if (code != np.clip(code, low, high)).any():
                raise InputError("a coded section is damaged", "artifact")
            mixed[part, column] = code
            off[part] = np.abs(code - guess)
            away += np.bincount(group, rounded(off[part] / unit, 8), 2)
            seen += np.bincount(group, minlength=2)
            total += np.bincount(group, code, 2)
            mean = total / (seen + 0.5)
            moments += before.T @ rounded((code - mean[group]) / unit, 3)
        tables.refresh()
        found = (away + 0.5) / (seen + 0.5)
        errors += rounded(off / np.maximum(usual * found, 0.02)[groups], 8)
        usual = usual * (0.9 + 0.1 * found if column else found)
        if column < most:
            trait = (mixed[:, column] - mean[groups]) / (units * found[groups])
            traits[:, column] = rounded(np.clip(trait, -8, 8), 3)
            products = [traits[part, : column + 1].T @ traits[part, column] for part in parts[:-1]]
            sums = np.reshape(products, (-1, column + 1)).cumsum(0)
            border = sums[:, :column, None]
            edge = coarse @ border + rounded(inverse - coarse, 48) @ border
            left = sums[:, column] - (rounded(edge, 24) * border).sum((1, 2))
            edge = np.append(edge, -np.ones((len(left), 1, 1)), 1)
            inverse = np.pad(inverse, ((0, 0), (0, 1), (0, 1)))
            inverse += edge * (np.swapaxes(edge, 1, 2) / (np.maximum(left, 0) + 5 * most)[:, None, None])
            coarse = rounded(inverse, 28)
    codes_RC[order] = mixed
