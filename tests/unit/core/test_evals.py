"""Evaluation scores each target once with the right context; test-time training learns only from what was scored."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from pgolf.core.bpb import ByteTable
from pgolf.core.dist import World
from pgolf.core.errors import ConfigError, InputError, RuleError
from pgolf.core.evals.base import Evaluator
from pgolf.core.evals.document import DocumentEval
from pgolf.core.evals.ledger import EvalWatch, Ledger, evaluate
from pgolf.core.evals.overlap import OverlapEval
from pgolf.core.evals.plain import PlainEval
from pgolf.core.evals.sliding import SlidingEval, sliding_windows
from pgolf.core.ttt.chunk import ChunkTtt
from pgolf.core.ttt.steppers import TttSgd

STREAMS = range(6)


def scored(model, tokens, method, watch=None):
    """The score and the ledger of a stream whose every target is charged two bytes."""
    return evaluate(model, tokens, np.full(max(len(tokens) - 1, 0), 2, np.uint16), method, watch or EvalWatch())


def table_of(data):
    """The byte table of a golden file."""
    return ByteTable(data["base_bytes"], data["lead"], data["boundary"])


def stream_of(length, seed=0):
    """Random ids below 60."""
    return np.random.default_rng(seed).integers(0, 60, length)


def losses_of(model, tokens, method):
    """Every target's loss under a method, on a copy of the model."""
    return scored(copy.deepcopy(model), tokens, method)[1].losses


class Replay(torch.nn.Module):
    """Stands in for a model: hands out stored losses window by window and notes what it was asked."""

    def __init__(self, rows):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rows, self.asked = list(rows), []

    def nll(self, ids, targets, start=0):
        self.asked.append((ids, targets, start))
        taken, self.rows = self.rows[: len(ids)], self.rows[len(ids) :]
        return torch.from_numpy(np.stack(taken))[:, start:]


# Windows


@pytest.mark.parametrize("stream", STREAMS)
def test_sliding_windows_golden(oracle, stream):
    data = oracle("eval_sliding.npz")
    windows = sliding_windows(len(data[f"tokens_{stream}"]) - 1, int(data["window"]), int(data["stride"]))
    np.testing.assert_array_equal(windows, data[f"window_start_from_to_{stream}"])
    scored = np.concatenate([np.arange(start + first, start + end) for start, first, end in windows])
    np.testing.assert_array_equal(scored, data[f"scored_positions_{stream}"])


@pytest.mark.parametrize("batch_seqs", [1, 4, 100])
@pytest.mark.parametrize("stream", range(5))
def test_the_right_losses_of_each_window_are_taken_golden(oracle, stream, batch_seqs):
    data = oracle("eval_sliding.npz")
    tokens, windows = data[f"tokens_{stream}"], data[f"window_start_from_to_{stream}"]
    replay = Replay(data[f"window_nll_{stream}"])
    method = SlidingEval(seq_len=64, stride=16, batch_seqs=batch_seqs)
    score, ledger = evaluate(replay, tokens, table_of(data).charges(tokens), method)
    np.testing.assert_array_equal(ledger.losses[data[f"scored_positions_{stream}"]], data[f"scored_nll_{stream}"])
    assert score.val_loss == pytest.approx(float(data[f"val_loss_{stream}"]), abs=1e-9)
    assert score.bpb == pytest.approx(float(data[f"val_bpb_{stream}"]), abs=1e-9)
    assert score.tokens == len(tokens) - 1
    ids, targets = (torch.cat(parts) for parts in list(zip(*replay.asked, strict=True))[:2])
    for row, (start, _, end) in enumerate(windows):
        assert ids[row, :end].tolist() == tokens[start : start + end].tolist()
        assert targets[row, :end].tolist() == tokens[start + 1 : start + end + 1].tolist()


def test_plain_evaluation_charges_golden_bytes(oracle):
    data = oracle("eval_sliding.npz")
    tokens = data["plain_tokens"]
    score, _ = evaluate(
        Replay(np.ones((6, 64), np.float32)), tokens, table_of(data).charges(tokens), PlainEval(seq_len=64)
    )
    assert (score.tokens, score.nats) == (384, 384.0)
    per_byte = float(data["plain_val_bpb"]) / float(data["plain_val_loss"])
    assert score.bpb / score.val_loss == pytest.approx(per_byte, rel=1e-12)


