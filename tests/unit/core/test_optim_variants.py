"""Variants of the optimizers: each equals an independent computation, changes only what it names, and resumes."""

import dataclasses
import math

import pytest
import torch

from pgolf.config.load import resolve
from pgolf.core.dist import World
from pgolf.core.errors import ConfigError
from pgolf.core.model.config import ModelConfig
from pgolf.core.model.gpt import GPT
from pgolf.core.optim.config import NORMS, OptimConfig, caution
from pgolf.core.optim.decay import RampDecay, TaperDecay
from pgolf.core.optim.muon import (
    POLAR_EXPRESS,
    QUINTIC,
    Muon,
    NorMuon,
    Stepped,
    gram_newton_schulz,
    orthogonalise,
    symmetric_product,
)
from pgolf.core.optim.optimizers import Optimizers
from pgolf.core.optim.parallel import Replicated
from pgolf.core.optim.rates import RateByRole
from pgolf.core.optim.schedules import Progress, Unscaled
from pgolf.core.tensorfile import load_tensors, save_tensors
from pgolf.report.touched import touched

FOUR_HEADS = ModelConfig(vocab_size=60, num_layers=2, model_dim=32, num_heads=4, num_kv_heads=2)


def orthogonalised(matrix, *options, **more):
    """One matrix, or several of one shape."""
    found = orthogonalise(matrix.reshape(-1, *matrix.shape[-2:]), *options, **more)
    return found.view(matrix.shape)


def gaussian(*shape, seed=0):
    """A seeded Gaussian tensor."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def take(muon, weights, grads, steps=1, decay=1.0, **more):
    """Step copies of the weights (R,C) by the same gradients a few times; returns them as `Stepped`."""
    held = [Stepped(weight.clone(), muon.memory(weight), **more) for weight in weights]
    for step in range(steps):
        for one, update in zip(held, muon.updates(held, grads, step), strict=True):
            muon.move(one, update, 1.0, decay)
    return held


def grads_of(model, step):
    """Set the gradients of a numbered batch."""
    generator = torch.Generator().manual_seed(100 + step)
    ids = torch.randint(0, model.config.vocab_size, (2, 17), generator=generator)
    model(ids[:, :-1], ids[:, 1:]).backward()


def lively(config=FOUR_HEADS):
    """A model in which every matrix has a gradient from the first step on."""
    model = GPT(config, 3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".proj.weight"):
                weight.copy_(0.1 * gaussian(*weight.shape))
    return model


def trained(optim, steps=1, config=FOUR_HEADS, lr_scale=1.0):
    """The state dict of a model after some steps under a configuration."""
    model = lively(config)
    optimizers = Optimizers(model, optim, World())
    for step in range(steps):
        grads_of(model, step)
        optimizers.step(step, lr_scale)
    return {name: weight.clone() for name, weight in model.state_dict().items()}


# Orthogonalisation


@pytest.mark.parametrize(
    ("steps", "table", "low", "high"),
    [(5, QUINTIC, 0.68, 1.14), (5, POLAR_EXPRESS, 0.85, 1.15), (3, QUINTIC, 0.68, 1.21)],
)
@pytest.mark.parametrize("shape", [(32, 64), (96, 24), (48, 192)])
def test_singular_values_of_gaussian_matrices_end_within_published_bounds(steps, table, low, high, shape):
    for seed in range(3):
        values = torch.linalg.svdvals(orthogonalised(gaussian(*shape, seed=seed), steps, False, table))
        assert low - 0.02 <= float(values.min()) and float(values.max()) <= high + 0.02


def plain_loop(matrix, steps, table):
    """The iteration in the matrix's dtype, one operation after the other."""
    x = matrix / (matrix.norm() + 1e-7)
    x = x.T if x.size(0) > x.size(1) else x
    for step in range(steps):
        a, b, c = table[min(step, len(table) - 1)]
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.size(0) > matrix.size(1) else x


