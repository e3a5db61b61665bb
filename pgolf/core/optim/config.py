"""Which optimizer steps what, as a value."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pgolf.core.errors import ConfigError
from pgolf.core.optim.muon import Muon
from pgolf.core.optim.parallel import Replicated
from pgolf.core.optim.schedules import IterationWarmdown, Progress, Unscaled

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from pgolf.core.dist import World

NORMS = 20
"""How many gradient norms adaptive clipping looks back on."""


class MatrixOptimizer(Protocol):
    """Steps the matrices; see `Muon`."""

    def memory(self, weight: Any) -> Any:
        """What is remembered of a matrix, by name: zeros before the first step."""

    def row_blocks(self, name: str, rows: int, head_dim: int) -> Any:
        """In how many row blocks a matrix is orthogonalised."""

    def momentum_at(self, step: int) -> float:
        """Momentum of a step."""

    def updates(self, members: Any, grads: Any, step: int) -> Any:
        """What moves matrices of one shape; what is remembered of them changes in place."""

    def move(self, one: Any, update: Any, lr_scale: float, decay_scale: float) -> None:
        """Update a weight in place."""


class Parallel(Protocol):
    """Brings the ranks' gradients together; see `Replicated`."""

    def reduce(self, held: Any) -> Any:
        """Average them; the gradients of the matrices that this rank steps."""


class Warmdown(Protocol):
    """A learning-rate schedule."""

    def scale(self, now: Progress) -> float:
        """Multiplier of every learning rate."""


class DecaySchedule(Protocol):
    """A schedule of the weight decay."""

    def scales(self, now: Progress) -> tuple[float, float]:
        """Multipliers of the decay of matrices and of everything else."""


class RateScale(Protocol):
    """Learning rates of some parameters apart from the others'."""

    def factor(self, name: str) -> float:
        """Multiplier of a parameter's rate."""


class WidthRule(Protocol):
    """Learning rates that follow the model's width."""

    def width_factor(self, group: str, model_dim: int) -> float:
        """Multiplier of a group's rate."""


class Held(Protocol):
    """What `Optimizers` has in its hands: all weights, those of Adam, its gradients that wait, the norm of the last
    step's gradient and, for adaptive clipping, the norms before.
    """

    world: "World"
    named: "dict[str, Parameter]"
    others: "dict[str, Tensor]"
    waiting: "dict[str, Tensor]"
    norm: "Tensor | float"
    norms: list[float]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer groups: matrices by `matrix`, everything else by AdamW at its group's rate."""

    matrix: MatrixOptimizer = Muon()
    """Optimizer of the matrices inside blocks."""
    warmdown: Warmdown = IterationWarmdown()
    """Schedule of every learning rate."""
    decay_schedule: DecaySchedule = Unscaled()
    """Schedule of the weight decay."""
    lr_scale: RateScale = Unscaled()
    """Multipliers of the learning rate by role and depth."""
    width_rule: WidthRule = Unscaled()
    """How learning rates follow the model's width."""
    parallel: Parallel = Replicated()
    """How the gradients of several ranks come together."""
    token_lr: float = 0.05
    """Adam rate of the embedding (upstream: tied_embed_lr 0.05, embed_lr 0.6 when untied)."""
    scalar_lr: float = 0.04
    """Adam rate of gains, scales and mixes."""
    head_lr: float = 0.008
    """Adam rate of an untied output matrix."""
    beta1: float = 0.9
    """Adam's first decay."""
    beta2: float = 0.95
    """Adam's second decay."""
    eps: float = 1e-8
    """Adam's epsilon."""
    token_weight_decay: float = 0.0
    """Decoupled decay of the embedding (upstream: embed_wd)."""
    scalar_weight_decay: float = 0.0
    """Decoupled decay of gains and scales (upstream: adam_wd)."""
    grad_clip: float = 0.0
    """Gradient norm limit, over all parameters together; 0 switches clipping off."""
    clip_mode: str = "global"
    """What is clipped: none; global, the gradient averaged over the ranks; local, each rank's own before that (upstream
    with banks); adaptive, as global, the limit times exp(-5 g) while the norm of the last 20 steps grew by a factor
    exp(g) a step, g above 0.05.
    """
    adam_every: int = 1
    """Steps per step of Adam, which then takes the mean gradient of them; what remains at the end of a run is dropped.
    Worse in our small runs (modded-nanogpt: 2).
    """

    def __post_init__(self) -> None:
        for key in ("token_lr", "scalar_lr", "head_lr", "token_weight_decay", "scalar_weight_decay", "grad_clip"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key} must not be negative, not {getattr(self, key)}", key)
        if self.clip_mode not in ("none", "global", "local", "adaptive"):
            raise ConfigError(f"{self.clip_mode!r} is none of none, global, local, adaptive", "clip_mode")
        if self.clip_mode == "adaptive" and not self.grad_clip:
            raise ConfigError("there is no limit that could adapt", "clip_mode", "set optim.grad_clip above 0")
        if self.adam_every < 1:
            raise ConfigError(f"adam_every must be at least 1, not {self.adam_every}", "adam_every")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.eps > 0):
            raise ConfigError("betas must lie in [0, 1) and eps above 0", "")

    def shares(self, held: "Held") -> "Iterable[list[Tensor]]":
        """Average the gradients over the ranks, bound them in place as `clip_mode` says and note their norm before.
        Those of Adam change in place; those of the matrices that this rank steps are returned by bank.
        """
        if self.grad_clip and self.clip_mode == "local":
            from torch.nn.utils import clip_grad_norm_

            held.norm = clip_grad_norm_(held.named.values(), self.grad_clip)
        shares: Iterable[list[Tensor]] = self.parallel.reduce(held)
        if self.grad_clip and self.clip_mode != "none" and self.clip_mode != "local":
            from torch import _foreach_mul_
            from torch.nn.utils import get_total_norm

            shares = list(shares)
            own = [grad for share in shares for grad in share]
            others = [weight.grad for weight in held.others.values() if weight.grad is not None]
            norm = (held.world.sum_(get_total_norm(own).square()) + get_total_norm(others).square()).sqrt()
            limit = self.grad_clip
            if self.clip_mode == "adaptive":
                held.norms = [*held.norms, float(norm)][-NORMS:]
                limit *= caution(held.norms)
            _foreach_mul_([*own, *others], (limit / (norm + 1e-6)).clamp(max=1.0))
            held.norm = norm
        return shares

    def adam_due(self, held: "Held", step: int) -> bool:
        """Whether Adam steps now. Until it does, `waiting` takes its share of every gradient; then the sum becomes the
        gradient.
        """
        if self.adam_every > 1:
            for name, weight in held.others.items():
                if weight.grad is not None:
                    held.waiting[name] = weight.grad / self.adam_every + held.waiting.get(name, 0)
            if (step + 1) % self.adam_every:
                return False
            for name in list(held.waiting):
                held.others[name].grad = held.waiting.pop(name)
        return True


def caution(norms: list[float]) -> float:
    """Multiplier of the clipping limit: exp(-5 g) for a mean logarithmic growth g above 0.05 between the last 20 norms,
    else 1; also 1 while there are fewer, or one is not positive.
    """
    if len(norms) < NORMS or not norms[0] > 0 or not norms[-1] > 0:
        return 1.0
    growth = math.log(norms[-1] / norms[0]) / (NORMS - 1)
    return math.exp(-5 * growth) if growth > 0.05 else 1.0