def test_windows_without_overlap():
    assert sliding_windows(10, 4, 4).tolist() == [[0, 0, 4], [4, 0, 4], [8, 0, 2]]
    assert sliding_windows(8, 4, 4).tolist() == [[0, 0, 4], [4, 0, 4]]
    assert sliding_windows(1, 4, 4).tolist() == [[0, 0, 1]]


settings_of_a_window = st.integers(1, 40).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length)))


@given(st.integers(1, 300), settings_of_a_window)
@example(3, (4, 1))
def test_every_target_is_scored_once_with_enough_context(targets, setting):
    seq_len, stride = setting
    seen = np.zeros(targets, int)
    for index, (start, first, end) in enumerate(sliding_windows(targets, seq_len, stride)):
        assert 0 <= first < end <= seq_len
        assert start + end <= targets
        assert first == (0 if index == 0 else seq_len - stride)
        seen[start + first : start + end] += 1
    assert seen.tolist() == [1] * targets


# Scores of a real model


def test_sliding_losses_equal_a_direct_computation(tiny_model):
    tokens = stream_of(75)
    losses = losses_of(tiny_model, tokens, SlidingEval(seq_len=16, stride=5, batch_seqs=3))
    with torch.no_grad():
        for target in (0, 1, 10, 15, 16, 20, 21, 40, 73):
            start = 0 if target < 16 else 5 * math.ceil((target - 15) / 5)
            ids = torch.from_numpy(tokens[start : target + 1])[None]
            logits = tiny_model.head(tiny_model.hidden(ids))[0, -1]
            wanted = F.cross_entropy(logits, torch.tensor(tokens[target + 1]))
            assert float(losses[target]) == pytest.approx(float(wanted), abs=1e-5)


def test_the_score_sums_the_ledger(tiny_model):
    tokens = stream_of(90)
    score, ledger = scored(tiny_model, tokens, PlainEval(seq_len=16))
    assert (score.tokens, score.bytes) == (89, 178)
    assert score.nats == float(ledger.losses.astype(np.float64).sum())
    assert 3.5 < score.val_loss < 6


EVERY_BATCH = [
    SlidingEval(seq_len=16, stride=6),
    SlidingEval(seq_len=16, stride=1),
    PlainEval(seq_len=16),
    DocumentEval(seq_len=16, stride=5),
    OverlapEval(seq_len=16, overlap=9),
    ChunkTtt(seq_len=16, stride=4, chunk_tokens=48, lr=0.05, epochs=2, train_seqs=2),
]


@pytest.mark.parametrize("method", EVERY_BATCH, ids=lambda method: type(method).__name__ + str(method.seq_len))
def test_the_batch_size_does_not_change_one_bit(tiny_model, method):
    tokens = stream_of(203)
    losses = [losses_of(tiny_model, tokens, replace(method, batch_seqs=size)) for size in (1, 2, 7, 64)]
    for other in losses[1:]:
        assert other.tobytes() == losses[0].tobytes()


@pytest.mark.parametrize("stride", [1, 7])
def test_nor_does_it_where_windows_are_longer_than_what_they_score(tiny_model, stride):
    tokens, method = stream_of(180), SlidingEval(seq_len=96, stride=stride)
    losses = [losses_of(tiny_model, tokens, replace(method, batch_seqs=size)) for size in (1, 7)]
    assert losses[0].tobytes() == losses[1].tobytes()


def test_longer_context_is_seen(tiny_model):
    tokens = stream_of(120)
    plain = losses_of(tiny_model, tokens, PlainEval(seq_len=16))
    sliding = losses_of(tiny_model, tokens, SlidingEval(seq_len=16, stride=4))
    np.testing.assert_allclose(plain[:16], sliding[:16], rtol=0, atol=1e-5)
    assert (np.abs(plain[16:] - sliding[16:]) > 1e-4).mean() > 0.5


