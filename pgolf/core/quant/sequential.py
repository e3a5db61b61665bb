"""Matrices quantized in the order in which they act, each for the inputs that those before it leave.

Both models run beside each other as two halves of one batch, so that going through all matrices is one forward pass. A
matrix W that is given x~ where the float model gives it x comes nearest to what the float model has there, by least
squares, as W + T H^-1, with H the sum of x~^T x~ and T that of (W (x - x~))^T x~ (arXiv:2504.02692). The last one
of an MLP also makes up for what the residual stream lacks there, of which x~ tells a part.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pgolf.core.model.config import param_specs
from pgolf.core.model.gpt import GPT, Node
from pgolf.core.model.params import CONTROL, ParamSpec
from pgolf.core.quant.gptq import factorise
from pgolf.core.quant.qtensor import QTensor

CORRECTION_DAMPING = 0.1
"""Share of the mean diagonal added to H: tokens are few, and what only they ask for is no gain elsewhere."""
STREAM_SHARE = 0.5
"""How much of what the stream lacks an MLP makes up for."""


class PairedLookups(TorchFunctionMode):
    """Lets the second half of a batch look up in tables what `quantized` gives for theirs."""

    def __init__(self, names: Mapping[int, str], quantized: Callable[[str], Tensor]) -> None:
        super().__init__()
        self.names, self.quantized = names, quantized

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every call of torch passes here; those of `embedding` are changed."""
        out = func(*args, **(kwargs or {}))
        if func is F.embedding and (name := self.names.get(args[1].data_ptr())):
            out.chunk(2)[1].copy_(F.embedding(args[0].chunk(2)[1], self.quantized(name)))
        return out


class PairedStream:
    """A residual connection as it is, of a batch of two halves, which knows what the second lacks."""

    def __init__(self, residual: Any) -> None:
        self.residual = residual

    def __getattr__(self, name: str) -> Any:
        return getattr(self.residual, name)

    def block(
        self, root: Any, layer: int, lanes: tuple[Tensor, ...], mix: Any, attention: Any, mlp: Any
    ) -> tuple[Tensor, ...]:
        """As the residual connection does."""

        def said_by(x: Tensor) -> Tensor:
            y = attention(x)
            wide = tuple(lane.float() for lane in lanes)
            self.joined = lambda value: self.residual.block(root, layer, wide, mix, lambda x: y, lambda x: value)
            return y

        result: tuple[Tensor, ...] = self.residual.block(root, layer, lanes, mix, said_by, mlp)
        return result

    def lacking(self) -> Tensor:
        """What the MLP under way would have to say more (B,T,C) so that the block's lanes would be, by least squares,
        those of the first half of the batch; its share of that.
        """
        total, squares = torch.zeros(()), torch.zeros(())
        for without, one in zip(self.joined(0.0), self.joined(1.0)):
            exact, given = without.chunk(2)
            factor = (one - without).chunk(2)[0]
            total, squares = total + factor * (exact - given), squares + factor.square()
        return STREAM_SHARE * total / squares.clamp_min(1e-12)


@dataclass
class InTurn:
    """What it takes to quantize parameters in turn: the float model, and ids (B,T) from training.

    Memory: the activations of a forward pass over 2 B rows.
    """

    model: GPT
    ids_BT: Tensor
    seen: tuple[Tensor, Any, Tensor] | None = None
    """The last inputs (2B,T,C), with what is known of them: matrices side by side have the same."""

    def moments(self, x: Tensor) -> tuple[Any, Tensor]:
        """The factor of H, and the sum of (x - x~)^T x~ (C,C), of inputs (2B,T,C)."""
        if self.seen is None or self.seen[0].data_ptr() != x.data_ptr() or self.seen[0].shape != x.shape:
            exact, given = (half.flatten(0, -2).float() for half in x.chunk(2))
            hessian = given.T @ given
            self.seen = x, factorise(hessian.cpu(), CORRECTION_DAMPING), (exact.T @ given - hessian).cpu()
        return self.seen[1:]

    def corrected(self, name: str, weights: Mapping[str, Tensor], x: Tensor, stream: PairedStream) -> Tensor:
        """A matrix (R,C) float32 as it is best for the inputs x (2B,T,C)."""
        weight, (factor, drift) = weights[name].float(), self.moments(x)
        if factor is None:
            return weight
        wanted = weight @ drift
        head, _, tail = name.rpartition("mlp.proj.weight")
        if head and not tail:
            scale = weights[f"{head}mlp_scale"].float()
            usable = scale / (scale.square() + 1e-3 * scale.square().mean())
            given = x.chunk(2)[1].flatten(0, -2).float()
            wanted += usable[:, None] * (stream.lacking().flatten(0, -2).T @ given).cpu()
        (upper, order, _), moved = factor, torch.empty_like(wanted)
        moved[:, order] = wanted[:, order] @ upper.T @ upper
        return weight + moved

    @torch.no_grad()
    def codes(
        self,
        weights: Mapping[str, Tensor],
        known: Mapping[str, Any],
        code: Callable[[ParamSpec, Tensor, Any], QTensor | Tensor],
    ) -> dict[str, QTensor | Tensor]:
        """All that the model looks up or multiplies with before its logits, as `code` makes it of spec, weight and what
        is known of it. Tables are what they are without this.
        """
        specs = {spec.name: spec for spec in param_specs(self.model.config)}
        parameters, made = dict(self.model.named_parameters()), dict[str, QTensor | Tensor]()
        values, config = dict[str, Tensor](), self.model.config
        stream = PairedStream(config.residual)

        def value(name: str, make: Callable[[], Tensor]) -> Tensor:
            if name not in values:
                one = made[name] = code(specs[name], make(), known.get(name))
                values[name] = (one.dequantize() if isinstance(one, QTensor) else one).to(parameters[name])
            return values[name]

        def plain(name: str) -> Tensor:
            return value(name, lambda: weights[name].float())

        def tap(name: str, x: Tensor, y: Tensor) -> None:
            control = specs[name].role == CONTROL
            used = plain(name) if control else value(name, lambda: self.corrected(name, weights, x, stream))
            y.chunk(2)[1].copy_(F.linear(x.chunk(2)[1], used.to(x.dtype)))

        try:
            self.model.config = copy.copy(config)
            object.__setattr__(self.model.config, "residual", stream)
            for name, node in self.model.named_modules():
                if isinstance(node, Node) and f"{name}.weight" in parameters:
                    node.tap = partial(tap, f"{name}.weight")
            with PairedLookups({weight.data_ptr(): name for name, weight in parameters.items()}, plain):
                self.model.hidden(torch.cat((self.ids_BT, self.ids_BT)))
        finally:
            self.seen, self.model.config = None, config
            for node in self.model.modules():
                if isinstance(node, Node):
                    node.tap = None
        return made
