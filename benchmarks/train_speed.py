"""The speed of training, all in one run: pgolf's loop beside bare steps, compiled beside eager, Muon on batches beside
Muon on one matrix after the other, and where the loop's time goes.

The loop is the one `pgolf train` runs (loader, accumulation, schedule, clock, watch, events written as they happen), on
synthetic shards in a temporary directory; bare steps are forward, backward and optimizer on one batch in memory. All
that is compared takes turns in the same process. On a GPU, --schedule measures every mode of the preset's schedules
(loops on, other row lengths) and what the run makes of them on average, and the model's FLOPs beside the device's peak.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import parser, seconds_of, show, spread
from pgolf.config.load import resolve
from pgolf.config.run import RunConfig
from pgolf.core.dist import World
from pgolf.core.model.config import param_specs
from pgolf.core.model.params import MATRIX
from pgolf.core.optim.muon import POLAR_EXPRESS, QUINTIC, Muon, Stepped
from pgolf.core.optim.schedules import Progress
from pgolf.core.shards import list_shards, load_split, write_shard
from pgolf.core.train.feed import feed
from pgolf.core.train.loop import PLAIN, TrainState, fit, mode_at, modes, start_state
from pgolf.report.console import Console
from pgolf.report.train_log import TrainLog
from pgolf.report.watch.flops import peak_flops, training_flops
from pgolf.report.watch.stopwatch import Stopwatch
from pgolf.stages.train import choose_compile
from pgolf.stages.watching import RunWatch

Forward = Callable[..., Tensor]


def synthetic_shards(folder: Path, config: RunConfig, seed: int) -> list[np.ndarray]:
    """Two memory-mapped shards of random ids, four batches long together."""
    generator = np.random.default_rng(seed)
    for index in range(2):
        ids = generator.integers(0, config.model.vocab_size, 2 * config.train.batch_tokens + 1, dtype=np.uint16)
        write_shard(folder / f"random_train_{index:06d}.bin", ids)
    return load_split(list_shards(folder, "train"), config.model.vocab_size)


class Bench:
    """What the parts of this benchmark share: configuration, device, data."""

    def __init__(self, config: RunConfig, folder: Path, device: str, steps: int) -> None:
        self.config, self.folder, self.steps = config, folder, steps
        self.world = World(device=torch.device(device))
        self.shards = synthetic_shards(folder, config, 0)
        self.log = TrainLog(folder, config, Console(quiet=True), 0)

    def state(self) -> TrainState:
        """A run before its first step, nothing special switched on."""
        config = self.config
        state = start_state(config.model, config.train, config.optim, self.shards, 0, self.world)
        state.model.attach(*PLAIN)
        return state

    def wait(self) -> None:
        """Until the device has done what was asked of it."""
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()

    def bare(self, state: TrainState, forward: Forward, steps: int) -> None:
        """The arithmetic of `steps` optimizer steps on one batch that is already in memory."""
        train = self.config.train
        ids, targets = next(feed(state.read, 0, 0, self.world.device))
        width = state.model.row_length or ids.size(1)
        ids, targets = ids.view(-1, width), targets.view(-1, width)
        for step in range(steps):
            for _ in range(train.micro_steps(1)):
                torch.autograd.backward(forward(ids, targets, state.model.starts(ids)) / train.micro_steps(1))
            state.optimizers.step(step, 1.0)
        self.wait()

    def loop(self, state: TrainState) -> Stopwatch:
        """Train by pgolf's loop; what the clock said."""
        stopwatch = Stopwatch(time.monotonic)
        watch = RunWatch(
            state,
            self.config,
            self.world,
            Console(quiet=True),
            stopwatch,
            {},
            tell=lambda event: self.log.event(event) if event["event"] == "step" else None,
            validate=dict,
            save=lambda state, watched: None,
            stop_asked=lambda: False,
            compiled=False,
        )
        stopwatch.enter("other")
        fit(state, self.config.train, self.config.optim, self.world, watch, False)
        stopwatch.spent = watch.seconds()
        return stopwatch


