"""Quantizers: codes as the records make them, errors within half a step, compensation that helps, bad input named."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgolf.core.errors import ConfigError, InputError
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.params import ATTN, EMBED, MLP, ParamSpec, control, matrix
from pgolf.core.model.parts.untied_embed import UntiedEmbed
from pgolf.core.quant.base import check_finite, code_limit, quantize_model, round_codes
from pgolf.core.quant.calibration import collect_hessians
from pgolf.core.quant.casts import KeepFloats
from pgolf.core.quant.descent import refitted, swept
from pgolf.core.quant.gptq import Gptq, gptq_codes, inverse_factor
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.core.quant.row_quantile import RowQuantile, quantile_codes
from pgolf.core.quant.sdclip import Grid, SdClip
from pgolf.core.quant.variants import CoarseLayers, HessianClip, PrunedGptq

GPTQ_CASES = ("a", "b", "c", "d", "e", "dead")


def ulps(actual, wanted):
    """Distance of positive float16 arrays in units in the last place."""
    return np.abs(actual.view(np.int16).astype(int) - wanted.view(np.int16).astype(int)).max()


def spec_of(weight, role=ATTN):
    """A matrix spec that fits a weight."""
    return matrix("w", *weight.shape, role)


def normal(*shape, seed=0):
    """A seeded normal tensor."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hessian_of(columns, samples, seed):
    """X^T X of strongly correlated inputs, (C,C) float32."""
    x = normal(samples, columns, seed=seed)
    common = normal(samples, 1, seed=seed + 1)
    x = x + 2 * common
    return x.T @ x


def output_error(weight, codes, scale, hessian):
    """tr(E H E^T) in float64."""
    error = weight.double() - codes.double() * scale.double()[:, None]
    return float((error @ hessian.double() * error).sum())


# Row quantile


@pytest.mark.parametrize("index", range(3))
def test_int8_matrices_golden(oracle, index):
    data = oracle("quant_int8_baseline.npz")
    codes, scale = quantile_codes(torch.from_numpy(data[f"w{index}"]), 0.9999984, 127)
    difference = np.abs(codes.numpy().astype(int) - data[f"codes{index}"])
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-4
    assert codes.dtype == torch.int8
    assert ulps(scale.numpy(), data[f"scales{index}"]) <= 1
    result = QTensor(codes, scale, 8).dequantize().numpy()
    np.testing.assert_allclose(result, data[f"dequant{index}"], rtol=2e-3, atol=1e-7)


def test_int8_vectors_golden(oracle):
    data = oracle("quant_int8_baseline.npz")
    codes, scale = quantile_codes(torch.from_numpy(data["w_vec"]), 0.9999984, 127)
    np.testing.assert_array_equal(codes.numpy(), data["codes_vec"])
    assert float(scale) == pytest.approx(float(data["scale_vec"]), rel=1e-6)
    codes, scale = quantile_codes(torch.zeros(9), 0.9999984, 127)
    assert codes.tolist() == data["codes_zero"].tolist() == [0] * 9
    assert float(scale) == float(data["scale_zero"]) == 1.0


def test_small_tensors_are_kept_and_large_ones_coded():
    quantizer = RowQuantile(keep_numel=100)
    small, large, gain = normal(10, 10), normal(10, 11), torch.full((500,), 1 + 2**-20)
    kept = quantizer.quantize(spec_of(small), small, None)
    assert kept.dtype == torch.float16
    assert torch.equal(kept, small.half())
    assert quantizer.quantize(spec_of(large), large, None).bits == 8
    scalar = quantizer.quantize(control("g", (500,), 1.0), gain, None)
    assert scalar.dtype == torch.float32
    assert torch.equal(scalar, gain)


def unpacked(data):
    """Codes (R,C) of the oracle's int4 bytes: the low half first, codes biased by 8."""
    halves = np.stack([data["int4_packed"] & 15, data["int4_packed"] >> 4], axis=1)
    return halves.ravel()[: data["int4_w"].size].reshape(data["int4_w"].shape).astype(int) - 8


