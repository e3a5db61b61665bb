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
from pgolf.core.evals.ledger import evaluate
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
    averages: dict[str, Tensor] = field(default_factory=dict)
    """What is averaged so far, by parameter."""
    taken: int = 0
    """Steps that count in it."""


@dataclass
class Watch:
    """What the loop tells and asks its surroundings. `validate` and `save` run with the clock paused."""

    log: Callable[[dict[str, Any]], None]
    validate: Callable[[], dict[str, Any]]
    save: Callable[[TrainState], None]
    stop_asked: Callable[[], bool]


def halve_embeddings(model: GPT) -> None:
    """Keep embedding tables, and so their Adam states, in bfloat16 as the baseline does; all else stays float32."""
    named = dict(model.named_parameters())
    for spec in param_specs(model.config):
        if spec.group == TOKEN:
            named[spec.name].data = named[spec.name].data.bfloat16()


def start_state(
    model: ModelConfig, train: TrainConfig, optim: OptimConfig, shards: list[np.ndarray], seed: int, world: World
) -> TrainState:
    """A run before its first step: every generator seeded, weights drawn, data at its beginning."""
    random.seed(seed)
    torch.manual_seed(seed)
    network = NETWORKS[train.kernels](model, seed).settle(world.device, train.precision, train.attention)
    if network.compute_dtype == torch.bfloat16:
        halve_embeddings(network)
    averages = train.average.start(network)
    read = train.loader.begin(train, shards, seed, world)
    return TrainState(network, Optimizers(network, optim, world), read, Clock(), averages=averages)


def train_step(
    forward: Callable[..., Tensor],
    state: TrainState,
    batches: Iterator[list[Tensor]],
    config: TrainConfig,
    lr_scale: float,
    world: World,
    decay: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Accumulate gradients over micro-steps, step with those of all ranks; returns this rank's mean loss."""
    micro_steps = config.micro_steps(world.size)
    total = torch.zeros((), device=world.device)
    for _ in range(micro_steps):
        ids, targets = next(batches)
        loss = forward(ids, targets, state.model.starts(ids)) / micro_steps
        loss.backward()
        total += loss.detach()
    state.optimizers.step(state.step, lr_scale, decay)
    return total


@torch.no_grad()
def copy_weights(weights: dict[str, Any], values: dict[str, Tensor]) -> None:
    """Give parameters new values, each in its own dtype."""
    for name, value in values.items():
        weights[name].copy_(value)


def validator(model: GPT, config: TrainConfig, tokens: np.ndarray, charges: np.ndarray) -> Callable[[], dict[str, Any]]:
    """Validation during training: plain evaluation of `tokens` at the training length, as fields of an event."""

    def validate() -> dict[str, Any]:
        score, _ = evaluate(model, tokens, charges, config.validation())
        return {"val_loss": score.val_loss, "val_bpb": score.bpb, "val_tokens": score.tokens}

    return validate


def warm_up(
    forward: Callable[..., Tensor], state: TrainState, config: TrainConfig, optim: OptimConfig, world: World
) -> None:
    """Run steps that compile every graph, then restore weights and optimizer state."""
    batches = feed(state.read, 0, 0, world.device)
    weights = {name: weight.clone() for name, weight in state.model.state_dict().items()}
    for looping in dict.fromkeys((False, state.model.config.loop.starts(1.0))):
        state.model.looping = looping
        for _ in range(config.warmup_steps):
            train_step(forward, state, batches, config, 1.0, world)
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
    if config.warmup_steps and state.step == 0 and compiled:
        warm_up(forward, state, config, optim, world)
    clock, budget_s = state.clock, config.budget_s
    weights = dict(state.model.named_parameters())
    first_step, first_s, event = state.step, clock.elapsed_s, dict[str, Any]()
    batches = feed(state.read, state.step * config.micro_steps(world.size), config.prefetch, world.device)
    state.model.looping = False
    clock.start()
    while True:
        out_of_time = budget_s > 0 and world.any(clock.elapsed_s >= budget_s)
        stopping = world.any(watch.stop_asked())
        now = Progress(state.step, config.iterations, clock.elapsed_s, budget_s)
        looping = world.any(state.model.config.loop.starts(now.fraction))
        if looping and not state.looped:
            state.model.config.loop.begin(state.model)
            state.looped = True
            watch.log({"event": "loop", "step": state.step, "elapsed_s": clock.elapsed_s, "fraction": now.fraction})
        state.model.looping = looping
        last = state.step >= config.iterations or out_of_time
        if last or stopping or (config.val_every and state.step % config.val_every == 0):
            clock.pause()
            event = {"event": "val", "step": state.step, "elapsed_s": clock.elapsed_s}
            if not stopping:
                watch.log(event := event | watch.validate())
            if last and not stopping and state.taken:
                copy_weights(weights, state.averages)
                watch.log(event := event | {"event": "average", "taken": state.taken} | watch.validate())
            if last or stopping:
                reason = (
                    "iterations" if state.step >= config.iterations else "wallclock_cap" if out_of_time else "signal"
                )
                watch.log(event := event | {"event": "stop", "reason": reason})
                return event
            clock.start()
        scale = optim.warmdown.scale(now)
        loss = train_step(forward, state, batches, config, scale, world, optim.decay_schedule.scales(now))
        state.step += 1
        if config.average.due(state.step, scale):
            averages, new = (list(tensors) for tensors in (state.averages.values(), weights.values()))
            torch._foreach_lerp_(
                averages, [weight.detach().float() for weight in new], config.average.share(state.taken)
            )
            state.taken += 1
        talk = state.step <= 10 or (config.log_every and state.step % config.log_every == 0)
        if talk or world.device.type == "cpu":
            value = float(world.sum_(loss)) / world.size
            if not math.isfinite(value):
                raise RuleError(
                    f"the loss is {value} at step {state.step}",
                    "train",
                    "the last checkpoint is kept; lower the learning rates",
                )
            elapsed = clock.elapsed_s
            rate = (state.step - first_step) * config.batch_tokens / max(elapsed - first_s, 1e-9)
            step_event = {"event": "step", "step": state.step, "loss": value, "lr_scale": scale, "elapsed_s": elapsed}
            norm = float(state.optimizers.norm)
            watch.log(step_event | {"tokens_per_s": rate, "grad_norm": norm, "shown": bool(talk)})
        if config.checkpoint_every and state.step % config.checkpoint_every == 0 and state.step < config.iterations:
            clock.pause()
            watch.save(state)
            clock.start()
