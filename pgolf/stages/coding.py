"""Quantizing as the core does, with errors that name the tensor."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from pgolf.core.errors import InputError
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.params import ParamSpec
from pgolf.core.quant.base import FINISHES, check_finite, first_in_turn
from pgolf.core.quant.qtensor import QTensor, QuantizedModel


@contextmanager
def naming(name: str, weight: Tensor) -> Iterator[None]:
    """While a parameter is quantized: an InputError is raised with its name and its largest value."""
    try:
        yield
    except InputError as error:
        if name in error.what:
            raise
        place = int(weight.abs().argmax())
        row, value = place // (weight.numel() // len(weight)), float(weight.flatten()[place])
        raise InputError(f"{error.what}: {name}, row {row}, which has {value:g}", error.where, error.fix) from None


def named(quantizer: Any) -> Callable[[ParamSpec, Tensor, Any], QTensor | Tensor]:
    """What quantizes a parameter, with errors that name it."""

    def code(spec: ParamSpec, weight: Tensor, known: Any) -> QTensor | Tensor:
        with naming(spec.name, weight):
            made: QTensor | Tensor = quantizer.quantize(spec, weight, known)
            return made

    return code


def add_codes(
    made: QuantizedModel,
    specs: Iterable[ParamSpec],
    weights: Mapping[str, Tensor],
    quantizer: Any,
    known: Mapping[str, Any],
) -> None:
    """Quantize these parameters into a model."""
    code = named(quantizer)
    for spec in specs:
        made.tensors[spec.name] = code(spec, weights[spec.name].float(), known.get(spec.name))


def finished(
    made: QuantizedModel, weights: Mapping[str, Tensor], quantizer: Any, known: Mapping[str, Any]
) -> QuantizedModel:
    """A model all of whose parameters are quantized, with what may be done to it then."""
    for finish in FINISHES.values():
        made = finish(quantizer, made, weights, known)
    return made


def quantized_model(
    config: ModelConfig, weights: Mapping[str, Tensor], quantizer: Any, known: Mapping[str, Any]
) -> QuantizedModel:
    """As `pgolf.core.quant.base.quantize_model`."""
    check_finite(weights)
    made = QuantizedModel(config)
    specs = first_in_turn(param_specs(config), made, weights, known, named(quantizer))
    add_codes(made, specs, weights, quantizer, known)
    return finished(made, weights, quantizer, known)
