"""Tuning after quantization: codes stay, and the model comes closer to the float model, on other text too."""

import dataclasses

import numpy as np
import pytest
import torch

from pgolf.core.artifact import decode_artifact, encode_artifact
from pgolf.core.codecs.store import Store
from pgolf.core.errors import ConfigError, InputError
from pgolf.core.model.config import param_specs
from pgolf.core.model.params import CONTROL, EMBED
from pgolf.core.quant.base import quantize_model
from pgolf.core.quant.corrected import CorrectedTensor
from pgolf.core.quant.curvature import collect_curvature
from pgolf.core.quant.gptq import Gptq
from pgolf.core.quant.gptq_lqer import Lqer
from pgolf.core.quant.qtensor import QTensor
from pgolf.core.quant.roles import ByRole
from pgolf.core.quant.sdclip import SdClip
from pgolf.core.quant.tuned import Predictor, affine, settled, tuned_to
from pgolf.core.quant.tuning import CrossEntropyTuning, KlTuning
from pgolf.core.shards import TrainStream

SMALL = {"steps": 40, "seqs": 8, "seq_len": 16}


def stream_of(seed):
    """Ids of a text in which many pairs recur."""
    ids = np.random.default_rng(seed).integers(0, 12, 4000)
    return TrainStream([(ids + 12 * (np.arange(4000) % 5)).astype(np.uint16)])


def divergence(model, weights, ids):
    """Nats per token by which a model with these weights diverges, computed in float64."""
    predictor = Predictor(model)
    with torch.no_grad():
        exact = predictor(ids).double()
        found = torch.func.functional_call(predictor, {f"model.{n}": w for n, w in weights.items()}, (ids,)).double()
    return float((exact.exp() * (exact - found)).sum(-1).mean())


def tune(model, quantizer, tuning, known=None):
    """The model quantized, and tuned."""
    weights = {name: weight.detach() for name, weight in model.state_dict().items()}
    made = quantize_model(model.config, weights, quantizer, known or {})
    return made, tuned_to(tuning, made, model, tuning.batches(stream_of(0)), lambda done: None)


@pytest.mark.parametrize(
    "quantizer",
    [SdClip(bits=4, k=4.0), Lqer(bits=4, k=4.0, top=2, rank=1), SdClip(bits=4, k=4.0, control_dtype="float16")],
)
def test_it_comes_closer_on_other_text_and_codes_stay(tiny_model, quantizer):
    made, found = tune(tiny_model, quantizer, KlTuning(**SMALL, rate=0.03))
    fresh = torch.from_numpy(stream_of(1).take(1024)).view(-1, 16)
    before, after = (divergence(tiny_model, one.weights(), fresh) for one in (made, found))
    assert after < 0.97 * before
    moved = 0
    for spec in param_specs(tiny_model.config):
        old, new = made.tensors[spec.name], found.tensors[spec.name]
        assert type(old) is type(new)
        if isinstance(old, QTensor):
            assert torch.equal(old.codes, new.codes) and new.scale.dtype == torch.float16
            moved += int((old.scale != new.scale).sum())
            ratio = new.scale.float() / old.scale.float()
            assert float(ratio.min()) > 0.5 and float(ratio.max()) < 2
        if isinstance(old, CorrectedTensor):
            assert torch.equal(new.scale, new.base.scale) and new.factors is old.factors
        if spec.role == CONTROL:
            assert str(new.dtype) == f"torch.{quantizer.control_dtype}" and not torch.equal(old, new)
    assert moved > 20
    assert (
        decode_artifact(encode_artifact(found, Store(), b"{}"), tiny_model.config, {0: Store()}).digest()
        == found.digest()
    )
    again = tune(tiny_model, quantizer, KlTuning(**SMALL, rate=0.03))[1]
    assert again.digest() == found.digest()


