"""Quantized tensors and the model made of them."""

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pgolf.core.errors import InputError
from pgolf.core.model.config import ModelConfig, param_specs

ROW_SCALES: tuple[tuple[str, str, int], ...] = (("scale", "<f2", 0),)


@dataclass(frozen=True)
class QTensor:
    """Symmetric per-row codes: int8 (R,C) in [-L, L] with L = 2^(bits-1) - 1, and a float16 scale per row (R,). `kind`
    and `section` are its numbers in artifacts; `sides` has what is stored beside codes: field, numpy's type, axis whose
    length it has (2: one number).
    """

    kind, section = 1, 3
    sides = ROW_SCALES

    codes: Tensor
    scale: Tensor
    bits: int
    warning: str = ""
    """What was done where there was no usable Hessian; not stored."""

    def parts(self) -> list[Tensor]:
        """All that is stored."""
        return [self.codes, self.scale]

    def dequantize(self) -> Tensor:
        """float32 (R,C): codes times scales."""
        return self.codes.float() * self.scale.float()[:, None]

    def sound(self) -> bool:
        """Whether what is stored beside codes are positive scales of the right type and number."""
        scale = self.scale
        fits = scale.dtype == torch.float16 and scale.shape == self.codes.shape[:1]
        return fits and bool((torch.isfinite(scale) & (scale > 0)).all())


@dataclass
class QuantizedModel:
    """Every parameter of a configuration, either quantized or kept as float16 or float32."""

    config: ModelConfig
    tensors: dict[str, QTensor | Tensor] = field(default_factory=dict)

    def weights(self) -> dict[str, Tensor]:
        """The float32 state dict the quantized model computes with."""
        return {name: t.dequantize() if isinstance(t, QTensor) else t.float() for name, t in self.tensors.items()}

    def assure_sound(self, where: str) -> None:
        """InputError unless names, shapes, codes and scales are those a model of this configuration can have."""
        for spec in param_specs(self.config):
            tensor = self.tensors.get(spec.name)
            values = tensor.codes if isinstance(tensor, QTensor) else tensor
            if values is None or values.shape != spec.shape:
                raise InputError(
                    f"{spec.name} is missing or not of shape {spec.shape}",
                    where,
                    "the file does not belong to this configuration",
                )
            if isinstance(tensor, QTensor):
                limit = 2 ** (tensor.bits - 1) - 1
                if tensor.codes.dtype != torch.int8 or len(spec.shape) != 2 or not tensor.sound():
                    raise InputError(
                        f"{spec.name} has a scale that is not a positive number, or codes that are not int8",
                        where,
                        "the file is damaged",
                    )
                if (values.numel() and int(values.abs().max()) > limit) or int(values.min()) == -128:
                    raise InputError(f"{spec.name} has codes beyond ±{limit}", where, "the file is damaged")
            elif not (values.is_floating_point() and bool(torch.isfinite(values).all())):
                raise InputError(f"{spec.name} has values that are not finite floats", where, "the file is damaged")
        if len(self.tensors) != len(param_specs(self.config)):
            raise InputError("the file has tensors the configuration does not know", where)

    def digest(self) -> str:
        """SHA-256 over name, shape, bits and bytes of every tensor in canonical order."""
        sha = hashlib.sha256()
        for spec in param_specs(self.config):
            tensor = self.tensors[spec.name]
            bits, parts = (tensor.bits, tensor.parts()) if isinstance(tensor, QTensor) else (0, [tensor])
            sha.update(f"{spec.name} {spec.shape} {bits}".encode())
            for part in parts:
                sha.update(str(part.dtype).encode() + part.contiguous().numpy().tobytes())
        return sha.hexdigest()
