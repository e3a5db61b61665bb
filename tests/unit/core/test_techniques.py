"""Properties that every part of a model has, alone on a small model: causality, gradients, names, files, bad values."""

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import pgolf as package
from pgolf.catalog import CATALOG, load
from pgolf.core.dist import World
from pgolf.core.errors import ConfigError
from pgolf.core.model.config import ModelConfig, layer_plan, model_parts, param_specs
from pgolf.core.model.gpt import GPT
from pgolf.core.model.params import HEAD, MATRIX, SCALAR, TOKEN
from pgolf.core.model.parts.by_document import ByDocument
from pgolf.core.model.parts.layer_loop import LayerLoop
from pgolf.core.model.parts.two_lanes import TwoLanes
from pgolf.core.model.slots import Absent, Part
from pgolf.core.optim.config import OptimConfig
from pgolf.core.optim.optimizers import Optimizers

SMALL = {"vocab_size": 61, "num_layers": 5, "model_dim": 32, "num_heads": 4, "num_kv_heads": 2}
SLOTS = {
    field.name: field.type.__name__
    for field in dataclasses.fields(ModelConfig)
    if getattr(field.type, "__name__", "") in CATALOG
}
SIZES: dict[str, dict[str, Any]] = {
    "rope": {"dims": 4},
    "layers": {"start": 1, "end": 2, "lora_rank": 2, "own": "control"},
    "parallel": {"start": 3},
    "two_lanes": {"start": 3},
    "two_lanes_in_turn": {"start": 3},
    "factored": {"width": 16},
    "bigram": {"buckets": 37, "dim": 8},
    "engram_lite": {"buckets": 29, "dim": 4},
    "shared": {"dim": 8, "on": "2,4"},
    "sliding": {"tokens": 3, "full_layers": 2},
    "by_document": {"max_tokens": 5},
    "ternary": {"group": 16},
    "binary": {"group": 16},
    "low_rank": {"rank": 8},
    "pattern": {"tokens": 3},
    "backout": {"after": 2},
    "ngrams": {"order": 3, "entries": 7},
}
ALL = [(slot, kind) for slot, name in SLOTS.items() for kind in CATALOG[name] if kind != "none"]
IDLE = {
    "ngrams": {"ngram_counts"},
    "mix": {"blocks.0.attn.vr_lambda"},
    "add": {"blocks.0.attn.vrl_alpha"},
}
"""Parameters that get no gradient, by technique: layer 0's value residual has nothing before it, counts
are no weights."""


def part(slot: str, kind: str) -> Any:
    """A technique at a size that fits the small model."""
    return load(SLOTS[slot], kind)(**SIZES.get(kind, {}))


def config_with(slot: str, kind: str) -> ModelConfig:
    """The small model with one technique."""
    return ModelConfig(**SMALL, **{slot: part(slot, kind)})


