"""Mutated artifacts of every codec and arrangement: each must be refused with pgolf's own errors, or give the state it
was made of.

A round takes one of some small artifacts and damages it: bits flipped, bytes set, cut, repeated or moved in from
another artifact, or lies in the table of sections. In most rounds the checksums are made to fit again, so that decoders
see the damage; in some a section is decoded, damaged and coded again. The hash of the state is never adjusted. Peak
memory is that of the whole process, above what it has before the first round. Exit code 1 when a mutant crashed, was
taken for something else, or took longer than --limit.
"""

import random
import resource
import sys
import time
import traceback
import zlib
from collections import Counter
from typing import Any

import numpy as np
import torch

from benchmarks.report import parser, show
from pgolf.catalog import load
from pgolf.core.artifact import PRELUDE, SECTION, decode_artifact, encode_artifact
from pgolf.core.codecs.base import Codec
from pgolf.core.errors import InputError, SetupError
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.params import CONTROL
from pgolf.core.quant.grid import StepTensor, TrellisTensor
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.layouts.methods import Layouts, Packed, PerGroup, all_codecs, arranged_artifact, method_name

CONFIG = ModelConfig(vocab_size=48, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1)
METHODS: dict[str, Any] = {name: load("Codec", name) for name in ("store", "zlib", "lzma", "brotli", "zstd", "rans")}
METHODS |= {f"packed, {coder}": lambda coder=coder: Packed(coder=coder) for coder in ("store", "lzma")}
METHODS |= {f"pergroup, {coder}": lambda coder=coder: PerGroup(coder=coder) for coder in ("zlib", "brotli")}
FORMS = ("rows", "steps", "trellis")
LENGTHS = (0, 1, 2, 255, 65535, 1 << 24, 1 << 29, (1 << 31) - 1, (1 << 32) - 1)


def small_model(form: str, limit: int) -> QuantizedModel:
    """A quantized model of one form of codes within ±limit. Rows resemble one another: rans predicts. Where they are
    "scaled" or "recurring" it takes levels, or zlib.
    """
    rng, model = np.random.default_rng(limit), QuantizedModel(CONFIG)
    for spec in param_specs(CONFIG):
        if spec.role == CONTROL or spec.name.endswith("c_v.weight"):
            values = rng.standard_normal(spec.shape)
            model.tensors[spec.name] = torch.from_numpy(values.astype("f4" if spec.role == CONTROL else "f2"))
            continue
        rows, columns = spec.shape
        bell = np.outer(rng.standard_normal(rows), rng.standard_normal(columns)) + rng.standard_normal(spec.shape) / 4
        if form == "scaled":
            bell = rng.standard_normal(spec.shape) * 2.0 ** -rng.integers(0, 6, columns)
        elif form == "recurring":
            bell = rng.standard_normal((3, columns))[np.arange(rows) % 3]
        codes = torch.from_numpy(np.rint(limit * bell / 2).clip(-limit, limit).astype(np.int8))
        if form not in ("steps", "trellis"):
            model.tensors[spec.name] = QTensor(codes, torch.rand(rows).half() + 0.5, limit.bit_length() + 1)
            continue
        steps: dict[str, Any] = {"scale": torch.arange(rows, dtype=torch.int16) - 40}
        steps["columns"] = torch.zeros(columns, dtype=torch.int8)
        if form == "trellis":
            model.tensors[spec.name] = TrellisTensor(
                codes, bits=8, memory=torch.tensor([3], dtype=torch.uint8), **steps
            )
        else:
            model.tensors[spec.name] = StepTensor(codes, bits=8, **steps)
    return model


def specimens() -> list[tuple[str, bytes, str]]:
    """Name, artifact and hash of the state: every method on every form and on ternary codes, rans on two more."""
    found = []
    for form, limit in (*((form, 31) for form in FORMS), ("rows", 1), ("scaled", 31), ("recurring", 31)):
        model = small_model(form, limit)
        for name, make in METHODS.items():
            if form in ("scaled", "recurring") and name != "rans":
                continue
            method = make()
            encode = arranged_artifact if isinstance(method, Layouts) else encode_artifact
            found.append((f"{name} {form} {limit}", encode(model, method, b'{"a": 1}'), model.digest()))
    return found


def parts(blob: bytes) -> tuple[bytearray, list[list[int]], list[bytearray]]:
    """Prelude, table and bodies."""
    count = PRELUDE.unpack_from(blob)[3]
    table = [list(SECTION.unpack_from(blob, 16 + 14 * index)) for index in range(count)]
    bodies, at = [], 16 + 14 * count
    for entry in table:
        bodies.append(bytearray(blob[at : at + entry[2]]))
        at += entry[2]
    return bytearray(blob[:12]), table, bodies


