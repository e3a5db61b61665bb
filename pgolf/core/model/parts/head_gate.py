"""Gates on the outputs of attention heads, read off the token (PR #638, #1667, #1787)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import CONTROL, SCALAR, ParamSpec
from pgolf.core.model.parts.gate_window import GateWindow
from pgolf.core.model.slots import LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


def gate_matrix(name: str, heads: int, width: int, init: tuple[str, float]) -> ParamSpec:
    """A small projection (H,width) that Adam steps and that is kept in float32."""
    return ParamSpec(name, (heads, width), init, SCALAR, CONTROL)


@dataclass(frozen=True, kw_only=True)
class BiasedGate(Part):
    """Multiplies each head by sigma(W n + b), W = 0 and b = 4 at the start. Effect: with value residual -0.002 (PR
    #638). Source: PR #638 (gated attention).
    """

    bias: float = 4.0
    """Initial bias b; the gate starts at sigma(b)."""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """attn.attn_gate.weight (H,C) and attn.attn_gate.bias (H,)."""
        if shape.layer < 0:
            return ()
        weight = gate_matrix("attn.attn_gate.weight", shape.num_heads, shape.model_dim, ("fill", 0.0))
        return (weight, ParamSpec("attn.attn_gate.bias", (shape.num_heads,), ("fill", self.bias), SCALAR, CONTROL))

    def heads(self, attn: Any, y_BTHD: "Tensor", v_BTKD: "Tensor", n_BTC: "Tensor", raw_q_BTHD: "Tensor") -> "Tensor":
        """Scale each head."""
        gate = attn.attn_gate
        return y_BTHD * (n_BTC @ gate.weight.to(n_BTC.dtype).T + gate.bias.to(n_BTC.dtype)).sigmoid()[..., None]


@dataclass(frozen=True, kw_only=True)
class DenseGate(Part):
    """Multiplies each head by sigma(W n), without a bias. Source: arXiv:2505.06708, PR #1736."""

    init_std: float = 0.005
    """Standard deviation of the initial W."""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """attn.attn_gate_w (H,C)."""
        init = ("normal", self.init_std)
        return () if shape.layer < 0 else (gate_matrix("attn.attn_gate_w", shape.num_heads, shape.model_dim, init),)

    def heads(self, attn: Any, y_BTHD: "Tensor", v_BTKD: "Tensor", n_BTC: "Tensor", raw_q_BTHD: "Tensor") -> "Tensor":
        """Scale each head."""
        return y_BTHD * (n_BTC @ attn.attn_gate_w.to(n_BTC.dtype).T).sigmoid()[..., None]


@dataclass(frozen=True, kw_only=True)
class SparseGate(GateWindow):
    """Multiplies each head by sigma(c W n[:w]), where W sees only the first w channels and starts at zero. Effect: that
    of the dense gate, 44 KB smaller (PR #1787); on PR #1512 -0.0017, lost again to quantization. Source: PR #1787,
    #1855.
    """

    scale: float = 0.5
    """The factor c (upstream: sparse_attn_gate_scale)."""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """attn.attn_gate_w (H,w)."""
        fill = ("fill", 0.0)
        return () if shape.layer < 0 else (gate_matrix("attn.attn_gate_w", shape.num_heads, self.window, fill),)

    def heads(self, attn: Any, y_BTHD: "Tensor", v_BTKD: "Tensor", n_BTC: "Tensor", raw_q_BTHD: "Tensor") -> "Tensor":
        """Scale each head."""
        said = n_BTC[..., : self.window] @ attn.attn_gate_w.to(n_BTC.dtype).T
        return y_BTHD * (self.scale * said).sigmoid()[..., None]


@dataclass(frozen=True, kw_only=True)
class OutputGate(GateWindow):
    """Multiplies each head by 2 sigma(W u), which is 1 at the start; u are the first w channels of the block's input or
    of the raw queries. Source: PR #1667 (attention output gate).
    """

    reads: str = "proj"
    """What u is taken from: proj (the block's normalised input) or q (the query projection)."""

    def __post_init__(self) -> None:
        if self.reads not in ("proj", "q"):
            raise ConfigError(f"{self.reads!r} is neither proj nor q", "reads")
        super().__post_init__()

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """attn.attn_gate_proj.weight (H,w)."""
        name, fill = "attn.attn_gate_proj.weight", ("fill", 0.0)
        return () if shape.layer < 0 else (gate_matrix(name, shape.num_heads, self.window, fill),)

    def heads(self, attn: Any, y_BTHD: "Tensor", v_BTKD: "Tensor", n_BTC: "Tensor", raw_q_BTHD: "Tensor") -> "Tensor":
        """Scale each head."""
        source = n_BTC if self.reads == "proj" else raw_q_BTHD.flatten(2)
        said = source[..., : self.window] @ attn.attn_gate_proj.weight.to(n_BTC.dtype).T
        return y_BTHD * (2 * said.sigmoid())[..., None]