def test_int4_golden(oracle):
    data = oracle("quant_ternary.npz")
    weight = torch.from_numpy(data["int4_w"])
    for floor in ("auto", "none"):
        coded = RowQuantile(bits=4, quantile=1.0, keep_numel=0, floor=floor).quantize(spec_of(weight), weight, None)
        np.testing.assert_array_equal(coded.codes.numpy(), unpacked(data))
        np.testing.assert_array_equal(coded.scale.numpy(), data["int4_scale"])
        np.testing.assert_allclose(coded.dequantize().numpy(), data["int4_decoded"], rtol=0, atol=1e-7)
    record = RowQuantile(bits=4, quantile=1.0, keep_numel=0, floor="record").quantize(spec_of(weight), weight, None)
    assert bool((record.scale[torch.from_numpy(data["int4_scale"] < 1 / 7)] == torch.tensor(1 / 7).half()).all())


@pytest.mark.parametrize("bits", [4, 5, 6, 7])
def test_below_8_bits_steps_follow_rows_unless_the_record_is_asked_for(bits):
    weight, most = 0.05 * normal(32, 256), code_limit(bits)
    auto, none, record = (
        RowQuantile(bits=bits, keep_numel=0, floor=floor).quantize(spec_of(weight), weight, None)
        for floor in ("auto", "none", "record")
    )
    assert torch.equal(auto.codes, none.codes) and torch.equal(auto.scale, none.scale)
    assert bool((record.scale == torch.tensor(1 / most).half()).all())
    assert bool((auto.codes.abs().amax(dim=1) == most).all())
    losses = [float((one.dequantize() - weight).square().sum()) for one in (auto, record)]
    assert losses[0] < losses[1] / 4
    plain = round_codes(weight, auto.scale, most)
    assert torch.equal(auto.codes, plain), "codes are those of the scale as stored"


def test_8_bits_keep_the_records_floor_and_may_do_without():
    weight = 0.05 * normal(8, 256)
    codes, scale = quantile_codes(weight, 0.9999984, 127)
    for floor in ("auto", "record"):
        coded = RowQuantile(keep_numel=0, floor=floor).quantize(spec_of(weight), weight, None)
        assert torch.equal(coded.codes, codes) and torch.equal(coded.scale, scale)
    free = RowQuantile(keep_numel=0, floor="none").quantize(spec_of(weight), weight, None)
    assert float(free.scale.max()) < float(scale.min()) / 3


@pytest.mark.parametrize(("bits", "quantile"), [(4, 0.9999984), (6, 1.0), (6, 0.98)])
def test_the_expected_step_is_that_of_rows_without_a_floor(bits, quantile):
    quantizer, weight = RowQuantile(bits=bits, quantile=quantile, floor="none"), 0.02 * normal(200, 512)
    coded = quantizer.quantize(spec_of(weight), weight, None)
    assert quantizer.step_over_sigma(spec_of(weight)) == pytest.approx(float(coded.scale.median()) / 0.02, rel=0.02)


# SDClip


@pytest.mark.parametrize(("bits", "k"), [(6, 12.85), (5, 6.0), (8, 20.0)])
def test_sdclip_steps_are_k_sigma_over_limit(bits, k):
    weight = normal(40, 300) * torch.logspace(-2, 1, 40)[:, None]
    coded = SdClip(bits=bits, k=k).quantize(spec_of(weight), weight, None)
    sigma = weight.double().numpy().std(axis=1, ddof=1)
    wanted = (k * sigma / (2 ** (bits - 1) - 1)).astype(np.float16)
    assert ulps(coded.scale.numpy(), wanted) <= 1
    assert coded.bits == bits
    assert int(coded.codes.abs().max()) <= code_limit(bits)


def test_step_ratio_is_the_same_knob_as_k():
    weight = normal(6, 50)
    by_k = SdClip(bits=6, k=12.4).quantize(spec_of(weight), weight, None)
    by_ratio = SdClip(bits=6, step_ratio=0.4).quantize(spec_of(weight), weight, None)
    assert torch.equal(by_k.codes, by_ratio.codes)
    assert torch.equal(by_k.scale, by_ratio.scale)