def batch(seed: int = 0, rows: int = 2, length: int = 24) -> torch.Tensor:
    """Random ids in which a few documents begin."""
    ids = torch.randint(4, 61, (rows, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = ids[:, 9] = ids[0, 15] = 1
    return ids


GENERIC = {"add", "cross_entropy", "document", "documents", "float", "fraction", "iterations", "layers", "mean", "mix"}
GENERIC |= {"none", "output", "partial", "phase", "plain", "scalar", "token", "torch", "window"}
"""Names of techniques that are everyday words of English, Python or torch; x0 is the stream that all blocks see."""


@pytest.mark.parametrize("skeleton", ["model/gpt.py", "train/loop.py"])
def test_the_skeleton_names_no_technique(skeleton):
    core = Path(package.__file__).parent / "core"
    words = set(re.split(r"[^A-Za-z0-9_]+", (core / skeleton).read_text(encoding="utf-8")))
    names = {name for choices in CATALOG.values() for name in choices}
    names |= {place.rpartition(":")[2] for choices in CATALOG.values() for place in choices.values()}
    names |= {"overtone", *(path.stem for path in (core / "model" / "parts").glob("[a-z]*.py"))}
    assert words & names <= GENERIC


@pytest.mark.parametrize(("slot", "kind"), ALL)
def test_a_later_token_changes_nothing_before_it(make_model, slot, kind):
    model = make_model(config_with(slot, kind)).eval()
    ids = batch()
    for place in (1, 7, 9, 15, 22):
        other = ids.clone()
        other[:, place] = 2 + (ids[:, place] + 11) % 50
        with torch.no_grad():
            before, after = model.head(model.hidden(ids)), model.head(model.hidden(other))
        assert torch.equal(before[:, :place], after[:, :place])
        assert not torch.equal(before[:, place:], after[:, place:])


@pytest.mark.parametrize(("slot", "kind"), ALL)
def test_the_last_block_is_spared_what_only_earlier_losses_need(make_model, slot, kind):
    config, ids = config_with(slot, kind), batch(rows=3, length=97)
    model = make_model(config).eval()
    with torch.no_grad():
        whole = model.nll(ids[:, :-1], ids[:, 1:])
        for start in (1, 20, 32):
            late = model.nll(ids[:, :-1], ids[:, 1:], start)
            assert late.shape == (3, 96 - start)
            assert torch.allclose(late, whole[:, start:], atol=1e-5)


def rows_of(model: GPT, start: int) -> dict[str, list[int]]:
    """How many positions each linear map of the model's blocks computes, each time it runs."""
    seen: dict[str, list[int]] = {}
    for name, node in model.named_modules():
        if name.startswith("blocks.") and hasattr(node, "weight"):
            node.tap = lambda x, y, name=name: seen.setdefault(name, []).append(x.size(1))
    ids = batch()
    model.nll(ids[:, :-1], ids[:, 1:], start)
    return seen


def test_only_the_last_run_of_the_last_block_is_spared_and_all_but_keys_and_values(make_model):
    spared = {f"blocks.4.{name}" for name in ("attn.c_q", "attn.proj", "mlp.fc", "mlp.proj")}
    for loop, runs in ((part("loop", "none"), 1), (LayerLoop(start=3, end=4, extra_passes=1), 2)):
        seen = rows_of(make_model(ModelConfig(**SMALL, loop=loop)), 15)
        assert len(seen) == 30
        for name, rows in seen.items():
            whole = [23] * (runs if name[7] in "34" else 1)
            assert rows == ([*whole[1:], 8] if name in spared else whole), name
    assert {23} == {n for rows in rows_of(make_model(config_with("smear", "cumulative")), 15).values() for n in rows}


@pytest.mark.parametrize(("slot", "kind"), ALL)
def test_every_parameter_learns_and_has_one_optimizer_group(slot, kind):
    config = config_with(slot, kind)
    model = GPT(config, 3)
    optimizers = Optimizers(model, OptimConfig(), World())
    seen = dict.fromkeys(dict(model.named_parameters()), False)
    for step in range(3):
        ids = batch(step)
        model(ids[:, :-1], ids[:, 1:]).backward()
        for name, weight in model.named_parameters():
            seen[name] |= weight.grad is not None and bool((weight.grad != 0).any())
        optimizers.step(step, 1.0)
    assert {name for name, moved in seen.items() if not moved} == IDLE.get(
        kind, set() if slot != "value_residual" else None
    )
    groups = [spec.group for spec in param_specs(config)]
    assert set(groups) <= {MATRIX, TOKEN, SCALAR, HEAD}
    owned = [*optimizers.matrices, *optimizers.others]
    assert sorted(owned) == sorted(seen) == sorted({spec.name for spec in param_specs(config)})


@pytest.mark.parametrize(("slot", "kind"), ALL)
def test_state_dict_round_trip_and_other_lengths(make_model, slot, kind):
    config = config_with(slot, kind)
    model, other = make_model(config), GPT(config, 9)
    other.load_state_dict(model.state_dict())
    for length in (1, 2, 24, 40):
        ids = batch(1, 1, 40)[:, :length]
        with torch.no_grad():
            assert torch.equal(model.head(model.hidden(ids)), other.head(other.hidden(ids)))


@pytest.mark.parametrize(("slot", "kind"), ALL)
def test_gradients_agree_with_float64(make_model, slot, kind):
    config = config_with(slot, kind)
    if slot == "precision":
        pytest.skip("gradients pass straight through rounding, whose codes depend on the dtype")
    ids, grads = batch(), []
    for dtype in (torch.float32, torch.float64):
        model = make_model(config).to(dtype)
        model.compute_dtype = dtype
        model(ids[:, :-1], ids[:, 1:]).backward()
        grads.append({name: w.grad for name, w in model.named_parameters() if w.grad is not None})
    for name, grad in grads[1].items():
        scale = max(float(grad.abs().max()), 1e-6)
        assert float((grads[0][name] - grad).abs().max()) <= 2e-3 * scale, name


BFLOAT16_OFF = {"median": 0.045, "largest": 0.15, "loss": 0.004}
"""How far bfloat16 may lead away from float32, about three times what was measured over all techniques: of the relative
distances of logits by position the median (0.015) and the largest (0.052), and of the training loss (0.0013).
"""


def distances(exact: list[torch.Tensor], rounded: list[torch.Tensor]) -> dict[str, float]:
    """Relative distances of logits by position and of losses, each a pair of logits and loss."""
    off = (rounded[0] - exact[0]).norm(dim=-1) / exact[0].norm(dim=-1)
    loss = (rounded[1] / exact[1] - 1).abs()
    return {"median": float(off.median()), "largest": float(off.max()), "loss": float(loss)}


def logits_and_loss(model: GPT, dtype: torch.dtype) -> list[torch.Tensor]:
    """Logits of a batch and the training loss, computed in a precision."""
    model.compute_dtype, ids = dtype, batch()
    with torch.no_grad():
        return [model.head(model.hidden(ids)), model(ids[:, :-1], ids[:, 1:])]


@pytest.mark.parametrize(("slot", "kind"), ALL)
def test_bfloat16_is_the_same_function_within_its_precision(make_model, slot, kind):
    model = make_model(config_with(slot, kind)).eval()
    exact, rounded = (logits_and_loss(model, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert all(x.dtype == torch.float32 for x in rounded)
    found = distances(exact, rounded)
    assert not {name: value for name, value in found.items() if value >= BFLOAT16_OFF[name]}


FAINT = {"yarn", "shared", "biased", "parallel", "phase", "plain", "z_loss", "ngrams"}
"""Techniques that change little more in the small model than bfloat16 does, change nothing but initial weights, or do
nothing until tokens are counted.
"""


@pytest.mark.parametrize(("slot", "kind"), ALL)
def test_the_tolerance_of_bfloat16_finds_a_technique_that_is_left_out(make_model, slot, kind):
    config, plain = config_with(slot, kind), ModelConfig(**SMALL)
    if getattr(config, slot) == getattr(plain, slot) or kind in FAINT:
        pytest.skip("the usual choice, or too faint to be seen")
    model, without = make_model(config).eval(), make_model(plain).eval()
    own = without.state_dict()
    same = {name: w for name, w in model.state_dict().items() if name in own and w.shape == own[name].shape}
    without.load_state_dict(same, strict=False)
    found = distances(logits_and_loss(model, torch.float32), logits_and_loss(without, torch.bfloat16))
    assert [name for name, value in found.items() if value >= BFLOAT16_OFF[name]]


REFUSED = {
    frozenset({"by_document", "cumulative"}),  # a mean over the row crosses documents
    frozenset({"layers", "ternary"}),  # the low-rank factors of SIZES have 2 columns, a group 16
    frozenset({"layers", "binary"}),
    frozenset({"low_rank", "ternary"}),  # so it is with a rank of 8
    frozenset({"low_rank", "binary"}),
}
"""Pairs that make no sense, or not at these sizes."""


@pytest.mark.parametrize(("slot", "kind"), ALL)
def test_any_two_go_together_or_are_refused_with_the_reason(slot, kind):
    ids, refused = batch(rows=1)[:, :12], set()
    other = ids.clone()
    other[:, 8:] = 60
    torch.manual_seed(3)
    for slot_2, kind_2 in ALL:
        if slot_2 <= slot:
            continue
        try:
            config = ModelConfig(**SMALL, **{slot: part(slot, kind), slot_2: part(slot_2, kind_2)})
        except ConfigError as error:
            assert error.where and len(error.what) > 10
            refused.add(frozenset({kind, kind_2}))
            continue
        model = GPT(config, 1)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.2 * torch.randn(weight.shape))
            one, two = model.head(model.hidden(ids)), model.head(model.hidden(other))
            late = model.head(model.hidden(ids, start=7))
        assert one.isfinite().all() and torch.equal(one[:, :8], two[:, :8]), kind_2
        assert torch.allclose(late, one[:, 7:], atol=1e-4), kind_2
    assert refused <= REFUSED


@pytest.mark.parametrize(("slot", "kind"), ALL)
def test_it_compiles_as_one_graph(slot, kind):
    model, ids = GPT(config_with(slot, kind), 1), batch()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)(ids[:, :-1], ids[:, 1:])
    assert torch.equal(compiled, model(ids[:, :-1], ids[:, 1:]))


@pytest.mark.parametrize(("slot", "kind"), ALL)
def test_fields_do_not_hide_places_and_have_values_as_defaults(slot, kind):
    cls = load(SLOTS[slot], kind)
    assert issubclass(cls, Part)
    names = {field.name for field in dataclasses.fields(cls)}
    assert not names & set(dir(Part))
    assert eval(repr(part(slot, kind)), {cls.__name__: cls}) == part(slot, kind)


@pytest.mark.parametrize("slot", [slot for slot, name in SLOTS.items() if "none" in CATALOG[name]])
def test_switched_off_a_technique_is_absent(slot):
    none = load(SLOTS[slot], "none")()
    assert param_specs(ModelConfig(**SMALL, **{slot: none})) == param_specs(ModelConfig(**SMALL)) or slot == "skips"
    if isinstance(none, Absent):
        assert slot not in model_parts(ModelConfig(**SMALL, **{slot: none}))
        assert ModelConfig(**SMALL, **{slot: none}) == ModelConfig(**SMALL)


def test_documents_do_not_leak():
    everything = {
        "documents": ByDocument(max_tokens=0),
        "smear": part("smear", "static"),
        "hash_embed": part("hash_embed", "bigram"),
        "key_offset": part("key_offset", "partial"),
    }
    for smear, hashed in itertools.product(("static", "gated"), ("bigram", "engram_lite")):
        parts = everything | {"smear": part("smear", smear), "hash_embed": part("hash_embed", hashed)}
        model = GPT(ModelConfig(**SMALL, **parts), 5)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
            ids = batch(2, 1)
            other = ids.clone()
            other[:, 3:9] = 60
            one, two = model.hidden(ids), model.hidden(other)
        assert not torch.equal(one[:, 3:9], two[:, 3:9])
        starts = int((ids[0, 9:] == 1).nonzero()[0]) + 9
        assert torch.equal(one[:, starts:], two[:, starts:])


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"loop": LayerLoop(start=3, end=5)}, "loop.end"),
        ({"residual": TwoLanes(start=5)}, "residual"),
        ({"position": load("Position", "rope")(dims=12)}, "position.dims"),
        ({"head_gate": load("HeadGate", "sparse")(window=33)}, "head_gate.window"),
        ({"value_embed": load("ValueEmbed", "shared")(on="7")}, "value_embed.on"),
        ({"precision": load("Precision", "ternary")(group=24)}, "precision.group"),
        ({"window": load("Window", "sliding")(full_layers=5)}, "window"),
        ({"window": load("Window", "pattern")(pattern="L")}, "window"),
        ({"backout": load("Retraction", "backout")(after=4)}, "backout.after"),
        ({"loop": LayerLoop(start=1, end=2, lora_rank=16)}, "loop.lora_rank"),
        ({"documents": ByDocument(), "smear": load("Smear", "cumulative")()}, "smear"),
        (
            {"loop": LayerLoop(start=1, end=2, lora_rank=3), "precision": load("Precision", "ternary")(group=16)},
            "precision.group",
        ),
        (
            {"mlp": load("Mlp", "relu2")(mult=1.25), "precision": load("Precision", "ternary")(group=16)},
            "precision.group",
        ),
        ({"key_offset": load("KeyOffset", "partial")(dims=8)}, "key_offset.dims"),
        ({"vocab_size": 60_000, "hash_embed": load("HashEmbed", "bigram")()}, "hash_embed"),
    ],
)
def test_what_cannot_work_is_refused_by_its_key(changed, key):
    with pytest.raises(ConfigError) as caught:
        ModelConfig(**{**SMALL, **changed})
    assert caught.value.where.startswith(key), caught.value


