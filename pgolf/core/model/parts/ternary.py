"""Weights of few values while they are trained (BitNet b1.58)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import ATTN, MLP, ParamSpec
from pgolf.core.model.slots import LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Ternary(Part):
    """Matrices of the blocks act as -s, 0 or s per group of inputs, s the group's mean magnitude; other matrices as
    float8 (e4m3), except where a table serves as output matrix. Gradients pass straight through.
    Inputs of closing maps are normalised. Source: arXiv:2402.17764, ternary record (PR #640).
    """

    group: int = 128
    """Inputs that share a scale (upstream: group_size)."""
    tables: str = "fp8"
    """What the matrices outside the blocks act as: fp8 or float (upstream: fp_storage)."""
    scales: str = "float32"
    """What scales are rounded to: float32, which is not at all, or float16, as they are stored, so that
    quant.method=ternary loses nothing.
    """
    blocks: str = "all"
    """Which matrices of the blocks: all, attn or mlp; the others act as they are."""

    def __post_init__(self) -> None:
        if self.group < 1:
            raise ConfigError(f"group must be at least 1, not {self.group}", "group")
        if self.tables not in ("fp8", "float"):
            raise ConfigError(f"{self.tables!r} is neither fp8 nor float", "tables")
        if self.scales not in ("float32", "float16"):
            raise ConfigError(f"{self.scales!r} is neither float32 nor float16", "scales")
        if self.blocks not in ("all", ATTN, MLP):
            raise ConfigError(f"{self.blocks!r} is none of all, attn, mlp", "blocks")

    def suits(self, shape: LayerShape) -> None:
        """Groups fill the model's width."""
        if shape.model_dim % self.group:
            raise ConfigError(f"the model's width {shape.model_dim} is no multiple of {self.group}", "group")

    def fits(self, parts: dict[str, Any], specs: tuple[ParamSpec, ...]) -> None:
        """Groups fill every row of the blocks' matrices."""
        for spec in specs:
            if spec.role in (ATTN, MLP) and self.covers(spec) and spec.shape[-1] % self.group:
                raise ConfigError(
                    f"the {spec.shape[-1]} columns of {spec.name} are no multiple of {self.group}", "group"
                )

    def cover(self, model: Any) -> None:
        """Every matrix but those that are left out."""
        model.treat(self, lambda spec, passes: self.covers(spec))

    def covers(self, spec: ParamSpec) -> bool:
        """Whether a matrix is one of those."""
        return self.blocks in ("all", spec.role) if spec.role in (ATTN, MLP) else self.tables == "fp8"

    def weights(self, weight: "Tensor", role: str) -> "Tensor":
        """The values used forward, the identity backward."""
        if role not in (ATTN, MLP):
            return eighth(weight).detach() + (weight - weight.detach())
        groups = weight.reshape(-1, self.group)
        scale = groups.abs().mean(-1, keepdim=True).clamp_min(1e-8)
        if self.scales == "float16":
            scale = scale.half().clamp_min(2.0**-24).to(weight.dtype)
        values = (self.codes(groups / scale) * scale).detach().view_as(weight)
        return values + (weight - weight.detach())

    def codes(self, ratio: "Tensor") -> "Tensor":
        """-1, 0 or 1."""
        return ratio.round().clamp(-1, 1)

    def inputs(self, x: "Tensor", closing: bool) -> "Tensor":
        """Normalised before closing maps."""
        from torch.nn.functional import rms_norm

        return rms_norm(x, (x.size(-1),), eps=1.1920928955078125e-07) if closing else x


@dataclass(frozen=True, kw_only=True)
class Binary(Ternary):
    """The same with signs only: -s or s. Effect: 0.025 worse than ternary in ten minutes. Source: the binary runs of
    the ternary record's author.
    """

    def codes(self, ratio: "Tensor") -> "Tensor":
        """-1 or 1."""
        from torch import where

        return where(ratio >= 0, 1.0, -1.0)


def eighth(weight: "Tensor") -> "Tensor":
    """A matrix after a trip to float8 e4m3 and back."""
    import torch

    return weight.to(torch.float8_e4m3fn).to(weight.dtype)
