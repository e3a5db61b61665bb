"""Test-time training on two ranks over gloo gives the scores of one, and both ranks know all of them."""

import dataclasses
import itertools
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from warm import run_ranks

from pgolf.core.dist import World, join_world
from pgolf.core.evals.ledger import EvalWatch, Ledger
from pgolf.core.model.config import ModelConfig
from pgolf.core.model.gpt import GPT
from pgolf.core.model.parts.layer_loop import LayerLoop
from pgolf.core.ttt.chunk import ChunkTtt
from pgolf.core.ttt.lora import LoraTtt
from pgolf.core.ttt.phased import PhasedTtt
from pgolf.core.ttt.steppers import TttAdamW, TttMuon
from pgolf.core.ttt.weights import WeightTraining
from pgolf.report.console import Console, ProgressLine
from pgolf.stages.eval_clock import EvalClock
from pgolf.stages.eval_watch import ScoringWatch

MODEL = ModelConfig(
    vocab_size=60, num_layers=3, model_dim=32, num_heads=4, num_kv_heads=2, loop=LayerLoop(start=1, end=1)
)
CHUNK = ChunkTtt(seq_len=16, stride=4, chunk_tokens=80, train_seqs=3, lr=0.02, epochs=2)
LORA = LoraTtt(seq_len=24, chunk_tokens=8, rank=4, alpha=4.0, lr=0.002, eps=1e-6, batch_seqs=3)
BASE = WeightTraining(chunk_tokens=72, lr=0.02, epochs=1, train_seqs=2)
PHASED = {**vars(LORA), "phases": 2, "prefix_docs": 10, "base": BASE}
METHODS = {
    "chunk": CHUNK,
    "a rank without a sequence": dataclasses.replace(CHUNK, train_seqs=1),
    "chunk, AdamW": dataclasses.replace(CHUNK, lr=0.001, optimizer=TttAdamW(eps=1e-3, weight_decay=0.1)),
    "chunk, Muon": dataclasses.replace(CHUNK, lr=0.001, optimizer=TttMuon()),
    "chunk, without its loop": dataclasses.replace(CHUNK, train_loop=False, looped_rate=0.1, freeze_blocks=1),
    "lora": LORA,
    "phased": PhasedTtt(**PHASED),
    "phased, longest first": PhasedTtt(**PHASED | {"order": "longest"}),
}


def stream():
    """Eighteen documents of 2 to 60 tokens."""
    rng = np.random.default_rng(3)
    return np.concatenate([[1, *rng.integers(2, 60, rng.integers(1, 60))] for _ in range(18)])


class Counting(World):
    """Counts the sums over ranks."""

    def mean_(self, tensors):
        self.__dict__["means"] = self.__dict__.get("means", 0) + 1
        super().mean_(tensors)


def scores(world):
    """Method -> losses, weights afterwards and how often ranks averaged gradients."""
    found, tokens = {}, stream()
    for name, method in METHODS.items():
        model = GPT(MODEL, 5)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
        counting = Counting(**vars(world))
        ledger = Ledger(model, tokens, np.full(len(tokens) - 1, 2), method, EvalWatch(counting))
        method.run(ledger)
        found[name] = {
            "losses": torch.from_numpy(ledger.losses),
            "tokens": ledger.total().tokens,
            "weights": model.state_dict(),
            "means": vars(counting).get("means", 0),
        }
    return found


def hurried(world, slow):
    """Method -> what becomes of it where the clock of one rank runs fast: what its watch knows at the end, and before
    the ranks agree.
    """
    found, tokens = {}, stream()
    for name in ("lora", "phased", "chunk"):
        clock = itertools.count(0.0, 1.0 if world.rank == slow else 1e-6).__next__
        line = ProgressLine(None)
        watch = ScoringWatch(name, EvalClock(10.0, "strict", 0.0, clock), Console(quiet=True), line, world)
        ledger = Ledger(GPT(MODEL, 5), tokens, np.full(len(tokens) - 1, 2), METHODS[name], watch)
        METHODS[name].run(ledger)
        alone = watch.stopped_at, watch.adapter_steps
        watch.agree()
        found[name] = {
            "tokens": ledger.total().tokens,
            "alone": alone,
            "stopped_at": watch.stopped_at,
            "learning": watch.learning(),
            "warnings": watch.console.warnings,
        }
    return found


def one_rank(rank, port, folder):
    """A process of its own among two, which writes what it found."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    world = join_world("cpu")
    torch.save(scores(world), folder / f"{rank}.pt")
    torch.save([hurried(world, 0), hurried(world, 1), hurried(world, 2)], folder / f"hurried{rank}.pt")
    world.close()
    os._exit(0)  # as in test_distribution


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory):
    """What one process finds, and what each of two; what each of two does if the first, the second or none hurries."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    run_ranks(one_rank, 2, port, folder)
    pairs = zip(*(torch.load(folder / f"hurried{rank}.pt", weights_only=True) for rank in (0, 1)))
    found = scores(World()), *(torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    return found, [*pairs]


@pytest.fixture(scope="module")
def found(ranks):
    """What one process finds, and what each of two."""
    return ranks[0]


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_give_the_scores_of_one(found, name):
    alone, first, second = (one[name] for one in found)
    assert torch.equal(first["losses"], second["losses"])
    assert alone["tokens"] == first["tokens"] == len(stream()) - 1
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=0, atol=1e-5)
    for weight, same, other in zip(*(one["weights"].values() for one in (first, second, alone)), strict=True):
        assert torch.equal(weight, same)
        torch.testing.assert_close(weight, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_every_rank_averages_as_often_as_the_other(found, name):
    alone, first, second = (one[name]["means"] for one in found)
    assert alone == first == second
    assert (alone == 0) == (name == "lora")


@pytest.mark.parametrize("name", ["lora", "phased", "chunk"])
@pytest.mark.parametrize("slow", [0, 1])
def test_a_rank_that_has_no_time_ends_adaptation_and_all_know(ranks, name, slow):
    both = [found[name] for found in ranks[1][slow]]
    assert [one["tokens"] for one in both] == [len(stream()) - 1] * 2
    assert both[0]["learning"] == both[1]["learning"]
    assert both[0]["stopped_at"] == both[1]["stopped_at"] == both[slow]["alone"][0]
    assert all(one["warnings"] for one in both)
    assert both[0]["learning"]["adapter_steps"] == sum(one["alone"][1] for one in both)
    free = ranks[1][2][0][name]
    assert free["stopped_at"] is None and free["warnings"] == []
    if name == "lora":
        # The other rank goes on for itself.
        assert both[1 - slow]["alone"] == (None, ranks[1][2][1 - slow][name]["alone"][1])
    else:
        assert both[0]["learning"]["weight_steps"] < free["learning"]["weight_steps"]
