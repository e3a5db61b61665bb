"""What quantizing would give, without quantizing: errors are pushed on once, not column by column."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.accounting import Size
from pgolf.config.run import RunConfig
from pgolf.core.model.config import param_specs
from pgolf.core.model.params import ParamSpec
from pgolf.core.quant.curvature import Calibration
from pgolf.core.quant.gptq import Gptq, factorise
from pgolf.core.quant.gptq_lqer import Lqer
from pgolf.core.quant.grid import StepTensor, TrellisTensor, step_sizes
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.core.quant.roles import ByRole, compensating, known_by_role
from pgolf.core.quant.steps import Planned
from pgolf.dataset import Dataset
from pgolf.fast_trellis import fast_viterbi
from pgolf.report.console import Console
from pgolf.stages.calibrate import Depth, kept_calibration
from pgolf.stages.coding import finished, naming
from pgolf.stages.model_files import ModelFile, artifact_info, with_tokenizer
from pgolf.stages.packing import encoded, script_bytes

Coder = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Weights (R,C) -> their codes and the values of those."""


def pushed_once(
    weight_RC: Tensor,
    code: Coder,
    factor: tuple[Tensor, Tensor, Tensor] | None,
    coupling_RR: Tensor | None = None,
) -> Tensor:
    """int8 codes (R,C) as wide as compensation makes them: errors of rounding are pushed onto later columns, and onto
    later rows where those are coupled, all at once, and what comes of it is rounded.
    """
    if factor is None:
        return code(weight_RC)[0].to(torch.int8)
    upper, order, dead = factor
    weight_RC = weight_RC.where(~dead, 0.0)
    errors, work = weight_RC - code(weight_RC)[1], weight_RC.clone()
    work[:, order] -= errors[:, order] @ (upper / upper.diagonal()[:, None]).triu(1)
    return code(work if coupling_RR is None else work + coupling_RR @ errors)[0].to(torch.int8)


def nearest(steps: Tensor, limit: int) -> Coder:
    """Rounding to nearest."""

    def code(weight_RC: Tensor) -> tuple[Tensor, Tensor]:
        codes = (weight_RC / steps).round().clamp(-limit, limit)
        return codes, codes * steps

    return code


def along_trellis(half_RC: Tensor, metric_R: Tensor, states: int) -> Coder:
    """Rounding along a trellis, one column after the other in one search."""
    halves, metric = half_RC.T.flatten(), (metric_R[:, None] * half_RC.square()).T.flatten()

    def code(weight_RC: Tensor) -> tuple[Tensor, Tensor]:
        codes, values = fast_viterbi(weight_RC.T.flatten(), halves, metric, states, 127)
        return codes.view(half_RC.T.shape).T.contiguous(), (values * halves).view(half_RC.T.shape).T

    return code


def planned_codes(weight_RC: Tensor, plan: Planned, quantizer: Gptq) -> StepTensor:
    """Codes on the logarithmic grid."""
    rows, columns = plan.grid()
    steps = step_sizes(rows, columns)
    if quantizer.rounding != "trellis":
        return StepTensor(pushed_once(weight_RC, nearest(steps, 127), plan.factor), rows, 8, columns=columns)
    code = along_trellis(steps / 2, plan.metric, quantizer.states)
    codes = pushed_once(weight_RC, code, plan.factor, plan.coupling)
    memory = torch.tensor([quantizer.states.bit_length() - 1], dtype=torch.uint8)
    return TrellisTensor(codes, rows, 8, columns=columns, memory=memory)


def row_codes(spec: ParamSpec, weight_RC: Tensor, hessian_CC: Tensor, quantizer: Gptq) -> QTensor:
    """Codes on SDClip's grid."""
    limit, scale = quantizer.scales(spec, weight_RC)
    factor = factorise(hessian_CC, quantizer.damping)
    codes = pushed_once(weight_RC, nearest(scale.float()[:, None], limit), factor)
    return QTensor(codes, scale, quantizer.grid(spec.role)[0])


def like_quantized(spec: ParamSpec, weight: Tensor, known: Any, quantizer: Any) -> QTensor | Tensor:
    """A parameter with codes as wide as quantizing would give."""
    one: Any = quantizer.quantizers()[spec.role] if isinstance(quantizer, ByRole) else quantizer
    if isinstance(one, Gptq) and isinstance(known, Planned):
        return planned_codes(weight, known, one)
    if type(one) in (Gptq, Lqer) and isinstance(known, Tensor):
        return row_codes(spec, weight, known, one)
    found: QTensor | Tensor = quantizer.quantize(spec, weight, None)
    return found


def known_of(model: ModelFile, quantizer: Any, found: Calibration) -> Mapping[str, Any]:
    """What a quantizer knows of each parameter."""
    specs = param_specs(model.config.model)
    if isinstance(quantizer, ByRole):
        return known_by_role(quantizer, specs, model.weights, found)
    planned = isinstance(quantizer, Gptq) and quantizer.planned
    return quantizer.plan(specs, model.weights, found) if planned else found.inputs


def kept_for(
    model: ModelFile, dataset: Dataset, quantizer: Any, calibration: Path, console: Console, strict: bool
) -> Calibration:
    """The calibration that quantizing would take; empty, with a warning where steps follow it, if there is none."""
    if not (wanting := compensating(quantizer)):
        return Calibration()
    found = kept_calibration(model, dataset, wanting[0], calibration, Depth.of(wanting), console, strict)
    if found is None and any(one.planned for one in wanting):
        console.warn(f"{calibration} has no calibration to plan by: predicted bytes may be 4 % off at 2 bits a weight")
    return found or Calibration()


def predict_quantized(
    model: ModelFile, dataset: Dataset, config: RunConfig, calibration: Path, console: Console, strict: bool
) -> Size:
    """Bytes of artifact and script, by compressing codes that are as wide as quantizing would give. With `strict` a
    calibration that is not the right one is refused; InputError says why.
    """
    model, quantizer = with_tokenizer(model, dataset).exported(), config.quant
    config.check_layers()
    known = known_of(model, quantizer, kept_for(model, dataset, quantizer, calibration, console, strict))
    made = QuantizedModel(model.config.model)
    for spec in param_specs(model.config.model):
        weight = model.weights[spec.name].float()
        with naming(spec.name, weight):
            made.tensors[spec.name] = like_quantized(spec, weight, known.get(spec.name), quantizer)
    made = finished(made, model.weights, quantizer, known)
    info = artifact_info(config, model.tokenizer_sha256)
    blob, _ = encoded(made, config.compress, info)
    return Size(len(blob), script_bytes(config, info), config.package.cap_bytes)
