"""What a resumable checkpoint costs training: how long a step waits while everything is copied, and how much slower
steps are while a thread writes the copy.

Steps are those of `pgolf train` on random ids. Each round trains, saves, and trains on until the files are written; the
share is that of one checkpoint in the steps between two (`train.checkpoint_every`). With --pace a step is taken to last
that long, for shapes that this machine can train on small batches only (--set): then only the wait counts, as steps
on a GPU leave the thread a core of its own.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import parser, show
from pgolf.config.load import resolve
from pgolf.config.run import RunConfig
from pgolf.core.dist import World
from pgolf.core.train.feed import feed
from pgolf.core.train.loop import TrainState, Watch, start_state, train_step
from pgolf.report.console import Console
from pgolf.stages.checkpoints import Checkpoints


class Steps:
    """A run that is trained step by step."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.world = config, World()
        ids = np.random.default_rng(0).integers(2, config.model.vocab_size, 1 << 20, dtype=np.uint16)
        ids[::500] = 1
        self.state: TrainState = start_state(config.model, config.train, config.optim, [ids], 0, self.world)
        self.batches: Iterator[Any] = feed(self.state.read, 0, 0, self.world.device)
        self.watch = Watch(lambda event: None, dict, lambda state: None, lambda: False)

    def step(self) -> float:
        """One step; its seconds."""
        start = time.perf_counter()
        train_step(self.state.model, self.state, self.batches, self.config.train, 1.0, self.world, self.watch)
        self.state.step += 1
        return time.perf_counter() - start


def measured(run: Steps, saved: Checkpoints, options: argparse.Namespace) -> dict[str, float]:
    """One round: seconds of a step, of the wait for the copy, until files are written, and lost by steps meanwhile."""
    plain = options.pace or statistics.median(run.step() for _ in range(options.steps))
    start = time.perf_counter()
    saved.save(run.state, run.state.optimizers.state(), {})
    waited, beside = time.perf_counter() - start, list[float]()
    while not options.pace and saved.writing and not saved.writing.done():
        beside.append(run.step())
    saved.settle()
    written = time.perf_counter() - start - waited
    lost = max(sum(beside) - plain * len(beside), 0.0)
    share = (waited + lost) / (plain * run.config.train.checkpoint_every)
    return {"step_s": plain, "waits_s": waited, "written_s": written, "lost_s": lost, "share_percent": 100 * share}


def main() -> None:
    """Measure and print the medians of all rounds."""
    arguments = parser(__doc__)
    arguments.add_argument("--preset", default="demo")
    arguments.add_argument("--steps", type=int, default=10, help="steps timed without a checkpoint, each round")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--pace", type=float, default=0.0, help="seconds of a step where none is to be measured")
    arguments.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="other settings; repeatable")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    config = resolve(options.preset, options.set).config
    if config.train.checkpoint_every < 1:
        raise SystemExit("train.checkpoint_every is 0: this run writes no resumable checkpoint")
    run = Steps(config)
    for _ in range(2):  # optimizers have all of their state after a step
        run.step()
    with tempfile.TemporaryDirectory() as name, Checkpoints(Path(name), {}, "benchmark", 2, Console(True)) as saved:
        found = [measured(run, saved, options) for _ in range(options.rounds)]
        size = sum(path.stat().st_size for path in saved.paths(saved.steps()[0]))
    medians = {key: round(statistics.median(one[key] for one in found), 4) for key in found[0]}
    every = config.train.checkpoint_every
    show(
        "checkpoint_cost",
        options,
        [{"preset": options.preset, "MB": round(size / 1e6, 1), "every": every, **medians}],
        [f"{sum(weight.numel() for weight in run.state.model.parameters()):,} parameters, {options.threads} threads"],
    )


if __name__ == "__main__":
    main()
