"""Evaluators beyond plain and sliding windows: documents, overlap, longer context."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pgolf.core.errors import ConfigError, InputError, SetupError
from pgolf.core.evals.compiled import TorchCompile
from pgolf.core.evals.context_slot import SlotAdamW
from pgolf.core.evals.document import BUCKET, DocumentEval
from pgolf.core.evals.exact_cache import ExactCache
from pgolf.core.evals.ledger import Ledger, evaluate
from pgolf.core.evals.overlap import OverlapEval
from pgolf.core.evals.plain import PlainEval
from pgolf.core.evals.sliding import SlidingEval
from pgolf.core.evals.stretch import NtkRope, YarnRope
from pgolf.core.model.parts.by_document import ByDocument
from pgolf.core.model.parts.hash_embed import BigramHash
from pgolf.core.model.parts.rope import Rope
from pgolf.core.model.parts.smear import GatedSmear
from pgolf.core.model.parts.yarn import Yarn
from pgolf.core.ttt.chunk import ChunkTtt
from pgolf.core.ttt.lora import LoraTtt


def losses_of(model, tokens, method):
    """Every target's loss under a method, on a copy of the model."""
    return evaluate(copy.deepcopy(model), tokens, np.full(len(tokens) - 1, 2, np.uint16), method)[1].losses


def stream(*lengths, first=True, seed=0):
    """Documents of these lengths, BOS included; the first may lack its own."""
    rng = np.random.default_rng(seed)
    parts = [np.append(1, rng.integers(2, 60, length - 1)) for length in lengths]
    return np.concatenate(parts)[0 if first else 1 :]


# Documents


def test_documents_golden(oracle):
    data = oracle("eval_doc_windows.npz")
    tokens, rows = data["tokens"], data["docs_start_len"]
    windows = DocumentEval(seq_len=10**6, stride=10**6).windows(tokens)
    # Upstream counts tokens, the next BOS among them; a window counts the targets after its first token.
    wanted = [[start, 0, length - 1] for start, length in rows.tolist()]
    assert windows.tolist() == wanted


@given(
    arrays(np.int64, st.integers(2, 150), elements=st.integers(1, 4)),
    st.integers(1, 20).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length))),
)
def test_every_target_is_scored_once_within_its_document(tokens, setting):
    seq_len, stride = setting
    assume((tokens[:-1] == 1).any())
    seen = np.zeros(len(tokens) - 1, int)
    for start, first, end in DocumentEval(seq_len=seq_len, stride=stride).windows(tokens):
        assert 0 <= first < end <= seq_len
        assert (tokens[start + 1 : start + end] != 1).all(), "a window reads beyond its document"
        seen[start + first : start + end] += 1
    assert seen.tolist() == [1] * len(seen)


def test_a_document_is_scored_as_if_it_were_alone(tiny_model):
    tokens = stream(20, 1, 50, 2, 9)
    found = losses_of(tiny_model, tokens, DocumentEval(seq_len=16, stride=4))
    bounds = [0, 20, 21, 71, 73, 81]
    for start, stop in zip(bounds, bounds[1:]):
        alone = losses_of(tiny_model, tokens[start : stop + 1], SlidingEval(seq_len=16, stride=4))
        assert found[start:stop].tobytes() == alone.tobytes()


@pytest.mark.parametrize("part", [{}, {"smear": GatedSmear()}, {"hash_embed": BigramHash(buckets=64, dim=4)}], ids=str)
def test_nothing_crosses_from_one_document_to_another(make_model, tiny_config, part):
    model = make_model(replace(tiny_config, **part))
    tokens, other = stream(30, 40, 30), stream(30, 40, 30)
    other[31:70] = 2 + (other[31:70] + 5) % 50
    before, after = (losses_of(model, ids, DocumentEval(seq_len=16, stride=4)) for ids in (tokens, other))
    assert before[:30].tobytes() == after[:30].tobytes() and before[70:].tobytes() == after[70:].tobytes()
    assert (before[30:69] != after[30:69]).all()


def test_isolated_attention_agrees_where_the_model_itself_stops_at_documents(make_model, tiny_config):
    model = make_model(replace(tiny_config, documents=ByDocument(max_tokens=0)))
    tokens = stream(12, 9, 11)
    whole = losses_of(model, tokens, PlainEval(seq_len=64))
    np.testing.assert_allclose(losses_of(model, tokens, DocumentEval(seq_len=64, stride=64)), whole, atol=1e-5)


