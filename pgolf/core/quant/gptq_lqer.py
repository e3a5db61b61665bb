"""GPTQ with low-rank corrections of its errors (LQER, arXiv:2402.02446; PR #1797, #1855; spec: quantization 4)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import CONTROL, ParamSpec
from pgolf.core.quant.casts import Int8Rows
from pgolf.core.quant.gptq import Gptq

if TYPE_CHECKING:
    from torch import Tensor

    from pgolf.core.quant.corrected import Factors


@dataclass(frozen=True, kw_only=True)
class Lqer(Gptq):
    """GPTQ, after which a few tensors get the low-rank part of their error back in integers of few bits. Effect: 0.0003
    for 30 KB (their logs); steps by curvature leave little to correct. Source: PR #1797, PR #1855.
    """

    top: int = 3
    """How many tensors are corrected."""
    rank: int = 4
    """Rank of a correction."""
    packing: str = "asym"
    """Bits of the factors: asym (2 for the left, with one scale, 4 for the right), or sym4 (4 for both)."""
    weighting: str = "none"
    """What makes an error large: none (its norm, as in PR #1855), or hessian (what it adds to the outputs; tensors are
    chosen by what a byte gains).
    """
    gates: str = "float"
    """What attention's gates are stored as: float, or int8_rows (as PR #1855; the quantizer of that name)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top < 0 or not 1 <= self.rank <= 127:
            raise ConfigError("top must not be negative, rank must be 1 to 127", "rank")
        if self.packing not in ("asym", "sym4"):
            raise ConfigError(f"{self.packing!r} is neither asym nor sym4", "packing")
        if self.weighting not in ("none", "hessian"):
            raise ConfigError(f"{self.weighting!r} is neither none nor hessian", "weighting")
        if self.sequential:
            reason = "which tensors are corrected is known when all are quantized"
            raise ConfigError(f"{reason}: not in turn", "sequential", "set it to false, or quant.method=gptq")
        if self.gates not in ("float", "int8_rows"):
            raise ConfigError(f"{self.gates!r} is neither float nor int8_rows", "gates")

    def step_over_sigma(self, spec: ParamSpec) -> float:
        """As GPTQ, or that of gates in rows."""
        coded = spec.role == CONTROL and self.gates == "int8_rows"
        return Int8Rows().step_over_sigma(spec) if coded else super().step_over_sigma(spec)

    def packed(self, left_Rr: "Tensor", right_rC: "Tensor") -> "Factors":
        """A product in integers."""
        from pgolf.core.quant.lqer import pack_asym, pack_rows

        return pack_rows(left_Rr, right_rC, 4) if self.packing == "sym4" else pack_asym(left_Rr, right_rC)

    def wanted(self, error_RC: "Tensor", known: Any) -> "tuple[float, tuple[Tensor, Tensor] | None] | None":
        """How much an error wants a correction, and the root of H that goes into it, if one does; None where it can do
        without.
        """
        if self.weighting == "none":
            norm = float(error_RC.norm())
            return (norm, None) if norm else None
        from pgolf.core.quant.lqer import correction, gain_per_bit, root_of

        root = root_of(known, self.damping)
        if root is None:
            return None
        worth = gain_per_bit(error_RC, correction(error_RC, self, root), self, root)
        return (worth, root) if worth > 0 else None
