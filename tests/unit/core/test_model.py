"""Properties of the model: its parameters are its specs, time only flows forward, its derivative is the true one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pgolf.config.load import resolve
from pgolf.core.dist import World
from pgolf.core.errors import ConfigError
from pgolf.core.model.config import LayerStep, ModelConfig, layer_plan, param_specs
from pgolf.core.model.gpt import GPT, rms_norm
from pgolf.core.model.parts.relu2 import Relu2
from pgolf.core.model.parts.rope import Rope
from pgolf.core.model.parts.tanh_softcap import TanhSoftcap
from pgolf.core.model.parts.untied_embed import UntiedEmbed
from pgolf.core.optim.config import OptimConfig
from pgolf.core.optim.optimizers import Optimizers

SMALL = {"vocab_size": 7, "num_layers": 3, "model_dim": 8, "num_heads": 2, "num_kv_heads": 1}


def tokens(config, shape, seed=0):
    """Random ids of a shape."""
    return torch.randint(0, config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


# Parameters


def test_the_baseline_has_17_059_912_parameters():
    assert sum(spec.numel for spec in param_specs(ModelConfig())) == 17_059_912


def test_the_baseline_model_holds_exactly_that_many():
    assert sum(weight.numel() for weight in GPT(ModelConfig()).parameters()) == 17_059_912


@pytest.mark.parametrize("embed", ["tied", "untied"])
@pytest.mark.parametrize("layers", [1, 2, 3, 6])
def test_state_dict_is_the_specs(layers, embed):
    extra = {"embed": UntiedEmbed()} if embed == "untied" else {}
    config = ModelConfig(**{**SMALL, "num_layers": layers}, **extra)
    specs = param_specs(config)
    state = GPT(config).state_dict()
    assert {name: tuple(weight.shape) for name, weight in state.items()} == {spec.name: spec.shape for spec in specs}
    assert len({spec.name for spec in specs}) == len(specs) == len(state)
    assert ("lm_head.weight" in state) == (embed == "untied")


def test_initial_values_follow_the_specs():
    config = ModelConfig(**{**SMALL, "vocab_size": 500, "model_dim": 64})
    state = GPT(config, seed=3).state_dict()
    assert float(state["tok_emb.weight"].std()) == pytest.approx(0.005, rel=0.02)
    assert float(state["blocks.1.attn.c_q.weight"].abs().max()) == pytest.approx(64**-0.5, rel=0.01)
    assert float(state["blocks.1.attn.c_q.weight"].abs().max()) <= 64**-0.5
    for name in ("attn.proj.weight", "mlp.proj.weight"):
        assert not state[f"blocks.2.{name}"].any()
    assert state["blocks.0.attn.q_gain"].tolist() == [1.5, 1.5]
    assert state["blocks.0.resid_mix"].sum(dim=1).tolist() == [64.0, 0.0]
    assert bool((state["skip_weights"] == 1).all())


def test_linear_maps_may_begin_as_normal_numbers():
    config = replace(resolve("ternary_tiny").config.model, vocab_size=64)
    assert config.matrix_init == "normal" == resolve("ternary").config.model.matrix_init
    weights = GPT(config, 3).state_dict()
    usual = param_specs(replace(config, matrix_init="uniform"))
    linear = {spec.name for spec in usual if spec.init[0] == "linear"}
    assert linear >= {f"blocks.{i}.{name}.weight" for i in range(6) for name in ("attn.c_q", "attn.c_k", "mlp.fc")}
    for spec in param_specs(config):
        assert (spec.init == ("normal", 0.02)) is (spec.name in linear), spec.name
    drawn = torch.cat([weights[name].flatten() for name in linear])
    assert float(drawn.std()) == pytest.approx(0.02, rel=0.02) and abs(float(drawn.mean())) < 1e-3
    assert float(drawn.abs().max()) > 3.5 * 0.02, "no uniform number is so far out"
    assert not weights["blocks.0.attn.proj.weight"].any() and not weights["blocks.0.mlp.proj.weight"].any()


def test_the_seed_decides_the_initial_weights():
    config = ModelConfig(**SMALL)
    first, again, other = (GPT(config, seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["tok_emb.weight"], other["tok_emb.weight"])


# Layers


PLANS = {
    1: [(0, -1, False)],
    2: [(0, -1, True), (1, 0, False)],
    3: [(0, -1, True), (1, 0, False), (2, -1, False)],
    5: [(0, -1, True), (1, -1, True), (2, 0, False), (3, 1, False), (4, -1, False)],
}


@pytest.mark.parametrize("layers", PLANS)
def test_layer_plan(layers):
    expected = tuple(LayerStep(*step) for step in PLANS[layers])
    assert layer_plan(ModelConfig(**{**SMALL, "num_layers": layers})) == expected


@pytest.mark.parametrize("layers", range(1, 13))
def test_skips_mirror_the_layers(layers):
    stack, joined = [], []
    for step in layer_plan(ModelConfig(**{**SMALL, "num_layers": layers})):
        if step.skip >= 0:
            joined.append((stack.pop(), step.layer, step.skip))
        if step.push:
            stack.append(step.layer)
    half = layers // 2
    assert stack == []
    assert joined == [(half - 1 - row, half + row, row) for row in range(half)]


# Causality


@pytest.mark.parametrize("changed", [1, 9, 23])
def test_a_later_token_leaves_earlier_logits_untouched(tiny_model, changed):
    ids = tokens(tiny_model.config, (2, 24))
    other = ids.clone()
    other[:, changed] = (ids[:, changed] + 1) % tiny_model.config.vocab_size
    with torch.no_grad():
        before, after = (tiny_model.head(tiny_model.hidden(batch)) for batch in (ids, other))
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.isclose(before[:, changed:], after[:, changed:], rtol=0, atol=1e-6).all(dim=-1).any()


def test_sequences_of_a_batch_do_not_mix(tiny_model):
    ids = tokens(tiny_model.config, (3, 10))
    other = ids.clone()
    other[1] = (ids[1] + 1) % tiny_model.config.vocab_size
    with torch.no_grad():
        before, after = (tiny_model.hidden(batch) for batch in (ids, other))
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])


def test_the_past_matters(tiny_model):
    ids = tokens(tiny_model.config, (1, 12))
    other = ids.clone()
    other[0, 0] = (ids[0, 0] + 1) % tiny_model.config.vocab_size
    with torch.no_grad():
        gap = (tiny_model.hidden(ids) - tiny_model.hidden(other)).abs()[0, -1].max()
    assert float(gap) > 1e-4


# Gradients


def directional(loss, weight, direction, step=1e-5):
    """Central difference of `loss()` along a direction in one parameter."""
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * step * direction)
            values.append(float(loss()))
            weight.sub_(sign * step * direction)
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize("embed", ["tied", "untied"])
def test_gradients_are_finite_differences(make_model, embed):
    config = ModelConfig(**SMALL, **({"embed": UntiedEmbed()} if embed == "untied" else {}))
    model = make_model(config).double()
    model.compute_dtype = torch.float64
    ids, targets = tokens(config, (2, 5)), tokens(config, (2, 5), seed=1)

    def loss():
        raw = config.embed.project(model, model.hidden(ids))
        return F.cross_entropy(config.logit_softcap.apply(raw).flatten(0, 1), targets.flatten())

    loss().backward()
    generator = torch.Generator().manual_seed(2)
    for name, weight in model.named_parameters():
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        expected = float((weight.grad * direction).sum())
        assert abs(expected) > 1e-7, name
        assert directional(loss, weight, direction) == pytest.approx(expected, rel=1e-5, abs=1e-9), name


@pytest.mark.parametrize("embed", ["tied", "untied"])
def test_every_parameter_learns_by_the_third_step(embed):
    config = ModelConfig(**{**SMALL, "num_layers": 4}, **({"embed": UntiedEmbed()} if embed == "untied" else {}))
    model = GPT(config)
    optimizers = Optimizers(model, OptimConfig(), World())
    for step in range(3):
        model(tokens(config, (4, 12), step), tokens(config, (4, 12), step + 10)).backward()
        reached = {name for name, weight in model.named_parameters() if bool((weight.grad != 0).any())}
        rows = model.skip_weights.grad.abs().amax(dim=1)
        optimizers.step(step, 1.0)
    assert reached == {spec.name for spec in param_specs(config)}
    assert bool((rows > 0).all())


@pytest.mark.parametrize("embed", ["tied", "untied"])
def test_each_parameter_is_in_one_optimizer_group(embed):
    config = ModelConfig(**SMALL, **({"embed": UntiedEmbed()} if embed == "untied" else {}))
    model = GPT(config)
    optim = OptimConfig(token_lr=0.5, scalar_lr=0.25, head_lr=0.125, token_weight_decay=0.1, scalar_weight_decay=0.2)
    optimizers = Optimizers(model, optim, World())
    names = {id(weight): name for name, weight in model.named_parameters()}
    seen = {names[id(one.weight)]: "muon" for one in optimizers.matrices.values()}
    for group in optimizers.adam.param_groups:
        for weight in group["params"]:
            assert names[id(weight)] not in seen
            seen[names[id(weight)]] = group["base"]
    assert set(seen) == set(names.values())
    assert seen["tok_emb.weight"] == (0.5, 0.1)
    assert seen["skip_weights"] == seen["blocks.0.attn.q_gain"] == (0.25, 0.2)
    assert seen.get("lm_head.weight", (0.125, 0.0)) == (0.125, 0.0)
    muon = {name for name, place in seen.items() if place == "muon"}
    assert muon == {name for name in seen if name.startswith("blocks.") and name.endswith(".weight")}


# Numerics of the parts


@pytest.mark.parametrize(("dtype", "key", "rtol"), [("float32", "rms_f32", 1e-5), ("bfloat16", "rms_bf16", 0.01)])
def test_rms_norm_golden(oracle, dtype, key, rtol):
    data = oracle("unit_elementwise.npz")
    result = rms_norm(torch.from_numpy(data["rms_x"]).to(getattr(torch, dtype))).float().numpy()
    np.testing.assert_allclose(result, data[key], rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_rms_norm_has_the_eps_of_float32_in_every_dtype(dtype):
    tiny = torch.full((1, 8), 1e-5, dtype=getattr(torch, dtype))
    expected = 1e-5 / (1e-10 + 1.1920929e-07) ** 0.5
    assert float(rms_norm(tiny)[0, 0]) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("name", "base"), [("full", 10000.0), ("base5000", 5000.0)])
def test_rotation_golden(oracle, name, base):
    data = oracle("unit_rotary.npz")
    x = torch.from_numpy(data["x"])
    rope = Rope(base=base)
    tables = rope.tables(x.size(1), x.size(-1), x)
    for table, part in zip(tables, ("cos", "sin"), strict=True):
        np.testing.assert_allclose(table[0, :, 0].numpy(), data[f"{part}_{name}"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(rope.apply(x, tables).numpy(), data[f"y_{name}"], rtol=0, atol=1e-4)


def test_rotated_products_depend_on_distance_only():
    rope, generator = Rope(), torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 16, generator=generator).expand(1, 20, 1, 16) for _ in range(2))
    tables = rope.tables(20, 16, q)
    products = torch.einsum("bthd,bshd->ts", rope.apply(q, tables), rope.apply(k, tables))
    for distance in (0, 3, 11):
        diagonal = products.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-4)
    assert float(products.diagonal(0).mean() - products.diagonal(-3).mean()) != pytest.approx(0, abs=0.01)


def test_softcap_golden(oracle):
    data = oracle("unit_elementwise.npz")
    raw = torch.from_numpy(data["sc_logits"]).requires_grad_()
    capped = TanhSoftcap(cap=float(data["softcap"])).apply(raw)
    losses = F.cross_entropy(capped, torch.from_numpy(data["sc_targets"]), reduction="none")
    losses.mean().backward()
    assert float(capped.detach().abs().max()) <= float(data["softcap"])
    np.testing.assert_allclose(losses.detach().numpy(), data["sc_ce"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(raw.grad.numpy(), data["sc_grad"], rtol=0, atol=1e-5)


def test_bfloat16_activations_stay_close_to_float32(tiny_model):
    ids = tokens(tiny_model.config, (2, 20))
    with torch.no_grad():
        exact = tiny_model.head(tiny_model.hidden(ids))
        tiny_model.compute_dtype = torch.bfloat16
        rough = tiny_model.head(tiny_model.hidden(ids))
    assert rough.dtype == torch.float32
    gap = float((rough - exact).abs().max())
    assert 0 < gap < 0.1 * float(exact.abs().max())


# Refusals


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: ModelConfig(vocab_size=0), "model.vocab_size"),
        (lambda: ModelConfig(vocab_size=65537), "model.vocab_size"),
        (lambda: ModelConfig(num_layers=0), "model.num_layers"),
        (lambda: ModelConfig(model_dim=0), "model.model_dim"),
        (lambda: ModelConfig(num_heads=0), "model.num_heads"),
        (lambda: ModelConfig(num_kv_heads=-1), "model.num_kv_heads"),
        (lambda: ModelConfig(model_dim=500), "model.model_dim"),
        (lambda: ModelConfig(num_heads=8, num_kv_heads=3), "model.num_heads"),
        (lambda: ModelConfig(model_dim=24, num_heads=8), "model.model_dim"),
        (lambda: Relu2(mult=0.0), "model.mlp.mult"),
        (lambda: Rope(base=1.0), "model.position.base"),
        (lambda: TanhSoftcap(cap=0.0), "model.logit_softcap.cap"),
    ],
)
def test_impossible_configurations_are_refused_by_key(make, key):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.where in (key.rpartition(".")[2], key.partition(".")[2])
    assert caught.value.where in str(caught.value)


def test_an_mlp_without_hidden_units_is_refused():
    with pytest.raises(ConfigError, match="mult"):
        ModelConfig(**{**SMALL, "mlp": Relu2(mult=0.1)})
