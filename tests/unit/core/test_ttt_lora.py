"""Test-time training per document: published vectors, who may know what of whom, and every target scored once."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_records_golden import ids_of, loaded, meta, record_1855, unbanked

from pgolf.core.errors import ConfigError, InputError, RuleError
from pgolf.core.evals.context_slot import SlotAdamW
from pgolf.core.evals.document import document_begins
from pgolf.core.evals.exact_cache import ExactCache
from pgolf.core.evals.hedge import HedgeMixer
from pgolf.core.evals.ledger import EvalWatch, Ledger, evaluate
from pgolf.core.evals.online_bias import OnlineBias
from pgolf.core.evals.temperature import FixedTemperature
from pgolf.core.evals.token_tilt import TokenTilt
from pgolf.core.model.config import ModelConfig
from pgolf.core.model.parts.by_document import ByDocument
from pgolf.core.model.parts.layer_loop import LayerLoop
from pgolf.core.model.slots import Part
from pgolf.core.ttt.adapters import AdaptedGPT, Adapters
from pgolf.core.ttt.documents import chunk_window, deal, length_batches
from pgolf.core.ttt.lora import LoraTtt
from pgolf.core.ttt.phased import PhasedTtt
from pgolf.core.ttt.weights import WeightTraining

TARGETS = "lm_head,q,k,v,o,mlp"
SMALL = {"seq_len": 24, "chunk_tokens": 8, "rank": 4, "alpha": 4.0, "lr": 0.02, "batch_seqs": 4}


def documents(*lengths, seed=0):
    """A stream of documents of these many tokens, each begun by token 1."""
    rng = np.random.default_rng(seed)
    return np.concatenate([[1, *rng.integers(2, 60, length - 1)] for length in lengths])


def run(model, tokens, method):
    """The ledger after a method has run on a copy of the model."""
    return evaluate(copy.deepcopy(model), tokens, np.full(len(tokens) - 1, 2, np.uint16), method)[1]


# Documents and their windows


def test_documents_and_windows_golden(oracle):
    data = oracle("eval_doc_windows.npz")
    begins, wanted = document_begins(data["tokens"], 1), data["docs_start_len"]
    assert begins[:-1].tolist() == wanted[:, 0].tolist()
    assert np.diff(begins).tolist() == (wanted[:, 1] - 1).tolist()
    batches = length_batches(np.diff(begins), 2)
    assert np.concatenate(batches).tolist() == data["queue_doc_ids"].tolist()
    assert [len(batch) for batch in batches] == data["queue_batch_sizes"].tolist()
    for length, chunk_tokens, seq_len, chunk, start, width, offset, count in data["chunk_windows"].tolist():
        assert chunk_window(length, chunk, chunk_tokens, seq_len) == (start, offset, width)
        assert count == width - offset


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 12), st.integers(0, 20))
def test_windows_of_chunks_cover_every_document_once(lengths, chunk_tokens, more):
    seq_len = chunk_tokens + more
    for length in lengths:
        seen = np.zeros(length, int)
        for chunk in range(-(-length // chunk_tokens)):
            start, first, end = chunk_window(length, chunk, chunk_tokens, seq_len)
            assert start >= 0 and 0 <= first < end <= seq_len and start + first == chunk * chunk_tokens
            assert start == 0 or end == seq_len
            seen[start + first : start + end] += 1
        assert seen.tolist() == [1] * length


@given(st.lists(st.integers(1, 99), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 5))
def test_batches_and_shares_give_out_everything_once(lengths, size, ranks):
    batches = length_batches(np.array(lengths), size)
    assert sorted(np.concatenate(batches).tolist()) == [*range(len(lengths))]
    assert all(len(batch) == size for batch in batches[1:])
    flat = [lengths[index] for batch in batches[::-1] for index in batch]
    assert flat == sorted(lengths)
    given_out = deal(lengths, ranks)
    assert sorted(job for jobs in given_out for job in jobs) == [*range(len(lengths))]
    loads = [sum(lengths[job] for job in jobs) for jobs in given_out]
    assert max(loads) - min(loads) <= max(lengths)


def test_what_precedes_the_first_document_and_what_begins_with_the_last_token():
    assert document_begins(np.array([5, 6, 1, 7, 1, 1, 8, 1]), 1).tolist() == [0, 2, 4, 5, 7]
    assert document_begins(np.array([1, 6]), 1).tolist() == [0, 1]


# Adapters


def adapted_pr1855(oracle):
    """The record's model, its adapters as published, and the model with them."""
    data, base = oracle("pr1855_lora_ttt.npz"), oracle("pr1855_gpt.npz")
    config, layers = meta(base)["config"], meta(base)["config"]["num_layers"]
    model = loaded(record_1855(config), unbanked(base, "param.", layers))
    settings = meta(data)["config"]
    adapters = Adapters(model, TARGETS.split(","), settings["rank"], settings["alpha"] / settings["rank"], 2)
    with torch.no_grad():
        for name, pair in adapters.pairs.items():
            for letter, weight in zip("AB", pair, strict=True):
                weight.copy_(torch.from_numpy(data[f"lora0.{published(name)}.{letter}"]))
    return data, settings, adapters, AdaptedGPT(model, adapters)


