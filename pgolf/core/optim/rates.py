"""Multipliers of the learning rate by what a parameter does and where it is (spec: training 1.7)."""

from dataclasses import dataclass

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import HEAD, TOKEN
from pgolf.core.optim.schedules import Unscaled

ROLE_OF = {
    ".c_q.": "q",
    ".c_k.": "k",
    ".c_v.": "v",
    ".attn.proj.": "o",
    ".mlp.fc": "up",
    ".mlp.gate": "up",
    ".mlp.proj": "down",
    ".tok_emb.": "embed",
    ".lm_head.": "head",
}
"""What the name of a parameter holds -> its role, if it has one of these."""


def role_of(name: str) -> str:
    """The role of a parameter, or an empty string."""
    return next((role for part, role in ROLE_OF.items() if part in f".{name}"), "")


@dataclass(frozen=True, kw_only=True)
class MupWidth(Unscaled):
    """Rates found at width `base_dim` hold at others: Adam's rate of token embeddings and output matrices goes as
    base_dim / model_dim, their decay against it; Muon's orthogonal updates and gains need no change. Effect: the best
    of three rates is the same at widths 32 and 256, a tenth without (tests). Source: arXiv:2203.03466, 2310.17813.
    """

    base_dim: int = 512
    """Width at which the rates were found."""

    def __post_init__(self) -> None:
        if self.base_dim < 1:
            raise ConfigError(f"base_dim must be at least 1, not {self.base_dim}", "base_dim")

    def width_factor(self, group: str, model_dim: int) -> float:
        """Multiplier of a group's rate."""
        return self.base_dim / model_dim if group in (TOKEN, HEAD) else 1.0


@dataclass(frozen=True, kw_only=True)
class RateByRole:
    """A multiplier of the rate for each role, Muon's and Adam's alike, and one for the matrices of early layers.
    Effect: unproven alone. Source: PR #1179, #1204 (layers < 5 at 0.025, the others at 0.030: early_layers 5, early
    0.8333); modded-nanogpt.
    """

    q: float = 1.0
    """Query matrices."""
    k: float = 1.0
    """Key matrices."""
    v: float = 1.0
    """Value matrices."""
    o: float = 1.0
    """Output matrices of attention."""
    up: float = 1.0
    """First matrices of the MLP, gates included."""
    down: float = 1.0
    """Last matrices of the MLP."""
    embed: float = 1.0
    """Token embedding."""
    head: float = 1.0
    """Untied output matrix."""
    early: float = 1.0
    """Matrices of the first `early_layers` layers, times that of their role."""
    early_layers: int = 0
    """How many layers count as early."""

    def __post_init__(self) -> None:
        for key in self.__dataclass_fields__:
            if getattr(self, key) < 0:
                raise ConfigError(f"{key} must not be negative, not {getattr(self, key)}", key)

    def is_early(self, name: str) -> bool:
        """Whether a parameter is a matrix of an early layer."""
        head, _, rest = name.partition(".")
        return head == "blocks" and int(rest.partition(".")[0]) < self.early_layers and name.endswith(".weight")

    def factor(self, name: str) -> float:
        """Multiplier of a parameter's rate."""
        role = role_of(name)
        return (getattr(self, role) if role else 1.0) * (self.early if self.is_early(name) else 1.0)
