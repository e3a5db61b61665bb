"""Optimizers and schedules do what the records' do, and a restored optimizer continues bit for bit."""

import json

import numpy as np
import pytest
import torch

from pgolf.core.dist import World
from pgolf.core.errors import ConfigError
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.gpt import GPT
from pgolf.core.model.params import MATRIX, SCALAR, TOKEN
from pgolf.core.model.parts.relu2 import Relu2
from pgolf.core.model.parts.tanh_softcap import TanhSoftcap
from pgolf.core.optim.config import OptimConfig
from pgolf.core.optim.muon import POLAR_EXPRESS, Muon, Stepped, orthogonalise
from pgolf.core.optim.optimizers import Optimizers
from pgolf.core.optim.schedules import FractionWarmdown, IterationWarmdown, Progress
from pgolf.core.tensorfile import load_tensors, save_tensors

SHAPES = ("square", "tall", "wide", "tiny")


def orthogonalised(matrix, *options, **more):
    """One matrix, or several of one shape."""
    found = orthogonalise(matrix.reshape(-1, *matrix.shape[-2:]), *options, **more)
    return found.view(matrix.shape)


def batch(model, step):
    """Inputs and targets of one step."""
    generator = torch.Generator().manual_seed(1000 + step)
    ids = torch.randint(0, model.config.vocab_size, (2, 17), generator=generator)
    return ids[:, :-1], ids[:, 1:]


def train(model, optimizers, steps, lr_scale=1.0):
    """Run the numbered steps."""
    for step in steps:
        model(*batch(model, step)).backward()
        optimizers.step(step, lr_scale)


# Orthogonalisation


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [3, 5, 10])
def test_newton_schulz_float32_golden(oracle, shape, steps):
    data = oracle("unit_orth.npz")
    result = orthogonalised(torch.from_numpy(data[f"g_{shape}"]), steps, bfloat16=False)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), data[f"ns{steps}_f32_{shape}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_bfloat16_golden(oracle, shape):
    data = oracle("unit_orth.npz")
    allowed = 2 * json.loads(str(data["meta"]))["measured"][f"ns5_{shape}"]["bf16_vs_f64"]
    result = orthogonalised(torch.from_numpy(data[f"g_{shape}"]), 5)
    assert result.dtype == torch.bfloat16
    np.testing.assert_allclose(result.float().numpy(), data[f"ns5_bf16_{shape}"], rtol=0, atol=allowed)


@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)])
def test_five_steps_make_a_matrix_nearly_semi_orthogonal(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalised(1000 * matrix, 5, bfloat16=False))
    assert 0.6 < float(values.min()) < float(values.max()) < 1.3


@pytest.mark.parametrize("shape", [(3, 20, 36), (4, 36, 20)])
def test_a_batch_is_its_matrices_one_by_one(shape):
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    alone = torch.stack([orthogonalised(matrix, 5, bfloat16=False) for matrix in stack])
    torch.testing.assert_close(orthogonalised(stack, 5, bfloat16=False), alone, rtol=0, atol=1e-5)


def test_a_zero_gradient_stays_zero():
    assert not orthogonalised(torch.zeros(8, 12), 5).any()


# Muon


def muon_step(muon, weights, grads, buffers, lr_scale, step):
    """One step of Muon on weights (R,C) with these gradients and momentum buffers, all in place."""
    held = [Stepped(weight, {"momentum": buffer}) for weight, buffer in zip(weights, buffers, strict=True)]
    for one, update in zip(held, muon.updates(held, grads, step), strict=True):
        muon.move(one, update, lr_scale, 1.0)


def run_muon(data, case, muon):
    """Weights and buffers after each of the three golden steps."""
    weight, buffer = torch.from_numpy(data[f"{case}.w0"].copy()), torch.zeros(data[f"{case}.w0"].shape)
    history = []
    for step, grad in enumerate(torch.from_numpy(data[f"{case}.grads"])):
        muon_step(muon, [weight], [grad], [buffer], float(data["lr"][step] / data["lr"][0]), step)
        history.append((weight.numpy().copy(), buffer.numpy().copy()))
    return history