@pytest.mark.parametrize(
    ("slot", "kind", "values"),
    [
        ("position", "rope", {"dims": 3}),
        ("position", "rope", {"reference": -1}),
        ("position", "yarn", {"trained": 4096}),
        ("loop", "layers", {"start": 3, "end": 2}),
        ("loop", "layers", {"extra_passes": 0}),
        ("loop", "layers", {"enable_at": 1.0}),
        ("residual", "two_lanes", {"final": "both"}),
        ("xsa", "xsa", {"last_n": -1}),
        ("window", "sliding", {"tokens": 0}),
        ("window", "pattern", {"tokens": 0}),
        ("window", "pattern", {"pattern": "SSM"}),
        ("window", "pattern", {"pattern": ""}),
        ("backout", "backout", {"after": -1}),
        ("loop", "layers", {"lora_rank": -1}),
        ("loop", "layers", {"own": "all"}),
        ("embed", "tied", {"spectrum": "white"}),
        ("head_gate", "output", {"reads": "k"}),
        ("mlp", "leaky_relu2", {"slope": 1.5}),
        ("mlp", "low_rank", {"rank": 0}),
        ("value_embed", "shared", {"on": "a"}),
        ("hash_embed", "bigram", {"buckets": 1}),
        ("multi_token", "mtp_heads", {"extra_tokens": 0}),
        ("aux_loss", "z_loss", {"weight": 0.0}),
        ("precision", "ternary", {"tables": "fp4"}),
        ("logit_softcap", "sigmoid", {"width": 0.0}),
        ("embed", "factored", {"width": 0}),
    ],
)
def test_bad_values_are_refused(slot, kind, values):
    with pytest.raises(ConfigError) as caught:
        load(SLOTS[slot], kind)(**values)
    assert caught.value.where in values


