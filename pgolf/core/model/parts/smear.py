"""The token before, mixed into each embedding (PR #65, #162, #1667)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import CONTROL, SCALAR, ParamSpec, control
from pgolf.core.model.parts.gate_window import GateWindow
from pgolf.core.model.slots import Flow, LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StaticSmear(Part):
    """x <- (1 - g) x + g x_prev per channel after the embedding's norm, g = sigma(w). Source: PR #162, #198, #549."""

    init: float = 0.0
    """Initial w; 0 mixes half and half. (PR #65 writes 1 - g for g and starts at -3 in these terms.)"""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """smear.gate (C,)."""
        return (control("smear.gate", (shape.model_dim,), self.init),) if shape.layer < 0 else ()

    def entered(self, root: Any, flow: Flow, x_BTC: "Tensor") -> "Tensor":
        """Mix per channel; the token before a document's first is nothing."""
        gate = root.smear.gate.to(x_BTC.dtype).sigmoid()
        before = flow.before(x_BTC)
        if flow.segments_BT is not None:
            before = before * flow.same_BT[..., None]
        return (1 - gate) * x_BTC + gate * before


@dataclass(frozen=True, kw_only=True)
class GatedSmear(GateWindow):
    """x <- x + lam sigma(w . x[:n]) x_prev on the raw embedding, off at the start (lam = 0), never across the token
    that begins a document. Effect: -0.0004 before and +0.0003 after TTT, alone on PR #1493. Source: PR #1667; the mask:
    PR #1851, #1855.
    """

    bos_id: int = 1
    """Token that begins a document; it takes nothing from the one before. -1 for none."""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """smear_gate.weight (1,n) and smear_lambda (1,)."""
        if shape.layer >= 0:
            return ()
        gate = ParamSpec("smear_gate.weight", (1, self.window), ("fill", 0.0), SCALAR, CONTROL)
        return (gate, control("smear_lambda", (1,), 0.0))

    def embedded(self, root: Any, flow: Flow, x_BTC: "Tensor") -> "Tensor":
        """Add the token before, by a gate that reads the token."""
        gate = (x_BTC[..., : self.window] @ root.smear_gate.weight.to(x_BTC.dtype).T).sigmoid()
        gate = root.smear_lambda.to(x_BTC.dtype) * gate * (flow.ids_BT != self.bos_id)[..., None]
        return x_BTC + gate * flow.before(x_BTC)


@dataclass(frozen=True, kw_only=True)
class CumulativeSmear(Part):
    """x <- x + tanh(g) (mean of all x so far - x) per channel of every block's output, off at the start. Effect:
    -0.0012 at 1,500 steps, 22 ms a step. Source: ternary record (PR #640).
    """

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """smear.gate (C,) of every block."""
        return () if shape.layer < 0 else (control("smear.gate", (shape.model_dim,), 0.0),)

    def fits(self, parts: dict[str, Any], specs: tuple[ParamSpec, ...]) -> None:
        """The mean is one of the whole row."""
        if getattr(parts.get("documents"), "narrows", False):
            raise ConfigError("it averages over the whole row, across documents", "", "set model.documents=whole_rows")

    def required(self, start: int) -> int:
        """The mean is one of all positions."""
        return 0

    def closed(self, block: Any, flow: Flow, layer: int, x_BTC: "Tensor") -> "Tensor":
        """Mix with the causal mean, computed in float32."""
        import torch

        counts = torch.arange(1, x_BTC.size(1) + 1, device=x_BTC.device, dtype=torch.float32)
        mean = (x_BTC.float().cumsum(1) / counts[:, None]).to(x_BTC.dtype)
        return x_BTC + block.smear.gate.to(x_BTC.dtype).tanh() * (mean - x_BTC)