def test_max_tokens_scores_a_prefix(tiny_model):
    tokens = stream_of(100)
    score, ledger = scored(tiny_model, tokens, SlidingEval(seq_len=16, stride=4, max_tokens=37))
    whole = losses_of(tiny_model, tokens, SlidingEval(seq_len=16, stride=4))
    assert (score.tokens, score.bytes, ledger.targets) == (37, 74, 37)
    np.testing.assert_allclose(ledger.losses, whole[:37], rtol=0, atol=1e-5)
    for limit in (0, 99, 500):
        score, ledger = scored(tiny_model, tokens, PlainEval(seq_len=16, max_tokens=limit))
        assert (score.tokens, ledger.targets) == (99, 99)


def test_progress_counts_up_to_all(tiny_model):
    seen = []

    class Listening(EvalWatch):
        def advanced(self, ledger):
            seen.append((ledger.done, ledger.targets))

    scored(tiny_model, stream_of(70), PlainEval(seq_len=8, batch_seqs=2), Listening())
    assert seen == [(16, 69), (32, 69), (48, 69), (64, 69), (69, 69)]


def test_two_tokens_are_the_shortest_stream(tiny_model):
    score, _ = scored(tiny_model, stream_of(2), SlidingEval(seq_len=16, stride=4))
    assert score.tokens == 1
    for tokens in (stream_of(1), stream_of(0)):
        with pytest.raises(InputError, match="fewer than two tokens"):
            scored(tiny_model, tokens, PlainEval(seq_len=16))


# The ledger's rules


def open_ledger(model, tokens=None):
    """A ledger over 40 tokens."""
    tokens = stream_of(40) if tokens is None else tokens
    return Ledger(model, tokens, np.full(max(len(tokens) - 1, 0), 2), Evaluator(seq_len=10))


def windows_of(*rows):
    """An array of (start, first, end)."""
    return np.array(rows)


@pytest.mark.parametrize(
    "second", [windows_of((0, 0, 10)), windows_of((9, 0, 3)), windows_of((5, 4, 5)), windows_of((20, 0, 5), (20, 4, 6))]
)
def test_no_target_is_scored_twice(tiny_model, second):
    ledger = open_ledger(tiny_model)
    ledger.score(windows_of((0, 0, 10)))
    before = ledger.losses[:10].copy()
    with pytest.raises(RuleError, match="scored twice") as caught:
        ledger.score(second)
    assert caught.value.exit_code == 4
    np.testing.assert_array_equal(ledger.losses[:10], before)


def test_missing_targets_have_no_total(tiny_model):
    ledger = open_ledger(tiny_model)
    ledger.score(windows_of((0, 0, 10), (10, 0, 10), (20, 0, 10), (30, 1, 9)))
    with pytest.raises(RuleError, match="1 targets were never scored"):
        ledger.total()
    ledger.score(windows_of((25, 5, 6)))
    assert ledger.total().tokens == 39


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_are_refused(value):
    rows = np.ones((2, 10), np.float32)
    rows[1, 3] = value
    ledger = open_ledger(Replay(rows))
    with pytest.raises(RuleError, match=r"not finite \(target 13\)"):
        ledger.score(windows_of((0, 0, 10), (10, 0, 10)))


def test_tokens_are_revealed_after_their_score_only(tiny_model):
    tokens = stream_of(40)
    ledger = open_ledger(tiny_model, tokens)
    assert ledger.reveal(0, 1).tolist() == [tokens[0]]
    with pytest.raises(RuleError, match="before it was scored"):
        ledger.reveal(0, 2)
    ledger.score(windows_of((0, 0, 10)))
    assert ledger.reveal(0, 11).tolist() == tokens[:11].tolist()
    assert ledger.reveal(4, 11).tolist() == tokens[4:11].tolist()
    for start, stop in ((0, 12), (10, 12), (11, 12), (30, 31)):
        with pytest.raises(RuleError, match="before it was scored"):
            ledger.reveal(start, stop)
    ledger.score(windows_of((12, 0, 5)))
    with pytest.raises(RuleError, match="before it was scored"):
        ledger.reveal(12, 17)
    assert ledger.reveal(13, 18).tolist() == tokens[13:18].tolist()


