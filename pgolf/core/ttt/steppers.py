"""Optimizers of test-time training, as values (spec: evaluation 9.1)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import MATRIX, ParamSpec
from pgolf.core.optim.muon import orthogonalise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


class TttOptimizer(Protocol):
    """Steps the weights that adapt."""

    def takes(self, spec: ParamSpec) -> bool:
        """Whether it steps this parameter."""

    def begin(self, weights: "Sequence[tuple[Tensor, float]]") -> "Callable[[float], None]":
        """Given weights with multipliers of their rate: what takes a step at a rate, with the gradients there are."""


def by_factor(weights: "Sequence[tuple[Tensor, float]]") -> "list[dict[str, Any]]":
    """Parameter groups, one for each multiplier."""
    groups: dict[float, list[Tensor]] = {}
    for weight, factor in weights:
        groups.setdefault(factor, []).append(weight)
    return [{"params": members, "factor": factor} for factor, members in groups.items()]


def stepping(optimizer: Any) -> "Callable[[float], None]":
    """Steps of one of torch's optimizers at a rate, times each group's `factor`."""

    def step(lr: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        optimizer.step()

    return step


@dataclass(frozen=True, kw_only=True)
class TttSgd:
    """SGD with momentum, kept from chunk to chunk. Source: PR #461, #549, #1493."""

    momentum: float = 0.9
    """Share of the last step that is taken again."""
    weight_decay: float = 0.0
    """Added to the gradient, times the weight."""

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ConfigError("momentum must lie in [0, 1), weight_decay not be negative")

    def takes(self, spec: ParamSpec) -> bool:
        """Every parameter."""
        return True

    def begin(self, weights: "Sequence[tuple[Tensor, float]]") -> "Callable[[float], None]":
        """torch's SGD."""
        import torch

        groups = by_factor(weights)
        return stepping(torch.optim.SGD(groups, lr=0.0, momentum=self.momentum, weight_decay=self.weight_decay))


@dataclass(frozen=True, kw_only=True)
class TttAdamW:
    """AdamW. Effect: 0.027 worse than SGD in one study (PR #526). Source: PR #456, #761."""

    beta1: float = 0.9
    """Decay of the mean gradient."""
    beta2: float = 0.999
    """Decay of the mean square."""
    eps: float = 1e-8
    """Added to the root of the mean square."""
    weight_decay: float = 0.0
    """Decoupled: p <- p (1 - lr wd)."""

    def __post_init__(self) -> None:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.eps > 0 and self.weight_decay >= 0):
            raise ConfigError("betas must lie in [0, 1), eps above 0, weight_decay not be negative")

    def takes(self, spec: ParamSpec) -> bool:
        """Every parameter."""
        return True

    def begin(self, weights: "Sequence[tuple[Tensor, float]]") -> "Callable[[float], None]":
        """torch's AdamW."""
        import torch

        groups, betas = by_factor(weights), (self.beta1, self.beta2)
        return stepping(torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=self.eps, weight_decay=self.weight_decay))


@dataclass(frozen=True, kw_only=True)
class TttMuon:
    """Muon on the blocks' matrices; everything else stays as it is. Effect: unproven; in no record. Source: Keller
    Jordan's Muon.
    """

    momentum: float = 0.9
    """Nesterov momentum, kept from chunk to chunk."""
    ns_steps: int = 5
    """Newton-Schulz iterations, in float32."""
    weight_decay: float = 0.0
    """Decoupled: p <- p (1 - lr wd)."""

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1 or self.weight_decay < 0 or self.ns_steps < 1:
            raise ConfigError("momentum must lie in [0, 1), weight_decay not be negative, ns_steps be at least 1")

    def takes(self, spec: ParamSpec) -> bool:
        """Matrices."""
        return spec.group == MATRIX

    def begin(self, weights: "Sequence[tuple[Tensor, float]]") -> "Callable[[float], None]":
        """Muon as it trains, matrix by matrix."""
        import torch

        held = [(weight, factor, torch.zeros_like(weight)) for weight, factor in weights]

        @torch.no_grad()
        def step(lr: float) -> None:
            for weight, factor, momentum in held:
                if weight.grad is not None:
                    momentum.mul_(self.momentum).add_(weight.grad)
                    ahead = weight.grad.add(momentum, alpha=self.momentum)
                    shape = max(1.0, weight.size(0) / weight.size(1)) ** 0.5
                    weight.mul_(1 - lr * factor * self.weight_decay)
                    weight.sub_(orthogonalise(ahead[None], self.ns_steps, False)[0], alpha=lr * factor * shape)

        return step