def test_each_role_has_its_own_grid():
    quantizer = SdClip(bits=6, k=12.0, mlp=Grid(bits=5), attn=Grid(k=6.0), embed=Grid(bits=7, step_ratio=0.25))
    assert quantizer.grid(MLP) == (5, 12.0 / 15)
    assert quantizer.grid(ATTN) == (6, 6.0 / 31)
    assert quantizer.grid(EMBED) == (7, 0.25)
    assert SdClip().grid("head") == (8, 20.0 / 127)


weights = st.builds(
    lambda rows, columns, seed, size: normal(rows, columns, seed=seed) * 10.0**size,
    st.integers(1, 6),
    st.integers(2, 40),
    st.integers(0, 999),
    st.integers(-3, 3),
)


@given(weights, st.sampled_from([4, 6, 8]))
def test_rounding_error_is_half_a_step_where_nothing_is_clipped(weight, bits):
    coded = SdClip(bits=bits, k=12.85).quantize(spec_of(weight), weight, None)
    half, limit = coded.scale.float()[:, None] / 2, code_limit(bits)
    error = (coded.dequantize() - weight).abs()
    inside = weight.abs() <= limit * coded.scale.float()[:, None]
    assert bool((error <= half * (1 + 1e-5))[inside].all())
    assert bool((coded.codes[~inside].abs() == limit).all())
    assert bool((coded.codes.sign() * weight.sign() >= 0).all())


@given(weights)
def test_int8_error_is_half_a_step_plus_the_rounding_of_the_scale(weight):
    codes, scale = quantile_codes(weight, 1.0, 127)
    step = (weight.abs().amax(dim=1) / 127).clamp_min(1 / 127)[:, None]
    error = (QTensor(codes, scale, 8).dequantize() - weight).abs()
    assert bool((error <= 0.5001 * step + weight.abs() * 2**-11 + step * 2**-11).all())


# Difficult rows

QUANTIZERS = {"row_quantile": RowQuantile(keep_numel=0), "sdclip": SdClip(bits=8, k=16.0), "gptq": Gptq(bits=8, k=16.0)}


def coded_rows(name, weight):
    """A matrix through one quantizer, with a Hessian of correlated inputs."""
    return QUANTIZERS[name].quantize(spec_of(weight), weight, hessian_of(weight.size(1), 200, 3))


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.fault(row="F17")
def test_a_zero_row_stays_zero(name):
    weight = normal(3, 24)
    weight[1] = 0
    coded = coded_rows(name, weight)
    assert not coded.dequantize()[1].any()
    assert bool((coded.scale > 0).all())
    assert bool(coded.codes[[0, 2]].any(dim=1).all())


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.fault(row="F17")
def test_a_huge_outlier_stays_within_half_a_step_or_saturates(name):
    weight = 0.01 * normal(2, 64)
    weight[0, 5] = 6e4
    coded = coded_rows(name, weight)
    result, step = coded.dequantize(), coded.scale.float()[0]
    assert bool(result.isfinite().all())
    saturated = int(coded.codes[0, 5]) == 127
    assert saturated or abs(float(result[0, 5]) - 6e4) <= float(step) * 0.51
    assert float(result[0, 5]) > 5e4
    assert float((result[1] - weight[1]).abs().max()) < 0.05


def test_a_constant_row_survives_int8():
    weight = torch.full((2, 24), 0.75)
    weight[1] = -1e-3
    result = coded_rows("row_quantile", weight).dequantize()
    torch.testing.assert_close(result[0], weight[0], rtol=0, atol=0.5 / 127 + 1e-3)
    assert float(result[1].abs().max()) <= 0.5 / 127


@pytest.mark.parametrize("name", ["sdclip", "gptq"])
def test_a_constant_row_has_no_spread_and_still_survives(name):
    coded = coded_rows(name, torch.full((2, 24), 0.75))
    assert bool((coded.codes.abs() == 127).all())
    assert coded.dequantize().numpy() == pytest.approx(0.75, rel=1e-3)


# GPTQ


