"""Codes with a low-rank correction beside them, and how artifacts store it (spec: quantization 4)."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pgolf.core.errors import InputError
from pgolf.core.model.config import param_specs
from pgolf.core.quant.qtensor import QTensor, QuantizedModel

GROUP = 64
"""Values of the right factor that share a scale."""
LOW_CODES, LOW_SCALES = 14, 15
"""Sections: int8 codes of both factors, parameter after parameter; a byte for each parameter, then all scales."""
BY_ROWS = 128
"""What the byte of a parameter is its rank plus, where rows have the scales; 0 is no correction."""


@dataclass(frozen=True)
class Factors:
    """A low-rank matrix in integers: int8 codes a (R,r) and b (r,C) with float16 scales, for a one or one for each row,
    for b one for each `GROUP` values or for each row.
    """

    a_codes: Tensor
    a_scale: Tensor
    b_codes: Tensor
    b_scale: Tensor

    def product(self) -> Tensor:
        """float32 (R,C)."""
        grouped = self.b_codes.float().view(self.b_scale.numel(), -1) * self.b_scale.float().view(-1, 1)
        left = self.a_codes.float() * self.a_scale.float().view(-1, 1)
        return left @ grouped.view(self.b_codes.shape)

    def parts(self) -> list[Tensor]:
        """All that is stored."""
        return [self.a_codes, self.a_scale, self.b_codes, self.b_scale]

    def sound(self, rows: int, columns: int) -> bool:
        """Whether this corrects a matrix (R,C): types, shapes, positive scales."""
        a, b = self.a_codes, self.b_codes
        if a.dtype != torch.int8 or b.dtype != torch.int8 or a.ndim != 2 or not 0 < a.size(1) < BY_ROWS:
            return False
        shapes = [tuple(part.shape) for part in self.parts()]
        forms = (shapes_of(rows, columns, a.size(1), by_rows) for by_rows in (False, True))
        scales = torch.cat((self.a_scale, self.b_scale)) if shapes in forms else torch.zeros(1)
        return scales.dtype == torch.float16 and bool((torch.isfinite(scales) & (scales > 0)).all())


def shapes_of(rows: int, columns: int, rank: int, by_rows: bool) -> list[tuple[int, ...]]:
    """Shapes of the parts of a correction."""
    groups = rank if by_rows or rank * columns % GROUP else rank * columns // GROUP
    return [(rows, rank), (rows if by_rows else 1,), (rank, columns), (groups,)]


@dataclass(frozen=True)
class CorrectedTensor(QTensor):
    """Codes of any other form, `base`, and what is added to what they stand for."""

    base: QTensor = field(kw_only=True)
    factors: Factors = field(kw_only=True)

    @property
    def kind(self) -> int:  # type: ignore[override]
        """That of the codes."""
        return self.base.kind

    @property
    def section(self) -> int:  # type: ignore[override]
        """That of the codes."""
        return self.base.section

    def parts(self) -> list[Tensor]:
        """All that is stored."""
        return [*self.base.parts(), *self.factors.parts()]

    def dequantize(self) -> Tensor:
        """float32 (R,C)."""
        return self.base.dequantize() + self.factors.product()

    def sound(self) -> bool:
        """Whether both parts are."""
        return self.base.sound() and self.factors.sound(*self.codes.shape)


def corrected(base: QTensor, factors: Factors) -> CorrectedTensor:
    """Codes with a correction."""
    return CorrectedTensor(base.codes, base.scale, base.bits, base.warning, base=base, factors=factors)


class LowRankSections:
    """How corrections are written beside codes, and read."""

    @staticmethod
    def write(
        model: QuantizedModel, raw: dict[int, list[bytes]], shapes: dict[int, list[tuple[int, ...]]]
    ) -> QuantizedModel:
        """Write the corrections of a model; returns it without them."""
        kinds, scales, plain = b"", list[bytes](), dict(model.tensors)
        for spec in param_specs(model.config):
            tensor = model.tensors[spec.name]
            if not isinstance(tensor, CorrectedTensor):
                kinds += b"\0"
                continue
            a_codes, a_scale, b_codes, b_scale = tensor.factors.parts()
            kinds += bytes([b_codes.size(0) + BY_ROWS * (a_scale.numel() > 1)])
            raw.setdefault(LOW_CODES, []).extend(codes.numpy().tobytes() for codes in (a_codes, b_codes))
            shapes.setdefault(LOW_CODES, []).extend(tuple(codes.shape) for codes in (a_codes, b_codes))
            scales += [part.numpy().tobytes() for part in (a_scale, b_scale)]
            plain[spec.name] = tensor.base
        if scales:
            raw[LOW_SCALES] = [kinds, *scales]
        return QuantizedModel(model.config, plain)

    @staticmethod
    def read(model: QuantizedModel, sections: dict[int, bytes], take: Callable[..., Tensor], where: str) -> None:
        """Add the corrections to a model read without them. InputError for one of what is no matrix of codes."""
        specs = param_specs(model.config)
        kinds = take(LOW_SCALES, "u1", len(specs)).tolist() if LOW_SCALES in sections else []
        for spec, kind in zip(specs, kinds):
            if not kind:
                continue
            tensor = model.tensors[spec.name]
            if not isinstance(tensor, QTensor) or not kind % BY_ROWS:
                raise InputError(
                    f"{spec.name} cannot have a correction of kind {kind}", where, "the artifact is damaged"
                )
            rows, columns = tensor.codes.shape
            sizes = shapes_of(rows, columns, kind % BY_ROWS, kind >= BY_ROWS)
            sources = ((LOW_CODES, "i1"), (LOW_SCALES, "<f2")) * 2
            parts = [take(*source, *size) for source, size in zip(sources, sizes)]
            model.tensors[spec.name] = corrected(tensor, Factors(*parts))
