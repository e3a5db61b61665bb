"""quantize: a checkpoint in, integer codes out. What a calibration found is kept in a file."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.catalog import name_of
from pgolf.config.load import Resolved
from pgolf.config.tree import to_values
from pgolf.core.dist import World, pick_device
from pgolf.core.errors import InputError
from pgolf.core.model.config import param_specs
from pgolf.core.quant.base import check_finite, quantize_model
from pgolf.core.quant.curvature import Calibration
from pgolf.core.quant.gptq import Gptq
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.dataset import Dataset
from pgolf.fast_trellis import fast_viterbi
from pgolf.report.console import Console
from pgolf.stages.calibrate import calibration, kept_beside
from pgolf.stages.manifest import fresh_entry, guarded, provenance, record, stage_key
from pgolf.stages.model_files import ModelFile, check_tokenizer, load_model, save_quantized


def prepared(quantizer: Gptq, model: ModelFile, found: Calibration) -> dict[str, Any]:
    """What the quantizer needs to know of each parameter, with the compiled search where it has a trellis."""
    if not quantizer.planned:
        return found.inputs
    plans = quantizer.plan(param_specs(model.config.model), model.weights, found)
    for plan in plans.values():
        plan.search = fast_viterbi
    return plans


def check_reserve(model: ModelFile, seconds: float, console: Console) -> None:
    """Warn when training and calibration together took more than the budget: it reads training tokens, so the records
    count it as training.
    """
    trained = model.meta.get("figures", {}).get("train_seconds", 0.0)
    budget_s = model.config.train.max_wallclock_seconds
    if 0 < budget_s < (both := trained + seconds):
        console.warn(
            f"training ({trained:.1f} s) and calibration ({seconds:.1f} s) took {both - budget_s:.1f} s more than "
            f"train.max_wallclock_seconds={budget_s:g}: raise train.reserve_seconds"
        )


def tensor_report(model: QuantizedModel, weights: dict[str, Tensor]) -> tuple[list[dict[str, Any]], list[str]]:
    """Per quantized tensor: shape, bits, entropy of the codes in bits per weight, relative error; and warnings."""
    rows, warnings = [], []
    for spec in param_specs(model.config):
        tensor = model.tensors[spec.name]
        if not isinstance(tensor, QTensor):
            continue
        error = weights[spec.name].float() - tensor.dequantize()
        relative = float(error.square().sum() / weights[spec.name].float().square().sum().clamp_min(1e-30))
        rows.append(
            {
                "name": spec.name,
                "shape": list(spec.shape),
                "bits": tensor.bits,
                "entropy_bits": round(code_entropy(tensor.codes), 4),
                "relative_error": relative,
            }
        )
        if tensor.warning:
            warnings.append(f"{spec.name}: no usable Hessian, {tensor.warning}")
    return rows, warnings


def code_entropy(codes: Tensor) -> float:
    """Order-0 entropy in bits per code."""
    counts = torch.bincount((codes.flatten().int() + 128), minlength=256).double()
    share = counts[counts > 0] / counts.sum()
    return float(-(share * share.log2()).sum())


def quantize(
    checkpoint: Path,
    dataset: Dataset,
    out: Path,
    resolved: Resolved,
    device_name: str,
    console: Console,
    kept: Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Quantize a checkpoint into `out`; returns the manifest entry with "fresh" set when nothing had to be done. The
    calibration is that in `kept`, which must be the right one unless forced, else one beside `out`; where it is not the
    right one, it is made anew.
    """
    start = time.monotonic()
    device = pick_device(device_name, 0)
    model = load_model(checkpoint)
    if model.kind != "checkpoint":
        raise InputError(f"a {model.kind} cannot be quantized again", str(checkpoint), "give the float checkpoint")
    check_tokenizer(model, dataset.tokenizer_sha256, dataset.vocab_size, str(dataset.folder))
    check_finite(model.weights)
    quantizer = resolved.config.quant
    section = {"quant": to_values(quantizer, "Quantizer")}
    inputs = {"checkpoint": model.sha256}
    if isinstance(quantizer, Gptq):
        inputs["data"] = dataset.fingerprint("train")
    key = stage_key("quantize", section, inputs)
    with guarded(out):
        if not force and (entry := fresh_entry(out, key)):
            return entry | {"fresh": True}
        known: dict[str, Any] = {}
        cached = False
        seconds = {"load": time.monotonic() - start}
        if isinstance(quantizer, Gptq):
            file, world = kept or kept_beside(out), World(device=device)
            found, cached = calibration(
                model,
                dataset,
                quantizer,
                file,
                quantizer.planned,
                world,
                console,
                kept is not None and not force,
            )
            seconds["hessians"] = time.monotonic() - start - seconds["load"]
            if not cached:
                check_reserve(model, seconds["hessians"], console)
            known = prepared(quantizer, model, found)
        result = quantize_model(model.config.model, model.weights, quantizer, known)
        rows, warnings = tensor_report(result, model.weights)
        for warning in warnings:
            console.warn(warning)
        meta = {
            "config": resolved.values,
            "checkpoint_sha256": model.sha256,
            "tokenizer_sha256": model.tokenizer_sha256 or dataset.tokenizer_sha256,
            "provenance": provenance(str(device)),
        }
        save_quantized(out, result, meta)
        weights = sum(math.prod(row["shape"]) for row in rows)
        figures = {
            "method": name_of("Quantizer", type(quantizer)),
            "quantized_tensors": len(rows),
            "quantized_weights": weights,
            "kept_weights": sum(spec.numel for spec in param_specs(result.config)) - weights,
            "entropy_bits": round(
                sum(row["entropy_bits"] * math.prod(row["shape"]) for row in rows) / max(weights, 1), 4
            ),
            "hessians_cached": cached,
            "warnings": warnings,
            "tensors": rows,
        }
        seconds["total"] = time.monotonic() - start
        entry = record(out, "quantize", key, resolved.values, inputs, figures, rounded(seconds), str(device))
    return entry | {"fresh": False}


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds to the millisecond."""
    return {name: round(value, 3) for name, value in seconds.items()}
