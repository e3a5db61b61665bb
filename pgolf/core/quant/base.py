"""What every quantizer shares: scales, rounding, and what is kept as floats (spec: quantization 1)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pgolf.core.errors import ConfigError, InputError
from pgolf.core.model.params import CONTROL, ParamSpec

if TYPE_CHECKING:
    from torch import Tensor

    from pgolf.core.model.config import ModelConfig
    from pgolf.core.model.gpt import GPT
    from pgolf.core.quant.qtensor import QTensor, QuantizedModel
    from pgolf.core.shards import TrainStream

SMALLEST_SCALE = 2.0**-24
"""The smallest positive float16."""


@dataclass(frozen=True, kw_only=True)
class Untuned:
    """Scales, norms and gates as quantization leaves them. Source: naive baseline."""


class QuantTuning(Protocol):
    """Tunes what is no code once all is quantized."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What holds for every quantizer."""

    max_gap: float = 0.5
    """BPB that the quantized model may be worse than the float model on held-out training tokens: beyond it pgolf
    quantize fails. 0 does not look.
    """
    tune: QuantTuning = Untuned()
    """Tuning of scales, norms and gates after quantization, on training tokens."""


class Quantizer(Protocol):
    """Turns float weights into codes."""

    @property
    def max_gap(self) -> float:
        """See `Checked`."""

    @property
    def tune(self) -> QuantTuning:
        """See `Checked`."""

    def prepare(self, model: "GPT", stream: "TrainStream", progress: "Callable[[int], None]") -> "dict[str, Any]":
        """What `quantize` needs to know of each parameter beside its weights, found with training tokens."""

    def step_over_sigma(self, spec: ParamSpec) -> float:
        """The step a parameter's grid is expected to have, in row standard deviations; 0 if kept as floats."""

    def quantize(self, spec: ParamSpec, weight: "Tensor", known: Any) -> "QTensor | Tensor":
        """One parameter: codes with scales, or the tensor to keep (float16 or float32)."""


def code_limit(bits: int) -> int:
    """L = 2^(bits-1) - 1: codes lie in [-L, L]."""
    return int(2 ** (bits - 1) - 1)


def row_scales(clip_R: "Tensor", limit: int) -> "Tensor":
    """float16 (R,) scales clip / L, floored so that no scale becomes zero in float16. InputError on overflow."""
    return half_scales((clip_R / limit).clamp_min(1e-10))


def half_scales(scale_R: "Tensor") -> "Tensor":
    """Positive float16 scales. InputError when one is beyond float16."""
    half = scale_R.half()
    if not bool(half.isfinite().all()):
        largest = f"scale {float(scale_R.max()):g}"
        raise InputError("a row is too large for a float16 scale", largest, "rescale the weights")
    return half.clamp_min(SMALLEST_SCALE)


def round_codes(weight_RC: "Tensor", scale_R: "Tensor", limit: int) -> "Tensor":
    """int8 codes: round half to even of weight / scale, clamped to [-L, L]."""
    import torch

    return (weight_RC / scale_R.float()[:, None]).round().clamp(-limit, limit).to(torch.int8)


def check_control_dtype(dtype: str) -> None:
    """ConfigError unless control tensors can be stored so."""
    if dtype not in ("float32", "float16"):
        raise ConfigError(f"control_dtype must be float32 or float16, not {dtype}", "control_dtype")


def keep_float(spec: ParamSpec, weight: "Tensor", control_dtype: str = "float32") -> "Tensor":
    """Control tensors stay float32 unless they are to be float16, and even then where they are whole numbers beyond
    2,048, from where float16 has gaps, as the ids of stored n-grams; others become float16. InputError if float16 would
    overflow.
    """
    exact = control_dtype == "float32" or (float(weight.abs().max()) > 2048 and weight.equal(weight.round()))
    if exact and spec.role == CONTROL:
        return weight.float()
    if float(weight.abs().max()) > 65504:
        raise InputError(f"{spec.name} has values beyond float16's 65,504", "quantize", "rescale the weights")
    return weight.half()


