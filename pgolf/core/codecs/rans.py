"""pgolf's own coder: interleaved rANS (arXiv:1311.2540) with counts that adapt, whole vectors of symbols at a time.

Lane i of a chunk codes its i-th symbol. A state x in [2^24, 2^40) takes a symbol of frequency f, from s on, out of
2^16: x <- (x // f) 2^16 + x mod f + s, after giving away its low 16 bits if it would not fit. What decides a decoded
symbol is integer, or made of products, quotients and roots that every machine rounds alike.

What is coded is a list of integer matrices, each by one of three models:

order 0: one table of counts, which may go on from that of the matrix before.

prediction: column by column, all rows at once. A column c has a scale a_c and a vector v_c of few numbers, sent ahead.
Ridge regression on the columns before (G = sum v v^T + ridge, the same for all rows; b_r = sum q_rc v_c) predicts the
code as b_r . G^-1 v_c; the row's mean error so far, times a_c, says how far off that may be. Both choose the table.
Embeddings need that: rows of rare tokens resemble one another.

trellis: row by row, two tables. Where codes lead through a trellis (`quant/trellis.py`), those above a code in its
column tell whether it stands for even or odd multiples of half the step.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import torch

from pgolf.core.errors import InputError
from pgolf.core.quant.trellis import PARITY_CHECKS, SEGMENT, next_state, walk

WHOLE = 1 << 16
"""Frequencies of a table add up to this."""
LEAST = 1 << 24
"""States lie between this and 2^16 times as much."""
STATE_BYTES = 5
MAX_LANES = 1024
LONGEST = 1 << 16
"""Most symbols coded with one state of a table of order 0."""
SPREADS, SHIFTS = 40, 4
"""Tables of a predicted matrix: how wide, four to a doubling, and where between two codes the prediction lies."""
FIXED = 20
"""Fractional bits of predictions and of errors."""
SEEN, TRUST = 32, 128
"""Weight of a symbol seen in a table's counts, and in such units that of what was expected, per code of its width."""
CODED_HEAD = struct.Struct("<hhH")
"""Least and largest number coded, lanes."""
PREDICTED, ALONG = 2, 32
"""Model of a matrix: 0 order 0, 1 order 0 that goes on, 2 + K prediction by K numbers a column, 32 + m a trellis of 2^m
states.
"""
RANKS = (0, 1, 4, 8)
"""Numbers a column that are tried."""


def frequencies(counts_NS: np.ndarray) -> np.ndarray:
    """Counts (N,S) as frequencies, at least 1, that add up to 2^16 in every row."""
    size = counts_NS.shape[1]
    found = 1 + counts_NS * (WHOLE - size) // counts_NS.sum(1, keepdims=True)
    found[np.arange(len(found)), counts_NS.argmax(1)] += WHOLE - found.sum(1)
    return found


class Tables:
    """Counts of several contexts, (N,S) int64, and their cumulated frequencies, each context's 2^16 further on."""

    def __init__(self, counts_NS: np.ndarray) -> None:
        self.counts = counts_NS
        self.refresh()

    def refresh(self) -> None:
        """Take up what has been counted."""
        found = frequencies(self.counts)
        ends = found.cumsum(1) + WHOLE * np.arange(len(found))[:, None]
        self.bounds = np.concatenate(([0], ends.ravel()))

    def add(self, places: np.ndarray) -> None:
        """Count symbols, given as context * S + symbol."""
        flat = self.counts.ravel()
        flat += SEEN * np.bincount(places, minlength=len(flat))


def chunks(total: int, lanes: int) -> Iterator[slice]:
    """Cuts `total` symbols into vectors."""
    return (slice(start, min(start + lanes, total)) for start in range(0, total, lanes))


class Coder(Protocol):
    """Codes symbols, or finds them."""

    def code(self, tables: Tables, base: np.ndarray, symbols: np.ndarray) -> np.ndarray:
        """Symbols (M,) in the contexts that begin at `base`, (M,) or (1,), of the flat table; returns their places."""


