"""Checkpoints and quantized models: the safetensors format with a SHA-256 that covers header and data.

safetensors itself does not notice a flipped bit. The metadata entry `sha256` is the SHA-256 of the whole file with the
64 hex digits of that entry replaced by zeros; it is checked on every read (spec: docs/formats.md).
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


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Write tensors and JSON-able metadata atomically; returns the content hash."""
    from safetensors.torch import save

    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    blob = save(packed, {"pgolf": json.dumps(meta, sort_keys=True, allow_nan=False), "sha256": BLANK})
    digest = hashlib.sha256(blob).hexdigest()
    write_bytes(path, blob.replace(f'"sha256":"{BLANK}"'.encode(), f'"sha256":"{digest}"'.encode(), 1))
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
    if not isinstance(strings, dict) or "pgolf" not in strings or len(str(strings.get("sha256"))) != 64:
        raise InputError("a safetensors file, but not one of pgolf's", where, "bring it in with pgolf import")
    meta = parse_json(str(strings["pgolf"]), where)
    if not isinstance(meta, dict):
        raise InputError("the metadata is not a JSON object", where, "the file is damaged")
    return meta, str(strings["sha256"])


def load_tensors(path: Path, schema: str) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors, metadata and content hash of a file written by `save_tensors` with meta["schema"] == `schema`.

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
    if found_version != version:
        raise InputError(
            f"format version {found_version} of {name}; this pgolf reads {version}",
            str(path),
            "use the pgolf that wrote it",
        )
    blank = blob.replace(f'"sha256":"{digest}"'.encode(), f'"sha256":"{BLANK}"'.encode(), 1)
    if hashlib.sha256(blank).hexdigest() != digest:
        raise InputError(
            "the SHA-256 does not match the content", str(path), "the file is damaged; restore or make it anew"
        )
    try:
        return load(blob), meta, digest
    except SafetensorError as error:
        raise InputError(f"not a valid safetensors file: {error}", str(path), "the file is damaged") from None