@pytest.mark.parametrize("case", GPTQ_CASES)
def test_gptq_golden(oracle, case):
    data = oracle("quant_gptq_sdclip.npz")
    weight, hessian = torch.from_numpy(data[f"{case}.w"]), torch.from_numpy(data[f"{case}.h"])
    bits, k = int(data[f"{case}.bits"]), float(data[f"{case}.k"])
    coded = Gptq(bits=bits, k=k).quantize(spec_of(weight), weight, hessian)
    assert ulps(coded.scale.numpy(), data[f"{case}.scales"]) <= 1
    difference = np.abs(coded.codes.numpy().astype(int) - data[f"{case}.codes"])
    assert (difference > 0).mean() <= 0.005
    assert difference.max() <= 1
    loss = output_error(weight, coded.codes, coded.scale, hessian)
    assert loss == pytest.approx(float(data[f"{case}.loss"]), rel=1e-3)
    plain = SdClip(bits=bits, k=k).quantize(spec_of(weight), weight, None)
    assert output_error(weight, plain.codes, plain.scale, hessian) == pytest.approx(
        float(data[f"{case}.rtn_loss"]), rel=1e-3
    )


def test_an_identity_hessian_gives_plain_rounding():
    weight = normal(12, 150)
    for size in (1e-4, 1.0, 300.0):
        coded = Gptq(bits=5).quantize(spec_of(weight), weight, size * torch.eye(150))
        plain = SdClip(bits=5).quantize(spec_of(weight), weight, None)
        assert torch.equal(coded.codes, plain.codes)
        assert torch.equal(coded.scale, plain.scale)


@given(st.integers(12, 32), st.integers(24, 48), st.integers(0, 10_000), st.sampled_from([4, 6]))
def test_gptq_beats_plain_rounding_on_correlated_inputs(rows, columns, seed, bits):
    weight, hessian = normal(rows, columns, seed=seed), hessian_of(columns, 4 * columns, seed + 7)
    coded = Gptq(bits=bits).quantize(spec_of(weight), weight, hessian)
    plain = SdClip(bits=bits).quantize(spec_of(weight), weight, None)
    assert torch.equal(coded.scale, plain.scale)
    compensated = output_error(weight, coded.codes, coded.scale, hessian)
    assert compensated < output_error(weight, plain.codes, plain.scale, hessian)


@pytest.mark.parametrize("case", ["b", "c", "dead"])
@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_the_block_size_does_not_change_the_codes(oracle, case, block):
    data = oracle("quant_gptq_sdclip.npz")
    weight, hessian = torch.from_numpy(data[f"{case}.w"]), torch.from_numpy(data[f"{case}.h"])
    one, other = (Gptq(bits=6, block=size).quantize(spec_of(weight), weight, hessian) for size in (128, block))
    assert torch.equal(one.codes, other.codes)


@given(st.integers(0, 10_000))
def test_permuting_the_inputs_permutes_the_codes(seed):
    weight, hessian = normal(5, 30, seed=seed), hessian_of(30, 90, seed)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    scale = torch.full((5,), 0.3, dtype=torch.float16)
    codes = gptq_codes(weight, hessian, scale, 31, 0.01, 8)
    permuted = gptq_codes(weight[:, order], hessian[order][:, order], scale, 31, 0.01, 8)
    assert torch.equal(permuted, codes[:, order])


@pytest.mark.fault(row="F19")
def test_dead_inputs_get_code_zero_and_influence_nothing():
    weight, hessian = normal(6, 20), hessian_of(20, 80, 5)
    dead = [0, 7, 19]
    hessian[dead] = 0
    hessian[:, dead] = 0
    scale = torch.full((6,), 0.2, dtype=torch.float16)
    codes = gptq_codes(weight, hessian, scale, 31, 0.01, 128)
    assert not codes[:, dead].any()
    alive = [column for column in range(20) if column not in dead]
    assert int((codes[:, alive] != 0).sum()) > 80
    weight[:, dead] = 1e3
    assert torch.equal(gptq_codes(weight, hessian, scale, 31, 0.01, 128), codes)


def test_inverse_factor_factorises_the_damped_inverse():
    hessian = hessian_of(18, 60, 2)
    upper = inverse_factor(hessian, 0.01)
    damped = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(18)
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.double().T @ upper.double() @ damped, torch.eye(18).double(), rtol=0, atol=1e-3)


def spectrum(lowest):
    """A symmetric matrix with eigenvalues 1 but for one."""
    basis = torch.linalg.qr(normal(12, 12, seed=9).double()).Q
    values = torch.ones(12).double()
    values[3] = lowest
    return (basis * values @ basis.T).float()


