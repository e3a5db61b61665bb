"""Properties of the presets' models, on their small twins: causality, documents, gradients, files, graphs."""

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from pgolf.config.load import preset_names, resolve
from pgolf.core.dist import World
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.gpt import GPT
from pgolf.core.optim.optimizers import Optimizers
from pgolf.report.touched import touched

TWINS = [name for name in preset_names() if name.endswith("_tiny")]
IDLE = {"pr638_tiny": {"blocks.0.attn.vr_lambda"}}
"""Parameters that get no gradient: layer 0 has no values before it to mix in. The preset says so."""


@pytest.fixture(params=TWINS)
def twin(request: pytest.FixtureRequest) -> str:
    """The name of each small twin."""
    return str(request.param)


def model_of(name: str, **changes: Any) -> ModelConfig:
    """A twin's model with a small vocabulary."""
    return resolve(name, [f"{key}={value}" for key, value in changes.items()]).config.model


def batch(config: ModelConfig, seed: int = 0, length: int = 96) -> torch.Tensor:
    """Two rows of random ids in which documents begin here and there."""
    ids = torch.randint(4, config.vocab_size, (2, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = ids[:, 31] = ids[0, 70] = 1
    return ids


def moved(config: ModelConfig, looping: bool = True) -> GPT:
    """A model away from its start, where many parts do nothing."""
    model = GPT(config, 2).eval()
    model.looping = looping
    with torch.no_grad():
        for index, weight in enumerate(model.parameters()):
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index)))
    return model


@pytest.mark.parametrize("looping", [False, True])
def test_a_later_token_changes_nothing_before_it(twin: str, looping: bool) -> None:
    config = model_of(twin)
    model, ids = moved(config, looping), batch(config)
    for place in (1, 31, 70, 95):
        other = ids.clone()
        other[:, place] = 4 + (ids[:, place] + 7) % (config.vocab_size - 4)
        with torch.no_grad():
            before, after = model.head(model.hidden(ids)), model.head(model.hidden(other))
        assert torch.equal(before[:, :place], after[:, :place])
        assert not torch.equal(before[:, place:], after[:, place:])


def test_late_losses_are_those_of_the_whole_row(twin: str) -> None:
    config = model_of(twin)
    for looping in (False, True):
        model, ids = moved(config, looping), batch(config)
        with torch.no_grad():
            whole, late = (model.nll(ids[:, :-1], ids[:, 1:], start) for start in (0, 31))
        assert torch.allclose(late, whole[:, 31:], atol=1e-5)


def test_documents_are_apart_where_the_preset_says_so(twin: str) -> None:
    config = model_of(twin)
    model, ids = moved(config), batch(config)
    other = ids.clone()
    other[:, 5:31] = 4 + (ids[:, 5:31] + 7) % (config.vocab_size - 4)
    with torch.no_grad():
        one, two = model.hidden(ids), model.hidden(other)
    assert not torch.equal(one[:, 5:31], two[:, 5:31])
    assert torch.equal(one[:, 31:], two[:, 31:]) == (twin in ("pr1855_tiny", "leader_tiny"))


def test_every_parameter_learns_by_step_three_and_has_one_group(twin: str) -> None:
    run = resolve(twin).config
    model = GPT(run.model, 3)
    optimizers = Optimizers(model, run.optim, World())
    seen = dict.fromkeys(dict(model.named_parameters()), False)
    for step in range(3):
        ids = batch(run.model, step)
        model(ids[:, :-1], ids[:, 1:]).backward()
        for name, weight in model.named_parameters():
            seen[name] |= weight.grad is not None and bool((weight.grad != 0).any())
        optimizers.step(step, 1.0)
    assert {name for name, learnt in seen.items() if not learnt} == IDLE.get(twin, set())
    owned = [*optimizers.matrices, *optimizers.others]
    assert sorted(owned) == sorted(seen) == sorted(spec.name for spec in param_specs(run.model))


def test_state_dict_round_trip_and_other_lengths(twin: str) -> None:
    config = model_of(twin)
    model, other = moved(config), GPT(config, 9).eval()
    other.load_state_dict(model.state_dict())
    for length in (1, 17, 96, 160):
        ids = batch(config, 1, 160)[:, :length]
        with torch.no_grad():
            assert torch.equal(model.head(model.hidden(ids)), other.head(other.hidden(ids)))


def test_bfloat16_is_the_same_function_within_its_precision(twin: str) -> None:
    config = model_of(twin)
    model, ids = moved(config), batch(config)
    with torch.no_grad():
        exact = model.nll(ids[:, :-1], ids[:, 1:])
        model.compute_dtype = torch.bfloat16
        rounded = model.nll(ids[:, :-1], ids[:, 1:])
    assert float((exact.mean() - rounded.mean()).abs()) < 0.03 * float(exact.mean())


def test_one_graph_and_one_more_when_the_loop_begins(twin: str) -> None:
    config = model_of(twin)
    model = GPT(config, 1)
    counter = CompileCounter()
    torch._dynamo.reset()
    forward = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    for looping in (False, False, True, True, False, True):
        model.looping = looping and config.loop.is_on(1.0)
        for seed in range(2):
            ids = batch(config, seed)
            forward(ids[:, :-1], ids[:, 1:]).backward()
    torch._dynamo.reset()
    assert counter.frame_count == (2 if config.loop.is_on(1.0) else 1)


def test_what_parts_touch_adds_up(twin: str) -> None:
    config = model_of(twin)
    found = touched(config)
    words = " ".join(found.values()).replace(",", "").split()
    counted = sum(int(number) for number, unit in zip(words, words[1:]) if unit == "parameters" and number != "no")
    names = [spec for spec in param_specs(config) if ".attn.c_" not in spec.name and ".attn.proj" not in spec.name]
    skeleton = ("attn_scale", "mlp_scale")
    assert counted == sum(spec.numel for spec in names if not spec.name.endswith(skeleton))
    if twin == "leader_tiny":
        assert found["loop layers"] == "10 steps through 6 layers"
        assert found["head_gate sparse"] == "6 layers, 288 parameters"


@pytest.mark.parametrize(("blocks", "tables", "count"), [("all", "fp8", 15), ("attn", "fp8", 11), ("mlp", "float", 4)])
def test_matrices_of_few_values_are_counted_as_they_are_covered(blocks: str, tables: str, count: int) -> None:
    part = {"": "ternary", ".group": 32, ".blocks": blocks, ".tables": tables}
    sets = [f"model.precision{key}={value}" for key, value in part.items()]
    config = resolve("tiny", [*sets, "model.embed=factored", "model.embed.width=32"]).config.model
    assert touched(config)["precision ternary"] == f"{count} matrices"
    assert len(GPT(config).covered) == count
