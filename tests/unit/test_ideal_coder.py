"""The yardstick of bytes: an adaptive coder's exact length, whatever the order, with what it must tell included."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.ideal_coder import adaptive_bits, ideal_bytes, integer_bits, ranks, role_bits
from pgolf.core.model.params import ATTN, control, matrix
from pgolf.core.quant.grid import StepTensor
from pgolf.core.quant.lqer import low_rank, pack_asym
from pgolf.core.quant.qtensor import QTensor


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_the_length_is_that_of_coding_one_symbol_after_the_other(values):
    counts, bits = np.full(5, 0.5), 0.0
    for value in values:
        bits -= math.log2(counts[value] / counts.sum())
        counts[value] += 1
    assert adaptive_bits(np.bincount(values, minlength=5)[None].astype(float)) == pytest.approx(bits)
    assert integer_bits(np.array(values) + 7) <= bits + 1e-9


def test_classes_are_of_equal_size_and_in_order():
    found = ranks([np.arange(8.0), np.arange(8.0) + 100], 4)
    assert found[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1] and found[1].tolist() == [2, 2, 2, 2, 3, 3, 3, 3]


def test_columns_of_other_sizes_are_told_apart(rng):
    """Where classes pay, they are used, and what they cost is counted."""
    sizes = np.where(np.arange(64) % 2, 8.0, 0.3)
    codes = np.rint(rng.standard_normal((512, 64)) * sizes).astype(np.int64)
    best, plain = role_bits([(codes, np.zeros_like(codes))])
    assert best < 0.85 * plain
    alike = np.rint(rng.standard_normal((64, 64)) * 2).astype(np.int64)
    best, plain = role_bits([(alike, np.zeros_like(alike))])
    assert best == plain


def test_bytes_have_codes_scales_factors_and_control(rng):
    specs = [matrix("w", 32, 64, ATTN), control("g", (10,), 1.0)]
    codes = torch.from_numpy(rng.integers(-3, 4, (32, 64)).astype(np.int8))
    rows = QTensor(codes, torch.ones(32, dtype=torch.float16), 6)
    steps = StepTensor(codes, torch.zeros(32, dtype=torch.int16), 8, columns=torch.zeros(64, dtype=torch.int8))
    plain, bits = ideal_bytes(specs, {"w.weight": rows, "g": torch.ones(10)}, {})
    assert bits == pytest.approx(math.log2(7), abs=0.02)
    assert plain == pytest.approx(bits * 2048 / 8 + 32 + 20)
    gridded, _ = ideal_bytes(specs, {"w.weight": steps, "g": torch.ones(10)}, {})
    assert plain - 32 <= gridded < plain - 30
    factors = pack_asym(*low_rank(torch.randn(32, 64), 4))
    more, _ = ideal_bytes(specs, {"w.weight": rows, "g": torch.ones(10)}, {"w.weight": factors})
    assert 5 * 2 < more - plain < 128 * 2 / 8 + 256 * 4 / 8 + 5 * 2 + 20
