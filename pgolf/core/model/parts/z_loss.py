"""A training loss that keeps logits small."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.slots import Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ZLoss(Part):
    """Adds weight * mean(logsumexp(logits)^2), to keep logits small. Source: arXiv:2204.02311, ternary record."""

    weight: float = 1e-4
    """The factor."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ConfigError(f"weight must be positive, not {self.weight}", "weight")

    def extra_loss(
        self, root: Any, hidden_BTC: "Tensor", logits_BTV: "Tensor", targets_BT: "Tensor"
    ) -> "Tensor | float":
        """Nats."""
        return self.weight * logits_BTV.logsumexp(-1).square().mean()
