"""Round to nearest with a clip at a quantile of each row (spec: quantization 2.1)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import CONTROL, ParamSpec
from pgolf.core.quant.base import Checked, code_limit, half_scales, keep_float, round_codes, row_scales

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
    floor: str = "auto"
    """The least scale: record (1 / (2^(bits-1) - 1), as upstream: rows that stay below 1 all get the same coarse step),
    none (1e-10), or auto, which is record at 8 bits and none below, where the floor costs too much.
    """

    def __post_init__(self) -> None:
        if not 4 <= self.bits <= 8:
            raise ConfigError(f"bits must be 4 to 8, not {self.bits}", "bits")
        if not 0 < self.quantile <= 1 or self.keep_numel < 0:
            raise ConfigError("quantile must lie in (0, 1], keep_numel must not be negative", "")
        if self.floor not in ("auto", "record", "none"):
            raise ConfigError(f"{self.floor!r} must be one of auto, record, none", "floor")

    def prepare(self, model: "GPT", stream: "TrainStream", progress: "Callable[[int], None]") -> "dict[str, Any]":
        """Nothing is needed."""
        return {}

    def step_over_sigma(self, spec: ParamSpec) -> float:
        """The largest of a row's values, typically, or the quantile where that is less, over the number of codes on one
        side. A floor makes steps larger where rows are small, by what only their weights tell.
        """
        if spec.role == CONTROL or spec.numel <= self.keep_numel:
            return 0.0
        from statistics import NormalDist

        share = min(0.5 ** (1 / spec.shape[-1]), self.quantile)
        return NormalDist().inv_cdf((1 + share) / 2) / code_limit(self.bits)

    def quantize(self, spec: ParamSpec, weight: "Tensor", known: Any) -> "QTensor | Tensor":
        """Codes for large matrices, floats for the rest. Without a floor codes are made with the scale as stored."""
        import torch

        from pgolf.core.quant.qtensor import QTensor

        if spec.role == CONTROL or spec.numel <= self.keep_numel:
            return keep_float(spec, weight)
        limit = code_limit(self.bits)
        if self.floor == "none" or (self.floor == "auto" and self.bits < 8):
            scale = row_scales(torch.quantile(weight.abs(), self.quantile, dim=1), limit)
            return QTensor(round_codes(weight, scale, limit), scale, self.bits)
        return QTensor(*quantile_codes(weight, self.quantile, limit), self.bits)
