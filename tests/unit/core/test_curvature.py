"""Second moments of inputs and gradients: those of autograd itself, whoever takes which batch; text made up; steps."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pgolf.core.errors import ConfigError, InputError
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.params import CONTROL, MLP, matrix
from pgolf.core.model.parts.factored_embed import FactoredEmbed
from pgolf.core.model.parts.hash_embed import BigramHash
from pgolf.core.model.parts.layer_loop import LayerLoop
from pgolf.core.model.parts.untied_embed import UntiedEmbed
from pgolf.core.quant.base import quantize_model
from pgolf.core.quant.calibration import collect_hessians
from pgolf.core.quant.curvature import Calibration, collect_curvature
from pgolf.core.quant.gptq import Gptq, factorise
from pgolf.core.quant.grid import StepTensor, TrellisTensor, step_sizes
from pgolf.core.quant.self_text import made_up
from pgolf.core.quant.steps import bits_at, conditional, curvature_of, entropy, relative, solve_theta, typical
from pgolf.core.shards import TrainStream

SMALL = {"vocab_size": 30, "num_layers": 3, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1}
MODELS = {
    "tied": {},
    "untied": {"embed": UntiedEmbed()},
    "factored": {"embed": FactoredEmbed(width=8)},
    "looped": {"loop": LayerLoop(start=1, end=1, extra_passes=2)},
    "hashed": {"hash_embed": BigramHash(buckets=16, dim=8)},
}


def ids_of(rows, length=9, seed=0):
    """Seeded ids below 30."""
    return torch.randint(0, 30, (rows, length), generator=torch.Generator().manual_seed(seed))


def batches_of(*rows):
    """Numbered batches."""
    return [(number, ids_of(count, seed=number)) for number, count in enumerate(rows)]


def by_hand(model, batches):
    """The same sums in float64, from all outputs of torch's own linear and embedding functions, kept in the graph."""
    names = {weight.data_ptr(): name for name, weight in model.named_parameters()}
    sums = {kind: {} for kind in ("inputs", "outputs", "couplings", "lookups", "energies")}
    linear, embedding = F.linear, F.embedding
    for number, ids in batches:
        seen = []

        def mapped(x, weight, bias=None, seen=seen):
            out = linear(x, weight, bias)
            out.retain_grad()
            seen.append((names[weight.data_ptr()], x.detach(), out))
            return out

        def looked_up(rows, table, seen=seen):
            out = embedding(rows, table)
            out.retain_grad()
            seen.append((names[table.data_ptr()], rows, out))
            return out

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "linear", mapped)
            patch.setattr(F, "embedding", looked_up)
            logits = model.head(model.hidden(ids)).flatten(0, 1)
        generator = torch.Generator().manual_seed(number)
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        F.cross_entropy(logits, labels, reduction="sum").backward()
        for name, came, out in seen:
            grad = out.grad.double().flatten(0, -2)
            if came.dtype == torch.int64:
                energy = torch.zeros(len(dict(model.named_parameters())[name])).double()
                found = {
                    "lookups": grad.T @ grad,
                    "energies": energy.index_add_(0, came.flatten(), grad.square().sum(1)),
                }
            else:
                x = came.double().flatten(0, -2)
                found = {"inputs": x.T @ x, "outputs": grad.square().sum(0)}
                found |= {"couplings": grad.T @ grad} if name.startswith("blocks.") else {}
            for kind, value in found.items():
                sums[kind][name] = sums[kind].get(name, 0) + value
    model.zero_grad()
    return sums


@pytest.mark.parametrize("kind", MODELS)
def test_moments_are_those_of_autograd(make_model, kind):
    model = make_model(ModelConfig(**SMALL, **MODELS[kind]))
    counts = []
    found = collect_curvature(model, batches_of(2, 3, 1), counts.append, coupled=True)
    assert not collect_curvature(model, batches_of(1), lambda done: None).couplings
    wanted = by_hand(model, batches_of(2, 3, 1))
    assert counts == [1, 2, 3] and found.tokens == 6 * 9
    for group, sums in found.groups().items():
        assert sums.keys() == wanted[group].keys(), group
        for name, value in sums.items():
            exact = wanted[group][name].numpy()
            np.testing.assert_allclose(value.numpy(), exact, rtol=0, atol=2e-5 * np.abs(exact).max(), err_msg=name)
    plain = collect_hessians(model, batches_of(2, 3, 1), lambda done: None)
    assert plain.keys() == found.inputs.keys()
    for name, value in plain.items():
        torch.testing.assert_close(value, found.inputs[name], rtol=1e-5, atol=1e-4)


