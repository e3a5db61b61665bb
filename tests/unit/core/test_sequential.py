"""Matrices quantized in turn: the run beside the float model is that of the quantized model, and what each matrix is
moved by is the least-squares correction, worked out matrix by matrix in float64.
"""

import dataclasses
import itertools
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pgolf.catalog import CATALOG
from pgolf.core.errors import ConfigError, InputError
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.gpt import GPT
from pgolf.core.model.params import CONTROL
from pgolf.core.model.parts.layer_loop import LayerLoop
from pgolf.core.model.parts.untied_embed import UntiedEmbed
from pgolf.core.quant.base import IN_TURN, paired_turn, quantize_model
from pgolf.core.quant.gptq import Gptq
from pgolf.core.quant.gptq_lqer import Lqer
from pgolf.core.quant.qtensor import QTensor
from pgolf.core.quant.roles import ByRole
from pgolf.core.quant.sequential import STREAM_SHARE, InTurn, PairedStream, Relay, held_batches
from pgolf.core.quant.variants import CoarseLayers, HessianClip, PrunedGptq
from pgolf.core.recipe import Recipe
from pgolf.core.shards import TrainStream
from tests.unit.core.test_techniques import ALL, batch, config_with

SMALL = {"vocab_size": 61, "num_layers": 3, "model_dim": 32, "num_heads": 4, "num_kv_heads": 2}
FEW = {"calibration_seqs": 6, "calibration_seq_len": 24, "calibration_batch": 2}


def by_role(in_turn):
    """GPTQ for each role."""
    return {role: Gptq(**FEW, sequential=in_turn) for role in ("embed", "attn", "mlp", "head")}


def stream_of(seed=0):
    """Training tokens."""
    return TrainStream([np.random.default_rng(seed).integers(4, 61, 4096).astype(np.uint16)])


def value_of(tensor):
    """What a stored tensor stands for."""
    return tensor.dequantize() if isinstance(tensor, QTensor) else tensor.float()


def nobody_left():
    """Whether all threads end, which they do a moment after they have said so."""
    for _ in range(200):
        if all(one.name != "in turn" for one in threading.enumerate()):
            return True
        time.sleep(0.01)
    return False


def watched(model):
    """The model, and the list to which every final hidden state goes."""
    seen, whole = [], model.hidden
    model.hidden = lambda *given, **words: seen.append(whole(*given, **words)) or seen[-1]
    return model, seen


