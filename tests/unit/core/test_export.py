"""What is exported of a trained model: the same logits without what only training needs or matrices can take up."""

import dataclasses
from typing import Any

import pytest
import torch

from pgolf.config.load import resolve
from pgolf.core.errors import ConfigError
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.export import exported, exported_weights
from pgolf.core.model.gpt import GPT
from pgolf.core.model.parts.head_gate import DenseGate, OutputGate
from pgolf.core.model.parts.head_mix import HeadMixing
from pgolf.core.model.parts.layer_loop import LayerLoop
from pgolf.core.model.parts.multi_token import TokenHeads
from pgolf.core.model.parts.ternary import Ternary
from pgolf.core.model.parts.value_residual import ValueAdd
from pgolf.core.model.parts.z_loss import ZLoss
from pgolf.core.model.slots import Absent
from pgolf.core.submit import exported_model

SMALL = {"vocab_size": 61, "num_layers": 4, "model_dim": 32, "num_heads": 4, "num_kv_heads": 2}


@pytest.mark.parametrize(
    "parts",
    [
        {"head_mix": HeadMixing()},
        {"head_mix": HeadMixing(values=True), "value_residual": ValueAdd()},
        {"head_mix": HeadMixing(values=True), "loop": LayerLoop(start=1, end=2, lora_rank=2)},
        {"head_mix": HeadMixing(), "head_gate": DenseGate(), "precision": Ternary(group=16, blocks="mlp")},
        {"multi_token": TokenHeads()},
        {"multi_token": TokenHeads(extra_tokens=3), "head_mix": HeadMixing(values=True)},
    ],
    ids=["queries and keys", "values", "low rank of passes", "ternary MLPs", "heads", "both"],
)
def test_the_exported_model_has_the_same_logits(make_model: Any, parts: dict[str, Any]) -> None:
    config = ModelConfig(**SMALL, **parts)
    model = make_model(config).eval()
    less = exported_model(model).eval()
    assert less.config == exported(config) != config
    assert isinstance(less.config.head_mix, Absent) and isinstance(less.config.multi_token, Absent)
    assert not [name for name in less.state_dict() if "mtp_heads" in name or ".attn.q_mix" in name]
    ids = torch.randint(0, 61, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before, after = model.head(model.hidden(ids)), less.head(less.hidden(ids))
    assert torch.allclose(before, after, atol=2e-5)
    if "head_mix" in parts:
        plain = GPT(less.config)
        plain.load_state_dict({name: model.get_parameter(name).data for name in less.state_dict()})
        with torch.no_grad():
            assert (plain.head(plain.hidden(ids)) - before).abs().max() > 1e-2, "the mixers did nothing"


def test_rows_of_heads_are_mixed_as_the_specification_has_it() -> None:
    config = ModelConfig(**SMALL, head_mix=HeadMixing())
    weights = dict(GPT(config).state_dict())
    weights["blocks.2.attn.k_mix"] = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
    before, after = weights["blocks.2.attn.c_k.weight"].clone(), exported_weights(config, weights)
    one, two = before.view(2, 8, 32)
    assert torch.allclose(after["blocks.2.attn.c_k.weight"], torch.cat((one + 2 * two, 0.5 * one - two)))
    for name in ("blocks.1.attn.c_k.weight", "blocks.2.attn.c_q.weight", "blocks.2.attn.c_v.weight"):
        assert torch.equal(after[name], weights[name])
    assert torch.equal(weights["blocks.2.attn.c_k.weight"], before), "the trained weights were changed"


@pytest.mark.parametrize(
    "parts",
    [
        {"precision": Ternary(group=16)},
        {"head_gate": OutputGate(reads="q", window=4)},
        {"loop": LayerLoop(start=1, end=2, own="control")},
    ],
    ids=["weights of few values", "a gate on raw queries", "mixers of passes"],
)
def test_mixers_stay_where_folding_would_change_the_model(parts: dict[str, Any]) -> None:
    config = ModelConfig(**SMALL, head_mix=HeadMixing(), **parts)
    assert exported(config) == config


def test_other_parts_are_exported_as_they_are(make_model: Any) -> None:
    config = ModelConfig(**SMALL, aux_loss=ZLoss())
    model = make_model(config)
    assert exported(config) == config
    assert exported_weights(config, model.state_dict()).keys() == model.state_dict().keys()
    lean = dataclasses.replace(config, multi_token=TokenHeads())
    assert param_specs(exported(lean)) == param_specs(config) != param_specs(lean)


def test_heads_that_look_beyond_a_row_are_refused() -> None:
    few = ["train.seq_len=64", "train.batch_tokens=512", "train.micro_batch_tokens=512", "model.multi_token=mtp_heads"]
    assert resolve("tiny", [*few, "model.multi_token.extra_tokens=63"])
    grown = ["train.length_schedule=growing", "train.length_schedule.first=16"]
    assert resolve("tiny", [*few, *grown, "model.multi_token.extra_tokens=15"])
    for more in (["model.multi_token.extra_tokens=64"], [*grown, "model.multi_token.extra_tokens=16"]):
        with pytest.raises(ConfigError, match="none that lies") as caught:
            resolve("tiny", [*few, *more])
        assert "model.multi_token.extra_tokens" in str(caught.value)