@pytest.mark.parametrize("case", ["base_tall", "base_wide"])
def test_muon_golden(oracle, case):
    data = oracle("unit_muon.npz")
    allowed = json.loads(str(data["meta"]))["tolerance"]
    muon = Muon(lr=float(data["lr"][0]), momentum=0.95, momentum_start=0.85, momentum_warmup_steps=2)
    assert [muon.momentum_at(step) for step in range(3)] == pytest.approx(data["momentum"].tolist(), abs=1e-12)
    for step, (weight, buffer) in enumerate(run_muon(data, case, muon)):
        wanted = data[f"{case}.weights"][step]
        np.testing.assert_allclose(buffer, data[f"{case}.buffers"][step], rtol=0, atol=allowed["buffers_f32_abs"])
        np.testing.assert_allclose(weight, wanted, rtol=0, atol=allowed["bf16_weights_abs"])
        moved = np.linalg.norm(wanted - data[f"{case}.w0"])
        assert np.linalg.norm(weight - wanted) / moved < allowed["bf16_update_rel"]


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("eqr_tall", {"rows": "l2", "weight_decay": 0.085}),
        ("eqr_wide", {"rows": "l2", "weight_decay": 0.085}),
        ("eqr_square", {"rows": "l2", "weight_decay": 0.085}),
        ("eqrf32_tall", {"rows": "l2", "weight_decay": 0.085, "bfloat16": False}),
        ("eqrf32_wide", {"rows": "l2", "weight_decay": 0.085, "bfloat16": False}),
        ("neomuon_tall", {"rows": "rms", "weight_decay": 0.05}),
    ],
)
def test_muon_with_even_rows_golden(oracle, case, options):
    data = oracle("unit_muon.npz")
    allowed = json.loads(str(data["meta"]))["tolerance"]
    muon = Muon(lr=float(data["lr"][0]), momentum=0.95, momentum_start=0.85, momentum_warmup_steps=2, **options)
    bound = allowed["bf16_weights_abs"] if muon.bfloat16 else allowed["f32_abs"]
    for step, (weight, buffer) in enumerate(run_muon(data, case, muon)):
        np.testing.assert_allclose(buffer, data[f"{case}.buffers"][step], rtol=0, atol=allowed["buffers_f32_abs"])
        np.testing.assert_allclose(weight, data[f"{case}.weights"][step], rtol=0, atol=bound)


@pytest.mark.parametrize("case", ["bank_tall", "bank_wide"])
def test_muon_of_a_bank_golden(oracle, case):
    data = oracle("unit_muon.npz")
    allowed = json.loads(str(data["meta"]))["tolerance"]
    options = {"coefficients": "polar", "rows": "l2", "weight_decay": 0.095}
    muon = Muon(lr=float(data["lr"][0]), momentum=0.95, momentum_start=0.85, momentum_warmup_steps=2, **options)
    for index in range(len(data[f"{case}.w0"])):
        cut = {key: data[f"{case}.{key}"] for key in ("w0", "grads", "weights", "buffers")}
        one = {f"{case}.w0": cut["w0"][index], **{f"{case}.{key}": cut[key][:, index] for key in list(cut)[1:]}}
        for step, (weight, _) in enumerate(run_muon({**data, **one}, case, muon)):
            np.testing.assert_allclose(weight, one[f"{case}.weights"][step], rtol=0, atol=allowed["bf16_weights_abs"])


