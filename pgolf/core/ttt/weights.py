"""Learning of a model's own weights from text that has been scored (spec: evaluation 9.1)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.model.config import layer_plan, param_specs
from pgolf.core.optim.rates import ROLE_OF, role_of
from pgolf.core.ttt.steppers import TttOptimizer, TttSgd

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from pgolf.core.dist import World
    from pgolf.core.model.gpt import GPT
    from pgolf.core.model.params import ParamSpec

READING, WRITING = ("q", "k", "v", "up"), ("o", "down")
"""Roles of the matrices that read the residual stream, and of those that write to it."""


@dataclass(frozen=True, kw_only=True)
class WeightTraining:
    """How a model's weights learn, chunk by chunk, from sequences of scored tokens."""

    chunk_tokens: int = 32768
    """Targets per chunk."""
    lr: float = 0.005
    """Peak learning rate."""
    schedule: str = "cosine"
    """The rate over the chunks: cosine, which ends at zero, or constant."""
    warmup_chunks: int = 0
    """Chunks before that, over which the rate rises linearly."""
    optimizer: TttOptimizer = TttSgd()
    """What takes the steps."""
    epochs: int = 3
    """Passes over each scored chunk; 0 only scores."""
    train_seqs: int = 32
    """Sequences per step."""
    grad_clip: float = 1.0
    """Global gradient norm limit."""
    freeze_blocks: int = 0
    """Number of first blocks that do not adapt."""
    adapts: str = "all"
    """What adapts: all, or some of q, k, v, o, up, down (of the MLP), embed, head, control (gains, scales, mixes),
    separated by commas; queries alone in PR #779.
    """
    input_rate: float = 1.0
    """Multiplier of the rate of matrices that read the residual stream: q, k, v, up (0.5 in PR #995)."""
    output_rate: float = 1.0
    """Multiplier of the rate of matrices that write to it: o, down (3 in PR #995)."""
    looped_rate: float = 1.0
    """Multiplier of the rate of blocks that run more than once, whose gradients add up; 0 leaves them as they are."""
    train_loop: bool = True
    """Whether a looped model loops while it learns, as it does when it is scored."""
    pack: bool = False
    """Put the sequences of a step into one row, in which attention stops only where the model's documents do, as PR
    #1855 does; without flash-attention its mask has the square of that length.
    """

    def __post_init__(self) -> None:
        for key, least in {"train_seqs": 1, "epochs": 0, "freeze_blocks": 0, "warmup_chunks": 0}.items():
            if getattr(self, key) < least:
                raise ConfigError(f"{key} must be at least {least}, not {getattr(self, key)}", key)
        for key in ("lr", "input_rate", "output_rate", "looped_rate"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key} must not be negative, not {getattr(self, key)}", key)
        if self.grad_clip <= 0:
            raise ConfigError(f"grad_clip must be above 0, not {self.grad_clip}", "grad_clip")
        if self.schedule not in ("cosine", "constant"):
            raise ConfigError(f"{self.schedule!r} is neither cosine nor constant", "schedule")
        known = {*ROLE_OF.values(), "control"}
        if self.adapts != "all" and (strange := {*self.adapts.split(",")} - known):
            raise ConfigError(
                f"{', '.join(sorted(strange))!r} cannot adapt", "adapts", f"choose all or of {', '.join(sorted(known))}"
            )

    def factor(self, spec: "ParamSpec", looped: frozenset[int]) -> float:
        """Multiplier of a parameter's rate; 0 if it does not adapt. `looped` are the layers that run more than once."""
        role, layer = role_of(spec.name) or "control", -1
        if spec.name.startswith("blocks."):
            layer = int(spec.name.split(".")[1])
        chosen = self.adapts == "all" or role in self.adapts.split(",")
        if not chosen or not self.optimizer.takes(spec) or 0 <= layer < self.freeze_blocks:
            return 0.0
        rate = self.looped_rate if layer in looped else 1.0
        return rate * (self.input_rate if role in READING else self.output_rate if role in WRITING else 1.0)

    def rate(self, chunk: int, chunks: int) -> float:
        """Learning rate of a chunk among so many, of which the last is not learned from."""
        if chunk < self.warmup_chunks:
            return self.lr * (chunk + 1) / (self.warmup_chunks + 1)
        if self.schedule == "constant":
            return self.lr
        past, ahead = chunk - self.warmup_chunks, max(chunks - 1 - self.warmup_chunks, 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * past / ahead))

    def sequences(self, tokens: "np.ndarray", seq_len: int) -> "Tensor":
        """The whole sequences in tokens (N,), (n,seq_len+1), each with the target that follows its last input."""
        import torch

        return torch.from_numpy(tokens).unfold(0, seq_len + 1, seq_len)

    def learn_text(self, model: "GPT", world: "World", tokens: "np.ndarray", seq_len: int) -> int:
        """Learn from a text (N,) that has been scored, chunk by chunk, without its last chunk; the number of steps."""
        chunks = math.ceil((len(tokens) - 1) / self.chunk_tokens)
        learner, steps = Learner(self, model, world), 0
        for chunk in range(chunks - 1):
            start = chunk * self.chunk_tokens
            rows = self.sequences(tokens[start : start + self.chunk_tokens + 1], seq_len)
            steps += learner.learn(rows, self.rate(chunk, chunks))
        learner.end()
        return steps