def test_shared_layers_add_up_every_pass(make_model):
    looped, straight = (make_model(ModelConfig(**SMALL, **MODELS[kind])) for kind in ("looped", "tied"))
    trace = [
        float(collect_curvature(model, batches_of(2), lambda done: None).inputs["blocks.1.mlp.fc.weight"].trace())
        for model in (looped, straight)
    ]
    assert trace[0] == pytest.approx(3 * trace[1], rel=0.05)


def test_it_does_not_matter_who_takes_which_batch(make_model):
    model = make_model(ModelConfig(**SMALL))
    batches = batches_of(2, 3, 1, 2)
    whole = collect_curvature(model, batches, lambda done: None)
    shares = [collect_curvature(model, batches[rank::2], lambda done: None) for rank in range(2)]
    assert whole.tokens == sum(share.tokens for share in shares)
    for group, sums in whole.groups().items():
        for name, value in sums.items():
            total = sum(share.groups()[group][name] for share in shares)
            torch.testing.assert_close(value, total, rtol=1e-4, atol=1e-5 * float(value.abs().max()))


def test_the_model_is_left_as_it_was(make_model):
    model = make_model(ModelConfig(**SMALL))
    next(model.parameters()).requires_grad_(False)
    wanted = [weight.requires_grad for weight in model.parameters()]
    collect_curvature(model, batches_of(1), lambda done: None)
    with pytest.raises(IndexError):
        collect_curvature(model, [(0, torch.full((1, 5), 60))], lambda done: None)
    assert [weight.requires_grad for weight in model.parameters()] == wanted
    assert all(weight.grad is None for weight in model.parameters())
    assert all(getattr(module, "tap", None) is None for module in model.modules())
    with pytest.raises(InputError, match="no calibration tokens"):
        collect_curvature(model, [], lambda done: None)


def test_the_curvature_predicts_what_an_error_costs(make_model):
    """Half of sum_r rows[r] e_r H e_r^T against KL(exact || changed) per position, for small errors of matrices."""
    model = make_model(ModelConfig(**SMALL))
    ids = ids_of(64, 16)
    found = collect_curvature(model, enumerate(ids.repeat(8, 1).split(64)), lambda done: None)
    with torch.no_grad():
        exact = model.head(model.hidden(ids)).log_softmax(-1)
    ratios = {}
    for name in ("blocks.0.attn.c_v.weight", "blocks.1.mlp.fc.weight", "blocks.2.mlp.proj.weight"):
        hessian, rows = curvature_of(name, found)
        weight = dict(model.named_parameters())[name]
        error = 1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            weight.add_(error)
            changed = model.head(model.hidden(ids)).log_softmax(-1)
            weight.sub_(error)
        divergence = float((exact.exp() * (exact - changed)).sum(-1).mean())
        ratios[name] = float(0.5 * ((error @ hessian * error).sum(1) @ rows)) / divergence
    assert all(0.5 < ratio < 2 for ratio in ratios.values()), ratios


# Text made up


def test_made_up_text_follows_the_model_and_the_seed(make_model):
    model = make_model(ModelConfig(**SMALL))
    one, same, other = (made_up(model, 3, 12, seed) for seed in (1, 1, 2))
    assert one.shape == (3, 12) and torch.equal(one, same) and not torch.equal(one, other)
    with torch.no_grad():
        model.tok_emb.weight.zero_()
        model.tok_emb.weight[7] = 1.0
        head = model.head

        def certain(hidden):
            return head(hidden) + 1e3 * torch.eye(30)[7]

        model.head = certain
        assert bool((made_up(model, 4, 6, 0)[:, 1:] == 7).all())


