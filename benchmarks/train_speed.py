"""The speed of training, all in one run: pgolf's loop beside bare steps, compiled beside eager, Muon on batches beside
Muon on one matrix after the other, where the loop's time goes, and each part of a step beside the hardware's floor.

The loop is the one `pgolf train` runs (loader, accumulation, schedule, clock, watch, events written as they happen), on
the shards of --data, or on random ids in documents of random length (log-normal, as those of FineWeb); bare steps are
forward, backward and optimizer on one batch in memory, in the modes that the schedules give a run of as many steps. All
that is compared takes turns in the same process. On a GPU, --schedule measures every mode of the preset's schedules
(loops on, other row lengths) and what the run makes of them on average, and the model's FLOPs beside the device's peak.

--parts, which a GPU has unless --no-parts is given, times each part of an optimizer step by itself, forward and
backward, as often as it comes in a step: attention with its projections and MLP of all blocks, head and loss, the
optimizer on all parameters, the loader's batches, and the reduction of gradients where torchrun started several ranks.
`floor_s` is the least time the hardware could take for it: its arithmetic over the peak, or the bytes that it cannot
but move over the bandwidth, whichever is longer, by the data sheets of an H100 or H200. Elsewhere the peak is what one
matrix product of that size has been measured to reach, the bandwidth that of a copy of 64 MB.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.floors import Hardware
from benchmarks.report import parser, seconds_of, show, spread
from benchmarks.step_parts import WHOLE, Forward, Parts
from pgolf.config.load import resolve
from pgolf.config.run import RunConfig
from pgolf.core.dist import World, join_world
from pgolf.core.model.config import param_specs
from pgolf.core.model.params import MATRIX
from pgolf.core.optim.muon import POLAR_EXPRESS, QUINTIC, Muon, Stepped
from pgolf.core.optim.optimizers import Optimizers
from pgolf.core.optim.schedules import Progress
from pgolf.core.shards import list_shards, load_split, write_shard
from pgolf.core.train.clock import Clock
from pgolf.core.train.feed import feed
from pgolf.core.train.loop import PLAIN, TrainState, fit, mode_at, modes, start_state
from pgolf.report.console import Console
from pgolf.report.train_log import TrainLog
from pgolf.report.watch.flops import peak_flops, training_flops
from pgolf.report.watch.stopwatch import Stopwatch
from pgolf.stages.train import choose_compile
from pgolf.stages.watching import RunWatch

DOCUMENT_TOKENS, DOCUMENT_SPREAD = 440, 0.9
"""Median length of a document in tokens, and standard deviation of the lengths' logarithms: of 970 documents of
FineWeb's first training shard under a SentencePiece BPE of 8,192 entries, whose mean is 707 tokens.
"""
Mode = tuple[Any, ...]


def document_ids(count: int, vocab_size: int, bos_id: int, median: int, generator: np.random.Generator) -> np.ndarray:
    """Ids (count,) of documents in a row. Each begins with `bos_id`, which comes nowhere else, and goes on with others,
    all as likely; its length is drawn from a log-normal distribution, at least two tokens.
    """
    ids = generator.integers(0, vocab_size - 1, count, dtype=np.uint16)
    ids += ids >= bos_id
    place = 0
    while place < count:
        ids[place] = bos_id
        place += max(2, round(generator.lognormal(math.log(median), DOCUMENT_SPREAD)))
    return ids


def synthetic_shards(folder: Path, config: RunConfig, median: int, ranks: int) -> list[np.ndarray]:
    """Memory-mapped shards of random documents, one for each rank and at least two, each of two batches."""
    generator = np.random.default_rng(0)
    vocab_size, bos_id = config.model.vocab_size, getattr(config.model.documents, "bos_id", 1)
    for index in range(max(2, ranks)):
        count = 2 * config.train.batch_tokens + ranks
        ids = document_ids(count, vocab_size, bos_id, median, generator)
        write_shard(folder / f"random_train_{index:06d}.bin", ids)
    return load_split(list_shards(folder, "train"), vocab_size)


def real_shards(folder: Path, config: RunConfig) -> list[np.ndarray]:
    """The training split of a dataset."""
    paths = list_shards(folder, "train")
    if not paths:
        raise SystemExit(f"{folder} has no training shards")
    return load_split(paths, config.model.vocab_size)


class Bench:
    """What the parts of this benchmark share: configuration, device, data, and the model of most timings."""

    def __init__(self, config: RunConfig, folder: Path, world: World, options: argparse.Namespace, fast: bool) -> None:
        self.config, self.folder, self.world = config, folder, world
        self.steps, self.rounds = options.steps, options.rounds
        real, median = options.data, options.document_tokens
        self.shards = real_shards(Path(real), config) if real else synthetic_shards(folder, config, median, world.size)
        self.log = TrainLog(folder, config, Console(quiet=True), 0, {})
        self.kept = self.state()
        self.quick: Forward | None = torch.compile(self.kept.model, dynamic=False, fullgraph=True) if fast else None
        now = [Progress(step, self.steps, 0.0, 0.0) for step in range(self.steps)]
        self.course = [mode_at(self.kept, config.train, at.fraction, config.optim.warmdown.scale(at)) for at in now]

    @property
    def forward(self) -> Forward:
        """The kept model as training computes it."""
        return self.kept.model if self.quick is None else self.quick

    def state(self) -> TrainState:
        """A run before its first step, nothing special switched on."""
        config = self.config
        state = start_state(config.model, config.train, config.optim, self.shards, 0, self.world)
        state.model.attach(*PLAIN)
        return state

    def again(self) -> TrainState:
        """The kept run before its first step, but for its weights: what was compiled for its model stays good."""
        optimizers = Optimizers(self.kept.model, self.config.optim, self.world)
        self.kept = replace(self.kept, optimizers=optimizers, clock=Clock(), step=0, looped=False, taken=0)
        return self.kept

    def wait(self) -> None:
        """Until the device has done what was asked of it."""
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()

    def bare(self, state: TrainState, forward: Forward, course: Sequence[Mode]) -> None:
        """The arithmetic of optimizer steps, each in its mode, on one batch that is already in memory."""
        micro_steps, attached = self.config.train.micro_steps(self.world.size), None
        batch = next(feed(state.read, 0, 0, self.world.device))
        for step, mode in enumerate(course):
            if mode != attached:
                state.model.attach(*(attached := mode))
            width = state.model.row_length or batch[0].size(1)
            ids, targets = (part.view(-1, width) for part in batch)
            for _ in range(micro_steps):
                torch.autograd.backward(forward(ids, targets, state.model.starts(ids)) / micro_steps)
            state.optimizers.step(step, 1.0)
        self.wait()

    def loop(self, state: TrainState, compiled: bool) -> Stopwatch:
        """Train by pgolf's loop; what the clock said. What is compiled is so before the clock runs, in two steps."""
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
            compiled=compiled,
        )
        train = replace(self.config.train, warmup_steps=2 if compiled else 0)
        fit(state, train, self.config.optim, self.world, watch, compiled)
        stopwatch.spent = watch.seconds()
        return stopwatch


