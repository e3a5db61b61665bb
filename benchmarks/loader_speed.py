"""Tokens per second of every loader, one process reading memory-mapped shards, beside the rate at which the fastest
model consumes them.

Shards of random ids are written to a temporary directory, and so lie in the page cache. Each round reads on where the
one before ended; the draws that begin an epoch fall into the first.
"""

import argparse
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import parser, seconds_of, show, spread
from pgolf.catalog import CATALOG, load
from pgolf.core.dist import World
from pgolf.core.shards import list_shards, load_split, write_shard
from pgolf.core.train.config import TrainConfig
from pgolf.core.train.feed import feed

FASTEST_MODEL = 1_600_000
"""Tokens per second of one GPU: the naive baseline's 524,288 tokens in 43.5 ms on eight, with some to spare."""


def random_shards(folder: Path, count: int, tokens: int) -> list[np.ndarray]:
    """Memory-mapped shards of ids below 1024, a document of about 800 tokens after the other."""
    generator = np.random.default_rng(0)
    for index in range(count):
        ids = generator.integers(2, 1024, tokens, dtype=np.uint16)
        ids[generator.random(tokens) < 1 / 800] = 1
        write_shard(folder / f"random_train_{index:06d}.bin", ids)
    return load_split(list_shards(folder, "train"), 1024)


def timings(kind: str, prefetch: int, shards: list[np.ndarray], options: argparse.Namespace) -> list[float]:
    """Seconds of each round."""
    train = TrainConfig(
        seq_len=options.seq_len, micro_batch_tokens=options.tokens, batch_tokens=options.tokens * options.ranks
    )
    read = load("Loader", kind)().begin(train, shards, 1337, World(rank=0, size=options.ranks))
    batches = feed(read, 0, prefetch, torch.device("cpu"))
    found = [seconds_of(lambda: sum(1 for _ in islice(batches, options.batches))) for _ in range(options.rounds)]
    batches.close()
    return found


def main() -> None:
    """Measure and print tokens per second and their ratio to the fastest model's."""
    arguments = parser(__doc__)
    arguments.add_argument("--shards", type=int, default=8)
    arguments.add_argument("--shard-tokens", type=int, default=10_000_000)
    arguments.add_argument("--tokens", type=int, default=65536, help="tokens of a micro-batch")
    arguments.add_argument("--seq-len", type=int, default=1024)
    arguments.add_argument("--ranks", type=int, default=1)
    arguments.add_argument("--batches", type=int, default=40, help="micro-batches of a round")
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shards = random_shards(Path(folder), options.shards, options.shard_tokens)
        for kind in CATALOG["Loader"]:
            for prefetch in (0, 2):
                seconds = timings(kind, prefetch, shards, options)
                rate = options.tokens * options.batches / min(seconds)
                figures = {"tokens_per_s": round(rate), "over_model": round(rate / FASTEST_MODEL, 1)}
                rows.append({"loader": kind, "prefetch": prefetch, **spread(seconds), **figures})
    show("loader_speed", options, rows, [f"the fastest model takes {FASTEST_MODEL:,} tokens per second and GPU"])


if __name__ == "__main__":
    main()