def published(name):
    """An adapter's name in the published files."""
    target, _, step = name.partition(".")
    return f"{target}_loras.{step}" if step else "lm_head_lora"


def test_pr1855_adapters_golden(oracle):
    data, settings, adapters, model = adapted_pr1855(oracle)
    assert len(adapters.weights) == len([key for key in data if key.startswith("lora0.")])
    ids, targets = ids_of(data)
    optimizer = torch.optim.AdamW(
        adapters.weights,
        lr=settings["lr"],
        betas=tuple(settings["betas"]),
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
    )
    for step, bound in enumerate(meta(data)["tolerance"]["nll_abs"]):
        losses = model.nll(ids, targets)
        np.testing.assert_allclose(losses.detach().numpy(), data["nll"][step], atol=bound)
        optimizer.zero_grad()
        losses[:, 10:26].mean(1).sum().backward()
        for key in data if step == 0 else ():
            if key.startswith("grad."):
                name = next(name for name in adapters.pairs if key.startswith(f"grad.{published(name)}."))
                grad = adapters.pairs[name]["AB".index(key[-1])].grad.numpy()
                assert np.abs(grad - data[key]).max() <= 1e-3 * np.abs(data[key]).max(), key
        optimizer.step()
    for name in ("lm_head", "q.3"):
        for letter, weight in zip("AB", adapters.pairs[name], strict=True):
            off = np.abs(weight.detach().numpy() - data[f"lora3.{published(name)}.{letter}"])
            assert np.quantile(off, 0.99) < 1e-4, name


def test_adapters_that_say_nothing_change_no_bit(tiny_model):
    ids = torch.from_numpy(documents(30, 30).reshape(2, 30))
    adapters = Adapters(tiny_model, TARGETS.split(","), 4, 1.0, 2)
    with torch.no_grad():
        plain, adapted = (one.nll(ids[:, :-1], ids[:, 1:]) for one in (tiny_model, AdaptedGPT(tiny_model, adapters)))
    assert torch.equal(plain, adapted)