def test_windows_of_many_lengths_give_what_full_rows_give(tiny_model):
    tokens = stream(300, 40, 150, 3, 270)
    method = DocumentEval(seq_len=256, stride=64)
    assert len(set((-(-method.windows(tokens)[:, 2] // BUCKET)).tolist())) > 1
    bare = losses_of(tiny_model, tokens, method)
    model = copy.deepcopy(tiny_model)
    model.config = replace(model.config, position=Rope(reference=4096))
    np.testing.assert_allclose(losses_of(model, tokens, method), bare, atol=1e-5)


@pytest.mark.parametrize("position", [Rope(), Rope(reference=100)], ids=["rope", "stretched"])
def test_short_documents_are_scored_in_short_rows_unless_frequencies_depend_on_them(make_model, tiny_config, position):
    model, tokens = make_model(replace(tiny_config, position=position)), stream(*[20] * 10, 130, 400)
    lengths, forward = [], model.nll
    model.nll = lambda ids, targets, start: (lengths.append(ids.size(1)), forward(ids, targets, start))[1]
    method = DocumentEval(seq_len=300, stride=300, batch_seqs=4)
    method.run(Ledger(model, tokens, np.full(len(tokens) - 1, 2, np.uint16), method))
    assert set(lengths) == ({300} if position.reference else {128, 256, 300})


def test_frequencies_that_depend_on_the_row_see_rows_of_one_length(make_model, tiny_config):
    model = make_model(replace(tiny_config, position=Rope(reference=100)))
    tokens = stream(300, 40, 150)
    found = losses_of(model, tokens, DocumentEval(seq_len=256, stride=64))
    padded = np.concatenate([tokens[300:341], np.zeros(256 - 40, int)])
    ids = torch.from_numpy(padded)
    with torch.no_grad():
        wanted = model.nll(ids[None, :-1], ids[None, 1:])[0, :40]
    np.testing.assert_allclose(found[300:340], wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("first", [True, False], ids=["bos", "no bos"])
def test_odd_streams(tiny_model, first):
    for lengths in ((2,), (1, 1, 1), (3, 1), (100,)):
        tokens = stream(*lengths, first=first)
        if len(tokens) > 1 and not (tokens[:-1] == 1).any():
            with pytest.raises(InputError, match="token 1 does not occur in it"):
                losses_of(tiny_model, tokens, DocumentEval(seq_len=16, stride=4))
        elif len(tokens) > 1:
            assert np.isfinite(losses_of(tiny_model, tokens, DocumentEval(seq_len=16, stride=4))).all()


# Overlap and longer context


def test_an_overlap_is_a_stride(tiny_model):
    tokens = stream(200)
    found = losses_of(tiny_model, tokens, OverlapEval(seq_len=32, overlap=12))
    assert found.tobytes() == losses_of(tiny_model, tokens, SlidingEval(seq_len=32, stride=20)).tobytes()
    half = losses_of(tiny_model, tokens, OverlapEval(seq_len=32))
    assert half.tobytes() == losses_of(tiny_model, tokens, SlidingEval(seq_len=32, stride=16)).tobytes()


def test_a_window_larger_than_the_data(tiny_model):
    tokens = stream(30)
    for method in (PlainEval(seq_len=500), SlidingEval(seq_len=500, stride=64), OverlapEval(seq_len=500, overlap=100)):
        np.testing.assert_allclose(
            losses_of(tiny_model, tokens, method), losses_of(tiny_model, tokens, PlainEval(seq_len=29)), atol=1e-5
        )


@pytest.mark.parametrize(
    ("rope", "trained"),
    [
        (NtkRope(trained=16), Rope(base=500.0, reference=16)),
        (YarnRope(trained=16, longest=64), Yarn(base=500.0, trained=16, longest=64)),
    ],
    ids=["ntk", "yarn"],
)
def test_longer_windows_turn_as_the_formulas_say(make_model, tiny_config, rope, trained):
    model = make_model(replace(tiny_config, position=Rope(base=500.0)))
    wanted = make_model(replace(tiny_config, position=trained))
    tokens, method = stream(150), SlidingEval(seq_len=64, stride=16)
    found = losses_of(model, tokens, replace(method, rope=rope))
    assert found.tobytes() == losses_of(wanted, tokens, method).tobytes()
    assert np.abs(found - losses_of(model, tokens, method)).max() > 1e-3
    half = model.config.model_dim // model.config.num_heads // 2
    share = torch.arange(half) / half
    if isinstance(rope, NtkRope):
        angles = 1 / (500.0 * 4.0 ** (2 * half / (2 * half - 2))) ** share
    else:
        angles = 500.0**-share / (1 + ((share - 0.25) / 0.75).clamp(0, 1) * 3)
    turns = trained.frequencies(64, 2 * half, torch.zeros(1))
    assert torch.allclose(turns, angles, rtol=1e-5)


def test_a_window_of_the_trained_length_is_not_stretched_by_ntk(tiny_model):
    tokens, method = stream(100), PlainEval(seq_len=32)
    stretched = replace(method, rope=NtkRope(trained=32))
    assert losses_of(tiny_model, tokens, stretched).tobytes() == losses_of(tiny_model, tokens, method).tobytes()


def test_frequencies_are_stretched_once(make_model, tiny_config):
    for position in (Rope(reference=16), Yarn()):
        model = make_model(replace(tiny_config, position=position))
        for rope in (NtkRope(), YarnRope()):
            with pytest.raises(ConfigError, match="stretches its rotary frequencies itself") as caught:
                losses_of(model, stream(20), PlainEval(seq_len=32, rope=rope))
            assert (caught.value.where, caught.value.fix) == ("rope", "set rope=as_trained"), "of eval or of ttt"


def test_a_direct_computation_of_a_documents_loss(tiny_model):
    tokens = stream(25, 40)
    found = losses_of(tiny_model, tokens, DocumentEval(seq_len=64, stride=64))
    ids = torch.from_numpy(tokens[25:65])
    with torch.no_grad():
        logits = tiny_model.head(tiny_model.hidden(ids[None, :-1]))[0]
    wanted = F.cross_entropy(logits, ids[1:], reduction="none").numpy()
    np.testing.assert_allclose(found[25:64], wanted, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DocumentEval(seq_len=16, stride=17),
        lambda: DocumentEval(bos_id=-1),
        lambda: OverlapEval(seq_len=16, overlap=16),
        lambda: OverlapEval(overlap=-1),
        lambda: NtkRope(trained=0),
        lambda: YarnRope(trained=100, longest=50),
        lambda: PlainEval(budget_seconds=-1.0),
        lambda: PlainEval(num_loops=-1),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(ConfigError):
        make()


# Compiled scoring

COMPILED = [
    SlidingEval(seq_len=72, stride=5),
    PlainEval(seq_len=24),
    DocumentEval(seq_len=24, stride=6),
    OverlapEval(seq_len=24, overlap=9),
    SlidingEval(seq_len=24, stride=5, cache=ExactCache(lowest=2, highest=3)),
    SlidingEval(seq_len=24, stride=8, slot=SlotAdamW(steps=2)),
    ChunkTtt(seq_len=24, stride=6, chunk_tokens=48, epochs=1, train_seqs=5),
]


@pytest.mark.parametrize("method", COMPILED, ids=lambda method: type(method).__name__)
def test_a_compiled_model_sees_one_shape_and_scores_as_before(tiny_model, monkeypatch, method):
    shapes = []

    def compiler(function, dynamic):
        assert dynamic is False

        def graph(ids, starts, start):
            assert not torch.is_grad_enabled()
            shapes.append(tuple(ids.shape))
            return function(ids, starts, start)

        return graph

    monkeypatch.setattr(torch, "compile", compiler)
    tokens = stream(31, 7, 64, 90)
    eager = losses_of(tiny_model, tokens, replace(method, batch_seqs=4))
    assert shapes == []
    compiled = losses_of(tiny_model, tokens, replace(method, batch_seqs=4, compiler=TorchCompile()))
    np.testing.assert_allclose(compiled, eager, rtol=0, atol=1e-5)
    assert len(shapes) >= 3
    assert set(shapes) == {(4, method.seq_len)}


def test_all_is_compiled_before_the_first_score(tiny_model, monkeypatch):
    asked = []
    monkeypatch.setattr(
        torch, "compile", lambda function, dynamic: lambda *args: (asked.append(args), function(*args))[1]
    )
    SlidingEval(seq_len=96, stride=8, batch_seqs=2, compiler=TorchCompile()).arrange(tiny_model)
    assert sorted(start for _, _, start in asked) == [0, 32]
    assert not any(ids.any() for ids, _, _ in asked)


@pytest.mark.parametrize(
    "method",
    [
        PlainEval(seq_len=96),
        SlidingEval(seq_len=96, stride=8),
        SlidingEval(seq_len=96, stride=80),
        OverlapEval(seq_len=96, overlap=8),
        OverlapEval(seq_len=96),
        DocumentEval(seq_len=96, stride=80),
        ChunkTtt(seq_len=96, stride=80, chunk_tokens=96, epochs=0),
    ],
    ids=lambda method: f"{type(method).__name__}{method.context()}",
)
def test_scoring_asks_for_nothing_that_was_not_compiled_before_it(tiny_model, monkeypatch, method):
    asked = []
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, dynamic: (
            lambda ids, starts, start: (asked.append((ids.shape, start)), function(ids, starts, start))[1]
        ),
    )
    ready = replace(method, batch_seqs=2, compiler=TorchCompile())
    ready.arrange(tiny_model)
    before = set(asked)
    asked.clear()
    tokens = stream(300, 300)
    ready.run(Ledger(tiny_model, tokens, np.full(599, 2, np.uint16), ready))
    assert asked and set(asked) <= before


def test_what_torch_cannot_compile_is_an_error_of_the_environment(tiny_model, monkeypatch):
    def broken(function, dynamic):
        def graph(*args):
            raise RuntimeError("no compiler found\nand much more")

        return graph

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(SetupError, match=r"torch.compile failed: no compiler found \(compiler\)") as caught:
        SlidingEval(seq_len=24, stride=6, compiler=TorchCompile()).arrange(tiny_model)
    assert caught.value.exit_code == 5


def test_adapters_are_not_compiled():
    with pytest.raises(ConfigError, match="adapters change the model"):
        LoraTtt(compiler=TorchCompile())


@pytest.mark.slow
def test_torch_compile_itself_agrees(tiny_model):
    tokens, method = stream(31, 7, 64, 90, 300), SlidingEval(seq_len=128, stride=32, batch_seqs=3)
    eager, compiled = (losses_of(tiny_model, tokens, one) for one in (method, replace(method, compiler=TorchCompile())))
    np.testing.assert_allclose(compiled, eager, rtol=0, atol=1e-5)