def test_batches_are_shared_out_and_numbered(make_model):
    model = make_model(ModelConfig(**SMALL))
    shards = [np.arange(200, dtype=np.uint16) % 30]
    for source in ("train", "self"):
        quantizer = Gptq(
            calibration_source=source, calibration_seqs=7, calibration_seq_len=4, calibration_batch=2, steps="curvature"
        )
        whole = list(quantizer.batches(model, TrainStream(shards)))
        assert [number for number, _ in whole] == [0, 1, 2, 3]
        assert [tuple(ids.shape) for _, ids in whole] == [(2, 4), (2, 4), (2, 4), (1, 4)]
        shared = [pair for rank in range(3) for pair in quantizer.batches(model, TrainStream(shards), rank, 3)]
        assert sorted(number for number, _ in shared) == [0, 1, 2, 3]
        assert all(torch.equal(ids, whole[number][1]) for number, ids in shared)
    assert torch.equal(whole[0][1], made_up(model, 2, 4, 0))


def test_calibration_hears_the_text_that_is_made_up_and_not_how(make_model):
    model, stream = make_model(ModelConfig(**SMALL)), TrainStream([np.zeros(1, np.uint16)])
    quantizer = Gptq(calibration_source="self", calibration_seqs=5, calibration_seq_len=7, calibration_batch=2)
    finished = list(quantizer.batches(model, stream))
    for collect in (collect_hessians, lambda *given: collect_curvature(*given).inputs):
        wanted, found = (
            collect(model, batches, lambda done: None) for batches in (finished, quantizer.batches(model, stream))
        )
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


# Steps

CURVED = Gptq(steps="curvature", calibration_seqs=8, calibration_seq_len=32, calibration_batch=4)


@pytest.fixture(scope="module")
def known(make_model):
    """A model with what was found of it."""
    model = make_model(ModelConfig(**SMALL))
    return model, collect_curvature(model, batches_of(16, 16, 16), lambda done: None)


