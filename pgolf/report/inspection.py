"""What a file holds, verified first, as a document for `pgolf inspect`."""

from pathlib import Path
from typing import Any

import numpy as np

from pgolf.core.artifact import ARTIFACT_MAGIC, PRELUDE, SECTION
from pgolf.core.errors import InputError
from pgolf.core.files import check_regular, read_bytes, read_head, read_json
from pgolf.core.quant.qtensor import QTensor
from pgolf.core.shards import SHARD_MAGIC, open_shard
from pgolf.core.tensorfile import load_tensors, tensor_meta
from pgolf.dataset import BOS, open_dataset
from pgolf.layouts.methods import method_name
from pgolf.report.quantized import code_entropy, coded_bits, scheme
from pgolf.stages.calibrate import CALIBRATION_SCHEMA, COUPLED_SCHEMA, HESSIANS_SCHEMA
from pgolf.stages.checkpoints import RESUME_SCHEMA
from pgolf.stages.manifest import MANIFEST_SCHEMA
from pgolf.stages.model_files import MAX_ARTIFACT, ModelFile, load_model

SECTION_NAMES = {
    1: "info",
    2: "manifest",
    3: "scales",
    4: "float16",
    5: "float32",
    6: "steps",
    12: "scales of groups",
    13: "codes of gates",
    14: "low-rank codes",
    15: "low-rank scales",
    16: "codes of embed",
    17: "codes of attn",
    18: "codes of mlp",
    19: "codes of head",
}
VALUE_BYTES = {3: 2, 4: 2, 5: 4, 12: 2}
"""Bytes of a value in sections of floats; all others are counted by bytes, which codes have one each."""


def inspect_file(path: Path) -> dict[str, Any]:
    """The document about any file or directory pgolf writes or reads. InputError for anything else."""
    if path.is_dir():
        return inspect_dataset(path)
    check_regular(path)
    head = read_head(path, 8)
    if int.from_bytes(head[:4], "little") == SHARD_MAGIC:
        return inspect_shard(path)
    if path.suffix == ".json":
        document = read_json(path)
        schema = document.get("schema") if isinstance(document, dict) else None
        if not isinstance(schema, str) or not schema.startswith("pgolf."):
            raise InputError("a JSON file, but none of pgolf's", str(path))
        return describe_outputs(document) if document["schema"] == MANIFEST_SCHEMA else dict(document)
    if tensors := path.suffix == ".safetensors" or begins_as_tensors(path):
        meta, _ = tensor_meta(path)
        schema = str(meta.get("schema"))
        if schema in (CALIBRATION_SCHEMA, COUPLED_SCHEMA, HESSIANS_SCHEMA, RESUME_SCHEMA):
            return inspect_tensors(path, schema)
    if not tensors and path.suffix != ".pgz" and head[:4] != ARTIFACT_MAGIC:
        raise InputError(
            f"{path.suffix or 'a file without suffix'} is nothing pgolf writes", str(path), "see pgolf inspect --help"
        )
    model = load_model(path)
    document = {
        "schema": "pgolf.inspect/1",
        "file": str(path),
        "kind": model.kind,
        "sha256": model.sha256,
        "bytes": path.stat().st_size,
    }
    document |= {
        "tokenizer_sha256": model.tokenizer_sha256,
        "parameters": sum(w.numel() for w in model.weights.values()),
        "config": model.stored,
    }
    document["tensors"] = tensor_rows(model)
    if head[:4] == ARTIFACT_MAGIC:
        document["sections"] = section_table(read_bytes(path, MAX_ARTIFACT))
    return document


def describe_outputs(document: dict[str, Any]) -> dict[str, Any]:
    """A manifest, with one row per output; the full entries follow in JSON."""
    keys = ("stage", "bytes", "sha256", "date")
    rows = [
        {"output": name, **{key: entry.get(key, "") for key in keys}} for name, entry in document["outputs"].items()
    ]
    return {"schema": "pgolf.inspect/1", "kind": "manifest", "entries": rows, "outputs": document["outputs"]}


def inspect_tensors(path: Path, schema: str) -> dict[str, Any]:
    """Hessians or a resume file: the facts in the header and one row per tensor."""
    tensors, meta, digest = load_tensors(path, schema)
    facts = {key: value for key, value in meta.items() if not isinstance(value, dict)}
    rows = [
        {"tensor": name, "shape": "x".join(map(str, tensor.shape)), "dtype": str(tensor.dtype)}
        for name, tensor in tensors.items()
    ]
    return {**facts, "schema": "pgolf.inspect/1", "file": str(path), "kind": schema, "sha256": digest, "tensors": rows}


