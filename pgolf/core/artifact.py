"""The artifact, container PGA1: a quantized model as the bytes that count (spec: docs/formats.md).

    0   4  magic "PGA1"      4   1  version          5  1  flags, none defined yet
    6   2  sections          8   4  header bytes    12  4  CRC-32 of bytes 0..11 and the header
    16  .. header, per section: id u8, codec u8, stored length u32, raw length u32, CRC-32 of the stored bytes u32
    ..  .. section bodies in header order, without gaps, to the end of the file

Little-endian. Nothing in the file drives an allocation: lengths are checked against the file and hard caps first, and
shapes come from the configuration, to which the manifest must be equal.
"""

import hashlib
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.core.codecs.base import Codec
from pgolf.core.errors import InputError, assure
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.params import ATTN, CONTROL, EMBED, HEAD, MLP
from pgolf.core.quant.corrected import LowRankSections
from pgolf.core.quant.forms import Float8Tensor, GroupTensor, GroupTensor32, GroupTensor64, group_count
from pgolf.core.quant.free_order import by_steps
from pgolf.core.quant.grid import StepTensor, TrellisTensor
from pgolf.core.quant.qtensor import QTensor, QuantizedModel

ARTIFACT_MAGIC, ARTIFACT_VERSION = b"PGA1", 3
INFO, MANIFEST, SCALES, FLOAT16, FLOAT32 = 1, 2, 3, 4, 5
CODES = {EMBED: 16, ATTN: 17, MLP: 18, HEAD: 19, CONTROL: 13}
MAX_SECTIONS, MAX_HEADER, MAX_RAW = 64, 65536, 512 << 20
KIND_F16, KIND_F32 = 2, 3
FORMS: dict[int, type[QTensor]] = {
    1: QTensor,
    4: StepTensor,
    5: TrellisTensor,
    6: Float8Tensor,
    32: GroupTensor32,
    64: GroupTensor64,
    128: GroupTensor,
}
"""Kinds of coded tensors; version 1 had the first alone, version 2 the first three."""
ORDERS: dict[str, Callable[[QuantizedModel, Codec], QuantizedModel]] = {"steps": by_steps}
"""Ways to use orders that the model does not depend on; they leave it alone where the codec does not ask for it."""
SIDE_COUNTS = {"groups": group_count}
"""Lengths that what is stored beside codes may have, after the matrix's own and 1."""
CORRECTIONS = {"lqer": LowRankSections}
"""What may be stored beside codes."""
SECTION = struct.Struct("<BBIII")
PRELUDE = struct.Struct("<4sBBHI")


def manifest_bytes(model: QuantizedModel) -> bytes:
    """One entry per parameter (name id u16, kind u8, bits u8, ndim u8, dims u32 each), then the state's SHA-256."""
    out = b""
    for index, spec in enumerate(param_specs(model.config)):
        tensor = model.tensors[spec.name]
        if isinstance(tensor, QTensor):
            kind, bits = tensor.kind, tensor.bits
        else:
            kind, bits = (KIND_F16, 16) if tensor.dtype == torch.float16 else (KIND_F32, 32)
        out += struct.pack(f"<HBBB{len(spec.shape)}I", index, kind, bits, len(spec.shape), *spec.shape)
    return out + bytes.fromhex(model.digest())


