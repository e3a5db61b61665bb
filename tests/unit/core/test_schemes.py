"""Few values, float8, int8 gates and quantizers by role: as the records store them, exact where they must be."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pgolf.core.artifact import decode_artifact, encode_artifact
from pgolf.core.codecs.adaptive import Rans
from pgolf.core.codecs.brotli import Brotli
from pgolf.core.codecs.zlib import Zlib
from pgolf.core.errors import ConfigError, InputError
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.gpt import GPT
from pgolf.core.model.params import ATTN, CONTROL, EMBED, MLP, control, matrix
from pgolf.core.model.parts.head_gate import DenseGate
from pgolf.core.model.parts.ternary import Binary, Ternary
from pgolf.core.model.slots import Absent
from pgolf.core.quant.base import quantize_model
from pgolf.core.quant.casts import Float8Cast, Int8Rows, KeepFloats
from pgolf.core.quant.curvature import Calibration
from pgolf.core.quant.few_values import BinaryCodes, TernaryCodes
from pgolf.core.quant.forms import Float8Tensor, GroupTensor32
from pgolf.core.quant.gptq import Gptq, gptq_codes
from pgolf.core.quant.grid import StepTensor
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.core.quant.roles import ByRole, known_by_role
from pgolf.core.quant.row_quantile import RowQuantile
from pgolf.core.quant.sdclip import Grid, SdClip
from pgolf.core.quant.variants import CoarseLayers
from pgolf.layouts.methods import Packed, all_codecs, arranged_artifact

CONFIG = ModelConfig(vocab_size=16, num_layers=2, model_dim=32, num_heads=2, num_kv_heads=2, head_gate=DenseGate())
MIXED = ByRole(embed=Float8Cast(), attn=SdClip(k=10.0), mlp=TernaryCodes(group=32), control=Int8Rows())


def spec_of(weight, role=MLP):
    """A matrix spec that fits a weight."""
    return matrix("w", *weight.shape, role)


def drawn(config, seed=0):
    """Normal weights for every parameter."""
    generator = torch.Generator().manual_seed(seed)
    return {spec.name: 0.1 * torch.randn(spec.shape, generator=generator) for spec in param_specs(config)}


@pytest.mark.parametrize("case", [0, 1])
def test_ternary_golden(oracle, case):
    data = oracle("quant_ternary.npz")
    weight, columns = torch.from_numpy(data[f"w{case}"]), int(data[f"padded_cols{case}"])
    whole = F.pad(weight, (0, columns - weight.size(1)))
    for one in (whole, weight):
        found = TernaryCodes(group=int(data[f"group{case}"])).quantize(spec_of(one), one, None)
        np.testing.assert_array_equal(found.codes, data[f"codes{case}"][:, : one.size(1)])
        np.testing.assert_array_equal(found.scale, data[f"scale{case}"])
        decoded = found.dequantize()[:, : weight.size(1)]
        np.testing.assert_allclose(decoded, data[f"decoded{case}"], rtol=0, atol=1e-7)
    trits = data[f"codes{case}"].ravel().astype(int) + 1
    packed = (np.pad(trits, (0, -len(trits) % 5)).reshape(-1, 5) * 3 ** np.arange(5)).sum(1)
    np.testing.assert_array_equal(packed, data[f"packed_base3_{case}"])


def test_float8_golden(oracle):
    data = oracle("quant_ternary.npz")
    weight = torch.from_numpy(data["fp8_w"])
    found = Float8Cast().quantize(spec_of(weight), weight, None)
    np.testing.assert_array_equal(found.dequantize(), data["fp8_decoded"])
    bits = found.dequantize().to(torch.float8_e4m3fn).view(torch.uint8)
    np.testing.assert_array_equal(bits, data["fp8_bytes"])


@pytest.mark.parametrize("case", ["sparse", "dense", "zero_row"])
def test_gates_golden(oracle, case):
    data = oracle("quant_gate_int8.npz")
    weight = torch.from_numpy(data[f"{case}.w"])
    found = Int8Rows().quantize(control("attn.attn_gate_w", weight.shape, 0.0), weight, None)
    sound = data[f"{case}.scales"] > 0
    np.testing.assert_array_equal(found.codes.numpy()[sound], data[f"{case}.codes"][sound])
    np.testing.assert_array_equal(found.scale.numpy()[sound], data[f"{case}.scales"][sound])
    assert found.sound() and not found.dequantize().numpy()[~sound].any()


@given(st.integers(0, 10_000), st.sampled_from([32, 64, 128]), st.sampled_from([1e-7, 1e-3, 1.0, 100.0]))
def test_what_was_trained_with_few_values_comes_back_as_it_was_used(seed, group, size):
    weight = size * torch.randn(5, 2 * group, generator=torch.Generator().manual_seed(seed))
    weight[0], weight[1, :7] = 0.0, 0.0
    for part, quantizer in ((Ternary, TernaryCodes), (Binary, BinaryCodes)):
        used = part(group=group, scales="float16")
        found = quantizer(group=group).quantize(spec_of(weight), weight, None)
        assert found.sound() and set(found.codes.unique().tolist()) <= {-1, 0, 1}
        again = used.weights(found.dequantize(), MLP)
        if part is Binary:  # zero weights count as positive, and so do the smallest
            again, weight = again[1:], weight[1:]
        torch.testing.assert_close(again, used.weights(weight, MLP), rtol=0, atol=0)


@given(st.integers(0, 10_000), st.sampled_from([1e-6, 1e-2, 1.0, 40.0]))
def test_float8_is_torchs_and_keeps_the_order(seed, size):
    weight = size * torch.randn(6, 9, generator=torch.Generator().manual_seed(seed))
    found = Float8Cast().quantize(spec_of(weight), weight, None)
    assert found.sound()
    torch.testing.assert_close(found.dequantize(), weight.to(torch.float8_e4m3fn).float(), rtol=0, atol=0)
    order = weight.flatten().argsort()
    assert bool((found.codes.flatten()[order].int().diff() >= 0).all())


def test_a_last_group_of_a_few_weights_has_a_scale_of_its_own():
    weight = torch.full((2, 40), 0.5)
    weight[:, 32:] = 2.0
    ternary, binary = (kind(group=32).quantize(spec_of(weight), weight, None) for kind in (TernaryCodes, BinaryCodes))
    for found in (ternary, binary):
        assert found.sound() and found.codes.shape == (2, 40)
        assert found.scale.tolist() == [0.5, 0.5, 0.5, 0.5], "8 of 32 weights of 2 are 0.5 in the mean"
        torch.testing.assert_close(found.dequantize(), weight, rtol=0, atol=0)
    assert not replace(ternary, scale=ternary.scale[:2]).sound()


NARROW = replace(CONFIG, model_dim=20, head_gate=Absent())


@pytest.mark.parametrize("codec", [Zlib(), Brotli(quality=2), Rans(), Rans(permute=True)])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_widths_that_no_group_divides_go_through_an_artifact(codec, group):
    made = quantize_model(NARROW, drawn(NARROW), TernaryCodes(group=group), {})
    made.assure_sound("here")
    blob = encode_artifact(made, codec, b"{}")
    found = decode_artifact(blob, NARROW, {codec.codec_id: codec})
    assert found.digest() == made.digest()
    for name, weight in made.weights().items():
        assert torch.equal(found.weights()[name], weight)
    packed = arranged_artifact(made, Packed(coder="store"), b"{}")
    assert decode_artifact(packed, NARROW, all_codecs()).digest() == made.digest()


def test_what_does_not_fit_is_named():
    with pytest.raises(InputError, match=r"w\.weight has values beyond float8's 448"):
        Float8Cast().quantize(spec_of(torch.ones(2, 4)), torch.full((2, 4), 449.0), None)
    with pytest.raises(InputError, match="too large for a float16 scale"):
        TernaryCodes(group=32).quantize(spec_of(torch.ones(2, 32)), torch.full((2, 32), 1e6), None)


def test_gates_are_chosen_by_name_shape_and_size():
    taker = Int8Rows(named="gate", least=10, most=20)
    shapes = {"a.gate": (4, 4), "b.gate": (3, 3), "c.gate": (5, 5), "d.gate": (16,), "e.mix": (4, 4)}
    coded = {
        name
        for name, shape in shapes.items()
        if isinstance(taker.quantize(control(name, shape, 0.0), torch.ones(shape), None), QTensor)
    }
    assert coded == {"a.gate"} and taker.step_over_sigma(control("a.gate", (4, 4), 0.0)) > 0


def test_every_role_has_its_scheme():
    made = quantize_model(CONFIG, drawn(CONFIG), MIXED, {})
    made.assure_sound("here")
    for spec in param_specs(CONFIG):
        tensor, gate = made.tensors[spec.name], spec.name.endswith("attn_gate_w")
        wanted = {EMBED: Float8Tensor, ATTN: QTensor, MLP: GroupTensor32, CONTROL: QTensor if gate else torch.Tensor}
        assert type(tensor) is wanted[spec.role], spec.name
        assert (MIXED.step_over_sigma(spec) > 0) == isinstance(tensor, QTensor)
    assert not made.tensors["blocks.0.attn.c_q.weight"].codes.abs().max() > 31


@pytest.mark.parametrize("codec", [Zlib(), Brotli(quality=2), Rans(), Rans(permute=True)])
def test_all_schemes_go_through_an_artifact(codec):
    made = quantize_model(CONFIG, drawn(CONFIG), MIXED, {})
    blob = encode_artifact(made, codec, b"{}")
    found = decode_artifact(blob, CONFIG, {codec.codec_id: codec})
    assert blob[4] == 3 and found.digest() == made.digest()
    assert [type(tensor) for tensor in found.tensors.values()] == [type(made.tensors[name]) for name in found.tensors]
    for name, weight in made.weights().items():
        assert torch.equal(found.weights()[name], weight)


def test_ternary_codes_are_packed_as_digits():
    made = quantize_model(CONFIG, drawn(CONFIG), MIXED, {})
    blob = arranged_artifact(made, Packed(coder="store"), b"{}")
    assert decode_artifact(blob, CONFIG, all_codecs()).digest() == made.digest()
    codes = sum(spec.numel for spec in param_specs(CONFIG) if spec.role == MLP)
    plain = encode_artifact(made, all_codecs()[0], b"{}")
    assert len(plain) - len(blob) > 0.79 * codes, "five codes of an MLP a byte"


GATED = ByRole(embed=SdClip(), attn=SdClip(), mlp=SdClip(), control=Int8Rows())


@pytest.mark.parametrize(("quantizer", "version"), [(Float8Cast(), 3), (GATED, 3), (KeepFloats(), 1)])
def test_the_version_tells_old_readers_what_they_cannot_read(quantizer, version):
    assert encode_artifact(quantize_model(CONFIG, drawn(CONFIG), quantizer, {}), Zlib(), b"{}")[4] == version


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("blocks.0.mlp.fc.weight", {"scale": torch.ones(3, dtype=torch.float16)}),
        ("blocks.0.mlp.fc.weight", {"scale": torch.zeros(64, dtype=torch.float16)}),
        ("blocks.0.mlp.fc.weight", {"scale": torch.ones(64)}),
        ("tok_emb.weight", {"codes": torch.full((16, 32), 127, dtype=torch.int8)}),
        ("tok_emb.weight", {"bits": 7}),
        ("blocks.0.mlp.fc.weight", {"bits": 8}),
    ],
)
def test_what_cannot_be_is_refused(name, change):
    made = quantize_model(CONFIG, drawn(CONFIG), MIXED, {})
    made.tensors[name] = replace(made.tensors[name], **change)
    with pytest.raises(InputError, match=name):
        made.assure_sound("here")


def test_codes_beyond_three_values_and_codes_of_vectors_are_refused():
    made = quantize_model(CONFIG, drawn(CONFIG), MIXED, {})
    wide = made.tensors["blocks.0.mlp.fc.weight"]
    made.tensors["blocks.0.mlp.fc.weight"] = replace(wide, codes=torch.full_like(wide.codes, 2))
    with pytest.raises(InputError, match=r"codes beyond ±1"):
        made.assure_sound("here")
    whole = QuantizedModel(CONFIG, {name: weight.float() for name, weight in drawn(CONFIG).items()})
    vector = next(spec for spec in param_specs(CONFIG) if len(spec.shape) == 1)
    whole.tensors[vector.name] = QTensor(torch.ones(vector.shape, dtype=torch.int8), torch.ones(vector.shape).half(), 8)
    with pytest.raises(InputError, match="has kind 1 with 8 bits"):
        decode_artifact(encode_artifact(whole, Zlib(), b"{}"), CONFIG, {1: Zlib()})


def test_a_quantizer_of_one_role_takes_its_own_bits():
    quantizer = ByRole(embed=SdClip(bits=7, k=14.0), attn=SdClip(step_ratio=0.5), mlp=SdClip(theta=2.0))
    embed, attn, mlp = (quantizer.step_over_sigma(matrix("w", 4, 4, role)) for role in (EMBED, ATTN, MLP))
    assert (embed, attn, mlp) == pytest.approx((14 / 63, 0.5, 2 * 12.85 / 31))
    layers = ByRole(mlp=CoarseLayers(layers="0", coarse=Grid(bits=4)))
    assert layers.step_over_sigma(matrix("blocks.0.mlp.fc", 4, 4, MLP)) == pytest.approx(12.85 / 7)


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: ByRole(embed=ByRole()), "embed.method"),
        (lambda: ByRole(mlp=RowQuantile(max_gap=1.0)), "mlp.max_gap"),
        (lambda: ByRole(mlp=SdClip(attn=Grid(bits=5))), "mlp.attn"),
        (lambda: ByRole(control=TernaryCodes()), "control.method"),
        (lambda: ByRole(attn=SdClip(control_dtype="float16")), "attn.control_dtype"),
        (lambda: ByRole(attn=Gptq(calibration_seqs=3)), "calibration_seqs"),
        (lambda: TernaryCodes(group=16), "group"),
        (lambda: Int8Rows(least=9, most=8), "least"),
    ],
)
def test_impossible_settings_are_refused(make, where):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.where == where


@pytest.mark.parametrize("quantizer", [SdClip, Gptq, lambda **keys: ByRole(mlp=SdClip(), control=KeepFloats(**keys))])
def test_control_tensors_are_stored_as_asked(quantizer):
    weights, controls = drawn(CONFIG), [spec.name for spec in param_specs(CONFIG) if spec.role == CONTROL]
    for dtype in (torch.float32, torch.float16):
        made = quantize_model(CONFIG, weights, quantizer(control_dtype=str(dtype).removeprefix("torch.")), {})
        assert controls and all(torch.equal(made.tensors[name], weights[name].to(dtype)) for name in controls)
        assert all(made.tensors[name].dtype == dtype for name in controls)
    with pytest.raises(InputError, match=controls[0]):
        quantize_model(
            CONFIG, weights | {controls[0]: weights[controls[0]] + 7e4}, quantizer(control_dtype="float16"), {}
        )


def test_one_calibration_serves_all_roles(make_model):
    model = make_model(CONFIG)
    size = {"calibration_seqs": 4, "calibration_seq_len": 16, "calibration_batch": 2}
    stream = type("Stream", (), {"take": lambda self, count: np.arange(count) % 16})()
    plain = ByRole(embed=Gptq(bits=8, **size), attn=Gptq(**size), mlp=TernaryCodes(group=32), head=SdClip())
    known = plain.prepare(model, stream, lambda done: None)
    name = "blocks.1.attn.c_q.weight"
    made = quantize_model(CONFIG, model.state_dict(), plain, known)
    whole = Gptq(**size)
    scale = whole.scales(matrix("w", 32, 32, ATTN), model.state_dict()[name])[1]
    wanted = gptq_codes(model.state_dict()[name], known[name], scale, 31, whole.damping, whole.block)
    assert torch.equal(made.tensors[name].codes, wanted)
    curved = replace(plain, attn=Gptq(steps="curvature", **size))
    again = curved.prepare(model, stream, lambda done: None)
    torch.testing.assert_close(again["tok_emb.weight"], known["tok_emb.weight"], rtol=1e-5, atol=1e-3)
    made = quantize_model(CONFIG, model.state_dict(), curved, again)
    assert type(made.tensors[name]) is StepTensor and type(made.tensors["tok_emb.weight"]) is QTensor
    assert ByRole(embed=SdClip(), attn=SdClip(), mlp=SdClip(), head=SdClip()).prepare(model, stream, print) == {}


def test_three_values_for_mlps_alone_leave_attention_as_it_is():
    model = GPT(replace(CONFIG, precision=Ternary(group=32, blocks="mlp", tables="float")))
    attn, mlp = (model.get_submodule(f"blocks.0.{name}") for name in ("attn.c_q", "mlp.fc"))
    assert attn.treatment is None and attn.weight[0].unique().numel() > 3 and mlp.used()[0].unique().numel() <= 3
    with pytest.raises(ConfigError, match="none of all, attn, mlp"):
        Ternary(blocks="head")
    with pytest.raises(ConfigError, match="neither float32 nor float16"):
        Ternary(scales="bfloat16")


def test_a_calibration_without_gradients_is_enough_for_plain_roles():
    known = known_by_role(ByRole(), param_specs(CONFIG), drawn(CONFIG), Calibration(inputs={"a": torch.ones(1)}))
    assert list(known) == ["a"]
