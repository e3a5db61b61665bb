"""Checkpoints and quantized models: the safetensors format with a SHA-256 that covers header and data.

safetensors itself does not notice a flipped bit. The only metadata key is `pgolf`, a JSON object whose first entry
`sha256` is the SHA-256 of the whole file with those 64 hex digits replaced by zeros; it is checked on every read. One
key, because safetensors writes several in random order (spec: docs/formats.md).
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pgolf.core.errors import InputError
from pgolf.core.files import parse_json, read_bytes, read_head, write_bytes

BLANK = "0" * 64
MAX_TENSOR_FILE, MAX_TENSOR_HEADER = 16 << 30, 16 << 20


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor in name order: the identity of what a file computes,
    whenever and wherever it was written.
    """
    from torch import uint8

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Write tensors and JSON-able metadata atomically; returns the content hash. Equal content makes equal files."""
    from safetensors.torch import save

    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = {"tensors_sha256": tensors_sha256(packed), **meta}
    ordered = json.loads(json.dumps(facts, sort_keys=True, allow_nan=False))
    blob = save(packed, {"pgolf": json.dumps({"sha256": BLANK, **ordered})})
    digest = hashlib.sha256(blob).hexdigest()
    write_bytes(path, blob.replace(BLANK.encode(), digest.encode(), 1))
    return digest


def tensor_meta(path: Path) -> tuple[dict[str, Any], str]:
    """pgolf's metadata and the stated content hash of a file, unverified; sizes are checked before they are used.

    InputError if it is no safetensors file, or none of pgolf's.
    """
    where, size = str(path), path.stat().st_size if path.is_file() else 0
    prefix = read_head(path, 8)
    if len(prefix) < 8:
        raise InputError(f"the file has only {len(prefix)} bytes", where, "it is truncated")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(size - 8, MAX_TENSOR_HEADER):
        raise InputError(
            f"the header claims {length:,} bytes of a file of {size:,}",
            where,
            "this is no safetensors file, or it is truncated",
        )
    header = parse_json(read_head(path, 8 + length)[8:], where)
    strings = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(strings, dict) or "pgolf" not in strings:
        raise InputError("a safetensors file, but not one of pgolf's", where, "bring it in with pgolf import")
    meta = parse_json(str(strings["pgolf"]), where)
    if not isinstance(meta, dict) or len(str(meta.get("sha256"))) != 64:
        raise InputError("the metadata is not an object with a SHA-256", where, "the file is damaged")
    return meta, str(meta.pop("sha256"))


def load_tensors(path: Path, schema: str, older: tuple[str, ...] = ()) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors, metadata and content hash of a file written by `save_tensors` with meta["schema"] == `schema`, or one
    of the `older` versions that the caller knows how to read.

    InputError if the file is not that, is newer, or one bit of it differs.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    meta, digest = tensor_meta(path)
    blob = read_bytes(path, MAX_TENSOR_FILE)
    name, _, version = schema.rpartition("/")
    found, _, found_version = str(meta.get("schema", "")).rpartition("/")
    if found != name:
        raise InputError(f"the file is a {found or 'safetensors file without a schema'}, not a {name}", str(path))
    if meta["schema"] not in (schema, *older):
        raise InputError(
            f"format version {found_version} of {name}; this pgolf reads {version}",
            str(path),
            "use the pgolf that wrote it",
        )
    blank = blob.replace(digest.encode(), BLANK.encode(), 1)
    if hashlib.sha256(blank).hexdigest() != digest:
        raise InputError(
            "the SHA-256 does not match the content", str(path), "the file is damaged; restore or make it anew"
        )
    try:
        return load(blob), meta, digest
    except SafetensorError as error:
        raise InputError(f"not a valid safetensors file: {error}", str(path), "the file is damaged") from None