@pytest.mark.parametrize(("slot", "kind"), [pair for pair in ALL if pair[0] != "precision"])
def test_the_second_half_of_the_batch_is_the_quantized_model(make_model, slot, kind):
    """With every technique: the float model is not disturbed, and beside it runs what will be stored, but for control
    tensors, which stay float32.
    """
    config = config_with(slot, kind)
    model, seen = watched(make_model(config).eval())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    quantizer = Gptq(bits=4, k=3.0, sequential=True)
    ids = batch(rows=4)
    known = {IN_TURN: InTurn(model, ids.split(3))}
    made = quantize_model(config, before, quantizer, known)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(getattr(node, "tap", None) is None for node in model.modules())
    control = [spec.name for spec in param_specs(config) if spec.role == CONTROL]
    other = GPT(config).eval()
    other.load_state_dict(made.weights() | {name: before[name] for name in control})
    exact, drifted = (torch.cat(halves) for halves in zip(*(one.chunk(2) for one in seen), strict=True))
    with torch.no_grad():
        torch.testing.assert_close(exact, model.hidden(ids), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(drifted, other.hidden(ids), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(exact, drifted, atol=1e-2)


def inputs_of(model, name, ids):
    """What a matrix is multiplied with when it is first used, (N,C) float64; hooks of torch's own function."""
    weight, seen, linear = dict(model.named_parameters())[name], [], F.linear

    def mapped(x, other, bias=None):
        if other.data_ptr() == weight.data_ptr():
            seen.append(x)
        return linear(x, other, bias)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "linear", mapped)
        model.hidden(ids)
    return seen[0].flatten(0, -2).double()


def lacking_of(exact, now, layer, ids):
    """What the stream before an MLP is given has of the float model, (N,C) float64: the block's first output without
    what its MLP said.
    """
    streams = []
    for model in (exact, now):
        outs, said, step = [], [], model.step
        node = model.get_submodule(f"blocks.{layer}.mlp.proj")
        model.step = lambda *given, step=step, outs=outs: outs.append((given[0].layer, step(*given))) or outs[-1][1]
        node.tap = lambda x, y, said=said: said.append(y.clone())
        with torch.no_grad():
            model.hidden(ids)
        del model.step
        node.tap = None
        lane = next(lanes[0] for number, lanes in outs if number == layer)
        scale = model.get_submodule(f"blocks.{layer}").mlp_scale.detach()
        streams.append((lane - scale * said[0]).flatten(0, -2).double())
    return streams[0] - streams[1], scale.double()


@pytest.mark.parametrize("loop", [{}, {"loop": LayerLoop(start=1, end=1, extra_passes=1)}])
def test_a_matrix_is_moved_by_the_least_squares_correction(make_model, loop):
    """Matrix by matrix through two whole models, as a reader of the paper would do it; and what the stream lacks, half
    of it, by the MLP's last matrix.
    """
    config = ModelConfig(**SMALL, **loop)
    model = make_model(config).eval()
    exact, ids, targets = dict(model.state_dict()), batch(rows=16), {}

    class Noting(Gptq):
        """Keeps what it is given."""

        def quantize(self, spec, weight, known):
            targets[spec.name] = weight, known
            return super().quantize(spec, weight, known)

    quantizer = Noting(bits=4, k=6.0, sequential=True)
    known = {name: torch.eye(exact[name].size(1)) for name in exact if exact[name].ndim == 2}
    made = quantize_model(config, exact, quantizer, known | {IN_TURN: InTurn(model, ids.split(3))})
    now = GPT(config).eval()
    now.load_state_dict(exact | {"tok_emb.weight": value_of(made.tensors["tok_emb.weight"])})
    layer = ["attn.c_q", "attn.c_k", "attn.c_v", "attn.proj", "mlp.fc", "mlp.proj"]
    for name in [f"blocks.{number}.{part}.weight" for number in range(3) for part in layer]:
        wanted, given = inputs_of(model, name, ids), inputs_of(now, name, ids)
        hessian = given.T @ given
        damped = hessian + 0.1 * hessian.diagonal().mean() * torch.eye(len(hessian)).double()
        weight = exact[name].double()
        asked = wanted @ weight.T
        if name.endswith("mlp.proj.weight"):
            lacking, scale = lacking_of(model, now, int(name[7]), ids)
            asked = asked + 0.5 * lacking * scale / (scale.square() + 1e-3 * scale.square().mean())
        moved = torch.linalg.solve(damped, (asked - given @ weight.T).T @ given, left=False)
        found, about = targets[name]
        torch.testing.assert_close(found.double(), weight + moved, rtol=2e-3, atol=2e-3)
        assert about is known[name], "steps and compensation are of the float model's inputs"
        if float((wanted - given).abs().max()) > 0:
            assert (asked - given @ found.double().T).norm() < 0.99 * (asked - given @ weight.T).norm()
        with torch.no_grad():
            dict(now.named_parameters())[name].copy_(value_of(made.tensors[name]))
    assert targets.keys() == exact.keys() and targets["tok_emb.weight"][0].equal(exact["tok_emb.weight"])


@pytest.mark.parametrize("kind", sorted(CATALOG["Residual"]))
def test_an_mlp_is_told_what_brings_all_lanes_nearest(make_model, kind):
    """Whatever the lanes, saying just that is best, and where there is one lane, nothing is lacking then."""
    model = make_model(config_with("residual", kind))
    generator = torch.Generator().manual_seed(3)
    lanes = tuple(torch.randn(4, 7, 32, generator=generator) for _ in range(2 if "two" in kind else 1))
    noise, more = torch.randn(2, 7, 32, generator=generator), list[torch.Tensor]()
    stream = PairedStream(model.config.residual)

    def apart(change):
        def mlp(x):
            more.append(stream.lacking() / STREAM_SHARE)
            said = x.chunk(2)[0].sin()
            return torch.cat((said, said + more[-1] + change))

        found = stream.block(model, 3, lanes, lambda x: 0.9 * x + 0.1, torch.tanh, mlp)
        return float(sum((lane.chunk(2)[0] - lane.chunk(2)[1]).square().sum() for lane in found))

    with torch.no_grad():
        best = apart(0.0)
        assert all(best < apart(step * noise) for step in (-0.1, 0.1, 1.0)) and best < apart(-more[0])
    assert len(lanes) == 2 or best < 1e-6


def test_batches_do_not_change_the_sums_and_their_order_is_the_same_every_time(make_model):
    """What was made of a batch of six is made of four and two, but for roundings; threads leave no trace."""
    model, ids = make_model(ModelConfig(**SMALL)).eval(), batch(rows=6)
    quantizer, weights = Gptq(bits=6, k=12.0, sequential=True), model.state_dict()
    found = [
        quantize_model(model.config, weights, quantizer, {IN_TURN: InTurn(model, ids.split(rows))})
        for rows in (6, 4, 4, 1)
    ]
    assert found[1].digest() == found[2].digest() and nobody_left()
    for name, weight in found[0].weights().items():
        spread = float(weight.std())
        assert all(float((other.weights()[name] - weight).square().mean().sqrt()) < 0.02 * spread for other in found)


@pytest.mark.parametrize("error", [InputError("no scale for it", "here"), KeyboardInterrupt(), MemoryError()])
def test_what_goes_wrong_in_a_thread_goes_wrong_outside(make_model, error):
    """And nobody is left waiting, nor the model changed."""
    model, count = make_model(ModelConfig(**SMALL)).eval(), itertools.count()

    def code(spec, weight, known):
        if next(count) == 9:
            raise error
        return Gptq().quantize(spec, weight, None)

    turn, config = InTurn(model, batch(rows=6).split(2)), model.config
    with pytest.raises(type(error)):
        turn.codes(model.state_dict(), {}, code)
    assert nobody_left() and model.config is config
    assert all(getattr(node, "tap", None) is None for node in model.modules())


def test_what_is_held_in_memory_has_a_bound():
    """A record's calibration has ten times as much; batches are taken whole."""
    rows = [(number, torch.zeros(8, 2048)) for number in range(96)]
    assert len(held_batches(iter(rows))) == 8 and len(held_batches(rows[:5])) == 5
    assert len(held_batches([(0, torch.zeros(3, 100_000)), *rows])) == 1


@pytest.fixture
def interruptible():
    """Python's own handler, whatever was there before."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_ends_the_threads_too(interruptible):
    """One that comes to whoever waits for them."""
    relay, seen = Relay(3), list[int]()

    def work(place):
        for _ in range(1000):
            seen.append(place)
            time.sleep(0.002)
            if len(seen) == 7:
                signal.raise_signal(signal.SIGINT)
            relay.rest()

    with pytest.raises(KeyboardInterrupt):
        relay.run(work)
    assert seen[:7] == [0, 1, 2, 0, 1, 2, 0] and len(seen) < 3000 and nobody_left()


@pytest.mark.parametrize(
    "quantizer",
    [
        Gptq(**FEW, sequential=True),
        Gptq(**FEW, sequential=True, steps="curvature", rounding="trellis", states=4, couple="rows"),
        Gptq(**FEW, sequential=True, calibration_source="self"),
        HessianClip(**FEW, sequential=True),
        PrunedGptq(**FEW, sequential=True),
        CoarseLayers(**FEW, sequential=True, layers="1"),
        ByRole(**by_role(True)),
    ],
    ids=lambda one: type(one).__name__,
)
def test_every_method_that_compensates_can_go_in_turn(make_model, quantizer):
    """With the tokens of the calibration, the same as without; tables and the untied output matrix are what they are
    without.
    """
    model = make_model(ModelConfig(**SMALL, embed=UntiedEmbed())).eval()
    weights, stream = model.state_dict(), stream_of()
    alone = isinstance(quantizer, Gptq)
    before: Any = dataclasses.replace(quantizer, sequential=False) if alone else ByRole(**by_role(False))
    known = quantizer.prepare(model, stream, lambda done: None)
    known |= paired_turn(quantizer, model, stream)
    usual, other = before.prepare(model, stream_of(), lambda done: None), stream_of()
    taken = 6 * 24 if getattr(quantizer, "calibration_source", "train") == "train" else 0
    assert stream.position == taken and known.keys() == usual.keys() | {IN_TURN}
    made, plain = (quantize_model(model.config, weights, *pair) for pair in ((quantizer, known), (before, usual)))
    made.assure_sound("test")
    if taken:
        assert torch.equal(torch.cat([*known[IN_TURN].batches]).flatten(), torch.from_numpy(other.take(taken)))
    same = {name for name in weights if torch.equal(value_of(made.tensors[name]), value_of(plain.tensors[name]))}
    assert {"tok_emb.weight", "lm_head.weight"} <= same
    assert not any(name.endswith((".fc.weight", ".mlp.proj.weight")) for name in same)


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match=r"model\.precision"):
        Recipe(model=config_with("precision", "ternary"), quant=Gptq(sequential=True))
    with pytest.raises(ConfigError, match="not in turn"):
        Lqer(sequential=True)
    with pytest.raises(ConfigError, match="same tokens"):
        ByRole(mlp=Gptq(sequential=True))
