"""What the checks of one audit share: the subject, a stream, how much to try, and the noise between equal runs."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pgolf.audit.stream import Stream
from pgolf.audit.subject import Subject
from pgolf.audit.trace import Trial
from pgolf.audit.verdict import case_of
from pgolf.core.errors import ConfigError


class Failed(Exception):
    """A run that should have come to its end did not."""


REPEATS = 5
"""Runs from which the noise of an unsteady evaluator is taken."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """How much an audit tries."""

    name: str
    targets: int
    """Targets of a stream, about."""
    flips: int
    """Flips per stratum."""
    flips_total: int
    """Flips in all, at most; 0: as many as the strata have."""
    sweeps: int
    """Positions at which the probabilities of all tokens are summed."""
    values: int
    """Tokens tried there at most: the likeliest half, and a draw of the others."""
    seconds: float = 0.0
    """After so long no further flip, or sum, is begun; 0: all are."""
    sweep_targets: int = 0
    """Targets of the stream on which sums are made; 0: the same stream."""


LEVELS = {
    level.name: level
    for level in (
        Level(name="quick", targets=640, flips=10, flips_total=50, sweeps=8, values=64, seconds=25.0),
        Level(
            name="full",
            targets=4096,
            flips=300,
            flips_total=0,
            sweeps=64,
            values=512,
            seconds=300.0,
            sweep_targets=1024,
        ),
        Level(
            name="real",
            targets=200_000,
            flips=40,
            flips_total=0,
            sweeps=16,
            values=512,
            seconds=1200.0,
            sweep_targets=16_384,
        ),
    )
}


def level_of(name: str) -> Level:
    """A level by name. ConfigError if there is none."""
    if name not in LEVELS:
        raise ConfigError(f"there is no level {name!r}", "--level", f"choose {', '.join(LEVELS)}")
    return LEVELS[name]


LEAST = 4
"""Flips and sums that are made however long they take."""


@dataclass
class Bench:
    """An audit at work."""

    subject: Subject
    stream: Stream
    level: Level
    seed: int
    base: Trial
    noise: float = 0.0
    """Largest difference between the losses of equal runs, nats."""
    limit_ok: bool = field(init=False)

    def __post_init__(self) -> None:
        self.limit_ok = self.subject.records and bool((self.base.commits == 1).all())

    @property
    def tolerance(self) -> float:
        """Up to where losses count as equal, nats."""
        return max(10 * self.noise, self.subject.slack)

    def in_time(self, began: float, done: int) -> bool:
        """Whether a check that began then, by the monotonic clock, and has done so much goes on."""
        return done < LEAST or not self.level.seconds or time.monotonic() - began < self.level.seconds

    def rng(self, salt: int) -> np.random.Generator:
        """Random numbers of a check of its own."""
        return np.random.default_rng([self.seed, salt])

    def run(self, tokens: np.ndarray, wanted: np.ndarray) -> Trial:
        """Evaluate a stream for the sake of some targets, no further than needed where each is committed once."""
        if self.limit_ok and len(wanted):
            trial = self.subject.run(tokens, len(wanted))
            if not np.isnan(trial.nll[wanted]).any():
                return trial
        trial = self.subject.run(tokens)
        if trial.error and not self.base.error:
            raise Failed(f"on an edited stream: {trial.error}")
        return trial

    def run_all(self, streams: list[np.ndarray], wanted: np.ndarray) -> list[Trial]:
        """Evaluate several, as many at once as the subject allows."""
        if self.subject.jobs == 1:
            return [self.run(tokens, wanted) for tokens in streams]
        pool = ThreadPoolExecutor(self.subject.jobs)
        try:
            return list(pool.map(lambda tokens: self.run(tokens, wanted), streams))
        finally:
            pool.shutdown(cancel_futures=True)

    def moved(self, trial: Trial, targets: np.ndarray) -> np.ndarray:
        """Those of these targets whose losses differ from the base's."""
        ours, theirs = self.base.nll[targets], trial.nll[targets]
        with np.errstate(invalid="ignore"):
            same = (ours == theirs) | (np.abs(ours - theirs) <= self.tolerance) | (np.isnan(ours) & np.isnan(theirs))
        found: np.ndarray = targets[~same]
        return found

    def case(self, check: str, **facts: Any) -> dict[str, Any]:
        """A counterexample that can be replayed: the subject, the stream, and what is done to it."""
        plain = json.loads(json.dumps(facts, default=float))
        return case_of(check, self.subject.describe(), tokens=self.stream.tokens.tolist(), **plain)


def noise_between(trials: list[Trial]) -> float:
    """The largest difference between losses of equal runs, nats; infinite where only some are finite."""
    stack = np.stack([trial.nll for trial in trials]).astype(np.float64)
    finite = np.isfinite(stack)
    if (finite.any(0) != finite.all(0)).any():
        return float("inf")
    spread = stack.max(0) - stack.min(0)
    return float(np.nan_to_num(spread[finite.all(0)]).max(initial=0.0))
