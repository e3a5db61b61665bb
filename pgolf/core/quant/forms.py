"""Codes of few values with a scale for each group of a row, and weights in eight-bit floats (spec: quantization 7)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pgolf.core.quant.qtensor import QTensor


def groups_of(values_RC: Tensor, group: int) -> Tensor:
    """The groups of each row of a matrix, (N,group); zeros fill the last."""
    return torch.nn.functional.pad(values_RC, (0, -values_RC.size(1) % group)).view(-1, group)


def group_count(shape: list[int], group: int) -> int:
    """How many groups the rows of a matrix have together."""
    return shape[0] * -(-shape[1] // group)


@dataclass(frozen=True)
class GroupTensor(QTensor):
    """int8 codes (R,C) of -1, 0 and 1, and for each `kind` of a row, 128 here, the mean magnitude of their weights,
    float16; the last of a row may be fewer, zeros in the mean fill them up. A group's weights are its codes times that
    over the share of codes that are not 0, so that a model that makes three values of its weights finds the very scales
    it was trained with.
    """

    kind, section = 128, 12
    sides = (("scale", "<f2", 3),)

    def dequantize(self) -> Tensor:
        """float32 (R,C)."""
        groups = groups_of(self.codes.float(), self.kind)
        share = groups.abs().mean(1).clamp_min(1 / self.kind)
        whole = (groups * (self.scale.float() / share)[:, None]).view(len(self.codes), -1)
        return whole[:, : self.codes.size(1)].contiguous()

    def sound(self) -> bool:
        """Whether scales are positive and of the right type and number."""
        scale, groups = self.scale, groups_of(self.codes, self.kind)
        fits = self.bits == 2 and scale.dtype == torch.float16 and scale.shape == groups.shape[:1]
        return fits and bool((torch.isfinite(scale) & (scale > 0)).all())


@dataclass(frozen=True)
class GroupTensor64(GroupTensor):
    """The same with groups of 64."""

    kind = 64


@dataclass(frozen=True)
class GroupTensor32(GroupTensor):
    """The same with groups of 32."""

    kind = 32


GROUPED: dict[int, type[GroupTensor]] = {128: GroupTensor, 64: GroupTensor64, 32: GroupTensor32}
"""Forms by the size of their groups."""


@dataclass(frozen=True)
class Float8Tensor(QTensor):
    """Weights in float8 (e4m3): a code is the float's bits without its sign, times its sign, so that codes have the
    order of the weights. There are no scales.
    """

    kind, section = 6, 12
    sides = ()

    scale: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float16))
    bits: int = 8

    def parts(self) -> list[Tensor]:
        """The codes alone."""
        return [self.codes]

    def dequantize(self) -> Tensor:
        """float32 (R,C)."""
        return self.codes.abs().view(torch.float8_e4m3fn).float().copysign(self.codes.float())

    def sound(self) -> bool:
        """Whether all codes are finite floats."""
        return self.bits == 8 and bool((self.codes.int().abs() < 127).all())
