"""Two or three values for each group of weights, for models trained with them (spec: quantization 7.1, 7.2)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import CONTROL, ParamSpec
from pgolf.core.quant.base import Checked, half_scales, keep_float

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from pgolf.core.model.gpt import GPT
    from pgolf.core.quant.qtensor import QTensor
    from pgolf.core.shards import TrainStream


@dataclass(frozen=True, kw_only=True)
class TernaryCodes(Checked):
    """-s, 0 or s for the weights of a group, s from their mean magnitude; control tensors stay floats. Weights that
    `model.precision=ternary` has trained come back as the model used them. Source: arXiv:2402.17764, PR #640.
    """

    group: int = 128
    """Weights of a row that share a scale: 32, 64 or 128; as in model.precision. A row's last group may be smaller; its
    mean magnitude is that of a group filled with zeros.
    """

    def __post_init__(self) -> None:
        if self.group not in (32, 64, 128):
            raise ConfigError(f"group must be 32, 64 or 128, not {self.group}", "group")

    def prepare(self, model: "GPT", stream: "TrainStream", progress: "Callable[[int], None]") -> "dict[str, Any]":
        """Nothing is needed."""
        return {}

    def step_over_sigma(self, spec: ParamSpec) -> float:
        """The step at which a normal distribution's codes have the entropy of three values, 1.58 bits."""
        return 0.0 if spec.role == CONTROL else 1.503

    def coded(self, ratio: "Tensor") -> "Tensor":
        """-1, 0 or 1."""
        return ratio.round().clamp(-1, 1)

    def quantize(self, spec: ParamSpec, weight: "Tensor", known: Any) -> "QTensor | Tensor":
        """Codes and the float16 mean magnitude of every group, which rounds the codes."""
        import torch

        from pgolf.core.quant.forms import GROUPED, groups_of

        if spec.role == CONTROL:
            return keep_float(spec, weight)
        groups = groups_of(weight, self.group)
        scale = half_scales(groups.abs().mean(1))
        codes = self.coded(groups / scale.float()[:, None]).to(torch.int8)
        return GROUPED[self.group](codes.view(len(weight), -1)[:, : weight.size(1)].contiguous(), scale, 2)


@dataclass(frozen=True, kw_only=True)
class BinaryCodes(TernaryCodes):
    """The same with signs only: -s or s. Source: the binary runs of the ternary record's author."""

    def step_over_sigma(self, spec: ParamSpec) -> float:
        """The step at which a normal distribution's codes take one bit."""
        return 0.0 if spec.role == CONTROL else 2.422

    def coded(self, ratio: "Tensor") -> "Tensor":
        """-1 or 1."""
        return 2 * (ratio >= 0).float() - 1
