"""pgolf's own coder: round trips, sizes against entropies and an independent coder, and damaged bytes."""

import contextlib
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pgolf.core.codecs.adaptive import MATRICES as MATRICES_KIND
from pgolf.core.codecs.adaptive import STEPS_OF_2, Rans
from pgolf.core.codecs.rans import (
    ALONG,
    FLAT,
    LEARNT,
    LEAST,
    LEVELS,
    SPREADS,
    WHOLE,
    WORDS,
    Meter,
    Reader,
    Tables,
    Writer,
    bell,
    decode_matrices,
    encode_matrices,
    expected,
    level_numbers,
    order_zero,
    promising,
    rounded,
    trellis_of,
    two_groups,
)
from pgolf.core.errors import InputError
from pgolf.core.quant.trellis import PARITY_CHECKS, SEGMENT, next_state, walk

MATRICES = st.lists(
    hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=40)), min_size=0, max_size=4
)


def entropy_bytes(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def gaussian(rng: np.random.Generator, rows: int, columns: int, sigma: float = 2.4) -> np.ndarray:
    return np.rint(rng.normal(0, sigma, (rows, columns))).clip(-31, 31).astype(np.int8)


def low_rank(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Noise on rows that resemble one another."""
    mean = np.outer(rng.normal(0, 1, rows), rng.normal(0, 4, columns))
    return np.rint(mean + rng.normal(0, 2, (rows, columns))).clip(-63, 63).astype(np.int8)


def round_trip(matrices: list[np.ndarray]) -> int:
    coded, words = encode_matrices(matrices)
    back = decode_matrices(coded, [matrix.shape for matrix in matrices], words)
    assert all(np.array_equal(one, other) for one, other in zip(matrices, back, strict=True))
    assert (coded, words) == encode_matrices(matrices)
    return len(coded) + len(zlib.compress(words, 9) if words else b"")


def flat_table(size: int) -> Tables:
    return Tables(np.ones((1, size), np.int64))


@settings(deadline=None, max_examples=60)
@given(MATRICES)
def test_matrices_come_back(matrices: list[np.ndarray]) -> None:
    round_trip(matrices)


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((0, 5), np.int8),
        np.zeros((1, 1), np.int8),
        np.full((300, 7), -127, np.int8),
        np.arange(-128, 128, dtype=np.int8).reshape(1, 256),
        np.tile(np.array([[-128, 127]], np.int8), (500, 3)),
    ],
)
def test_odd_matrices_come_back(matrix: np.ndarray) -> None:
    round_trip([matrix])


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=600))
def test_bytes_come_back(raw: bytes) -> None:
    assert Rans().decode(Rans().encode(raw), len(raw)) == raw


def test_independent_codes_take_their_entropy(rng: np.random.Generator) -> None:
    matrices = [gaussian(rng, 256, 512) for _ in range(8)]
    size = round_trip(matrices)
    entropy = entropy_bytes(np.concatenate([matrix.ravel() for matrix in matrices]))
    assert entropy < size < 1.0015 * entropy


def test_rows_that_resemble_one_another_take_less(rng: np.random.Generator) -> None:
    matrix = low_rank(rng, 1500, 96)
    noise = entropy_bytes(np.rint(rng.normal(0, 2, 100_000)).astype(np.int8)) / 100_000 * matrix.size
    assert noise < round_trip([matrix]) < 1.08 * noise < 0.9 * entropy_bytes(matrix)


def test_rows_and_columns_of_different_scale_take_less(rng: np.random.Generator) -> None:
    scales = np.exp(rng.normal(0, 0.7, (1200, 1)) + rng.normal(0, 0.5, (1, 80)))
    matrix = np.rint(rng.normal(0, 3, (1200, 80)) * scales).clip(-127, 127).astype(np.int8)
    assert round_trip([matrix]) < 0.95 * entropy_bytes(matrix)


def test_words_are_those_of_constriction(rng: np.random.Generator) -> None:
    """One lane is an ordinary rANS coder: its size is that of a coder made by others, on the same table."""
    constriction = pytest.importorskip("constriction")
    symbols = (gaussian(rng, 1, 20_000).ravel() + 31).astype(np.int32)
    counts = np.bincount(symbols, minlength=63) + 1
    tables = Tables(counts[None].astype(np.int64))
    writer = Writer(1)
    writer.code(tables, np.zeros(1, np.int64), symbols)
    shares = np.diff(tables.bounds) / WHOLE
    model = constriction.stream.model.Categorical(shares, perfect=False)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols, model)
    assert abs(len(writer.finish()) - 4 * len(coder.get_compressed())) < 0.0005 * len(symbols)


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.int64, (3, 9), elements=st.integers(1, 10**9)))
def test_frequencies_are_positive_and_whole(counts: np.ndarray) -> None:
    bounds = Tables(counts).bounds
    assert bool((np.diff(bounds) >= 1).all()) and bounds[::9].tolist() == [0, WHOLE, 2 * WHOLE, 3 * WHOLE]


@pytest.mark.parametrize(("low", "high"), [(-31, 31), (-1, 1), (0, 255), (-128, 127), (5, 9)])
def test_tables_begin_as_curves_of_their_width_and_one_flat(low: int, high: int) -> None:
    counts = expected(low, high, 1)
    assert counts.shape == (FLAT + 1, high - low + 1) == (len(SPREADS), high - low + 1)
    assert bool((counts > 0).all()) and set(counts[FLAT].tolist()) == {1}
    if (low, high) == (-31, 31):
        shares = (counts[:FLAT] - 1) / (counts[:FLAT] - 1).sum(1, keepdims=True)
        spread = np.sqrt(shares @ np.square(np.arange(low, high + 1)))
        assert bool((np.diff(spread) > 0).all()) and np.abs(np.log2(spread[8:20] / SPREADS[8:20])).max() < 0.2
        assert np.abs(shares - shares[:, ::-1]).max() < 5e-3


def test_the_meter_tells_what_is_written(rng: np.random.Generator) -> None:
    symbols = gaussian(rng, 1, 300_000).ravel().astype(np.int64) + 31
    meter, writer = Meter(), Writer(8)
    order_zero(meter, flat_table(63), symbols)
    order_zero(writer, flat_table(63), symbols)
    assert 0 <= len(writer.finish()) - meter.bits / 8 < 8 * 5 + 0.0001 * meter.bits / 8


def test_the_logistic_curve_is_one() -> None:
    x = np.linspace(-12, 12, 101)
    assert np.abs(bell(x) - 1 / (1 + np.exp(-x))).max() < 5e-3 and float(bell(np.zeros(1))[0]) == 0.5


def test_rounded_numbers_add_up_alike_in_any_order(rng: np.random.Generator) -> None:
    values = rounded(rng.normal(0, 100, 4096), 8)
    assert np.array_equal(values * 256, np.rint(values * 256)) and np.abs(values).max() > 100
    assert len({float(rng.permutation(values).sum()) for _ in range(20)}) == 1


def untrained_rows(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Rows of which every sixth is a column's mean and a little noise, the others noise of their own."""
    matrix = np.rint(rng.normal(0, 30, (rows, columns))).clip(-127, 127)
    matrix[::6] = np.rint(rng.normal(0, 20, columns) + rng.normal(0, 1, (len(matrix[::6]), columns)))
    return matrix.astype(np.int8)


def test_rows_nobody_has_trained_are_told_apart(rng: np.random.Generator) -> None:
    matrix = untrained_rows(rng, 600, 64)
    groups = two_groups(matrix.astype(np.int64))
    assert len(set(groups[::6].tolist())) == 1 and (groups == groups[0]).sum() == 100
    size = round_trip([matrix])
    noise = entropy_bytes(np.rint(rng.normal(0, 30, 100_000)).astype(np.int8)) / 100_000 * 500 * 64
    calm = entropy_bytes(np.rint(rng.normal(0, 1, 100_000)).astype(np.int8)) / 100_000 * 100 * 64
    assert noise + calm < size < 1.06 * (noise + calm) < 0.95 * entropy_bytes(matrix)


def test_each_model_is_taken_where_it_pays(rng: np.random.Generator) -> None:
    scaled = np.rint(rng.normal(0, 3, (800, 60)) * np.exp(rng.normal(0, 0.5, (1, 60)))).clip(-99, 99).astype(np.int8)
    few = rng.integers(-9, 10, (20, 64)).astype(np.int8)[rng.integers(0, 20, 400)]
    uniform = rng.integers(-99, 100, (100, 100)).astype(np.int8)
    trellis = trellis_codes(rng, 512, 60, 64)
    empty = np.zeros((0, 7), np.int8)
    matrices = [gaussian(rng, 300, 200), low_rank(rng, 900, 60), scaled, few, uniform, trellis, empty]
    coded, words = encode_matrices(matrices)
    models = list(coded[6:13])
    assert models[1:4] + models[5:] == [LEARNT, LEVELS, WORDS, ALONG + 6, FLAT] and words == few.tobytes()
    assert abs(SPREADS[models[0]] / 2.4 - 1) < 0.2 and SPREADS[models[4]] > 50
    raw = b"".join(matrix.tobytes() for matrix in matrices)
    section = Rans().encode(raw, [matrix.shape for matrix in matrices])
    assert section[0] == MATRICES_KIND and Rans().decode(section, len(raw)) == raw


def test_prediction_is_tried_where_there_is_a_direction(rng: np.random.Generator) -> None:
    """A mean of all codes is none: those of a trellis lie half a step below where they stand."""
    plain, columns = gaussian(rng, 300, 200), np.rint(2 * rng.normal(0, 1, (1, 200))).astype(np.int8)
    trellis = trellis_codes(rng, 512, 200, 64)
    assert abs(trellis.mean() + 0.25) < 0.05
    assert not any(map(promising, (plain, plain + np.int8(3), trellis, trellis.T)))
    assert all(map(promising, (low_rank(rng, 900, 60), plain + columns)))


def test_what_recurs_word_by_word_goes_by_zlib(rng: np.random.Generator) -> None:
    matrix = rng.integers(-1, 2, (24, 128)).astype(np.int8)[rng.integers(0, 24, 512)]
    assert round_trip([matrix, matrix[::-1]]) < 0.15 * 2 * entropy_bytes(matrix)
    coded, words = encode_matrices([matrix])
    for wrong in (words[:-1], words + b"\0", b""):
        with pytest.raises(InputError):
            decode_matrices(coded, [matrix.shape], wrong)


def test_levels_are_found_and_cost_little(rng: np.random.Generator) -> None:
    """Rows of two widths: each kind takes its entropy; where there is one width nearly all have its number."""
    wide = rng.integers(0, 2, 512) == 1
    matrix = np.rint(rng.normal(0, 1, (512, 400)) * np.where(wide, 4.0, 1.5)[:, None]).clip(-31, 31).astype(np.int8)
    numbers = level_numbers(matrix.astype(np.int64), -31, 31)
    assert numbers[:512][wide].min() > numbers[:512][~wide].max()
    size, best = round_trip([matrix]), entropy_bytes(matrix[wide]) + entropy_bytes(matrix[~wide])
    assert best < size < 1.005 * best < 0.98 * entropy_bytes(matrix)
    alike = level_numbers(gaussian(rng, 512, 400).astype(np.int64), -31, 31)
    assert (alike != np.repeat((np.median(alike[:512]), np.median(alike[512:])), (512, 400))).mean() < 0.02


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=30)))
def test_levels_of_any_matrix_name_tables(matrix: np.ndarray) -> None:
    low, high = int(matrix.min()), int(matrix.max())
    numbers = level_numbers(matrix.astype(np.int64), low, high)
    assert len(numbers) == sum(matrix.shape) and numbers.min() >= 0 and numbers.max() < FLAT


