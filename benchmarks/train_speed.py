"""Tokens per second of pgolf's training loop, beside forward, backward and optimizer alone on the same model and batch.

The loop is the one `pgolf train` runs (loader, accumulation, schedule, clock, watch, events written as they happen), on
synthetic shards in a temporary directory. Loop and bare steps take turns in the same process.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import parser, seconds_of, show, spread
from pgolf.config.load import resolve
from pgolf.config.run import RunConfig
from pgolf.core.dist import World
from pgolf.core.shards import list_shards, load_split, write_shard
from pgolf.core.train.feed import feed
from pgolf.core.train.loop import TrainState, fit, start_state
from pgolf.report.console import Console
from pgolf.report.train_log import TrainLog
from pgolf.report.watch.stopwatch import Stopwatch
from pgolf.stages.watching import RunWatch


def synthetic_shards(folder: Path, config: RunConfig, seed: int) -> list[np.ndarray]:
    """Two memory-mapped shards of random ids, two batches long together."""
    generator = np.random.default_rng(seed)
    for index in range(2):
        ids = generator.integers(0, config.model.vocab_size, config.train.batch_tokens + 1, dtype=np.uint16)
        write_shard(folder / f"random_train_{index:06d}.bin", ids)
    return load_split(list_shards(folder, "train"), config.model.vocab_size)


def bare_steps(state: TrainState, config: RunConfig, world: World, steps: int) -> None:
    """The arithmetic of `steps` optimizer steps on one batch that is already in memory."""
    train = config.train
    batch = next(feed(state.read, 0, 0, world.device))
    for step in range(steps):
        for _ in range(train.micro_steps(1)):
            (state.model(*batch) / train.micro_steps(1)).backward()
        state.optimizers.step(step, 1.0)


def measure(options: argparse.Namespace, config: RunConfig, folder: Path) -> dict[str, list[float]]:
    """Seconds of each round, for the loop and for the bare steps."""
    world, shards = World(), synthetic_shards(folder, config, 0)
    log = TrainLog(folder, config, Console(quiet=True), 0)

    def prepared() -> TrainState:
        return start_state(config.model, config.train, config.optim, shards, 0, world)

    def watching(state: TrainState) -> RunWatch:
        return RunWatch(
            state,
            config,
            world,
            Console(quiet=True),
            Stopwatch(time.monotonic),
            {},
            tell=lambda event: log.event(event) if event["event"] == "step" else None,
            validate=dict,
            save=lambda state, watched: None,
            stop_asked=lambda: False,
            compiled=False,
        )

    seconds: dict[str, list[float]] = {"pgolf's loop": [], "bare steps": []}
    bare_steps(prepared(), config, world, 1)
    for _ in range(options.rounds):
        state = prepared()
        fit(state, config.train, config.optim, world, watching(state), False)
        seconds["pgolf's loop"].append(state.clock.elapsed_s)
        state = prepared()
        seconds["bare steps"].append(
            seconds_of(lambda state=state: bare_steps(state, config, world, config.train.iterations))
        )
    return seconds


def main() -> None:
    """Measure and print tokens per second and the ratio of the least times."""
    arguments = parser(__doc__)
    arguments.add_argument("--preset", default="demo")
    arguments.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    arguments.add_argument("--steps", type=int, default=10)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--threads", type=int, default=0, help="torch's threads; 0 leaves its own choice")
    options = arguments.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    quiet = ["train.val_every=0", "train.checkpoint_every=0", "train.max_wallclock_seconds=0"]
    config = resolve(options.preset, [*options.sets, f"train.iterations={options.steps}", *quiet]).config
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(options, config, Path(folder))
    tokens, bare = config.train.batch_tokens * options.steps, min(seconds["bare steps"])
    rows = [
        {
            "what": name,
            **spread(values),
            "tokens_per_s": round(tokens / min(values)),
            "over_bare": round(min(values) / bare, 4),
        }
        for name, values in seconds.items()
    ]
    show("train_speed", options, rows, [f"{torch.get_num_threads()} threads, {tokens:,} tokens a round"])


if __name__ == "__main__":
    main()
