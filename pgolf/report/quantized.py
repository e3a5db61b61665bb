"""What quantization did to each tensor: bits, errors as the model feels them, and their share of the loss."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.core.codecs.base import Codec
from pgolf.core.errors import ConfigError, SetupError
from pgolf.core.files import make_dir, write_bytes
from pgolf.core.model.config import param_specs
from pgolf.core.quant.corrected import CorrectedTensor
from pgolf.core.quant.curvature import Calibration
from pgolf.core.quant.forms import GROUPED, Float8Tensor
from pgolf.core.quant.grid import StepTensor, TrellisTensor
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.core.quant.steps import curvature_of

SCHEMES: dict[type[QTensor], str] = {
    QTensor: "rows",
    StepTensor: "steps",
    TrellisTensor: "trellis",
    Float8Tensor: "float8",
    **{form: f"groups of {size}" for size, form in GROUPED.items()},
}
"""Forms of codes in a word: a scale per row; steps by row and column; the same along a trellis; floats of eight bits;
two or three values to a group.
"""


def scheme(tensor: QTensor) -> str:
    """The form of a tensor's codes in words."""
    if isinstance(tensor, CorrectedTensor):
        return f"{scheme(tensor.base)} with rank {tensor.factors.b_codes.size(0)}"
    return SCHEMES[type(tensor)]


def code_entropy(codes: Tensor) -> float:
    """Order-0 entropy in bits per code."""
    counts = torch.bincount((codes.flatten().int() + 128), minlength=256).double()
    share = counts[counts > 0] / counts.sum()
    return float(-(share * share.log2()).sum())


def felt(values_RC: Tensor, hessian_CC: Tensor) -> Tensor:
    """v H v^T of every row, (R,)."""
    return ((values_RC @ hessian_CC) * values_RC).sum(1)


def tensor_report(
    model: QuantizedModel, weights: Mapping[str, Tensor], found: Calibration | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Per quantized tensor: shape, role, scheme, bits, entropy of the codes in bits per weight, relative squared error;
    with a calibration also the relative error of what the tensor makes of its inputs, and, where that has gradients,
    the share of the loss. And warnings.
    """
    rows, warnings, losses = [], [], dict[str, float]()
    for spec in param_specs(model.config):
        tensor = model.tensors[spec.name]
        if not isinstance(tensor, QTensor):
            continue
        weight = weights[spec.name].float()
        error = weight - tensor.dequantize()
        row: dict[str, Any] = {
            "name": spec.name,
            "shape": list(spec.shape),
            "role": spec.role,
            "scheme": scheme(tensor),
            "bits": tensor.bits,
            "entropy_bits": round(code_entropy(tensor.codes), 4),
            "relative_error": float(error.square().sum() / weight.square().sum().clamp_min(1e-30)),
        }
        if found and spec.name in found.inputs:
            hessian = found.inputs[spec.name]
            row["output_error"] = float(felt(error, hessian).sum() / felt(weight, hessian).sum().clamp_min(1e-30))
        if found and (known := curvature_of(spec.name, found)):
            losses[spec.name] = 0.5 * float(felt(error, known[0]) @ known[1])
        rows.append(row)
        if tensor.warning:
            warnings.append(f"{spec.name}: no usable Hessian, {tensor.warning}")
    total = sum(losses.values())
    for row in rows if total > 0 else []:
        row["loss_share"] = losses.get(row["name"], 0.0) / total
    return rows, warnings


def coded_bits(model: QuantizedModel, codec: Codec) -> dict[str, float]:
    """Bits per weight of every quantized tensor's codes, compressed on their own."""
    found = {}
    for spec in param_specs(model.config):
        tensor = model.tensors[spec.name]
        if isinstance(tensor, QTensor):
            body = codec.encode(tensor.codes.numpy().tobytes(), [spec.shape])
            found[spec.name] = 8 * len(body) / spec.numel
    return found


def plot_errors(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Draw what every tensor's codes take against what its errors cost, into a .png or .svg. SetupError without
    matplotlib, ConfigError for other endings.
    """
    if out.suffix.lower() not in (".png", ".svg"):
        raise ConfigError(f"{out} is neither .png nor .svg", "--plot")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        fix = "pip install 'pgolf[plot]', or leave out --plot"
        raise SetupError("drawing needs matplotlib, which is not installed", "--plot", fix) from None
    cost = next(key for key in ("loss_share", "output_error", "relative_error") if all(key in row for row in rows))
    names = {"loss_share": "share of the loss", "output_error": "relative error of the output"}
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis: Any = figure.subplots()
    for role in dict.fromkeys(row["role"] for row in rows):
        own = [row for row in rows if row["role"] == role]
        axis.scatter([row["coded_bytes"] for row in own], [row[cost] for row in own], label=role, s=24)
    for row in sorted(rows, key=lambda row: -float(row[cost]))[:6]:
        place = (row["coded_bytes"], row[cost])
        axis.annotate(row["name"], place, fontsize=7, xytext=(4, 3), textcoords="offset points")
    axis.set(xlabel="bytes of the codes", ylabel=names.get(cost, "relative squared error"), xscale="log", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format=out.suffix.lower().lstrip("."), dpi=150)
    make_dir(out.parent)
    write_bytes(out, content.getvalue())
