"""The trellis: every path decodes, the search is the best there is, and compiled it finds the very same codes."""

import errno
import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgolf import fast_trellis
from pgolf.core.quant.grid import TrellisTensor
from pgolf.core.quant.steps import coupled_rows
from pgolf.core.quant.trellis import (
    PARITY_CHECKS,
    SEGMENT,
    arrivals,
    coupled_viterbi,
    next_state,
    viterbi,
    walk,
)
from pgolf.fast_trellis import fast_coupled_viterbi, fast_viterbi

STATES = sorted(PARITY_CHECKS)


def normal(*shape, seed=0):
    """A seeded normal tensor."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("states", STATES)
def test_every_state_has_two_ways_in_and_two_out(states):
    before, way = arrivals(states)
    assert sorted(before.flatten().tolist()) == sorted([*range(states)] * 2)
    for state in range(states):
        for one, subset in zip(before[state].tolist(), way[state].tolist()):
            assert subset & 1 == one & 1
            assert int(next_state(states, torch.tensor(one), torch.tensor(subset >> 1))) == state


def test_paths_keep_the_published_distance():
    """The least squared distance of two paths that part and meet again, in units of half a step (Ungerboeck 1982)."""
    distance = (0, 1, 4, 1)
    for states, wanted in ((4, 9), (8, 10), (32, 13)):
        before, way = arrivals(states)
        edges = [(int(b), s, int(w)) for s in range(states) for b, w in zip(before[s], way[s])]
        best, shortest = np.inf, {}
        for (a, x, v), (b, y, w) in itertools.product(edges, edges):
            if a == b and x != y:
                shortest[x, y] = min(shortest.get((x, y), np.inf), distance[(v - w) % 4])
        for _ in range(4 * states):
            following = {}
            for (a, x, v), (b, y, w) in itertools.product(edges, edges):
                if (a, b) in shortest and a != b:
                    cost = shortest[a, b] + distance[(v - w) % 4]
                    if x == y:
                        best = min(best, cost)
                    elif cost < min(following.get((x, y), np.inf), shortest.get((x, y), np.inf)):
                        following[x, y] = cost
            if not following:
                break
            shortest |= following
        assert best == wanted


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("rows", [1, 7, SEGMENT, SEGMENT + 1, 700])
def test_compiled_and_plain_search_agree_and_decode(states, rows):
    target, half = 2 * normal(rows, seed=rows), 0.05 + normal(rows, seed=1).abs()
    metric = normal(rows, seed=2).square()
    codes, values = viterbi(target, half, metric, states, 31)
    fast = fast_viterbi(target, half, metric, states, 31)
    assert torch.equal(codes, fast[0]) and torch.equal(values, fast[1])
    assert float(codes.abs().max()) <= 31
    assert torch.equal(walk(codes.to(torch.int8)[:, None], states)[:, 0].float(), values)


def test_compiled_code_is_kept_for_the_next_process(tmp_path, monkeypatch):
    """What a process compiled the next one reads; a damaged file and a full disk are done without."""
    config = pytest.importorskip("numba").core.config
    target, half, metric = 2 * normal(40), torch.full((40,), 0.3), torch.ones(40)

    def found(place):
        """Codes by a search that is compiled or read for the first time, and numba's counts of its cache."""
        monkeypatch.setattr(config, "CACHE_DIR", str(place))
        new = fast_trellis.Compiled(fast_trellis.search)
        monkeypatch.setattr(fast_trellis, "SEARCH", new)
        return fast_viterbi(target, half, metric, 8, 31)[0], new.fast.stats

    codes, stats = found(tmp_path / "kept")
    assert stats.cache_misses and not stats.cache_hits
    again, stats = found(tmp_path / "kept")
    assert stats.cache_hits and not stats.cache_misses and torch.equal(again, codes)
    files = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert len(files) == 2
    for path in files:
        path.write_bytes(b"no machine code")
    again, stats = found(tmp_path / "kept")
    assert not stats.cache_path and torch.equal(again, codes)

    def full(self, key, data):
        """A disk without room."""
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    again, stats = found(tmp_path / "full")
    assert not stats.cache_path and torch.equal(again, codes)