@pytest.mark.parametrize("table", [QUINTIC, POLAR_EXPRESS])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (3, 24, 40), (3, 24, 60), (600, 280), (300, 280)])
def test_gram_form_is_the_standard_form(shape, steps, table):
    matrix = gaussian(*shape, seed=steps)
    standard = orthogonalised(matrix, steps, False, table)
    torch.testing.assert_close(
        orthogonalised(matrix, steps, False, table, gram_newton_schulz), standard, rtol=0, atol=2e-4
    )
    rounded = orthogonalised(matrix, steps, True, table, gram_newton_schulz)
    assert rounded.dtype == torch.bfloat16
    assert float((rounded - standard).norm() / standard.norm()) < (0.05 if shape[-1] < 256 else 0.06)


@pytest.mark.parametrize("table", [QUINTIC, POLAR_EXPRESS])
@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_gram_form_in_bfloat16_is_near_the_plain_loop(power, table):
    left, _, right = torch.linalg.svd(gaussian(96, 384), full_matrices=False)
    matrix = left * torch.arange(1, 97) ** -power @ right
    exact = plain_loop(matrix.double(), 5, table)
    loop, gram = plain_loop(matrix.bfloat16(), 5, table), orthogonalised(matrix, 5, True, table, gram_newton_schulz)
    assert float((gram - exact).norm()) < 2 * float((loop - exact).norm())
    assert float(torch.linalg.svdvals(gram.float()).max()) < 1.3


