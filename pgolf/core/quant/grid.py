"""Codes whose steps lie on a logarithmic grid, by row and by column, and codes that lead through a trellis."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pgolf.core.quant.qtensor import QTensor
from pgolf.core.quant.trellis import PARITY_CHECKS, walk

ROW_GRID, COLUMN_GRID = 16, 8
"""Steps of rows are 2^(i/16), factors of columns 2^(j/8)."""
GRID_INDICES: tuple[tuple[str, str, int], ...] = (("scale", "<i2", 0), ("columns", "i1", 1))


def step_sizes(rows_R: Tensor, columns_C: Tensor) -> Tensor:
    """float32 (R,C) from indices on the grids; double precision rounds alike everywhere."""
    return ((rows_R.double() / ROW_GRID).exp2()[:, None] * (columns_C.double() / COLUMN_GRID).exp2()).float()


@dataclass(frozen=True)
class StepTensor(QTensor):
    """int8 codes (R,C) times 2^(scale/16) by row, int16 (R,), and 2^(columns/8) by column, int8 (C,)."""

    kind, section = 4, 6
    sides = GRID_INDICES

    columns: Tensor = field(kw_only=True)

    def parts(self) -> list[Tensor]:
        """All that is stored."""
        return [self.codes, self.scale, self.columns]

    def dequantize(self) -> Tensor:
        """float32 (R,C): codes times steps."""
        return self.codes.float() * step_sizes(self.scale, self.columns)

    def sound(self) -> bool:
        """Whether indices of the right type and number give positive steps."""
        typed = self.scale.dtype == torch.int16 and self.columns.dtype == torch.int8
        if not typed or (*self.scale.shape, *self.columns.shape) != self.codes.shape:
            return False
        sizes = step_sizes(self.scale, self.columns)
        return bool((torch.isfinite(sizes) & (sizes > 0)).all())


@dataclass(frozen=True)
class TrellisTensor(StepTensor):
    """Codes are floor(k / 2) of values k times half a step, whose parity follows from the codes above them in their
    column; 2^memory, uint8 (1,), is the number of the trellis's states.
    """

    kind = 5
    sides = (*GRID_INDICES, ("memory", "u1", 2))

    memory: Tensor = field(kw_only=True)

    def parts(self) -> list[Tensor]:
        """All that is stored."""
        return [*super().parts(), self.memory]

    def dequantize(self) -> Tensor:
        """float32 (R,C): k times half the steps."""
        return walk(self.codes, 1 << int(self.memory)) * (step_sizes(self.scale, self.columns) / 2)

    def sound(self) -> bool:
        """Whether steps are sound and the trellis is one of those there are."""
        known = self.memory.dtype == torch.uint8 and self.memory.numel() == 1 and 1 << int(self.memory) in PARITY_CHECKS
        return known and super().sound()
