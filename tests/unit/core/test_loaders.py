"""Loaders: each target once an epoch, ranks apart, the same for the same seed, from any point on; and the feed."""

import threading
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgolf.catalog import CATALOG, load
from pgolf.core.dist import World
from pgolf.core.errors import ConfigError, InputError
from pgolf.core.model.parts.by_document import ByDocument
from pgolf.core.shards import TokenStream
from pgolf.core.train.config import TrainConfig
from pgolf.core.train.feed import feed

KINDS = sorted(CATALOG["Loader"])
WINDOWED = ["coprime", "shuffled"]
CPU = torch.device("cpu")


def shards_of(lengths: list[int]) -> list[np.ndarray]:
    """Shards in which every id says where it stands; no id is the BOS 1 but the first of a shard."""
    ends = np.cumsum(lengths) + 2
    shards = [np.arange(end - length, end, dtype=np.uint16) for end, length in zip(ends, lengths)]
    for ids in shards:
        ids[0] = 1
    return shards


def reader(kind: str, shards: list[np.ndarray], rows: int, seq_len: int, seed: int = 1, rank: int = 0, size: int = 1):
    """A rank's function from the number of a micro-batch to the micro-batch."""
    tokens = rows * seq_len
    train = TrainConfig(seq_len=seq_len, micro_batch_tokens=tokens, batch_tokens=tokens * size)
    return load("Loader", kind)().begin(train, shards, seed, World(rank=rank, size=size))