class Meter:
    """Only counts what coding would take."""

    def __init__(self) -> None:
        self.bits = 0.0

    def code(self, tables: Tables, base: np.ndarray, symbols: np.ndarray) -> np.ndarray:
        """Add up."""
        places = base + symbols
        self.bits -= float(np.log2((tables.bounds[places + 1] - tables.bounds[places]) / WHOLE).sum())
        return places


class Writer:
    """Notes what is coded, and codes it backwards in the end."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []

    def code(self, tables: Tables, base: np.ndarray, symbols: np.ndarray) -> np.ndarray:
        """Note them."""
        places = base + symbols
        starts = tables.bounds[places]
        self.parts.append(((tables.bounds[places + 1] - starts).astype(np.uint32), (starts % WHOLE).astype(np.uint32)))
        return places

    def finish(self) -> bytes:
        """States of all lanes, then the words in the order they will be read."""
        states, words = np.full(self.lanes, LEAST, np.int64), list[np.ndarray]()
        for sizes, starts in reversed(self.parts):
            for part in reversed(list(chunks(len(sizes), self.lanes))):
                size, state = sizes[part].astype(np.int64), states[: part.stop - part.start]
                full = np.flatnonzero(state >= size << 24)
                words.append(state[full].astype("<u2"))
                state[full] >>= 16
                whole, rest = np.divmod(state, size)
                state[:] = (whole << 16) + rest + starts[part]
        bytes_LB = states.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :STATE_BYTES]
        return bytes_LB.tobytes() + b"".join(word.tobytes() for word in reversed(words))


class Reader:
    """Takes the symbols out again. InputError when the words do not come out even."""

    def __init__(self, coded: bytes, lanes: int) -> None:
        start = STATE_BYTES * lanes
        if len(coded) < start or (len(coded) - start) % 2:
            raise InputError("a coded section is cut off", "artifact")
        bytes_LB = np.zeros((lanes, 8), np.uint8)
        bytes_LB[:, :STATE_BYTES] = np.frombuffer(coded, np.uint8, start).reshape(lanes, -1)
        self.states = bytes_LB.view("<i8").astype(np.int64).ravel()
        self.words, self.place, self.lanes = np.frombuffer(coded, "<u2", offset=start).astype(np.int64), 0, lanes

    def code(self, tables: Tables, base: np.ndarray, symbols: np.ndarray) -> np.ndarray:
        """Fill `symbols`."""
        contexts = np.broadcast_to(base // tables.counts.shape[1] * WHOLE, symbols.shape)
        places = np.empty(len(symbols), np.int64)
        for part in chunks(len(symbols), self.lanes):
            state = self.states[: part.stop - part.start]
            wanted = (state & (WHOLE - 1)) + contexts[part]
            found = np.searchsorted(tables.bounds, wanted, "right") - 1
            starts = tables.bounds[found]
            state[:] = (tables.bounds[found + 1] - starts) * (state >> 16) + wanted - starts
            empty = np.flatnonzero(state < LEAST)
            words = self.words[self.place : self.place + len(empty)]
            if len(words) < len(empty):
                raise InputError("a coded section ends too early", "artifact")
            state[empty] = state[empty] << 16 | words
            self.place += len(empty)
            places[part] = found
        symbols[:] = places - base
        return places

    def finish(self) -> None:
        """InputError when something is left over."""
        if self.place != len(self.words) or bool((self.states != LEAST).any()):
            raise InputError("a coded section is damaged", "artifact")


def order_zero(
    coder: Coder, tables: Tables, symbols: np.ndarray, base: np.ndarray | None = None, least: int = 64
) -> None:
    """Code (or fill) symbols (M,) with tables that are renewed after `least` symbols, as many more, twice as many more,
    ...; `base` is where in the flat table each one's begins, without it there is but one.
    """
    start, base = 0, np.zeros(len(symbols), np.int64) if base is None else base
    while start < len(symbols):
        stop = start + min(max(start, least), LONGEST)
        tables.add(coder.code(tables, base[start:stop], symbols[start:stop]))
        tables.refresh()
        start = stop


def bell(steps: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x), by products and quotients alone, which every machine rounds alike."""
    powers = np.maximum(1 - np.clip(steps, -40, 40) / 1024, 0)
    for _ in range(10):
        powers = powers * powers
    return 1 / (1 + powers)