def test_a_few_rows_come_back(rng: np.random.Generator) -> None:
    for rows in (1, 2, 7, 8, 9, 17):
        matrix = np.outer(rng.normal(0, 20, rows), rng.normal(0, 2, 120)).clip(-127, 127).astype(np.int8)
        round_trip([matrix])


def test_rows_that_are_nearly_multiples_of_one_another_stay_in_bounds(rng: np.random.Generator) -> None:
    """The inverses that grow a variable at a time are then at their worst."""
    matrix = np.rint(np.outer(rng.normal(0, 8, 2500), rng.normal(0, 4, 100)) + rng.normal(0, 0.4, (2500, 100)))
    matrix = matrix.clip(-127, 127).astype(np.int8)
    coded, _ = encode_matrices([matrix])
    assert coded[6] == LEARNT and len(coded) < 0.6 * entropy_bytes(matrix)
    assert np.array_equal(decode_matrices(coded, [matrix.shape])[0], matrix)


def test_columns_beyond_those_that_others_are_predicted_from(rng: np.random.Generator) -> None:
    matrix = low_rank(rng, 24, 530)
    assert 0 < round_trip([matrix]) < entropy_bytes(matrix) * 1.1


def test_no_damaged_section_is_taken_or_crashes(rng: np.random.Generator) -> None:
    matrices = [low_rank(rng, 60, 24), gaussian(rng, 40, 30)]
    raw = b"".join(matrix.tobytes() for matrix in matrices)
    good = Rans().encode(raw, [matrix.shape for matrix in matrices])
    assert Rans().decode(good, len(raw)) == raw
    taken = 0
    for number in range(350):
        bad = bytearray(good)
        place = number if number < 8 * 20 else int(rng.integers(8 * len(good)))
        bad[place // 8] ^= 1 << place % 8
        with contextlib.suppress(InputError):
            taken += Rans().decode(bytes(bad), len(raw)) != raw
    for cut in range(0, len(good), 31):
        with pytest.raises(InputError):
            Rans().decode(good[:cut], len(raw))
    # A flipped bit may give other codes with every length right: checksums, which the container has, must find that.
    assert taken < 35


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x03",
        b"\xff",
        b"\xfd",
        b"\xfd\x01\x00\x02\x00\x00\x00\x00\x00\x00\x00x\x9c",
        b"\xff\xff\xff",
        b"\x05",
        b"\x06\x00\x00\xff\x7f\x01\x00",
        b"\x05\x00\x00\x00\x00\x01\x00\x28",
        b"\x05\x00\x00\x00\x00\x01\x00\x28\x00\x00\x00\x00\x01\x07",
    ],
)
def test_nonsense_is_refused(content: bytes) -> None:
    with pytest.raises(InputError):
        Rans().decode(content, 1000)