def later_passes(**options: Any) -> ModelConfig:
    """The small model with a loop whose later passes have something of their own."""
    return ModelConfig(**SMALL, loop=LayerLoop(start=1, end=2, extra_passes=2, **options))


@pytest.mark.parametrize(
    "options", [{"lora_rank": 3}, {"own": "control"}, {"own": "mlp"}, {"own": "mlp", "lora_rank": 2}]
)
def test_later_passes_learn_what_is_their_own_and_begin_like_the_first(make_model, options):
    plain, config = GPT(later_passes(), 4), later_passes(**options)
    model = GPT(config, 5)
    model.load_state_dict(make_model(later_passes()).state_dict(), strict=False)
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    config.loop.begin(model)
    ids = batch()
    assert torch.equal(model(ids[:, :-1], ids[:, 1:]), plain(ids[:, :-1], ids[:, 1:]))
    own = [name for name in model.state_dict() if ".pass" in name]
    per_block = {name.split(".", 3)[3] for name in own}
    assert len(own) == 4 * len(per_block) > 0
    assert len(own) + len(plain.state_dict()) == len(param_specs(config))
    optimizers, before = Optimizers(model, OptimConfig(), World()), model.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    model.looping = False
    for step, looping in enumerate((False, True, True, True)):
        model.looping = looping
        model(ids[:, :-1], ids[:, 1:]).backward()
        optimizers.step(step, 1.0)
        if not looping:
            assert all(torch.equal(before[name], model.state_dict()[name]) for name in own)
    assert not [name for name in own if torch.equal(before[name], model.state_dict()[name])]


