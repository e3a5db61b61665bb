"""Rotary frequencies for windows longer than those of training (spec: evaluation 5)."""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.model.parts.rope import Rope
from pgolf.core.model.parts.yarn import Yarn

if TYPE_CHECKING:
    from pgolf.core.model.gpt import GPT


def rope_of(model: "GPT") -> Rope:
    """The model's rotation. ConfigError if it has frequencies that another length is built into."""
    position = model.config.position
    if type(position) is not Rope or position.reference:
        what = "the model stretches its rotary frequencies itself"
        raise ConfigError(what, "rope", "set rope=as_trained")
    return position


def exchange(model: "GPT", position: Rope) -> None:
    """Have the model rotate otherwise. (In the script configurations are no dataclasses; copies are made by hand.)"""
    model.config = copy.copy(model.config)
    vars(model.config).update(position=position)


@dataclass(frozen=True, kw_only=True)
class NtkRope:
    """A larger base for longer windows, base * (T / trained)^(R / (R - 2)). Source: PR #1394 (NTK scaling)."""

    trained: int = 1024
    """Tokens per row in training: train.seq_len of the model unless it is set."""

    def __post_init__(self) -> None:
        if self.trained < 1:
            raise ConfigError(f"trained must be at least 1, not {self.trained}", "trained")

    def stretch(self, model: "GPT") -> None:
        """Let the base grow with the window."""
        old = rope_of(model)
        exchange(model, Rope(base=old.base, dims=old.dims, reference=self.trained))


@dataclass(frozen=True, kw_only=True)
class YarnRope:
    """Low frequencies divided by longest / trained, high ones kept, a ramp between. Source: arXiv:2309.00071, ternary
    record (PR #640), there in training too.
    """

    trained: int = 1024
    """Tokens per row in training: train.seq_len of the model unless it is set."""
    longest: int = 2048
    """Length the frequencies are made for: the window's, seq_len, unless it is set."""

    def __post_init__(self) -> None:
        if not 0 < self.trained <= self.longest:
            raise ConfigError(f"trained {self.trained} must lie between 1 and longest {self.longest}", "trained")

    def stretch(self, model: "GPT") -> None:
        """Exchange the frequencies."""
        old = rope_of(model)
        exchange(model, Yarn(base=old.base, dims=old.dims, reference=0, trained=self.trained, longest=self.longest))