@pytest.mark.parametrize("steps", [3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_polar_express_golden(oracle, shape, steps):
    data = oracle("unit_orth.npz")
    result = orthogonalised(torch.from_numpy(data[f"g_{shape}"]), steps, False, POLAR_EXPRESS)
    np.testing.assert_allclose(result.numpy(), data[f"polar{steps}_f32_{shape}"], rtol=0, atol=1e-4)


def test_muon_decays_weights_apart_from_the_gradient():
    weight, zero = torch.ones(6, 4), torch.zeros(6, 4)
    muon_step(Muon(lr=0.1, weight_decay=0.5), [weight], [zero.clone()], [zero.clone()], 0.5, 0)
    torch.testing.assert_close(weight, torch.full((6, 4), 1 - 0.1 * 0.5 * 0.5))


def test_muon_first_step_is_the_scaled_orthogonal_gradient():
    grad = torch.randn(48, 12, generator=torch.Generator().manual_seed(3))
    weight = torch.zeros(48, 12)
    muon_step(Muon(lr=0.1, bfloat16=False), [weight], [grad], [torch.zeros(48, 12)], 1.0, 0)
    torch.testing.assert_close(weight, -0.1 * 2.0 * orthogonalised(grad, 5, bfloat16=False), rtol=0, atol=1e-6)


def test_muon_momentum_is_nesterov():
    muon = Muon(lr=0.1, momentum=0.9, momentum_start=0.5, momentum_warmup_steps=2, bfloat16=False)
    grads = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(5))
    weight, buffer, expected, memory = (torch.zeros(8, 12) for _ in range(4))
    for step, (grad, momentum) in enumerate(zip(grads, (0.5, 0.7, 0.9), strict=True)):
        muon_step(muon, [weight], [grad.clone()], [buffer], 1.0, step)
        memory = momentum * memory + grad
        expected = expected - 0.1 * orthogonalised(grad + momentum * memory, 5, bfloat16=False)
        torch.testing.assert_close(buffer, memory, rtol=0, atol=1e-6)
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-5)


# Whole optimizer


def test_three_training_steps_golden(oracle):
    data = oracle("baseline_train3.npz")
    allowed = json.loads(str(data["meta"]))["tolerance"]
    sizes = {
        key: int(data[f"cfg_{key}"]) for key in ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads")
    }
    config = ModelConfig(
        **sizes,
        mlp=Relu2(mult=float(data["cfg_mlp_mult"])),
        logit_softcap=TanhSoftcap(cap=float(data["cfg_logit_softcap"])),
    )
    model = GPT(config)
    model.load_state_dict({spec.name: torch.from_numpy(data[f"init.{spec.name}"]) for spec in param_specs(config)})
    optimizers = Optimizers(model, OptimConfig(), World())
    losses = []
    for step in range(4):
        loss = model(torch.from_numpy(data["input_ids"][step]), torch.from_numpy(data["target_ids"][step]))
        losses.append(float(loss.detach()))
        if step < 3:
            assert optimizers.config.matrix.momentum_at(step) == pytest.approx(float(data["momentum"][step]), abs=1e-12)
            loss.backward()
            optimizers.step(step, float(data["lr_scale"][step]))
    for step, (loss, wanted) in enumerate(zip(losses, data["losses"], strict=True)):
        assert loss == pytest.approx(float(wanted), abs=allowed["losses_abs"][step])
    for spec in param_specs(config):
        wanted, start = data[f"final.{spec.name}"], data[f"init.{spec.name}"]
        gap = np.linalg.norm(model.state_dict()[spec.name].numpy() - wanted) / np.linalg.norm(wanted - start)
        assert gap < allowed["matrix_update_rel" if spec.group == MATRIX else "other_update_rel"], spec.name


