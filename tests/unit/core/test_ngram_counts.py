"""Counts of the training text are collected, kept to the last one, and what the cache starts from."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pgolf.core.artifact import decode_artifact, encode_artifact
from pgolf.core.codecs.zlib import Zlib
from pgolf.core.dist import World
from pgolf.core.errors import ConfigError
from pgolf.core.evals.exact_cache import ExactCache
from pgolf.core.evals.ledger import evaluate
from pgolf.core.evals.plain import PlainEval
from pgolf.core.evals.sliding import SlidingEval
from pgolf.core.model.gpt import GPT
from pgolf.core.model.parts.ngram_counts import NgramCounts
from pgolf.core.optim.config import OptimConfig
from pgolf.core.quant.base import quantize_model
from pgolf.core.quant.row_quantile import RowQuantile
from pgolf.core.quant.sdclip import SdClip
from pgolf.core.train.config import TrainConfig
from pgolf.core.train.loop import start_state

PART = NgramCounts(order=3, entries=20)
CACHE = ExactCache(lowest=3, highest=3, prior=2.0, stored_share=0.5)


def counted(config, part, *shards):
    """A model that has counted some shards."""
    model = GPT(replace(config, counts=part), 1).eval()
    part.collect(model, [np.array(shard, np.uint16) for shard in shards])
    return model


def losses_of(model, tokens, method):
    """Every target's loss."""
    with torch.no_grad():
        return evaluate(model, tokens, np.full(len(tokens) - 1, 2, np.uint16), method)[1].losses


shards_of_few = st.lists(arrays(np.uint16, st.integers(0, 40), elements=st.integers(0, 3)), max_size=3)


@given(shards_of_few, st.integers(2, 4), st.integers(1, 8), st.integers(1, 90))
def test_the_most_frequent_of_the_first_tokens_are_kept(tiny_config, shards, order, entries, tokens):
    part = NgramCounts(order=order, entries=entries, tokens=tokens)
    found = dict(part.stored(counted(tiny_config, part, *shards)))
    text = [int(token) for shard in shards for token in shard][:tokens]
    wanted = Counter(tuple(text[place : place + order]) for place in range(len(text) - order + 1))
    repeated = sorted((count for count in wanted.values() if count > 1), reverse=True)
    assert sorted(found.values(), reverse=True) == repeated[:entries]
    assert all(wanted[ngram] == count for ngram, count in found.items())


def test_training_begins_with_counting_and_does_not_touch_the_counts(tiny_config, rng):
    shards = [rng.integers(0, 5, 400).astype(np.uint16)]
    train = TrainConfig(seq_len=8, batch_tokens=32, micro_batch_tokens=32, warmup_steps=0)
    state = start_state(replace(tiny_config, counts=PART), train, OptimConfig(), shards, 1, World())
    before = PART.stored(state.model)
    assert len(before) == 20
    ids = torch.from_numpy(shards[0][:66].astype(np.int64)).view(2, 33)
    for step in range(2):
        state.model(ids[:, :-1], ids[:, 1:]).backward()
        state.optimizers.step(step, 1.0)
    assert PART.stored(state.model) == before


def test_the_artifact_has_every_count_and_its_bytes(tiny_config, rng):
    sizes = {}
    for entries in (20, 2000):
        model = counted(tiny_config, replace(PART, entries=entries), rng.integers(0, 30, 20000))
        weights = {name: weight.detach() for name, weight in model.state_dict().items()}
        made = quantize_model(model.config, weights, RowQuantile(), {})
        blob = encode_artifact(made, Zlib(), b"{}")
        back = GPT(model.config)
        back.load_state_dict(decode_artifact(blob, model.config, {Zlib.codec_id: Zlib()}).weights())
        assert model.config.counts.stored(back) == model.config.counts.stored(model)
        sizes[len(model.config.counts.stored(back))] = len(blob)
    assert sizes.keys() == {20, 2000}
    assert 1980 * 1.5 < sizes[2000] - sizes[20] < 1980 * 16


