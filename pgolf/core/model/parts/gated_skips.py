"""U-Net connections with gates (PR #1089, #1218)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.model.params import ParamSpec, control
from pgolf.core.model.parts.unet_skips import UnetSkips
from pgolf.core.model.slots import LayerShape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GatedSkips(UnetSkips):
    """x <- w_j skip + sigma(g_j) (x - w_j skip): halfway between both at the start. Source: PR #1089, #1218."""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """skip_weights and skip_gates, (S,C) each."""
        gates = (control("skip_gates", (shape.skips, shape.model_dim), 0.0),) if shape.layer < 0 else ()
        return (*super().params(shape), *gates)

    def apply(self, root: Any, x_BTC: "Tensor", skip_BTC: "Tensor", row: int) -> "Tensor":
        """Blend the weighted skip in."""
        from torch import lerp

        skip = root.skip_weights[row].to(x_BTC.dtype) * skip_BTC
        return lerp(skip, x_BTC, root.skip_gates[row].to(x_BTC.dtype).sigmoid())