def test_typical_values_leave_out_rows_that_hardly_matter():
    values = torch.tensor([1.0, 4.0, 2.0, 1e-9, 0.0])
    assert typical(values) == pytest.approx(2.0)
    assert relative(values).tolist() == pytest.approx([0.5, 2.0, 1.0, 0.007, 0.007])
    assert typical(torch.zeros(3)) == 1.0
    assert relative(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("settings", [{}, {"rounding": "trellis", "couple": "rows"}, {"bits_per_weight": 4.0}])
def test_what_the_loss_does_not_feel_has_the_steps_of_its_rows(make_model, settings):
    """Before a matrix of zeros there are no gradients, and of a table behind one no lookup has any."""
    model = make_model(ModelConfig(**SMALL, hash_embed=BigramHash(buckets=16, dim=8)))
    weights, dead = dict(model.named_parameters()), [f"blocks.1.attn.c_{kind}.weight" for kind in "qkv"]
    with torch.no_grad():
        weights["bigram.embed.weight"].normal_()
        for name in ("blocks.1.attn.proj.weight", "bigram.proj.weight"):
            weights[name].zero_()
    found = collect_curvature(model, batches_of(16, 16), lambda done: None, coupled=True)
    assert not any(found.outputs[name].any() for name in dead) and not found.lookups["bigram.embed.weight"].any()
    quantizer = Gptq(steps="curvature", **settings)
    plans = quantizer.plan(param_specs(model.config), model.state_dict(), found)
    result = quantize_model(model.config, model.state_dict(), quantizer, plans)
    result.assure_sound("test")
    usual = Gptq(**{"rounding": "trellis"} | settings).plan(param_specs(model.config), model.state_dict(), found)
    theta = float((plans[dead[0]].rows / usual[dead[0]].rows).mean())
    for name in (*dead, "bigram.embed.weight"):
        torch.testing.assert_close(plans[name].rows, theta * usual[name].rows)
    for name in dead:
        error = result.tensors[name].dequantize() - weights[name].detach()
        assert float(error.square().mean().sqrt()) < float(step_sizes(*plans[name].grid()).mean())


@pytest.mark.parametrize(
    "settings", [{}, {"rounding": "trellis", "states": 8}, {"steps": "sigma", "rounding": "trellis"}]
)
def test_more_bits_never_cut_weights_off(make_model, settings):
    """A row with one giant and a table with another: their steps stop where codes of 8 bits still reach them."""
    model = make_model(ModelConfig(**SMALL))
    weights = dict(model.named_parameters())
    with torch.no_grad():
        weights["blocks.0.mlp.fc.weight"][3, 5] = 40.0
        weights["tok_emb.weight"][7, 2] = 30.0
    found = collect_curvature(model, batches_of(16, 16), lambda done: None)
    errors = []
    for bits in (2.0, 3.0, 4.0, 6.0, 9.0):
        quantizer = Gptq(**{"steps": "curvature"} | settings, bits_per_weight=bits)
        plans = quantizer.plan(param_specs(model.config), model.state_dict(), found)
        result = quantize_model(model.config, model.state_dict(), quantizer, plans)
        coded = {name: tensor for name, tensor in result.tensors.items() if isinstance(tensor, StepTensor)}
        for name, tensor in coded.items():
            most = step_sizes(*plans[name].grid()) / (2 if isinstance(tensor, TrellisTensor) else 1)
            cut_off = int((tensor.codes.abs() == 127).sum())
            assert cut_off <= 2, f"{name} at {bits} bits; compensation may push a weight or two there"
            assert bool(((tensor.dequantize() - weights[name].detach()).abs() < 20 * most + 1e-6).all())
        errors.append(sum(float((t.dequantize() - weights[n].detach()).square().sum()) for n, t in coded.items()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.01 * errors[0]


MATRICES = (matrix("one", 12, 16, MLP), matrix("other", 12, 16, MLP))


def planned(weights, hessians, tokens=100):
    """Steps of the two matrices by curvature, with outputs that count alike."""
    names = [spec.name for spec in MATRICES]
    outputs = {name: torch.ones(12) for name in names}
    found = Calibration(dict(zip(names, hessians, strict=True)), outputs, tokens=tokens)
    return CURVED.plan(MATRICES, dict(zip(names, weights, strict=True)), found)


def weak_inputs(seed):
    """X^T X of 100 weak inputs, (16,16)."""
    x = 0.05 * torch.randn(100, 16, generator=torch.Generator().manual_seed(seed))
    return x.T @ x


def test_inputs_that_are_zero_cost_as_little_as_those_that_nearly_are():
    """Dead units behind an activation: their columns of the next matrix have no curvature."""
    weights = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(1))
    dead, faint = weak_inputs(2), weak_inputs(2)
    for hessian, left in ((dead, 0.0), (faint, 1e-4)):
        hessian[[3, 7, 9]] *= left
        hessian[:, [3, 7, 9]] *= left
    assert conditional(*factorise(dead, 0.01))[[3, 7, 9]].tolist() == [0.0, 0.0, 0.0]
    one, other = (planned(weights, (hessian, weak_inputs(3))) for hessian in (dead, faint))
    for spec in MATRICES:
        torch.testing.assert_close(one[spec.name].rows, other[spec.name].rows, rtol=0.05, atol=0)


def test_rows_of_zeros_leave_the_other_rows_their_steps():
    whole, other = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(1))
    whole[6:] = whole[:6]
    pruned, hessians = whole.clone(), (weak_inputs(2), weak_inputs(3))
    pruned[6:] = 0
    before, after = (planned((weight, other), hessians) for weight in (whole, pruned))
    torch.testing.assert_close(after["one.weight"].rows[:6], before["one.weight"].rows[:6])
    torch.testing.assert_close(after["other.weight"].rows, before["other.weight"].rows)
    nothing = planned((torch.zeros(12, 16), other), hessians)
    torch.testing.assert_close(
        nothing["other.weight"].rows, planned((other, other), hessians[1:] * 2)["other.weight"].rows
    )


def test_rows_that_matter_more_get_finer_steps(known):
    model, found = known
    plans = CURVED.plan(param_specs(model.config), model.state_dict(), found)
    for name, plan in plans.items():
        rows = curvature_of(name, found)[1]
        spread = model.state_dict()[name].std(dim=1)
        relation = torch.corrcoef(torch.stack([(plan.rows / spread).log(), relative(rows).log()]))[0, 1]
        assert relation < -0.99, name
        assert bool((plan.columns == 1).all()) == (name != "tok_emb.weight")


def test_matrices_keep_the_mean_of_their_steps(known):
    """Curvature moves bits between matrices: in the weighted geometric mean steps are what SDClip's would be, but for
    rows inside a matrix."""
    model, found = known
    specs = [spec for spec in param_specs(model.config) if spec.role != CONTROL]
    curved = CURVED.plan(specs, model.state_dict(), found)
    usual = Gptq(rounding="trellis").plan(specs, model.state_dict(), found)
    total = number = 0.0
    for spec in specs:
        if spec.role != "embed":
            rows = relative(curvature_of(spec.name, found)[1]) ** -0.25
            moved = (curved[spec.name].rows / rows / usual[spec.name].rows).log().mean()
            total += spec.numel * float(moved)
            number += spec.numel
    assert abs(total / number) < 1e-9


def test_theta_scales_every_step(known):
    model, found = known
    specs = param_specs(model.config)
    one = CURVED.plan(specs, model.state_dict(), found)
    two = Gptq(steps="curvature", theta=2.0).plan(specs, model.state_dict(), found)
    for name, plan in one.items():
        assert torch.equal(plan.grid(2.0)[0], two[name].grid()[0])
        assert torch.equal(plan.grid()[0] + 16, two[name].grid()[0])


@given(st.floats(0.5, 6.0))
def test_bisection_finds_the_theta_of_a_rate(wanted):
    found = solve_theta(lambda theta: 3.0 - math.log2(theta), wanted)
    assert math.log2(found) == pytest.approx(3.0 - wanted, abs=0.003)


@pytest.mark.parametrize("rounding", ["nearest", "trellis"])
def test_asked_bits_per_weight_are_met(known, rounding):
    model, found = known
    quantizer = Gptq(steps="curvature", rounding=rounding, bits_per_weight=4.0)
    specs = param_specs(model.config)
    plans = quantizer.plan(specs, model.state_dict(), found)
    sizes = {spec.name: spec.numel for spec in specs if spec.name in plans}
    assert bits_at(plans, model.state_dict(), 1.0) / sum(sizes.values()) == pytest.approx(4.0, abs=0.02)
    result = quantize_model(model.config, model.state_dict(), quantizer, plans)
    spent = sum(sizes[name] * entropy(result.tensors[name].codes) for name in plans) / sum(sizes.values())
    assert spent == pytest.approx(4.0, abs=0.2)


def test_a_weight_that_calibration_did_not_see_is_rounded_and_said_so(make_model):
    model = make_model(ModelConfig(**SMALL))
    specs = param_specs(model.config)
    for quantizer, form in ((CURVED, StepTensor), (Gptq(rounding="trellis"), TrellisTensor)):
        plans = quantizer.plan(specs, model.state_dict(), Calibration())
        result = quantize_model(model.config, model.state_dict(), quantizer, plans)
        result.assure_sound("test")
        for spec in specs:
            if spec.role != CONTROL:
                tensor = result.tensors[spec.name]
                assert type(tensor) is form and "rounded" in tensor.warning
                error = (tensor.dequantize() - model.state_dict()[spec.name]).abs()
                assert bool((error <= 1.01 * step_sizes(tensor.scale, tensor.columns)).all())


def test_compensation_lowers_the_curvature_weighted_loss(known):
    """Each step of the recipe against the one before, on the loss that the curvature predicts."""
    model, found = known
    specs = param_specs(model.config)
    losses = {}
    for name, quantizer in {
        "nearest": Gptq(steps="curvature", bits_per_weight=4.0),
        "trellis": Gptq(steps="curvature", rounding="trellis", bits_per_weight=4.0),
        "more states": Gptq(steps="curvature", rounding="trellis", states=64, bits_per_weight=4.0),
    }.items():
        plans = quantizer.plan(specs, model.state_dict(), found)
        result = quantize_model(model.config, model.state_dict(), quantizer, plans)
        losses[name] = 0.0
        for weight, tensor in result.weights().items():
            if weight in plans:
                hessian, rows = curvature_of(weight, found)
                error = tensor - model.state_dict()[weight]
                losses[name] += float((error @ hessian * error).sum(1) @ rows)
    assert losses["trellis"] < 0.9 * losses["nearest"]
    assert losses["more states"] < losses["trellis"] * 1.02


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": "rows"},
        {"rounding": "up"},
        {"rounding": "trellis", "states": 16},
        {"calibration_source": "val"},
        {"theta": 0.0, "steps": "curvature"},
        {"theta": -1.5},
        {"bits_per_weight": 3.4},
        {"bits_per_weight": -1.0, "steps": "curvature"},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError, match="must"):
        Gptq(**settings)