def row(what: str, seconds: list[float], ratio: float, against: str, tokens: float = 0) -> dict[str, Any]:
    """A line of the table; `tokens` are those of one timing, 0 where none are meant."""
    rate = round(tokens / min(seconds)) if tokens else 0
    return {"what": what, **spread(seconds), "tokens_per_s": rate, "ratio": round(ratio, 3), "against": against}


def loop_rows(bench: Bench, rounds: int, compiled: bool) -> list[dict[str, Any]]:
    """Bare steps, the loop and its parts, and bare steps compiled."""
    bare, loop, fast, spent = [], [], [], dict[str, float]()
    state, tokens = bench.state(), bench.config.train.batch_tokens * bench.steps
    bench.bare(state, state.model, 1)
    quick = torch.compile(state.model, dynamic=False, fullgraph=True) if compiled else None
    if quick is not None:
        bench.bare(state, quick, 1)
    for _ in range(rounds):
        running = bench.state()
        stopwatch = bench.loop(running)
        loop.append(running.clock.elapsed_s)
        if loop[-1] == min(loop):
            spent = stopwatch.spent
        fresh = bench.state()
        bare.append(seconds_of(partial(bench.bare, fresh, fresh.model, bench.steps)))
        if quick is not None:
            fast.append(seconds_of(partial(bench.bare, state, quick, bench.steps)))
    rows = [
        row("bare steps, eager", bare, 1.0, "itself", tokens),
        row("pgolf's loop, eager", loop, min(loop) / min(bare), "time over bare steps", tokens),
    ]
    if quick is not None:
        rows.append(row("bare steps, compiled", fast, min(bare) / min(fast), "speed over eager", tokens))
    for phase in ("data", "forward_backward", "communication", "optimizer", "other", "logging"):
        rows.append(row(f"part {phase}", [spent.get(phase, 0.0)], spent.get(phase, 0.0) / min(loop), "of the loop"))
    return rows


def one_by_one(muon: Muon, one: Stepped, grad: Tensor, step: int) -> Tensor:
    """Muon's update of a single matrix, written down as its definition has it."""
    momentum = muon.momentum_at(step)
    memory = one.memory["momentum"].mul_(momentum).add_(grad)
    x = grad.add(memory, alpha=momentum)
    table = POLAR_EXPRESS if muon.coefficients == "polar" else QUINTIC
    if muon.rows == "l2":
        x = torch.nn.functional.normalize(x, dim=-1, eps=1e-7)
    x = x.bfloat16() if muon.bfloat16 else x
    x = x / (x.norm() + 1e-7)
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    for index in range(muon.ns_steps):
        a, b, c = table[min(index, len(table) - 1)]
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    update: Tensor = (x.T if tall else x) * max(1.0, grad.size(0) / grad.size(1)) ** 0.5
    return update


