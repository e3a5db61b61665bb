"""How far back attention looks (PR #1512, nanochat)."""

from dataclasses import dataclass

from pgolf.core.errors import ConfigError
from pgolf.core.model.slots import Part


@dataclass(frozen=True, kw_only=True)
class SlidingWindow(Part):
    """Attention looks at most `tokens` back, except on the last `full_layers` layers. Part of the model: training,
    calibration and evaluation all use it. Effect: a step is 13 % faster with 8 windowed layers of 11 (PR #1512).
    Source: PR #1512.
    """

    narrows = True
    tokens: int = 256
    """Farthest token, w: position i sees j with i - j <= w."""
    full_layers: int = 5
    """Last layers without a limit (upstream: full_attn_layers)."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError(f"tokens must be at least 1, not {self.tokens}", "tokens")
        if self.full_layers < 0:
            raise ConfigError(f"full_layers must not be negative, not {self.full_layers}", "full_layers")

    def layers(self, num_layers: int) -> range:
        """All but the last."""
        return range(num_layers - self.full_layers)

    def reach(self, length: int) -> int:
        """How many tokens back."""
        return self.tokens


@dataclass(frozen=True, kw_only=True)
class PatternWindow(Part):
    """A pattern of letters, repeated over the layers, says which of them look at most `tokens` back (S) and which all
    the way (L); the last layer always does. Source: nanochat.
    """

    narrows = True
    pattern: str = "SSSL"
    """Letters S and L, the first for layer 0."""
    tokens: int = 512
    """Farthest token of a layer S (nanochat: a quarter of the training length, rounded up to a multiple of 128)."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError(f"tokens must be at least 1, not {self.tokens}", "tokens")
        if not self.pattern or set(self.pattern) - {"S", "L"}:
            raise ConfigError(f"{self.pattern!r} is no row of letters S and L", "pattern", "write it as SSSL")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Those marked S but the last."""
        return tuple(i for i in range(num_layers - 1) if self.pattern[i % len(self.pattern)] == "S")

    def reach(self, length: int) -> int:
        """How many tokens back."""
        return self.tokens