def test_lying_shapes_allocate_nothing() -> None:
    sizes = zlib.compress(struct.pack("<II", 2**31, 2**31))
    content = struct.pack("<BHII", MATRICES_KIND, 1, len(sizes), 0) + sizes + b"\0" * 20
    with pytest.raises(InputError, match="damaged"):
        Rans().decode(content, 1000)


def test_zlib_ahead_of_matrices_is_bounded() -> None:
    """It may hold the shapes and as many codes as the section has bytes, and must hold what it says."""
    ahead = zlib.compress(struct.pack("<II", 10, 100) + bytes(1 << 20))
    for words in (1 << 20, 1000, 0, (1 << 32) - 1):
        content = struct.pack("<BHII", MATRICES_KIND, 1, len(ahead), words) + ahead + b"\0" * 20
        with pytest.raises(InputError, match="promises"):
            Rans().decode(content, 1000)


def test_states_end_where_they_began(rng: np.random.Generator) -> None:
    symbols = gaussian(rng, 1, 5000).ravel().astype(np.int64) + 31
    writer = Writer(4)
    order_zero(writer, flat_table(63), symbols)
    reader: Any = Reader(writer.finish(), 4)
    order_zero(reader, flat_table(63), found := np.zeros_like(symbols))
    assert np.array_equal(found, symbols) and reader.states.tolist() == [LEAST] * 4
    reader.finish()


