"""pgolf's own coder: interleaved rANS (arXiv:1311.2540) with counts that adapt, whole vectors of symbols at a time.

Lane i of a chunk codes its i-th symbol. A state x in [2^24, 2^40) takes a symbol of frequency f, from s on, out of
2^16: x <- (x // f) 2^16 + x mod f + s, after giving away its low 16 bits if it would not fit. What decides a decoded
symbol is integer, or made of products, quotients and roots that every machine rounds alike.

What is coded is a list of integer matrices, each by one of four models:

order 0: one table of counts, which begins as a logistic curve of a fitting width, or flat.

levels: a table for each width, four to a doubling. Each row and each column has a number, sent ahead; the two of a code
add up to that of its table.

prediction: column by column, each in parts of rows, one after another. Rows are of two groups, which are sent ahead:
those of tokens that training never saw are nearly alike. A code is expected at its group's mean in the column so far;
ridge regression on the columns before, in the rows so far, predicts its distance from that; the row's and the column's
mean errors so far say how far off this may be. Both choose the table. The inverse of G + ridge, G the products of all
columns before, is kept for the rows up to each part and grows by one variable a column.

trellis: row by row, two tables. Where codes lead through a trellis (`quant/trellis.py`), those above a code in its
column tell whether it stands for even or odd multiples of half the step.
"""

import copy
import math
import struct
import zlib
from collections.abc import Sequence
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
LANED = 80_000
"""Symbols to a lane, if there are not more than the lanes can have."""
LONGEST = 1 << 13
"""Most symbols coded with one state of a table of order 0."""
SPREADS = np.sqrt(np.sqrt(np.ldexp(1.0, np.append(np.arange(-8, 32), 400))))
SHIFTS = 4
"""Tables: how wide, four to a doubling, the last flat, and where between two codes a prediction lies."""
SEEN, TRUST = 32, 128
"""Weight of a symbol seen in a table's counts, and in such units that of what was expected, per code of its width."""
CODED_HEAD = struct.Struct("<hhH")
"""Least and largest number coded, lanes."""
FLAT, LEVELS, LEARNT, WORDS, ALONG = 40, 41, 42, 43, 64
"""Model of a matrix: up to 40 order 0 with a table that begins with this of `SPREADS` or, 40, flat, 41 levels, 42
prediction, 43 none (the codes are sent by zlib, for what recurs word by word), 64 + m a trellis of 2^m states.
"""
MOST_TRAITS = 512
"""Columns that others are predicted from."""


class Tables:
    """Counts of several contexts, (N,S) int64, and their cumulated frequencies, each context's 2^16 further on."""

    def __init__(self, counts_NS: np.ndarray) -> None:
        self.counts, self.seen = counts_NS, 0
        self.refresh()

    def refresh(self) -> None:
        """Take up what has been counted: frequencies, at least 1, that add up to 2^16 in every context."""
        count, size = self.counts.shape
        found = 1 + self.counts * (WHOLE - size) // self.counts.sum(1, keepdims=True)
        found[np.arange(count), self.counts.argmax(1)] += WHOLE - found.sum(1)
        self.bounds = np.append(0, found.cumsum())

    def add(self, places: np.ndarray) -> None:
        """Count symbols, given as context * S + symbol."""
        flat = self.counts.ravel()
        flat += SEEN * np.bincount(places, minlength=len(flat))
        self.seen += len(places)


class Coder(Protocol):
    """Codes symbols, or finds them."""

    def code(self, tables: Tables, base: np.ndarray, symbols: np.ndarray) -> np.ndarray:
        """Symbols (M,) in the contexts that begin at `base` (M,) of the flat table; returns their places."""


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
            size = sizes.astype(np.int64)
            sent, full, limit = np.empty_like(size), np.empty(len(size), bool), size << 24
            for start in reversed(range(0, len(size), self.lanes)):
                part = slice(start, start + self.lanes)
                state = states[: len(size) - start]
                sent[part], full[part] = state, state >= limit[part]
                state >>= full[part] * 16
                state += state // size[part] * (WHOLE - size[part]) + starts[part]
            words.append(sent[full].astype("<u2"))
        bytes_LB = states.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :STATE_BYTES]
        return bytes_LB.tobytes() + b"".join(word.tobytes() for word in reversed(words))