def test_what_is_learned_from_is_what_was_committed(tiny_model):
    ledger = open_ledger(tiny_model)
    given = ledger.score_learnable(tiny_model, windows_of((0, 2, 7), (8, 3, 9)), 10, 2).detach().numpy()
    wanted = np.zeros((2, 8), np.float32)
    wanted[0, :5], wanted[1, 1:7] = ledger.losses[2:7], ledger.losses[11:17]
    np.testing.assert_array_equal(given, wanted)
    assert np.isfinite(ledger.losses).nonzero()[0].tolist() == [*range(2, 7), *range(11, 17)]


class Beside(World):
    """A rank whose peer says what is noted in `said`."""

    said: torch.Tensor | None = None

    def max_(self, tensor):
        theirs, type(self).said = type(self).said, tensor.clone()
        return tensor if theirs is None else torch.maximum(tensor, theirs)


def test_what_another_rank_has_scored_is_taken_over_and_nothing_else(tiny_model):
    mine, theirs = (open_ledger(tiny_model) for _ in range(2))
    mine.watch = theirs.watch = EvalWatch(Beside())
    mine.commit(3, np.array([0.25, 0.0, 5.0], np.float32))
    theirs.commit(6, np.array([0.0, 0.5, 7.0, 0.125], np.float32))
    theirs.exchange(2, 9)
    mine.exchange(2, 9)
    assert mine.losses[3:9].tolist() == [0.25, 0.0, 5.0, 0.0, 0.5, 7.0]
    assert np.isfinite(mine.losses).sum() == mine.done == 6, "and nothing that no rank knows or that was not asked for"


def test_charges_that_are_not_as_many_as_targets_are_refused(tiny_model):
    for count in (38, 40):
        with pytest.raises(InputError, match=rf"{count} byte charges for 39 targets"):
            Ledger(tiny_model, stream_of(40), np.full(count, 2), Evaluator(seq_len=10))


def test_a_ledger_hands_out_where_documents_begin_and_no_other_token(tiny_model):
    tokens = np.array([1, 5, 6, 1, 7, 8, 9, 1])
    charges = np.ones(len(tokens) - 1, np.int64)
    ledger = Ledger(tiny_model, tokens, charges, DocumentEval(seq_len=4, stride=2))
    assert ledger.layout().tolist() == [1, -1, -1, 1, -1, -1, -1, 1]
    open_to_all = [value for name, value in vars(ledger).items() if not name.startswith("_")]
    assert sum(isinstance(value, np.ndarray) for value in open_to_all) == 2, "losses and charges"
    assert not hasattr(ledger, "tokens")


def test_scoring_leaves_weights_and_gradients_alone(tiny_model):
    before = copy.deepcopy(tiny_model.state_dict())
    scored(tiny_model, stream_of(60), SlidingEval(seq_len=16, stride=4))
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_model.state_dict().items())
    assert all(weight.grad is None for weight in tiny_model.parameters())


# Test-time training

TTT = {"seq_len": 16, "stride": 4, "chunk_tokens": 48, "lr": 0.05, "epochs": 2, "train_seqs": 2}


def test_chunks_golden(oracle, make_model, tiny_config):
    data = oracle("eval_ttt_chunk.npz")
    method = ChunkTtt(
        seq_len=int(data["window"]), stride=int(data["stride"]), chunk_tokens=int(data["chunk_tokens"]), epochs=1
    )
    ledger = Ledger(make_model(tiny_config), data["tokens"], table_of(data).charges(data["tokens"]), method)
    order, chunks, commit, reveal = [], [], ledger.commit, ledger.reveal
    ledger.commit = lambda position, losses: (order.append(position + np.arange(len(losses))), commit(position, losses))
    ledger.reveal = lambda start, stop: (chunks.append((start, stop, sum(map(len, order)))), reveal(start, stop))[1]
    method.run(ledger)
    np.testing.assert_array_equal(np.concatenate(order), data["positions"])
    scored_before = [int((data["chunk"] <= chunk).sum()) for chunk in range(3)]
    assert chunks == [(96 * chunk, 96 * chunk + 97, scored_before[chunk]) for chunk in range(3)]