def test_large_matrices_are_taken_apart_on_a_cpu_and_step_alike():
    shapes = [(300, 620), (620, 300), (280, 280)]
    for shape in shapes:
        weights, grads = ([gaussian(*shape, seed=seed + i) for i in range(2)] for seed in (0, 9))
        gram, plain = (take(Muon(bfloat16=False, iteration=way), weights, grads) for way in ("gram", "standard"))
        for one, two in zip(gram, plain):
            torch.testing.assert_close(one.weight, two.weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [5, 256, 257, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_symmetric_product_is_the_product(rows, dtype):
    x, base = gaussian(rows, 40).to(dtype), gaussian(rows, rows, seed=1).to(dtype)
    base = base + base.T
    near = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-4}
    found = symmetric_product(base, x, x.T, 0.5, -2.0)
    assert torch.equal(found[256:, :256], found[:256, 256:].T)
    torch.testing.assert_close(found.double(), 0.5 * base.double() - 2 * x.double() @ x.double().T, **near)
    nothing = torch.full_like(base, float("nan"))
    for alone in (
        symmetric_product(nothing, x, x.T, 0.0, 1.0),
        symmetric_product(nothing[None], x[None], x.T[None], 0.0, 1.0)[0],
    ):
        torch.testing.assert_close(alone.double(), x.double() @ x.double().T, **near)


def test_gram_form_in_golden_tolerance(oracle):
    data = oracle("unit_orth.npz")
    for shape in ("tall", "wide"):
        result = orthogonalised(torch.from_numpy(data[f"g_{shape}"]), 5, False, QUINTIC, gram_newton_schulz)
        torch.testing.assert_close(result, torch.from_numpy(data[f"ns5_f32_{shape}"]), rtol=0, atol=1e-4)


def test_matrices_that_are_nearly_square_keep_the_standard_form():
    square, oblong, wide = gaussian(1, 24, 24), gaussian(1, 18, 24), gaussian(1, 11, 24)
    standard, gram = Muon(bfloat16=False), Muon(bfloat16=False, iteration="gram")
    assert torch.equal(gram.direction(square), standard.direction(square))
    assert torch.equal(gram.direction(oblong), standard.direction(oblong))
    assert not torch.equal(gram.direction(wide), standard.direction(wide))


@pytest.mark.parametrize("options", [{}, {"rows": "l2", "coefficients": "polar"}, {"iteration": "gram"}])
@pytest.mark.parametrize("shape", [(32, 32), (16, 32), (48, 32)])
def test_pairs_of_heads_are_orthogonalised_apart(shape, options):
    grads = gaussian(3, *shape)
    pairs = shape[0] // 16
    plain = Muon(bfloat16=False, **options)
    wanted = torch.stack([torch.cat([plain.direction(one[None])[0] for one in grad.chunk(pairs)]) for grad in grads])
    found = Muon(bfloat16=False, paired_heads=True, **options).direction(grads, pairs)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_paired_heads_change_queries_and_keys_only():
    plain = trained(OptimConfig(matrix=Muon(bfloat16=False)))
    paired = trained(OptimConfig(matrix=Muon(bfloat16=False, paired_heads=True)))
    differ = {name.split(".", 2)[-1] for name in plain if not torch.allclose(plain[name], paired[name], atol=1e-5)}
    assert differ == {"attn.c_q.weight"}, "two key heads are one pair, which is the whole matrix"
    more = dataclasses.replace(FOUR_HEADS, num_kv_heads=4)
    plain, paired = (
        trained(OptimConfig(matrix=Muon(bfloat16=False, paired_heads=value)), config=more) for value in (False, True)
    )
    differ = {name.split(".", 2)[-1] for name in plain if not torch.allclose(plain[name], paired[name], atol=1e-5)}
    assert differ == {"attn.c_q.weight", "attn.c_k.weight"}


def test_the_shape_factor_of_pairs_is_that_of_the_matrix():
    tall = gaussian(64, 16)
    (one,) = take(Muon(lr=1.0, bfloat16=False, paired_heads=True), [torch.zeros(64, 16)], [tall], blocks=4)
    wanted = -2.0 * torch.cat([orthogonalised(block, 5, False) for block in tall.chunk(4)])
    torch.testing.assert_close(one.weight, wanted, rtol=0, atol=1e-5)


def test_an_odd_head_cannot_be_paired():
    odd = dataclasses.replace(FOUR_HEADS, num_kv_heads=1)
    with pytest.raises(ConfigError, match=r"odd number of heads, 1 \(optim\.matrix\.paired_heads\)"):
        Optimizers(GPT(odd), OptimConfig(matrix=Muon(paired_heads=True)), World())


# NorMuon


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_normuon_is_its_formula(shape):
    muon = NorMuon(lr=0.1, beta2=0.9, bfloat16=False, momentum_warmup_steps=0, momentum=0.5)
    start, grads = gaussian(*shape, seed=1), gaussian(4, *shape, seed=2)
    one = Stepped(start.clone(), muon.memory(start))
    expected, buffer = start.double(), torch.zeros(shape).double()
    axis = 1 if shape[0] >= shape[1] else 0
    mean = torch.zeros(shape[1 - axis]).double()
    for step, grad in enumerate(grads):
        muon.move(one, muon.updates([one], [grad], step)[0], 1.0, 1.0)
        buffer = 0.5 * buffer + grad
        plain = orthogonalised((grad + 0.5 * buffer).float(), 5, False).double()
        mean = 0.9 * mean + 0.1 * (plain**2).mean(dim=axis)
        even = plain / mean.clamp_min(1e-10).sqrt().unsqueeze(axis)
        even *= plain.norm() / even.norm()
        expected -= 0.1 * max(1.0, shape[0] / shape[1]) ** 0.5 * even
    torch.testing.assert_close(one.weight.double(), expected, rtol=0, atol=1e-5)
    assert one.memory["second_moment"].shape == ((shape[0], 1) if axis else (1, shape[1]))


def test_normuon_keeps_the_length_of_updates_and_evens_out_their_rows():
    start, grad = torch.zeros(64, 16), gaussian(64, 16) * torch.linspace(0.1, 3, 64)[:, None]
    (plain,) = take(Muon(lr=1.0, bfloat16=False), [start], [grad])
    (even,) = take(NorMuon(lr=1.0, bfloat16=False), [start], [grad])
    assert float(even.weight.norm()) == pytest.approx(float(plain.weight.norm()), rel=1e-5)
    assert float(even.weight.norm(dim=1).std()) < 0.01 * float(plain.weight.norm(dim=1).std())


@pytest.mark.parametrize("muon", [Muon(bfloat16=False), NorMuon(bfloat16=False, rows="l2", weight_decay=0.1)])
def test_a_batch_steps_as_its_matrices_one_by_one(muon):
    weights, grads = list(gaussian(3, 24, 16, seed=3)), list(gaussian(3, 24, 16, seed=4))
    together = take(muon, weights, grads, steps=2)
    for one, weight, grad in zip(together, weights, grads, strict=True):
        (alone,) = take(muon, [weight], [grad], steps=2)
        torch.testing.assert_close(one.weight, alone.weight, rtol=0, atol=1e-5)


# Decay


def test_cautious_decay_acts_where_update_and_weight_agree():
    weight, grad = gaussian(24, 16, seed=5), gaussian(24, 16, seed=6)
    weight[0, 0] = 0.0
    options = {"lr": 0.1, "weight_decay": 0.5, "bfloat16": False}
    (none,) = take(Muon(lr=0.1, bfloat16=False), [weight], [grad])
    (cautious,) = take(Muon(**options, cautious_decay=True), [weight], [grad])
    (all_of_it,) = take(Muon(**options), [weight], [grad])
    agree = (weight - none.weight) * weight >= 0
    assert 0.3 < float(agree.float().mean()) < 0.7
    torch.testing.assert_close(cautious.weight, torch.where(agree, all_of_it.weight, none.weight), rtol=0, atol=1e-6)
    torch.testing.assert_close(none.weight - all_of_it.weight, 0.05 * weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "matrices", "others"),
    [
        (Unscaled(), [1] * 8, [1] * 8),
        (TaperDecay(), [1, 1, 1, 1, 1, 0.75, 1 - 0.5 * 0.29 / 0.3, 0.5], [1] * 8),
        (RampDecay(), [1, 1, 1, 1 - 0.35 * 0.1 / 0.45, 1 - 0.35 * 0.3 / 0.45, 0.65, 1.5 - 0.85 / 15, 1.5], None),
    ],
)
def test_decay_schedules_at_given_fractions(schedule, matrices, others):
    found = [schedule.scales(Progress(0, 9, f, 1.0)) for f in (0, 0.15, 0.35, 0.5, 0.7, 0.85, 0.99, 1)]
    assert [one for one, _ in found] == pytest.approx(matrices, abs=1e-12)
    assert [two for _, two in found] == pytest.approx(others or matrices, abs=1e-12)


