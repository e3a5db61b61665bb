"""Rotary frequencies stretched for longer texts (YaRN as the ternary record has it)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.model.parts.rope import Rope

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Yarn(Rope):
    """High frequencies stay, low ones are divided by longest / trained, with a ramp between; at training time too.
    Source: arXiv:2309.00071, ternary record (PR #640).
    """

    longest: int = 2048
    """Length the frequencies are made for (upstream: yarn_max_len)."""
    trained: int = 1024
    """Length of training (upstream: train_seq_len)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.trained <= self.longest:
            raise ConfigError(f"trained {self.trained} must lie between 1 and longest {self.longest}", "trained")

    def frequencies(self, length: int, dims: int, like: "Tensor") -> "Tensor":
        """Radians per position of each pair, (R/2,) float32."""
        import torch

        share = torch.arange(0, dims, 2, dtype=torch.float32, device=like.device) / dims
        ramp = ((share - 0.25) / 0.75).clamp(0, 1)
        return super().frequencies(length, dims, like) / (1 + ramp * (self.longest / self.trained - 1))
