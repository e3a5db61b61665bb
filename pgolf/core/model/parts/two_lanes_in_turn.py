"""Two residual lanes, attention before MLP (PR #1204)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.model.params import ParamSpec, control
from pgolf.core.model.parts.two_lanes import TwoLanes
from pgolf.core.model.slots import LayerShape

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TwoLanesInTurn(TwoLanes):
    """As two lanes, but the MLP reads its lane after attention has spoken, each step has factors of its own (r starts
    at sqrt(1.1)), the embedding enters both lanes, and so do long connections. Effect: -0.0022 (PR #1204). Source: PR
    #1204.
    """

    start: int = 7
    """First layer with two lanes."""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """parallel_post_lambdas (L,2,2), [layer, attention or MLP, lane], and parallel_resid_lambdas (L,2)."""
        if shape.layer >= 0:
            return ()
        return (
            control("parallel_post_lambdas", (shape.num_layers, 2, 2), 1.0),
            control("parallel_resid_lambdas", (shape.num_layers, 2), 1.1**0.5),
        )

    def join(self, lanes: "tuple[Tensor, ...]", skip: "Callable[[Tensor], Tensor]") -> "tuple[Tensor, ...]":
        """Both lanes."""
        return tuple(skip(lane) for lane in lanes)

    def block(
        self,
        root: Any,
        layer: int,
        lanes: "tuple[Tensor, ...]",
        mix: "Callable[[Tensor], Tensor]",
        attention: "Callable[[Tensor], Tensor]",
        mlp: "Callable[[Tensor], Tensor]",
    ) -> "tuple[Tensor, ...]":
        """Attention from lane 0, then MLP from lane 1; resid_lambdas are [attention's, MLP's]."""
        if len(lanes) == 1:
            return super().block(root, layer, lanes, mix, attention, mlp)
        post = root.parallel_post_lambdas[layer].to(lanes[0].dtype)
        keep = root.parallel_resid_lambdas[layer].to(lanes[0].dtype)
        for half, (source, work) in enumerate(((0, attention), (1, mlp))):
            said = work(mix(lanes[source]))
            lanes = tuple(keep[half] * lane + post[half, index] * said for index, lane in enumerate(lanes))
        return lanes
