"""Models from elsewhere: .pt and .ptz (zlib over a torch file) through torch's restricted reader, and .safetensors.

The architecture is read off tensor names and shapes (foreign_names.py), then off the metadata of the file; --preset and
--set say what neither tells, and what is left is guessed and listed as such.
"""

import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pgolf.config.load import Resolved, read_preset
from pgolf.config.run import RunConfig
from pgolf.config.tree import Layer, build_config, flatten, parse_set, to_values
from pgolf.core.artifact import ARTIFACT_MAGIC
from pgolf.core.errors import ConfigError, InputError
from pgolf.core.files import check_regular, parse_json, read_bytes, read_head
from pgolf.core.model.config import param_specs
from pgolf.core.model.params import CONTROL
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.foreign_names import BLIND, Found, canonical, depth, facts, guesses, stripped, told, unbank
from pgolf.restricted import MAX_FOREIGN, read_torch
from pgolf.stages.model_files import check_weights, load_artifact, save_checkpoint, save_quantized

GUESS = "a guess"


def read_foreign(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The objects of a foreign file by name, and the options that its metadata tells, if it has any."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load

        blob = read_bytes(path, MAX_FOREIGN)
        try:
            return dict(load(blob)), metadata(blob, str(path))
        except SafetensorError as error:
            raise InputError(f"not a valid safetensors file: {error}", str(path)) from None
    if path.suffix not in (".pt", ".pth", ".ptz"):
        raise InputError(
            f"{path.suffix or 'a file without suffix'} cannot be imported", str(path), "give .pt, .ptz or .safetensors"
        )
    found = read_torch(path)
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        found = found["model"]
    if not isinstance(found, dict):
        raise InputError("the file does not hold a state dict", str(path))
    return found, {}


def metadata(blob: bytes, where: str) -> dict[str, str]:
    """The options in a valid safetensors file: its metadata's `config`, a JSON object, beside `architecture`."""
    (length,) = struct.unpack("<Q", blob[:8])
    strings = parse_json(blob[8 : 8 + length].decode(), where).get("__metadata__") or {}
    config = parse_json(strings.get("config", "{}"), f"{where}, metadata")
    if not isinstance(config, dict):
        raise InputError("the metadata's config is not a JSON object", where)
    named = {"architecture": strings["architecture"]} if "architecture" in strings else {}
    return named | {name: str(value) for name, value in config.items()}


def plain(found: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors among objects."""
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


@dataclass
class Foreign:
    """Tensors of a file, and where in them each of our parameters lies: name -> (name there, index)."""

    tensors: dict[str, Tensor]
    options: dict[str, str]
    path: Path
    places: dict[str, tuple[str, Any]]

    @classmethod
    def of(cls, tensors: dict[str, Tensor], options: dict[str, str], path: Path) -> "Foreign":
        """Take apart banks and fused maps. InputError if one does not fit the others, or a parameter is there twice."""
        places: dict[str, tuple[str, Any]] = {}
        layers = depth((canonical(name) for name in tensors), str(path))
        for name, tensor in tensors.items():
            for ours, index in unbank(name, tuple(tensor.shape), layers, str(path)):
                if ours in places:
                    raise InputError(f"{ours} is there twice, in {places[ours][0]} and in {name}", str(path))
                places[ours] = name, index
        return cls(tensors, options, path, places)

    def weights(self) -> dict[str, Tensor]:
        """Views of the tensors under our names."""
        return {ours: self.tensors[name][index] for ours, (name, index) in self.places.items()}

    def infer(self, preset: str, sets: list[str]) -> tuple[Resolved, dict[str, Any]]:
        """The configuration: guesses < preset < what the metadata tells < what shapes prove < --set; with what the
        user should know of it. InputError if it does not have exactly the tensors of the file.
        """
        where, weights = str(self.path), self.weights()
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        found = Found(shapes, frozenset(map(stripped, self.tensors)), where)
        known = facts(found)
        assumed = guesses(found, known, lineage=not preset)
        said, unread = told(self.options, found, known, assumed)
        layers = [
            Layer(GUESS, {"model": assumed}),
            *(read_preset(preset) if preset else []),
            Layer(f"metadata of {self.path.name}", {"model": said}),
            Layer(f"shapes in {self.path.name}", {"model": known}),
            *(Layer(f"--set {text}", parse_set(text), together=True) for text in sets),
        ]
        try:
            config, origins = build_config(RunConfig(), layers)
        except ConfigError as error:
            if preset or sets:
                raise
            raise InputError(f"{error.what}, in {error.where}", where, error.fix) from None
        resolved = Resolved(config, origins, preset)
        if unknown := sorted(shapes.keys() - {spec.name for spec in param_specs(config.model)}):
            raise InputError(
                f"{len(unknown)} tensors belong to an architecture pgolf does not have, the first is {unknown[0]}",
                where,
            )
        check_weights(config.model, weights, where)
        flat, loose = flatten({"model": resolved.values["model"]}), (GUESS,) if preset else (GUESS, "default")
        guessed = [f"{key}={flat[key]}" for key in flat if BLIND.fullmatch(key) and origins[key] in loose]
        return resolved, {"guessed": guessed, "unread": unread}


def import_weights(
    found: dict[str, Any], options: dict[str, str], path: Path, preset: str, sets: list[str]
) -> tuple[dict[str, Tensor], Resolved, dict[str, Any]]:
    """A float32 state dict, its configuration, and notes on that."""
    foreign = Foreign.of(plain(found), options, path)
    resolved, notes = foreign.infer(preset, sets)
    weights = foreign.weights()
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise InputError(f"{name} holds {tensor.dtype}, not floats", str(path))
    return {name: tensor.float() for name, tensor in weights.items()}, resolved, notes


def import_int8(
    found: dict[str, Any], path: Path, preset: str, sets: list[str]
) -> tuple[QuantizedModel, Resolved, dict[str, Any]]:
    """An int8 archive of the naive baseline's form: codes, scales and kept tensors, taken over bit for bit. A control
    tensor that was quantized becomes the floats it stands for.
    """
    where, tables = str(path), [found.get(key) for key in ("quantized", "scales", "passthrough")]
    if not all(isinstance(table, dict) for table in tables):
        raise InputError("the int8 archive lacks quantized, scales or passthrough", where)
    codes, scales, kept = (plain(table) for table in tables if table is not None)
    foreign = Foreign.of(codes | kept, {}, path)
    resolved, notes = foreign.infer(preset, sets)
    model, weights = QuantizedModel(resolved.config.model), foreign.weights()
    for spec in param_specs(resolved.config.model):
        (name, index), tensor = foreign.places[spec.name], weights[spec.name]
        if name in codes:
            scale = scales.get(name)
            whole = scale is not None and scale.dim() and len(scale) == len(codes[name])
            if scale is None or not whole or tensor.dim() != 2 or scale[index].shape != tensor.shape[:1]:
                raise InputError(f"{spec.name} has no int8 codes with one scale per row", where)
            quantized = QTensor(tensor.contiguous(), scale[index].half().contiguous(), 8)
            model.tensors[spec.name] = quantized.dequantize() if spec.role == CONTROL else quantized
        else:
            model.tensors[spec.name] = tensor.float() if spec.role == CONTROL else tensor.half()
    model.assure_sound(where)
    return model, resolved, notes


def unpack_artifact(path: Path, out: Path, programs: bool, dry_run: bool) -> dict[str, Any]:
    """An artifact's codes as a quantized model, running lrzip or zpaq if it needs them and `programs` allows it."""
    file = load_artifact(path, programs)
    assert file.quantized is not None
    meta = {"config": to_values(file.config), "tokenizer_sha256": file.tokenizer_sha256, "imported_from": path.name}
    return {
        "schema": "pgolf.import/1",
        "out": str(out),
        "kind": "quantized",
        "sha256": "" if dry_run else save_quantized(out, file.quantized, meta),
        "parameters": sum(weight.numel() for weight in file.weights.values()),
        "model": to_values(file.config)["model"],
        "guessed": [],
        "unread": [],
    }


def import_file(
    path: Path, out: Path, preset: str, sets: list[str], dry_run: bool = False, programs: bool = False
) -> dict[str, Any]:
    """Bring a foreign model in as a checkpoint (floats) or a quantized model (int8); returns what was found. `programs`
    lets artifacts run lrzip and zpaq.

    With `dry_run` everything is checked and nothing written.
    """
    check_regular(path)
    if read_head(path, 4) == ARTIFACT_MAGIC:
        return unpack_artifact(path, out, programs, dry_run)
    found, options = read_foreign(path)
    kind = "quantized" if "quantized" in found else "checkpoint"
    if kind == "quantized":
        model, resolved, notes = import_int8(found, path, preset, sets)
        save = partial(save_quantized, out, model)
    else:
        weights, resolved, notes = import_weights(found, options, path, preset, sets)
        save = partial(save_checkpoint, out, weights)
    digest = "" if dry_run else save({"config": resolved.values, "step": 0, "imported_from": path.name})
    return {
        "schema": "pgolf.import/1",
        "out": str(out),
        "kind": kind,
        "sha256": digest,
        "parameters": sum(spec.numel for spec in param_specs(resolved.config.model)),
        "model": resolved.values["model"],
        **notes,
    }
