"""Phased test-time training: the published pass over the weights, boundaries by counting, and what may know of what."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from test_records_golden import loaded, meta, record_1855, unbanked

from pgolf.core.dist import World
from pgolf.core.errors import ConfigError, InputError
from pgolf.core.evals.document import document_begins
from pgolf.core.evals.ledger import Ledger, evaluate
from pgolf.core.model.parts.by_document import ByDocument
from pgolf.core.ttt.documents import length_batches
from pgolf.core.ttt.lora import LoraTtt
from pgolf.core.ttt.phased import PhasedTtt
from pgolf.core.ttt.weights import WeightTraining

ADAPTERS = {"seq_len": 24, "chunk_tokens": 8, "rank": 4, "alpha": 4.0, "lr": 0.01, "batch_seqs": 2}
BASE = WeightTraining(chunk_tokens=24, lr=0.05, epochs=1, train_seqs=2)
SMALL = ADAPTERS | {"phases": 2, "prefix_docs": 6, "base": BASE}
LENGTHS = (20, 9, 33, 14, 26, 7, 18, 30, 12)


def documents(*lengths, seed=0):
    """A stream of documents of these many tokens, each begun by token 1."""
    rng = np.random.default_rng(seed)
    return np.concatenate([[1, *rng.integers(2, 60, length - 1)] for length in lengths])


def run(model, tokens, method):
    """The ledger after a method has run on a copy of the model."""
    return evaluate(copy.deepcopy(model), tokens, np.full(len(tokens) - 1, 2, np.uint16), method)[1]


def test_pr1855_global_sgd_golden(oracle):
    data = oracle("eval_ttt_global_sgd.npz")
    config, bounds = meta(data)["config"], meta(data)["tolerance"]
    parts = {"documents": ByDocument(max_tokens=config["segment_max"])}
    model = loaded(
        record_1855(config | {"parallel_final_lane": "mean"}, **parts), unbanked(data, "init.", config["num_layers"])
    )
    losses, compute = [], model.forward
    model.forward = lambda *given: (losses.append(compute(*given)), losses[-1])[1]
    training = WeightTraining(
        chunk_tokens=config["chunk_tokens"],
        lr=config["lr"],
        epochs=config["epochs"],
        train_seqs=config["sequences_per_step"],
        pack=True,
    )
    training.learn_text(model, World(), data["tokens"], config["train_seq_len"])
    np.testing.assert_allclose([loss.item() for loss in losses], data["losses"], atol=bounds["losses_abs"])
    final = unbanked(data, "final.", config["num_layers"])
    for name, weight in model.state_dict().items():
        np.testing.assert_allclose(weight, final[name].reshape(weight.shape), atol=bounds["final_abs"], err_msg=name)


class Watched(Ledger):
    """Notes how many documents were scored when tokens were revealed, and which."""

    revealed: list

    def reveal(self, start, stop):
        self.revealed.append((int(start), int(stop), self.done))
        return super().reveal(start, stop)


@pytest.mark.parametrize("order", ["stream", "longest"])
@pytest.mark.parametrize(
    ("phases", "prefix", "ends"), [(1, 4, [4]), (2, 5, [2, 5]), (3, 6, [2, 4, 6]), (3, 40, []), (2, 9, [4])]
)
def test_phases_end_after_so_many_documents_of_the_queue(tiny_model, order, phases, prefix, ends):
    tokens = documents(*LENGTHS)
    begins = document_begins(tokens, 1)
    method = PhasedTtt(**SMALL | {"phases": phases, "prefix_docs": prefix, "order": order})
    ledger = Watched(tiny_model, tokens, np.full(len(tokens) - 1, 2), method)
    ledger.revealed = []
    method.run(ledger)
    queue = np.arange(9) if order == "stream" else np.concatenate(length_batches(np.diff(begins), 2))
    wanted = []
    for end in ends:
        behind = sum(int(begins[one + 1] - begins[one]) for one in queue[:end])
        wanted += [(int(begins[one] + (begins[one] > 0)), int(begins[one + 1]), behind) for one in queue[:end]]
    assert ledger.revealed == wanted
    assert ledger.total().tokens == len(tokens) - 1


def test_before_the_first_phase_ends_it_is_lora_and_after_that_it_is_not(tiny_model):
    tokens, method = documents(*LENGTHS), PhasedTtt(**SMALL)
    lora, phased = (run(tiny_model, tokens, one).losses for one in (LoraTtt(**ADAPTERS), method))
    first = sum(LENGTHS[:3])
    np.testing.assert_allclose(lora[:first], phased[:first], rtol=0, atol=1e-5)
    assert (np.abs(lora[first:] - phased[first:]) > 1e-4).mean() > 0.9
    assert phased.tobytes() == run(tiny_model, tokens, method).losses.tobytes()


@pytest.mark.parametrize("document", [0, 2, 4, 5, 8])
def test_in_stream_order_a_token_changes_nothing_before_it(tiny_model, document):
    tokens, method = documents(*LENGTHS), PhasedTtt(**SMALL)
    place = sum(LENGTHS[:document]) + 5
    flipped = tokens.copy()
    flipped[place] = 2 if tokens[place] != 2 else 3
    before, after = (run(tiny_model, stream, method).losses for stream in (tokens, flipped))
    assert before[: place - 1].tobytes() == after[: place - 1].tobytes()
    later = sum(LENGTHS[: 3 if document < 3 else 6])
    if document < 5:  # the text's last chunk, from which nothing is learned, has all that is flipped in document 5
        assert (before[later:] != after[later:]).mean() > 0.9
    else:
        assert before[sum(LENGTHS[: document + 1]) :].tobytes() == after[sum(LENGTHS[: document + 1]) :].tobytes()


def test_in_order_of_length_only_what_is_behind_in_the_queue_may_change(tiny_model):
    tokens, method = documents(*LENGTHS), PhasedTtt(**SMALL | {"order": "longest"})
    begins = document_begins(tokens, 1)
    queue = np.concatenate(length_batches(np.diff(begins), 2))
    flipped = tokens.copy()
    flipped[begins[queue[3]] + 5] = 2 if flipped[begins[queue[3]] + 5] != 2 else 3
    before, after = (run(tiny_model, stream, method).losses for stream in (tokens, flipped))
    for index, one in enumerate(queue):
        same = before[begins[one] : begins[one + 1]].tobytes() == after[begins[one] : begins[one + 1]].tobytes()
        assert same == (index != 3 and index < 6), index


def test_the_weights_learn_by_the_book(tiny_model):
    """One phase: what plain SGD makes of the first documents is what the rest is scored with."""
    tokens = documents(*LENGTHS)
    still = {"rank": 1, "targets": "q", "lr": 0.0}
    method = PhasedTtt(**SMALL | still | {"phases": 1, "prefix_docs": 4})
    end = sum(LENGTHS[:4])
    model = copy.deepcopy(tiny_model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    text = torch.from_numpy(tokens[:end])
    for chunk in range(3):  # of 75 targets in chunks of 24, the last is left out
        x, y = text[24 * chunk :][:24][None], text[24 * chunk + 1 :][:24][None]
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + np.cos(np.pi * chunk / 3)) / 2
        optimizer.zero_grad()
        model(x, y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    rest = run(model, tokens[end:], LoraTtt(**ADAPTERS | still)).losses
    np.testing.assert_allclose(run(tiny_model, tokens, method).losses[end:], rest, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("targets", "chunks"), [(1, 0), (23, 0), (24, 0), (25, 1), (47, 1), (48, 1), (49, 2), (72, 2), (73, 3)]
)
def test_the_last_chunk_of_a_text_is_not_learned_from(tiny_model, targets, chunks):
    """A last chunk that is whole is one too."""
    base = dataclasses.replace(BASE, chunk_tokens=24, train_seqs=1)
    assert base.learn_text(tiny_model, World(), documents(targets + 1), 12) == 2 * chunks
    method = PhasedTtt(**SMALL | {"base": base})
    assert method.lesson(np.array([targets + 1]), World()) == 24 * chunks


def test_the_model_learns_at_last_and_asks_for_gradients_again(tiny_model):
    before, tokens = copy.deepcopy(tiny_model.state_dict()), documents(*LENGTHS)
    method = PhasedTtt(**SMALL | {"base": dataclasses.replace(BASE, freeze_blocks=1)})
    evaluate(tiny_model, tokens, np.full(len(tokens) - 1, 2), method)
    moved = {name for name, weight in tiny_model.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if not name.startswith("blocks.0.")}
    assert all(weight.requires_grad and weight.grad is None for weight in tiny_model.parameters())


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        ({"phases": 0}, "phases"),
        ({"prefix_docs": 2}, "phases"),
        ({"order": "random"}, "order"),
        ({"seq_len": 2048, "base": WeightTraining(chunk_tokens=1024)}, "base.chunk_tokens"),
        ({"rank": 0}, "rank"),
    ],
)
def test_impossible_settings_name_their_key(bad, key):
    with pytest.raises(ConfigError) as caught:
        PhasedTtt(**bad)
    assert caught.value.where == key


def test_a_stream_without_documents_is_refused(tiny_model):
    with pytest.raises(InputError, match="no document begins"):
        run(tiny_model, np.full(50, 7), PhasedTtt(**SMALL))


def test_a_text_that_does_not_begin_with_a_document_is_learned_from_too(tiny_model):
    tokens = documents(*LENGTHS)[3:]
    assert np.isfinite(run(tiny_model, tokens, PhasedTtt(**SMALL)).losses).all()