@given(st.integers(0, 10_000), st.sampled_from(STATES), st.integers(1, 40), st.integers(1, 5))
def test_any_codes_walk_a_legal_path(seed, states, rows, columns):
    """Column by column and row by row, by the definition."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (rows, columns), generator=generator).to(torch.int8)
    found = walk(codes, states)
    even, odd = PARITY_CHECKS[states]
    for column in range(columns):
        bits = [0] * states.bit_length()
        for row in range(rows):
            k = int(found[row, column])
            assert k & 1 == bits[0] and k >> 1 == int(codes[row, column])
            first, second = k & 1, k >> 1 & 1
            count = states.bit_length() - 1
            bits = [
                (bits[i + 1] if i + 1 < count else 0) ^ (even >> i + 1 & 1) * first ^ (odd >> i + 1 & 1) * second
                for i in range(count)
            ] + [0]


@given(st.integers(0, 10_000), st.sampled_from([4, 8]))
def test_the_search_finds_the_least_error(seed, states):
    rows, limit = 5, 1
    target, half, metric = normal(rows, seed=seed), torch.full((rows,), 0.7), normal(rows, seed=seed + 1).square()
    _, values = viterbi(target, half, metric, states, limit)
    every = torch.tensor(list(itertools.product(range(-limit, limit + 1), repeat=rows)), dtype=torch.int8).T
    errors = (metric[:, None] * (target[:, None] / half[:, None] - walk(every, states)).square()).sum(0)
    found = float((metric * (target / half - values).square()).sum())
    assert found == pytest.approx(float(errors.min()), rel=1e-5)


def test_segments_do_not_know_of_each_other():
    target = normal(3 * SEGMENT, seed=4)
    half = torch.full_like(target, 0.2)
    whole = viterbi(target, half, half, 8, 31)[0]
    parts = [viterbi(part, half[:SEGMENT], half[:SEGMENT], 8, 31)[0] for part in target.split(SEGMENT)]
    assert torch.equal(whole, torch.cat(parts))


# Coupled rows


def curvature(rows, seed=0, rank=0):
    """A positive definite matrix (R,R) float64 in which rows have to do with each other."""
    factor = normal(rows, rank or rows // 2 + 1, seed=seed).double()
    return factor @ factor.T + 0.05 * torch.eye(rows, dtype=torch.float64)


def test_rows_one_after_the_other_add_up_to_the_whole():
    matrix, error = curvature(9), normal(9, seed=1).double()
    alone, coupling = coupled_rows(matrix, 0.0)
    felt = error + coupling.double() @ error
    assert float((alone * felt.square()).sum()) == pytest.approx(float(error @ matrix @ error), rel=1e-6)
    assert float(alone[0]) == pytest.approx(1 / float(torch.linalg.inv(matrix)[0, 0]), rel=1e-9)
    assert float(coupling.triu().abs().max()) == 0
    assert bool(coupled_rows(torch.zeros(4, 4), 0.01)[0].isfinite().all())


@pytest.mark.parametrize("states", [4, 64])
@pytest.mark.parametrize("rows", [1, 33, SEGMENT + 9])
def test_coupled_searches_agree_and_decode(states, rows):
    alone, coupling = coupled_rows(curvature(rows), 0.01)
    target, half = normal(rows, seed=rows), 0.05 + 0.1 * normal(rows, seed=1).abs()
    given = target, half, alone.float() * half.square(), states, 31, coupling
    codes, values = coupled_viterbi(*given)
    fast = fast_coupled_viterbi(*given)
    assert torch.equal(codes, fast[0]) and torch.equal(values, fast[1])
    assert torch.equal(walk(codes.to(torch.int8)[:, None], states)[:, 0].float(), values)


@pytest.mark.parametrize("rows", [5, SEGMENT + 9])
def test_rows_that_have_nothing_to_do_with_each_other_are_searched_as_ever(rows):
    target, half, metric = normal(rows, seed=3), torch.full((rows,), 0.2), normal(rows, seed=4).square()
    apart = fast_viterbi(target, half, metric, 8, 31)
    together = fast_coupled_viterbi(target, half, metric, 8, 31, torch.zeros(rows, rows))
    assert torch.equal(apart[1], together[1])


@pytest.mark.parametrize("rows", [24, SEGMENT, 2 * SEGMENT + 40])
def test_what_rows_do_together_is_smaller(rows):
    """The whole error under the matrix, against a search that takes each row for itself."""
    matrix = curvature(rows, seed=7)
    alone, coupling = coupled_rows(matrix, 1e-3)
    half, total = torch.full((rows,), 0.2), [0.0, 0.0]
    for seed in range(10):
        target = normal(rows, seed=seed)
        apart = fast_viterbi(target, half, matrix.diagonal().float() * half.square(), 8, 31)[1]
        together = fast_coupled_viterbi(target, half, alone.float() * half.square(), 8, 31, coupling)[1]
        for index, values in enumerate((apart, together)):
            error = (target - values * half).double()
            total[index] += float(error @ matrix @ error)
    assert total[1] < 0.7 * total[0]


# What it is worth


@pytest.mark.parametrize(("states", "least"), [(4, 0.9), (8, 1.0), (64, 1.15), (256, 1.2)])
def test_error_falls_by_a_decibel_at_the_same_entropy(states, least):
    """Against rounding to nearest with step 0.4145 on normal numbers: 1.09 dB with 8 states are published."""
    weight, step = normal(8192, seed=5), 0.4145
    codes, values = fast_viterbi(weight, torch.full((8192,), step / 2), torch.ones(8192), states, 31)
    plain = (weight / step).round()
    errors = [float((weight - found).square().mean()) for found in (plain * step, values * step / 2)]
    assert 10 * np.log10(errors[0] / errors[1]) > least

    def entropy(of):
        share = torch.unique(of, return_counts=True)[1] / len(of)
        return float(-(share * share.log2()).sum())

    assert entropy(codes) < entropy(plain) + 0.03


def test_a_trellis_tensor_is_k_times_half_a_step():
    codes = torch.randint(-20, 21, (300, 4), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    rows, columns = torch.arange(-150, 150).to(torch.int16), torch.tensor([-8, 0, 4, 16]).to(torch.int8)
    tensor = TrellisTensor(codes, rows, 8, columns=columns, memory=torch.tensor([3], dtype=torch.uint8))
    exact = walk(codes, 8).double() / 2 * 2.0 ** (rows.double() / 16)[:, None] * 2.0 ** (columns.double() / 8)
    torch.testing.assert_close(tensor.dequantize(), exact.float(), rtol=3e-7, atol=0)
