"""Sizes before training: parameters per tensor and predicted artifact bytes, without torch.

Rows of weights are taken as Gaussian. An unsaturated uniform quantizer then spends a known entropy per weight (spec:
quantization 2.4); what each compressor adds was measured on Gaussian codes: `python -m benchmarks.codec_overhead`.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from pgolf.accounting import Size
from pgolf.catalog import name_of
from pgolf.config.run import RunConfig, SizeConfig
from pgolf.core.model.config import param_specs
from pgolf.core.model.export import exported
from pgolf.core.model.params import CONTROL, ParamSpec
from pgolf.core.quant.gptq import Gptq
from pgolf.core.quant.sdclip import SdClip

CODED_BITS = {
    "zlib": (
        (2.406, 2.847),
        (2.704, 3.170),
        (3.328, 3.849),
        (4.220, 4.779),
        (4.715, 5.182),
        (6.106, 6.217),
        (7.350, 7.416),
    ),
    "lzma": (
        (2.406, 2.666),
        (2.704, 2.986),
        (3.328, 3.501),
        (4.220, 4.380),
        (4.715, 4.846),
        (6.106, 6.231),
        (7.350, 7.463),
    ),
    "brotli": (
        (2.406, 2.447),
        (2.704, 2.756),
        (3.328, 3.375),
        (4.220, 4.267),
        (4.715, 4.740),
        (6.106, 6.150),
        (7.350, 7.383),
    ),
    "rans": (
        (2.406, 2.407),
        (2.704, 2.705),
        (3.328, 3.328),
        (4.220, 4.221),
        (4.715, 4.716),
        (6.106, 6.108),
        (7.350, 7.352),
    ),
    "zstd": (
        (2.406, 2.455),
        (2.704, 2.764),
        (3.328, 3.385),
        (4.220, 4.280),
        (4.715, 4.754),
        (6.106, 6.176),
        (7.350, 7.396),
    ),
}
"""(entropy, bits per weight as coded) of Gaussian codes at seven step sizes."""
KEPT_BITS = {
    "store": (16.0, 32.0),
    "zlib": (14.8, 29.5),
    "lzma": (14.3, 29.5),
    "brotli": (14.2, 29.5),
    "rans": (13.5, 26.6),
    "zstd": (14.7, 29.5),
}
"""Bits per value of Gaussian float16 and float32 tensors as coded."""
SCALE_BYTES = 1.2
"""Bytes of a row's or group's float16 scale as coded, where rows' deviations differ by some 5 %."""
CODE_BYTES_GUESS, RANS_BYTES = 15_000, 4_400
"""Typical size of the packed script, and what rans adds to it; `pgolf bundle` gives the exact one."""
SMALL_MODEL_BYTES = 15_000
"""What trained weights may differ by, however small the model: it widens the interval of small artifacts."""
FINE = 0.02
"""Steps, in standard deviations, below which entropy is that of the density to four decimals."""
TENSOR_OVERHEAD_BYTES = 8
FIXED_OVERHEAD_BYTES = 900


@dataclass(frozen=True)
class Prediction:
    """One parameter: what it is and what it is expected to take in the artifact."""

    spec: ParamSpec
    bits_per_weight: float
    bytes: float


def gaussian_entropy(step: float) -> float:
    """Entropy in bits of round(x / step) for a standard normal x: of fine steps that of x less log2(step)."""
    if step < FINE:
        return 0.5 * math.log2(2 * math.pi * math.e) - math.log2(step)
    cdf, total, index = NormalDist().cdf, 0.0, 0
    while True:
        share = cdf((index + 0.5) * step) - cdf((index - 0.5) * step)
        if share < 1e-12:
            return total
        total -= share * math.log2(share) * (1 if index == 0 else 2)
        index += 1


def coded_bits(entropy: float, codec: str) -> float:
    """Bits per weight after a compressor, interpolated between the measured points; the entropy itself, of which a byte
    holds at most 8, for one that was not measured.
    """
    if codec == "store":
        return 8.0
    if codec not in CODED_BITS:
        return min(entropy, 8.0)
    points = CODED_BITS[codec]
    if entropy <= points[0][0]:
        return entropy * points[0][1] / points[0][0]
    for (low, low_bits), (high, high_bits) in zip(points, points[1:]):
        if entropy <= high:
            return low_bits + (entropy - low) / (high - low) * (high_bits - low_bits)
    return min(entropy + points[-1][1] - points[-1][0], 8.1)