def muon_rows(preset: str, sets: list[str], device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Muon's updates of all matrices of a preset: one after the other, by shape at once, and so in the gram form.
    All must agree.
    """
    config = resolve(preset, sets).config
    muon, banks = config.optim.matrix, dict[tuple[int, ...], list[Stepped]]()
    assert isinstance(muon, Muon)
    torch.manual_seed(0)
    for spec in param_specs(config.model):
        if spec.group == MATRIX:
            weight = torch.randn(spec.shape, device=device)
            banks.setdefault(spec.shape, []).append(Stepped(weight, muon.memory(weight)))
    grads = {shape: [torch.randn_like(one.weight) for one in bank] for shape, bank in banks.items()}

    def by_shape(muon: Muon) -> list[Tensor]:
        found = [muon.updates(bank, grads[shape], 0) for shape, bank in banks.items()]
        return [update for updates in found for update in updates]

    def single() -> list[Tensor]:
        return [
            one_by_one(muon, one, grad, 0) for shape, bank in banks.items() for one, grad in zip(bank, grads[shape])
        ]

    def timed(action: Callable[[], Any]) -> float:
        def whole() -> None:
            action()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return seconds_of(whole)

    gram = replace(muon, iteration="gram")
    ways: dict[str, Callable[[], list[Tensor]]] = {
        "one by one": single,
        "batched": partial(by_shape, muon),
        "batched, gram": partial(by_shape, gram),
    }
    reference = single()
    for name, action in ways.items():
        worst = max(float((a - b).norm() / b.norm()) for a, b in zip(action(), reference))
        if worst > 0.1:
            raise SystemExit(f"{name} differs from one by one by {worst:.3f} of the norm")
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, action in ways.items():
            taken[name].append(timed(action))
    title, alone = f"Muon, {sum(map(len, banks.values()))} matrices of {preset}", min(taken["one by one"])
    return [
        row(f"{title}, {name}", seconds, alone / min(seconds), "speed over one by one")
        for name, seconds in taken.items()
    ]


def schedule_rows(bench: Bench, compiled: bool) -> list[dict[str, Any]]:
    """Bare steps in every mode of the schedules, and their average over a run that the clock ends: modes begin at
    fractions of it, so tokens per second are averaged by time.
    """
    config, state = bench.config, bench.state()
    forward: Forward = torch.compile(state.model, dynamic=False, fullgraph=True) if compiled else state.model
    rows, average, tokens = [], 0.0, config.train.batch_tokens * bench.steps
    course = [Progress(i, 1000, i / 1000, 1.0) for i in range(1001)]
    taken = [mode_at(state, config.train, now.fraction, config.optim.warmdown.scale(now)) for now in course]
    name = torch.cuda.get_device_name(bench.world.device) if bench.world.device.type == "cuda" else ""
    peak = peak_flops(name)
    for mode in modes(state, config.train, config.optim):
        state.model.attach(*mode)
        bench.bare(state, forward, 2)
        seconds = [seconds_of(partial(bench.bare, state, forward, bench.steps)) for _ in range(3)]
        share, rate = taken.count(mode) / len(taken), tokens / min(seconds)
        average += share * rate
        flops = training_flops(config.model, mode[1] or config.train.seq_len, mode[0])
        what = f"mode loop={'on' if mode[0] else 'off'} row={mode[1] or config.train.seq_len} parts={len(mode[2])}"
        rows.append(row(what, seconds, share, "of the run's time", tokens))
        if peak:
            rows.append(row(f"  {what}, MFU", seconds, flops * rate / peak, f"of {peak / 1e12:.0f} TFLOP/s", tokens))
    memory = torch.cuda.max_memory_allocated() / 1e9 if name else 0.0
    last = row("over the schedule", [tokens / average], average / 1e6, "million tokens/s", tokens)
    return [*rows, last, row("peak memory", [0.0], memory, "GB on the GPU")] if name else [*rows, last]


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__)
    arguments.add_argument("--preset", default="demo")
    arguments.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    arguments.add_argument("--steps", type=int, default=10)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--threads", type=int, default=0, help="torch's threads; 0 leaves its own choice")
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--muon", default="leader", help="preset whose matrices Muon is measured on; empty: none")
    arguments.add_argument("--schedule", action="store_true", help="measure every mode of the preset's schedules")
    arguments.add_argument("--eager", action="store_true", help="compile nothing")
    options = arguments.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    quiet = [
        "train.val_every=0",
        "train.checkpoint_every=0",
        "train.max_wallclock_seconds=0",
        "train.reserve_seconds=0",
    ]
    config = resolve(options.preset, [*options.sets, f"train.iterations={options.steps}", *quiet]).config
    compiled, why = choose_compile("off" if options.eager else "on", torch.device(options.device))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(config, Path(folder), options.device, options.steps)
        rows = loop_rows(bench, options.rounds, compiled)
        if options.schedule:
            rows += schedule_rows(bench, compiled)
    if options.muon:
        rows += muon_rows(options.muon, [], torch.device(options.device), options.rounds)
    tokens = config.train.batch_tokens * options.steps
    remarks = [f"{torch.get_num_threads()} threads, {tokens:,} tokens a round; torch.compile: {why}"]
    show("train_speed", options, rows, remarks)


if __name__ == "__main__":
    main()
