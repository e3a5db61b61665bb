"""Every layer once, in order (naive baseline)."""

from dataclasses import dataclass
from typing import Any

from pgolf.core.model.params import ParamSpec
from pgolf.core.model.slots import Part


@dataclass(frozen=True, kw_only=True)
class FixedOrder(Part):
    """Layers run once, in order. Source: naive baseline."""

    def order(self, num_layers: int) -> tuple[int, ...]:
        """0 .. L-1."""
        return tuple(range(num_layers))

    def is_on(self, fraction: float) -> bool:
        """There is nothing to switch on."""
        return False

    def later(self, specs: tuple[ParamSpec, ...], layer: int) -> tuple[ParamSpec, ...]:
        """There are no later passes."""
        return ()

    def passes(self, block: Any, count: int) -> list[Any]:
        """One."""
        return [block]

    def begin(self, model: Any) -> None:
        """Never called."""
