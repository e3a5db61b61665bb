"""pgolf's own coder: interleaved rANS (arXiv:1311.2540) with counts that adapt, whole vectors of symbols at a time.

Lane i of a chunk codes its i-th symbol. A state x in [2^24, 2^40) takes a symbol of frequency f, from s on, out of
2^16: x <- (x // f) 2^16 + x mod f + s, after giving away its low 16 bits if it would not fit. What decides a decoded
symbol is integer, or made of products, quotients and roots that every machine rounds alike.

What is coded is a list of integer matrices, each by one of three models:

order 0: one table of counts, which may go on from that of the matrix before.

prediction: column by column, each in parts of rows, one after another. Rows are of two groups, which are sent ahead:
those of tokens that training never saw are nearly alike. A code is expected at its group's mean in the column so far;
ridge regression on the columns before, in the rows so far, predicts its distance from that; the row's and the column's
mean errors so far say how far off this may be. Both choose the table. The inverse of G + ridge, G the products of all
columns before, is kept for the rows up to each part and grows by one variable a column.

trellis: row by row, two tables. Where codes lead through a trellis (`quant/trellis.py`), those above a code in its
column tell whether it stands for even or odd multiples of half the step.
"""

import math
import struct
from collections.abc import Iterator, Sequence
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
SPREADS = np.sqrt(np.sqrt(np.ldexp(1.0, np.arange(-8, 32))))
SHIFTS = 4
"""Tables of a predicted matrix: how wide, four to a doubling, and where between two codes the prediction lies."""
SEEN, TRUST = 32, 128
"""Weight of a symbol seen in a table's counts, and in such units that of what was expected, per code of its width."""
CODED_HEAD = struct.Struct("<hhH")
"""Least and largest number coded, lanes."""
SCALED, LEARNT, ALONG = 2, 3, 32
"""Model of a matrix: 0 order 0, 1 order 0 that goes on, 2 prediction by means and scales alone, 3 by regression too,
32 + m a trellis of 2^m states.
"""
MOST_TRAITS = 512
"""Columns that others are predicted from."""


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
                raise InputError("a coded section is cut off", "artifact")
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
    """Counts (spreads * SHIFTS, 2 reach + 1) before anything is seen: logistic, by spread and shift."""
    spreads, shifts = SPREADS[:, None, None], (np.arange(SHIFTS)[:, None] + 0.5) / SHIFTS
    above = np.arange(-reach, reach + 1) - shifts + 1
    share = bell(above * 1.7 / spreads) - bell((above - 1) * 1.7 / spreads)
    return np.floor(share * SEEN * (TRUST * spreads + 16)).astype(np.int64).reshape(-1, 2 * reach + 1) + 1


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """To so many fractional bits: sums of products of such numbers are exact, whatever the order a machine adds in."""
    return np.rint(values * 2.0**bits) / 2.0**bits


def predicted(
    coder: Coder, tables: Tables, codes_RC: np.ndarray, low: int, high: int, learns: bool, groups: np.ndarray
) -> None:
    """Code (or fill) to which of two groups each row belongs, then a matrix of codes low .. high, column by column."""
    rows, columns = codes_RC.shape
    order_zero(coder, fresh_table(1), groups)
    # Rows in an order like a random one: multiples of 2^16 over the golden ratio are spread evenly.
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
            spread = np.searchsorted(SPREADS[1:], unit * ((2 + away) / (2 + seen))[group] * 1.36)
            code = mixed[part, column] - near + reach
            tables.add(coder.code(tables, (spread * SHIFTS + shift) * size, code))
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


def along(coder: Coder, tables: Tables, codes_RC: np.ndarray, low: int, memory: int) -> None:
    """Code (or fill) a matrix whose columns lead through a trellis, all segments of all columns side by side."""
    if 2.0**memory not in PARITY_CHECKS:
        raise InputError("a coded section is damaged", "artifact")
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


def two_groups(codes_RC: np.ndarray) -> np.ndarray:
    """Rows (R,) told apart by the means and variances that they have in each column: 0 or 1."""
    real = codes_RC.astype(np.float64)
    size = np.square(real).mean(1)
    groups = (size > np.quantile(size, 0.15)).astype(np.int64)
    for _ in range(20):
        costs = []
        for mine in (real[groups == 0], real[groups == 1]):
            if len(mine) < 4:
                return np.zeros_like(groups)
            spread = mine.var(0) + 0.02 * real.var(0) + 0.3
            costs.append((np.square(real - mine.mean(0)) / spread + np.log(spread)).sum(1) - 2 * math.log(len(mine)))
        groups = (costs[1] < costs[0]).astype(np.int64)
    return groups


