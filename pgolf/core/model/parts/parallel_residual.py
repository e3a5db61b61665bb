"""Attention and MLP side by side from some layer on (PR #1412)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.parts.one_stream import OneStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ParallelResidual(OneStream):
    """From layer `start` on both halves of a block read the same input: x + attention(x) + mlp(x). Effect: mainly a
    smaller quantization gap (PR #1477). Source: PR #1412, #1477, #1493 (after GPT-J).
    """

    start: int = 7
    """First layer that does (upstream: parallel_residual_start)."""

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ConfigError(f"start must not be negative, not {self.start}", "start")

    def layers(self, num_layers: int) -> range:
        """From `start` on."""
        return range(self.start, num_layers)

    def block(
        self,
        root: Any,
        layer: int,
        lanes: "tuple[Tensor, ...]",
        mix: "Callable[[Tensor], Tensor]",
        attention: "Callable[[Tensor], Tensor]",
        mlp: "Callable[[Tensor], Tensor]",
    ) -> "tuple[Tensor, ...]":
        """Side by side, or one after the other in early layers."""
        if layer < self.start:
            return super().block(root, layer, lanes, mix, attention, mlp)
        x = mix(lanes[0])
        return (x + attention(x) + mlp(x),)