def check_finite(weights: "Mapping[str, Tensor]") -> None:
    """InputError naming tensor and index of the first NaN or infinity."""
    for name, weight in weights.items():
        bad = ~weight.isfinite()
        if bool(bad.any()):
            index = tuple(int(i) for i in bad.nonzero()[0])
            raise InputError(
                f"{name} is {float(weight[index])} at index {list(index)}",
                "checkpoint",
                "train again, or use an earlier one",
            )


def low_rank_corrections(
    quantizer: Quantizer, model: "QuantizedModel", weights: "Mapping[str, Tensor]", known: Mapping[str, Any]
) -> "QuantizedModel":
    """A quantized model as LQER leaves it."""
    from pgolf.core.quant.gptq_lqer import Lqer
    from pgolf.core.quant.lqer import with_corrections

    return with_corrections(quantizer, model, weights, known) if isinstance(quantizer, Lqer) else model


def gates_as_rows(
    quantizer: Quantizer, model: "QuantizedModel", weights: "Mapping[str, Tensor]", known: Mapping[str, Any]
) -> "QuantizedModel":
    """A quantized model with its gates as codes, if that is asked for; they have no corrections."""
    from pgolf.core.model.config import param_specs
    from pgolf.core.quant.casts import Int8Rows

    rows = Int8Rows()
    for spec in param_specs(model.config):
        if getattr(quantizer, "gates", "float") == "int8_rows" and spec.role == CONTROL and rows.takes(spec):
            model.tensors[spec.name] = rows.quantize(spec, weights[spec.name].float(), None)
    return model


FINISHES = {"lqer": low_rank_corrections, "gates": gates_as_rows}
"""What may be done to a model all of whose parameters are quantized."""

IN_TURN = ""
"""What `known` has, under this name, that quantizes parameters in the order in which they act."""


def paired_turn(quantizer: Any, model: "GPT", stream: "TrainStream") -> dict[str, Any]:
    """What quantizes a model's parameters in the order in which they act, with the calibration's tokens, if
    that is asked for.
    """
    import copy

    from pgolf.core.quant.sequential import InTurn, held_batches

    again = copy.copy(stream)
    again.position = 0
    for one in (quantizer, *vars(quantizer).values()):
        if getattr(one, "sequential", False):
            return {IN_TURN: InTurn(model, held_batches(one.batches(model, again)))}
    return {}


TURNS = {"sequential": paired_turn}
"""What is prepared besides; a script has it where it is asked for."""


def first_in_turn(
    specs: "tuple[ParamSpec, ...]",
    result: "QuantizedModel",
    weights: "Mapping[str, Tensor]",
    known: Mapping[str, Any],
    code: "Callable[[ParamSpec, Tensor, Any], QTensor | Tensor]",
) -> "tuple[ParamSpec, ...]":
    """Puts those parameters into a model that are quantized for what the ones before them leave; the others."""
    if turn := known.get(IN_TURN):
        result.tensors |= turn.codes(weights, known, code)
    return tuple(spec for spec in specs if spec.name not in result.tensors)


FIRST = {"sequential": first_in_turn}
"""What may quantize some parameters before the others."""


def quantize_model(
    config: "ModelConfig", weights: "Mapping[str, Tensor]", quantizer: Quantizer, known: Mapping[str, Any]
) -> "QuantizedModel":
    """Quantize every parameter of a configuration; `known` is what the quantizer prepared."""
    from pgolf.core.model.config import param_specs
    from pgolf.core.quant.qtensor import QuantizedModel

    check_finite(weights)
    result, specs = QuantizedModel(config), param_specs(config)
    for order in FIRST.values():
        specs = order(specs, result, weights, known, quantizer.quantize)
    for spec in specs:
        result.tensors[spec.name] = quantizer.quantize(spec, weights[spec.name].float(), known.get(spec.name))
    for finish in FINISHES.values():
        result = finish(quantizer, result, weights, known)
    return result
