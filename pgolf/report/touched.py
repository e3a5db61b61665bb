"""What each part of a model acts on, in words for logs and in figures for manifests."""

from typing import Any

from pgolf.catalog import CATALOG, name_of
from pgolf.core.model.config import ModelConfig, layer_plan, layer_shape, model_parts, param_specs
from pgolf.core.model.params import CONTROL
from pgolf.core.model.slots import LayerShape, Part

IN_BLOCKS = ("input_scale", "reach", "projected", "queries", "keys", "heads", "attended", "closed")
"""Places inside a block."""


def touched(config: ModelConfig) -> dict[str, str]:
    """Part -> what it touches, for every part of the model, as `head_gate sparse` -> `11 layers, 1,056 parameters`."""
    return {f"{slot} {kind_of(part)}": reach_of(part, config) for slot, part in model_parts(config).items()}


def kind_of(part: Part) -> str:
    """The name under which the catalog has a part."""
    cls = type(part)
    slot = next(slot for slot, names in CATALOG.items() if f"{cls.__module__}:{cls.__qualname__}" in names.values())
    return name_of(slot, cls)


def reach_of(part: Any, config: ModelConfig) -> str:
    """Layers, parameters, matrices or steps on which a part acts."""
    acts = [layer for layer in range(config.num_layers) if layer in part.layers(config.num_layers)]
    shapes = [layer_shape(config), *(layer_shape(config, layer) for layer in acts)]
    own = [sum(spec.numel for spec in part.params(shape)) for shape in shapes]
    inside = any(own[1:]) or any(overrides(part, name) for name in IN_BLOCKS)
    found = [f"{len(acts)} layers"] if inside else []
    if part is config.loop:
        found = [f"{len(layer_plan(config))} steps through {config.num_layers} layers"]
        own += [added_by_loop(config, shape) for shape in shapes[1:]]
    if part is config.precision:
        matrices = [spec for spec in param_specs(config) if len(spec.shape) == 2 and spec.role != CONTROL]
        found = [f"{len(matrices)} matrices"]
    if part is config.skips:
        found = [f"{layer_shape(config).skips} connections"]
    if sum(own) or not found:
        found.append(f"{sum(own):,} parameters" if sum(own) else "no parameters")
    return ", ".join(found)


def overrides(part: Part, name: str) -> bool:
    """Whether a part does something in a place."""
    return getattr(type(part), name) is not getattr(Part, name)


def added_by_loop(config: ModelConfig, shape: LayerShape) -> int:
    """Parameters of a layer's later passes."""
    prefix = f"blocks.{shape.layer}.pass"
    return sum(spec.numel for spec in param_specs(config) if spec.name.startswith(prefix))