def test_low_rank_additions_are_the_product_of_their_factors(make_model):
    model = make_model(later_passes(lora_rank=3))
    merged = GPT(later_passes(own="mlp"), 7)
    state = {name: tensor for name, tensor in model.state_dict().items() if ".pass" not in name}
    merged.load_state_dict(state, strict=False)
    merged.config.loop.begin(merged)
    weights = model.state_dict()
    for layer, turn, name in itertools.product((1, 2), (1, 2), ("mlp.fc", "mlp.proj")):
        root = f"blocks.{layer}.pass{turn}.{name}"
        product = weights[f"{root}.lora_b.weight"] @ weights[f"{root}.lora_a.weight"]
        merged.state_dict()[f"{root}.weight"].add_(product)
    with torch.no_grad():
        for name in weights:
            if ".pass" in name and ".attn." in name:
                weights[name].zero_()
    ids = batch()
    assert torch.allclose(merged.hidden(ids), model.hidden(ids), atol=2e-5)


def test_a_learned_slope_begins_as_the_fixed_one_and_learns(make_model):
    fixed = make_model(ModelConfig(**SMALL, mlp=load("Mlp", "leaky_relu2")(slope=0.3)))
    learned = GPT(ModelConfig(**SMALL, mlp=load("Mlp", "learned_leaky_relu2")(slope=0.3)), 4)
    learned.load_state_dict(fixed.state_dict(), strict=False)
    ids = batch()
    assert torch.allclose(learned.hidden(ids), fixed.hidden(ids), atol=1e-5)
    learned(ids[:, :-1], ids[:, 1:]).backward()
    assert all(float(layer[0].mlp.slope.grad.abs()) > 0 for layer in learned.layers)


