"""Orders that a model does not depend on: hidden units of an MLP, and value channels of a head. Sorted by their steps,
the steps take fewer bytes, and nothing about the order has to be stored (spec: compression 3).
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from pgolf.core.codecs.base import Codec
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.slots import Absent
from pgolf.core.quant.grid import StepTensor, TrellisTensor
from pgolf.core.quant.qtensor import QTensor, QuantizedModel

UNITS = {"mlp.fc": 0, "mlp.gate": 0, "mlp.proj": 1}
"""Matrices -> the axis on which they have an MLP's hidden units."""
CHANNELS = {"attn.c_v": 0, "attn.proj": 1}
"""The same of the channels of values."""


def bound_tensors(config: ModelConfig, layer: int, axes: dict[str, int], length: int) -> dict[str, int] | None:
    """The layer's parameters, those of later passes included, that have these axes: name -> axis. What a pass adds to a
    matrix by a low-rank product has an axis in one of its factors. None if one is not of the length expected.
    """
    found = {}
    for spec in param_specs(config):
        if spec.name.startswith(f"blocks.{layer}."):
            for matrix, axis in axes.items():
                factor = "lora_a" if axis else "lora_b"
                if spec.name.endswith((f"{matrix}.weight", f"{matrix}.{factor}.weight")):
                    found[spec.name] = axis
                    if spec.shape[axis] % length:
                        return None
    return found


def free_orders(config: ModelConfig) -> Iterator[tuple[str, dict[str, int], int]]:
    """What may be reordered: the parameter whose steps decide, all parameters with the axis of each, and the length of
    the stretches that stay in their place.
    """
    absent = (config.value_embed, config.value_residual, config.head_mix)
    width = config.model_dim // config.num_heads
    for layer in range(config.num_layers if isinstance(config.precision, Absent) else 0):
        name = f"blocks.{layer}.mlp.fc.weight"
        units = next((spec.shape[0] for spec in param_specs(config) if spec.name == name), 0)
        tensors = bound_tensors(config, layer, UNITS, units) if units else None
        if tensors and f"blocks.{layer}.mlp.fc_in.weight" not in (spec.name for spec in param_specs(config)):
            yield name, tensors, units
        tensors = bound_tensors(config, layer, CHANNELS, width)
        if tensors and all(isinstance(part, Absent) for part in absent):
            yield f"blocks.{layer}.attn.c_v.weight", tensors, width


def reordered(tensor: QTensor | Tensor, order: Tensor, axis: int) -> QTensor | Tensor:
    """A parameter with rows (axis 0) or columns (1) in another order."""
    if not isinstance(tensor, QTensor):
        return tensor.index_select(axis, order)
    sides = {name: getattr(tensor, name)[order] for name, _, along in tensor.sides if along == axis}
    return replace(tensor, codes=tensor.codes.index_select(axis, order), **sides)


def axis_order(order_GN: Tensor, size: int) -> Tensor:
    """Orders of N places for each of G groups, as indices of an axis that has `size` / N stretches, as many in a row of
    each group: the query heads that read one value.
    """
    groups, length = order_GN.shape
    repeated = order_GN.repeat_interleave(size // length // groups, 0)
    return (repeated + length * torch.arange(len(repeated))[:, None]).flatten()


def side_bytes(tensors: Iterable[QTensor | Tensor], codec: Codec) -> int:
    """What a codec makes of all but the codes, which take as many bytes in any order."""
    sides = [side for tensor in tensors for side in (tensor.parts()[1:] if isinstance(tensor, QTensor) else [tensor])]
    return len(codec.encode(b"".join(side.numpy().tobytes() for side in sides)))


def by_steps(model: QuantizedModel, codec: Codec) -> QuantizedModel:
    """The model with units and channels in the order of their steps, layer by layer where `codec` then takes fewer
    bytes. Where rows lead through a trellis they stay, and forms without scales by row. Done twice it changes nothing
    more.
    """
    found = dict(model.tensors)
    for lead, axes, length in free_orders(model.config) if getattr(codec, "permute", False) else ():
        old, key = {name: found[name] for name in axes}, found[lead]
        free = (Tensor, QTensor, StepTensor, TrellisTensor)
        if not (isinstance(key, QTensor) and all(type(old[name]) in free[: 3 + axis] for name, axis in axes.items())):
            continue
        sizes = {spec.name: spec.shape[axes[spec.name]] for spec in param_specs(model.config) if spec.name in axes}
        order = key.scale.float().view(-1, length).argsort(dim=1, stable=True)
        new = {name: reordered(old[name], axis_order(order, sizes[name]), axis) for name, axis in axes.items()}
        if side_bytes(new.values(), codec) < side_bytes(old.values(), codec):
            found |= new
    return QuantizedModel(model.config, found)
