"""Squared leaky ReLU (PR #493)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import ParamSpec, control
from pgolf.core.model.parts.relu2 import Relu2
from pgolf.core.model.slots import LayerShape

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


@dataclass(frozen=True, kw_only=True)
class LearnedLeakyRelu2(LeakyRelu2):
    """The same with a slope that each layer learns, `slope` at the start. Effect: unclear; a fork reports slopes of 0.1
    to 0.47 by layer. Source: forks of PR #549 (spec: model 3).
    """

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """mlp.slope (1,) beside the matrices."""
        matrices = super().params(shape)
        return (control("mlp.slope", (1,), self.slope), *matrices) if matrices else ()

    def apply(self, mlp: Any, x_BTC: "Tensor") -> "Tensor":
        """(B,T,C) -> (B,T,C)."""
        u = mlp.fc.linear(x_BTC)
        leaky = u.relu() - mlp.slope.to(u.dtype) * (-u).relu()
        return mlp.proj.linear(leaky.square())
