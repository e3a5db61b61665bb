"""Every codec on the codes of quantized models, beside the entropies of those codes.

Files are quantized models of pgolf (`pgolf quantize`, `pgolf import` of an int8 archive), or .ptz archives of int8 or
ternary codes, whatever their architecture. Each codec has all matrices of a role as one section, as artifacts have
them; byte codecs also have every matrix transposed, and the smaller result counts. lrzip (-z -T, level 9) and zpaq
(-m5) are rivals where they are installed: rows, columns, and columns with the rows sorted by similarity, their order
stored, whichever is smallest. The entropies are of the codes of a role with one table, and with one for every matrix
(tables not counted). --check decodes and compares.
"""

import io
import lzma
import shutil
import time
import zlib
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
from pgolf.layouts.arranged import Columns
from pgolf.layouts.programs import Program
from pgolf.stages.model_files import load_model

RIVALS = ("lrzip", "zpaq")


def entropy_bytes(codes: np.ndarray) -> float:
    """Of one table, order 0."""
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def program_bytes(program: Program, matrices: list[np.ndarray]) -> int:
    """What an installed program makes of matrices, by its best arrangement."""
    raw, shapes = b"".join(matrix.tobytes() for matrix in matrices), [matrix.shape for matrix in matrices]
    trials = (program, Columns(program), Columns(program, similar=True))
    return min(len(codec.encode(raw, shapes)) for codec in trials)


def sizes(matrices: list[np.ndarray], names: list[str], check: bool) -> dict[str, dict[str, float]]:
    """Name -> bytes and seconds to encode and decode."""
    plain = b"".join(matrix.tobytes() for matrix in matrices)
    turned = b"".join(np.ascontiguousarray(matrix.T).tobytes() for matrix in matrices)
    found: dict[str, dict[str, float]] = {}
    for name in names:
        start = time.perf_counter()
        if name in RIVALS:
            found[name] = {"bytes": program_bytes(load("Codec", name)(), matrices)}
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


def model_matrices(model: QuantizedModel) -> dict[str, list[np.ndarray]]:
    """Role -> codes of a quantized model."""
    roles: dict[str, list[np.ndarray]] = {}
    for spec in param_specs(model.config):
        tensor = model.tensors[spec.name]
        if isinstance(tensor, QTensor):
            roles.setdefault(spec.role, []).append(tensor.codes.numpy())
    return roles


def ternary_matrix(packed: bytes, count: int, groups: int) -> torch.Tensor:
    """int8 (groups, codes of each): one bit a code says whether it is not zero, then one for each such its sign."""
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    codes = bits[:count].astype(np.int8)
    used = int(codes.sum())
    if len(packed) != -(-count // 8) + -(-used // 8):
        raise SystemExit("a ternary matrix is not packed as expected")
    codes[codes == 1] = 2 * bits[-(-count // 8) * 8 :][:used].astype(np.int8) - 1
    return torch.from_numpy(codes).view(groups, -1)


def archive_matrices(path: Path) -> dict[str, list[np.ndarray]]:
    """Role -> codes of a .ptz archive: the int8 matrices, or the ternary ones, that a torch file behind zlib or LZMA
    holds. Roles go by names.
    """
    raw = path.read_bytes()
    content = lzma.decompress(raw) if raw.startswith(b"\xfd7zXZ") else zlib.decompress(raw)
    found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    roles: dict[str, list[np.ndarray]] = {}
    for name, entry in found.get("quantized", found).items():
        if isinstance(entry, dict) and entry.get("type") == "ternary_bitmask":
            entry = ternary_matrix(entry["packed"], int(entry["n_trits"]), len(entry["scale"]))
        if isinstance(entry, torch.Tensor) and entry.dtype == torch.int8 and entry.dim() == 2:
            role = "embed" if "emb" in name else "mlp" if "mlp" in name else "attn" if "attn" in name else "other"
            roles.setdefault(role, []).append(entry.numpy())
    return roles


def measure(name: str, roles: dict[str, list[np.ndarray]], names: list[str], check: bool) -> list[dict[str, Any]]:
    """One row per role of a model, and one for all."""
    rows = []
    for role, matrices in roles.items():
        joined = np.concatenate([matrix.ravel() for matrix in matrices])
        row: dict[str, Any] = {"file": name, "role": role, "codes": joined.size, "entropy": entropy_bytes(joined)}
        row |= {"entropy_by_matrix": sum(map(entropy_bytes, matrices))}
        found = sizes(matrices, names, check)
        row |= {codec: figures["bytes"] for codec, figures in found.items()}
        row |= {key: round(found["rans"][key], 2) for key in ("encode_s", "decode_s") if "rans" in found}
        rows.append(row)
    total = {key: sum(row[key] for row in rows) for key in rows[0] if key not in ("file", "role")}
    return [*rows, {"file": name, "role": "all", **total}]


def codes_of(path: Path) -> dict[str, list[np.ndarray]]:
    """Role -> codes of a file."""
    if path.suffix == ".ptz":
        return archive_matrices(path)
    model = load_model(path).quantized
    if model is None:
        raise SystemExit(f"{path.name} is no quantized model")
    return model_matrices(model)


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
    files = {Path(path).name: codes_of(Path(path)) for path in options.files}
    if not files:
        files = {f"gaussian {options.preset}": model_matrices(gaussian_model(options.preset))}
    for file, roles in files.items():
        for row in measure(file, roles, names, options.check):
            rivals = [row[name] for name in names if name != "rans"]
            if "rans" in row:
                row["rans_over_entropy"] = round(row["rans"] / max(row["entropy"], 1), 4)
            if "rans" in row and rivals:
                row["rans_over_best_rival"] = round(row["rans"] / min(rivals), 4)
            result.append({key: round(value) if key.startswith("entropy") else value for key, value in row.items()})
    missing = [name for name in RIVALS if name not in present]
    remarks = [f"not installed, so not compared: {', '.join(missing)}"] if missing else []
    show("codecs", options, result, remarks)


if __name__ == "__main__":
    main()
