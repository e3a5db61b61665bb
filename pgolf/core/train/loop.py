"""The training loop: a function over model, data, clock and callbacks."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.core.dist import World
from pgolf.core.errors import RuleError
from pgolf.core.evals.ledger import EvalWatch, evaluate
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.fused import NETWORKS
from pgolf.core.model.gpt import GPT
from pgolf.core.model.params import TOKEN
from pgolf.core.optim.config import OptimConfig
from pgolf.core.optim.optimizers import Optimizers
from pgolf.core.optim.schedules import Progress
from pgolf.core.train.clock import Clock
from pgolf.core.train.config import TrainConfig
from pgolf.core.train.feed import feed


@dataclass
class TrainState:
    """Everything that changes while training; saving and restoring it makes a resumed run bit-identical."""

    model: GPT
    optimizers: Optimizers
    read: Callable[[int], Any]
    clock: Clock
    step: int = 0
    looped: bool = False
    """Whether the loop has ever been switched on."""
    averages: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """What is averaged so far, by average and parameter."""
    taken: int = 0
    """Steps that count in it."""
    extras: list[Any] = field(default_factory=list)
    """What changes the model in the course of the run."""
    shards: list[np.ndarray] = field(default_factory=list)
    """The training split."""


@dataclass
class Watch:
    """What the loop tells and asks its surroundings. `validate` and `save` run with the clock paused. The methods do
    nothing here: pgolf's own watch overrides them, and the submission's script leaves out statements that call them.
    """

    log: Callable[[dict[str, Any]], None]
    validate: Callable[[], dict[str, Any]]
    save: Callable[[TrainState], None]
    stop_asked: Callable[[], bool]

    def warmed(self, state: TrainState) -> None:
        """Everything is compiled, weights and optimizers are as at the start; the first step comes next."""

    def phase(self, name: str) -> None:
        """A part of a step begins: data, forward_backward, communication, optimizer, or other."""

    def gradients(self, state: TrainState, loss: Tensor) -> None:
        """The gradients of the step to come, averaged over the ranks, and this rank's loss; the weights are those that
        made them.
        """

    def failed(self, state: TrainState, loss: float) -> None:
        """The loss of the last step is not finite. May raise an error that says more than the loop's own."""


def halve_embeddings(model: GPT) -> None:
    """Keep embedding tables, and so their Adam states, in bfloat16 as the baseline does; all else stays float32."""
    named = dict(model.named_parameters())
    for spec in param_specs(model.config):
        if spec.group == TOKEN:
            named[spec.name].data = named[spec.name].data.bfloat16()


def start_state(
    model: ModelConfig,
    train: TrainConfig,
    optim: OptimConfig,
    shards: list[np.ndarray],
    seed: int,
    world: World,
    token_bytes: np.ndarray | None = None,
) -> TrainState:
    """A run before its first step: every generator seeded, weights drawn, data at its beginning; `token_bytes` has
    every id's bytes, (V,), for losses that ask for them.
    """
    random.seed(seed)
    torch.manual_seed(seed)
    network = NETWORKS[train.kernels](model, seed).settle(world.device, train.precision, train.attention)
    if network.compute_dtype == torch.bfloat16:
        halve_embeddings(network)
    for part in network.parts:
        part.collect(network, shards)
    averages = train.average.kept(network)
    read = train.loader.begin(train, train.average.seen(shards), seed, world)
    state = TrainState(network, Optimizers(network, optim, world), read, Clock(), averages=averages, shards=shards)
    train.qat.enlist(state.extras, world.device, token_bytes)
    train.window_schedule.enlist(state.extras, world.device, token_bytes)
    train.length_schedule.enlist(state.extras, world.device, token_bytes)
    train.loss.enlist(state.extras, world.device, token_bytes)
    return state


PLAIN: tuple[Any, ...] = (False, 0, ())
"""The mode of a run in which nothing is special."""


def mode_at(state: TrainState, config: TrainConfig, fraction: float, lr_scale: float) -> tuple[Any, ...]:
    """What decides the graph of a training step: whether layers loop, tokens per row if not the loader's, and the parts
    that act beside the model's own.
    """
    parts = tuple(part for extra in state.extras for part in extra.extra_parts(fraction, lr_scale))
    return state.model.config.loop.is_on(fraction), config.length_schedule.length(fraction, config.seq_len), parts