def tensor_rows(model: ModelFile) -> list[dict[str, Any]]:
    """One row per parameter; of quantized ones also what compressing them alone takes and what quantizing them did."""
    known = {row["name"]: row for row in model.meta.get("tensors", [])} if model.kind == "quantized" else {}
    coded = coded_bits(model.quantized, model.config.compress) if model.quantized and known else {}
    return [tensor_row(model, name, coded.get(name), known.get(name, {})) for name in model.weights]


def tensor_row(model: ModelFile, name: str, coded: float | None, known: dict[str, Any]) -> dict[str, Any]:
    """A parameter."""
    weight = model.weights[name]
    tensor = model.quantized.tensors[name] if model.quantized else weight
    row: dict[str, Any] = {"tensor": name, "shape": "x".join(map(str, weight.shape))}
    if isinstance(tensor, QTensor):
        row |= {"stored": f"{tensor.bits}-bit {scheme(tensor)}", "entropy_bits": code_entropy(tensor.codes)}
    else:
        stored = str(tensor.dtype).removeprefix("torch.")
        row |= {"stored": stored, "entropy_bits": float(8 * tensor.element_size())}
    if model.kind == "quantized" and model.meta.get("tensors"):
        row |= {"coded_bits": coded, "output_error": known.get("output_error"), "loss_share": known.get("loss_share")}
    rms, largest = float(weight.float().square().mean().sqrt()), float(weight.abs().max())
    return row | {"rms": rms, "largest": largest}


def section_table(blob: bytes) -> list[dict[str, Any]]:
    """One row per section of an artifact, with its id."""
    rows = []
    for index in range(PRELUDE.unpack_from(blob)[3]):
        ident, codec, stored, raw, _ = SECTION.unpack_from(blob, 16 + index * SECTION.size)
        values = raw // VALUE_BYTES.get(ident, 1)
        rows.append(
            {
                "id": ident,
                "section": SECTION_NAMES.get(ident, str(ident)),
                "method": method_name(codec),
                "stored_bytes": stored,
                "raw_bytes": raw,
                "bits_per_value": 8 * stored / max(values, 1),
                "share_percent": 100 * stored / len(blob),
            }
        )
    return rows


def inspect_shard(path: Path) -> dict[str, Any]:
    """A token shard."""
    ids = np.asarray(open_shard(path))
    return {
        "schema": "pgolf.inspect/1",
        "file": str(path),
        "kind": "shard",
        "tokens": len(ids),
        "documents": int((ids == BOS).sum()),
        "largest_id": int(ids.max()),
        "distinct_ids": len(np.unique(ids)),
        "bytes": path.stat().st_size,
    }


def begins_as_tensors(path: Path) -> bool:
    """Whether a file of any name begins as safetensors do: the header's length, which the file has, and its brace."""
    head = read_head(path, 9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def inspect_dataset(path: Path) -> dict[str, Any]:
    """A dataset directory, or the manifest of another directory that pgolf filled."""
    manifest = path / "manifest.json"
    if not manifest.is_file() and not any(path.glob("*.bin")):
        what = "the folder itself has neither manifest.json nor token shards"
        raise InputError(what, str(path), "name a file in it; a training under way shows itself in pgolf plot")
    if manifest.is_file() and (document := read_json(manifest)).get("schema") == MANIFEST_SCHEMA:
        return describe_outputs(document)
    dataset = open_dataset(path)
    rows = []
    for split in ("train", "val"):
        for shard in dataset.shards[split]:
            ids = np.asarray(open_shard(shard))
            rows.append(
                {
                    "split": split,
                    "shard": shard.name,
                    "tokens": len(ids),
                    "documents": int((ids == BOS).sum()),
                    "largest_id": int(ids.max()),
                }
            )
    document = {
        "schema": "pgolf.inspect/1",
        "file": str(path),
        "kind": "dataset",
        "vocab_size": dataset.vocab_size,
        "tokenizer_sha256": dataset.tokenizer_sha256,
    }
    return document | {"warnings": "; ".join(dataset.warnings) or "none", "shards": rows}
