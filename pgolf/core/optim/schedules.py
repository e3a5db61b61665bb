"""Learning-rate schedules as functions of the clock (spec: training 3)."""

from dataclasses import dataclass

from pgolf.core.errors import ConfigError


@dataclass(frozen=True)
class Progress:
    """Where a run stands: step of iterations, elapsed seconds of a budget (0: no budget)."""

    step: int
    iterations: int
    elapsed_s: float
    budget_s: float

    @property
    def fraction(self) -> float:
        """Share of the run that has passed, by the clock if there is a budget, else by steps."""
        passed = self.elapsed_s / self.budget_s if self.budget_s > 0 else self.step / self.iterations
        return min(passed, 1.0)


@dataclass(frozen=True, kw_only=True)
class IterationWarmdown:
    """Linear decay to zero over the last `iters` steps; under a budget, over the time that many steps take at the mean
    speed so far, which on slow machines is all of it. Source: naive baseline (warmdown_iters).
    """

    iters: int = 1200
    """Length of the decay in steps."""

    def __post_init__(self) -> None:
        if self.iters < 0:
            raise ConfigError(f"iters must not be negative, not {self.iters}", "iters")

    def scale(self, now: Progress) -> float:
        """Multiplier of every learning rate, in [0, 1]."""
        if self.iters == 0:
            return 1.0
        if now.budget_s > 0:
            left_s = max(now.budget_s - now.elapsed_s, 0.0)
            window_s = self.iters * now.elapsed_s / max(now.step, 1)
            return min(1.0, left_s / max(window_s, 1e-12))
        return min(1.0, max(now.iterations - now.step, 0) / self.iters)


@dataclass(frozen=True, kw_only=True)
class FractionWarmdown:
    """Constant, then linear to `min_lr` over the last `frac` of the run. Source: PR #1394 and later."""

    frac: float = 0.667
    """Share of the run that decays."""
    min_lr: float = 0.0
    """Floor of the multiplier."""

    def __post_init__(self) -> None:
        if not 0 <= self.frac <= 1 or not 0 <= self.min_lr <= 1:
            raise ConfigError("frac and min_lr must lie in [0, 1]", "warmdown")

    def scale(self, now: Progress) -> float:
        """Multiplier of every learning rate, in [min_lr, 1]."""
        if self.frac == 0 or now.fraction < 1 - self.frac:
            return 1.0
        return max((1 - now.fraction) / self.frac, self.min_lr)


@dataclass(frozen=True, kw_only=True)
class Unscaled:
    """The same for every parameter and width, and throughout. Source: naive baseline."""

    def width_factor(self, group: str, model_dim: int) -> float:
        """Multiplier of the rate of an optimizer group for the model's width."""
        return 1.0

    def factor(self, name: str) -> float:
        """Multiplier of a parameter's rate."""
        return 1.0

    def scales(self, now: Progress) -> tuple[float, float]:
        """Multipliers of the decay of matrices and of everything else."""
        return 1.0, 1.0