def row(what: str, seconds: list[float], ratio: float, against: str, tokens: float = 0) -> dict[str, Any]:
    """A line of the table; `tokens` are those of one timing, 0 where none are meant."""
    rate = round(tokens / min(seconds)) if tokens else 0
    figures = {**spread(seconds), "floor_s": 0.0, "tokens_per_s": rate}
    return {"what": what, "times": 0, **figures, "ratio": round(ratio, 3), "against": against}


def loop_rows(bench: Bench) -> list[dict[str, Any]]:
    """Bare steps and the loop, eager and compiled, and the phases of the loop."""
    tokens = bench.config.train.batch_tokens * bench.steps
    taken: dict[str, list[float]] = {"bare": [], "loop": [], "quick bare": [], "quick loop": []}
    spent = dict[str, float]()
    for forward in (bench.kept.model, bench.forward):
        bench.bare(bench.kept, forward, list(dict.fromkeys(bench.course)))
    last = "loop" if bench.quick is None else "quick loop"

    def looped(name: str, state: TrainState, compiled: bool) -> None:
        nonlocal spent
        stopwatch = bench.loop(state, compiled)
        taken[name].append(state.clock.elapsed_s)
        if name == last and taken[name][-1] == min(taken[name]):
            spent = stopwatch.spent

    for _ in range(bench.rounds):
        looped("loop", bench.state(), False)
        fresh = bench.state()
        taken["bare"].append(seconds_of(partial(bench.bare, fresh, fresh.model, bench.course)))
        if bench.quick is not None:
            looped("quick loop", bench.again(), True)
            taken["quick bare"].append(seconds_of(partial(bench.bare, bench.again(), bench.quick, bench.course)))
    least = {name: min(seconds) for name, seconds in taken.items() if seconds}
    over = "time over bare steps"
    rows = [
        row("bare steps, eager", taken["bare"], 1.0, "itself", tokens),
        row("pgolf's loop, eager", taken["loop"], least["loop"] / least["bare"], over, tokens),
    ]
    if bench.quick is not None:
        gain, cost = least["bare"] / least["quick bare"], least["quick loop"] / least["quick bare"]
        rows.append(row("bare steps, compiled", taken["quick bare"], gain, "speed over eager", tokens))
        rows.append(row("pgolf's loop, compiled", taken["quick loop"], cost, f"{over}, compiled", tokens))
    for phase in ("data", "forward_backward", "communication", "optimizer", "other", "logging"):
        seconds = spent.get(phase, 0.0)
        rows.append(row(f"phase {phase}", [seconds], seconds / least[last], "of the loop"))
    return rows


