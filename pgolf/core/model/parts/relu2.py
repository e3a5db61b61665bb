"""Squared ReLU MLP (naive baseline)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.kernels import leaky_relu2_mlp
from pgolf.core.model.params import MLP, ParamSpec, matrix
from pgolf.core.model.slots import LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Relu2(Part):
    """W_down max(W_up x, 0)^2. Source: naive baseline."""

    slope = 0.0
    mult: float = 2.0
    """Hidden width as a multiple of the model width (upstream: mlp_mult)."""

    def __post_init__(self) -> None:
        if self.mult <= 0:
            raise ConfigError(f"mult must be positive, not {self.mult}", "mult")

    def suits(self, shape: LayerShape) -> None:
        """At least one hidden unit."""
        if int(self.mult * shape.model_dim) < 1:
            raise ConfigError(f"{self.mult} x {shape.model_dim} leaves no hidden unit", "mult", "raise it")

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """mlp.fc.weight (F,C) and mlp.proj.weight (C,F), the latter zero at the start."""
        if shape.layer < 0:
            return ()
        hidden = int(self.mult * shape.model_dim)
        return (
            matrix("mlp.fc", hidden, shape.model_dim, MLP),
            matrix("mlp.proj", shape.model_dim, hidden, MLP, ("fill", 0.0)),
        )

    def apply(self, mlp: Any, x_BTC: "Tensor") -> "Tensor":
        """(B,T,C) -> (B,T,C)."""
        return mlp.proj.linear(self.activation(mlp.fc.linear(x_BTC)))

    def fused_apply(self, mlp: Any, x_BTC: "Tensor") -> "Tensor":
        """(B,T,C) -> (B,T,C). While something listens to the hidden units, as calibration does, it is `apply`."""
        if mlp.proj.tap is not None:
            return self.apply(mlp, x_BTC)
        up, down = (node.weight.to(x_BTC.dtype) for node in (mlp.fc, mlp.proj))
        return leaky_relu2_mlp(x_BTC.flatten(0, 1), up, down, self.slope).view_as(x_BTC)

    def activation(self, u_BTF: "Tensor") -> "Tensor":
        """The hidden units, same shape."""
        return u_BTF.relu().square()