def pack_container(sections: list[tuple[int, int, int, bytes]]) -> bytes:
    """Header and bodies of sections (id, codec id, raw length, stored bytes), in the least version that has them."""
    header = b"".join(
        SECTION.pack(ident, codec, len(body), raw, zlib.crc32(body)) for ident, codec, raw, body in sections
    )
    version = 1 + max(entry[0] % 16 // 6 for entry in sections)  # 6 to 11 came with version 2, 12 to 15 with version 3
    prelude = PRELUDE.pack(ARTIFACT_MAGIC, version, 0, len(sections), len(header))
    checksum = struct.pack("<I", zlib.crc32(header, zlib.crc32(prelude)))
    return prelude + checksum + header + b"".join(body for *_, body in sections)


def encode_artifact(model: QuantizedModel, codec: Codec, info: bytes) -> bytes:
    """The artifact of a quantized model; `info` is a JSON description (configuration, tokenizer hash)."""
    for reorder in ORDERS.values():
        model = reorder(model, codec)
    raw: dict[int, list[bytes]] = {INFO: [info], MANIFEST: [manifest_bytes(model)]}
    shapes: dict[int, list[tuple[int, ...]]] = {}
    for extra in CORRECTIONS.values():
        model = extra.write(model, raw, shapes)
    for spec in param_specs(model.config):
        tensor = model.tensors[spec.name]
        if isinstance(tensor, QTensor):
            codes, *sides = tensor.parts()
            raw.setdefault(CODES[spec.role], []).append(codes.numpy().tobytes())
            shapes.setdefault(CODES[spec.role], []).append(spec.shape)
            raw.setdefault(tensor.section, []).extend(side.numpy().tobytes() for side in sides)
        else:
            half = tensor.dtype == torch.float16
            raw.setdefault(FLOAT16 if half else FLOAT32, []).append(
                tensor.numpy().astype("<f2" if half else "<f4").tobytes()
            )
    sections = []
    for ident, pieces in raw.items():
        plain = b"".join(pieces)
        sections.append((ident, codec.codec_id, len(plain), codec.encode(plain, shapes.get(ident, ()))))
    return pack_container(sections)


def read_sections(blob: bytes, codecs: Mapping[int, Codec], where: str, only: int = 0) -> dict[int, bytes]:
    """Decoded sections by id (just one if `only` is given), every length and checksum verified before it is used."""
    fix = "the artifact is truncated, damaged or of another format"
    assure(len(blob) >= 16, f"the artifact has only {len(blob)} bytes", where, fix)
    magic, version, flags, count, header_len = PRELUDE.unpack_from(blob[:16].ljust(16))
    assure(magic == ARTIFACT_MAGIC, f"magic {magic!r}, expected {ARTIFACT_MAGIC!r}", where, fix)
    assure(
        version <= ARTIFACT_VERSION,
        *(f"artifact version {version}, this pgolf reads up to {ARTIFACT_VERSION}", where, "install a newer pgolf"),
    )
    assure(version > 0, f"artifact version {version} does not exist", where, fix)
    good = count <= MAX_SECTIONS and header_len <= MAX_HEADER and header_len == count * SECTION.size
    assure(good, "the section table is malformed", where, fix)
    assure(len(blob) >= 16 + header_len, "the section table is cut off", where, fix)
    checksum = zlib.crc32(blob[16 : 16 + header_len], zlib.crc32(blob[:12]))
    if blob[12:16] != struct.pack("<I", checksum):
        raise InputError("header checksum mismatch", where, fix)
    assure(flags == 0, f"unknown flags {flags:#x}", where, fix)
    table = [SECTION.unpack_from(blob, 16 + index * SECTION.size) for index in range(count)]
    good = 16 + header_len + sum(entry[2] for entry in table) == len(blob)
    assure(good, "section lengths do not add up to the file's length", where, fix)
    if sum(entry[3] for entry in table) > MAX_RAW:
        raise InputError("the sections decode to more than 512 MiB", where, fix)
    assure(len({entry[0] for entry in table}) == count, "a section occurs twice", where, fix)
    found, at = {}, 16 + header_len
    for ident, codec_id, stored, raw_len, crc in table:
        body = blob[at : at + stored]
        at += stored
        if zlib.crc32(body) != crc:
            raise InputError(f"checksum mismatch in section {ident}", where, fix)
        if only in (0, ident):
            if codec_id not in codecs:
                raise InputError(
                    f"section {ident} needs codec {codec_id}, which this program does not have", where, fix
                )
            found[ident] = codecs[codec_id].decode(body, raw_len)
    return found


def decode_artifact(
    blob: bytes, config: ModelConfig, codecs: Mapping[int, Codec], where: str = "artifact"
) -> QuantizedModel:
    """The quantized model, bit for bit as encoded. InputError on any difference to `config` or to the stored hash."""
    sections = read_sections(blob, codecs, where)
    manifest, model = sections.pop(MANIFEST, b""), QuantizedModel(config)
    sections.pop(INFO, None)
    cursors = dict.fromkeys(sections, 0)

    def take(ident: int, dtype: str, *shape: int) -> Tensor:
        start, count = cursors.get(ident, 0), math.prod(shape)
        stop = start + count * np.dtype(dtype).itemsize
        long_enough = max(stop, 1) <= len(sections.get(ident, b""))
        assure(long_enough, f"section {ident} is too short for {spec.name}", where, "it is of another configuration")
        cursors[ident] = stop
        values = np.frombuffer(sections[ident], dtype=dtype, count=count, offset=start)
        return torch.from_numpy(values.astype(np.dtype(dtype).newbyteorder("="))).view(shape)

    at = 0
    for index, spec in enumerate(param_specs(config)):
        entry = struct.Struct(f"<HBBB{len(spec.shape)}I")
        assure(at + entry.size <= len(manifest), "the manifest is too short", where, "it is of another configuration")
        name_id, kind, bits, ndim, *dims = entry.unpack(manifest[at : at + entry.size].ljust(entry.size))
        at += entry.size
        if (name_id, ndim, *dims) != (index, len(dims), *spec.shape):
            raise InputError(
                f"the manifest does not fit at {spec.name}", where, "the artifact belongs to another configuration"
            )
        coded = kind in FORMS and ndim == 2 and 2 <= bits <= 8
        if not (coded or (kind, bits) in ((KIND_F16, 16), (KIND_F32, 32))):
            raise InputError(f"{spec.name} has kind {kind} with {bits} bits", where, "the artifact is damaged")
        if coded:
            form, lengths = FORMS[kind], (*dims, 1)
            for count in SIDE_COUNTS.values():
                lengths += (count(dims, kind),)
            codes = take(CODES[spec.role], "i1", *dims)
            sides: dict[str, Any] = {name: take(form.section, dtype, lengths[axis]) for name, dtype, axis in form.sides}
            model.tensors[spec.name] = FORMS[kind](codes=codes, bits=bits, **sides)
        else:
            ident, dtype = (FLOAT16, "<f2") if kind == KIND_F16 else (FLOAT32, "<f4")
            model.tensors[spec.name] = take(ident, dtype, *dims)
    for extra in CORRECTIONS.values():
        extra.read(model, sections, take, where)
    whole = len(manifest) - at == 32 and all(cursors[ident] == len(body) for ident, body in sections.items())
    assure(whole, "sections hold more than the configuration needs", where, "it is of another configuration")
    model.assure_sound(where)
    if model.digest() != manifest[at:].hex():
        raise InputError("the decoded weights do not have the stored SHA-256", where, "the artifact is damaged")
    return model


def artifact_sha256(blob: bytes) -> str:
    """SHA-256 of an artifact's bytes, in hex."""
    return hashlib.sha256(blob).hexdigest()
