"""Attention over the whole row, whatever documents it holds (naive baseline)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.model.slots import Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class WholeRows(Part):
    """Documents follow one another in a row, and attention sees all of it. Source: naive baseline."""

    def segments(self, ids_BT: "Tensor") -> "Tensor | None":
        """None: rows are not divided."""
        return None

    def longest(self, length: int) -> int:
        """Tokens of the longest stretch that a row of `length` may have."""
        return length
