"""Models from elsewhere: .pt and .ptz (zlib over a torch file) through torch's restricted reader, and .safetensors.

The architecture is inferred from tensor names and shapes; --preset and --set override what shapes cannot tell.
"""

import io
import re
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.config.load import Resolved, resolve
from pgolf.core.errors import InputError, SetupError
from pgolf.core.files import read_bytes
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.params import CONTROL
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.stages.model_files import check_weights, save_checkpoint, save_quantized

MAX_FOREIGN = 2 << 30
PREFIXES = ("_orig_mod.", "module.")


def torch_is_safe() -> bool:
    """Whether this torch's weights_only reader has no known hole (CVE-2026-24747 was closed in 2.10)."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return (major, minor) >= (2, 10)


def read_torch(blob: bytes, where: str) -> Any:
    """A torch file's objects; only tensors and plain containers are ever made. SetupError on a torch before 2.10."""
    if not torch_is_safe():
        raise SetupError(
            f"torch {torch.__version__} cannot read foreign .pt files safely",
            where,
            "import with torch 2.10 or later, or convert the file to .safetensors",
        )
    try:
        return torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else "unreadable"
        raise InputError(
            f"torch's restricted reader refuses the file: {reason}", where, "only plain tensors can be imported"
        ) from None


def inflate(blob: bytes, where: str) -> bytes:
    """Contents of a zlib stream, at most 2 GiB."""
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(blob, MAX_FOREIGN)
    except zlib.error as error:
        raise InputError(f"not a zlib stream: {error}", where, "a .ptz file is zlib over a torch file") from None
    if not stream.eof:
        raise InputError("the zlib stream is cut off, or holds more than 2 GiB", where)
    return raw


def read_foreign(path: Path) -> dict[str, Any]:
    """The objects of a foreign file, by name."""
    blob = read_bytes(path, MAX_FOREIGN)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return dict(load(blob))
        except SafetensorError as error:
            raise InputError(f"not a valid safetensors file: {error}", str(path)) from None
    if path.suffix not in (".pt", ".pth", ".ptz"):
        raise InputError(
            f"{path.suffix or 'a file without suffix'} cannot be imported", str(path), "give .pt, .ptz or .safetensors"
        )
    found = read_torch(inflate(blob, str(path)) if path.suffix == ".ptz" else blob, str(path))
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        found = found["model"]
    if not isinstance(found, dict):
        raise InputError("the file does not hold a state dict", str(path))
    return found


def canonical(name: str) -> str:
    """A tensor name without wrappers' prefixes."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def infer_model(shapes: dict[str, tuple[int, ...]], where: str) -> dict[str, Any]:
    """Model section read off names and shapes. InputError when a tensor belongs to no architecture pgolf has."""
    layers = {int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name))}
    try:
        vocab, dim = shapes["tok_emb.weight"]
        heads = shapes["blocks.0.attn.q_gain"][0]
        kv_rows = shapes["blocks.0.attn.c_k.weight"][0]
        hidden = shapes["blocks.0.mlp.fc.weight"][0]
        smallest = min(vocab, dim, heads, kv_rows, hidden, len(layers))
    except (KeyError, ValueError, IndexError):
        smallest = 0
    if smallest < 1:
        raise InputError(
            "the tensors are not those of a model pgolf knows",
            where,
            f"found for example {', '.join(sorted(shapes)[:3])}",
        )
    values: dict[str, Any] = {
        "vocab_size": vocab,
        "num_layers": len(layers),
        "model_dim": dim,
        "num_heads": heads,
        "num_kv_heads": kv_rows * heads // dim,
        "mlp": {"kind": "relu2", "mult": hidden / dim},
        "embed": {"kind": "untied" if "lm_head.weight" in shapes else "tied"},
    }
    return values


def check_known(config: ModelConfig, names: set[str], where: str) -> None:
    """InputError naming a tensor that the architecture does not have."""
    if unknown := sorted(names - {spec.name for spec in param_specs(config)}):
        raise InputError(
            f"{len(unknown)} tensors belong to an architecture pgolf does not have yet, the first is {unknown[0]}",
            where,
            "only the naive baseline's family can be imported so far",
        )


def import_weights(
    found: dict[str, Any], path: Path, preset: str, sets: list[str]
) -> tuple[dict[str, Tensor], Resolved]:
    """A float state dict and its configuration."""
    weights = {canonical(str(name)): tensor.float() for name, tensor in found.items() if isinstance(tensor, Tensor)}
    resolved = infer({name: tuple(tensor.shape) for name, tensor in weights.items()}, path, preset, sets)
    check_weights(resolved.config.model, weights, str(path))
    return weights, resolved


def infer(shapes: dict[str, tuple[int, ...]], path: Path, preset: str, sets: list[str]) -> Resolved:
    """Configuration from shapes, under a preset and --set."""
    inferred = {"model": infer_model(shapes, str(path))}
    resolved = resolve(preset=preset, sets=sets, stored=inferred, stored_name=f"shapes in {path.name}")
    check_known(resolved.config.model, set(shapes), str(path))
    return resolved


def import_int8(found: dict[str, Any], path: Path, preset: str, sets: list[str]) -> tuple[QuantizedModel, Resolved]:
    """The naive baseline's int8 archive: codes, scales and kept tensors, taken over bit for bit."""
    tables = {key: found.get(key) for key in ("quantized", "scales", "passthrough")}
    if not all(isinstance(table, dict) for table in tables.values()):
        raise InputError("the int8 archive lacks quantized, scales or passthrough", str(path))
    codes, scales, kept = (dict(table) for table in tables.values() if table is not None)
    found = {canonical(str(name)): tensor for name, tensor in (codes | kept).items()}
    everything = {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
    resolved = infer({name: tuple(tensor.shape) for name, tensor in everything.items()}, path, preset, sets)
    model = QuantizedModel(resolved.config.model)
    for spec in param_specs(resolved.config.model):
        tensor = everything.get(spec.name)
        if tensor is None:
            raise InputError(f"{spec.name} is missing", str(path))
        name = next(key for key in (*codes, *kept) if canonical(str(key)) == spec.name)
        if name in codes:
            if name not in scales or tensor.dtype != torch.int8:
                raise InputError(f"{spec.name} has no int8 codes with scales", str(path))
            model.tensors[spec.name] = QTensor(tensor.contiguous(), scales[name].half().contiguous(), 8)
        else:
            model.tensors[spec.name] = tensor.float() if spec.role == CONTROL else tensor.half()
    model.check(str(path))
    return model, resolved


def import_file(path: Path, out: Path, preset: str, sets: list[str], dry_run: bool = False) -> dict[str, Any]:
    """Bring a foreign model in as a checkpoint (floats) or a quantized model (int8); returns what was found.

    With `dry_run` everything is checked and nothing written.
    """
    found = read_foreign(path)
    kind = "quantized" if "quantized" in found else "checkpoint"
    if kind == "quantized":
        model, resolved = import_int8(found, path, preset, sets)
        save = partial(save_quantized, out, model)
    else:
        weights, resolved = import_weights(found, path, preset, sets)
        save = partial(save_checkpoint, out, weights)
    digest = "" if dry_run else save({"config": resolved.values, "step": 0, "imported_from": path.name})
    return {
        "schema": "pgolf.import/1",
        "out": str(out),
        "kind": kind,
        "sha256": digest,
        "parameters": sum(spec.numel for spec in param_specs(resolved.config.model)),
        "model": resolved.values["model"],
    }