def test_adapters_begin_alike_for_all_documents_and_uniform_about_zero(tiny_model):
    width = tiny_model.config.model_dim
    bound, starts = width**-0.5, []
    for pair in Adapters(tiny_model, TARGETS.split(","), 64, 1.0, 3).pairs.values():
        a, b = (one.detach() for one in pair)
        assert a.shape == (3, 64, width) and torch.equal(a[1], a[0]) and torch.equal(a[2], a[0])
        assert not b.any()
        assert -bound <= float(a.min()) < -0.95 * bound and 0.95 * bound < float(a.max()) <= bound
        assert abs(float(a.mean())) < 0.1 * bound
        assert float(a.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
        starts.append(a[0].flatten().tolist())
    assert len({tuple(start) for start in starts}) == len(starts) > 10


@pytest.mark.parametrize("target", TARGETS.split(","))
def test_each_adapter_acts_on_its_own_row_alone(tiny_model, target):
    ids = torch.from_numpy(documents(30, 30).reshape(2, 30))
    adapters = Adapters(tiny_model, [target], 4, 1.0, 2)
    adapted = AdaptedGPT(tiny_model, adapters)
    with torch.no_grad():
        before = adapted.nll(ids[:, :-1], ids[:, 1:])
        for _, b in adapters.pairs.values():
            b[1] += torch.linspace(-0.3, 0.3, b[1].numel()).view_as(b[1])
        after = adapted.nll(ids[:, :-1], ids[:, 1:])
    assert torch.equal(before[0], after[0])
    assert float((before[1] - after[1]).abs().max()) > 1e-3


def test_a_looped_model_has_an_adapter_for_each_time_a_layer_runs(tiny_config, make_model):
    model = make_model(dataclasses.replace(tiny_config, loop=LayerLoop(start=1, end=1, extra_passes=2, lora_rank=2)))
    adapters = Adapters(model, ["q"], 4, 1.0, 1)
    assert [*adapters.pairs] == [f"q.{step}" for step in range(5)]
    ids = torch.from_numpy(documents(20)[None])
    adapted = AdaptedGPT(model, adapters)
    for pair in adapters.pairs.values():
        torch.nn.init.normal_(pair[1])
    adapted.nll(ids[:, :-1], ids[:, 1:]).sum().backward()
    assert all(float(pair[0].grad.abs().max()) > 0 for pair in adapters.pairs.values())
    model.looping = False
    assert len(Adapters(model, ["q"], 4, 1.0, 1).pairs) == 3


# Scores


def by_the_book(model, tokens, method):
    """Each document alone: a fresh adapter, chunk after chunk, torch's AdamW."""
    losses, ids = np.full(len(tokens) - 1, np.nan), torch.from_numpy(tokens)
    begins = [*np.flatnonzero(tokens[:-1] == method.bos_id), len(tokens) - 1]
    for begin, end in zip(begins, begins[1:]):
        adapters = Adapters(model, method.targets.split(","), method.rank, method.alpha / method.rank, 1)
        adapted = AdaptedGPT(model, adapters)
        optimizer = torch.optim.AdamW(
            adapters.weights,
            lr=method.lr,
            betas=(method.beta1, method.beta2),
            eps=method.eps,
            weight_decay=method.weight_decay,
        )
        for start in range(begin, end, method.chunk_tokens):
            stop = min(start + method.chunk_tokens, end)
            left = max(begin, stop - method.seq_len)
            row = adapted.nll(ids[None, left:stop], ids[None, left + 1 : stop + 1])[0, start - left :]
            losses[start:stop] = row.detach().numpy()
            optimizer.zero_grad()
            row.mean().backward()
            optimizer.step()
    return losses


@pytest.mark.parametrize(
    "change", [{}, {"batch_seqs": 1}, {"targets": "lm_head,q,v"}, {"beta1": 0.9, "chunk_tokens": 5}]
)
def test_an_independent_implementation_agrees(tiny_model, change):
    method, tokens = LoraTtt(**SMALL | change), documents(30, 3, 9, 70, 17, 8)
    mine, theirs = by_the_book(copy.deepcopy(tiny_model), tokens, method), run(tiny_model, tokens, method).losses
    np.testing.assert_allclose(theirs, mine, rtol=0, atol=5e-3)
    assert np.median(np.abs(theirs - mine)) < 1e-5
    still = run(tiny_model, tokens, dataclasses.replace(method, lr=0.0)).losses
    assert np.abs(still - mine).max() > 0.05


def test_weights_and_gradients_are_left_alone(tiny_model):
    before = copy.deepcopy(tiny_model.state_dict())
    tokens = documents(30, 20)
    evaluate(tiny_model, tokens, np.full(49, 2), LoraTtt(**SMALL))
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in tiny_model.parameters())


@pytest.mark.parametrize("place", [3, 12, 26, 40, 59])
def test_a_token_changes_no_score_before_it_nor_in_other_documents(tiny_model, place):
    tokens, method = documents(20, 16, 24), LoraTtt(**SMALL)
    flipped = tokens.copy()
    flipped[place] = 2 if tokens[place] != 2 else 3
    before, after = (run(tiny_model, stream, method).losses for stream in (tokens, flipped))
    begins = [0, 20, 36, 60]
    mine = next(begins[index + 1] for index in range(3) if begins[index] <= place < begins[index + 1])
    assert before[: place - 1].tobytes() == after[: place - 1].tobytes()
    assert before[mine:].tobytes() == after[mine:].tobytes()
    assert before[place - 1] != after[place - 1]
    assert (before[place : mine - 1] != after[place : mine - 1]).all()


