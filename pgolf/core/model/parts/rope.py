"""Rotary position embedding (arXiv:2104.09864), half-split form of the naive baseline."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotates pairs (i, i + D/2) by t * base^(-2i/D). Tables are made afresh in every forward: no cache to go stale.
    Source: arXiv:2104.09864, naive baseline.
    """

    base: float = 10000.0
    """Wavelength base (upstream: rope_base)."""

    def __post_init__(self) -> None:
        if self.base <= 1:
            raise ConfigError(f"base must be above 1, not {self.base}", "base")

    def tables(self, length: int, head_dim: int, like: "Tensor") -> tuple["Tensor", "Tensor"]:
        """cos and sin (1,T,1,D/2), computed in float32, returned in the dtype of `like`."""
        import torch

        dims = torch.arange(0, head_dim, 2, dtype=torch.float32, device=like.device)
        inverse = 1.0 / (self.base ** (dims / head_dim))
        angles = torch.outer(torch.arange(length, dtype=torch.float32, device=like.device), inverse)
        return angles.cos()[None, :, None, :].to(like.dtype), angles.sin()[None, :, None, :].to(like.dtype)

    def apply(self, x_BTHD: "Tensor", tables: tuple["Tensor", "Tensor"]) -> "Tensor":
        """(u, v) -> (u cos + v sin, -u sin + v cos) on the two halves of the head."""
        import torch

        cos, sin = tables
        first, second = x_BTHD.chunk(2, dim=-1)
        return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)