def predict_tensor(spec: ParamSpec, config: RunConfig) -> Prediction:
    """Expected bits per weight and bytes of one parameter, from quantizer and codec."""
    codec, step = name_of("Codec", type(config.compress)), config.quant.step_over_sigma(spec)
    if not step:
        return kept(spec, codec, control_dtype(config.quant))
    bits = coded_bits(gaussian_entropy(step), codec)
    scale = SCALE_BYTES if codec in CODED_BITS else 2.0
    count = scale_count(spec, config.quant)
    return Prediction(spec, bits, spec.numel * bits / 8 + scale * count + TENSOR_OVERHEAD_BYTES)


def scale_count(spec: ParamSpec, quantizer: Any) -> int:
    """How many scales a coded parameter has: one for each row, or for each of its groups."""
    rows, columns = spec.shape
    own = quantizer.quantizers()[spec.role] if hasattr(quantizer, "quantizers") else quantizer
    return int(rows * -(-columns // getattr(own, "group", columns)))


def control_dtype(quantizer: Any) -> str:
    """What a quantizer stores control tensors as."""
    return str(getattr(getattr(quantizer, "control", quantizer), "control_dtype", "float32"))


def kept(spec: ParamSpec, codec: str, control: str) -> Prediction:
    """A tensor kept as float32 (control, unless that is float16) or float16; little of it compresses."""
    half, single = KEPT_BITS.get(codec, KEPT_BITS["store"])
    bits = single if spec.role == CONTROL and control == "float32" else half
    return Prediction(spec, bits, spec.numel * bits / 8 + TENSOR_OVERHEAD_BYTES)


def predict(config: RunConfig) -> tuple[list[Prediction], Size, float]:
    """Every tensor that is exported, the predicted size, and the relative half-width of the interval around the
    artifact's bytes.
    """
    rows = [predict_tensor(spec, config) for spec in param_specs(exported(config.model))]
    return rows, Size(whole(rows), code_bytes(config), config.package.cap_bytes), half_width(config, whole(rows))


def code_bytes(config: RunConfig) -> int:
    """What the script is expected to take."""
    return CODE_BYTES_GUESS + (RANS_BYTES if name_of("Codec", type(config.compress)) == "rans" else 0)


def parameters(config: RunConfig) -> int:
    """Values that are trained, those of parts included that are not exported."""
    return sum(spec.numel for spec in param_specs(config.model))


def whole(rows: list[Prediction]) -> int:
    """Bytes of an artifact of these tensors."""
    return round(sum(row.bytes for row in rows)) + FIXED_OVERHEAD_BYTES


def half_width(config: RunConfig, artifact_bytes: int) -> float:
    """Relative half-width of the interval around predicted bytes: 2 % where steps follow the rows' deviations, else
    6 %, more for small models.
    """
    return (0.019 if follows_rows(config.quant) else 0.059) + SMALL_MODEL_BYTES / artifact_bytes


def follows_rows(quantizer: Any) -> bool:
    """Whether every row's step is a share of its deviation."""
    return isinstance(quantizer, SdClip) and not (isinstance(quantizer, Gptq) and quantizer.planned)


def as_recorded(config: RunConfig) -> dict[str, Any]:
    """The size by the bits per weight that the preset states of its record, which had another script and may have had
    another quantizer and codec; empty where it states none.
    """
    if config.size == SizeConfig():
        return {}
    rows = []
    for spec in param_specs(exported(config.model)):
        bits = float(getattr(config.size, f"{spec.role}_bits"))
        rows.append(Prediction(spec, bits, spec.numel * bits / 8) if bits else predict_tensor(spec, config))
    size = Size(whole(rows), config.size.code_bytes or code_bytes(config), config.package.cap_bytes)
    return size.document() | interval(size.artifact_bytes, half_width(config, size.artifact_bytes))


def interval(artifact_bytes: int, width: float) -> dict[str, int]:
    """Least and most bytes that the artifact is expected to have."""
    return {
        "artifact_bytes_low": round(artifact_bytes * (1 - width)),
        "artifact_bytes_high": round(artifact_bytes * (1 + width)),
    }


def size_document(config: RunConfig, preset: str) -> dict[str, Any]:
    """The JSON document of `pgolf size PRESET`."""
    rows, size, width = predict(config)
    return {
        "schema": "pgolf.size/1",
        "preset": preset,
        "parameters": sum(row.spec.numel for row in rows),
        "predicted": True,
        **size.document(),
        **interval(size.artifact_bytes, width),
        "as_recorded": as_recorded(config),
        "tensors": [
            {
                "name": row.spec.name,
                "shape": list(row.spec.shape),
                "parameters": row.spec.numel,
                "role": row.spec.role,
                "bits_per_weight": round(row.bits_per_weight, 3),
                "bytes": round(row.bytes),
            }
            for row in rows
        ],
    }