class Reader:
    """Takes the symbols out again. InputError when the words do not come out even."""

    def __init__(self, coded: bytes, lanes: int) -> None:
        start = STATE_BYTES * lanes
        bytes_LB, rest = np.frombuffer(coded.ljust(start), np.uint8, start).reshape(lanes, -1), coded[start:]
        self.states = bytes_LB @ (256 ** np.arange(STATE_BYTES))
        self.words = np.frombuffer(rest + bytes(len(rest) % 2), "<u2").astype(np.int64)
        self.place, self.lanes = 0, lanes

    def code(self, tables: Tables, base: np.ndarray, symbols: np.ndarray) -> np.ndarray:
        """Fill `symbols`."""
        contexts, places = base // tables.counts.shape[1] * WHOLE, np.empty_like(base)
        for start in range(0, len(base), self.lanes):
            part = slice(start, start + self.lanes)
            wanted = contexts[part]
            state = self.states[: len(wanted)]
            wanted += state & (WHOLE - 1)
            found = np.searchsorted(tables.bounds, wanted, "right") - 1
            starts = tables.bounds[found]
            state[:] = (tables.bounds[found + 1] - starts) * (state >> 16) + wanted - starts
            empty = np.flatnonzero(state < LEAST)
            words = self.words[self.place : self.place + len(empty)]
            if len(words) < len(empty):
                raise InputError("a coded section is damaged", "artifact")
            state[empty] = state[empty] << 16 | words
            self.place += len(empty)
            places[part] = found
        symbols[:] = places - base
        return places

    def finish(self) -> None:
        """InputError when something is left over."""
        if self.place != len(self.words) or (self.states != LEAST).any():
            raise InputError("a coded section is damaged", "artifact")