def test_decay_scales_reach_matrices_and_the_rest():
    optim = OptimConfig(matrix=Muon(lr=0.1, weight_decay=0.5), token_lr=0.1, token_weight_decay=0.5, scalar_lr=0.0)
    moved = {}
    for decay in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5)):
        model = GPT(FOUR_HEADS, 3)
        optimizers = Optimizers(model, optim, World())
        grads_of(model, 0)
        optimizers.step(0, 1.0, decay)
        moved[decay] = {name: weight.clone() for name, weight in model.state_dict().items()}
    start = GPT(FOUR_HEADS, 3).state_dict()
    for name, weight in moved[1.0, 1.0].items():
        back = 0.025 * start[name]
        matrix, token = name.startswith("blocks.") and name.endswith(".weight"), name == "tok_emb.weight"
        torch.testing.assert_close(moved[0.5, 1.0][name], weight + back * matrix, rtol=0, atol=1e-6)
        torch.testing.assert_close(moved[1.0, 0.5][name], weight + back * token, rtol=0, atol=1e-6)


# Rates


@pytest.mark.parametrize(
    ("key", "ends"),
    [
        ("q", ("attn.c_q.weight",)),
        ("k", ("attn.c_k.weight",)),
        ("v", ("attn.c_v.weight",)),
        ("o", ("attn.proj.weight",)),
        ("up", ("mlp.fc.weight",)),
        ("down", ("mlp.proj.weight",)),
        ("embed", ("tok_emb.weight",)),
    ],
)
def test_a_role_has_its_own_rate_and_the_others_keep_theirs(key, ends):
    optim = OptimConfig(matrix=Muon(bfloat16=False))
    usual, start = trained(optim), lively().state_dict()
    scaled = trained(dataclasses.replace(optim, lr_scale=RateByRole(**{key: 0.5})))
    for name, weight in usual.items():
        factor = 0.5 if name.endswith(ends) else 1.0
        torch.testing.assert_close(scaled[name] - start[name], factor * (weight - start[name]), rtol=1e-4, atol=1e-6)
    assert all(not torch.equal(weight, start[name]) for name, weight in usual.items() if "weight" in name)


