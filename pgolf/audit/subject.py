"""What is audited: something that gives every target of a stream a loss."""

import copy
import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pgolf.audit.stream import Vocabulary
from pgolf.audit.trace import AdjustedRecording, Enough, PlainRecording, Trial
from pgolf.core.dist import World
from pgolf.core.errors import PgolfError
from pgolf.core.evals.ledger import EvalWatch
from pgolf.core.model.gpt import GPT


class Subject(Protocol):
    """An evaluator under audit."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Its ids."""

    @property
    def records(self) -> bool:
        """Whether it shows commits and what was looked at, beside losses."""

    def run(self, tokens: np.ndarray, limit: int = 0, hashes: bool = False) -> Trial:
        """Evaluate a stream (N,), up to `limit` committed targets if that is not 0; with `hashes` the weights are
        watched.
        """

    @property
    def jobs(self) -> int:
        """How many runs may go on at once."""

    @property
    def slack(self) -> float:
        """Nats by which equal losses may differ on its machine."""

    def likely(self, tokens: np.ndarray, position: int) -> np.ndarray:
        """All ids (V,), the likeliest token at `position` first, as far as it is known."""

    def variants(self) -> "dict[str, Subject]":
        """The same evaluator in other batches or on other ranks, by what is different."""

    def describe(self) -> dict[str, Any]:
        """What it is, enough to make it again."""


class Ranks:
    """Several worlds in the threads of one process, which meet at a barrier."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier, self.given = size, threading.Barrier(size), [None] * size

    def together(self, rank: int, value: Any) -> list[Any]:
        """What every rank gives at this point, in order of rank."""
        self.given[rank] = value
        self.barrier.wait()
        found = list(self.given)
        self.barrier.wait()
        return found


@dataclass(frozen=True, kw_only=True)
class ThreadWorld(World):
    """A rank among threads."""

    ranks: Ranks = field(default_factory=lambda: Ranks(1))

    def all(self, tensor: Tensor) -> list[Tensor]:
        """Everybody's tensor."""
        return self.ranks.together(self.rank, tensor.detach().clone())

    def mean_(self, tensors: Any) -> None:
        """Replace every tensor by its mean over the ranks."""
        for tensor in tensors:
            tensor.copy_(torch.stack(self.all(tensor)).sum(0) / self.size)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        return tensor.copy_(torch.stack(self.all(tensor)).sum(0))

    def max_(self, tensor: Tensor) -> Tensor:
        """Elementwise maximum over the ranks, in place."""
        return tensor.copy_(torch.stack(self.all(tensor)).amax(0))

    def largest(self, *values: float) -> list[float]:
        """The largest of each value over the ranks."""
        return [max(column) for column in zip(*self.ranks.together(self.rank, values))]

    def scatter(self, whole: Tensor) -> tuple[Tensor, Any]:
        """This rank's rows of the sum over the ranks."""
        return torch.stack(self.all(whole)).sum(0).chunk(self.size)[self.rank], None

    def gather(self, rows: Tensor) -> tuple[Tensor, Any]:
        """The rows of every rank."""
        return torch.cat(self.all(rows)), None

    def barrier(self) -> None:
        """Wait for every rank."""
        self.ranks.together(self.rank, None)


GPU_SLACK = 1e-6
"""Nats by which equal losses may differ on a GPU, whose sums have no fixed order."""
Ledgers = Callable[..., Any]


@dataclass(frozen=True)
class InProcess:
    """An evaluation method with the model it scores, each run on a fresh copy. `about` says how to make it again."""

    model: GPT
    method: Any
    vocabulary: Vocabulary
    about: dict[str, Any]
    ledgers: Ledgers | None = None
    world_size: int = 1
    records: bool = True
    jobs: int = 1

    @property
    def slack(self) -> float:
        """None on a CPU."""
        return 0.0 if next(self.model.parameters()).device.type == "cpu" else GPU_SLACK

    def run(self, tokens: np.ndarray, limit: int = 0, hashes: bool = False) -> Trial:
        """Evaluate a stream on one rank, or on several in threads."""
        if self.world_size == 1:
            return self.run_rank(World(), tokens, limit, hashes)
        ranks, errors = Ranks(self.world_size), list[BaseException]()
        found: dict[int, Trial] = {}

        def work(rank: int) -> None:
            world = ThreadWorld(rank=rank, size=self.world_size, ranks=ranks)
            try:
                found[rank] = self.run_rank(world, tokens, 0, hashes)
                if found[rank].error:
                    ranks.barrier.abort()
            except BaseException as error:
                errors.append(error)
                ranks.barrier.abort()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for trial in found.values():
            if trial.error:
                return trial
        for error in sorted(errors, key=lambda one: isinstance(one, threading.BrokenBarrierError)):
            raise error
        return found[0]

    def run_rank(self, world: World, tokens: np.ndarray, limit: int, hashes: bool) -> Trial:
        """Evaluate a stream as one rank. What a rule of the harness stops is told in the trial."""
        model, method = copy.deepcopy(self.model), copy.deepcopy(self.method)
        options = {"bos_id": self.vocabulary.bos_id, "limit": limit, "hashes": hashes}
        make = self.ledgers or (AdjustedRecording if method.adjusters() else PlainRecording)
        method.arrange(model)
        ledger: Any = None
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                ledger = make(model, tokens, method, EvalWatch(world), **options)
                ledger.loaded = ledger.fingerprint() if hashes else 0
                if hasattr(method, "warm_up"):
                    method.warm_up(ledger)
                ledger.begun = True
                method.run(ledger)
        except Enough:
            pass
        except PgolfError as error:
            if ledger is None:
                raise
            ledger.trial.error = str(error)
        trial: Trial = ledger.trial
        return trial

    def likely(self, tokens: np.ndarray, position: int) -> np.ndarray:
        """By the model, from as many tokens before as the method gives it."""
        start = max(position - self.method.seq_len, 0)
        ids = torch.from_numpy(np.asarray(tokens[start:position], np.int64))[None]
        ids = ids.to(next(self.model.parameters()).device)
        with torch.no_grad():
            logits = self.model.head(self.model.hidden(ids)[:, -1:])[0, -1]
        return logits.argsort(descending=True).cpu().numpy()

    def variants(self) -> dict[str, Subject]:
        """Half the batch, another odd batch, two ranks."""
        size = self.method.batch_seqs
        found: dict[str, Subject] = {}
        for other in sorted({max(size // 2, 1), size + 3} - {size}):
            method = resized(self.method, other)
            found[f"batch of {other} windows"] = dataclasses.replace(self, method=method)
        if self.world_size == 1:
            found["2 ranks"] = dataclasses.replace(self, world_size=2)
        return found

    def describe(self) -> dict[str, Any]:
        """What it is."""
        return self.about | ({"world_size": self.world_size} if self.world_size > 1 else {})


def resized(method: Any, batch_seqs: int) -> Any:
    """A method with another number of windows per pass."""
    if dataclasses.is_dataclass(method):
        return dataclasses.replace(method, batch_seqs=batch_seqs)  # type: ignore[type-var]
    other = copy.deepcopy(method)
    other.batch_seqs = batch_seqs
    return other
