"""Squared leaky ReLU (PR #493)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.model.parts.relu2 import Relu2

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LeakyRelu2(Relu2):
    """W_down leaky(W_up x)^2. Effect: -0.002 to -0.003 (PR #493). Source: PR #493, #549."""

    slope: float = 0.5
    """Factor on negative values before squaring, 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.slope <= 1:
            raise ConfigError(f"slope must lie in [0, 1], not {self.slope}", "slope")

    def activation(self, u_BTF: "Tensor") -> "Tensor":
        """The hidden units, same shape."""
        from torch.nn.functional import leaky_relu

        return leaky_relu(u_BTF, self.slope).square()