def test_adam_groups_equal_torch_adamw(tiny_model):
    config = OptimConfig(token_lr=0.02, scalar_lr=0.01, token_weight_decay=0.1, scalar_weight_decay=0.05, beta2=0.9)
    twins = {name: weight.detach().clone().requires_grad_() for name, weight in tiny_model.named_parameters()}
    rates = {TOKEN: (0.02, 0.1), SCALAR: (0.01, 0.05)}
    reference = {
        spec.name: torch.optim.AdamW([twins[spec.name]], lr=lr, betas=(0.9, 0.9), eps=1e-8, weight_decay=decay)
        for spec in param_specs(tiny_model.config)
        for group, (lr, decay) in rates.items()
        if spec.group == group
    }
    optimizers = Optimizers(tiny_model, config, World())
    for step, scale in enumerate((1.0, 0.5, 0.25)):
        tiny_model(*batch(tiny_model, step)).backward()
        for name, adam in reference.items():
            twins[name].grad = dict(tiny_model.named_parameters())[name].grad.clone()
            adam.param_groups[0]["lr"] = rates[TOKEN if name == "tok_emb.weight" else SCALAR][0] * scale
            adam.step()
        optimizers.step(step, scale)
    assert len(reference) == 2 + 4 * tiny_model.config.num_layers
    for name, weight in tiny_model.named_parameters():
        assert name not in reference or torch.equal(weight, twins[name]), name


def test_a_step_clears_the_gradients(tiny_model):
    optimizers = Optimizers(tiny_model, OptimConfig(), World())
    train(tiny_model, optimizers, [0])
    assert [weight.grad for weight in tiny_model.parameters()] == [None] * len(list(tiny_model.parameters()))


def test_a_zero_rate_moves_nothing(tiny_model):
    before = {name: weight.clone() for name, weight in tiny_model.state_dict().items()}
    train(tiny_model, Optimizers(tiny_model, OptimConfig(), World()), range(2), lr_scale=0.0)
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_model.state_dict().items())


