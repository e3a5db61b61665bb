"""Rows and attention windows that are short in the beginning of a run (spec: training 3)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.slots import Part
from pgolf.core.train.steady import Steady


@dataclass(frozen=True, kw_only=True)
class Growth(Steady):
    """A number of tokens that doubles in equal intervals."""

    first: int = 256
    """Tokens in the beginning."""
    until: float = 0.5
    """Fraction of the run from which on nothing is held back."""

    def __post_init__(self) -> None:
        if self.first < 1:
            raise ConfigError(f"first must be at least 1, not {self.first}", "first")
        if not 0 < self.until <= 1:
            raise ConfigError(f"until must lie in (0, 1], not {self.until}", "until")

    def enlist(self, extras: list[Any], device: Any, token_bytes: Any) -> None:
        """Let torch compile a graph for each stage and mode; by itself it gives up after eight."""
        import torch

        torch._dynamo.config.recompile_limit = 64

    def stage(self, fraction: float, doublings: int) -> int:
        """Tokens at a fraction of the run before `until`."""
        return self.first << int(fraction / self.until * doublings)


@dataclass(frozen=True, kw_only=True)
class GrowingLength(Growth):
    """Rows of `first` tokens, which double in equal intervals up to train.seq_len; the tokens of a batch stay as many
    and come in the same order. Effect: worse in three trials, with batches that grew too (spec: training 3).
    Source: arXiv:2108.06084.
    """

    def length(self, fraction: float, seq_len: int) -> int:
        """Tokens per row, 0 for all of them."""
        doublings = (seq_len // self.first).bit_length() - 1
        return 0 if fraction >= self.until else self.stage(fraction, doublings)

    def check(self, seq_len: int) -> None:
        """ConfigError unless rows of seq_len come of doubling."""
        times = seq_len // self.first
        if seq_len % self.first or times & (times - 1) or times < 2:
            raise ConfigError(f"seq_len {seq_len} is not {self.first} times a power of two", "length_schedule.first")


@dataclass(frozen=True, kw_only=True)
class Horizon(Part):
    """No layer's attention looks more than `tokens` back."""

    tokens: int

    def reach(self, length: int) -> int:
        """How many tokens back."""
        return self.tokens


@dataclass(frozen=True, kw_only=True)
class GrowingWindow(Growth):
    """Attention looks at most `first` tokens back, then twice as many, and so on in equal intervals; windows of the
    model's own stay where they are shorter. Source: modded-nanogpt.
    """

    last: int = 1024
    """Tokens in the last interval before the limit falls."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last < self.first:
            raise ConfigError(f"last must be at least first, {self.first}, not {self.last}", "last")

    def enlist(self, extras: list[Any], device: Any, token_bytes: Any) -> None:
        """It is what acts."""
        super().enlist(extras, device, token_bytes)
        extras.append(self)

    @cached_property
    def horizons(self) -> tuple[Horizon, ...]:
        """The limits in their order."""
        return tuple(Horizon(tokens=self.first << i) for i in range((self.last // self.first).bit_length()))

    def extra_parts(self, fraction: float, lr_scale: float) -> tuple[Horizon, ...]:
        """The limit, if there still is one."""
        if fraction >= self.until:
            return ()
        return (self.horizons[int(fraction / self.until * len(self.horizons))],)
