"""Round to nearest with a clip at a quantile of each row (spec: quantization 2.1)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import CONTROL, ParamSpec
from pgolf.core.quant.base import Checked, code_limit, half_scales, keep_float

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from pgolf.core.model.gpt import GPT
    from pgolf.core.quant.qtensor import QTensor
    from pgolf.core.shards import TrainStream


def quantile_codes(weight: "Tensor", quantile: float, limit: int) -> "tuple[Tensor, Tensor]":
    """int8 codes and scales of a matrix (R,C) -> (R,) float16, or of a vector (N,) -> () float32.

    As upstream, codes are made with the float32 scale, which is rounded afterwards; a matrix's scales have the floor
    1 / L, which makes the step of every row whose clip is below 1 the same (spec: the scale floor trap).
    """
    import torch

    if weight.ndim == 2:
        clip = torch.quantile(weight.abs(), quantile, dim=1)
        scale = (clip / limit).clamp_min(1.0 / limit)
        codes = (weight.clamp(-clip[:, None], clip[:, None]) / scale[:, None]).round().clamp(-limit, limit)
        return codes.to(torch.int8), half_scales(scale)
    clip = torch.quantile(weight.abs().flatten(), quantile)
    scale = clip / limit if float(clip) > 0 else torch.ones(())
    return (weight.clamp(-clip, clip) / scale).round().clamp(-limit, limit).to(torch.int8), scale


@dataclass(frozen=True, kw_only=True)
class RowQuantile(Checked):
    """Per-row symmetric codes, 8 bits in the baseline; small tensors are kept as floats. Source: naive baseline."""

    bits: int = 8
    """Code width, 4 to 8 bits."""
    quantile: float = 0.9999984
    """Share of |w| that is not clipped."""
    keep_numel: int = 65536
    """Tensors of at most this many values stay float16 (float32 for control tensors)."""

    def __post_init__(self) -> None:
        if not 4 <= self.bits <= 8:
            raise ConfigError(f"bits must be 4 to 8, not {self.bits}", "bits")
        if not 0 < self.quantile <= 1 or self.keep_numel < 0:
            raise ConfigError("quantile must lie in (0, 1], keep_numel must not be negative", "")

    def prepare(self, model: "GPT", stream: "TrainStream", progress: "Callable[[int], None]") -> "dict[str, Any]":
        """Nothing is needed."""
        return {}

    def step_over_sigma(self, spec: ParamSpec) -> float:
        """The largest of a row's values, typically, over the number of codes on one side."""
        if spec.role == CONTROL or spec.numel <= self.keep_numel:
            return 0.0
        from statistics import NormalDist

        largest = NormalDist().inv_cdf((1 + 0.5 ** (1 / spec.shape[-1])) / 2)
        return largest / code_limit(self.bits)

    def quantize(self, spec: ParamSpec, weight: "Tensor", known: Any) -> "QTensor | Tensor":
        """Codes for large matrices, floats for the rest."""
        from pgolf.core.quant.qtensor import QTensor

        if spec.role == CONTROL or spec.numel <= self.keep_numel:
            return keep_float(spec, weight)
        return QTensor(*quantile_codes(weight, self.quantile, code_limit(self.bits)), self.bits)
