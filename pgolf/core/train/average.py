"""Averages of weights over the steps of a run, which are exported in place of the last weights (spec: training 4)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LastWeights:
    """No average: the last weights are exported. Source: naive baseline."""

    def start(self, model: Any) -> "dict[str, Tensor]":
        """Nothing to keep."""
        return {}

    def due(self, step: int, lr_scale: float) -> bool:
        """Whether the weights after `step` count."""
        return False

    def share(self, taken: int) -> float:
        """Share of new weights in an average of which `taken` are part already."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Ema(LastWeights):
    """e <- d e + (1 - d) w after every step, from the initial weights on, without a correction for the start. Effect:
    -0.0010 to -0.0013 where rates fall to zero, -0.0116 where they stop at a tenth (PR #1855). Source: PR #287, #1394.
    """

    decay: float = 0.997
    """Share d of the average that stays (upstream: ema_decay)."""

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ConfigError(f"decay must lie between 0 and 1, not {self.decay}", "decay")

    def start(self, model: Any) -> "dict[str, Tensor]":
        """The initial weights, float32."""
        return copies(model)

    def due(self, step: int, lr_scale: float) -> bool:
        """Always."""
        return True

    def share(self, taken: int) -> float:
        """1 - d."""
        return 1 - self.decay


@dataclass(frozen=True, kw_only=True)
class Swa(LastWeights):
    """The mean of the weights after every `every` steps, once the learning rates have fallen below `below` of theirs.
    Effect: in early records only; later ones collect it and export their EMA. Source: PR #162, #265.
    """

    below: float = 0.5
    """Multiplier of the learning rates at which it begins (upstream: swa_start_frac)."""
    every: int = 50
    """Steps from one to the next (upstream: swa_every)."""

    def __post_init__(self) -> None:
        if not 0 < self.below <= 1:
            raise ConfigError(f"below must lie in (0, 1], not {self.below}", "below")
        if self.every < 1:
            raise ConfigError(f"every must be at least 1, not {self.every}", "every")

    def start(self, model: Any) -> "dict[str, Tensor]":
        """Room for the mean, float32."""
        return copies(model)

    def due(self, step: int, lr_scale: float) -> bool:
        """Every so many steps, late."""
        return lr_scale < self.below and step % self.every == 0

    def share(self, taken: int) -> float:
        """1 / n for the n-th."""
        return 1 / (taken + 1)


def copies(model: Any) -> "dict[str, Tensor]":
    """Every parameter as float32."""
    return {name: weight.detach().float().clone() for name, weight in model.named_parameters()}
