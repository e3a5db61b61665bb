"""Matrices quantized one after another, each for the inputs that the quantized ones before it give (arXiv:2504.02692).

A matrix W that gets x~ where the float model has x does best, by least squares, as W + W D H^-1, with H the mean of
x~ x~^T and D that of (x - x~) x~^T; a share of that is added. Steps stay those that were planned; codes are solved
under H. This is a trial: `pgolf quantize` works from one calibration of the float model.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pgolf.core.model.config import param_specs
from pgolf.core.model.gpt import GPT, Node
from pgolf.core.model.params import CONTROL, EMBED
from pgolf.core.quant.gptq import factorise
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.stages.model_files import ModelFile, ready


class Reached(Exception):
    """Everything that was asked for has been seen."""


@torch.no_grad()
def sharing(model: GPT, ids_BT: Tensor) -> list[tuple[list[str], int]]:
    """Names of matrices in the order in which they act, those of the same inputs together, and how often they act."""
    found, times = dict[int, tuple[Tensor, list[str]]](), dict[str, int]()
    places = {name: node for name, node in model.named_modules() if isinstance(node, Node) and hasattr(node, "weight")}

    def seen(name: str, x: Tensor) -> None:
        times[name] = times.get(name, 0) + 1
        if times[name] == 1:
            found.setdefault(id(x), (x, []))[1].append(f"{name}.weight")

    for name, node in places.items():
        node.tap = lambda x, y, name=name: seen(name, x)
    model.head(model.hidden(ids_BT))
    for node in places.values():
        node.tap = None
    return [(names, times[names[0].removesuffix(".weight")]) for _, names in found.values()]


@torch.no_grad()
def inputs(model: GPT, name: str, ids_BT: Tensor, times: int) -> Tensor:
    """What a matrix is given in all its passes, (N,C) float32."""
    node, kept = model.get_submodule(name.removesuffix(".weight")), list[Tensor]()

    def tap(x: Tensor, y: Tensor) -> None:
        kept.append(x.flatten(0, -2).float())
        if len(kept) == times:
            raise Reached

    node.tap = tap  # type: ignore[assignment]
    with suppress(Reached):
        model.head(model.hidden(ids_BT))
    node.tap = None  # type: ignore[assignment]
    return torch.cat(kept)


def moments(exact: GPT, other: GPT, name: str, batches: Sequence[Tensor], times: int) -> tuple[Tensor, Tensor]:
    """H and D of a matrix, sums over all inputs, (C,C) float32."""
    pairs = (tuple(inputs(model, name, ids, times) for model in (exact, other)) for ids in batches)
    sums = [(given.T @ given, (wanted - given).T @ given) for wanted, given in pairs]
    return sum(one for one, _ in sums), sum(one for _, one in sums)  # type: ignore[return-value]


def followed(
    made: QuantizedModel, quantizer: Any, known: Mapping[str, Any], model: ModelFile, ids_BT: Tensor, share: float
) -> QuantizedModel:
    """A quantized model whose matrices are quantized anew, in their order, with a share of the correction. Token
    embeddings and control tensors stay.
    """
    device, batches = torch.device("cpu"), torch.split(ids_BT, 8)
    exact = ready(model.config, model.weights, device)
    specs = {spec.name: spec for spec in param_specs(model.config.model)}
    fixed = [name for name, spec in specs.items() if spec.role in (EMBED, CONTROL)]
    weights = dict(model.weights) | {name: made.weights()[name] for name in fixed}
    tensors: dict[str, QTensor | Tensor] = dict(made.tensors)
    for names, times in sharing(exact, batches[0][:1]):
        if names[0] in fixed:
            continue
        hessian, drift = moments(exact, ready(model.config, weights, device), names[0], batches, times)
        damped = hessian.double() + 0.01 * hessian.diagonal().double().mean() * torch.eye(len(hessian))
        moved = torch.linalg.solve(damped, drift.double(), left=False).float()
        factor = factorise(hessian, 0.01)
        for name in names:
            weight = model.weights[name].float()
            tensors[name] = quantizer.quantize(
                specs[name], weight + share * weight @ moved, replace(known[name], factor=factor)
            )
            one = tensors[name]
            weights[name] = one.dequantize() if isinstance(one, QTensor) else one
    result = QuantizedModel(made.config)
    result.tensors = tensors
    return result
