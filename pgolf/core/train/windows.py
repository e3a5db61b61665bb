"""Micro-batches cut from memory-mapped shards by number, for the loaders that are not one stream.

Reading in order is fast. A jump costs at most one epoch's draws (not its tokens) over again.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pgolf.core.errors import InputError

if TYPE_CHECKING:
    from pgolf.core.dist import World
    from pgolf.core.train.config import TrainConfig

FAR = 1 << 20
"""Ids in which the first document of a shard is looked for."""


def too_few(train: "TrainConfig", world: "World") -> InputError:
    """The error of a rank that cannot fill a micro-batch."""
    return InputError(
        f"the training shards hold no batch of {train.micro_batch_tokens:,} tokens for each of {world.size} ranks",
        "train.loader",
        "lower train.micro_batch_tokens, or choose train.loader.kind=sequential",
    )


def window_counts(shards: list[np.ndarray], seq_len: int) -> np.ndarray:
    """How many windows of seq_len + 1 each shard holds whatever the phase, (S,) int64."""
    return np.array([max(0, len(ids) // seq_len - 1) for ids in shards], dtype=np.int64)


def cut(shards: list[np.ndarray], picks: np.ndarray, starts: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, (R, seq_len) each, of windows given by shard and first id, (R,) each."""
    windows = np.stack([shards[pick][start : start + seq_len + 1] for pick, start in zip(picks, starts)])
    return windows[:, :-1].astype(np.int64), windows[:, 1:].astype(np.int64)


class ShuffledWindows:
    """Windows of a rank's own shards in random order. PR #1394 draws a shard by how many windows it has left, then one
    of these; that is one permutation of them all, and here it is drawn as that, from (seed, rank, epoch).
    """

    def __init__(self, train: "TrainConfig", shards: list[np.ndarray], seed: int, world: "World") -> None:
        if len(shards) < world.size:
            raise InputError(
                f"{len(shards)} training shards are fewer than {world.size} ranks",
                "train.loader",
                "tokenize with a smaller tokenize.shard_tokens, or choose train.loader.kind=sequential",
            )
        self.shards, self.seq_len, self.seeds = shards[world.rank :: world.size], train.seq_len, (seed, world.rank)
        self.counts, self.rows = window_counts(self.shards, self.seq_len), train.micro_batch_tokens // self.seq_len
        self.batches, self.epoch = int(self.counts.sum()) // self.rows, -1
        if not self.batches:
            raise too_few(train, world)

    def begin_epoch(self, epoch: int) -> None:
        """Draw phases (S,) and the order of all windows."""
        draw = np.random.default_rng((*self.seeds, epoch))
        self.phases = draw.integers(self.seq_len, size=len(self.shards))
        self.order, self.epoch = draw.permutation(int(self.counts.sum())), epoch

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens / seq_len, seq_len) each."""
        epoch, index = divmod(number, self.batches)
        if epoch != self.epoch:
            self.begin_epoch(epoch)
        windows, ends = self.order[index * self.rows : (index + 1) * self.rows], self.counts.cumsum()
        picks = np.searchsorted(ends, windows, side="right")
        places = windows - (ends - self.counts)[picks]
        return cut(self.shards, picks, self.phases[picks] + places * self.seq_len, self.seq_len)


class CoprimeWindows:
    """Windows from a growing mix of all shards. Every rank makes the same draws, from seed, epoch and batch of the
    epoch, and takes its own windows of each.
    """

    def __init__(
        self, train: "TrainConfig", shards: list[np.ndarray], seed: int, world: "World", ramp_batches: int
    ) -> None:
        self.shards, self.seq_len, self.seed, self.world = shards, train.seq_len, seed, world
        self.counts, self.ramp_batches = window_counts(shards, train.seq_len), ramp_batches
        self.windows = train.micro_batch_tokens // train.seq_len * world.size
        self.batches, self.epoch, self.index = int(self.counts.sum()) // self.windows, -1, 0
        if not self.batches:
            raise too_few(train, world)

    def begin_epoch(self, epoch: int) -> None:
        """Draw how each shard is walked; all arrays are (S,)."""
        draw = np.random.default_rng((self.seed, epoch))
        self.phases = draw.integers(self.seq_len, size=len(self.counts))
        self.firsts = draw.integers(np.maximum(self.counts, 1))
        self.strides = np.array([coprime(draw, int(count)) for count in self.counts])
        self.taken = np.zeros_like(self.counts)
        self.epoch, self.index = epoch, 0

    def quota(self, draw: np.random.Generator) -> np.ndarray:
        """How many windows of each shard the next batch takes, (S,): one of each in the mix, the rest by weight; shards
        outside the mix only when those in it run out.
        """
        left = self.counts - self.taken
        progress = min((self.epoch * self.batches + self.index) / self.ramp_batches, 1.0)
        weights = np.where(left, np.maximum(left, 1.0) ** (0.9 - 0.4 * progress), 0.0)
        least, most = max(8, self.world.size), max(32, 8 * self.world.size)
        mix = min(round(least + progress * (most - least)), self.windows, int(np.count_nonzero(left)))
        quota = np.zeros_like(left)
        quota[draw.choice(len(left), mix, replace=False, p=weights / weights.sum())] = 1
        while missing := self.windows - int(quota.sum()):
            room = left - quota
            mixed = np.where((quota > 0) & (room > 0), weights, 0.0)
            chances = mixed if mixed.any() else np.where(room, weights, 0.0)
            quota += np.minimum(draw.multinomial(missing, chances / chances.sum()), room)
        return quota

    def picks(self) -> tuple[np.ndarray, np.ndarray]:
        """The next batch of all ranks: shards, and the place of the window in the shard's walk, (R * world,) each."""
        draw = np.random.default_rng((self.seed, self.epoch, self.index + 1))
        quota = self.quota(draw)
        shards = np.repeat(np.arange(len(quota)), quota)
        places = np.arange(len(shards)) - np.repeat(quota.cumsum() - quota - self.taken, quota)
        self.taken += quota
        self.index += 1
        order = draw.permutation(len(shards))
        return shards[order], places[order]

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens / seq_len, seq_len) each."""
        epoch, index = divmod(number, self.batches)
        if epoch != self.epoch or index < self.index:
            self.begin_epoch(epoch)
        while self.index < index:
            self.picks()
        picks, places = (array[self.world.rank :: self.world.size] for array in self.picks())
        blocks = (self.firsts[picks] + places * self.strides[picks]) % self.counts[picks]
        return cut(self.shards, picks, self.phases[picks] + blocks * self.seq_len, self.seq_len)


def coprime(draw: np.random.Generator, count: int) -> int:
    """A random stride that visits all of `count` places."""
    stride = int(draw.integers(1, max(count, 2)))
    while math.gcd(stride, count) > 1:
        stride = stride % count + 1
    return stride


def document_slices(
    train: "TrainConfig", shards: list[np.ndarray], world: "World", bos_id: int
) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Number of a micro-batch -> inputs and targets, (1, tokens) each."""
    taken = train.micro_batch_tokens + 1
    places = []
    for ids in shards:
        first = int((ids[:FAR] == bos_id).argmax())
        places += [(ids, start) for start in range(first, len(ids) - taken * world.size + 1, taken * world.size)]
    if not places:
        raise too_few(train, world)

    def read(number: int) -> tuple[np.ndarray, np.ndarray]:
        ids, start = places[number % len(places)]
        row = ids[None, start + world.rank * taken :][:, :taken].astype(np.int64)
        return row[:, :-1], row[:, 1:]

    return read