@pytest.mark.fault(row="F19")
def test_a_slightly_indefinite_hessian_is_damped_until_it_works():
    upper = inverse_factor(spectrum(-0.05), 0.01)
    damped = spectrum(-0.05).double() + 0.1 * spectrum(-0.05).double().diagonal().mean() * torch.eye(12)
    torch.testing.assert_close(upper.double().T @ upper.double(), torch.linalg.inv(damped), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("hessian", [spectrum(-20.0), -torch.eye(12), torch.full((12, 12), float("nan"))])
def test_a_hopeless_hessian_falls_back_to_plain_rounding(hessian):
    weight = normal(4, 12)
    assert gptq_codes(weight, hessian, torch.ones(4).half(), 31, 0.01, 128) is None
    coded = Gptq().quantize(spec_of(weight), weight, hessian)
    plain = SdClip().quantize(spec_of(weight), weight, None)
    assert torch.equal(coded.codes, plain.codes)
    assert torch.equal(coded.codes, round_codes(weight, plain.scale, 31))


def test_the_inputs_are_left_as_they_were():
    weight, hessian = normal(4, 12), hessian_of(12, 40, 1)
    hessian[5] = hessian[:, 5] = 0
    before = weight.clone(), hessian.clone()
    Gptq().quantize(spec_of(weight), weight, hessian)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


# After GPTQ


def test_a_sweep_and_a_refit_of_a_case_worked_out_by_hand():
    """With H = [[2, 1], [1, 1]] and w = (1.4, 1.4), codes (1, 1) of scale 1: G = (0.4, 0.4) H = (1.2, 0.8). Column 1
    moves by round(0.6) = 1, after which G_2 = 0.8 - 1 = -0.2 stays. The error (-0.6, 0.4) costs 0.72 - 0.48 + 0.16 =
    0.4, before (0.4, 0.4) cost 0.8. Of codes (2, 1), q H = (5, 3): s = (5 + 3) 1.4 / (10 + 3) = 11.2 / 13.
    """
    hessian, weight = torch.tensor([[2.0, 1.0], [1.0, 1.0]]), torch.tensor([[1.4, 1.4]])
    before = QTensor(torch.ones(1, 2, dtype=torch.int8), torch.ones(1).half(), 6)
    after = swept(before, weight, hessian, 31, 1)
    assert after.codes.tolist() == [[2, 1]] and torch.equal(after.scale, before.scale)
    assert output_error(weight, before.codes, before.scale, hessian) == pytest.approx(0.8)
    assert output_error(weight, after.codes, after.scale, hessian) == pytest.approx(0.4)
    assert swept(after, weight, hessian, 31, 1).codes.tolist() == [[2, 1]]
    assert swept(before, weight, hessian, 1, 1).codes.tolist() == [[1, 1]], "codes stay within their width"
    found = refitted(after, weight, hessian)
    assert found.scale.tolist() == [float(np.float16(11.2 / 13))] and torch.equal(found.codes, after.codes)


@given(st.integers(0, 10_000), st.sampled_from([4, 6]), st.sampled_from([1, 5, 128]))
def test_neither_sweeps_nor_a_refit_raise_the_loss(seed, bits, block):
    weight, hessian = normal(9, 24, seed=seed), hessian_of(24, 60, seed + 1)
    hessian[[3, 17]] = 0
    hessian[:, [3, 17]] = 0
    losses = []
    for sweeps, refit in ((0, False), (1, False), (2, False), (4, False), (4, True)):
        quantizer = Gptq(bits=bits, block=block, sweeps=sweeps, refit=refit)
        coded = quantizer.quantize(spec_of(weight), weight, hessian)
        losses.append(output_error(weight, coded.codes, coded.scale, hessian))
        assert coded.sound() and int(coded.codes.abs().max()) <= code_limit(bits)
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in zip(losses, losses[1:]))
    assert losses[-1] < losses[0]


