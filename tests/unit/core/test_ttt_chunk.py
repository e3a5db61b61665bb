"""Chunk test-time training: the published run, what adapts and how fast, and that only what was scored is learned."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_records_golden import loaded, meta, record_1394, unbanked

from pgolf.core.bpb import ByteTable
from pgolf.core.dist import World
from pgolf.core.errors import ConfigError
from pgolf.core.evals.ledger import Ledger, evaluate
from pgolf.core.model.gpt import GPT
from pgolf.core.model.parts.layer_loop import LayerLoop
from pgolf.core.optim.muon import orthogonalise
from pgolf.core.optim.rates import ROLE_OF, role_of
from pgolf.core.ttt.chunk import ChunkTtt
from pgolf.core.ttt.steppers import TttAdamW, TttMuon, TttSgd
from pgolf.core.ttt.weights import Learner, WeightTraining

SMALL = {"seq_len": 16, "stride": 4, "chunk_tokens": 48, "lr": 0.05, "epochs": 2, "train_seqs": 2}
OPTIMIZERS = [TttSgd(), TttAdamW(), TttMuon()]


def stream_of(length, seed=0):
    """Random ids below 60."""
    return np.random.default_rng(seed).integers(0, 60, length)


def run(model, tokens, method):
    """The ledger after a method has run."""
    return evaluate(model, tokens, np.full(len(tokens) - 1, 2, np.uint16), method)[1]


def changed_by(model, method, tokens=None):
    """Names of the weights that a method has moved."""
    before = copy.deepcopy(model.state_dict())
    run(model, stream_of(150) if tokens is None else tokens, method)
    return {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}


@pytest.fixture
def looped(tiny_config, make_model) -> GPT:
    """The tiny model with a loop over its second layer."""
    return make_model(dataclasses.replace(tiny_config, loop=LayerLoop(start=1, end=1, extra_passes=1)))


def test_pr1493_chunk_golden(oracle):
    data = oracle("eval_ttt_chunk.npz")
    config, bounds = meta(data)["config"], meta(data)["tolerance"]
    settings = config | {"ln_scale": True}
    method = ChunkTtt(
        seq_len=config["window"],
        stride=config["stride"],
        chunk_tokens=config["chunk_tokens"],
        lr=config["lr"],
        epochs=config["epochs"],
        train_seqs=config["train_sequences_per_batch"],
        optimizer=TttSgd(momentum=config["momentum"]),
    )
    charges = ByteTable(data["base_bytes"], data["lead"], data["boundary"]).charges(data["tokens"])
    for epochs, suffix in ((0, "_frozen"), (config["epochs"], "")):
        model = loaded(record_1394(settings), unbanked(data, "init.", config["num_layers"]))
        score, ledger = evaluate(model, data["tokens"], charges, dataclasses.replace(method, epochs=epochs))
        assert score.val_loss == pytest.approx(float(data[f"val_loss{suffix}"]), abs=bounds["loss_abs"])
        assert score.bpb == pytest.approx(float(data[f"val_bpb{suffix}"]), abs=bounds["loss_abs"])
    np.testing.assert_allclose(ledger.losses[data["positions"]], data["nll"], atol=bounds["nll_abs"])
    final = unbanked(data, "final.", config["num_layers"])
    for name, weight in model.state_dict().items():
        np.testing.assert_allclose(weight, final[name].reshape(weight.shape), atol=bounds["final_abs"], err_msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("chunk", [0, 2])
def test_a_later_token_changes_no_earlier_score(tiny_model, optimizer, chunk):
    method, tokens = ChunkTtt(**SMALL, optimizer=optimizer), stream_of(230)
    flipped = tokens.copy()
    flipped[48 * (chunk + 1)] += 1 if tokens[48 * (chunk + 1)] < 59 else -1
    before, after = (run(copy.deepcopy(tiny_model), stream, method).losses for stream in (tokens, flipped))
    place = 48 * (chunk + 1) - 1
    assert before[:place].tobytes() == after[:place].tobytes()
    assert before[place] != after[place]
    assert (before[place + 1 :] != after[place + 1 :]).mean() > 0.9


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: type(one).__name__)
def test_weights_move_between_chunks_only_and_by_revealed_tokens(tiny_model, optimizer):
    events = []

    class Watched(Ledger):
        def score(self, windows):
            states = [copy.deepcopy(self.model.state_dict())]
            super().score(windows)
            states.append(self.model.state_dict())
            assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
            events.append(("score", self.done))

        def reveal(self, start, stop):
            events.append(("reveal", start, stop))
            return super().reveal(start, stop)

    tokens, method = stream_of(150), ChunkTtt(**SMALL, optimizer=optimizer)
    method.run(Watched(tiny_model, tokens, np.full(149, 2), method))
    scores = ["score", "reveal"] * 3 + ["score"]
    assert [event[0] for event in events] == scores
    assert [event[1:] for event in events if event[0] == "reveal"] == [(0, 49), (48, 97), (96, 145)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: type(one).__name__)
def test_every_optimizer_learns_a_repeating_stream(tiny_model, optimizer):
    tokens, lr = np.tile(stream_of(24), 12), 0.003 if isinstance(optimizer, TttAdamW) else 0.03
    still, moving = (
        run(
            copy.deepcopy(tiny_model), tokens, ChunkTtt(**{**SMALL, "epochs": epochs, "lr": lr}, optimizer=optimizer)
        ).losses[-48:]
        for epochs in (0, 3)
    )
    assert moving.mean() < still.mean() - 0.1


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: type(one).__name__)
def test_how_many_windows_are_scored_at_once_changes_nothing(tiny_model, optimizer):
    scores = [
        run(copy.deepcopy(tiny_model), stream_of(200), ChunkTtt(**SMALL, optimizer=optimizer, batch_seqs=size)).losses
        for size in (1, 7, 64)
    ]
    assert scores[0].tobytes() == scores[1].tobytes() == scores[2].tobytes()


def one_step(model, method, tokens):
    """The weights after one step, and the clipped gradients that step was taken from."""
    method = dataclasses.replace(method, epochs=1, train_seqs=3, schedule="constant")
    expected = copy.deepcopy(model)
    ids = torch.from_numpy(tokens[:49]).unfold(0, 17, 16)
    expected(ids[:, :-1], ids[:, 1:]).backward()
    torch.nn.utils.clip_grad_norm_(expected.parameters(), method.grad_clip)
    run(model, tokens[:90], method)
    grads = {name: weight.grad for name, weight in expected.named_parameters()}
    return dict(model.state_dict()), grads, dict(expected.state_dict())


def test_adamw_by_the_book(tiny_model):
    optimizer = TttAdamW(beta1=0.5, beta2=0.7, eps=1e-3, weight_decay=0.1)
    after, grads, before = one_step(tiny_model, ChunkTtt(**SMALL, optimizer=optimizer), stream_of(150))
    for name, grad in grads.items():
        wanted = before[name] * (1 - 0.05 * 0.1) - 0.05 * grad / (grad.abs() + 1e-3)
        torch.testing.assert_close(after[name], wanted, rtol=0, atol=1e-5)


def test_sgd_with_decay_by_the_book(tiny_model):
    method = ChunkTtt(**SMALL, optimizer=TttSgd(momentum=0.5, weight_decay=0.1))
    after, grads, before = one_step(tiny_model, method, stream_of(150))
    for name, grad in grads.items():
        torch.testing.assert_close(after[name], before[name] - 0.05 * (grad + 0.1 * before[name]), rtol=0, atol=1e-6)


def test_muon_steps_matrices_alone_and_by_the_book(tiny_model):
    method = ChunkTtt(**SMALL, grad_clip=1e9, optimizer=TttMuon(momentum=0.5, weight_decay=0.1))
    after, grads, before = one_step(tiny_model, method, stream_of(150))
    for name, grad in grads.items():
        wanted = before[name]
        if name.startswith("blocks.") and name.endswith(".weight"):
            shape = max(1.0, grad.size(0) / grad.size(1)) ** 0.5
            wanted = wanted * (1 - 0.05 * 0.1) - 0.05 * shape * orthogonalise(grad[None], 5, False)[0]
        torch.testing.assert_close(after[name], wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("role", [*dict.fromkeys(ROLE_OF.values()), "control"])
def test_one_role_adapts_and_nothing_else(tiny_model, role):
    names = {name for name, _ in tiny_model.named_parameters() if (role_of(name) or "control") == role}
    method = ChunkTtt(**SMALL, adapts=role)
    if names:
        assert changed_by(tiny_model, method) == names
    else:
        with pytest.raises(ConfigError, match="nothing of this model adapts"):
            run(tiny_model, stream_of(150), method)


def test_rates_by_layer_scale_what_a_step_does(tiny_model):
    moves = []
    for rates in ({}, {"input_rate": 0.5, "output_rate": 3.0}):
        model = copy.deepcopy(tiny_model)
        after, _, before = one_step(model, ChunkTtt(**SMALL, **rates), stream_of(150))
        moves.append({name: after[name] - before[name] for name in after})
    for name, move in moves[0].items():
        factor = {"q": 0.5, "k": 0.5, "v": 0.5, "up": 0.5, "o": 3.0, "down": 3.0}.get(role_of(name), 1.0)
        torch.testing.assert_close(moves[1][name], factor * move, rtol=1e-3, atol=1e-6)


def test_looped_blocks_learn_slowly_or_not_at_all(looped):
    moves = []
    for rate in (1.0, 0.1):
        after, _, before = one_step(copy.deepcopy(looped), ChunkTtt(**SMALL, looped_rate=rate), stream_of(150))
        moves.append({name: after[name] - before[name] for name in after})
    for name, move in moves[0].items():
        factor = 0.1 if name.startswith("blocks.1.") else 1.0
        torch.testing.assert_close(moves[1][name], factor * move, rtol=1e-3, atol=1e-6)
    still = {name for name, _ in looped.named_parameters() if name.startswith("blocks.1.")}
    everything = {name for name, _ in looped.named_parameters()}
    assert changed_by(looped, ChunkTtt(**SMALL, looped_rate=0.0)) == everything - still


def test_a_model_learns_without_its_loop_and_is_scored_with_it(looped):
    tokens, asked = stream_of(150), []
    step, looped.step = (
        looped.step,
        lambda *given: (asked.append((given[0].turn, torch.is_grad_enabled())), step(*given))[1],
    )
    run(looped, tokens, ChunkTtt(**SMALL, train_loop=False))
    assert {turn for turn, learning in asked if learning} == {0}
    assert {turn for turn, learning in asked if not learning} == {0, 1}
    assert looped.looping


def test_a_frozen_block_asks_for_no_gradient_while_it_learns_and_does_after(tiny_model):
    method = ChunkTtt(**SMALL, freeze_blocks=3, adapts="q,embed")
    learner = Learner(method, tiny_model, World())
    asking = {name for name, weight in tiny_model.named_parameters() if weight.requires_grad}
    assert asking == {"tok_emb.weight"}
    learner.end()
    assert all(weight.requires_grad for weight in tiny_model.parameters())


@given(st.integers(0, 5), st.integers(1, 40), st.sampled_from(["cosine", "constant"]))
def test_the_rate_rises_then_follows_its_schedule(warmup, chunks, schedule):
    method = WeightTraining(lr=2.0, warmup_chunks=warmup, schedule=schedule)
    rates = [method.rate(chunk, chunks) for chunk in range(chunks)]
    rising, rest = rates[:warmup], rates[warmup:]
    assert rising == [2.0 * (chunk + 1) / (warmup + 1) for chunk in range(min(warmup, chunks))]
    assert rest[:1] in ([], [2.0])
    if schedule == "constant":
        assert set(rest) <= {2.0}
    else:
        assert rest == sorted(rest, reverse=True)
        assert len(rest) < 2 or abs(rest[-1]) < 1e-12


@pytest.mark.parametrize("length", [2, 17, 49, 50, 65])
def test_a_chunk_as_long_as_the_stream_or_longer_is_only_scored(tiny_model, length):
    method = ChunkTtt(**{**SMALL, "chunk_tokens": 64})
    losses = run(tiny_model, stream_of(length), method).losses
    assert len(losses) == length - 1 and np.isfinite(losses).all()
    assert changed_by(tiny_model, method, stream_of(length)) == set()


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        ({"freeze_blocks": -1}, "freeze_blocks"),
        ({"warmup_chunks": -1}, "warmup_chunks"),
        ({"lr": -0.1}, "lr"),
        ({"input_rate": -1.0}, "input_rate"),
        ({"schedule": "linear"}, "schedule"),
        ({"adapts": "q,w"}, "adapts"),
        ({"adapts": ""}, "adapts"),
        ({"chunk_tokens": 100}, "chunk_tokens"),
        ({"stride": 0}, "stride"),
    ],
)
def test_impossible_settings_name_their_key(bad, key):
    with pytest.raises(ConfigError) as caught:
        ChunkTtt(**bad)
    assert caught.value.where == key


@pytest.mark.parametrize(
    "make",
    [
        lambda: TttSgd(momentum=-0.5),
        lambda: TttSgd(momentum=1.5),
        lambda: TttSgd(weight_decay=-1.0),
        lambda: TttAdamW(beta1=1.0),
        lambda: TttAdamW(eps=0.0),
        lambda: TttMuon(ns_steps=0),
        lambda: TttMuon(momentum=1.0),
    ],
)
def test_impossible_optimizers_are_refused(make):
    with pytest.raises(ConfigError):
        make()