def part_rows(bench: Bench) -> list[dict[str, Any]]:
    """Each part of an optimizer step beside its floor, and what the model takes beside attention, MLPs and head."""
    made = Parts(bench.again(), bench.config.train, bench.forward, bench.quick is not None)
    parts, hardware = made.all(), Hardware(device=bench.world.device)
    taken: list[list[float]] = [[] for _ in parts]

    def finished(action: Callable[[], Any]) -> None:
        action()
        bench.wait()

    for turn in range(bench.rounds + 1):
        for part, seconds in zip(parts, taken):
            part.prepare()
            bench.wait()
            one = seconds_of(partial(finished, part.action))
            if turn:
                seconds.append(one * part.times)
    rows, least = [], {(part.name, part.passes): min(seconds) for part, seconds in zip(parts, taken)}
    for part, seconds in zip(parts, taken):
        floor, bound = hardware.floor(part.work)
        floor *= part.times
        name = f"part {part.name}" + (f", {part.passes}" if part.passes not in ("", "any") else "")
        figures = {"times": part.times, "floor_s": float(f"{floor:.4g}")}
        rows.append(row(name, seconds, min(seconds) / floor, f"the floor, bound by {bound}") | figures)
    for name, passes in least:
        if name == WHOLE:
            inner = [seconds for (other, of), seconds in least.items() if other != WHOLE and of in (passes, "any")]
            rest = max(least[name, passes] - sum(inner), 0.0)
            rows.append(row(f"part all else, {passes}", [rest], rest / least[name, passes], "of the whole model"))
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


def schedule_rows(bench: Bench) -> list[dict[str, Any]]:
    """Bare steps in every mode of the schedules, and their average over a run that the clock ends: modes begin at
    fractions of it, so tokens per second are averaged by time.
    """
    config, state = bench.config, bench.again()
    forward = bench.forward
    rows, average, tokens = [], 0.0, config.train.batch_tokens * bench.steps
    course = [Progress(i, 1000, i / 1000, 1.0) for i in range(1001)]
    taken = [mode_at(state, config.train, now.fraction, config.optim.warmdown.scale(now)) for now in course]
    name = torch.cuda.get_device_name(bench.world.device) if bench.world.device.type == "cuda" else ""
    peak = peak_flops(name)
    for mode in modes(state, config.train, config.optim):
        bench.bare(state, forward, [mode] * 2)
        seconds = [seconds_of(partial(bench.bare, state, forward, [mode] * bench.steps)) for _ in range(3)]
        share, rate = taken.count(mode) / len(taken), tokens / min(seconds)
        average += share * rate
        flops = training_flops(config.model, mode[1] or config.train.seq_len, mode[0])
        what = f"mode loop={'on' if mode[0] else 'off'} row={mode[1] or config.train.seq_len} parts={len(mode[2])}"
        rows.append(row(what, seconds, share, "of the run's time", tokens))
        if peak:
            rows.append(
                row(
                    f"  {what}, MFU",
                    seconds,
                    flops * rate / peak / bench.world.size,
                    f"of {peak / 1e12:.0f} TFLOP/s",
                    tokens,
                )
            )
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
    arguments.add_argument("--parts", action=argparse.BooleanOptionalAction, help="time each part; default: on a GPU")
    arguments.add_argument("--data", default="", help="folder of training shards; empty: random documents")
    arguments.add_argument(
        "--document-tokens", type=int, default=DOCUMENT_TOKENS, help="median length of random documents"
    )
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
    world = join_world(options.device)
    compiled, why = choose_compile("off" if options.eager else "on", world.device)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(config, Path(folder), world, options, compiled)
        rows = loop_rows(bench)
        if options.schedule:
            rows += schedule_rows(bench)
        if options.parts or (options.parts is None and world.device.type == "cuda"):
            rows += part_rows(bench)
    if options.muon:
        rows += muon_rows(options.muon, [], world.device, options.rounds)
    tokens = config.train.batch_tokens * options.steps
    remarks = [f"{torch.get_num_threads()} threads, {tokens:,} tokens a round; torch.compile: {why}"]
    if world.leads:
        show("train_speed", options, rows, remarks)
    world.close()


if __name__ == "__main__":
    main()