def promise(codes_RC: np.ndarray) -> int:
    """How many of the two kinds of prediction to try: none unless rows or columns differ enough or a direction has more
    of the energy than chance gives it, scales alone unless one has far more.
    """
    if min(codes_RC.shape) < 2:
        return 0
    real = codes_RC.astype(np.float64)
    squares = np.square(real) + 0.1
    uneven = np.log2(squares.mean()) - min(np.log2(squares.mean(0)).mean(), np.log2(squares.mean(1)).mean())
    noise = (1 + math.sqrt(real.shape[1] / real.shape[0])) ** 2 / real.shape[1]
    real = real.T if real.shape[0] > real.shape[1] else real
    first = np.linalg.eigvalsh(real @ real.T)[-1] / squares.sum() / noise if len(real) <= 4096 else 0.0
    return 2 if first > 6 else int(uneven > 0.05 or first > 2)


def fresh_table(reach: int, count: int = 1) -> Tables:
    """Tables of symbols 0 .. reach, each as if seen half a time."""
    return Tables(np.full((count, reach + 1), SEEN // 2, np.int64))


def fresh_tables(reach: int) -> list[Tables]:
    """Tables of order 0 and of trellises before anything is coded. Those of predictions follow with the first."""
    return [fresh_table(reach), fresh_table(reach, 2)]


def by_model(
    coder: Coder, tables: list[Tables], model: int, codes_RC: np.ndarray, low: int, high: int, groups_R: np.ndarray
) -> None:
    """Code (or fill) a matrix that is not empty."""
    if model < 2:
        if not model:
            tables[0] = fresh_table(high - low)
        symbols = codes_RC.ravel() - low
        order_zero(coder, tables[0], symbols)
        codes_RC[:] = symbols.reshape(codes_RC.shape) + low
    elif model <= LEARNT:
        if not tables[2:]:
            tables.append(Tables(expected(high - low)))
        predicted(coder, tables[2], codes_RC, low, high, model == LEARNT, groups_R)
    else:
        along(coder, tables[1], codes_RC, low, model - ALONG)


def encode_matrices(matrices: Sequence[np.ndarray]) -> bytes:
    """Code integer matrices (R,C), any of them empty, whose values lie within 255 of each other. Each goes by the
    model that takes the fewest bits.
    """
    filled = [matrix for matrix in matrices if matrix.size]
    low, high = (int(min(map(np.min, filled))), int(max(map(np.max, filled)))) if filled else (0, 0)
    lanes, models = max(1, min(sum(matrix.size for matrix in filled) // 40_000, MAX_LANES)), b""
    writer, tables = Writer(lanes), fresh_tables(high - low)
    for matrix in matrices:
        best = 1
        if matrix.size:
            codes, costs = matrix.astype(np.int64), dict[int, float]()
            memory, kinds = trellis_of(matrix, low) if matrix.dtype == np.int8 else 0, promise(codes)
            groups = two_groups(codes) if kinds else np.zeros(len(codes), np.int64)
            for model in (0, 1, *range(SCALED, SCALED + kinds), *([ALONG + memory] if memory else [])):
                copies = [Tables(table.counts.copy()) for table in tables]
                by_model(meter := Meter(), copies, model, codes, low, high, groups)
                costs[model] = meter.bits
            best = min(costs, key=costs.__getitem__)
            by_model(writer, tables, best, codes, low, high, groups)
        models += bytes([best])
    return CODED_HEAD.pack(low, high, lanes) + models + writer.finish()


def decode_matrices(coded: bytes, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """The matrices (R,C), int16, of shapes known from elsewhere. InputError when they cannot be had from the bytes."""
    if len(coded) < CODED_HEAD.size:
        raise InputError("a coded section is cut off", "artifact")
    low, high, lanes = CODED_HEAD.unpack_from(coded)
    if not 0 <= high - low < 256 or not 1 <= lanes <= MAX_LANES:
        raise InputError("a coded section is damaged", "artifact")
    stop = CODED_HEAD.size + len(shapes)
    reader, tables, found = Reader(coded[stop:], lanes), fresh_tables(high - low), list[np.ndarray]()
    for model, shape in zip(coded[CODED_HEAD.size : stop], shapes):
        codes = np.zeros(shape, np.int16)
        if codes.size:
            by_model(reader, tables, model, codes, low, high, np.zeros(len(codes), np.int64))
        found.append(codes)
    reader.finish()
    return found
