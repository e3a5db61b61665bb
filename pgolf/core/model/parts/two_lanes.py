"""Two residual lanes with learned crossings (PR #1530)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import ParamSpec, control
from pgolf.core.model.parts.parallel_residual import ParallelResidual
from pgolf.core.model.slots import LayerShape

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TwoLanes(ParallelResidual):
    """From layer `start` of the second half on, attention reads lane 0 and MLP lane 1, and learned factors spread what
    they say over both: lane_i <- r_i lane_i + a_i attention + m_i mlp. Source: PR #1530, #1855.
    """

    start: int = 8
    """First layer with two lanes (upstream: parallel_start_layer)."""
    final: str = "mean"
    """What leaves the last layer: mean, attn (lane 0) or mlp (lane 1) (upstream: parallel_final_lane)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.final not in ("mean", "attn", "mlp"):
            raise ConfigError(f"{self.final!r} is neither mean nor attn nor mlp", "final")

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """parallel_post_lambdas (L,2,2), [layer, attention or MLP, lane], and parallel_resid_lambdas (L,2)."""
        if shape.layer >= 0:
            return ()
        return (
            control("parallel_post_lambdas", (shape.num_layers, 2, 2), 1.0),
            control("parallel_resid_lambdas", (shape.num_layers, 2), 1.1),
        )

    def enter(self, layer: int, lanes: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
        """The stream becomes two lanes."""
        return lanes if len(lanes) == 2 or layer < self.start else (lanes[0], lanes[0])

    def block(
        self,
        root: Any,
        layer: int,
        lanes: "tuple[Tensor, ...]",
        mix: "Callable[[Tensor], Tensor]",
        attention: "Callable[[Tensor], Tensor]",
        mlp: "Callable[[Tensor], Tensor]",
    ) -> "tuple[Tensor, ...]":
        """Both halves at once, each on its lane."""
        if len(lanes) == 1:
            mixed = mix(lanes[0])
            mixed = mixed + attention(mixed)
            return (mixed + mlp(mixed),)
        said = (attention(mix(lanes[0])), mlp(lanes[1]))
        post = root.parallel_post_lambdas[layer].to(lanes[0].dtype)
        keep = root.parallel_resid_lambdas[layer].to(lanes[0].dtype)
        first = keep[0] * lanes[0] + post[0, 0] * said[0] + post[1, 0] * said[1]
        return (first, keep[1] * lanes[1] + post[0, 1] * said[0] + post[1, 1] * said[1])

    def leave(self, lanes: "tuple[Tensor, ...]") -> "Tensor":
        """One stream again."""
        if len(lanes) == 1 or self.final == "attn":
            return lanes[0]
        return lanes[1] if self.final == "mlp" else (lanes[0] + lanes[1]) / 2
