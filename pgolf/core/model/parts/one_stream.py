"""Attention, then MLP, each added to the stream (naive baseline)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.model.slots import Part

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class OneStream(Part):
    """x <- mix(x); x <- x + attention(x); x <- x + mlp(x). Source: naive baseline."""

    def enter(self, layer: int, lanes: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
        """There is one lane."""
        return lanes

    def join(self, lanes: "tuple[Tensor, ...]", skip: "Callable[[Tensor], Tensor]") -> "tuple[Tensor, ...]":
        """A long connection goes to the first lane."""
        return (skip(lanes[0]), *lanes[1:])

    def block(
        self,
        root: Any,
        layer: int,
        lanes: "tuple[Tensor, ...]",
        mix: "Callable[[Tensor], Tensor]",
        attention: "Callable[[Tensor], Tensor]",
        mlp: "Callable[[Tensor], Tensor]",
    ) -> "tuple[Tensor, ...]":
        """One after the other."""
        x = mix(lanes[0])
        x = x + attention(x)
        return (x + mlp(x),)

    def leave(self, lanes: "tuple[Tensor, ...]") -> "Tensor":
        """The lane."""
        return lanes[0]
