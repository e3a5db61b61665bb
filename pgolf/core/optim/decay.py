"""Schedules of the weight decay over the run (spec: training 3)."""

from dataclasses import dataclass

from pgolf.core.errors import ConfigError
from pgolf.core.optim.schedules import Progress


@dataclass(frozen=True, kw_only=True)
class TaperDecay:
    """The decay of matrices falls linearly to `low` from `start` on; nothing else changes. Effect: unproven alone.
    Source: PR #1729.
    """

    start: float = 0.70
    """Fraction of the run at which it begins to fall."""
    low: float = 0.50
    """Multiplier at the end."""

    def __post_init__(self) -> None:
        for key in ("start", "low"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"{key} must lie in [0, 1], not {getattr(self, key)}", key)

    def scales(self, now: Progress) -> tuple[float, float]:
        """Multipliers of the decay of matrices and of everything else."""
        passed = max(now.fraction - self.start, 0.0) / max(1 - self.start, 1e-12)
        return 1 - (1 - self.low) * passed, 1.0


@dataclass(frozen=True, kw_only=True)
class RampDecay:
    """Every decay holds, falls linearly to `low`, then rises to `high` at the end. Effect: -0.0005 after test-time
    training on PR #1493, -0.0002 on PR #1851. Source: forks of PR #1493 (spec: training 3).
    """

    hold: float = 0.40
    """Fraction of the run up to which it is 1."""
    ramp: float = 0.85
    """Fraction at which it is lowest."""
    low: float = 0.65
    """Lowest multiplier."""
    high: float = 1.5
    """Multiplier at the end (the strong form: low 0.50, high 1.75)."""

    def __post_init__(self) -> None:
        if not 0 <= self.hold < self.ramp < 1:
            raise ConfigError(f"0 <= hold < ramp < 1 does not hold for {self.hold} and {self.ramp}", "ramp")
        for key in ("low", "high"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key} must not be negative, not {getattr(self, key)}", key)

    def scales(self, now: Progress) -> tuple[float, float]:
        """Multipliers of the decay of matrices and of everything else."""
        if now.fraction < self.ramp:
            scale = 1 + (self.low - 1) * max(now.fraction - self.hold, 0.0) / (self.ramp - self.hold)
        else:
            scale = self.low + (self.high - self.low) * (now.fraction - self.ramp) / (1 - self.ramp)
        return scale, scale