def test_the_first_chunk_is_scored_by_the_model_itself(tiny_model):
    tokens = documents(30, 20, 5)
    still, moving = (run(tiny_model, tokens, LoraTtt(**SMALL | {"lr": lr})).losses for lr in (0.0, 0.02))
    for begin, length in ((0, 30), (30, 20), (50, 4)):
        assert still[begin : begin + min(8, length)].tobytes() == moving[begin : begin + min(8, length)].tobytes()
    assert (still[8:30] != moving[8:30]).all() and (still[38:50] != moving[38:50]).all()


def test_a_batch_learns_as_often_as_its_longest_document_has_chunks_but_the_last(tiny_model):
    begun = []

    class Counting(EvalWatch):
        def adapting(self, ledger, alone=False):
            begun.append(ledger.done)
            return alone

        def adapted(self):
            steps.append(begun[-1])

    # Targets in documents: 16, 5, 9, 8 and 23, in batches of two: 5 and 8, 9 and 16, 23.
    for batch_seqs, wanted in ((2, 0 + 1 + 2), (1, 1 + 0 + 1 + 0 + 2), (5, 2)):
        steps: list[int] = []
        begun.clear()
        method = LoraTtt(**SMALL | {"batch_seqs": batch_seqs})
        tokens = documents(16, 5, 9, 8, 24)
        evaluate(tiny_model, tokens, np.full(len(tokens) - 1, 2, np.uint16), method, Counting())
        assert steps == begun and len(steps) == wanted


def test_learning_pays_in_a_document_that_repeats(tiny_model):
    tokens = np.tile(documents(12)[1:], 12)
    tokens = np.concatenate([[1], tokens])
    still, moving = (run(tiny_model, tokens, LoraTtt(**SMALL | {"lr": lr})).losses[-30:] for lr in (0.0, 0.01))
    assert moving.mean() < still.mean() - 0.5