class Learner:
    """Teaches a model by steps whose optimizer remembers the earlier ones. While it lives, weights that do not adapt
    ask for no gradient. ConfigError if nothing of the model adapts.
    """

    def __init__(self, config: WeightTraining, model: "GPT", world: "World") -> None:
        self.config, self.model, self.world = config, model, world
        self.device = next(model.parameters()).device
        order = [step.layer for step in layer_plan(model.config)]
        looped = frozenset(layer for layer in order if order.count(layer) > 1)
        factors = {spec.name: config.factor(spec, looped) for spec in param_specs(model.config)}
        named = [(weight, factors[name]) for name, weight in model.named_parameters()]
        self.frozen = [weight for weight, factor in named if not factor]
        self.weights = [weight for weight, factor in named if factor]
        if not self.weights:
            raise ConfigError("nothing of this model adapts", "ttt", "see adapts, freeze_blocks and the rates")
        for weight in self.frozen:
            weight.requires_grad_(False)
        self.step = config.optimizer.begin([(weight, factor) for weight, factor in named if factor])

    def learn(self, rows: "Tensor", lr: float) -> int:
        """The epochs over sequences (n,T+1) of inputs and last target, each rank with its share of every step; the
        number of steps.
        """
        from torch.nn.utils import clip_grad_norm_

        model, world = self.model, self.world
        looping, model.looping = model.looping, model.looping and self.config.train_loop
        for _ in range(self.config.epochs):
            for batch in rows.to(self.device).split(self.config.train_seqs):
                first, last = (len(batch) * rank // world.size for rank in (world.rank, world.rank + 1))
                # A rank without a row of its own takes part with a gradient of nothing.
                mine = batch[first : max(last, first + 1)]
                model.zero_grad(set_to_none=True)
                ids, targets = mine[:, :-1], mine[:, 1:]
                if self.config.pack:
                    ids, targets = ids.reshape(1, -1), targets.reshape(1, -1)
                loss = model(ids, targets)
                (loss * ((last - first) * world.size / len(batch))).backward()
                world.mean_([weight.grad for weight in self.weights if weight.grad is not None])
                clip_grad_norm_(self.weights, self.config.grad_clip)
                self.step(lr)
        model.looping = looping
        return self.config.epochs * math.ceil(len(rows) / self.config.train_seqs)

    def end(self) -> None:
        """Leave the model without gradients, all its weights as they were but for their values."""
        self.model.zero_grad(set_to_none=True)
        for weight in self.frozen:
            weight.requires_grad_(True)
