"""What is exported of a trained model: what only training needed is left out, what matrices can take up is folded into
them. A checkpoint keeps everything; quantized models and artifacts hold a model of the exported configuration.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pgolf.core.model.config import ModelConfig, model_parts, param_specs
from pgolf.core.model.slots import Absent

if TYPE_CHECKING:
    from torch import Tensor


def exported(config: ModelConfig) -> ModelConfig:
    """The configuration of the exported model; the same one where nothing is left out."""
    parts = model_parts(config)
    left = {slot: Absent() for slot, part in parts.items() if part.leaves(parts)}
    return type(config)(**{**vars(config), **left})


def exported_weights(config: ModelConfig, weights: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """The exported model's weights, given those of a trained one, on the CPU."""
    found, parts = dict(weights), model_parts(config)
    for part in parts.values():
        if part.leaves(parts):
            part.fold(found)
    return {spec.name: found[spec.name] for spec in param_specs(exported(config))}
