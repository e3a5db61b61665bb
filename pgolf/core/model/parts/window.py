"""How far back attention looks (PR #1512)."""

from dataclasses import dataclass

from pgolf.core.errors import ConfigError
from pgolf.core.model.slots import Part


@dataclass(frozen=True, kw_only=True)
class SlidingWindow(Part):
    """Attention looks at most `tokens` back, except on the last `full_layers` layers. Part of the model: training,
    calibration and evaluation all use it. Source: PR #1512.
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
