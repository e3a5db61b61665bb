"""Round to nearest with a step proportional to each row's standard deviation (spec: quantization 2.4)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import ATTN, CONTROL, EMBED, HEAD, MLP, ParamSpec
from pgolf.core.quant.base import Checked, check_control_dtype, code_limit, keep_float, round_codes, row_scales

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from pgolf.core.model.gpt import GPT
    from pgolf.core.quant.qtensor import QTensor
    from pgolf.core.shards import TrainStream


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The grid of one role; zero means the value of the section above."""

    bits: int = 0
    """Code width, 4 to 8 bits; 0 takes the section's."""
    step_ratio: float = 0.0
    """Step over row standard deviation; 0 takes it from k."""
    k: float = 0.0
    """Clip in row standard deviations, step_ratio = k / (2^(bits-1) - 1); 0 takes the section's."""
    theta: float = 1.0
    """Factor on the steps of this role."""

    def __post_init__(self) -> None:
        if self.bits and not 4 <= self.bits <= 8:
            raise ConfigError(f"bits must be 4 to 8, not {self.bits}", "bits")
        if self.step_ratio < 0 or self.k < 0 or (self.step_ratio and self.k):
            raise ConfigError("give either step_ratio or k, above 0", "")
        if self.theta <= 0:
            raise ConfigError(f"theta must be above 0, not {self.theta}", "theta")


@dataclass(frozen=True, kw_only=True)
class SdClip(Checked):
    """Every row gets the step k sigma / L, so all rows cost the same bits under an entropy coder. Source: PR #1394."""

    bits: int = 6
    """Code width, 4 to 8 bits: the codes saturate at ±(2^(bits-1) - 1)."""
    step_ratio: float = 0.0
    """Step over row standard deviation; 0 takes it from k."""
    k: float = 12.85
    """Clip in row standard deviations, used when step_ratio is 0."""
    theta: float = 1.0
    """Factor on all steps."""
    control_dtype: str = "float32"
    """What control tensors (gains, scales, gates) are stored as: float32 or float16 (the records from PR #1394 on)."""
    embed: Grid = Grid(bits=8, k=20.0)
    """Grid of the token embedding."""
    attn: Grid = Grid()
    """Grid of the attention matrices."""
    mlp: Grid = Grid()
    """Grid of the MLP matrices."""
    head: Grid = Grid(bits=8, k=20.0)
    """Grid of an untied output matrix."""

    def __post_init__(self) -> None:
        if not 4 <= self.bits <= 8:
            raise ConfigError(f"bits must be 4 to 8, not {self.bits}", "bits")
        if self.step_ratio < 0 or self.k <= 0:
            raise ConfigError("step_ratio must not be negative, k must be above 0", "")
        if self.theta <= 0:
            raise ConfigError(f"theta must be above 0, not {self.theta}", "theta")
        check_control_dtype(self.control_dtype)

    def own(self, role: str) -> Grid:
        """The grid of a role."""
        return {EMBED: self.embed, ATTN: self.attn, MLP: self.mlp, HEAD: self.head}[role]

    def grid(self, role: str) -> tuple[int, float]:
        """(bits, step over sigma) for a role, the thetas included."""
        own = self.own(role)
        bits = own.bits or self.bits
        ratio = own.step_ratio or own.k / code_limit(bits) or self.step_ratio or self.k / code_limit(bits)
        return bits, ratio * self.theta * own.theta

    def step_over_sigma(self, spec: ParamSpec) -> float:
        """The step ratio of the parameter's role."""
        return 0.0 if spec.role == CONTROL else self.grid(spec.role)[1]

    def scales(self, spec: ParamSpec, weight_RC: "Tensor") -> "tuple[int, Tensor]":
        """Code limit L and float16 scales (R,). The standard deviation is the unbiased one; a row without spread takes
        its largest value as the clip, so that it survives.
        """
        bits, ratio = self.grid(spec.role)
        limit = code_limit(bits)
        spread = weight_RC.std(dim=1, correction=min(1, weight_RC.size(1) - 1))
        clip = (spread * ratio * limit).where(spread > 0, weight_RC.abs().amax(dim=1))
        return limit, row_scales(clip, limit)

    def prepare(self, model: "GPT", stream: "TrainStream", progress: "Callable[[int], None]") -> "dict[str, Any]":
        """Nothing is needed."""
        return {}

    def quantize(self, spec: ParamSpec, weight: "Tensor", known: Any) -> "QTensor | Tensor":
        """Codes for every matrix, floats for control tensors."""
        from pgolf.core.quant.qtensor import QTensor

        if spec.role == CONTROL:
            return keep_float(spec, weight, self.control_dtype)
        limit, scale = self.scales(spec, weight)
        return QTensor(round_codes(weight, scale, limit), scale, self.grid(spec.role)[0])
