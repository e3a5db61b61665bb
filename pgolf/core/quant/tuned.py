"""Tuning what of a quantized model is no code: control tensors and float16 row scales (spec: quantization 9.7)."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from pgolf.core.errors import InputError
from pgolf.core.model.config import param_specs
from pgolf.core.model.gpt import GPT
from pgolf.core.model.params import CONTROL
from pgolf.core.quant.base import half_scales
from pgolf.core.quant.corrected import CorrectedTensor
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.core.quant.tuning import KlTuning

SCALE_SHARE = 0.1
"""How fast scales of rows move, relative to control tensors."""


class Predictor(nn.Module):
    """A model as a function of (B,T) ids to log-probabilities (B,T,V) float32."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Of every next token."""
        return self.model.head(self.model.hidden(ids_BT)).log_softmax(-1)


def affine(tensor: QTensor | Tensor, control: bool) -> tuple[Tensor, Tensor, Tensor] | None:
    """A stored tensor as values that may move, what they are multiplied with, and what is added: the scales (R,1) of
    codes, or a control tensor itself. None for what has neither.
    """
    if isinstance(tensor, CorrectedTensor):
        found = affine(tensor.base, control)
        return found and (*found[:2], tensor.factors.product())
    if isinstance(tensor, QTensor):
        plain = type(tensor) is QTensor
        return (tensor.scale.float()[:, None], tensor.codes.float(), torch.zeros(())) if plain else None
    return (tensor.float(), torch.ones(()), torch.zeros(())) if control else None


def settled(tensor: QTensor | Tensor, values: Tensor) -> QTensor | Tensor:
    """The stored tensor with other values."""
    if isinstance(tensor, CorrectedTensor):
        base = settled(tensor.base, values)
        assert isinstance(base, QTensor)
        return replace(tensor, base=base, scale=base.scale)
    return replace(tensor, scale=half_scales(values[:, 0])) if isinstance(tensor, QTensor) else values.to(tensor.dtype)


def tuned_to(
    tuning: KlTuning, made: QuantizedModel, model: GPT, batches: Iterable[Tensor], progress: Callable[[int], None]
) -> QuantizedModel:
    """The quantized model with other values, one Adam step for each batch of ids (B,T). A value is its start plus a
    unit times what Adam moves; units are a tensor's mean magnitude, and a tenth of a row's scale. What is all zeros
    stays. InputError when the loss is no number, or nothing can move.

    Memory: the weights twice more on the model's device, and the graph of one step.
    """
    device = next(model.parameters()).device
    controls = {spec.name for spec in param_specs(made.config) if spec.role == CONTROL}
    fixed, starts, units, terms = {}, dict[str, Tensor](), dict[str, Tensor](), dict[str, tuple[Tensor, Tensor]]()
    for name, tensor in made.tensors.items():
        if (found := affine(tensor, name in controls)) is None:
            fixed[f"model.{name}"] = tensor.dequantize() if isinstance(tensor, QTensor) else tensor.float()
            continue
        starts[name], factor, rest = (part.to(device) for part in found)
        terms[name] = factor, rest
        units[name] = starts[name] * SCALE_SHARE if isinstance(tensor, QTensor) else starts[name].abs().mean()
    if not starts:
        raise InputError("this model has no scales of rows and no control tensors", "quant.tune", "set it to none")
    fixed = {name: weight.to(device) for name, weight in fixed.items()}
    moves = {name: torch.zeros_like(start, requires_grad=True) for name, start in starts.items()}
    predictor, adam = Predictor(model), torch.optim.Adam([*moves.values()], lr=tuning.rate)
    for step, ids in enumerate(batches):
        with torch.enable_grad():
            values = {name: starts[name] + units[name] * move for name, move in moves.items()}
            weights = {f"model.{name}": terms[name][0] * value + terms[name][1] for name, value in values.items()}
            found_BTV = torch.func.functional_call(predictor, fixed | weights, (ids.to(device),))
            loss = tuning.loss(found_BTV, predictor, ids.to(device))
        if not bool(loss.isfinite()):
            raise InputError(f"the loss of step {step} is {float(loss.detach())}", "quant.tune.rate", "lower it")
        adam.param_groups[0]["lr"] = tuning.rate * (1 - step / tuning.steps)
        adam.zero_grad()
        loss.backward()
        adam.step()
        progress(step + 1)
    result = QuantizedModel(made.config, dict(made.tensors))
    for name, move in moves.items():
        values_now = starts[name] + units[name] * move.detach()
        result.tensors[name] = settled(made.tensors[name], values_now.cpu())
    return result
