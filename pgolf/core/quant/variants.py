"""What records did around GPTQ by rows: clips by curvature, coarse layers, pruned codes (spec: quantization 2.5, 5)."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import ATTN, CONTROL, MLP, ParamSpec
from pgolf.core.quant.base import half_scales
from pgolf.core.quant.gptq import Gptq
from pgolf.core.quant.sdclip import Grid

if TYPE_CHECKING:
    from torch import Tensor

    from pgolf.core.quant.qtensor import QTensor


@dataclass(frozen=True, kw_only=True)
class RowGptq(Gptq):
    """GPTQ whose steps are SDClip's, by row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.planned:
            raise ConfigError("this works on steps by row", "steps", "set steps=sigma and rounding=nearest")


@dataclass(frozen=True, kw_only=True)
class HessianClip(RowGptq):
    """GPTQ with coarser steps for rows of large weights where inputs are large: k sigma (1 + strength (m - 1)), m being
    the row's mean of |w| diag(H) over that of all rows. Effect: -0.0001 to -0.0002. Source: PR #1412.
    """

    strength: float = 0.175
    """How far steps follow it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.strength <= 1:
            raise ConfigError(f"strength must lie in [0, 1], not {self.strength}", "strength")

    def quantize(self, spec: ParamSpec, weight: "Tensor", known: Any) -> "QTensor | Tensor":
        """As GPTQ, on these steps."""
        from pgolf.core.quant.gptq import POLISHES, gptq_codes
        from pgolf.core.quant.qtensor import QTensor

        if spec.role == CONTROL or known is None:
            return super().quantize(spec, weight, known)
        limit, usual = self.scales(spec, weight)
        felt_C = known.diagonal() + self.damping * known.diagonal().mean()
        felt_R = (weight.abs() * felt_C).mean(1)
        more_R = 1 + self.strength * (felt_R / felt_R.mean().clamp_min(1e-30) - 1)
        scale = half_scales(usual.float() * more_R)
        codes = gptq_codes(weight, known, scale, limit, self.damping, self.block)
        if codes is None:
            return super().quantize(spec, weight, known)
        made = QTensor(codes, scale, self.grid(spec.role)[0])
        for polish in POLISHES.values():
            made = polish(self, made, weight, known)
        return made


@dataclass(frozen=True, kw_only=True)
class CoarseLayers(RowGptq):
    """GPTQ with a coarser grid for the matrices of some layers: with --budget as many as it takes to fit, outward from
    the centre. Effect: 290 KB and -0.002 for a layer of int5 (PR #638). Source: PR #638.
    """

    coarse: Grid = Grid(bits=5)
    """Grid of these layers."""
    layers: str = ""
    """Numbers of the layers, separated by commas; --budget adds to them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(word.strip().isdecimal() for word in self.layers.split(",") if word):
            raise ConfigError(f"{self.layers!r} are not numbers of layers", "layers", "give them as in 5,6,4")

    @property
    def numbers(self) -> list[int]:
        """The layers in their order."""
        return [int(word) for word in self.layers.split(",") if word]

    def own(self, role: str) -> Grid:
        """The grid of a role, or of a coarse layer."""
        return self.coarse if role == "coarse" else super().own(role)

    def of_layer(self, spec: ParamSpec) -> ParamSpec:
        """A parameter with the role whose grid it has."""
        coarse = [f"blocks.{number}." for number in self.numbers]
        inside = spec.role in (ATTN, MLP) and spec.name.startswith(tuple(coarse))
        return replace(spec, role="coarse") if inside else spec

    def step_over_sigma(self, spec: ParamSpec) -> float:
        """The step ratio of the grid."""
        return super().step_over_sigma(self.of_layer(spec))

    def quantize(self, spec: ParamSpec, weight: "Tensor", known: Any) -> "QTensor | Tensor":
        """As GPTQ, on the layer's grid."""
        return super().quantize(self.of_layer(spec), weight, known)


@dataclass(frozen=True, kw_only=True)
class PrunedGptq(RowGptq):
    """GPTQ, after which some codes of -1 and 1 become 0, those that cost the outputs least. Steps a little coarser save
    the same bytes for less, so this is for comparison. Effect: 0.012 worse with 2.9 % of the codes (PR #1334). Source:
    PR #609, PR #1019.
    """

    pruned: float = 0.001
    """Share of every matrix's codes that become 0, at most 0.001."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pruned <= 0.001:
            raise ConfigError(
                f"pruned must lie in [0, 0.001], not {self.pruned}", "pruned", "take coarser steps instead"
            )

    def quantize(self, spec: ParamSpec, weight: "Tensor", known: Any) -> "QTensor | Tensor":
        """As GPTQ, then pruned by what a code's loss adds to tr(E H E^T), to E E^T without H."""
        import torch

        from pgolf.core.quant.qtensor import QTensor

        made = super().quantize(spec, weight, known)
        if not isinstance(made, QTensor):
            return made
        hessian = torch.eye(weight.size(1)) if known is None else known
        moved = made.codes.float() * made.scale.float()[:, None]
        cost = 2 * moved * ((weight - moved) @ hessian) + moved.square() * hessian.diagonal()
        cost = cost.where(made.codes.abs() == 1, torch.inf).flatten()
        count = min(int(self.pruned * cost.numel()), int(cost.isfinite().sum()))
        codes = made.codes.flatten().clone()
        codes[cost.argsort(stable=True)[:count]] = 0
        return replace(made, codes=codes.view(weight.shape))
