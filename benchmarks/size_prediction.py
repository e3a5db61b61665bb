"""Predicted against actual artifact bytes, for Gaussian weights of several presets, quantizers and codecs.

Every matrix is drawn with rows of standard deviation 1, which is what the prediction assumes: it knows nothing of the
structure of trained weights. --sigma draws smaller ones; the baseline's quantizer then meets its scale floor.
"""

import argparse
import itertools

import torch

from benchmarks.report import parser, show
from pgolf.config.load import resolve
from pgolf.config.run import RunConfig
from pgolf.core.artifact import encode_artifact
from pgolf.core.model.config import param_specs
from pgolf.core.quant.base import quantize_model
from pgolf.sizing import predict
from pgolf.stages.model_files import artifact_info

QUANTIZERS = {
    "row_quantile int8": ["quant.method=row_quantile", "quant.bits=8"],
    "sdclip int6": ["quant.method=sdclip", "quant.bits=6"],
    "sdclip int5 k=10": ["quant.method=sdclip", "quant.bits=5", "quant.k=10"],
}
SMALLER = {"baseline_sp1024": ["model.model_dim=256", "model.num_layers=4"]}
"""Sizes that keep a preset's run short; the others are taken as they are."""
CODECS = {"zlib": ["compress.level=9"], "lzma": [], "brotli": [], "zstd": ["compress.level=22"]}
"""Codecs with the levels that the prediction is made for; a preset may bring another."""


def gaussian_weights(config: RunConfig, seed: int, sigma: float) -> dict[str, torch.Tensor]:
    """A state dict of normal deviates."""
    generator = torch.Generator().manual_seed(seed)
    return {spec.name: sigma * torch.randn(spec.shape, generator=generator) for spec in param_specs(config.model)}


def actual_bytes(config: RunConfig, seed: int, sigma: float) -> int:
    """Bytes of the artifact that quantize and compress would write for such weights."""
    model = quantize_model(config.model, gaussian_weights(config, seed, sigma), config.quant, {})
    return len(encode_artifact(model, config.compress, artifact_info(config, "0" * 64)))


def measure(preset: str, quantizer: str, codec: str, options: argparse.Namespace) -> dict[str, object]:
    """One cell."""
    method = [f"compress.method={codec}", *CODECS[codec]]
    config = resolve(preset, [*SMALLER.get(preset, []), *QUANTIZERS[quantizer], *method]).config
    rows, size, half_width = predict(config)
    actual = actual_bytes(config, options.seed, options.sigma)
    return {
        "preset": preset,
        "quantizer": quantizer,
        "codec": codec,
        "parameters": sum(row.spec.numel for row in rows),
        "predicted_bytes": size.artifact_bytes,
        "actual_bytes": actual,
        "predicted_over_actual": round(size.artifact_bytes / actual, 4),
        "within_stated_interval": abs(actual - size.artifact_bytes) <= half_width * size.artifact_bytes,
    }


def main() -> None:
    """Every preset with every quantizer and codec."""
    arguments = parser(__doc__)
    arguments.add_argument("--presets", nargs="+", default=["baseline_sp1024", "demo"])
    arguments.add_argument("--quantizers", nargs="+", default=list(QUANTIZERS), choices=list(QUANTIZERS))
    arguments.add_argument("--codecs", nargs="+", default=list(CODECS), choices=list(CODECS))
    arguments.add_argument("--sigma", type=float, default=1.0, help="standard deviation of the weights")
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    cells = itertools.product(options.presets, options.quantizers, options.codecs)
    rows = [measure(preset, quantizer, codec, options) for preset, quantizer, codec in cells]
    inside = sum(bool(row["within_stated_interval"]) for row in rows)
    show("size_prediction", options, rows, [f"{inside} of {len(rows)} lie in the interval that pgolf size states"])


if __name__ == "__main__":
    main()