def order_zero(coder: Coder, tables: Tables, symbols: np.ndarray, base: np.ndarray | int = 0) -> None:
    """Code (or fill) symbols (M,) with tables that are renewed whenever they have seen an eighth more; `base`, (M,) or
    one for all, is where in the flat table each one's begins.
    """
    start, base = 0, np.broadcast_to(base, symbols.shape)
    while start < len(symbols):
        stop = start + min(max(tables.seen // 8, 8), LONGEST)
        tables.add(coder.code(tables, base[start:stop], symbols[start:stop]))
        tables.refresh()
        start = stop


def bell(steps: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x), by products and quotients alone, which every machine rounds alike."""
    powers = np.maximum(1 - np.clip(steps, -40, 40) / 1024, 0)
    for _ in range(10):
        powers = powers * powers
    return 1 / (1 + powers)


def expected(low: int, high: int, shifts: int) -> np.ndarray:
    """Counts (spreads * shifts, codes low .. high) before anything is seen: logistic, by spread and shift."""
    spreads, middles = SPREADS[:, None, None], (np.arange(shifts)[:, None] + 0.5) / shifts
    above = np.arange(low, high + 1) - middles + 1
    share = bell(above * 1.7 / spreads) - bell((above - 1) * 1.7 / spreads)
    return np.floor(share * SEEN * (TRUST * spreads + 16)).astype(np.int64).reshape(-1, high - low + 1) + 1


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """To so many fractional bits: sums of products of such numbers are exact, whatever the order a machine adds in."""
    return np.rint(values * 2.0**bits) / 2.0**bits


def predicted(coder: Coder, codes_RC: np.ndarray, low: int, high: int, groups: np.ndarray) -> None:
    """Code (or fill) a matrix of codes low .. high, column by column, rows of which belong to groups 0 and 1."""
    (rows, columns), reach = codes_RC.shape, high - low
    # Rows in an order like a random one: multiples of 2^16 over the golden ratio are spread evenly.
    order = np.argsort(np.arange(rows) * 40503 % WHOLE, kind="stable")
    mixed, groups = codes_RC[order], groups[order]
    parts = [slice(8)]
    while (stop := parts[-1].stop) < rows:
        parts.append(slice(stop, min(2 * stop, stop + rows // 8 + 8)))
    tables, most = Tables(expected(-reach, reach, SHIFTS)), min(columns, MOST_TRAITS)
    traits, inverse, coarse = np.zeros((rows, most)), *np.zeros((2, len(parts) - 1, 0, 0))
    errors, off, usual = np.ones(rows), np.zeros(rows), np.full(2, reach / 16)
    for column in range(columns):
        units, found = np.maximum((errors + 5) / (column + 6) * usual[groups], 0.02), np.ones(2)
        moments, mean, away, total, seen = np.zeros(min(column, most)), *np.zeros((4, 2))
        for index, part in enumerate(parts):
            group, unit, before = groups[part], units[part], traits[part, :column]
            guess = mean[group]
            if index:
                learnt = coarse[index - 1] @ moments
                guess += unit * (before @ rounded(learnt, 16))
            guess = np.clip(np.nan_to_num(guess), low, high)
            near = np.rint(guess).astype(np.int64)
            shift = ((guess - near + 0.5) * (SHIFTS - 0.01)).astype(np.int64)
            spread = np.searchsorted(SPREADS[1:], unit * found[group] * 1.32)
            code = mixed[part, column] - near + reach
            tables.add(coder.code(tables, (spread * SHIFTS + shift) * (2 * reach + 1), code))
            mixed[part, column] = code = np.clip(code + near - reach, low, high)
            off[part] = np.abs(code - guess)
            away += np.bincount(group, rounded(off[part] / unit, 8), 2)
            seen += np.bincount(group, minlength=2)
            found = (2 + away) / (2 + seen)
            total += np.bincount(group, code, 2)
            mean = total / (seen + 0.05)
            moments += before.T @ rounded((code - mean[group]) / unit, 3)
        tables.refresh()
        errors += rounded(off / np.maximum(usual * found, 0.02)[groups], 8)
        usual = usual * (0.95 + 0.05 * found if column else found)
        if column < most:
            trait = (mixed[:, column] - mean[groups]) / (units * found[groups])
            traits[:, column] = rounded(np.clip(trait, -6, 6), 3)
            products = [traits[part, : column + 1].T @ traits[part, column] for part in parts[:-1]]
            sums = np.reshape(products, (-1, column + 1)).cumsum(0)
            border = sums[:, :column, None]
            edge = coarse @ border + rounded(inverse - coarse, 48) @ border
            left = sums[:, column] - (rounded(edge, 24) * border).sum((1, 2))
            edge = np.append(edge, -np.ones((len(left), 1, 1)), 1)
            inverse = np.pad(inverse, ((0, 0), (0, 1), (0, 1)))
            inverse += edge * (edge.swapaxes(1, 2) / (np.maximum(left, 0) + 5 * most)[:, None, None])
            coarse = rounded(inverse, 28)
    codes_RC[order] = mixed


def along(coder: Coder, tables: Tables, codes_RC: np.ndarray, low: int, memory: int) -> None:
    """Code (or fill) a matrix whose columns lead through a trellis, all segments of all columns side by side."""
    if 2.0**memory not in PARITY_CHECKS:
        raise InputError("a coded section is damaged", "artifact")
    size = tables.counts.shape[1]
    state: Any = np.zeros((-(-len(codes_RC) // SEGMENT), codes_RC.shape[1]), np.int64)
    for row in range(min(len(codes_RC), SEGMENT)):
        part: Any = codes_RC[row::SEGMENT]
        state, symbols = state[: len(part)], part.ravel().astype(np.int64) - low
        order_zero(coder, tables, symbols, (state & 1).ravel() * size)
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


def two_groups(codes_RC: np.ndarray) -> np.ndarray:
    """Rows (R,) told apart by the means and variances that they have in each column: 0 or 1."""
    real = codes_RC.astype(np.float64)
    size = np.square(real).mean(1)
    groups = (size <= np.quantile(size, 0.15)).astype(np.int64)
    for _ in range(20):
        costs = []
        for mine in (real[groups == 0], real[groups == 1]):
            if len(mine) < 4:
                return np.zeros_like(groups)
            spread = mine.var(0) + 0.02 * real.var(0) + 0.3
            costs.append((np.square(real - mine.mean(0)) / spread + np.log(spread)).sum(1) - 2 * math.log(len(mine)))
        groups = (costs[1] < costs[0]).astype(np.int64)
    return groups


def promising(codes_RC: np.ndarray) -> bool:
    """Whether prediction is to be tried: around the mean, which of a trellis's codes is not 0 and no news to any table,
    a direction has more of the energy than chance gives it.
    """
    rows, columns = codes_RC.shape
    real = (codes_RC if rows < columns else codes_RC.T) - codes_RC.mean()
    noise = (1 + math.sqrt(columns / rows)) ** 2 / columns
    energy = noise * (np.square(real) + 0.1).sum()
    return 2 <= len(real) <= 4096 and bool(np.linalg.eigvalsh(real @ real.T)[-1] > 3 * energy)


def level_numbers(codes_RC: np.ndarray, low: int, high: int) -> np.ndarray:
    """Numbers of rows and columns (R+C,): by mean magnitudes first, then moved to where the codes take fewer bits."""
    curves, counts_NS, symbols = expected(-255, 255, 1)[:FLAT] - 1, expected(low, high, 1)[:FLAT], codes_RC - low
    means, sizes = curves @ np.abs(np.arange(-255, 256)) / curves.sum(1), np.abs(codes_RC)
    usual, rows, columns = (
        np.interp(found, means, np.arange(FLAT)) for found in (sizes.mean(), *map(sizes.mean, (1, 0)))
    )
    rows, columns = np.rint(rows - usual).astype(np.int64), np.rint(columns - usual).astype(np.int64)
    rows += round(float(usual))
    for _ in range(4 * bool(np.ptp(rows) or np.ptp(columns))):
        for axis, mine in ((1, rows), (0, columns)):
            tables = rows[:, None] + columns
            places = np.clip(tables, 0, FLAT - 1) * counts_NS.shape[1] + symbols
            found_NS = counts_NS + SEEN * np.bincount(places.ravel(), minlength=counts_NS.size).reshape(counts_NS.shape)
            bits_NS = -np.log2(found_NS / found_NS.sum(1, keepdims=True))
            others = mine - mine.min() + 1
            rare = -np.log2((np.bincount(others, minlength=others.max() + 2) + 0.5) / len(mine))
            costs = [
                bits_NS[np.clip(tables + move, 0, FLAT - 1), symbols].sum(axis) + rare[others + move]
                for move in (-1, 0, 1)
            ]
            mine += np.argmin(costs, 0) - 1
    least = columns.min()
    return np.clip(np.append(rows + least, columns - least), 0, FLAT - 1)


def by_model(
    coder: Coder, trail: Tables, model: int, codes_RC: np.ndarray, low: int, high: int, numbers: np.ndarray
) -> None:
    """Code (or fill) a matrix that is not empty, and the numbers of its rows and columns (R+C,) if the model has such.
    `trail`, the tables of trellises, goes on from matrix to matrix.
    """
    rows, size = len(codes_RC), high - low + 1
    if model in (LEVELS, LEARNT):
        order_zero(coder, Tables(np.ones((2, FLAT), np.int64)), numbers, np.repeat((0, FLAT), codes_RC.shape))
    if model <= LEVELS:
        base = np.minimum(numbers[:rows, None] + numbers[rows:], FLAT).ravel() if model == LEVELS else model
        symbols = codes_RC.ravel() - low
        order_zero(coder, Tables(expected(low, high, 1)), symbols, base * size)
        codes_RC[:] = symbols.reshape(codes_RC.shape) + low
    elif model == LEARNT:
        predicted(coder, codes_RC, low, high, numbers[:rows] & 1)
    else:
        along(coder, trail, codes_RC, low, model - ALONG)


def encode_matrices(matrices: Sequence[np.ndarray]) -> tuple[bytes, bytes]:
    """Code integer matrices (R,C), any of them empty, whose values lie within 255 of each other. Each goes by the
    model that takes the fewest bits. The second part is what to send by zlib, if any are int8.
    """
    filled = [matrix for matrix in matrices if matrix.size]
    low, high = (int(min(map(np.min, filled))), int(max(map(np.max, filled)))) if filled else (0, 0)
    lanes, models, words = max(1, min(sum(matrix.size for matrix in filled) // LANED, MAX_LANES)), b"", b""
    writer, trail = Writer(lanes), Tables(np.ones((2, high - low + 1), np.int64))
    for matrix in matrices:
        best = FLAT
        if matrix.size:
            codes, costs = matrix.astype(np.int64), dict[int, float]()
            trials = {FLAT: np.zeros(sum(codes.shape), np.int64)}
            if matrix.dtype != np.int8:
                trials[FLAT - 1] = trials[FLAT]
            else:
                trials[LEVELS] = numbers = level_numbers(codes, low, high)
                usual = np.median(numbers[: len(codes)]) + np.median(numbers[len(codes) :])
                trials[min(int(usual), FLAT)] = trials[FLAT]
                if memory := trellis_of(matrix, low):
                    trials[ALONG + memory] = trials[FLAT]
                if promising(codes):
                    trials[LEARNT] = np.append(two_groups(codes), np.zeros(codes.shape[1], np.int64))
                if 2 * len(set(map(bytes, matrix))) < len(matrix):
                    costs[WORDS] = 8 * len(zlib.compress(matrix.tobytes(), 9))
            for model, numbers in trials.items():
                by_model(meter := Meter(), copy.deepcopy(trail), model, codes, low, high, numbers.copy())
                costs[model] = meter.bits
            best = min(costs, key=costs.__getitem__)
            if best == WORDS:
                words += matrix.tobytes()
            else:
                by_model(writer, trail, best, codes, low, high, trials[best])
        models += bytes([best])
    return CODED_HEAD.pack(low, high, lanes) + models + writer.finish(), words


def decode_matrices(coded: bytes, shapes: Sequence[tuple[int, ...]], words: bytes = b"") -> list[np.ndarray]:
    """The matrices (R,C), int16, of shapes known from elsewhere. InputError when they cannot be had from the bytes."""
    low, high, lanes = CODED_HEAD.unpack(coded[: CODED_HEAD.size].ljust(CODED_HEAD.size))
    stop = CODED_HEAD.size + len(shapes)
    models = coded[CODED_HEAD.size : stop]
    sizes = [math.prod(shape) * (model == WORDS) for model, shape in zip(models, shapes)]
    if not 0 <= high - low < 256 or not 1 <= lanes <= MAX_LANES or sum(sizes) != len(words):
        raise InputError("a coded section is damaged", "artifact")
    reader, trail, found = (
        Reader(coded[stop:], lanes),
        Tables(np.ones((2, high - low + 1), np.int64)),
        list[np.ndarray](),
    )
    for model, size, shape in zip(models, sizes, shapes):
        codes = np.zeros(shape, np.int16)
        codes.ravel()[:size] = np.frombuffer(words[:size], np.int8)
        words = words[size:]
        if codes.size > size:
            by_model(reader, trail, model, codes, low, high, np.zeros(sum(shape), np.int32))
        found.append(codes)
    reader.finish()
    return found