def test_cross_entropy_goes_down_on_its_own_text(tiny_model):
    quantizer, tuning = SdClip(bits=4, k=4.0), CrossEntropyTuning(**SMALL, rate=0.03)
    made, found = tune(tiny_model, quantizer, tuning)
    ids = torch.from_numpy(stream_of(0).take(2048)).view(-1, 16)

    def nats(model):
        predictor = Predictor(tiny_model)
        weights = {f"model.{name}": weight for name, weight in model.weights().items()}
        return float(tuning.loss(torch.func.functional_call(predictor, weights, (ids,)), predictor, ids))

    with torch.no_grad():
        logits = tiny_model.head(tiny_model.hidden(ids[:, :-1]))
        exact = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        own = tuning.loss(Predictor(tiny_model)(ids), Predictor(tiny_model), ids)
    assert float(own) == pytest.approx(float(exact))
    assert nats(found) < nats(made) - 0.01


def test_steps_on_the_grid_stay(tiny_model):
    quantizer = Gptq(bits=4, rounding="trellis", states=4, steps="curvature")
    batches = [(0, torch.from_numpy(stream_of(2).take(256)).view(-1, 16))]
    found = collect_curvature(tiny_model, batches, lambda done: None)
    known = quantizer.plan(param_specs(tiny_model.config), tiny_model.state_dict(), found)
    made, tuned = tune(tiny_model, quantizer, KlTuning(**SMALL), known)
    for spec in param_specs(tiny_model.config):
        old, new = made.tensors[spec.name], tuned.tensors[spec.name]
        assert new is old if isinstance(old, QTensor) else not torch.equal(old, new)


def test_what_moves_is_what_the_weights_are_made_of(tiny_model):
    weights = {name: weight.detach() for name, weight in tiny_model.state_dict().items()}
    made = quantize_model(tiny_model.config, weights, Lqer(bits=4, k=4.0, top=2, rank=1), {})
    for spec in param_specs(tiny_model.config):
        tensor = made.tensors[spec.name]
        if (found := affine(tensor, spec.role == CONTROL)) is not None:
            values, factor, rest = found
            exact = tensor.dequantize() if isinstance(tensor, QTensor) else tensor
            assert torch.equal(factor * values + rest, exact)
            same = settled(tensor, values)
            assert torch.equal(same.dequantize() if isinstance(same, QTensor) else same, exact)


def test_values_that_are_all_zero_stay(tiny_model):
    name = next(spec.name for spec in param_specs(tiny_model.config) if spec.role == CONTROL)
    with torch.no_grad():
        dict(tiny_model.named_parameters())[name].zero_()
    assert not bool(tune(tiny_model, SdClip(bits=4, k=4.0), KlTuning(**SMALL))[1].tensors[name].any())


def test_a_loss_that_is_no_number_ends_it(tiny_model):
    name = next(spec.name for spec in param_specs(tiny_model.config) if spec.role == EMBED)
    made = quantize_model(tiny_model.config, dict(tiny_model.state_dict()), SdClip(bits=4, k=4.0), {})
    old = made.tensors[name]
    made.tensors[name] = dataclasses.replace(old, scale=torch.full_like(old.scale, torch.inf))
    tuning = KlTuning(**SMALL)
    with pytest.raises(InputError, match="the loss of step 0 is nan"):
        tuned_to(tuning, made, tiny_model, tuning.batches(stream_of(0)), lambda done: None)


@pytest.mark.parametrize("values", [{"steps": 0}, {"seqs": 0}, {"seq_len": 1}, {"rate": 0.0}, {"rate": 1.0}])
def test_settings_that_make_no_sense_are_refused(values):
    (key,) = values
    with pytest.raises(ConfigError) as caught:
        KlTuning(**values)
    assert caught.value.where == key


def test_a_role_cannot_be_tuned_alone():
    with pytest.raises(ConfigError, match="whole model's"):
        ByRole(mlp=Gptq(tune=KlTuning()))
