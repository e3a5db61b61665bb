"""Every codec on the codes of quantized models, beside the entropies of those codes.

Files are quantized models of pgolf (`pgolf quantize`, `pgolf import` of an int8 archive). Each codec has all matrices
of a role as one section, as artifacts have them; byte codecs also have every matrix transposed, and the smaller result
counts. lrzip (-z -T, level 9) and zpaq (-m5) are rivals where they are installed. The entropies are of the codes of a
role with one table, and with one for every matrix (tables not counted). --check decodes and compares.
"""

import math
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import parser, show
from pgolf.catalog import load
from pgolf.config.load import resolve
from pgolf.core.model.config import param_specs
from pgolf.core.quant.base import quantize_model
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.stages.model_files import load_model

RIVALS = {"lrzip": ["-z", "-T", "-L", "9", "-q", "-o"], "zpaq": ["a"]}


def entropy_bytes(codes: np.ndarray) -> float:
    """Of one table, order 0."""
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def program_bytes(name: str, raw: bytes) -> int:
    """What an installed program makes of the bytes."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "raw", Path(folder) / ("out.lrz" if name == "lrzip" else "out.zpaq")
        source.write_bytes(raw)
        words = [*RIVALS["lrzip"], str(out), str(source)] if name == "lrzip" else ["a", str(out), str(source), "-m5"]
        subprocess.run([name, *words], check=True, capture_output=True)
        return out.stat().st_size


def sizes(matrices: list[np.ndarray], names: list[str], check: bool) -> dict[str, dict[str, float]]:
    """Name -> bytes and seconds to encode and decode."""
    plain = b"".join(matrix.tobytes() for matrix in matrices)
    turned = b"".join(np.ascontiguousarray(matrix.T).tobytes() for matrix in matrices)
    found: dict[str, dict[str, float]] = {}
    for name in names:
        start = time.perf_counter()
        if name in RIVALS:
            found[name] = {"bytes": min(program_bytes(name, raw) for raw in (plain, turned))}
            continue
        codec = load("Codec", name)()
        coded = codec.encode(plain, [matrix.shape for matrix in matrices])
        middle = time.perf_counter()
        back = codec.decode(coded, len(plain))
        found[name] = {"encode_s": middle - start, "decode_s": time.perf_counter() - middle}
        if check and back != plain:
            raise SystemExit(f"{name} does not give back what it was given")
        found[name]["bytes"] = len(coded) if name == "rans" else min(len(coded), len(codec.encode(turned)))
    return found


def gaussian_model(preset: str) -> QuantizedModel:
    """A preset's model with weights of its own spread, rounded as its quantizer does where there is no Hessian."""
    config = resolve(preset).config
    draw = torch.Generator().manual_seed(0)
    weights = {spec.name: torch.randn(spec.shape, generator=draw) * 0.05 for spec in param_specs(config.model)}
    return quantize_model(config.model, weights, config.quant, {})


def measure(name: str, model: QuantizedModel, names: list[str], check: bool) -> list[dict[str, Any]]:
    """One row per role of a model, and one for all."""
    roles: dict[str, list[np.ndarray]] = {}
    for spec in param_specs(model.config):
        tensor = model.tensors[spec.name]
        if isinstance(tensor, QTensor):
            roles.setdefault(spec.role, []).append(tensor.codes.numpy())
    rows = []
    for role, matrices in roles.items():
        joined = np.concatenate([matrix.ravel() for matrix in matrices])
        row = {"file": name, "role": role, "codes": joined.size, "entropy": entropy_bytes(joined)}
        row |= {"entropy_by_matrix": sum(map(entropy_bytes, matrices))}
        found = sizes(matrices, names, check)
        row |= {codec: figures["bytes"] for codec, figures in found.items()}
        row |= {key: round(found["rans"][key], 2) for key in ("encode_s", "decode_s") if "rans" in found}
        rows.append(row)
    total = {key: sum(row[key] for row in rows) for key in rows[0] if key not in ("file", "role")}
    return [*rows, {"file": name, "role": "all", **total}]


def main() -> None:
    """Encode and compare."""
    arguments = parser(__doc__)
    arguments.add_argument("files", nargs="*", metavar="QUANTIZED")
    arguments.add_argument("--preset", default="leader", help="whose shapes are taken if there is no file")
    arguments.add_argument("--codecs", nargs="+", default=["rans", "brotli", "zstd", "lzma", "zlib"])
    arguments.add_argument("--check", action="store_true")
    options = arguments.parse_args()
    present = [name for name in RIVALS if shutil.which(name)]
    names = [*options.codecs, *present]
    result = []
    models = {Path(path).name: load_model(Path(path)).quantized for path in options.files}
    for file, model in (models or {f"gaussian {options.preset}": gaussian_model(options.preset)}).items():
        if model is None:
            raise SystemExit(f"{file} is no quantized model")
        for row in measure(file, model, names, options.check):
            best = min((row[name] for name in names if name != "rans"), default=math.nan)
            if "rans" in row:
                row["rans_over_entropy"] = round(row["rans"] / max(row["entropy"], 1), 4)
                row["rans_over_best_rival"] = round(row["rans"] / best, 4)
            result.append({key: round(value) if key.startswith("entropy") else value for key, value in row.items()})
    missing = [name for name in RIVALS if name not in present]
    remarks = [f"not installed, so not compared: {', '.join(missing)}"] if missing else []
    show("codecs", options, result, remarks)


if __name__ == "__main__":
    main()
