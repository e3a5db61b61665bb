"""What gates have in common that see only the first channels of a token (PR #1667, #1787)."""

from dataclasses import dataclass

from pgolf.core.errors import ConfigError
from pgolf.core.model.slots import LayerShape, Part


@dataclass(frozen=True, kw_only=True)
class GateWindow(Part):
    """A part whose gate sees `window` channels."""

    window: int = 12
    """Channels the gate sees, w (upstream: gate_window)."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"window must be at least 1, not {self.window}", "window")

    def suits(self, shape: LayerShape) -> None:
        """The window lies within the model's width."""
        if self.window > shape.model_dim:
            raise ConfigError(f"{self.window} channels, but the model has {shape.model_dim}", "window", "lower it")
