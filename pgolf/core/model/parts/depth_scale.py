"""Smaller inputs for deeper layers (PR #315)."""

from dataclasses import dataclass

from pgolf.core.model.slots import Part


@dataclass(frozen=True, kw_only=True)
class DepthScale(Part):
    """Inputs of attention and MLP are divided by sqrt(l + 1), l the physical layer. Effect: with partial rotation
    -0.0023 (PR #315). Source: PR #315 (ln_scale).
    """

    def input_scale(self, layer: int) -> float:
        """1 / sqrt(l + 1)."""
        return float((layer + 1) ** -0.5)
