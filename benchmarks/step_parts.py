"""The parts of a training step, each by itself with the model's own code and shapes, and what each has to do at least.

Attention, and so the MLP, is all planned blocks of one micro-step one after the other, of which only that half acts:
masks and tables are made once for all of them, as in the model, and layers of different kinds are all there.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.floors import Work
from pgolf.core.model.config import LayerStep, param_specs
from pgolf.core.model.fused import FusedGPT
from pgolf.core.model.gpt import GPT, rms_norm
from pgolf.core.model.params import ATTN, HEAD, MATRIX, MLP, ParamSpec
from pgolf.core.model.parts.one_stream import OneStream
from pgolf.core.train.config import TrainConfig
from pgolf.core.train.feed import feed
from pgolf.core.train.loop import TrainState
from pgolf.report.watch.flops import linear_flops

Forward = Callable[..., Tensor]
WHOLE = "whole model"
"""The part that all others of a forward and backward pass are in."""


@dataclass(frozen=True, kw_only=True)
class OneHalf(OneStream):
    """Blocks of which one half acts."""

    half: str

    def block(self, root: Any, layer: int, lanes: Any, mix: Any, attention: Any, mlp: Any) -> tuple[Tensor, ...]:
        """x <- x + attention(x), or x <- x + mlp(x)."""
        return (lanes[0] + (attention if self.half == ATTN else mlp)(lanes[0]),)


@dataclass(frozen=True, kw_only=True)
class StepPart:
    """A part of a step. `prepare` comes before each timing and is not timed."""

    name: str
    passes: str
    """The pass through the model that it belongs to; nothing where it is outside of it."""
    times: int
    """How often it comes in an optimizer step."""
    work: Work
    """Of one time."""
    prepare: Callable[[], Any]
    action: Callable[[], Any]


def half_of(model: GPT, half: str, plan: Iterable[LayerStep]) -> Forward:
    """x (B,T,C), ids (B,T), starts -> x after all planned blocks, of which one half acts."""
    partly: Any = copy.copy(model)
    partly.config = replace(model.config, residual=OneHalf(half=half))

    def forward(x: Tensor, ids: Tensor, starts: list[Any] | None) -> Tensor:
        flow = partly.flow(ids, x, starts)
        for step in plan:
            (x,) = partly.step(step, (x,), x, flow)
        return x

    return forward


def head_of(model: GPT) -> Forward:
    """The stream (B,T,C), ids and targets (B,T) -> what `forward` makes of it."""

    def fused(x: Tensor, targets: Tensor) -> Tensor:
        logits = model.raw(rms_norm(x)).flatten(0, 1)
        return model.config.logit_softcap.fused_nll(logits, targets.flatten()).mean()

    def forward(x: Tensor, targets: Tensor) -> Tensor:
        hidden = rms_norm(x)
        logits = model.head(hidden)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        for part in model.parts:
            loss = loss + part.extra_loss(model, hidden, logits, targets)
        return loss

    return fused if isinstance(model, FusedGPT) else forward


def pairs_seen(model: GPT, ids: Tensor, plan: Iterable[LayerStep]) -> float:
    """Pairs of query and key that attention has to look at, over all planned blocks: causal, within documents and
    windows.
    """
    place = torch.arange(ids.size(1), device=ids.device).expand_as(ids)
    segments = model.config.documents.segments(ids)
    if segments is not None:
        begins = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
        place = place - torch.where(begins, place, 0).cummax(dim=1).values
    found = 0.0
    for step in plan:
        reaches = [reach for part in model.acting[step.layer] if (reach := part.reach(ids.size(1)))]
        seen = (place + 1).clamp(max=min(reaches) + 1) if reaches else place + 1
        found += float(seen.sum())
    return found


def bytes_of(state: TrainState, chosen: Callable[[ParamSpec], bool]) -> int:
    """Bytes of the parameters that are chosen."""
    named = state.optimizers.named
    return sum(named[spec.name].nbytes for spec in param_specs(state.model.config) if chosen(spec))


class Parts:
    """Makes the parts of a run's step. The state is no longer good for training after them."""

    def __init__(self, state: TrainState, train: TrainConfig, whole: Forward, compiled: bool) -> None:
        self.state, self.train, self.whole, self.compiled = state, train, whole, compiled
        self.model, self.world = state.model, state.optimizers.world
        self.batches = feed(state.read, 0, 0, self.world.device)
        self.model.attach(False)
        self.ids, self.targets = next(self.batches)
        self.starts = self.model.starts(self.ids)
        self.tokens, self.micro_steps = self.ids.numel(), train.micro_steps(self.world.size)
        shape = (*self.ids.shape, self.model.config.model_dim)
        self.x, self.grad_x = (torch.randn(shape, device=self.world.device).to(self.model.compute_dtype) for _ in "xg")
        self.x.requires_grad_()
        self.half = self.model.compute_dtype == torch.bfloat16
        self.shares: Any = None

    def all(self) -> list[StepPart]:
        """Every part of a step, once for each order of layers that the model has."""
        plans = dict.fromkeys(self.model.plans)
        passes = [part for number, plan in enumerate(plans) for part in self.passes(bool(number), plan)]
        both = [self.communication()] if self.world.size > 1 else []
        return [*passes, self.head(), *both, self.optimizer(), self.loader()]

    def forward(self, function: Forward) -> Forward:
        """The function as training computes it."""
        return torch.compile(function, dynamic=False, fullgraph=True) if self.compiled else function

    def reset(self, looping: bool) -> None:
        """No gradients, and layers loop or not."""
        self.model.attach(looping)
        for tensor in (self.x, *self.state.optimizers.named.values()):
            tensor.grad = None

    def passes(self, looping: bool, plan: tuple[LayerStep, ...]) -> list[StepPart]:
        """The whole model and both halves of its blocks."""
        name = f"{len(plan)} blocks, loop {'on' if looping else 'off'}"
        prepare = partial(self.reset, looping)

        def whole() -> None:
            torch.autograd.backward(self.whole(self.ids, self.targets, self.starts))

        def half(forward: Forward) -> None:
            torch.autograd.backward(forward(self.x, self.ids, self.starts), self.grad_x)

        works = [self.block_work(role, looping, plan) for role in (ATTN, MLP)]
        head = self.head_work()
        total = replace(
            works[1],
            flops=sum(work.flops for work in (*works, head)),
            moved=sum(work.moved for work in (*works, head)),
        )
        found = [StepPart(name=WHOLE, passes=name, times=self.micro_steps, work=total, prepare=prepare, action=whole)]
        for role, title, work in zip((ATTN, MLP), ("attention", "MLP"), works):
            forward = self.forward(half_of(self.model, role, plan))
            found.append(
                StepPart(
                    name=title,
                    passes=name,
                    times=self.micro_steps,
                    work=work,
                    prepare=prepare,
                    action=partial(half, forward),
                )
            )
        return found

    def block_work(self, role: str, looping: bool, plan: tuple[LayerStep, ...]) -> Work:
        """Of one half of all planned blocks, forward and backward: its input, output and their gradients are moved
        once a block, weights read twice and their gradients written.
        """
        config = self.model.config
        flops = linear_flops(config, looping)[role] * self.tokens
        width = config.model_dim
        if role == ATTN:
            flops += int(4 * width * pairs_seen(self.model, self.ids, plan))
        specs = [spec for spec in param_specs(config) if spec.role == role and spec.name.startswith("blocks.")]
        columns = max((max(spec.shape) for spec in specs), default=width)
        moved = 4 * self.x.nbytes * len(plan) + 3 * bytes_of(self.state, lambda spec: spec in specs)
        return Work(flops=3 * flops, product=(self.tokens, width, columns), half=self.half, moved=moved)

    def head_work(self) -> Work:
        """As of blocks; logits need not be moved, for a kernel can keep them."""
        config = self.model.config
        own = [spec for spec in param_specs(config) if spec.role == HEAD]
        flops = 3 * linear_flops(config)[HEAD] * self.tokens
        weights = bytes_of(self.state, lambda spec: spec in own if own else spec.name == "tok_emb.weight")
        moved = 2 * self.x.nbytes + 3 * weights
        product = (self.tokens, config.model_dim, config.vocab_size)
        return Work(flops=flops, product=product, half=self.half, moved=moved)

    def head(self) -> StepPart:
        """Last norm, logits and loss."""
        forward = self.forward(head_of(self.model))

        def action() -> None:
            torch.autograd.backward(forward(self.x, self.targets))

        return StepPart(
            name="head and loss",
            passes="any",
            times=self.micro_steps,
            work=self.head_work(),
            prepare=partial(self.reset, False),
            action=action,
        )

    def gradients(self) -> None:
        """Every parameter has one."""
        for weight in self.state.optimizers.named.values():
            weight.grad = torch.randn_like(weight)

    def communication(self) -> StepPart:
        """The gradients of all ranks become one, and are clipped."""

        def action() -> None:
            self.shares = [list(share) for share in self.state.optimizers.config.shares(self.state.optimizers)]

        size = self.world.size
        sent = 2 * (size - 1) / size * bytes_of(self.state, lambda spec: True)
        return StepPart(
            name=f"communication of {size} ranks",
            passes="",
            times=1,
            work=Work(sent=sent, moved=sent),
            prepare=self.gradients,
            action=action,
        )

    def optimizer(self) -> StepPart:
        """Clipping, unless it belongs to the communication, and the update of all parameters."""
        optimizers = self.state.optimizers

        def prepare() -> None:
            self.gradients()
            self.shares = None
            if self.world.size > 1:
                self.shares = [list(share) for share in optimizers.config.shares(optimizers)]

        def action() -> None:
            optimizers.step(0, 1.0, shares=self.shares)

        return StepPart(
            name="optimizer", passes="", times=1, work=self.optimizer_work(), prepare=prepare, action=action
        )

    def optimizer_work(self) -> Work:
        """Newton-Schulz as it is defined, shared by the ranks; gradients read, weights and what is remembered of them,
        one number for Muon and two for Adam, read and written.
        """
        muon: Any = self.state.optimizers.config.matrix
        steps, share = getattr(muon, "ns_steps", 0), 1 / self.world.size
        flops, moved, product = 0.0, 0.0, (1, 1, 1)
        for spec in param_specs(self.model.config):
            matrix, size = spec.group == MATRIX, self.state.optimizers.named[spec.name].nbytes
            moved += size * (3 + 2 * share) if matrix else size * 7
            if matrix:
                rows, columns = sorted(spec.shape)
                flops += share * steps * (4 * rows * rows * columns + 2 * rows**3)
                product = max(product, (rows, columns, rows))
        return Work(flops=flops, product=product, half=getattr(muon, "bfloat16", False), moved=moved)

    def loader(self) -> StepPart:
        """A micro-batch read, unless a prefetching thread has done so before, and brought to the device."""
        carried = 2 * self.ids.nbytes
        return StepPart(
            name="loader",
            passes="",
            times=self.micro_steps,
            work=Work(carried=carried, moved=carried),
            prepare=lambda: None,
            action=lambda: next(self.batches),
        )