def expected(reach: int) -> np.ndarray:
    """Counts (SPREADS * SHIFTS, 2 reach + 1) before anything is seen: logistic, by spread and shift."""
    spreads = np.sqrt(np.sqrt(np.ldexp(1.0, np.arange(SPREADS) - 8)))
    shifts = (np.arange(SHIFTS) + 0.5) / SHIFTS - 0.5
    codes = np.arange(-reach, reach + 1)
    away = (codes - shifts[:, None])[None] * np.ones((SPREADS, 1, 1))
    share = bell((away + 0.5) * 1.7 / spreads[:, None, None]) - bell((away - 0.5) * 1.7 / spreads[:, None, None])
    weights = SEEN * (TRUST * spreads + 16)
    return np.floor(share * weights[:, None, None]).astype(np.int64).reshape(SPREADS * SHIFTS, -1) + 1


EDGES = np.sqrt(np.sqrt(np.ldexp(1.0, np.arange(1, SPREADS) - 8) / math.sqrt(2)))
LIMITS = np.floor(EDGES * (1 << FIXED)).astype(np.int64)
"""Errors up to which a spread holds."""


def weights_of(gram: list[list[int]], vector: list[int]) -> list[int]:
    """G^-1 v with 32 fractional bits, rounded down; G is positive definite."""
    size = len(vector)
    rows = [[*map(Fraction, gram[i]), Fraction(vector[i])] for i in range(size)]
    for i in range(size):
        for j in range(i + 1, size):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [one - factor * other for one, other in zip(rows[j], rows[i])]
    found = [Fraction(0)] * size
    for i in reversed(range(size)):
        found[i] = (rows[i][size] - sum((rows[i][j] * found[j] for j in range(i + 1, size)), Fraction(0))) / rows[i][i]
    return [math.floor(value * (1 << 32)) for value in found]


