"""What needs no search: weights as float8, gates as int8 rows, tensors left as floats (spec: quantization 5, 7.1)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError, InputError
from pgolf.core.model.params import CONTROL, ParamSpec
from pgolf.core.quant.base import Checked, check_control_dtype, keep_float, round_codes, row_scales

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from pgolf.core.model.gpt import GPT
    from pgolf.core.quant.qtensor import QTensor
    from pgolf.core.shards import TrainStream


@dataclass(frozen=True, kw_only=True)
class KeepFloats(Checked):
    """Tensors stay floats: float16, control tensors float32 or float16."""

    control_dtype: str = "float32"
    """What control tensors (gains, scales, gates) are stored as: float32 or float16 (the records from PR #1394 on)."""

    def __post_init__(self) -> None:
        check_control_dtype(self.control_dtype)

    def prepare(self, model: "GPT", stream: "TrainStream", progress: "Callable[[int], None]") -> "dict[str, Any]":
        """Nothing is needed."""
        return {}

    def step_over_sigma(self, spec: ParamSpec) -> float:
        """There is none."""
        return 0.0

    def quantize(self, spec: ParamSpec, weight: "Tensor", known: Any) -> "QTensor | Tensor":
        """The tensor as a float."""
        return keep_float(spec, weight, self.control_dtype)


@dataclass(frozen=True, kw_only=True)
class Float8Cast(KeepFloats):
    """Matrices as float8 (e4m3: a relative error of at most 1/16), without scales; control tensors stay floats. Source:
    PR #640.
    """

    def step_over_sigma(self, spec: ParamSpec) -> float:
        """The step at which a normal distribution's codes have the entropy of its float8 values, 6.0 bits."""
        return 0.0 if spec.role == CONTROL else 0.0647

    def quantize(self, spec: ParamSpec, weight: "Tensor", known: Any) -> "QTensor | Tensor":
        """Signed bits. InputError for values beyond float8's 448."""
        import torch

        from pgolf.core.quant.forms import Float8Tensor

        if spec.role == CONTROL:
            return keep_float(spec, weight, self.control_dtype)
        if float(weight.abs().max()) > 448:
            raise InputError(f"{spec.name} has values beyond float8's 448", "quantize", "rescale the weights")
        bits = weight.abs().to(torch.float8_e4m3fn).view(torch.int8)
        return Float8Tensor(torch.where(weight < 0, -bits, bits))


@dataclass(frozen=True, kw_only=True)
class Int8Rows(KeepFloats):
    """Small matrices, gates above all, as int8 with a scale max|row| / 127 for each row; all else stays floats. Source:
    PR #1736, PR #1855.
    """

    named: str = "attn_gate"
    """Text that a tensor's name must have in it; empty takes any."""
    least: int = 32
    """Values that a tensor must have at least."""
    most: int = 8192
    """Values that it may have at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.least <= self.most:
            raise ConfigError("least must lie between 1 and most", "least")

    def takes(self, spec: ParamSpec) -> bool:
        """Whether a tensor becomes codes."""
        return len(spec.shape) == 2 and self.least <= spec.numel <= self.most and self.named in spec.name

    def step_over_sigma(self, spec: ParamSpec) -> float:
        """Two and a half deviations, typical of the largest of a short row's values, over 127."""
        return 2.5 / 127 if self.takes(spec) else 0.0

    def quantize(self, spec: ParamSpec, weight: "Tensor", known: Any) -> "QTensor | Tensor":
        """Codes of matrices that are small enough."""
        from pgolf.core.quant.qtensor import QTensor

        if not self.takes(spec):
            return keep_float(spec, weight, self.control_dtype)
        scale = row_scales(weight.abs().amax(1), 127)
        return QTensor(round_codes(weight, scale, 127), scale, 8)
