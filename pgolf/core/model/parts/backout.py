"""An earlier state of the stream, taken out of the last one (modded-nanogpt)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import ParamSpec, control
from pgolf.core.model.slots import Flow, LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Backout(Part):
    """x <- x - lambda s at the end, s the stream as layer `after` left it (in its last lane, on its last pass); the
    attention of later layers reads s too. Effect: hurt (PR #1512). Source: modded-nanogpt; tried, and found to hurt, in
    PR #1512.
    """

    after: int = 6
    """Layer that leaves the state."""
    weight: float = 0.5
    """lambda at the start."""
    read: bool = True
    """Whether attention of later layers reads the state instead of the stream."""

    def __post_init__(self) -> None:
        if self.after < 0:
            raise ConfigError(f"after must not be negative, not {self.after}", "after")

    def suits(self, shape: LayerShape) -> None:
        """There are layers after it."""
        if self.after >= shape.num_layers - 1:
            raise ConfigError(f"no layer follows layer {self.after}", "after", f"there are {shape.num_layers} layers")

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """backout_lambda (1,)."""
        return (control("backout_lambda", (1,), self.weight),) if shape.layer < 0 else ()

    def layers(self, num_layers: int) -> range:
        """The one that leaves the state, and those that may read it."""
        return range(self.after, num_layers if self.read else self.after + 1)

    def attended(self, flow: Flow, layer: int, x_BTC: "Tensor") -> "Tensor":
        """The state, once it has been left."""
        state: Tensor = flow.memory.get("left", x_BTC) if layer > self.after else x_BTC
        return state

    def closed(self, block: Any, flow: Flow, layer: int, x_BTC: "Tensor") -> "Tensor":
        """Leave the state."""
        if layer == self.after:
            flow.memory["left"] = x_BTC
        return x_BTC

    def departed(self, root: Any, flow: Flow, x_BTC: "Tensor") -> "Tensor":
        """Take it out."""
        taken: Tensor = root.backout_lambda.to(x_BTC.dtype) * flow.memory["left"]
        return x_BTC - taken