def modes(state: TrainState, config: TrainConfig, optim: OptimConfig) -> dict[tuple[Any, ...], None]:
    """Every mode of a run that makes all its steps at one speed."""
    steps, budget_s = config.iterations, config.budget_s
    course = [Progress(steps * i // 1000, steps, budget_s * i / 1000, budget_s) for i in range(1001)]
    return dict.fromkeys(mode_at(state, config, now.fraction, optim.warmdown.scale(now)) for now in course)


def train_step(
    forward: Callable[..., Tensor],
    state: TrainState,
    batches: Iterator[list[Tensor]],
    config: TrainConfig,
    lr_scale: float,
    world: World,
    watch: Watch,
    decay: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Accumulate gradients over micro-steps, step with those of all ranks; returns this rank's mean loss."""
    micro_steps = config.micro_steps(world.size)
    total = torch.zeros((), device=world.device)
    for _ in range(micro_steps):
        watch.phase("data")
        ids, targets = next(batches)
        width = state.model.row_length or ids.size(1)
        ids, targets = ids.view(-1, width), targets.view(-1, width)
        watch.phase("forward_backward")
        loss = forward(ids, targets, state.model.starts(ids)) / micro_steps
        loss.backward()
        total += loss.detach()
    watch.gradients(state, total)
    watch.phase("communication")
    shares = state.optimizers.config.shares(state.optimizers)
    watch.phase("optimizer")
    state.optimizers.step(state.step, lr_scale, decay, shares)
    watch.phase("other")
    return total


def validator(
    model: GPT, config: TrainConfig, tokens: np.ndarray, charges: np.ndarray, watch: EvalWatch
) -> Callable[[], dict[str, Any]]:
    """Validation during training: plain evaluation of `tokens` at the training length, divided among the ranks that
    `watch` knows, as fields of an event.
    """

    def validate() -> dict[str, Any]:
        score, _ = evaluate(model, tokens, charges, config.validation(), watch)
        return {"val_loss": score.val_loss, "val_bpb": score.bpb, "val_tokens": score.tokens}

    return validate


def warm_up(
    forward: Callable[..., Tensor],
    state: TrainState,
    config: TrainConfig,
    optim: OptimConfig,
    world: World,
    watch: Watch,
) -> None:
    """Run steps in every mode of the schedules, so that every graph is compiled, then restore the weights and random
    numbers, and begin with new optimizers.
    """
    batches = feed(state.read, 0, 0, world.device)
    weights = {name: weight.clone() for name, weight in state.model.state_dict().items()}
    with torch.random.fork_rng([world.device] if world.device.type == "cuda" else []):
        for mode in modes(state, config, optim):
            state.model.attach(*mode)
            for _ in range(config.warmup_steps):
                train_step(forward, state, batches, config, 1.0, world, watch)
    state.model.load_state_dict(weights)
    state.optimizers = Optimizers(state.model, optim, world)


def fit(
    state: TrainState, config: TrainConfig, optim: OptimConfig, world: World, watch: Watch, compiled: bool
) -> dict[str, Any]:
    """Train until the step limit, the budget or a stop request; returns the last event.

    RuleError when the loss is no longer finite: the last checkpoint stays as it is.
    """
    forward: Callable[..., Tensor] = state.model
    if compiled:
        forward = torch.compile(state.model, dynamic=False, fullgraph=True)
    if config.warmup_steps and compiled:
        warm_up(forward, state, config, optim, world, watch)
    watch.warmed(state)
    clock, budget_s = state.clock, config.budget_s
    first_step, first_s, event, current = state.step, clock.elapsed_s, dict[str, Any](), PLAIN
    state.model.attach(*PLAIN)
    batches = feed(state.read, state.step * config.micro_steps(world.size), config.prefetch, world.device)
    clock.start()
    while True:
        elapsed_s, asked = world.largest(clock.elapsed_s, watch.stop_asked())
        out_of_time, stopping = 0 < budget_s <= elapsed_s, asked > 0
        now = Progress(state.step, config.iterations, elapsed_s, budget_s)
        scale = optim.warmdown.scale(now)
        mode = mode_at(state, config, now.fraction, scale)
        if mode != current:
            looping, length, parts = current = mode
            if looping and not state.looped:
                state.model.config.loop.begin(state.model)
                state.looped = True
            state.model.attach(looping, length, parts)
            names = [type(part).__name__ for part in parts]
            event = {"event": "mode", "step": state.step, "elapsed_s": elapsed_s}
            watch.log(event | {"looping": looping, "length": length, "parts": names})
        last = state.step >= config.iterations or out_of_time
        if last or stopping or (config.val_every and state.step % config.val_every == 0):
            state.model.attach(mode[0])
            clock.pause()
            event = {"event": "val", "step": state.step, "elapsed_s": clock.elapsed_s}
            if not stopping:
                watch.log(event := event | watch.validate())
            if last and not stopping and state.taken:
                clock.start()
                found = config.average.export(state, config, world)
                clock.pause()
                event = event | {"event": "average", "taken": state.taken, "elapsed_s": clock.elapsed_s} | found
                watch.log(event := event | watch.validate())
            if last or stopping:
                reason = (
                    "iterations" if state.step >= config.iterations else "wallclock_cap" if out_of_time else "signal"
                )
                watch.log(event := event | {"event": "stop", "reason": reason})
                return event
            clock.start()
            state.model.attach(*mode)
        loss = train_step(forward, state, batches, config, scale, world, watch, optim.decay_schedule.scales(now))
        state.step += 1
        config.average.absorb(state, scale)
        talk = config.shown(state.step)
        if talk or world.device.type == "cpu":
            value = float(world.sum_(loss)) / world.size
            if not math.isfinite(value):
                watch.failed(state, value)
                raise RuleError(f"the loss is {value} at step {state.step}", "train", "lower the learning rates")
            elapsed = clock.elapsed_s
            rate = (state.step - first_step) * config.batch_tokens / max(elapsed - first_s, 1e-9)
            step_event = {"event": "step", "step": state.step, "loss": value, "lr_scale": scale, "elapsed_s": elapsed}
            norm = float(state.optimizers.norm)
            watch.log(step_event | {"tokens_per_s": rate, "grad_norm": norm, "shown": talk})
        if config.checkpoint_every and state.step % config.checkpoint_every == 0 and state.step < config.iterations:
            clock.pause()
            watch.save(state)
            clock.start()