@pytest.mark.parametrize(
    ("vocab_size", "times", "dtype"),
    [(2048, 30, torch.float16), (8192, 30, torch.float32), (2048, 90_001, torch.float32)],
)
def test_ids_and_counts_are_kept_where_control_tensors_are_float16(tiny_config, rng, vocab_size, times, dtype):
    """float16 has the whole numbers to 2,048, then every other one, and none above 65,504."""
    part, words = replace(PART, tokens=1 << 20), rng.integers(0, vocab_size, (5, 3))
    model = counted(replace(tiny_config, vocab_size=vocab_size), part, [*np.tile(words[0], times), *words.ravel()] * 2)
    weights = {name: weight.detach() for name, weight in model.state_dict().items()}
    made = quantize_model(model.config, weights, SdClip(control_dtype="float16"), {})
    assert made.tensors["ngram_counts"].dtype == dtype
    assert {made.tensors[name].dtype for name in made.tensors if "gain" in name} == {torch.float16}
    back = GPT(model.config)
    back.load_state_dict(made.weights())
    assert part.stored(back) == part.stored(model)


def test_the_cache_starts_from_the_counts_by_hand(tiny_config):
    model = counted(tiny_config, PART, [7, 8, 9] * 4 + [7, 8, 5, 7, 8, 5])
    assert dict(PART.stored(model))[7, 8, 9] == 4 and dict(PART.stored(model))[7, 8, 5] == 2
    tokens, plain = np.array([3, 7, 8, 9, 7, 8, 5, 7, 8, 9]), PlainEval(seq_len=16)
    bare, cached = (losses_of(model, tokens, one) for one in (plain, replace(plain, cache=CACHE)))
    p = np.exp(-bare)
    assert math.exp(-cached[2]) == pytest.approx((0.5 * 4 + 2 * p[2]) / (0.5 * 6 + 2), rel=1e-5)
    assert math.exp(-cached[5]) == pytest.approx((0.5 * 2 + 2 * p[5]) / (0.5 * 6 + 1 + 2), rel=1e-5)
    assert math.exp(-cached[8]) == pytest.approx((0.5 * 4 + 1 + 2 * p[8]) / (0.5 * 6 + 2 + 2), rel=1e-5)
    assert cached[0] == bare[0]


def test_counts_that_weigh_nothing_change_nothing(tiny_config, rng):
    tokens = rng.integers(0, 6, 90)
    model = counted(tiny_config, PART, rng.integers(0, 6, 300))
    method = SlidingEval(seq_len=16, stride=5, batch_seqs=3)
    empty = GPT(replace(model.config, counts=PART), 1).eval()
    for first, second, same in (
        (losses_of(model, tokens, method), losses_of(empty, tokens, method), True),
        (
            losses_of(model, tokens, replace(method, cache=replace(CACHE, stored_share=0.0))),
            losses_of(empty, tokens, replace(method, cache=CACHE)),
            True,
        ),
        (
            losses_of(model, tokens, replace(method, cache=CACHE)),
            losses_of(empty, tokens, replace(method, cache=CACHE)),
            False,
        ),
    ):
        assert (first.tobytes() == second.tobytes()) == same


def test_counts_of_an_order_the_cache_lacks_are_refused(tiny_config):
    model = counted(tiny_config, PART, [1, 2, 3, 1, 2, 3])
    with pytest.raises(ConfigError, match=r"counts of order 3, the cache of 4, 6, 8"):
        losses_of(model, np.arange(9), PlainEval(seq_len=16, cache=ExactCache()))
    losses_of(model, np.arange(9), PlainEval(seq_len=16, cache=ExactCache(stored_share=0.0)))


@pytest.mark.parametrize("wrong", [{"order": 1}, {"entries": 0}, {"tokens": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError):
        NgramCounts(**wrong)
    with pytest.raises(ConfigError):
        ExactCache(stored_share=-1.0)