def test_without_epochs_it_is_the_sliding_evaluation(tiny_model):
    tokens = stream_of(230)
    sliding = losses_of(tiny_model, tokens, SlidingEval(seq_len=16, stride=4, batch_seqs=1))
    still = losses_of(tiny_model, tokens, ChunkTtt(**{**TTT, "epochs": 0}, batch_seqs=1))
    assert sliding.tobytes() == still.tobytes()
    one_chunk = losses_of(tiny_model, tokens, ChunkTtt(**{**TTT, "chunk_tokens": 300}, batch_seqs=8))
    assert (
        one_chunk.tobytes() == losses_of(tiny_model, tokens, SlidingEval(seq_len=16, stride=4, batch_seqs=8)).tobytes()
    )


def test_the_first_chunk_is_scored_before_any_learning(tiny_model):
    tokens = stream_of(230)
    still, moving = (losses_of(tiny_model, tokens, ChunkTtt(**{**TTT, "lr": lr})) for lr in (0.0, 0.05))
    first = TTT["chunk_tokens"]
    assert still[:first].tobytes() == moving[:first].tobytes()
    assert (still[first:] != moving[first:]).mean() > 0.95
    assert np.abs(still[first:] - moving[first:]).max() > 1e-3


def test_learning_from_a_repeating_stream_pays(tiny_model):
    tokens = np.tile(stream_of(24), 12)
    still, moving = (losses_of(tiny_model, tokens, ChunkTtt(**{**TTT, "epochs": epochs})) for epochs in (0, 3))
    assert moving[-48:].mean() < still[-48:].mean() - 0.2


@pytest.mark.parametrize("stride", [4, 5, 16])
@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_scores_do_not_depend_on_later_tokens(tiny_model, stride, chunk):
    method, tokens = ChunkTtt(**{**TTT, "stride": stride}), stream_of(230)
    windows = sliding_windows(229, 16, stride)
    known = windows[(windows[:, 0] + windows[:, 1]) // 48 <= chunk]
    scored = int((known[:, 0] + known[:, 2]).max())
    other = tokens.copy()
    other[scored + 1 :] = (tokens[scored + 1 :] + 7) % 60
    before, after = (losses_of(tiny_model, stream, method) for stream in (tokens, other))
    assert before[:scored].tobytes() == after[:scored].tobytes()
    assert (before[scored:] != after[scored:]).mean() > 0.9


def straightforward(model, tokens, method):
    """Losses by the book: one window at a time, momentum and clipping written out by torch's own optimizer."""
    targets, losses = len(tokens) - 1, np.full(len(tokens) - 1, np.nan)
    context, ids = method.seq_len - method.stride, torch.from_numpy(tokens)
    chunks = math.ceil(targets / method.chunk_tokens)
    optimizer = torch.optim.SGD(model.parameters(), lr=method.lr, momentum=method.optimizer.momentum)
    starts = [start for start in range(0, targets, method.stride) if start == 0 or start + context < targets]
    for chunk in range(chunks):
        with torch.no_grad():
            for start in starts:
                first = context if start else 0
                if (start + first) // method.chunk_tokens == chunk:
                    stop = min(start + method.seq_len, targets)
                    logits = model.head(model.hidden(ids[None, start:stop]))[0]
                    nll = F.cross_entropy(logits, ids[start + 1 : stop + 1], reduction="none")
                    losses[start + first : stop] = nll[first:].numpy()
        if chunk + 1 == chunks:
            break
        for group in optimizer.param_groups:
            group["lr"] = method.lr * (1 + math.cos(math.pi * chunk / (chunks - 1))) / 2
        learn(model, ids, chunk * method.chunk_tokens, method, optimizer)
    return losses


def learn(model, ids, begin, method, optimizer):
    """Epochs of SGD over the whole sequences of one chunk."""
    begins = [begin + index * method.seq_len for index in range(method.chunk_tokens // method.seq_len)]
    for _ in range(method.epochs):
        for index in range(0, len(begins), method.train_seqs):
            group = begins[index : index + method.train_seqs]
            x = torch.stack([ids[at : at + method.seq_len] for at in group])
            y = torch.stack([ids[at + 1 : at + 1 + method.seq_len] for at in group])
            optimizer.zero_grad()
            F.cross_entropy(model.head(model.hidden(x)).flatten(0, 1), y.flatten()).backward()
            norm = torch.sqrt(sum((weight.grad**2).sum() for weight in model.parameters()))
            for weight in model.parameters():
                weight.grad *= min(1.0, method.grad_clip / (float(norm) + 1e-6))
            optimizer.step()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"stride": 5},
        {"train_seqs": 3, "epochs": 1},
        {"chunk_tokens": 40},
        {"optimizer": TttSgd(momentum=0.0), "grad_clip": 0.1},
    ],
    ids=str,
)
def test_an_independent_implementation_agrees(tiny_model, change):
    method, tokens = ChunkTtt(**{**TTT, **change}), stream_of(230)
    mine = straightforward(copy.deepcopy(tiny_model), tokens, method)
    theirs = losses_of(tiny_model, tokens, method)
    np.testing.assert_allclose(theirs, mine, rtol=0, atol=2e-4)
    assert np.abs(mine - losses_of(tiny_model, tokens, ChunkTtt(**{**TTT, **change, "lr": 0.0}))).max() > 0.02


