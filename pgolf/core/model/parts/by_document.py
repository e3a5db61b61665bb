"""Attention within documents (PR #1530)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.model.slots import Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ByDocument(Part):
    """Attention stops at the start of a document, and every `max_tokens` within a longer one. Effect: about -0.001 nats
    per token and 2 % faster (PR #1530). Source: PR #1530.
    """

    narrows = True
    bos_id: int = 1
    """Token that begins a document."""
    max_tokens: int = 2048
    """Longest stretch attention sees (upstream: train_seq_len); 0 is no limit."""

    def __post_init__(self) -> None:
        if self.max_tokens < 0 or self.bos_id < 0:
            raise ConfigError("max_tokens and bos_id must not be negative", "max_tokens")

    def segments(self, ids_BT: "Tensor") -> "Tensor":
        """Numbers of the stretches, (B,T) int64."""
        import torch

        place = torch.arange(ids_BT.size(1), device=ids_BT.device).expand_as(ids_BT)
        begins = (ids_BT == self.bos_id) | (place == 0)
        if self.max_tokens:
            inside = place - torch.where(begins, place, 0).cummax(dim=1).values
            begins = begins | (inside % self.max_tokens == 0)
        return begins.cumsum(dim=1)

    def longest(self, length: int) -> int:
        """Tokens of the longest stretch that a row of `length` may have."""
        return min(length, self.max_tokens or length)