def test_an_untied_head_has_its_rate():
    rates = RateByRole(head=0.25, early=0.5, early_layers=2, q=3.0)
    assert rates.factor("lm_head.weight") == 0.25
    assert rates.factor("blocks.1.attn.c_q.weight") == 1.5 and rates.factor("blocks.2.attn.c_q.weight") == 3.0
    assert rates.factor("blocks.0.attn.q_gain") == rates.factor("skip_weights") == 1.0
    assert rates.factor("blocks.10.mlp.fc.weight") == 1.0


def test_early_layers_have_the_published_rates():
    optim = OptimConfig(matrix=Muon(lr=0.03), lr_scale=RateByRole(early=0.025 / 0.03, early_layers=5))
    config = dataclasses.replace(FOUR_HEADS, num_layers=7)
    held = Optimizers(GPT(config), optim, World()).matrices
    rates = {name: round(0.03 * one.rate, 6) for name, one in held.items()}
    assert {rate for name, rate in rates.items() if int(name.split(".")[1]) < 5} == {0.025}
    assert {rate for name, rate in rates.items() if int(name.split(".")[1]) >= 5} == {0.03}


def test_adam_groups_with_own_rates_follow_the_schedule():
    optim = OptimConfig(token_lr=0.2, token_weight_decay=0.1, lr_scale=RateByRole(embed=0.5))
    model = GPT(FOUR_HEADS, 3)
    twin = model.tok_emb.weight.detach().clone().requires_grad_()
    adam = torch.optim.AdamW([twin], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    optimizers = Optimizers(model, optim, World())
    for step, scale in enumerate((1.0, 0.3)):
        grads_of(model, step)
        twin.grad = model.tok_emb.weight.grad.clone()
        adam.param_groups[0]["lr"] = 0.2 * 0.5 * scale
        adam.step()
        optimizers.step(step, scale)
    torch.testing.assert_close(model.tok_emb.weight, twin, rtol=0, atol=1e-7)


# Adam every n-th step


@pytest.mark.parametrize("every", [2, 3])
def test_adam_steps_with_the_mean_of_its_gradients(every):
    model = GPT(FOUR_HEADS, 3)
    optimizers = Optimizers(model, OptimConfig(adam_every=every, token_weight_decay=0.1), World())
    others = dict(optimizers.others)
    twins = {name: weight.detach().clone().requires_grad_() for name, weight in others.items()}
    token = [twins.pop("tok_emb.weight")]
    groups = [{"params": token, "lr": 0.05, "weight_decay": 0.1}]
    groups += [{"params": list(twins.values()), "lr": 0.04, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    twins["tok_emb.weight"] = token[0]
    for turn in range(2):
        seen = []
        for part in range(every):
            before = {name: weight.detach().clone() for name, weight in others.items()}
            grads_of(model, every * turn + part)
            seen.append({name: weight.grad.clone() for name, weight in others.items()})
            optimizers.step(every * turn + part, 1.0)
            stood = all(torch.equal(weight, before[name]) for name, weight in others.items())
            assert stood == (part + 1 < every)
        for name, twin in twins.items():
            twin.grad = sum(one[name] for one in seen) / every
        adam.step()
    for name, weight in others.items():
        torch.testing.assert_close(weight, twins[name], rtol=0, atol=2e-6)


# Clipping


def norms_and_moments(optim):
    """The gradient's true norm, that of what is reduced, the noted one, and that of the embedding's first Adam moment
    after one step.
    """

    class Noting(Replicated):
        def reduce(self, held):
            reduced.append(float(torch.cat([weight.grad.flatten() for weight in held.named.values()]).norm()))
            return super().reduce(held)

    reduced, model = [], GPT(FOUR_HEADS, 3)
    optimizers = Optimizers(model, dataclasses.replace(optim, parallel=Noting()), World())
    grads_of(model, 0)
    true = float(torch.cat([weight.grad.flatten() for weight in model.parameters()]).norm())
    optimizers.step(0, 1.0)
    moment = optimizers.state()["exp_avg.tok_emb.weight"].norm().item()
    return true, reduced[0], float(optimizers.norm), moment


def test_clip_modes_act_before_or_after_the_reduction():
    limit = 0.1
    true, reduced, norm, free = norms_and_moments(OptimConfig(grad_clip=limit, clip_mode="none"))
    assert (reduced, norm) == (true, 0.0) and true > 2 * limit
    for mode in ("global", "local", "adaptive"):
        true, reduced, norm, moment = norms_and_moments(OptimConfig(grad_clip=limit, clip_mode=mode))
        assert norm == pytest.approx(true, rel=1e-5)
        assert reduced == pytest.approx(limit if mode == "local" else true, rel=1e-4)
        assert moment == pytest.approx(free * limit / true, rel=1e-3)


@pytest.mark.parametrize("mode", ["global", "local", "adaptive"])
def test_gradients_below_the_limit_stay(mode):
    assert norms_and_moments(OptimConfig(grad_clip=1e6, clip_mode=mode))[3] == norms_and_moments(OptimConfig())[3]


def test_adaptive_limits_by_hand():
    grown = [1.1**step for step in range(NORMS)]
    assert caution(grown) == pytest.approx(1.1**-5)
    assert caution(grown[:-1]) == 1.0, "one norm too few"
    assert caution([1.05**step for step in range(NORMS)]) == 1.0, "log 1.05 is below 0.05"
    assert caution(grown[::-1]) == 1.0
    assert caution([0.0, *grown[1:]]) == caution([*grown[:-1], math.nan]) == 1.0


def test_adaptive_clipping_tightens_while_norms_grow():
    model = GPT(FOUR_HEADS, 3)
    optimizers = Optimizers(model, OptimConfig(grad_clip=0.5, clip_mode="adaptive", token_lr=0.0), World())
    optimizers.norms = [2.0**step for step in range(NORMS)]
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 1.0)
    norm = math.sqrt(sum(weight.numel() for weight in model.parameters()))
    optimizers.step(0, 1.0)
    assert optimizers.norms == pytest.approx([*(2.0**step for step in range(1, NORMS)), norm])
    growth = math.log(norm / 2) / (NORMS - 1)
    entry = 0.5 * math.exp(-5 * growth) / norm
    assert float(optimizers.state()["exp_avg.tok_emb.weight"].max()) == pytest.approx(0.1 * entry, rel=1e-3)


# Together


EVERYTHING = OptimConfig(
    matrix=NorMuon(iteration="gram", paired_heads=True, cautious_decay=True, weight_decay=0.1, momentum_warmup_steps=4),
    lr_scale=RateByRole(q=0.5, embed=2.0, early=0.8, early_layers=1),
    grad_clip=0.05,
    clip_mode="adaptive",
    adam_every=2,
    token_weight_decay=0.01,
)


@pytest.mark.parametrize("cut", [1, 4, 25])
def test_a_restored_state_continues_bit_for_bit_with_every_variant(tmp_path, cut):
    def go(model, optimizers, steps):
        for step in steps:
            grads_of(model, step)
            optimizers.step(step, 1.0, RampDecay().scales(Progress(step, cut + 3, 0.0, 0.0)))

    model, twin = GPT(FOUR_HEADS, 3), GPT(FOUR_HEADS, 99)
    one, two = Optimizers(model, EVERYTHING, World()), Optimizers(twin, EVERYTHING, World())
    go(model, one, range(cut))
    save_tensors(tmp_path / "state", {**one.state(), **model.state_dict(prefix="w.")}, {"schema": "state/1"})
    go(model, one, range(cut, cut + 3))
    stored, _, _ = load_tensors(tmp_path / "state", "state/1")
    twin.load_state_dict({name.removeprefix("w."): value for name, value in stored.items() if name.startswith("w.")})
    two.load(stored)
    go(twin, two, range(cut, cut + 3))
    assert all(torch.equal(weight, twin.state_dict()[name]) for name, weight in model.state_dict().items())
    assert one.state().keys() == two.state().keys()
    assert all(torch.equal(value, two.state()[name]) for name, value in one.state().items())
    assert {"norms", "second_moment.blocks.0.attn.c_q.weight"} <= one.state().keys()


def test_what_the_optimizer_touches_is_reported():
    plain, found = touched(FOUR_HEADS, OptimConfig()), touched(FOUR_HEADS, EVERYTHING)
    assert plain == touched(FOUR_HEADS)
    assert {name: text for name, text in found.items() if name not in plain} == {
        "matrix normuon": "12 matrices",
        "paired_heads": "4 matrices",
        "iteration gram": "10 matrices",
        "cautious_decay": "12 matrices",
        "lr_scale q": "2 parameters",
        "lr_scale embed": "1 parameter",
        "lr_scale early": "6 parameters",
    }


@pytest.mark.parametrize(
    ("optim", "key"),
    [
        (OptimConfig(lr_scale=RateByRole(head=0.5)), "optim.lr_scale.head"),
        (OptimConfig(lr_scale=RateByRole(early=0.5)), "optim.lr_scale.early"),
    ],
)
def test_touching_nothing_is_an_error(optim, key):
    with pytest.raises(ConfigError) as caught:
        touched(FOUR_HEADS, optim)
    assert caught.value.where == key


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("optim.matrix.iteration=fast", "optim.matrix.iteration"),
        ("optim.clip_mode=sometimes", "optim.clip_mode"),
        ("optim.clip_mode=adaptive", "optim.clip_mode"),
        ("optim.adam_every=0", "optim.adam_every"),
        ("optim.lr_scale.q=-1", "optim.lr_scale.q"),
        ("optim.decay_schedule.low=2", "optim.decay_schedule.low"),
        ("optim.matrix.beta2=1", "optim.matrix.beta2"),
    ],
)
def test_bad_values_are_refused_by_name(setting, key):
    kinds = ["optim.matrix=normuon", "optim.lr_scale=by_role", "optim.decay_schedule=taper"]
    with pytest.raises(ConfigError) as caught:
        resolve("tiny", [*kinds, setting])
    assert caught.value.where.startswith(key)


@pytest.mark.parametrize("bad", [{"hold": 0.9}, {"ramp": 1.0}, {"low": -0.1}])
def test_an_impossible_ramp_is_refused(bad):
    with pytest.raises(ConfigError):
        RampDecay(**bad)


@pytest.mark.parametrize(("preset", "mode"), [("pr1855", "local"), ("pr1512", "local"), ("pr1493", "global")])
def test_records_clip_where_they_did(preset, mode):
    optim = resolve(preset).config.optim
    assert (optim.clip_mode, optim.grad_clip) == (mode, 0.3)
