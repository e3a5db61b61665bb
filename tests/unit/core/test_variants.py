"""Clips by search and by curvature, coarse layers, pruned codes: each against a computation of its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgolf.config.load import resolve
from pgolf.core.errors import ConfigError, RuleError
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.params import ATTN, EMBED, MLP, control, matrix
from pgolf.core.quant.base import quantize_model
from pgolf.core.quant.gptq import Gptq
from pgolf.core.quant.qtensor import QTensor
from pgolf.core.quant.quantile_search import CLIP_SHARES, QuantileSearch
from pgolf.core.quant.sdclip import Grid
from pgolf.core.quant.variants import CoarseLayers, HessianClip, PrunedGptq
from pgolf.report.console import Console
from pgolf.stages.budget import downgraded, outward

CONFIG = ModelConfig(vocab_size=40, num_layers=4, model_dim=32, num_heads=2, num_kv_heads=1)


def drawn(rows, columns, seed=0):
    """A normal matrix."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def correlated(columns, seed=1):
    """X^T X of inputs that have much in common."""
    x = drawn(300, columns, seed) + 2 * drawn(300, 1, seed + 1)
    return x.T @ x


def loss(weight, tensor, hessian):
    """tr(E H E^T)."""
    error = (weight - tensor.dequantize()).double()
    return float(((error @ hessian.double()) * error).sum())


@given(st.integers(0, 10_000), st.integers(4, 8))
def test_each_row_has_the_best_of_five_clips(seed, bits):
    weight = drawn(6, 1500, seed)
    weight[0, 0], weight[1] = 40.0, 0.0
    found, limit = (
        QuantileSearch(bits=bits).quantize(matrix("w", *weight.shape, MLP), weight, None),
        2 ** (bits - 1) - 1,
    )
    assert found.sound() and int(found.codes.abs().max()) <= limit
    for row, ours in zip(weight.numpy(), found.dequantize().numpy()):
        errors = []
        for share in CLIP_SHARES:
            step = np.float32(np.float16(max(np.quantile(np.abs(row), share) / limit, 2.0**-24)))
            errors.append(np.square(row - np.clip(np.round(row / step), -limit, limit) * step).sum())
        assert np.square(row - ours).sum() == pytest.approx(min(errors), rel=1e-3, abs=1e-9)
    assert QuantileSearch().quantize(control("g", (3,), 1.0), torch.ones(3), None).dtype == torch.float32


def test_steps_follow_the_rows_share_of_the_curvature():
    weight, hessian, spec = drawn(20, 48), correlated(48), matrix("w", 20, 48, ATTN)
    weight[3] *= 4
    diagonal = hessian.diagonal().double() + 0.01 * hessian.diagonal().double().mean()
    felt = (weight.double().abs() * diagonal / diagonal.mean()).mean(1)
    wanted = 12.85 / 31 * weight.double().std(1) * (1 + 0.3 * (felt / felt.mean() - 1))
    found = HessianClip(strength=0.3).quantize(spec, weight, hessian)
    np.testing.assert_allclose(found.scale.double(), wanted, rtol=2e-3)
    plain = Gptq().quantize(spec, weight, hessian)
    same = HessianClip(strength=0.0).quantize(spec, weight, hessian)
    assert torch.equal(same.codes, plain.codes) and torch.equal(same.scale, plain.scale)
    hopeless = HessianClip().quantize(spec, weight, 51 * torch.eye(48) - 50)
    assert hopeless.warning == "rounded to nearest"
    constant = torch.full((2, 48), 0.3)
    assert HessianClip().quantize(spec, constant, hessian).dequantize().std() < 0.1
    assert HessianClip().quantize(control("g", (3,), 1.0), torch.ones(3), None).dtype == torch.float32


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.0005, 0.001]))
def test_pruning_zeroes_the_cheapest_ones_and_no_more_than_asked(seed, share):
    weight, hessian, spec = drawn(64, 64, seed), correlated(64, seed), matrix("w", 64, 64, MLP)
    plain, pruned = (one.quantize(spec, weight, hessian) for one in (Gptq(), PrunedGptq(pruned=share)))
    changed = plain.codes != pruned.codes
    assert int(changed.sum()) == int(share * weight.numel())
    assert not pruned.codes[changed].any() and bool((plain.codes[changed].abs() == 1).all())
    base, costs = loss(weight, plain, hessian), {}
    for row, column in (plain.codes.abs() == 1).nonzero().tolist():
        if changed[row, column] or (row + column) % 7 == 0:
            codes = plain.codes.clone()
            codes[row, column] = 0
            costs[row, column] = loss(weight, replace(plain, codes=codes), hessian) - base
    chosen = [costs[row, column] for row, column in changed.nonzero().tolist()]
    others = [cost for place, cost in costs.items() if not changed[place]]
    assert not chosen or max(chosen) <= min(others) + 1e-3 * base