def test_every_code_of_a_settled_row_is_the_best_beside_the_others():
    weight, hessian = normal(6, 16), hessian_of(16, 40, 3)
    coded = Gptq(sweeps=50).quantize(spec_of(weight), weight, hessian)
    loss = output_error(weight, coded.codes, coded.scale, hessian)
    for column in range(16):
        for step in (-1, 1):
            moved = coded.codes.clone()
            moved[:, column] += step
            error = (weight - moved * coded.scale[:, None]).double()
            per_row = ((error @ hessian.double()) * error).sum(1)
            best = (weight - coded.dequantize()).double()
            assert bool((per_row >= ((best @ hessian.double()) * best).sum(1) - 1e-6 * loss).all())


def test_where_there_is_no_usable_hessian_codes_and_scales_stay():
    weight = normal(4, 12)
    for known in (None, -torch.eye(12)):
        one, other = (
            Gptq(**more).quantize(spec_of(weight), weight, known) for more in ({}, {"sweeps": 3, "refit": True})
        )
        assert torch.equal(one.codes, other.codes) and torch.equal(one.scale, other.scale)


def test_a_refit_keeps_the_scale_of_rows_without_codes():
    weight, hessian = normal(3, 24), hessian_of(24, 200, 3)
    weight[1] = 0
    coded = Gptq(refit=True).quantize(spec_of(weight), weight, hessian)
    plain = Gptq().quantize(spec_of(weight), weight, hessian)
    assert coded.scale[1] == plain.scale[1] > 0 and coded.scale[0] != plain.scale[0]


def test_variants_of_gptq_sweep_too():
    weight, hessian = normal(8, 32), hessian_of(32, 80, 2)
    for kind in (HessianClip, CoarseLayers, PrunedGptq):
        plain, better = (
            kind(**more).quantize(spec_of(weight), weight, hessian) for more in ({}, {"sweeps": 3, "refit": True})
        )
        losses = [output_error(weight, one.codes, one.scale, hessian) for one in (plain, better)]
        assert losses[1] < losses[0], kind


