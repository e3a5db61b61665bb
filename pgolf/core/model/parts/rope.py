"""Rotary position embedding (arXiv:2104.09864), half-split form of the naive baseline."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.model.slots import LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rope(Part):
    """Rotates pairs (i, i + R/2) of the first R dimensions of a head by t * base^(-2i/R). Tables are made afresh in
    every forward: no cache to go stale. Effect: 16 of 64 dimensions and the depth scale together -0.0023 (PR #315).
    Source: arXiv:2104.09864, naive baseline; part of the head: PR #315.
    """

    base: float = 10000.0
    """Wavelength base (upstream: rope_base)."""
    dims: int = 0
    """Dimensions of a head that rotate, R; 0 rotates all of them (upstream: rope_dims)."""
    reference: int = 0
    """Length beyond which the base grows, base * (T / reference)^(R / (R - 2)), so that a longer text turns no further
    (NTK scaling); 0 never does. Stored with the model: evaluation uses the same (upstream: train_seq_len, or 1024).
    """

    def __post_init__(self) -> None:
        if self.base <= 1:
            raise ConfigError(f"base must be above 1, not {self.base}", "base")
        if self.dims < 0 or self.dims % 2:
            raise ConfigError(f"{self.dims} dimensions cannot be paired; an even number can", "dims")
        if self.reference < 0 or (self.reference and self.dims == 2):
            raise ConfigError(
                f"reference must not be negative, and needs more than 2 dims; it is {self.reference}", "reference"
            )

    def suits(self, shape: LayerShape) -> None:
        """No more dimensions than a head has."""
        if self.dims > shape.head_dim:
            raise ConfigError(f"{self.dims} dims, but a head has {shape.head_dim}", "dims", "lower it")

    def frequencies(self, length: int, dims: int, like: "Tensor") -> "Tensor":
        """Radians per position of each pair, (R/2,) float32."""
        import torch

        stretched = bool(self.reference) and length > self.reference
        base = self.base * (length / self.reference) ** (dims / (dims - 2)) if stretched else self.base
        return 1.0 / (base ** (torch.arange(0, dims, 2, dtype=torch.float32, device=like.device) / dims))

    def tables(self, length: int, head_dim: int, like: "Tensor") -> tuple["Tensor", "Tensor"]:
        """cos and sin (1,T,1,R/2), computed in float32, returned in the dtype of `like`."""
        import torch

        turns = self.frequencies(length, self.dims or head_dim, like)
        angles = torch.outer(torch.arange(length, dtype=torch.float32, device=like.device), turns)
        return angles.cos()[None, :, None, :].to(like.dtype), angles.sin()[None, :, None, :].to(like.dtype)

    def apply(self, x_BTHD: "Tensor", tables: tuple["Tensor", "Tensor"]) -> "Tensor":
        """(u, v) -> (u cos + v sin, -u sin + v cos) on the two halves of the rotating part of the head."""
        import torch

        cos, sin = tables
        half = cos.size(-1)
        first, second, rest = x_BTHD.split([half, half, x_BTHD.size(-1) - 2 * half], dim=-1)
        return torch.cat((first * cos + second * sin, second * cos - first * sin, rest), dim=-1)
