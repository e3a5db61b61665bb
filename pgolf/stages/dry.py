"""What quantizing would give, from weights rounded to nearest: nothing is calibrated, and no error compensated."""

import dataclasses
from pathlib import Path
from typing import Any

from pgolf.accounting import Size
from pgolf.config.run import RunConfig
from pgolf.core.errors import InputError
from pgolf.core.model.config import param_specs
from pgolf.core.quant.base import quantize_model
from pgolf.core.quant.curvature import Calibration
from pgolf.core.quant.qtensor import QuantizedModel
from pgolf.core.quant.roles import ByRole, compensating, known_by_role
from pgolf.core.quant.steps import Planned, grid_codes
from pgolf.stages.calibrate import read_calibration
from pgolf.stages.model_files import ModelFile, artifact_info
from pgolf.stages.packing import encoded, script_bytes


def rounded_to_nearest(model: ModelFile, quantizer: Any, calibration: Path) -> QuantizedModel:
    """The model on the quantizer's grid. GPTQ's codes, and those along a trellis, have the same entropy within a
    percent. Steps by curvature are taken from a calibration if one is kept.
    """
    config = model.config.model
    if not any(one.planned for one in compensating(quantizer)):
        return quantize_model(config, model.weights, quantizer, {})
    try:
        found = read_calibration(calibration)[0]
    except InputError:
        found = Calibration()
    specs, made = param_specs(config), QuantizedModel(config)
    if isinstance(quantizer, ByRole):
        known = known_by_role(quantizer, specs, model.weights, found)
    else:
        known = quantizer.plan(specs, model.weights, found)
    for spec in specs:
        weight, plan = model.weights[spec.name], known.get(spec.name)
        if isinstance(plan, Planned):
            made.tensors[spec.name] = grid_codes(weight, dataclasses.replace(plan, factor=None), 1)
        else:
            made.tensors[spec.name] = quantizer.quantize(spec, weight, None)
    return made


def predict_quantized(model: ModelFile, config: RunConfig, calibration: Path) -> Size:
    """Bytes of artifact and script, by compressing what rounding to nearest gives."""
    info = artifact_info(config, model.tokenizer_sha256)
    blob, _ = encoded(rounded_to_nearest(model.exported(), config.quant, calibration), config.compress, info)
    return Size(len(blob), script_bytes(config, info), config.package.cap_bytes)