def test_frozen_blocks_stay_frozen(tiny_model):
    before = copy.deepcopy(tiny_model.state_dict())
    scored(tiny_model, stream_of(150), ChunkTtt(**TTT, freeze_blocks=2))
    changed = {name for name, weight in tiny_model.state_dict().items() if not torch.equal(weight, before[name])}
    frozen = {name for name in before if name.startswith(("blocks.0.", "blocks.1."))}
    assert changed == set(before) - frozen
    assert all(weight.grad is None for weight in tiny_model.parameters())


@given(st.integers(1, 120), settings_of_a_window, st.integers(0, 30))
def test_every_target_is_scored_once_whatever_the_chunks(targets, setting, extra):
    seq_len, stride = setting
    method = ChunkTtt(seq_len=seq_len, stride=stride, chunk_tokens=seq_len + extra, epochs=0, batch_seqs=1)
    model = Replay(np.ones((len(sliding_windows(targets, seq_len, stride)), seq_len), np.float32))
    score, ledger = scored(model, stream_of(targets + 1), method)
    assert (score.tokens, score.nats, ledger.done) == (targets, float(targets), targets)


@pytest.mark.parametrize(("targets", "chunk_tokens", "stride"), [(101, 100, 48), (205, 100, 48), (65, 64, 63)])
def test_a_last_chunk_that_an_earlier_window_already_covers(tiny_model, targets, chunk_tokens, stride):
    method = ChunkTtt(seq_len=64, stride=stride, chunk_tokens=chunk_tokens, lr=0.01, epochs=1)
    losses = losses_of(tiny_model, stream_of(targets + 1), method)
    assert len(losses) == targets
    assert bool(np.isfinite(losses).all())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Evaluator(seq_len=0),
        lambda: Evaluator(batch_seqs=0),
        lambda: Evaluator(max_tokens=-1),
        lambda: SlidingEval(batch_seqs=0),
        lambda: OverlapEval(batch_seqs=0),
        lambda: DocumentEval(batch_seqs=0),
        lambda: ChunkTtt(batch_seqs=0),
        lambda: Evaluator(budget_seconds=-1.0),
        lambda: Evaluator(num_loops=-1),
        lambda: SlidingEval(seq_len=16, stride=17),
        lambda: SlidingEval(seq_len=16, stride=0),
        lambda: ChunkTtt(seq_len=64, chunk_tokens=63),
        lambda: ChunkTtt(train_seqs=0),
        lambda: ChunkTtt(epochs=-1),
        lambda: ChunkTtt(grad_clip=0.0),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(ConfigError):
        make()