def signed(prelude: bytearray, table: list[list[int]], bodies: list[bytearray], lengths: bool = True) -> bytes:
    """An artifact whose checksums fit; with `lengths` the table states what bodies have."""
    for entry, body in zip(table, bodies, strict=True):
        entry[2], entry[4] = (len(body) if lengths else entry[2]), zlib.crc32(body)
    header = b"".join(SECTION.pack(*entry) for entry in table)
    checksum = zlib.crc32(header, zlib.crc32(bytes(prelude)))
    return bytes(prelude) + checksum.to_bytes(4, "little") + header + b"".join(bodies)


def damaged(content: bytearray, other: bytes, draw: random.Random) -> bytearray:
    """Bytes with one to four changes."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        place, kind = draw.randrange(len(content) + 1), draw.randrange(6)
        end = min(place + draw.randint(1, 16), len(content))
        if kind == 0 and place < len(content):
            content[place] ^= 1 << draw.randrange(8)
        elif kind == 1 and place < len(content):
            content[place] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
        elif kind == 2:
            del content[place : draw.choice((end, len(content)))]
        elif kind == 3:
            content[place:place] = content[place:end]
        elif kind == 4 and other:
            start = draw.randrange(len(other))
            content[place:end] = other[start : start + draw.randint(1, 32)]
        elif kind == 5:
            content[place : place + 4] = draw.choice(LENGTHS).to_bytes(4, "little")
    return content


def mutant(blob: bytes, other: bytes, codecs: dict[int, Codec], draw: random.Random) -> tuple[str, bytes]:
    """What was done, and the damaged artifact."""
    kind = draw.choice(("raw", "body", "body", "table", "content"))
    if kind == "raw":
        return kind, bytes(damaged(bytearray(blob), other, draw))
    prelude, table, bodies = parts(blob)
    which = draw.randrange(len(table))
    if kind == "table":
        field = draw.randrange(5)
        table[which][field if field < 4 else 3] = draw.choice((draw.randrange(256), *(LENGTHS if field > 1 else ())))
        if field == 4:
            table[which], table[0] = table[0], table[which]
        return kind, signed(prelude, table, bodies, lengths=draw.random() < 0.5)
    if kind == "content":
        codec = codecs[table[which][1]]
        content = damaged(bytearray(codec.decode(bytes(bodies[which]), table[which][3])), other, draw)
        if table[which][1] < 16:
            bodies[which], table[which][3] = bytearray(codec.encode(bytes(content))), len(content)
            return kind, signed(prelude, table, bodies)
    bodies[which] = damaged(bodies[which], other, draw)
    return "body", signed(prelude, table, bodies)


def verdict(blob: bytes, digest: str, codecs: dict[int, Codec]) -> str:
    """How reading ends: refused (exit code 3, or 5 for a codec byte that names lrzip or zpaq), identical, wrong (taken
    for something else), or crashed (the traceback goes to stderr).
    """
    try:
        found = decode_artifact(blob, CONFIG, codecs).digest()
    except (InputError, SetupError):
        return "refused"
    except Exception:
        traceback.print_exc()
        return "crashed"
    return "identical" if found == digest else "wrong"


def main() -> None:
    """Damage, read, count."""
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=20_000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--limit", type=float, default=5.0, help="seconds that reading one mutant may take")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    draw, codecs, known = random.Random(options.seed), dict(all_codecs()), specimens()
    counts: dict[str, Counter[str]] = {}
    slowest, seen = (0.0, ""), set()
    for name, blob, digest in known:
        assert verdict(blob, digest, codecs) == "identical", name
        seen |= {entry[1] for entry in parts(blob)[1]}
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    for number in range(options.rounds):
        name, blob, digest = known[number % len(known)]
        kind, bad = mutant(blob, draw.choice(known)[1], codecs, draw)
        began = time.perf_counter()
        ended = verdict(bad, digest, codecs)
        seconds = time.perf_counter() - began
        counts.setdefault(kind, Counter())[ended] += 1
        slowest = max(slowest, (seconds, f"{name}, {kind}"))
    total = sum(counts.values(), Counter())
    rows = [
        {
            "damage": kind,
            "rounds": sum(found.values()),
            **{key: found[key] for key in ("refused", "identical", "wrong", "crashed")},
        }
        for kind, found in [*sorted(counts.items()), ("all", total)]
    ]
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    remarks = [
        f"{len(known)} artifacts of {len(METHODS)} methods; {', '.join(sorted(map(method_name, seen)))}",
        f"slowest {slowest[0]:.3f} s ({slowest[1]}); peak memory {peak:.1f} MiB above the start; "
        f"{time.perf_counter() - start:.0f} s in all",
    ]
    show("fuzz_artifacts", options, rows, remarks)
    sys.exit(bool(total["wrong"] or total["crashed"] or slowest[0] > options.limit))


if __name__ == "__main__":
    main()
