"""quantize: a checkpoint in, integer codes out. Hessians are collected once and kept in a file."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.catalog import name_of
from pgolf.config.load import Resolved
from pgolf.config.tree import to_values
from pgolf.core.dist import pick_device
from pgolf.core.errors import InputError
from pgolf.core.model.config import param_specs
from pgolf.core.quant.base import Quantizer, check_finite, quantize_model
from pgolf.core.quant.gptq import Gptq
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.core.shards import TokenStream
from pgolf.core.tensorfile import load_tensors, save_tensors
from pgolf.dataset import Dataset
from pgolf.report.console import Console
from pgolf.stages.manifest import fresh_entry, guarded, provenance, record, stage_key
from pgolf.stages.model_files import ModelFile, check_tokenizer, load_model, save_quantized

HESSIANS_SCHEMA = "pgolf.hessians/1"


def calibration_stream(dataset: Dataset, quantizer: Gptq) -> TokenStream:
    """The training tokens. InputError when there are fewer than calibration takes."""
    shards = dataset.split("train")
    wanted = quantizer.calibration_seqs * quantizer.calibration_seq_len
    if (total := sum(map(len, shards))) < wanted:
        raise InputError(
            f"calibration wants {wanted:,} training tokens, there are {total:,}",
            str(dataset.folder),
            "lower quant.calibration_seqs",
        )
    return TokenStream(shards)


def hessians(
    model: ModelFile, dataset: Dataset, quantizer: Gptq, cache: Path, device: torch.device, console: Console
) -> tuple[dict[str, Tensor], bool]:
    """H = X^T X per matrix and whether they came from the cache file, which is only used for the very same checkpoint,
    training data and calibration settings.
    """
    wanted = {
        "schema": HESSIANS_SCHEMA,
        "checkpoint_sha256": model.sha256,
        "data_sha256": dataset.fingerprint("train"),
        "calibration_seqs": quantizer.calibration_seqs,
        "calibration_seq_len": quantizer.calibration_seq_len,
    }
    if cache.is_file():
        try:
            tensors, meta, _ = load_tensors(cache, HESSIANS_SCHEMA)
        except InputError as error:
            console.warn(f"cached Hessians are not usable and are collected anew: {error}")
        else:
            if all(meta.get(key) == value for key, value in wanted.items()):
                return tensors, True
    batches = math.ceil(quantizer.calibration_seqs / quantizer.calibration_batch)
    with console.progress() as line:
        found = quantizer.hessians(
            model.build(device),
            calibration_stream(dataset, quantizer),
            lambda done: line.count("Hessians", done, batches),
        )
    save_tensors(cache, found, wanted)
    return found, False


def tensor_report(
    model: QuantizedModel, weights: dict[str, Tensor], hessian: dict[str, Tensor], quantizer: Quantizer
) -> tuple[list[dict[str, Any]], list[str]]:
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
            warnings.append(f"{spec.name}: {tensor.warning}")
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
    cache: Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Quantize a checkpoint into `out`; returns the manifest entry with "fresh" set when nothing had to be done."""
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
        found: dict[str, Tensor] = {}
        cached = False
        seconds = {"load": time.monotonic() - start}
        if isinstance(quantizer, Gptq):
            found, cached = hessians(
                model, dataset, quantizer, cache or out.parent / "hessians.safetensors", device, console
            )
            seconds["hessians"] = time.monotonic() - start - seconds["load"]
        result = quantize_model(model.config.model, model.weights, quantizer, found)
        rows, warnings = tensor_report(result, model.weights, found, quantizer)
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
