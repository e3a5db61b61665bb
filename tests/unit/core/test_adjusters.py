"""Adjusters make distributions of what came before: they sum to 1, look at nothing later, and compose."""

import copy
import math
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pgolf.core.errors import ConfigError, RuleError
from pgolf.core.evals.adjusted import AdjustedLedger
from pgolf.core.evals.adjustment import Adjustment
from pgolf.core.evals.base import Adjuster
from pgolf.core.evals.context_slot import SlotAdamW, SlotLbfgs
from pgolf.core.evals.document import DocumentEval
from pgolf.core.evals.exact_cache import Caching, ExactCache
from pgolf.core.evals.hedge import HedgeMixer
from pgolf.core.evals.ledger import EvalWatch, Ledger, evaluate
from pgolf.core.evals.online_bias import Biasing, OnlineBias
from pgolf.core.evals.plain import PlainEval
from pgolf.core.evals.sliding import SlidingEval, sliding_windows
from pgolf.core.evals.temperature import FixedTemperature
from pgolf.core.evals.token_hints import group_equal
from pgolf.core.evals.token_tilt import TokenTilt
from pgolf.core.ttt.chunk import ChunkTtt

VOCAB = 60
TILT = TokenTilt(lowest=2, highest=4, step=1, threshold_scale=0.5)
CACHE = ExactCache(lowest=2, highest=4, step=1, prior=2.0)
BIAS = OnlineBias(lr=20.0, chunk_tokens=20)
HEDGE = HedgeMixer(rate=0.05, first_weight=0.6, chunk_tokens=20)
SLOTS = {
    "adamw": {"slot": SlotAdamW(steps=3, lr=0.3)},
    "lbfgs": {"slot": SlotLbfgs(iterations=4, history=3, context_tokens=5)},
}
WARM = FixedTemperature(value=1.3)
ALONE = {
    **SLOTS,
    "temperature": {"temperature": WARM},
    "bias": {"bias": BIAS},
    "cache": {"cache": CACHE},
    "hedge": {"mixer": HEDGE},
    "tilt": {"tilt": TILT},
}
SETS = {
    **ALONE,
    "all": {
        "slot": SLOTS["adamw"]["slot"],
        "temperature": WARM,
        "bias": BIAS,
        "cache": CACHE,
        "mixer": HEDGE,
        "tilt": TILT,
    },
}
BASES = {
    "sliding": SlidingEval(seq_len=16, stride=5),
    "plain": PlainEval(seq_len=12),
    "documents": DocumentEval(seq_len=16, stride=6),
    "ttt": ChunkTtt(seq_len=16, stride=4, chunk_tokens=32, lr=0.05, epochs=1, train_seqs=2),
}
every_set = pytest.mark.parametrize("slots", SETS.values(), ids=SETS)
every_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES)