def streams(count):
    """Streams of four to nine documents of 2 to 70 tokens."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        yield documents(*rng.integers(2, 70, rng.integers(4, 10)), seed=seed)


BASE = WeightTraining(chunk_tokens=24, lr=0.05, epochs=1, train_seqs=2)


@pytest.mark.parametrize(
    "method",
    [
        LoraTtt(**SMALL),
        LoraTtt(**SMALL | {"rank": 80, "alpha": 80.0}),
        LoraTtt(**SMALL | {"chunk_tokens": 3}),
        LoraTtt(**SMALL | {"chunk_tokens": 40, "seq_len": 60}),
        LoraTtt(**SMALL, temperature=FixedTemperature(value=0.8)),
        PhasedTtt(**SMALL, phases=2, prefix_docs=4, base=BASE),
    ],
    ids=["cold", "rank 80", "short chunks", "long chunks", "temperature", "phased"],
)
def test_who_is_scored_beside_whom_changes_nothing(tiny_model, method):
    for tokens in streams(2):
        losses = [
            run(tiny_model, tokens, dataclasses.replace(method, batch_seqs=size)).losses.tobytes()
            for size in (1, 3, 64)
        ]
        assert len({*losses}) == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_warm_start_knows_nothing_of_what_is_beside_it(tiny_model, seed):
    """Rows of batches are chains of documents: each alone gives the same bits, where all take as many steps."""
    lengths = np.sort(np.random.default_rng(seed).choice(np.arange(42, 48), 6, replace=False))
    rows = [documents(length, seed=10 * seed + index) for index, length in enumerate(lengths)]
    warm, end = LoraTtt(**SMALL | {"batch_seqs": 2, "warm_start": True}), [1]
    together = run(tiny_model, np.concatenate([*rows, end]), warm).losses
    begins = [0, *np.cumsum(lengths)]
    for first in range(2):
        alone = run(tiny_model, np.concatenate([*rows[first::2], end]), dataclasses.replace(warm, batch_seqs=1)).losses
        beside = [together[begins[index] : begins[index + 1]] for index in range(first, 6, 2)]
        assert alone.tobytes() == np.concatenate(beside).tobytes()


def test_a_warm_start_keeps_what_the_batch_before_has_left(tiny_model):
    tokens = documents(40, 40, 40, 40)
    cold, warm = (
        run(tiny_model, tokens, LoraTtt(**SMALL | {"batch_seqs": 2, "warm_start": start})).losses
        for start in (False, True)
    )
    again = run(tiny_model, tokens, LoraTtt(**SMALL | {"batch_seqs": 2, "warm_start": True})).losses
    assert warm.tobytes() == again.tobytes()
    first = length_batches(np.array([40, 40, 40, 39]), 2)[0]
    for index in range(4):
        part = slice(40 * index, 40 * index + (40 if index < 3 else 39))
        assert (cold[part].tobytes() == warm[part].tobytes()) == (index in first)


def test_one_batch_follows_another_with_adapters_as_new(tiny_model):
    tokens = documents(40, 40)
    both = run(tiny_model, tokens, LoraTtt(**SMALL | {"batch_seqs": 1})).losses
    alone = run(tiny_model, tokens[:41], LoraTtt(**SMALL | {"batch_seqs": 1})).losses
    assert both[:40].tobytes() == alone.tobytes()


def test_documents_do_not_see_each_other_whatever_the_model_does(tiny_config, make_model):
    """A model that attends within documents gives in rows of its own what it gives when they follow one another."""
    model = make_model(dataclasses.replace(tiny_config, documents=ByDocument(max_tokens=0)))
    tokens = documents(10, 14)
    losses = run(model, tokens, LoraTtt(**SMALL | {"lr": 0.0})).losses
    with torch.no_grad():
        ids = torch.from_numpy(tokens)
        together = model.nll(ids[None, :-1], ids[None, 1:])[0].numpy()
    np.testing.assert_allclose(losses, together, rtol=0, atol=1e-5)


# Adjusters


@pytest.mark.parametrize("value", [0.7, 1.4])
def test_a_temperature_tempers_what_is_scored_and_learned_from(tiny_model, value):
    tokens, tempered = documents(30, 3, 9, 70, 17, 8), FixedTemperature(value=value)
    method = LoraTtt(**SMALL, temperature=tempered)
    found = run(tiny_model, tokens, method).losses
    colder = copy.deepcopy(tiny_model)
    # Logits over the temperature, by the book: the same model whose soft-cap divides what it gives.
    cap = colder.config.logit_softcap
    divided = type("Divided", (), {"apply": lambda self, raw: cap.apply(raw) / value})()
    colder.config = copy.copy(colder.config)
    object.__setattr__(colder.config, "logit_softcap", divided)
    theirs = by_the_book(colder, tokens, LoraTtt(**SMALL))
    np.testing.assert_allclose(found, theirs, rtol=0, atol=5e-3)
    assert np.median(np.abs(found - theirs)) < 1e-5
    assert np.abs(found - run(tiny_model, tokens, LoraTtt(**SMALL)).losses).max() > 0.01


class Fattening(FixedTemperature):
    """Gives more than there is."""

    def begin(self, ledger):
        made = super().begin(ledger)
        made.apply = lambda position, logp: logp + 0.01
        return made


def test_a_learnable_distribution_is_checked_too(tiny_model):
    with pytest.raises(RuleError, match="do not sum to 1"):
        run(tiny_model, documents(30, 9), LoraTtt(**SMALL, temperature=Fattening()))


@pytest.mark.parametrize("make", [LoraTtt, PhasedTtt])
def test_adjusters_that_know_of_other_tokens_are_refused_by_name(make):
    for key, adjuster in {"slot": SlotAdamW(), "bias": OnlineBias(), "cache": ExactCache()}.items():
        with pytest.raises(ConfigError, match="not scored yet") as caught:
            make(tilt=TokenTilt(), temperature=FixedTemperature(), **{key: adjuster})
        assert caught.value.where == key and f"{key} and tilt would know" in caught.value.what
    with pytest.raises(ConfigError, match="mixer would know") as caught:
        make(mixer=HedgeMixer())
    assert "ttt.mixer=none" in caught.value.fix


# What is refused, and what is not


@pytest.mark.parametrize("stream", [[1, 5], [1, 1], [1, 1, 1, 7], [9, 1, 5, 1], [3, 4, 1], [1, 2, 3, 1]])
def test_empty_documents_and_the_shortest_streams_are_scored(tiny_model, stream):
    tokens = np.array(stream)
    if 1 in tokens[:-1]:
        assert np.isfinite(run(tiny_model, tokens, LoraTtt(**SMALL)).losses).all()
    else:
        with pytest.raises(InputError, match="no document begins"):
            run(tiny_model, tokens, LoraTtt(**SMALL))


def test_a_stream_without_documents_is_refused(tiny_model):
    with pytest.raises(InputError, match="token 1 does not occur") as caught:
        run(tiny_model, np.full(50, 7), LoraTtt(**SMALL))
    assert "bos_id" in caught.value.fix
    assert np.isfinite(run(tiny_model, np.full(50, 7), LoraTtt(**SMALL, bos_id=7)).losses).all()


class NoMlp(Part):
    """Blocks of attention alone."""

    def apply(self, mlp, x_BTC):
        return 0 * x_BTC


def test_a_model_without_the_target_is_refused(tiny_config):
    config = dataclasses.replace(tiny_config)
    object.__setattr__(config, "mlp", NoMlp())
    model = type("Plain", (), {"config": config})()
    with pytest.raises(ConfigError, match="has no mlp in its blocks") as caught:
        Adapters(model, ["q", "mlp"], 4, 1.0, 1)
    assert caught.value.fix == "set ttt.targets=q"


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        ({"chunk_tokens": 0}, "chunk_tokens"),
        ({"chunk_tokens": 2000}, "chunk_tokens"),
        ({"rank": 0}, "rank"),
        ({"targets": "q,z"}, "targets"),
        ({"targets": ""}, "targets"),
        ({"lr": -1.0}, "lr"),
        ({"beta2": 1.0}, "beta2"),
        ({"eps": 0.0}, "eps"),
        ({"bos_id": -1}, "bos_id"),
        ({"seq_len": 0}, ""),
    ],
)
def test_impossible_settings_name_their_key(bad, key):
    with pytest.raises(ConfigError) as caught:
        LoraTtt(**bad)
    assert caught.value.where == key


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 9), st.integers(0, 9), st.integers(1, 4))
def test_every_target_is_scored_once_whatever_the_documents(lengths, chunk_tokens, more, batch_seqs):
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.zeros(()))
    tokens = documents(*lengths, 2)
    ledger = Ledger(model, tokens, np.full(len(tokens) - 1, 2), LoraTtt())
    model.nll = lambda ids, targets, start: (1 + model.weight).expand(ids[:, start:].shape)
    begins = document_begins(tokens, 1)
    method = LoraTtt(chunk_tokens=chunk_tokens, seq_len=chunk_tokens + more, batch_seqs=batch_seqs)
    adapters = type("Nothing", (), {"weights": [model.weight], "reset": lambda self, warm: None})()
    for batch in length_batches(np.diff(begins), batch_seqs):
        method.score_batch(ledger, model, adapters, begins[batch], np.diff(begins)[batch])
    assert (ledger.done, ledger.total().tokens) == (len(tokens) - 1, len(tokens) - 1)


def test_model_config_is_what_adapters_are_sized_by():
    config = ModelConfig(vocab_size=50, num_layers=2, model_dim=32, num_heads=4, num_kv_heads=2)
    from pgolf.core.model.gpt import GPT

    pairs = Adapters(GPT(config), TARGETS.split(","), 3, 1.0, 5).pairs
    assert {name: tuple(b.shape) for name, (_, b) in pairs.items() if name.endswith(("0", "head"))} == {
        "lm_head": (5, 50, 3),
        "q.0": (5, 32, 3),
        "k.0": (5, 16, 3),
        "v.0": (5, 16, 3),
        "o.0": (5, 32, 3),
        "mlp.0": (5, 32, 3),
    }
    for a, _ in pairs.values():
        assert a.shape == (5, 3, 32) and float(a.detach().abs().max()) <= 32**-0.5
        assert torch.equal(a[0], a[4])