def epoch_batches(kind: str, shards: list[np.ndarray], rows: int, seq_len: int, size: int, rank: int = 0) -> int:
    """Micro-batches of a rank in an epoch, by what the loader's docstring promises."""
    counts = [max(0, len(ids) // seq_len - 1) for ids in shards]
    if kind == "shuffled":
        return sum(counts[rank::size]) // rows
    if kind == "coprime":
        return sum(counts) // (rows * size)
    span = size * (rows * seq_len + 1)
    return sum(len(ids) // span for ids in shards) if kind == "documents" else sum(map(len, shards)) // span


@st.composite
def jobs(draw: Any) -> tuple[list[np.ndarray], int, int, int]:
    """Shards, rows, seq_len and world size for which every loader has a micro-batch."""
    size, rows, seq_len = draw(st.sampled_from([1, 2, 4, 8])), draw(st.integers(1, 4)), draw(st.integers(1, 7))
    least = max(size * (rows * seq_len + 1), (rows + 1) * seq_len)
    lengths = draw(st.lists(st.integers(least, least + 120), min_size=size, max_size=size + 3))
    return shards_of(lengths), rows, seq_len, size


@pytest.mark.parametrize("kind", KINDS)
@given(job=jobs(), seed=st.integers(0, 2**63 - 1))
def test_an_epoch_has_each_target_at_most_once_over_all_ranks(kind, job, seed):
    shards, rows, seq_len, size = job
    seen = Counter()
    expected = 0
    for rank in range(size):
        read = reader(kind, shards, rows, seq_len, seed, rank, size)
        count = epoch_batches(kind, shards, rows, seq_len, size, rank)
        expected += count * rows * seq_len
        for number in range(count):
            x, y = read(number)
            assert x.shape == y.shape == ((1, rows * seq_len) if kind == "documents" else (rows, seq_len))
            assert x.dtype == y.dtype == np.int64 and x.flags.c_contiguous and y.flags.c_contiguous
            np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
            if kind != "sequential":
                assert (y == np.where(x == 1, y, x + 1)).all(), "a window crosses from one shard into another"
            seen.update(y.flatten().tolist())
    seen.pop(1, None)
    assert max(seen.values(), default=1) == 1
    assert expected - len(shards) <= seen.total() <= expected


@pytest.mark.parametrize("kind", WINDOWED)
@given(job=jobs(), epoch=st.integers(0, 3))
def test_every_window_comes_once_an_epoch_except_the_declared_tail(kind, job, epoch):
    shards, _, seq_len, size = job
    total = sum(map(len, shards))
    left_out = total
    for rank in range(size):
        read = reader(kind, shards, 1, seq_len, 5, rank, size)
        count = epoch_batches(kind, shards, 1, seq_len, size, rank)
        left_out -= len({int(y) for n in range(count) for y in read(epoch * count + n)[1].flatten()} - {1})
    assert left_out <= len(shards) * 2 * seq_len + size * seq_len


@pytest.mark.parametrize("kind", KINDS)
@given(job=jobs(), numbers=st.lists(st.integers(0, 60), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_a_micro_batch_depends_on_its_number_alone(kind, job, numbers, seed):
    shards, rows, seq_len, size = job
    jumping, straight = (reader(kind, shards, rows, seq_len, seed, size - 1, size) for _ in range(2))
    walked = [straight(number) for number in range(61)]
    for number in numbers:
        np.testing.assert_array_equal(jumping(number), walked[number])


@pytest.mark.parametrize("kind", WINDOWED)
def test_the_seed_and_the_epoch_decide_the_order(kind):
    shards = shards_of([400, 500, 600])
    first, same, other = (reader(kind, shards, 4, 8, seed) for seed in (3, 3, 4))
    count = epoch_batches(kind, shards, 4, 8, 1)
    np.testing.assert_array_equal(first(0), same(0))
    assert not np.array_equal(first(0), other(0)) and not np.array_equal(first(0), first(count))
    x, _ = first(0)
    assert (np.diff(x[:, 0]) != 8).any(), "windows come as they lie"


@given(jobs(), st.integers(0, 20))
def test_sequential_reads_what_one_stream_over_all_ranks_gives(job, number):
    shards, rows, seq_len, size = job
    taken = rows * seq_len + 1
    stream = TokenStream(shards)
    for _ in range(number + 1):
        spans = stream.take(size * taken).reshape(size, taken)
    for rank in range(size):
        x, y = reader("sequential", shards, rows, seq_len, 0, rank, size)(number)
        np.testing.assert_array_equal(x.flatten(), spans[rank, :-1])
        np.testing.assert_array_equal(y.flatten(), spans[rank, 1:])


def test_shuffled_ranks_own_their_shards():
    shards = shards_of([300] * 5)
    for rank in range(2):
        owned = np.concatenate(shards[rank::2])
        read = reader("shuffled", shards, 2, 8, 0, rank, 2)
        assert all(np.isin(read(number), owned).all() for number in range(200))


def test_coprime_mixes_more_shards_later():
    shards = shards_of([600] * 48)
    kinds = [load("Loader", "coprime")(ramp_batches=ramp) for ramp in (1, 10**6)]
    train = TrainConfig(seq_len=4, micro_batch_tokens=256, batch_tokens=256)
    late, early = (kind.begin(train, shards, 0, World()) for kind in kinds)
    mixed = [len({(int(first) - 2) // 600 for first in read(5)[1][:, 0]}) for read in (late, early)]
    assert mixed == [32, 8]


def test_documents_start_at_the_first_bos_of_a_shard():
    text = np.array([9, 9, 9, 1, 5, 6, 1, 7, 8, 9, 1, 4, 3], dtype=np.uint16)
    read = reader("documents", [text, text[3:]], 2, 2)
    assert [read(number)[0].tolist() for number in range(4)] == [
        [[1, 5, 6, 1]], [[8, 9, 1, 4]], [[1, 5, 6, 1]], [[8, 9, 1, 4]],
    ]  # fmt: skip
    segments = ByDocument(max_tokens=0).segments(torch.from_numpy(read(0)[0]))
    assert segments.tolist() == [[1, 1, 1, 2]]


def test_what_does_not_suffice_is_refused():
    with pytest.raises(InputError, match="3 training shards are fewer than 4 ranks"):
        reader("shuffled", shards_of([100] * 3), 1, 4, 0, 0, 4)
    for kind in ("shuffled", "coprime", "documents"):
        with pytest.raises(InputError, match="hold no batch of 96 tokens"):
            reader(kind, shards_of([60, 60]), 12, 8, 0, 0, 2)
    with pytest.raises(ConfigError, match="ramp_batches"):
        load("Loader", "coprime")(ramp_batches=0)
    with pytest.raises(ConfigError, match="prefetch"):
        TrainConfig(prefetch=-1)


# Feed


@pytest.mark.parametrize("ahead", [0, 1, 5])
@pytest.mark.parametrize("first", [0, 7])
def test_prefetching_changes_nothing(ahead, first):
    read = reader("coprime", shards_of([300, 400]), 2, 8)
    expected = [reader("coprime", shards_of([300, 400]), 2, 8)(number) for number in range(first, first + 30)]
    for batch, want in zip(islice(feed(read, first, ahead, CPU), 30), expected, strict=True):
        np.testing.assert_array_equal(np.stack([ids.numpy() for ids in batch]), want)


@pytest.mark.parametrize("ahead", [0, 2])
def test_no_more_is_read_than_asked_for(ahead):
    numbers: list[int] = []

    def read(number: int) -> tuple[np.ndarray, np.ndarray]:
        numbers.append(number)
        return np.zeros(1), np.zeros(1)

    batches = feed(read, 4, ahead, CPU)
    next(batches), next(batches)
    batches.close()
    assert numbers == list(range(4, 6 + ahead))


def test_errors_come_out_where_batches_are_taken_and_the_thread_ends():
    def read(number: int) -> tuple[np.ndarray, np.ndarray]:
        if number == 2:
            raise InputError("the disk is gone")
        return np.full(1, number), np.full(1, threading.get_ident())

    before = threading.active_count()
    batches = feed(read, 0, 2, CPU)
    (_, thread), _ = next(batches), next(batches)
    assert thread.item() != threading.get_ident() and threading.active_count() == before + 1
    with pytest.raises(InputError, match="the disk is gone"):
        next(batches)
    assert threading.active_count() == before
    batches = feed(read, 3, 2, CPU)
    next(batches)
    del batches
    assert threading.active_count() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_batches_are_the_same():
    read = reader("shuffled", shards_of([300, 400]), 2, 8)
    for number, batch in enumerate(islice(feed(read, 0, 2, torch.device("cuda", 0)), 20)):
        assert all(ids.is_cuda for ids in batch)
        np.testing.assert_array_equal(np.stack([ids.cpu().numpy() for ids in batch]), read(number))
