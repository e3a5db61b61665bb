"""What each part of a model acts on, each variant of the optimizers, and quantization-aware training, in words for logs
and manifests.
"""

from typing import Any

from pgolf.catalog import CATALOG, name_of
from pgolf.core.errors import ConfigError
from pgolf.core.model.config import ModelConfig, layer_plan, layer_shape, model_parts, param_specs
from pgolf.core.model.params import CONTROL, MATRIX, ParamSpec
from pgolf.core.model.parts.ternary import Ternary
from pgolf.core.model.slots import LayerShape, Part
from pgolf.core.optim.config import OptimConfig
from pgolf.core.optim.muon import Muon
from pgolf.core.optim.rates import ROLE_OF, RateByRole, role_of
from pgolf.core.train.config import TrainConfig
from pgolf.core.train.qat import StraightThrough

IN_BLOCKS = ("scaled", "reach", "projected", "queries", "keys", "heads", "attended", "closed")
"""Places inside a block."""


def touched(config: ModelConfig, optim: OptimConfig | None = None, train: TrainConfig | None = None) -> dict[str, str]:
    """Part -> what it touches, for every part of the model, as `head_gate sparse` -> `11 layers, 1,056 parameters`;
    with `optim`, also the variants of the optimizers that are on, with `train` what it lets act as it will be exported.
    ConfigError when one of these touches nothing.
    """
    found = {f"{slot} {kind_of(part)}": reach_of(part, config) for slot, part in model_parts(config).items()}
    found |= touched_in_steps(config, optim) if optim else {}
    return found | (touched_by_qat(config, train.qat) if train else {})


def touched_by_qat(config: ModelConfig, qat: Any) -> dict[str, str]:
    """Quantization-aware training -> the matrices it is about; ConfigError for none."""
    if not isinstance(qat, StraightThrough):
        return {}
    order = [step.layer for step in layer_plan(config)]
    blocks = [spec for spec in param_specs(config) if spec.name.startswith("blocks.") and len(spec.shape) == 2]
    passes = {spec: order.count(int(spec.name.split(".")[1])) for spec in blocks}
    count = sum(qat.chosen(spec, times) for spec, times in passes.items())
    name = f"qat {kind_of(qat)}"
    if not count:
        what = f"{name} touches nothing in this model: no layer runs more than once"
        raise ConfigError(what, "train.qat", "set model.loop, or another train.qat")
    return {name: counted(count, "qat")}


def touched_in_steps(config: ModelConfig, optim: OptimConfig) -> dict[str, str]:
    """Variant -> the matrices or parameters it is about; ConfigError, with its key, for none."""
    matrix, rates, specs = optim.matrix, optim.lr_scale, param_specs(config)
    matrices = [spec for spec in specs if spec.group == MATRIX]
    counts: dict[str, tuple[str, int]] = {}
    if kind_of(matrix) != "muon":
        counts[f"matrix {kind_of(matrix)}"] = "matrix", len(matrices)
    if isinstance(matrix, Muon):
        if matrix.paired_heads:
            counts["paired_heads"] = "matrix.paired_heads", sum(matrix.pairs(spec.name) for spec in matrices)
        if matrix.iteration == "gram":
            shapes = [sorted(block_shape(matrix, spec, config)) for spec in matrices]
            counts["iteration gram"] = "matrix.iteration", sum(2 * least <= most for least, most in shapes)
        if matrix.cautious_decay:
            counts["cautious_decay"] = "matrix.cautious_decay", len(matrices)
    if isinstance(rates, RateByRole):
        for role in (*dict.fromkeys(ROLE_OF.values()), "early"):
            if getattr(rates, role) != 1:
                about = [spec for spec in specs if role == role_of(spec.name) or is_early(role, rates, spec)]
                counts[f"lr_scale {role}"] = f"lr_scale.{role}", len(about)
    for name, (key, count) in counts.items():
        if not count:
            raise ConfigError(f"{name} touches nothing in this model", f"optim.{key}")
    return {name: counted(count, key) for name, (key, count) in counts.items()}


def block_shape(matrix: Muon, spec: ParamSpec, config: ModelConfig) -> tuple[int, int]:
    """Rows and columns of what is orthogonalised at once."""
    rows, columns = spec.shape
    return rows // matrix.row_blocks(spec.name, rows, layer_shape(config).head_dim), columns


def is_early(role: str, rates: RateByRole, spec: ParamSpec) -> bool:
    """Whether the role is `early` and the parameter too."""
    return role == "early" and rates.is_early(spec.name)


def counted(count: int, key: str) -> str:
    """A number of matrices or, for rates, parameters, in words."""
    one, many = ("parameter", "parameters") if key.startswith("lr_scale") else ("matrix", "matrices")
    return f"{count} {one if count == 1 else many}"


def kind_of(part: Any) -> str:
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
    if isinstance(part, Ternary):
        matrices = [spec for spec in param_specs(config) if len(spec.shape) == 2 and spec.role != CONTROL]
        found = [counted(sum(map(part.covers, matrices)), "precision")]
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