# Trellises, differences


def trellis_codes(rng: np.random.Generator, rows: int, columns: int, states: int) -> np.ndarray:
    """Codes of rounding Gaussian columns along a trellis: of the values whose parity its state allows the nearest."""
    state, found = np.zeros(columns, np.int64), np.zeros((rows, columns), np.int8)
    for row in range(rows):
        state = np.zeros_like(state) if row % SEGMENT == 0 else state
        found[row] = np.rint(rng.normal(0, 1.5, columns) - (state & 1) / 2)
        state = np.asarray(
            next_state(states, torch.from_numpy(state), torch.from_numpy(found[row].astype(np.int64) & 1))
        )
    return found


@pytest.mark.parametrize("states", PARITY_CHECKS)
@pytest.mark.parametrize("rows", [5, 256, 300, 700])
def test_codes_along_a_trellis_come_back(rng: np.random.Generator, states: int, rows: int) -> None:
    matrices = [trellis_codes(rng, rows, 24, states), trellis_codes(rng, 40, 3, states)]
    round_trip(matrices)


def test_a_trellis_is_found_and_takes_less(rng: np.random.Generator) -> None:
    matrices = [trellis_codes(rng, 512, 200, 64) for _ in range(3)]
    low = min(int(matrix.min()) for matrix in matrices)
    assert trellis_of(matrices[0], low) == 6
    assert trellis_of(gaussian(rng, 512, 200), -31) == 0
    codes = np.concatenate(matrices)
    classes = [walk(torch.from_numpy(matrix), 64).numpy() & 1 for matrix in matrices]
    odd = np.concatenate(classes) == 1
    by_class = entropy_bytes(codes[odd]) + entropy_bytes(codes[~odd])
    size = round_trip(matrices)
    assert by_class < size < 1.0025 * by_class
    assert size < 0.997 * entropy_bytes(codes)


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(np.uint16, st.integers(0, 60)))
def test_differences_come_back(values: np.ndarray) -> None:
    raw = values.astype("<u2").tobytes()
    assert Rans().decode(Rans().encode(raw), len(raw)) == raw
    smooth = np.cumsum(values % 5, dtype=np.uint16).astype("<u2").tobytes()
    assert Rans().decode(Rans().encode(smooth), len(smooth)) == smooth