def predicted(
    coder: Coder,
    codes_RC: np.ndarray,
    low: int,
    high: int,
    ridge: int,
    scales_C: np.ndarray,
    vectors_CK: np.ndarray,
) -> None:
    """Code (or fill) a matrix of codes low .. high, column by column. Scales are in sixteenths of a doubling, the ridge
    is a power of two.
    """
    rows, rank, reach = len(codes_RC), vectors_CK.shape[1], high - low
    tables = Tables(expected(reach))
    size = tables.counts.shape[1]
    gram = [[(i == j) << ridge for j in range(rank)] for i in range(rank)]
    moments_RK, errors_R, all_errors = np.zeros((rows, rank), np.int64), np.zeros(rows, np.int64), 1 << FIXED
    units = np.floor(np.sqrt(np.sqrt(np.sqrt(np.sqrt(np.ldexp(1.0, np.arange(256)))))) * 256).astype(np.int64)
    for column, (scale, vector) in enumerate(zip(units[scales_C], vectors_CK.tolist())):
        guess = moments_RK @ np.array(weights_of(gram, vector), np.int64) >> 32 - FIXED
        guess = np.clip(guess, low << FIXED, high << FIXED)
        near = (guess + (1 << FIXED - 1)) >> FIXED
        shift = ((guess - (near << FIXED) + (1 << FIXED - 1)) * SHIFTS >> FIXED).clip(0, SHIFTS - 1)
        error = (errors_R + 4 * all_errors // max(column, 1)) // (column + 4)
        spread = np.searchsorted(LIMITS, error * scale * 5 // 4 >> 8, "right")
        off_R = codes_RC[:, column] - near + reach
        tables.add(coder.code(tables, (spread * SHIFTS + shift) * size, off_R))
        tables.refresh()
        code = off_R + near - reach
        if int(code.min()) < low or int(code.max()) > high:
            raise InputError("a coded section holds codes out of range", "artifact")
        codes_RC[:, column] = code
        error = (np.abs((code << FIXED) - guess) << 8) // scale
        errors_R += error
        all_errors += int(error.sum()) // rows
        moments_RK += code[:, None] * np.array(vector, np.int64)
        gram = [[gram[i][j] + vector[i] * vector[j] for j in range(rank)] for i in range(rank)]


def along(coder: Coder, tables: Tables, codes_RC: np.ndarray, low: int, memory: int) -> None:
    """Code (or fill) a matrix whose columns lead through a trellis, all segments of all columns side by side."""
    if 1 << memory not in PARITY_CHECKS:
        raise InputError("a coded section names an unknown trellis", "artifact")
    size = tables.counts.shape[1]
    state: Any = np.zeros((-(-len(codes_RC) // SEGMENT), codes_RC.shape[1]), np.int64)
    for row in range(min(len(codes_RC), SEGMENT)):
        part: Any = codes_RC[row::SEGMENT]
        state, symbols = state[: len(part)], part.ravel().astype(np.int64) - low
        order_zero(coder, tables, symbols, (state & 1).ravel() * size, LONGEST if row else 64)
        part[:] = symbols.reshape(part.shape) + low
        state = next_state(1 << memory, state, part & 1)


def trellis_of(codes_RC: np.ndarray, low: int) -> int:
    """The memory of the trellis through which int8 codes from `low` on seem to lead, 0 if through none: knowing which
    are odd must save a thousandth of their entropy.
    """
    savings = {0: 0.001}
    for states in PARITY_CHECKS:
        found = np.bincount(walk(torch.from_numpy(codes_RC.copy()), states).numpy().ravel() - 2 * low)
        counts_2S = np.append(found, np.zeros(len(found) % 2)).reshape(-1, 2).T
        savings[states.bit_length() - 1] = 1 - bits_of(counts_2S) / max(bits_of(counts_2S.sum(0)[None]), 1.0)
    return max(savings, key=savings.__getitem__)


def bits_of(counts_NS: np.ndarray) -> float:
    """Bits of symbols seen so often, by a perfect table for each context."""
    share = counts_NS / np.maximum(counts_NS.sum(1, keepdims=True), 1)
    return float(-(counts_NS * np.log2(np.where(share > 0, share, 1))).sum())


def directions(codes_RC: np.ndarray, rank: int) -> tuple[int, np.ndarray, np.ndarray]:
    """What is sent ahead of a predicted matrix: ridge, scales (C,) uint8 and vectors (C,K) int8."""
    left = codes_RC.astype(np.float64)
    vectors, ridge = np.zeros((left.shape[1], 0), np.int8), 0
    if rank:
        values, basis = np.linalg.eigh(left.T @ left)
        real = basis[:, -rank:] * np.sqrt(np.maximum(values[-rank:], 0) / len(left))
        left = left - left @ basis[:, -rank:] @ basis[:, -rank:].T
        unit = 127 / max(float(np.abs(real).max()), 1e-9)
        vectors = np.rint(real * unit).astype(np.int8)
        ridge = int(np.clip(np.rint(np.log2(max(float(np.square(left).mean()), 1e-9) * unit**2)), 0, 40))
    scales = np.rint(16 * np.log2(np.maximum(np.abs(left).mean(0), 1))).astype(np.uint8)
    return ridge, scales, vectors


def varies(codes_RC: np.ndarray) -> bool:
    """Whether rows or columns differ enough, or a direction has enough of the energy, to try prediction at all."""
    if min(codes_RC.shape) < 2:
        return False
    real = codes_RC.astype(np.float64)
    squares = np.square(real) + 0.1
    uneven = np.log2(squares.mean()) - min(np.log2(squares.mean(0)).mean(), np.log2(squares.mean(1)).mean())
    noise = (1 + math.sqrt(real.shape[1] / real.shape[0])) ** 2 / real.shape[1]
    first = np.linalg.eigvalsh(real.T @ real)[-1] / squares.sum() if real.shape[1] <= 4096 else 0.0
    return bool(uneven > 0.05 or first > 2 * noise)


def fresh_table(reach: int, count: int = 1) -> Tables:
    """Tables of symbols 0 .. reach, each as if seen half a time."""
    return Tables(np.full((count, reach + 1), SEEN // 2, np.int64))


def encode_matrices(matrices: Sequence[np.ndarray]) -> bytes:
    """Code integer matrices (R,C), any of them empty, whose values lie within 255 of each other. Each goes by the
    model that takes the fewest bits, what is sent ahead included.
    """
    filled = [matrix for matrix in matrices if matrix.size]
    low, high = (min(map(np.min, filled)), max(map(np.max, filled))) if filled else (0, 0)
    reach, lanes = int(high) - int(low), max(1, min(sum(matrix.size for matrix in filled) >> 15, MAX_LANES))
    writer, side, tables, trail = Writer(lanes), b"", fresh_table(reach), fresh_table(reach, 2)
    for matrix in filled:
        codes, costs, plans = matrix.astype(np.int64), dict[int, float](), dict[int, Any]()
        symbols = codes.ravel() - low
        for model, start in ((0, fresh_table(reach)), (1, Tables(tables.counts.copy()))):
            order_zero(meter := Meter(), start, symbols)
            costs[model] = meter.bits
        if matrix.dtype == np.int8 and (memory := trellis_of(matrix, int(low))):
            along(meter := Meter(), Tables(trail.counts.copy()), codes, int(low), memory)
            costs[ALONG + memory] = meter.bits
        for rank in RANKS if varies(codes) else ():
            plans[PREDICTED + rank] = directions(codes, rank)
            predicted(meter := Meter(), codes, int(low), int(high), *plans[PREDICTED + rank])
            costs[PREDICTED + rank] = meter.bits + 8 * (1 + codes.shape[1] * (1 + rank))
        model = min(costs, key=costs.__getitem__)
        side += bytes([model])
        if model < PREDICTED:
            tables = tables if model else fresh_table(reach)
            order_zero(writer, tables, symbols)
        elif model >= ALONG:
            along(writer, trail, codes, int(low), model - ALONG)
        else:
            ridge, scales, vectors = plans[model]
            side += bytes([ridge]) + scales.tobytes() + vectors.tobytes()
            predicted(writer, codes, int(low), int(high), ridge, scales, vectors)
    return CODED_HEAD.pack(low, high, lanes) + side + writer.finish()


def decode_matrices(coded: bytes, shapes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """The matrices (R,C), int16, of shapes known from elsewhere. InputError when they cannot be had from the bytes."""
    if len(coded) < CODED_HEAD.size:
        raise InputError("a coded section is cut off", "artifact")
    low, high, lanes = CODED_HEAD.unpack_from(coded)
    reach, place, ahead = high - low, CODED_HEAD.size, list[tuple[int, bytes]]()
    if not 0 <= reach < 256 or not 1 <= lanes <= MAX_LANES:
        raise InputError("a coded section's head is damaged", "artifact")
    for rows, columns in shapes:
        if rows * columns:
            model = coded[place] if place < len(coded) else 0
            if PREDICTED + RANKS[-1] < model < ALONG:
                raise InputError("a coded section names an unknown model", "artifact")
            size = 1 + columns * (model - PREDICTED + 1) if ALONG > model >= PREDICTED else 0
            ahead.append((model, coded[place + 1 : place + 1 + size]))
            place += 1 + size
    reader, found = Reader(coded[place:], lanes), list[np.ndarray]()
    tables, trail = fresh_table(reach), fresh_table(reach, 2)
    for rows, columns in shapes:
        codes = np.zeros((rows, columns), np.int16)
        if codes.size:
            model, side = ahead.pop(0)
            if model < PREDICTED:
                tables = tables if model else fresh_table(reach)
                order_zero(reader, tables, codes.reshape(-1))
                codes += low
            elif model >= ALONG:
                along(reader, trail, codes, low, model - ALONG)
            else:
                vectors = np.frombuffer(side, np.int8, offset=1 + columns).reshape(columns, -1)
                scales = np.frombuffer(side, np.uint8, columns, 1)
                predicted(reader, codes, low, high, min(side[0], 40), scales, vectors)
        found.append(codes)
    reader.finish()
    return found