def test_the_pattern_of_windows():
    pattern = load("Window", "pattern")
    assert pattern(pattern="SSSL").layers(11) == (0, 1, 2, 4, 5, 6, 8, 9)
    assert pattern(pattern="S").layers(3) == (0, 1)
    assert pattern(pattern="SL").layers(5) == (0, 2)


def test_overtone_spectrum():
    config = ModelConfig(**SMALL, embed=load("Embed", "tied")(spectrum="overtone", init_std=0.5))
    values = torch.linalg.svdvals(GPT(config, 3).state_dict()["tok_emb.weight"])
    assert torch.allclose(values, values[0] / torch.arange(1, 33).sqrt(), rtol=1e-4)
    normal = GPT(ModelConfig(**SMALL, embed=load("Embed", "tied")(init_std=0.5)), 3).state_dict()["tok_emb.weight"]
    assert float(values[0]) == pytest.approx(float(torch.linalg.svdvals(normal)[0]), rel=1e-4)


def test_backout_takes_out_what_a_layer_left(make_model):
    backout = load("Retraction", "backout")
    ids, plain = batch(), make_model(ModelConfig(**SMALL)).eval()
    for read in (False, True):
        model = GPT(ModelConfig(**SMALL, backout=backout(after=2, read=read)), 1).eval()
        model.load_state_dict(plain.state_dict(), strict=False)
        for weight in (0.0, 0.5):
            with torch.no_grad():
                model.backout_lambda.fill_(weight)
                same = torch.equal(model.hidden(ids), plain.hidden(ids))
            assert same == (weight == 0 and not read)


def test_the_loop_of_the_records():
    config = ModelConfig(num_layers=11, loop=LayerLoop(start=3, end=5, extra_passes=2))
    order = [step.layer for step in layer_plan(config)]
    assert order == [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]
    assert [step.layer for step in layer_plan(config) if step.push] == order[:8]
    assert [step.skip for step in layer_plan(config)[8:]] == [0, 1, 2, 3, 4, 5, 6, 7, -1]
    assert [step.layer for step in layer_plan(config, looping=False)] == list(range(11))
