"""Orders that the function does not depend on: it stays the same, the bytes become fewer, and what must stay stays."""

import numpy as np
import pytest
import torch

from pgolf.bundle.script import build_script
from pgolf.config.load import resolve
from pgolf.core.artifact import decode_artifact, encode_artifact
from pgolf.core.codecs.adaptive import Rans
from pgolf.core.codecs.zlib import Zlib
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.gpt import GPT
from pgolf.core.quant.base import quantize_model
from pgolf.core.quant.free_order import axis_order, by_steps, free_orders
from pgolf.core.quant.grid import StepTensor, TrellisTensor
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.core.quant.sdclip import SdClip

SORTED = Rans(permute=True)
TINY = ["tiny", "leader_tiny", "pr1394_tiny", "pr1493_tiny", "pr638_tiny", "pr1512_tiny"]
OTHERS = {
    "swiglu": ["model.mlp=swiglu"],
    "gated xsa": ["model.xsa=gated"],
    "own passes": ["model.loop=layers", "model.loop.start=1", "model.loop.end=1", "model.loop.own=mlp"],
    "lora passes": ["model.loop=layers", "model.loop.start=1", "model.loop.end=1", "model.loop.lora_rank=2"],
    "low rank": ["model.mlp=low_rank"],
    "value embedding": ["model.value_embed=shared", "model.value_embed.on=1"],
}


class Descents(Rans):
    """Takes as many bytes as there are numbers smaller than the one before: sorting always helps."""

    def encode(self, raw: bytes, shapes: object = ()) -> bytes:
        numbers = np.frombuffer(raw, "<u2").astype(int)
        return bytes(int((np.diff(numbers) < 0).sum()))


def uneven_model(config: ModelConfig, quantizer: SdClip) -> QuantizedModel:
    """A quantized model whose rows have different deviations, in no order."""
    draw, weights = torch.Generator().manual_seed(0), {}
    for spec in param_specs(config):
        values = torch.randn(spec.shape, generator=draw) * 0.3
        spread = torch.exp(torch.randn(spec.shape[:1], generator=draw) / 4).view(-1, *(1,) * (len(spec.shape) - 1))
        weights[spec.name] = values * spread if spec.shape else values
    return quantize_model(config, weights, quantizer, {})


def logits(model: QuantizedModel) -> torch.Tensor:
    """In double precision, so that a different order of sums hardly shows."""
    net = GPT(model.config)
    net.load_state_dict(model.weights())
    net = net.settle(torch.device("cpu")).eval().double()
    net.compute_dtype = torch.float64
    with torch.no_grad():
        return net.raw(net.hidden(torch.arange(60).view(2, 30) % model.config.vocab_size))


@pytest.mark.parametrize("sets", [[name] for name in TINY] + list(OTHERS), ids=str)
def test_the_function_stays_the_same(sets) -> None:
    preset, more = ("tiny", OTHERS[sets]) if isinstance(sets, str) else (sets[0], [])
    config = resolve(preset, more).config.model
    model = uneven_model(config, SdClip())
    found = by_steps(model, Descents(permute=True))
    changed = [name for name in model.tensors if found.tensors[name] is not model.tensors[name]]
    expected = {name for _, axes, _ in free_orders(config) for name in axes}
    assert set(changed) <= expected
    assert any(name.endswith("mlp.fc.weight") for name in changed) or sets == "low rank"
    before, after = logits(model), logits(found)
    assert (before - after).abs().max() < 1e-6 * before.abs().max()


@pytest.mark.parametrize("name", ["own passes", "lora passes"])
def test_later_passes_go_along(name: str) -> None:
    config = resolve("tiny", OTHERS[name]).config.model
    later = [name for _, axes, _ in free_orders(config) for name in axes if ".pass1." in name]
    assert len(later) >= 2


def test_units_and_channels_are_sorted_within_their_stretches() -> None:
    config = resolve("leader_tiny").config.model
    found = by_steps(uneven_model(config, SdClip()), Descents(permute=True))
    units, values = (found.tensors[f"blocks.3.{name}.weight"] for name in ("mlp.fc", "attn.c_v"))
    assert isinstance(units, QTensor) and isinstance(values, QTensor)
    assert bool((units.scale.diff() >= 0).all())
    heads = values.scale.view(config.num_kv_heads, -1)
    assert bool((heads.diff(dim=1) >= 0).all()) and heads[0, -1] > heads[1, 0]


def test_columns_follow_rows_head_by_head() -> None:
    assert axis_order(torch.tensor([[1, 0], [0, 1]]), 4).tolist() == [1, 0, 2, 3]
    assert axis_order(torch.tensor([[1, 0], [0, 1]]), 8).tolist() == [1, 0, 3, 2, 4, 5, 6, 7]


@pytest.mark.slow
def test_the_artifact_has_fewer_bytes_and_no_order_in_it() -> None:
    config = resolve("leader_tiny", ["model.model_dim=64"]).config.model
    model = uneven_model(config, SdClip())
    plain, small = encode_artifact(model, Rans(), b"{}"), encode_artifact(model, SORTED, b"{}")
    assert len(small) < len(plain)
    back = decode_artifact(small, config, {9: Rans()})
    assert back.digest() == by_steps(model, SORTED).digest() != model.digest()
    assert encode_artifact(back, SORTED, b"{}") == small


def test_nothing_moves_unless_asked_and_where_it_may_not() -> None:
    config = resolve("tiny").config.model
    model = uneven_model(config, SdClip())
    for codec in (Rans(), Zlib()):
        assert by_steps(model, codec).digest() == model.digest()
    assert list(free_orders(resolve("ternary_tiny").config.model)) == []
    embedded = resolve("tiny", OTHERS["value embedding"]).config.model
    assert not any("attn.c_v" in lead for lead, *_ in free_orders(embedded))


def test_rows_along_a_trellis_stay() -> None:
    config = resolve("tiny").config.model
    model, draw = uneven_model(config, SdClip()), torch.Generator().manual_seed(1)
    for name, tensor in model.tensors.items():
        if isinstance(tensor, QTensor):
            rows, columns = tensor.codes.shape
            sides = {
                "scale": torch.randint(-90, -60, (rows,), generator=draw).short(),
                "columns": torch.randint(-9, 9, (columns,), generator=draw).to(torch.int8),
            }
            step = StepTensor(tensor.codes, bits=8, **sides)
            trellis = TrellisTensor(tensor.codes, bits=8, memory=torch.tensor([2], dtype=torch.uint8), **sides)
            model.tensors[name] = trellis if "mlp.fc" in name else step
    found = by_steps(model, Descents(permute=True))
    moved = {name for name in model.tensors if found.tensors[name] is not model.tensors[name]}
    assert any("attn.c_v" in name for name in moved) and not any(".mlp." in name for name in moved)
    before, after = logits(model), logits(found)
    assert (before - after).abs().max() < 1e-6 * before.abs().max()


def test_scripts_carry_it_only_when_asked() -> None:
    names = ("ORDERS", "def by_steps", "def free_orders")
    for sets, expected in ([], False), (["compress.permute=true"], True):
        readable = build_script(resolve("tiny", ["compress.method=rans", *sets]).config).readable
        assert all((name in readable) is expected for name in names)