def test_numbers_near_the_one_before_take_less(rng: np.random.Generator) -> None:
    scales = np.sort(rng.normal(0.05, 0.004, 4000).astype(np.float16)).tobytes()
    coded = Rans().encode(scales)
    shuffled = Rans().encode(rng.permutation(np.frombuffer(scales, "<u2")).tobytes())
    assert coded[0] == STEPS_OF_2 and len(coded) < 0.5 * len(shuffled)


@pytest.mark.parametrize("model", [WORDS, 44, 63, ALONG, ALONG + 1, ALONG + 4, ALONG + 9, 255])
def test_unknown_models_are_refused(model: int) -> None:
    coded = bytearray(encode_matrices([np.ones((3, 4), np.int8)])[0])
    coded[6] = model
    with pytest.raises(InputError):
        decode_matrices(bytes(coded), [(3, 4)])


@pytest.mark.slow
def test_a_large_matrix_comes_back(rng: np.random.Generator) -> None:
    round_trip([gaussian(rng, 8192, 512, 4.5)])


def test_encoding_does_not_depend_on_threads(rng: np.random.Generator) -> None:
    matrices, threads = [low_rank(rng, 300, 40), trellis_codes(rng, 300, 40, 8)], torch.get_num_threads()
    try:
        found = set()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.add(encode_matrices(matrices))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1
