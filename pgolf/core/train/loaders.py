"""Which training tokens come when, for which rank (spec: training 7).

A loader is configuration. `begin` makes of it a function from the number of a micro-batch to its inputs and targets,
int64 and contiguous, the targets one token ahead. Shards, seed, rank and number of ranks decide that function, and so
the place in the data is one integer that follows from the step: nothing of it need be saved, whatever was prefetched,
and every rank finds its own. (With another number of ranks a run goes on too, sequential in the same order.)
Numbers go on for ever, over as many epochs as that takes; no token is a target twice in an epoch, and each docstring
says which of them never are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from pgolf.core.dist import World
    from pgolf.core.train.config import TrainConfig

    Read = Callable[[int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class SequentialLoader:
    """The concatenation of the shards, wrapping at the end: each micro-step takes world * (n + 1) ids and rank r the
    r-th slice of n + 1. One token per rank and micro-step is context only. Source: naive baseline.
    """

    def begin(self, train: "TrainConfig", shards: "list[np.ndarray]", seed: int, world: "World") -> "Read":
        """Rows of seq_len, the same for every seed."""
        from pgolf.core.shards import TokenStream

        def read(number: int) -> "tuple[np.ndarray, np.ndarray]":
            taken = train.micro_batch_tokens + 1
            ids = TokenStream(shards, (number * world.size + world.rank) * taken).take(taken)
            return ids[:-1].reshape(-1, train.seq_len), ids[1:].reshape(-1, train.seq_len)

        return read


@dataclass(frozen=True, kw_only=True)
class ShuffledLoader:
    """Windows of seq_len + 1 from the shards r, r + world, ... of rank r, cut at a random phase per shard and drawn in
    random order, each once an epoch. An epoch leaves out less than two windows per shard and less than a micro-batch.
    Source: PR #1394.
    """

    def begin(self, train: "TrainConfig", shards: "list[np.ndarray]", seed: int, world: "World") -> "Read":
        """Rows of seq_len. InputError when there are fewer shards than ranks, or less than a micro-batch for one."""
        from pgolf.core.train.windows import ShuffledWindows

        return ShuffledWindows(train, shards, seed, world).read


@dataclass(frozen=True, kw_only=True)
class CoprimeLoader:
    """Windows of seq_len + 1 from several shards at once, each shard cut at a random phase and walked in strides
    coprime with its number of windows, so that each comes once an epoch. Fuller shards are favoured, less so later; the
    number of shards in a micro-batch grows fourfold. Rank r has windows r, r + world, ... of a list all ranks agree on.
    An epoch leaves out less than two windows per shard and less than a micro-batch of all ranks. Source: PR #726, PR
    #1060, PR #1218.
    """

    ramp_batches: int = 1800
    """Micro-batches after which as many shards are mixed, and as evenly, as ever."""

    def __post_init__(self) -> None:
        if self.ramp_batches < 1:
            raise ConfigError(f"ramp_batches must be at least 1, not {self.ramp_batches}", "ramp_batches")

    def begin(self, train: "TrainConfig", shards: "list[np.ndarray]", seed: int, world: "World") -> "Read":
        """Rows of seq_len. InputError when there is less than a micro-batch for all ranks."""
        from pgolf.core.train.windows import CoprimeWindows

        return CoprimeWindows(train, shards, seed, world, self.ramp_batches).read


@dataclass(frozen=True, kw_only=True)
class DocumentLoader:
    """Documents one after the other, uncut: each micro-step takes world * (n + 1) ids of one shard, the first from its
    first document on, and rank r the r-th slice of n + 1 as a single sequence. For attention by document
    (model.documents), which bounds what a token sees; seq_len then matters to validation alone. Left out are the ids
    before a shard's first document (sought in its first 2^20) and those at its end that fill no micro-step; one token
    per rank and micro-step is context only. Source: PR #1530.
    """

    bos_id: int = 1
    """Token that begins a document."""

    def begin(self, train: "TrainConfig", shards: "list[np.ndarray]", seed: int, world: "World") -> "Read":
        """One row of all tokens, the same for every seed. InputError when no shard has a micro-step's ids."""
        from pgolf.core.train.windows import document_slices

        return document_slices(train, shards, world, self.bos_id)