@pytest.mark.parametrize(
    ("settings", "where", "reason"),
    [
        ({"sweeps": 1, "rounding": "trellis"}, "sweeps", "a trellis couples codes"),
        ({"refit": True, "steps": "curvature"}, "refit", "scales lie on a grid"),
        ({"sweeps": -1}, "sweeps", "must not be negative"),
    ],
)
def test_sweeps_are_refused_where_they_cannot_work(settings, where, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        Gptq(**settings)
    assert caught.value.where == where


# Whole models and bad input


@pytest.mark.parametrize("quantizer", [RowQuantile(keep_numel=100), SdClip(), Gptq()], ids=["rtn", "sdclip", "gptq"])
def test_a_quantized_model_has_every_parameter(tiny_model, quantizer):
    result = quantize_model(tiny_model.config, tiny_model.state_dict(), quantizer, {})
    result.assure_sound("test")
    assert list(result.tensors) == [spec.name for spec in param_specs(tiny_model.config)]
    for name, weight in result.weights().items():
        exact = tiny_model.state_dict()[name]
        assert weight.dtype == torch.float32
        assert float((weight - exact).norm()) <= 0.15 * float(exact.norm())


@pytest.mark.parametrize(("value", "text"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
def test_a_broken_weight_is_named_by_tensor_and_index(tiny_model, value, text):
    weights = {name: weight.clone() for name, weight in tiny_model.state_dict().items()}
    weights["blocks.1.mlp.fc.weight"][3, 2] = value
    with pytest.raises(InputError, match=rf"blocks\.1\.mlp\.fc\.weight is {text} at index \[3, 2\]"):
        quantize_model(tiny_model.config, weights, SdClip(), {})
    with pytest.raises(InputError, match=r"index \[4\]"):
        check_finite({"v": torch.tensor([0.0, 1, 2, 3, value])})


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_row_too_large_for_float16_scales_is_refused(name):
    weight = 1e9 * normal(3, 24)
    with pytest.raises(InputError) as caught:
        coded_rows(name, weight)
    assert caught.value.exit_code == 3


def test_a_kept_tensor_too_large_for_float16_is_refused():
    weight = torch.ones(4, 4)
    weight[2, 1] = -70_000.0
    with pytest.raises(InputError, match=r"w\.weight has values beyond float16"):
        RowQuantile().quantize(spec_of(weight), weight, None)
    largest = torch.full((4, 4), 65504.0)
    assert bool(RowQuantile().quantize(spec_of(largest), largest, None).isfinite().all())


def small_model():
    """A quantized model of a small configuration."""
    config = ModelConfig(vocab_size=8, num_layers=2, model_dim=4, num_heads=2, num_kv_heads=1)
    tensors = {}
    for spec in param_specs(config):
        weight = normal(*spec.shape, seed=spec.numel)
        tensors[spec.name] = SdClip().quantize(spec, weight, None)
    return QuantizedModel(config, tensors)


def damaged(name, tensor):
    """The small model with one tensor replaced."""
    model = small_model()
    model.tensors[name] = tensor
    return model


CODES, SCALE = torch.ones(4, 4, dtype=torch.int8), torch.ones(4, dtype=torch.float16)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("blocks.0.attn.c_q.weight", QTensor(CODES[:3], SCALE, 6), r"of shape \(4, 4\)"),
        ("blocks.0.attn.c_q.weight", QTensor(32 * CODES, SCALE, 6), "beyond ±31"),
        ("blocks.0.attn.c_q.weight", QTensor(-128 * CODES, SCALE, 8), "beyond ±127"),
        ("blocks.0.attn.c_q.weight", QTensor(CODES, 0 * SCALE, 6), "not a positive number"),
        ("blocks.0.attn.c_q.weight", QTensor(CODES, -SCALE, 6), "not a positive number"),
        ("blocks.0.attn.c_q.weight", QTensor(CODES, SCALE / 0, 6), "not a positive number"),
        ("skip_weights", torch.full((1, 4), float("nan")), "not finite"),
        ("extra", torch.ones(1), "does not know"),
    ],
)
def test_check_names_what_a_model_cannot_have(name, tensor, message):
    small_model().assure_sound("file")
    with pytest.raises(InputError, match=message) as caught:
        damaged(name, tensor).assure_sound("some/file")
    assert "some/file" in str(caught.value)


def test_check_refuses_scales_of_another_length():
    with pytest.raises(InputError, match=r"blocks\.0\.attn\.c_q\.weight"):
        damaged("blocks.0.attn.c_q.weight", QTensor(CODES, SCALE[:3], 6)).assure_sound("file")


def test_check_names_a_missing_tensor():
    model = small_model()
    del model.tensors["blocks.1.mlp.fc.weight"]
    with pytest.raises(InputError, match=r"blocks\.1\.mlp\.fc\.weight is missing"):
        model.assure_sound("file")


def test_the_digest_sees_codes_scales_bits_and_floats():
    name, base = "blocks.0.attn.c_q.weight", small_model()
    coded = base.tensors[name]
    digests = {
        base.digest(),
        damaged(name, QTensor(coded.codes.flip(0), coded.scale, coded.bits)).digest(),
        damaged(name, QTensor(coded.codes, coded.scale * 2, coded.bits)).digest(),
        damaged(name, QTensor(coded.codes, coded.scale, 7)).digest(),
        damaged(name, coded.dequantize()).digest(),
        damaged(name, coded.dequantize().half()).digest(),
    }
    assert len(digests) == 6
    assert small_model().digest() == base.digest()


@pytest.mark.parametrize(
    "make",
    [
        lambda: RowQuantile(bits=3),
        lambda: RowQuantile(bits=9),
        lambda: RowQuantile(quantile=0.0),
        lambda: RowQuantile(floor="low"),
        lambda: SdClip(bits=2),
        lambda: SdClip(k=0.0),
        lambda: SdClip(step_ratio=-0.1),
        lambda: SdClip(control_dtype="bfloat16"),
        lambda: KeepFloats(control_dtype=""),
        lambda: Grid(bits=3),
        lambda: Grid(k=10.0, step_ratio=0.3),
        lambda: Gptq(damping=0.0),
        lambda: Gptq(block=0),
        lambda: Gptq(calibration_seqs=0),
        lambda: Gptq(bits=9),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(ConfigError, match=r"must|give"):
        make()


# Calibration


def watched_hessians(model, batches, monkeypatch):
    """X^T X in float64 of every linear map, by listening to torch's own linear function."""
    names = {weight.data_ptr(): name for name, weight in model.named_parameters()}
    sums, linear = {}, torch.nn.functional.linear

    def listen(x, weight, bias=None):
        flat = x.detach().double().reshape(-1, x.size(-1)).numpy()
        name = names[weight.data_ptr()]
        sums[name] = sums.get(name, 0) + np.einsum("ti,tj->ij", flat, flat)
        return linear(x, weight, bias)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "linear", listen)
        for ids in batches:
            model.head(model.hidden(ids))
    return sums


@pytest.mark.parametrize("embed", ["tied", "untied"])
def test_hessians_are_the_sums_of_the_inputs_products(make_model, monkeypatch, embed):
    extra = {"embed": UntiedEmbed()} if embed == "untied" else {}
    model = make_model(ModelConfig(vocab_size=30, num_layers=3, model_dim=16, num_heads=2, num_kv_heads=1, **extra))
    batches = [torch.randint(0, 30, (size, 9), generator=torch.Generator().manual_seed(size)) for size in (2, 3, 1)]
    counts = []
    found = collect_hessians(model, enumerate(batches), counts.append)
    wanted = watched_hessians(model, batches, monkeypatch)
    assert counts == [1, 2, 3]
    assert set(found) == set(wanted)
    lookup_only = {"tok_emb.weight"} if embed == "untied" else set()
    matrices = {
        spec.name for spec in param_specs(model.config) if len(spec.shape) == 2 and spec.name.endswith("weight")
    }
    assert set(found) == matrices - lookup_only
    for name, hessian in found.items():
        assert hessian.dtype == torch.float32
        np.testing.assert_allclose(hessian.numpy(), wanted[name], rtol=0, atol=1e-5 * np.abs(wanted[name]).max())


def test_calibration_leaves_no_taps_and_no_gradients(tiny_model):
    ids = torch.zeros(1, 5, dtype=torch.int64)
    collect_hessians(tiny_model, [(0, ids)], lambda count: None)
    assert all(getattr(module, "tap", None) is None for module in tiny_model.modules())
    assert all(weight.grad is None for weight in tiny_model.parameters())


def test_taps_are_removed_after_a_failure(tiny_model):
    with pytest.raises(IndexError):
        collect_hessians(tiny_model, [(0, torch.full((1, 5), 60))], lambda count: None)
    assert all(getattr(module, "tap", None) is None for module in tiny_model.modules())


def test_calibration_without_tokens_is_refused(tiny_model):
    with pytest.raises(InputError, match="no calibration tokens"):
        collect_hessians(tiny_model, [], lambda count: None)


def test_real_hessians_make_the_model_lose_less(tiny_model):
    ids = torch.randint(0, 60, (32, 24), generator=torch.Generator().manual_seed(1))
    hessians = collect_hessians(tiny_model, enumerate(ids.split(8)), lambda count: None)
    spec = next(spec for spec in param_specs(tiny_model.config) if spec.name == "blocks.1.mlp.proj.weight")
    assert isinstance(spec, ParamSpec)
    weight = tiny_model.state_dict()[spec.name]
    errors = [
        output_error(weight, coded.codes, coded.scale, hessians[spec.name])
        for coded in (
            Gptq(bits=4).quantize(spec, weight, hessians[spec.name]),
            SdClip(bits=4).quantize(spec, weight, None),
        )
    ]
    assert errors[0] < 0.9 * errors[1]


def test_theta_multiplies_steps_of_all_roles_and_of_one():
    spec, weight = matrix("blocks.0.mlp.fc", 6, 40, MLP), torch.randn(6, 40)
    other = matrix("blocks.0.attn.c_q", 6, 40, ATTN)
    usual, both = SdClip(), SdClip(theta=1.5, mlp=Grid(theta=2.0))
    assert both.step_over_sigma(spec) == pytest.approx(3.0 * usual.step_over_sigma(spec))
    assert both.step_over_sigma(other) == pytest.approx(1.5 * usual.step_over_sigma(other))
    coarse, fine = (quantizer.quantize(spec, weight, None) for quantizer in (both, usual))
    torch.testing.assert_close(coarse.scale.float(), 3.0 * fine.scale.float(), rtol=2e-3, atol=0)
    assert both.grid("mlp")[0] == usual.grid("mlp")[0]
