"""Which optimizer steps what, as a value."""

from dataclasses import dataclass
from typing import Any, Protocol

from pgolf.core.errors import ConfigError
from pgolf.core.optim.muon import Muon
from pgolf.core.optim.schedules import IterationWarmdown, Progress


class MatrixOptimizer(Protocol):
    """Steps the matrices; see `Muon`."""

    def step(self, weights: Any, grads: Any, buffers: Any, lr_scale: float, step: int, world: Any) -> None:
        """Update weights and buffers in place."""


class Warmdown(Protocol):
    """A learning-rate schedule."""

    def scale(self, now: Progress) -> float:
        """Multiplier of every learning rate."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer groups: matrices by `matrix`, everything else by AdamW at its group's rate."""

    matrix: MatrixOptimizer = Muon()
    """Optimizer of the matrices inside blocks."""
    warmdown: Warmdown = IterationWarmdown()
    """Schedule of every learning rate."""
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
    """Global gradient norm limit; 0 switches clipping off."""

    def __post_init__(self) -> None:
        for key in ("token_lr", "scalar_lr", "head_lr", "token_weight_decay", "scalar_weight_decay", "grad_clip"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key} must not be negative, not {getattr(self, key)}", key)
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.eps > 0):
            raise ConfigError("betas must lie in [0, 1) and eps above 0", "")