def test_gradient_clipping_scales_the_whole_gradient(tiny_config, make_model):
    norms, moments = {}, {}
    for clip in (0.0, 0.5):
        model = make_model(tiny_config)
        optimizers = Optimizers(model, OptimConfig(grad_clip=clip), World())
        model(*batch(model, 0)).backward()
        true_norm = float(torch.cat([weight.grad.flatten() for weight in model.parameters()]).norm())
        optimizers.step(0, 1.0)
        norms[clip] = float(optimizers.norm)
        moments[clip] = optimizers.state()["exp_avg.tok_emb.weight"]
    assert true_norm > 0.5
    assert norms[0.0] == 0.0
    assert norms[0.5] == pytest.approx(true_norm, rel=1e-5)
    torch.testing.assert_close(moments[0.5], moments[0.0] * (0.5 / true_norm), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_restored_state_continues_bit_for_bit(tmp_path, make_model, layers):
    config = ModelConfig(vocab_size=60, num_layers=layers, model_dim=16, num_heads=2, num_kv_heads=1)
    optim = OptimConfig(matrix=Muon(momentum_warmup_steps=4), grad_clip=1.0, token_weight_decay=0.01)
    model = make_model(config)
    optimizers = Optimizers(model, optim, World())
    train(model, optimizers, range(3))
    save_tensors(tmp_path / "state", {**optimizers.state(), **model.state_dict(prefix="w.")}, {"schema": "state/1"})
    train(model, optimizers, range(3, 6))

    twin = GPT(config, seed=99)
    other = Optimizers(twin, optim, World())
    stored, _, _ = load_tensors(tmp_path / "state", "state/1")
    twin.load_state_dict({name.removeprefix("w."): value for name, value in stored.items() if name.startswith("w.")})
    other.load(stored)
    train(twin, other, range(3, 6))
    assert all(torch.equal(weight, twin.state_dict()[name]) for name, weight in model.state_dict().items())
    assert all(torch.equal(value, other.state()[name]) for name, value in optimizers.state().items())


def test_loading_an_incomplete_state_fails(tiny_model):
    optimizers = Optimizers(tiny_model, OptimConfig(), World())
    train(tiny_model, optimizers, [0])
    state = optimizers.state()
    del state["momentum.blocks.1.mlp.fc.weight"]
    with pytest.raises(KeyError, match=r"momentum\.blocks\.1\.mlp\.fc\.weight"):
        optimizers.load(state)


# Schedules


@pytest.mark.parametrize(
    ("key", "schedule"),
    [
        ("lr_mul_1394", FractionWarmdown(frac=0.667)),
        ("lr_mul_1493", FractionWarmdown(frac=0.72)),
        ("lr_mul_1855", FractionWarmdown(frac=0.85, min_lr=0.10)),
        ("lr_mul_1855_code_default", FractionWarmdown(frac=0.75)),
    ],
)
def test_fraction_warmdown_golden(oracle, key, schedule):
    data = oracle("unit_schedules.npz")
    by_clock = [schedule.scale(Progress(0, 10, float(frac), 1.0)) for frac in data["frac"]]
    by_steps = [schedule.scale(Progress(step, 100, 0.0, 0.0)) for step in range(101)]
    np.testing.assert_allclose(by_clock, data[key], rtol=0, atol=1e-12)
    np.testing.assert_allclose(by_steps, data[key], rtol=0, atol=1e-12)


@pytest.mark.parametrize("budget_s", [600, 60])
def test_iteration_warmdown_with_a_clock_golden(oracle, budget_s):
    data = oracle("unit_schedules.npz")
    pairs = zip(data["wd_step"], data["wd_elapsed_ms"], strict=True)
    result = [IterationWarmdown().scale(Progress(int(step), 20000, float(ms) / 1000, budget_s)) for step, ms in pairs]
    np.testing.assert_allclose(result, data[f"wd_mult_clock{budget_s}s"], rtol=0, atol=1e-12)


def test_iteration_warmdown_without_a_clock_golden(oracle):
    data = oracle("unit_schedules.npz")
    result = [IterationWarmdown().scale(Progress(int(step), 20000, 1e9, 0.0)) for step in data["wd_step_noclock"]]
    taken = data["wd_step_noclock"] < 20000  # no step is taken at 20000; upstream's formula jumps back to 1 there
    assert taken.sum() == 6
    np.testing.assert_allclose(np.array(result)[taken], data["wd_mult_noclock"][taken], rtol=0, atol=1e-12)
    assert np.array(result)[~taken].tolist() == [0.0]


@pytest.mark.parametrize(
    ("key", "muon"),
    [
        ("muon_momentum_baseline", Muon()),
        ("muon_momentum_1394", Muon(momentum=0.99, momentum_start=0.92, momentum_warmup_steps=1500)),
    ],
)
def test_momentum_schedule_golden(oracle, key, muon):
    data = oracle("unit_schedules.npz")
    np.testing.assert_allclose([muon.momentum_at(int(step)) for step in data["step"]], data[key], rtol=0, atol=1e-12)


def test_edges_of_the_schedules():
    over = Progress(30, 20, 700.0, 600.0)
    assert over.fraction == 1.0
    assert FractionWarmdown().scale(over) == 0.0
    assert FractionWarmdown(frac=0.0).scale(over) == 1.0
    assert FractionWarmdown(frac=1.0, min_lr=0.2).scale(over) == 0.2
    assert IterationWarmdown().scale(over) == 0.0
    assert IterationWarmdown(iters=0).scale(over) == 1.0
    assert Muon(momentum_warmup_steps=0).momentum_at(0) == 0.95


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: OptimConfig(token_lr=-0.1), "optim.token_lr"),
        (lambda: OptimConfig(grad_clip=-1.0), "optim.grad_clip"),
        (lambda: OptimConfig(beta2=1.0), "optim"),
        (lambda: OptimConfig(eps=0.0), "optim"),
        (lambda: Muon(momentum=1.0), "optim.matrix"),
        (lambda: Muon(ns_steps=0), "optim.matrix"),
        (lambda: IterationWarmdown(iters=-1), "optim.warmdown.iters"),
        (lambda: FractionWarmdown(frac=1.5), "optim.warmdown"),
    ],
)
def test_impossible_settings_are_refused(make, key):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.where in (key.rpartition(".")[2], "")


@pytest.mark.parametrize("bad", [{"momentum_warmup_steps": -1}, {"momentum_start": 1.5}, {"momentum_start": -0.1}])
def test_an_impossible_momentum_warmup_is_refused(bad):
    with pytest.raises(ConfigError):
        Muon(**bad)
