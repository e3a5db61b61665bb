"""Exclusive self attention (arXiv:2603.09078)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import ParamSpec, control
from pgolf.core.model.slots import LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Xsa(Part):
    """Takes out of each head's output what points along the token's own value. Effect: -0.0047 on the last 4 layers,
    with EMA (PR #287); on all 11 another -0.006 (PR #638); worse in looped layers (+0.001, PR #363). Source:
    arXiv:2603.09078, PR #265, #287, #478.
    """

    last_n: int = 0
    """On how many of the last layers; 0 is all (upstream: xsa_last_n)."""

    def __post_init__(self) -> None:
        if self.last_n < 0:
            raise ConfigError(f"last_n must not be negative, not {self.last_n}", "last_n")

    def layers(self, num_layers: int) -> range:
        """The last ones."""
        return range(max(num_layers - self.last_n, 0) if self.last_n else 0, num_layers)

    def heads(self, attn: Any, y_BTHD: "Tensor", v_BTKD: "Tensor", n_BTC: "Tensor", raw_q_BTHD: "Tensor") -> "Tensor":
        """y - <y, v> v for unit v, the heads of a group sharing their value."""
        from torch.nn.functional import normalize

        grouped = y_BTHD.unflatten(2, (v_BTKD.size(2), -1))
        unit = normalize(v_BTKD, dim=-1, eps=1e-12).unsqueeze(3)
        return (grouped - self.share(attn, grouped) * (grouped * unit).sum(-1, keepdim=True) * unit).flatten(2, 3)

    def share(self, attn: Any, grouped: "Tensor") -> "Tensor | float":
        """How much of it is taken out."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class GatedXsa(Xsa):
    """The same, by a learned share per head that starts at none: y - tanh(alpha_h) <y, v> v. Source: modded-nanogpt."""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """attn.xsa_alpha (H,)."""
        return () if shape.layer < 0 else (control("attn.xsa_alpha", (shape.num_heads,), 0.0),)

    def share(self, attn: Any, grouped: "Tensor") -> "Tensor | float":
        """tanh(alpha_h), (K,G,1)."""
        return attn.xsa_alpha.to(grouped.dtype).tanh().view(grouped.size(2), -1, 1)