def repeating(length, seed=0):
    """A stream of few ids in which phrases come again, with documents."""
    rng = np.random.default_rng(seed)
    phrases = [rng.integers(2, 12, 7) for _ in range(4)]
    parts = [np.append(phrases[rng.integers(4)], rng.integers(1, 12, 2)) for _ in range(length // 9 + 1)]
    return np.concatenate([[1], *parts])[:length]


def losses_of(model, tokens, method, watch=None):
    """Every target's loss under a method, on a copy of the model."""
    charges = np.full(len(tokens) - 1, 2, np.uint16)
    return evaluate(copy.deepcopy(model), tokens, charges, method, watch or EvalWatch())[1].losses


# Distributions


@every_set
@every_base
def test_the_probabilities_of_all_tokens_sum_to_one(tiny_config, make_model, base, slots):
    """All of a vocabulary that has little beyond the tokens that occur."""
    tokens, method = repeating(70), replace(base, **slots)
    model = make_model(replace(tiny_config, vocab_size=15))
    for target in (40, 68):
        total = 0.0
        for token in range(15):
            stream = np.append(tokens[: target + 1], token)
            total += math.exp(-float(losses_of(model, stream, method)[-1]))
        assert total == pytest.approx(1, abs=1e-5)


@every_set
@every_base
def test_no_score_depends_on_later_tokens(tiny_model, base, slots):
    tokens, method = repeating(90), replace(base, **slots)
    before = losses_of(tiny_model, tokens, method)
    for place in (13, 37, 38, 64, 89):
        other = tokens.copy()
        other[place] = 2 + (tokens[place] + 3) % 10 if tokens[place] != 1 else 1
        after = losses_of(tiny_model, other, method)
        assert after[: place - 1].tobytes() == before[: place - 1].tobytes()
        if tokens[place] != 1:
            assert after[place - 1] != before[place - 1]


@every_set
def test_every_adjuster_changes_scores(tiny_model, slots):
    tokens = repeating(90)
    bare, adjusted = (losses_of(tiny_model, tokens, replace(BASES["sliding"], **some)) for some in ({}, slots))
    assert np.abs(bare - adjusted).max() > 1e-3


@every_set
def test_neither_batches_nor_replays_change_one_bit(tiny_model, slots):
    tokens, method = repeating(120), replace(BASES["sliding"], **slots)
    losses = [losses_of(tiny_model, tokens, replace(method, batch_seqs=size)) for size in (4, 4, 1, 7, 64)]
    for other in losses[1:]:
        assert other.tobytes() == losses[0].tobytes()


def test_looking_for_pauses_takes_time_in_proportion_to_the_windows(tiny_model, monkeypatch):
    """A full validation split has 600,000 windows and an adjuster that learns in chunks 5,000 pauses."""
    lots = []

    def score(self, windows, length=0):
        lots.append(len(windows))
        self.done += int((windows[:, 2] - windows[:, 1]).sum())

    monkeypatch.setattr(Ledger, "score", score)
    monkeypatch.setattr(Biasing, "learn", lambda self, position: setattr(self, "since", position))
    targets = 1 << 21
    method = SlidingEval(seq_len=16, stride=4, bias=OnlineBias(chunk_tokens=512))
    ledger = AdjustedLedger(tiny_model, np.zeros(targets + 1, np.int64), np.ones(targets), method)
    began = time.process_time()
    method.run(ledger)
    assert time.process_time() - began < 20, "hung: half a second where time is in proportion, half a minute in squares"
    assert ledger.done == targets and len(lots) == targets // 512 and sum(lots) == len(sliding_windows(targets, 16, 4))


@every_set
@every_base
def test_two_tokens_are_enough(tiny_model, base, slots):
    losses = losses_of(tiny_model, np.array([1, 5]), replace(base, **slots))
    assert losses.shape == (1,) and np.isfinite(losses).all()


@every_set
def test_a_chunk_may_have_no_window_of_its_own(tiny_model, slots):
    method = ChunkTtt(seq_len=16, stride=12, chunk_tokens=20, lr=0.01, epochs=1, **slots)
    windows = sliding_windows(21, 16, 12)
    assert (windows[:, 0] + windows[:, 1]).max() < 20, "target 20 is of the second chunk, and a window of the first's"
    assert np.isfinite(losses_of(tiny_model, repeating(22), method)).all()


@every_set
def test_windows_far_longer_than_what_they_score(tiny_model, slots):
    """Of these the model is not asked for all positions."""
    tokens, method = repeating(200), SlidingEval(seq_len=96, stride=7)
    losses = [losses_of(tiny_model, tokens, replace(method, batch_seqs=size, **slots)) for size in (1, 7)]
    assert losses[0].tobytes() == losses[1].tobytes()
    still = losses_of(tiny_model, tokens, replace(method, temperature=FixedTemperature(value=1.0)))
    np.testing.assert_allclose(still, losses_of(tiny_model, tokens, method), rtol=0, atol=1e-5)


@every_set
def test_only_what_tunes_asks_for_time_and_only_what_learns_splits_batches(tiny_model, slots):
    asked, sizes, forward = [], [], tiny_model.hidden

    class Listening(EvalWatch):
        def adapting(self, ledger, alone=False):
            asked.append(ledger.done)
            return True

    method = SlidingEval(seq_len=16, stride=4, batch_seqs=6, **slots)
    tokens = repeating(200)
    ledger = AdjustedLedger(tiny_model, tokens, np.full(199, 2, np.uint16), method, Listening())
    tiny_model.hidden = lambda ids, *more, **others: (sizes.append(len(ids)), forward(ids, *more, **others))[1]
    method.run(ledger)
    windows = len(sliding_windows(199, 16, 4))
    assert bool(asked) == ("slot" in slots)
    assert sum(sizes) == windows
    if not {"bias", "mixer"} & {*slots}:
        assert sizes == [6] * (windows // 6) + [windows % 6] * (windows % 6 > 0)


def test_scoring_with_adjusters_leaves_the_model_alone(tiny_model):
    before = copy.deepcopy(tiny_model.state_dict())
    method = replace(BASES["sliding"], **SETS["all"])
    evaluate(tiny_model, repeating(60), np.full(59, 2), method)
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_model.state_dict().items())
    assert all(weight.grad is None for weight in tiny_model.parameters())


def test_a_temperature_divides_the_models_logits(tiny_model):
    tokens = repeating(90)
    found = losses_of(tiny_model, tokens, PlainEval(seq_len=12, temperature=FixedTemperature(value=0.7)))
    expected = []
    for begin in range(0, 89, 12):
        ids = torch.from_numpy(tokens[begin : min(begin + 13, 90)].astype(np.int64))
        with torch.no_grad():
            logits = tiny_model.head(tiny_model.hidden(ids[None, :-1]))[0].double() / 0.7
        expected.append(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none"))
    np.testing.assert_allclose(found, torch.cat(expected).numpy(), atol=1e-5)


# What the ledger refuses


class Backwards(SlidingEval):
    """Scores the last window first."""

    def run(self, ledger):
        ledger.score(sliding_windows(ledger.targets, self.seq_len, self.stride)[::-1])


def test_adjusters_read_the_stream_in_order_only(tiny_model):
    assert len(losses_of(tiny_model, repeating(60), Backwards(seq_len=16, stride=4))) == 59
    with pytest.raises(RuleError, match="in another"):
        losses_of(tiny_model, repeating(60), Backwards(seq_len=16, stride=4, tilt=TILT))


@dataclass(frozen=True, kw_only=True)
class Specimen(Adjuster):
    """An adjuster that breaks a rule."""

    how: str

    def begin(self, ledger):
        return Breaking(ledger, self.how)


class Breaking(Adjustment):
    def __init__(self, ledger, how):
        super().__init__(ledger)
        self.how = how
        if how == "looks ahead":
            ledger.causal(lambda tokens: (tokens[1:],))

    def apply(self, position, logp_SV):
        if self.how == "asks for the last target":
            self.ledger.context(position + len(logp_SV) + 1)
        return logp_SV + 0.01 if self.how == "sums to more" else logp_SV


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("looks ahead", "looks ahead"),
        ("asks for the last target", "not context yet"),
        ("sums to more", "do not sum to 1"),
    ],
)
def test_the_ledger_refuses(tiny_model, how, words):
    with pytest.raises(RuleError, match=words) as caught:
        losses_of(tiny_model, repeating(40), PlainEval(seq_len=64, tilt=Specimen(how=how)))
    assert caught.value.exit_code == 4


class Greedy(Adjustment):
    """Notes what it is handed, and asks for more."""

    tunes = True

    def __init__(self, ledger):
        super().__init__(ledger)
        self.handed, self.refused = [], 0

    def ask(self, stop):
        with pytest.raises(RuleError, match="not context yet"):
            self.ledger.context(stop)
        self.refused += 1

    def logits(self, windows, hidden_BTC, ids_BT):
        self.handed += [(tuple(window), ids.clone()) for window, ids in zip(windows.tolist(), ids_BT)]
        for start, first, _ in windows.tolist():
            if first:
                self.ask(start + first + 2)
        return {}

    def apply(self, position, logp_SV):
        stop = position + len(logp_SV)
        assert len(self.ledger.context(stop)) == stop
        self.ask(stop + 1)
        return logp_SV


@pytest.mark.parametrize("batch_seqs", [1, 3, 64])
def test_an_adjuster_is_handed_no_target_before_its_time(tiny_model, batch_seqs):
    tokens, made = repeating(60), []

    class Asking(Adjuster):
        def begin(self, ledger):
            made.append(Greedy(ledger))
            return made[0]

    losses_of(tiny_model, tokens, SlidingEval(seq_len=16, stride=5, batch_seqs=batch_seqs, slot=Asking()))
    (greedy,) = made
    assert len(greedy.handed) == len(sliding_windows(59, 16, 5)) and greedy.refused == 2 * len(greedy.handed) - 1
    for (start, first, end), ids in greedy.handed:
        assert ids[: first + 1].tolist() == tokens[start : start + first + 1].tolist()
        assert not ids[first + 1 :].any(), f"inputs of the scored part of {start, first, end}"


# Tilt


def asked_then_told(tokens, tilt):
    """The token expert as a table per order that is asked and then told, position by position."""
    targets = len(tokens) - 1
    hint, share = np.full(targets, -1), np.zeros(targets, np.float32)
    tables = {order: {} for order in range(tilt.lowest, tilt.highest + 1, tilt.step)}
    for target in range(targets):
        contexts = {n: tuple(tokens[target - n + 2 : target + 1]) for n in tables if target + 1 >= n - 1}
        for order in sorted(contexts, reverse=True):
            total, best, most, _ = tables[order].get(contexts[order], (0, -1, 0, {}))
            floor, least = (0.7, 3) if order <= 10 else (0.6, 2) if order <= 13 else (0.5, 2)
            if total >= least and most / total >= floor * tilt.threshold_scale:
                hint[target], share[target] = best, most / total
                break
        came = int(tokens[target + 1])
        for order, context in contexts.items():
            total, best, most, counts = tables[order].get(context, (0, -1, 0, {}))
            counts[came] = counts.get(came, 0) + 1
            if counts[came] > most:
                best, most = came, counts[came]
            tables[order][context] = (total + 1, best, most, counts)
    return hint, share


@given(arrays(np.int64, st.integers(2, 200), elements=st.integers(0, 3)), st.sampled_from([TILT, TokenTilt()]))
def test_hints_are_those_of_a_table_that_is_asked_before_it_is_told(tokens, tilt):
    for found, wanted in zip(tilt.hints(tokens), asked_then_told(tokens, tilt), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_long_hints_are_those_of_a_table(rng):
    tokens = np.concatenate([rng.integers(0, 500, 40)[rng.integers(0, 8) :] for _ in range(20)] * 3)
    tilt = TokenTilt(step=3, threshold_scale=0.75)
    for found, wanted in zip(tilt.hints(tokens), asked_then_told(tokens, tilt), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert (tilt.hints(tokens)[0] >= 0).mean() > 0.3


@given(arrays(np.uint64, st.integers(1, 60), elements=st.sampled_from([0, 1, 5, 2**60 + 1, 2**60 + 2, 2**64 - 1])))
def test_equal_keys_come_together_though_their_upper_bits_are_those_of_others(keys):
    order, begins = group_equal(keys)
    assert sorted(order.tolist()) == list(range(len(keys)))
    groups = np.split(order, np.flatnonzero(begins)[1:])
    assert len(groups) == len(set(keys.tolist()))
    for group in groups:
        assert len(set(keys[group].tolist())) == 1 and (np.diff(group) > 0).all()


def test_a_tilted_loss_by_hand(tiny_model):
    tokens = repeating(90)
    bare, tilted = (losses_of(tiny_model, tokens, replace(BASES["sliding"], tilt=tilt)) for tilt in (TokenTilt(), TILT))
    assert bare.tobytes() == losses_of(tiny_model, tokens, BASES["sliding"]).tobytes(), "no phrase is long enough"
    hint, share = TILT.hints(tokens)
    hit = hint == tokens[1:]
    assert hit.any() and (hint[~hit] >= 0).any() and (hint < 0).any()
    assert tilted[hint < 0].tobytes() == bare[hint < 0].tobytes()
    p, beta = np.exp(-bare[hit].astype(float)), 2.0 * share[hit]
    np.testing.assert_allclose(tilted[hit] - bare[hit], np.log1p(p * np.expm1(beta)) - beta, atol=2e-6)
    assert (tilted[(hint >= 0) & ~hit] > bare[(hint >= 0) & ~hit]).all()


# Cache, bias, mixture


def test_the_cache_by_hand(tiny_model):
    tokens = np.array([2, 3, 4, 2, 3, 5, 2, 3, 4, 2])
    cache = ExactCache(lowest=2, highest=3, step=1, prior=2.0)
    plain = PlainEval(seq_len=4)
    bare, cached = (losses_of(tiny_model, tokens, replace(plain, **some)) for some in ({}, {"cache": cache}))
    p = np.exp(-bare.astype(float))
    # Target 7 is the 4 after 2, 3: after 3 came 4 and 5; after 2, 3 the same.
    lower = (1 + 2 * p[7]) / (2 + 2)
    assert math.exp(-cached[7]) == pytest.approx((1 + 2 * lower) / (2 + 2), rel=1e-5)
    # Target 6 is the 3 after 5, 2: 2 came twice before, both times 3 followed; 5, 2 is new.
    assert math.exp(-cached[6]) == pytest.approx((2 + 2 * p[6]) / (2 + 2), rel=1e-5)
    assert cached[:2].tobytes() == bare[:2].tobytes(), "nothing has been seen"


class Plainly:
    """The cache as its definition has it: a table of counts for every context."""

    def __init__(self, settings, stored):
        self.prior, self.counts = settings.prior, {}
        self.orders = range(settings.lowest, settings.highest + 1, settings.step)
        for (*context, token), count in stored:
            self.counts.setdefault(tuple(context), {})[token] = settings.stored_share * count

    def next(self, before, p_V):
        """The distribution (V,) after these tokens."""
        for order in self.orders:
            seen = self.counts.get(tuple(before[len(before) - order + 1 :])) if order <= len(before) + 1 else None
            if seen:
                added = np.zeros_like(p_V)
                added[list(seen)] = list(seen.values())
                p_V = (added + self.prior * p_V) / (sum(seen.values()) + self.prior)
        return p_V

    def tell(self, before, token):
        """What came."""
        for order in self.orders:
            if order <= len(before) + 1:
                seen = self.counts.setdefault(tuple(before[len(before) - order + 1 :]), {})
                seen[token] = seen.get(token, 0) + 1


@pytest.mark.parametrize("stored", [[], [((2, 3, 4), 5.0), ((2, 3, 7), 1.0), ((9, 9, 9), 2.0)]], ids=["cold", "stored"])
@pytest.mark.parametrize("stride", [1, 7])
def test_the_cache_is_that_of_its_definition(stored, stride):
    tokens, settings = repeating(300), ExactCache(lowest=2, highest=4, step=1, prior=2.0, stored_share=0.3)
    part = SimpleNamespace(stored=lambda model: stored)
    ledger = SimpleNamespace(model=SimpleNamespace(parts=[part]), context=lambda stop: tokens[:stop])
    cache, plain = Caching(ledger, settings), Plainly(settings, stored)
    logp = torch.randn(299, 12, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    for start in range(0, 299, stride):
        found = cache.apply(start, logp[start : start + stride].clone()).exp().double().numpy()
        for target, row in enumerate(found, start):
            before = tokens[: target + 1].tolist()
            wanted = plain.next(before, logp[target].double().exp().numpy())
            np.testing.assert_allclose(row, wanted, rtol=1e-5)
            plain.tell(before, int(tokens[target + 1]))
    assert any(isinstance(one, int) for one in cache.tables[2].values())
    assert any(isinstance(one, dict) and len(one) > 1 for one in cache.tables[0].values())


def test_the_bias_by_hand(tiny_model):
    tokens = repeating(62)
    method = PlainEval(seq_len=10, bias=BIAS)
    found = losses_of(tiny_model, tokens, method)
    ids, bias, since, wanted = torch.from_numpy(tokens), torch.zeros(VOCAB), [], []
    with torch.no_grad():
        for start in range(0, 61, 10):
            stop = min(start + 10, 61)
            if start and start % 20 == 0:
                came = torch.bincount(ids[start - 20 + 1 : start + 1], minlength=VOCAB) / 20
                bias, since = bias - 20.0 * (torch.cat(since).mean(0) - came), []
            logp = F.log_softmax(tiny_model.head(tiny_model.hidden(ids[None, start:stop]))[0] + bias, -1)
            since.append(logp.exp())
            wanted += (-logp[range(stop - start), ids[start + 1 : stop + 1]]).tolist()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_mixture_by_hand(tiny_model):
    tokens = repeating(50)
    method = PlainEval(seq_len=10, mixer=HEDGE)
    found, bare = losses_of(tiny_model, tokens, method), losses_of(tiny_model, tokens, PlainEval(seq_len=10))
    p_model = np.exp(-bare.astype(float))
    weights = np.log([0.6, 0.2, 0.2])
    for chunk in range(3):
        first, stop = 20 * chunk, min(20 * chunk + 20, 49)
        single = (np.bincount(tokens[1 : first + 1], minlength=VOCAB) + 1.0) / (first + VOCAB)
        costs = np.zeros(3)
        for target in range(first, stop):
            came, before = tokens[target + 1], tokens[target]
            followers = tokens[1 : first + 1][tokens[:first] == before]
            paired = ((followers == came).sum() + 32 * single[came]) / (len(followers) + 32)
            p = np.array([p_model[target], single[came], paired])
            assert math.exp(-found[target]) == pytest.approx((np.exp(weights) * p).sum(), rel=1e-5)
            costs -= np.log(p)
        weights = weights - 0.05 * costs
        weights -= np.log(np.exp(weights).sum())


def test_a_mixture_of_too_many_pairs_is_refused(make_model, tiny_config):
    model = make_model(replace(tiny_config, vocab_size=16385))
    with pytest.raises(ConfigError, match="pairs of 16,385 ids"):
        losses_of(model, repeating(20), PlainEval(seq_len=8, mixer=HedgeMixer()))


# SLOT


@pytest.mark.parametrize("context_tokens", [0, 4])
def test_a_tuned_window_by_hand(tiny_model, context_tokens):
    tokens, slot = repeating(60), SlotAdamW(steps=4, lr=0.2, context_tokens=context_tokens)
    found = losses_of(tiny_model, tokens, SlidingEval(seq_len=16, stride=5, slot=slot))
    ids, start = torch.from_numpy(tokens), 20
    with torch.no_grad():
        hidden = tiny_model.hidden(ids[None, start : start + 16])
    delta = torch.zeros(16, requires_grad=True)
    optimizer = torch.optim.AdamW([delta], lr=0.2, weight_decay=1e-8)
    begin = 11 - context_tokens if context_tokens else 0
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.2 * (0.1 + 0.45 * (1 + math.cos(math.pi * step / 3)))
        optimizer.zero_grad()
        logits = tiny_model.head(hidden[:, begin:11] + delta)[0]
        F.cross_entropy(logits, ids[start + begin + 1 : start + 12]).backward()
        optimizer.step()
    with torch.no_grad():
        logits = tiny_model.head(hidden[:, 11:16] + delta)[0]
    wanted = F.cross_entropy(logits, ids[start + 12 : start + 17], reduction="none")
    np.testing.assert_allclose(found[start + 11 : start + 16], wanted.numpy(), atol=1e-4)


def test_a_biased_window_fits_its_context(tiny_model):
    tokens, method = repeating(60), SlidingEval(seq_len=16, stride=5)
    slot = SlotLbfgs(context_tokens=0, iterations=20, decay=0.0)
    ledger = AdjustedLedger(tiny_model, tokens, np.full(59, 2), replace(method, slot=slot))
    ids = torch.from_numpy(tokens)[None, 20:36]
    with torch.no_grad():
        hidden = tiny_model.hidden(ids)
    # Scoring the context itself shows that it was what the bias was fitted to.
    tuned = slot.tuned(ledger, hidden[:, :11], ids[:, 1:12], hidden[:, :11])
    with torch.no_grad():
        before = tiny_model.head(hidden[:, :11])
    after, first = (F.cross_entropy(logits[0], ids[0, 1:12]) for logits in (tuned, before))
    assert float(after) < float(first) - 0.5
    held = replace(slot, decay=1e3).tuned(ledger, hidden[:, :11], ids[:, 1:12], hidden[:, :11])
    assert torch.allclose(held, before, atol=5e-3)
    narrow = replace(slot, limit=1e-4).tuned(ledger, hidden[:, :11], ids[:, 1:12], hidden[:, :11])
    assert torch.allclose(narrow, before, atol=2e-4)


def test_tuning_ends_when_there_is_no_more_time(tiny_model):
    class Hurried(EvalWatch):
        def adapting(self, ledger):
            return ledger.done < 30

    tokens, slots = repeating(90), SLOTS["adamw"]
    method = SlidingEval(seq_len=16, stride=5, batch_seqs=2)
    tuned, bare = (losses_of(tiny_model, tokens, replace(method, **some)) for some in (slots, {}))
    hurried = losses_of(tiny_model, tokens, replace(method, **slots), Hurried())
    assert hurried[:30].tobytes() == tuned[:30].tobytes()
    np.testing.assert_allclose(hurried[40:], bare[40:], atol=1e-5)
    assert np.abs(hurried[40:] - tuned[40:]).max() > 1e-3


@pytest.mark.parametrize(
    "make",
    [
        lambda: TokenTilt(strength=-1.0),
        lambda: TokenTilt(lowest=1),
        lambda: TokenTilt(lowest=9, highest=8),
        lambda: ExactCache(prior=0.0),
        lambda: ExactCache(step=0),
        lambda: OnlineBias(chunk_tokens=0),
        lambda: FixedTemperature(value=0.0),
        lambda: HedgeMixer(first_weight=1.0),
        lambda: HedgeMixer(rate=-0.1),
        lambda: SlotAdamW(steps=0),
        lambda: SlotAdamW(lr=-1.0),
        lambda: SlotLbfgs(limit=0.0),
        lambda: SlotLbfgs(decay=-0.1),
        lambda: SlotLbfgs(iterations=0),
    ],
)
def test_impossible_adjusters_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_no_adjuster_no_adjusted_ledger(tiny_model):
    ledger = evaluate(tiny_model, repeating(30), np.full(29, 2), PlainEval(seq_len=8))[1]
    assert type(ledger) is Ledger
