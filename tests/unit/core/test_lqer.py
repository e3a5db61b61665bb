"""Low-rank corrections: packed as PR #1855 does, nearest of their rank, and better than none."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgolf.core.quant.lqer import Factors, low_rank, pack_asym, pack_rows


@pytest.mark.parametrize("case", ["a", "b"])
def test_packing_golden(oracle, case):
    data = {key.removeprefix(f"{case}."): value for key, value in oracle("quant_lqer.npz").items()}
    left, right = torch.from_numpy(data["a_float"]), torch.from_numpy(data["b_float"])
    coded = torch.from_numpy(data["codes"]).float() * torch.from_numpy(data["scales"]).float()[:, None]
    asym, rows = pack_asym(left, right), pack_rows(left, right, 4)
    for factors, prefix, recon in ((asym, "", "recon"), (rows, "sym4_", "sym4_recon")):
        np.testing.assert_array_equal(factors.a_codes.numpy(), data[f"{prefix}a_codes"])
        np.testing.assert_array_equal(factors.b_codes.numpy(), data[f"{prefix}b_codes"])
        np.testing.assert_array_equal(
            factors.a_scale.numpy().ravel(), data[f"{prefix}a_scale{'s' * bool(prefix)}"].ravel()
        )
        np.testing.assert_array_equal(factors.b_scale.numpy().ravel(), data[f"{prefix}b_scales"])
        np.testing.assert_allclose((coded + factors.product()).numpy(), data[recon], rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", ["a", "b"])
def test_factors_golden(oracle, case):
    data = {key.removeprefix(f"{case}."): value for key, value in oracle("quant_lqer.npz").items()}
    coded = torch.from_numpy(data["codes"]).float() * torch.from_numpy(data["scales"]).float()[:, None]
    error = torch.from_numpy(data["w"]) - coded
    left, right = low_rank(error, 4)
    assert float(error.norm()) == pytest.approx(float(data["err_norm"]), rel=1e-5)
    np.testing.assert_allclose((left @ right).numpy(), data["a_float"] @ data["b_float"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(left.norm(dim=0).numpy(), data["sv"][:4], rtol=1e-4)


@given(st.integers(0, 10_000), st.integers(4, 30), st.integers(4, 30), st.sampled_from([4, 8]))
def test_a_correction_of_a_low_rank_error_leaves_little(seed, rows, columns, bits):
    generator = torch.Generator().manual_seed(seed)
    error = torch.randn(rows, 2, generator=generator) @ torch.randn(2, columns, generator=generator)
    factors = pack_rows(*low_rank(error, 2), bits)
    assert float((error - factors.product()).norm()) < (0.4 if bits == 4 else 0.03) * float(error.norm())


def test_nothing_to_correct_stays_nothing():
    factors = pack_asym(*low_rank(torch.zeros(16, 16), 4))
    assert isinstance(factors, Factors) and not factors.product().any()
