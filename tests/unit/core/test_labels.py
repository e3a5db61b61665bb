"""What methods and adjusters say of themselves, adaptive or fixed and document by document or not, is what they do."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from pgolf.catalog import CATALOG, name_of
from pgolf.core.evals.base import Unadjusted
from pgolf.core.evals.context_slot import SlotAdamW, SlotLbfgs
from pgolf.core.evals.document import DocumentEval
from pgolf.core.evals.exact_cache import ExactCache
from pgolf.core.evals.hedge import HedgeMixer
from pgolf.core.evals.ledger import evaluate
from pgolf.core.evals.online_bias import OnlineBias
from pgolf.core.evals.overlap import OverlapEval
from pgolf.core.evals.plain import PlainEval
from pgolf.core.evals.sliding import SlidingEval
from pgolf.core.evals.temperature import FixedTemperature
from pgolf.core.evals.token_tilt import TokenTilt
from pgolf.core.ttt.chunk import ChunkTtt
from pgolf.core.ttt.lora import LoraTtt
from pgolf.core.ttt.phased import PhasedTtt
from pgolf.core.ttt.weights import WeightTraining
from pgolf.stages.compare import SLOTS
from pgolf.stages.evaluate import labels

WINDOW = 16
SMALL = {"seq_len": WINDOW, "chunk_tokens": 8, "rank": 4, "lr": 0.02, "batch_seqs": 2}
METHODS = {
    "plain": (PlainEval(seq_len=WINDOW), False, False),
    "sliding": (SlidingEval(seq_len=WINDOW, stride=5), False, False),
    "document": (DocumentEval(seq_len=WINDOW, stride=5), False, True),
    "overlap": (OverlapEval(seq_len=WINDOW), False, False),
    "chunk": (ChunkTtt(seq_len=WINDOW, stride=4, chunk_tokens=32, lr=0.05, epochs=1, train_seqs=2), True, False),
    "lora": (LoraTtt(**SMALL), True, True),
    "lora, warm": (LoraTtt(**SMALL, warm_start=True), True, False),
    "phased": (
        PhasedTtt(**SMALL, prefix_docs=3, base=WeightTraining(lr=0.05, epochs=1, chunk_tokens=16)),
        True,
        False,
    ),
}
"""Name, method, whether it is adaptive, whether it scores documents each by itself."""
ADJUSTERS = {
    ("slot", "adamw"): (SlotAdamW(steps=3, lr=0.3), True, True),
    ("slot", "lbfgs"): (SlotLbfgs(iterations=4, history=3, context_tokens=5), True, True),
    ("temperature", "fixed"): (FixedTemperature(value=1.3), False, True),
    ("bias", "online"): (OnlineBias(lr=20.0, chunk_tokens=20), True, False),
    ("cache", "exact"): (ExactCache(lowest=2, highest=4, step=1, prior=2.0), True, False),
    ("mixer", "hedge"): (HedgeMixer(rate=0.05, first_weight=0.6, chunk_tokens=20), True, False),
    ("tilt", "token"): (TokenTilt(lowest=2, highest=4, step=1, threshold_scale=0.5), True, False),
}
"""Slot and kind, adjuster, whether it is adaptive, whether documents remain apart with it."""
every_method = pytest.mark.parametrize(("method", "adaptive", "alone"), METHODS.values(), ids=METHODS)
every_adjuster = pytest.mark.parametrize("key", ADJUSTERS, ids=" ".join)


def stream():
    """Documents of tokens that come again and again, the third from 61 on."""
    rng = np.random.default_rng(0)
    lengths = (37, 24, 40, 19, 30)
    return np.concatenate([[1, *np.tile(rng.permutation(np.arange(2, 9)), 9)[: length - 1]] for length in lengths])


def losses_of(model, tokens, method):
    """Every target's loss, on a copy of the model."""
    return evaluate(copy.deepcopy(model), tokens, np.full(len(tokens) - 1, 2, np.uint16), method)[1].losses


def reaches_beyond(model, method, begin, stop):
    """Whether other tokens in the stretch begin .. stop - 1, no BOS among them, move a loss that no window of a fixed
    predictor connects with them, and whether they move one of another document.
    """
    tokens, other = stream(), stream()
    other[begin:stop] = 2 + (other[begin:stop] - 2 + 3) % 7
    assert not (tokens[begin:stop] == 1).any() and len(tokens) == len(other)
    moved = np.flatnonzero(losses_of(model, tokens, method) != losses_of(model, other, method)) + 1
    after = tokens[stop:].tolist().index(1) + stop
    return bool((moved >= stop + WINDOW).any()), bool((moved > after).any() or (moved < begin).any())


def test_every_method_and_adjuster_has_a_row():
    methods = {*CATALOG["EvalMethod"], *CATALOG["TttMethod"]}
    assert {name.partition(",")[0] for name in METHODS} == methods
    kinds = {(key, kind) for key, slot in SLOTS.items() for kind in CATALOG[slot] if kind != "none"}
    assert {*ADJUSTERS} == kinds
    for (key, kind), (adjuster, *_) in ADJUSTERS.items():
        assert name_of(SLOTS[key], type(adjuster)) == kind


@every_method
def test_the_labels_of_a_method(method, adaptive, alone):
    assert labels(method) == {"adaptive": adaptive, "document_independent": alone}


@every_adjuster
@pytest.mark.parametrize("base", ["sliding", "document", "chunk"])
def test_the_labels_of_an_adjuster(base, key):
    (method, learns, separate), (adjuster, adaptive, apart) = METHODS[base], ADJUSTERS[key]
    found = labels(replace(method, **{key[0]: adjuster}))
    assert found == {"adaptive": learns or adaptive, "document_independent": separate and apart}


def test_no_adjuster_has_no_part_in_the_labels():
    assert not Unadjusted().learns and not Unadjusted().crosses


@pytest.mark.parametrize("key", [None, ("temperature", "fixed")], ids=["alone", "tempered"])
@every_method
def test_methods_do_as_they_say(tiny_model, method, adaptive, alone, key):
    """A fixed predictor sees its window and no more, and what is labelled so leaves other documents alone."""
    method = replace(method, temperature=ADJUSTERS[key][0]) if key else method
    far, crossing = reaches_beyond(tiny_model, method, 91, 100)
    said = labels(method)
    assert adaptive == said["adaptive"] and alone == said["document_independent"]
    assert not far or adaptive
    assert crossing != alone


@every_adjuster
def test_adjusters_do_as_they_say(tiny_model, key):
    adjuster, adaptive, apart = ADJUSTERS[key]
    method = replace(METHODS["document"][0], **{key[0]: adjuster})
    far, crossing = reaches_beyond(tiny_model, method, 91, 100)
    assert crossing != apart
    assert not far or adaptive
