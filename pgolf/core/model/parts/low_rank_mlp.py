"""MLP of low-rank matrices (spec: model 3)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import MLP, ParamSpec, matrix
from pgolf.core.model.parts.leaky_relu2 import LeakyRelu2
from pgolf.core.model.slots import LayerShape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LowRankMlp(LeakyRelu2):
    """Both matrices as products of factors of rank r. Effect: never measured. Source: community, never in a record."""

    rank: int = 128
    """Rank r of both matrices."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ConfigError(f"rank must be at least 1, not {self.rank}", "rank")

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """mlp.fc_in (r,C), mlp.fc (F,r), mlp.proj_in (r,F), mlp.proj (C,r), the last one zero."""
        if shape.layer < 0:
            return ()
        width, hidden = shape.model_dim, int(self.mult * shape.model_dim)
        return (
            matrix("mlp.fc_in", self.rank, width, MLP, ("orthogonal", 1.0)),
            matrix("mlp.fc", hidden, self.rank, MLP, ("orthogonal", 1.0)),
            matrix("mlp.proj_in", self.rank, hidden, MLP, ("orthogonal", 1.0)),
            matrix("mlp.proj", width, self.rank, MLP, ("fill", 0.0)),
        )

    def apply(self, mlp: Any, x_BTC: "Tensor") -> "Tensor":
        """(B,T,C) -> (B,T,C)."""
        hidden = self.activation(mlp.fc.linear(mlp.fc_in.linear(x_BTC)))
        return mlp.proj.linear(mlp.proj_in.linear(hidden))