def test_coarse_layers_have_their_grid_and_others_theirs():
    weights = {spec.name: torch.ones(spec.shape) for spec in param_specs(CONFIG)}
    weights |= {spec.name: drawn(*spec.shape) for spec in param_specs(CONFIG) if len(spec.shape) == 2}
    coarse, plain = CoarseLayers(layers="1, 3", coarse=Grid(bits=4)), Gptq()
    made, fine = (quantize_model(CONFIG, weights, one, {}) for one in (coarse, plain))
    for spec in param_specs(CONFIG):
        ours, theirs = made.tensors[spec.name], fine.tensors[spec.name]
        if spec.role not in (ATTN, MLP):
            continue
        inside = spec.name.startswith(("blocks.1.", "blocks.3."))
        assert ours.bits == (4 if inside else 6)
        assert torch.equal(ours.codes, theirs.codes) != inside
        assert coarse.step_over_sigma(spec) == pytest.approx(12.85 / (7 if inside else 31))


def test_layers_are_downgraded_outward_until_it_fits():
    assert outward(11) == [5, 6, 4, 7, 3, 8, 2, 9, 1, 10, 0] and outward(4) == [2, 3, 1, 0]
    config = resolve("tiny", ["quant.method=coarse_layers", "model.num_layers=4"]).config
    weights = {
        spec.name: drawn(*spec.shape) if len(spec.shape) == 2 else torch.ones(spec.shape)
        for spec in param_specs(config.model)
    }
    sizes = []

    def make(quantizer):
        return quantize_model(config.model, weights, quantizer, {})

    def total(quantizer, model):
        sizes.append(1000 - 100 * len([one for one in quantizer.layers.split(",") if one]))
        return sizes[-1]

    fit = downgraded(750, config.quant, config, make, total, Console(True))
    assert fit.quantizer.layers == "2,3,1" and fit.compressions == 4 and fit.total_bytes == 700
    assert make(fit.quantizer).digest() == fit.model.digest() and fit.document()["roles"] == {}
    with pytest.raises(RuleError, match="with all layers coarse it has 600"):
        downgraded(599, config.quant, config, make, total, Console(True))


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: HessianClip(steps="curvature"), "steps"),
        (lambda: HessianClip(strength=2.0), "strength"),
        (lambda: PrunedGptq(pruned=0.01), "pruned"),
        (lambda: CoarseLayers(layers="5,six"), "layers"),
        (lambda: CoarseLayers(layers="5²"), "layers"),
        (lambda: QuantileSearch(bits=3), "bits"),
    ],
)
def test_impossible_settings_are_refused(make, where):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.where == where


def test_forms_are_those_that_are_there_already():
    weight = drawn(8, 16)
    for quantizer in (QuantileSearch(), HessianClip(), PrunedGptq(), CoarseLayers()):
        assert type(quantizer.quantize(matrix("w", 8, 16, EMBED), weight, None)) is QTensor
