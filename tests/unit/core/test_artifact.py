"""The artifact gives back every bit, notices every flipped bit, and cannot be made to allocate more than it states."""

import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import pgolf
from benchmarks.faults.bombs import BOMBS, UNIT, zstd_bomb
from pgolf.core.artifact import (
    FLOAT32,
    INFO,
    MANIFEST,
    PRELUDE,
    SCALES,
    SECTION,
    artifact_sha256,
    decode_artifact,
    encode_artifact,
    manifest_bytes,
    pack_container,
    read_sections,
)
from pgolf.core.codecs.adaptive import Rans
from pgolf.core.codecs.brotli import Brotli
from pgolf.core.codecs.lzma import Lzma
from pgolf.core.codecs.store import Store
from pgolf.core.codecs.zlib import Zlib
from pgolf.core.codecs.zstd import Zstd
from pgolf.core.errors import InputError
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.params import CONTROL
from pgolf.core.model.parts.untied_embed import UntiedEmbed
from pgolf.core.quant.grid import StepTensor, TrellisTensor
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.layouts.methods import Packed, PerGroup, all_codecs, arranged_artifact

ROOT = Path(pgolf.__file__).parent.parent
FAST = {
    "store": Store(),
    "zlib": Zlib(level=6),
    "lzma": Lzma(preset=0),
    "brotli": Brotli(quality=2),
    "zstd": Zstd(level=1),
    "rans": Rans(),
}
CODECS = {codec.codec_id: codec for codec in FAST.values()}
EVERY_CODEC = all_codecs()
KINDS = [2, 3, 4, 5, 6, 7, 8, 16, 32, "steps", "trellis"]
CONFIG = ModelConfig(vocab_size=8, num_layers=2, model_dim=4, num_heads=2, num_kv_heads=1)
INFO_TEXT = b'{"made by": "a test"}'


def random_tensor(spec, rng, kind, scale):
    """A parameter of one kind: 16 or 32 for floats, else codes of that many bits; `scale` 0 makes all values zero."""
    if kind in (16, 32) or spec.role == CONTROL:
        values = (scale * rng.standard_normal(spec.shape)).astype(np.float16 if kind == 16 else np.float32)
        return torch.from_numpy(values)
    if isinstance(kind, str):
        rows, columns = rng.integers(-200, 40, spec.shape[0]), rng.integers(-20, 20, spec.shape[1])
        codes = torch.from_numpy(rng.integers(-127, 128, spec.shape).astype(np.int8))
        steps = {"scale": torch.from_numpy(rows.astype(np.int16)), "columns": torch.from_numpy(columns.astype(np.int8))}
        memory = torch.tensor([int(rng.choice([2, 3, 5, 6, 8]))], dtype=torch.uint8)
        form = StepTensor if kind == "steps" else TrellisTensor
        return form(codes, bits=8, **steps, **({} if kind == "steps" else {"memory": memory}))
    limit = 2 ** (kind - 1) - 1
    codes = rng.integers(-limit, limit + 1, spec.shape) if scale else np.zeros(spec.shape)
    scales = np.exp(rng.uniform(-10, 3, spec.shape[0])) if scale else np.full(spec.shape[0], 2.0**-24)
    return QTensor(torch.from_numpy(codes.astype(np.int8)), torch.from_numpy(scales.astype(np.float16)), kind)


def random_model(config, seed, kinds=(6,), scale=1.0):
    """A quantized model whose parameters take the kinds in turn."""
    rng = np.random.default_rng(seed)
    specs = enumerate(param_specs(config))
    return QuantizedModel(
        config, {spec.name: random_tensor(spec, rng, kinds[i % len(kinds)], scale) for i, spec in specs}
    )


def same(one, two):
    """Whether two quantized models are equal in every bit, dtype and width."""
    pairs = [(one.tensors[name], two.tensors[name]) for name in one.tensors]
    coded = [(a, b) for a, b in pairs if isinstance(a, QTensor)]
    flat = [(a, b) for a, b in pairs if not isinstance(a, QTensor)]
    flat += [parts for a, b in coded for parts in zip(a.parts(), b.parts(), strict=True)]
    alike = all(type(a) is type(b) and a.bits == b.bits for a, b in coded)
    return alike and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in flat)


@pytest.fixture(scope="module")
def small():
    """A model and its artifact, about a kilobyte."""
    model = random_model(CONFIG, 1, kinds=(6, 8, 16, 4, 32))
    return model, encode_artifact(model, Zlib(), INFO_TEXT)


# Round trip

configs = st.builds(
    lambda vocab, layers, heads, embed: ModelConfig(
        vocab_size=vocab, num_layers=layers, model_dim=4 * heads, num_heads=heads, num_kv_heads=1, **embed
    ),
    st.integers(1, 40),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([{}, {"embed": UntiedEmbed()}]),
)


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=15)
@given(configs, st.lists(st.sampled_from(KINDS), min_size=1, max_size=6), st.sampled_from([0, 1]))
def test_every_model_comes_back_bit_for_bit(name, config, kinds, scale):
    model = random_model(config, 7, kinds, scale)
    blob = encode_artifact(model, FAST[name], INFO_TEXT)
    decoded = decode_artifact(blob, config, CODECS)
    assert same(model, decoded)
    assert decoded.digest() == model.digest()
    assert read_sections(blob, CODECS, "", only=INFO) == {INFO: INFO_TEXT}
    assert encode_artifact(decoded, FAST[name], INFO_TEXT) == blob


@pytest.mark.parametrize(
    "codec", [Zlib(), Lzma(), Brotli(), Zstd(), Store(), Rans()], ids=lambda codec: type(codec).__name__
)
def test_the_default_codecs_are_deterministic_and_shrink_zeros(codec):
    model = random_model(replace(CONFIG, vocab_size=3000), 3, (6,), scale=0)
    blobs = {
        encode_artifact(random_model(replace(CONFIG, vocab_size=3000), 3, (6,), 0), codec, b"{}") for _ in range(3)
    }
    assert len(blobs) == 1
    blob = blobs.pop()
    assert same(model, decode_artifact(blob, model.config, CODECS))
    assert len(blob) > 18_000 if isinstance(codec, Store) else len(blob) < 1500
    assert artifact_sha256(blob) == artifact_sha256(bytes(blob))


def test_a_codec_of_another_level_reads_it():
    model = random_model(CONFIG, 4)
    blob = encode_artifact(model, Brotli(quality=11, lgwin=16), b"{}")
    assert same(model, decode_artifact(blob, CONFIG, {3: Brotli(quality=0)}))


def test_special_floats_survive():
    model = random_model(CONFIG, 5, (32,))
    values = torch.tensor([[-0.0, 1e-45, 3.4e38, -1.1754944e-38]])
    model.tensors["skip_weights"] = values
    decoded = decode_artifact(encode_artifact(model, Zlib(), b""), CONFIG, CODECS)
    assert decoded.tensors["skip_weights"].numpy().tobytes() == values.numpy().tobytes()


def test_the_layout_is_the_documented_one(small):
    model, blob = small
    magic, version, flags, count, header_len = PRELUDE.unpack_from(blob)
    assert (magic, version, flags, header_len) == (b"PGA1", 1, 0, 14 * count)
    table = [SECTION.unpack_from(blob, 16 + 14 * index) for index in range(count)]
    assert 16 + header_len + sum(entry[2] for entry in table) == len(blob)
    at, raw = 16 + header_len, {}
    for ident, codec_id, stored, raw_len, crc in table:
        body = blob[at : at + stored]
        assert (codec_id, zlib.crc32(body), len(zlib.decompress(body))) == (1, crc, raw_len)
        raw[ident], at = zlib.decompress(body), at + stored
    assert raw[MANIFEST][-32:].hex() == model.digest()
    assert struct.unpack_from("<HBBB2I", raw[MANIFEST]) == (0, 1, 6, 2, 8, 4)
    assert raw[16] == model.tensors["tok_emb.weight"].codes.numpy().tobytes()
    assert struct.unpack("<I", blob[12:16])[0] == zlib.crc32(blob[16 : 16 + header_len], zlib.crc32(blob[:12]))


# Damage


def refused(blob, config=CONFIG):
    """The message with which an artifact is refused; fails if it is accepted."""
    with pytest.raises(InputError) as caught:
        decode_artifact(blob, config, CODECS, "some.pgz")
    assert "some.pgz" in str(caught.value) or "(artifact)" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [*FAST, "packed", "pergroup", "trellis"])
@pytest.mark.fault(row="F8")
def test_every_single_bit_flip_is_refused(small, name):
    config = CONFIG
    if name in ("packed", "pergroup"):
        method = Packed(coder="store") if name == "packed" else PerGroup(coder="zlib")
        blob = arranged_artifact(small[0], method, INFO_TEXT)
    elif name in ("rans", "trellis"):  # which take milliseconds to decode
        config = replace(CONFIG, num_layers=1)
        kinds = ("trellis",) if name == "trellis" else (6, 4)
        blob = encode_artifact(random_model(config, 3, kinds), FAST["rans"], INFO_TEXT)
    else:
        blob = encode_artifact(small[0], FAST[name], INFO_TEXT)
    work = bytearray(blob)
    accepted = []
    for bit in range(8 * len(work)):
        work[bit // 8] ^= 1 << bit % 8
        try:
            decode_artifact(bytes(work), config, EVERY_CODEC)
            accepted.append(bit)
        except InputError:
            pass
        work[bit // 8] ^= 1 << bit % 8
    assert accepted == []
    assert bytes(work) == blob


@pytest.mark.fault(row="F7")
def test_every_truncation_is_refused(small):
    _, blob = small
    for length in range(len(blob)):
        with pytest.raises(InputError):
            decode_artifact(blob[:length], CONFIG, CODECS)


@pytest.mark.parametrize("tail", [b"\0", b"PGA1", b"x" * 1000])
def test_trailing_bytes_are_refused(small, tail):
    assert "do not add up to the file's length" in refused(small[1] + tail)


@pytest.mark.parametrize("blob", [b"", b"PGA1", bytes(16), b"PK\x03\x04" + bytes(60)])
def test_other_files_are_refused(blob):
    assert "magic" in refused(blob) or f"only {len(blob)} bytes" in refused(blob)


def sealed(prelude, header, bodies):
    """A container with a valid checksum over any prelude."""
    return prelude + struct.pack("<I", zlib.crc32(header, zlib.crc32(prelude))) + header + bodies


def test_a_newer_version_asks_for_a_newer_pgolf(small):
    blob = small[1]
    size = 16 + PRELUDE.unpack_from(blob)[4]
    for version in (4, 255):
        changed = sealed(blob[:4] + bytes([version]) + blob[5:12], blob[16:size], blob[size:])
        assert f"artifact version {version}" in refused(changed)
        assert "newer pgolf" in refused(changed)
    assert "version 0 does not exist" in refused(sealed(blob[:4] + b"\0" + blob[5:12], blob[16:size], blob[size:]))


@pytest.mark.parametrize(("kinds", "version"), [((6, 16), 1), ((6, "steps"), 2), (("trellis",), 2)])
def test_the_version_is_the_least_that_has_the_forms(kinds, version):
    assert encode_artifact(random_model(CONFIG, 3, kinds), Zlib(), INFO_TEXT)[4] == version


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory": torch.tensor([4], dtype=torch.uint8)},
        {"memory": torch.tensor([3, 3], dtype=torch.uint8)},
        {"scale": torch.full((8,), 5000, dtype=torch.int16)},
        {"scale": torch.full((8,), -9000, dtype=torch.int16)},
        {"scale": torch.ones(8, dtype=torch.float16)},
        {"columns": torch.zeros(3, dtype=torch.int8)},
    ],
    ids=["states", "two", "infinite", "zero", "dtype", "shape"],
)
def test_steps_and_trellises_that_cannot_be_are_refused(wrong):
    model = random_model(CONFIG, 3, ("trellis",))
    model.assure_sound("here")
    model.tensors["tok_emb.weight"] = replace(model.tensors["tok_emb.weight"], **wrong)
    with pytest.raises(InputError, match=r"tok_emb\.weight has a scale that is not a positive number"):
        model.assure_sound("here")


def test_unknown_flags_are_refused(small):
    blob = small[1]
    size = 16 + PRELUDE.unpack_from(blob)[4]
    assert "unknown flags 0x80" in refused(sealed(blob[:5] + b"\x80" + blob[6:12], blob[16:size], blob[size:]))


@pytest.mark.parametrize(("count", "length"), [(65, 65 * 14), (2, 14), (0xFFFF, 0xFFFFFFFF), (1, 65536)])
@pytest.mark.fault(row="F10")
def test_an_impossible_section_table_is_refused(count, length):
    header = bytes(min(length, 1000))
    blob = sealed(PRELUDE.pack(b"PGA1", 1, 0, count, length), header, b"")
    assert "section table" in refused(blob)


# Containers that are well-formed and still wrong


def parts(model, codec=FAST["store"]):
    """The sections of a model as (id, codec id, raw length, stored bytes), ready to be tampered with."""
    sections = read_sections(encode_artifact(model, codec, INFO_TEXT), CODECS, "")
    return {ident: (ident, codec.codec_id, len(raw), codec.encode(raw)) for ident, raw in sections.items()}


def stored(ident, raw):
    """One uncompressed section."""
    return (ident, 0, len(raw), raw)


def test_a_section_may_occur_once(small):
    sections = list(parts(small[0]).values())
    assert same(small[0], decode_artifact(pack_container(sections), CONFIG, CODECS))
    assert "occurs twice" in refused(pack_container([*sections, sections[0]]))
    assert "occurs twice" in refused(pack_container([*sections, stored(INFO, b"")]))


def test_missing_and_surplus_sections_are_refused(small):
    sections = parts(small[0])
    for ident in (MANIFEST, SCALES, FLOAT32, 16):
        rest = [entry for key, entry in sections.items() if key != ident]
        assert "too short" in refused(pack_container(rest))
    assert "more than the configuration needs" in refused(pack_container([*sections.values(), stored(99, b"more")]))
    longer = sections | {SCALES: stored(SCALES, sections[SCALES][3] + b"\0\0")}
    assert "more than the configuration needs" in refused(pack_container(list(longer.values())))


def test_an_unknown_codec_is_refused(small):
    sections = parts(small[0])
    ident, _, raw_len, body = sections[SCALES]
    assert "needs codec 77" in refused(pack_container([*(sections | {SCALES: (ident, 77, raw_len, body)}).values()]))


def test_a_changed_weight_with_right_checksums_fails_the_digest(small):
    sections = parts(small[0])
    codes = bytearray(sections[16][3])
    codes[0] = 1 if codes[0] == 0 else 0
    assert "SHA-256" in refused(pack_container([*(sections | {16: stored(16, bytes(codes))}).values()]))


@pytest.mark.parametrize(("offset", "value"), [(0, 5), (2, 0), (2, 4), (3, 1), (3, 9), (4, 3), (5, 200), (9, 5)])
def test_a_manifest_that_contradicts_the_configuration_is_refused(small, offset, value):
    sections = parts(small[0])
    manifest = bytearray(sections[MANIFEST][3])
    manifest[offset] = value
    message = refused(pack_container([*(sections | {MANIFEST: stored(MANIFEST, bytes(manifest))}).values()]))
    assert "tok_emb.weight" in message


def test_codes_of_control_tensors_are_a_section_of_their_own(small):
    sections = parts(small[0])
    manifest = bytearray(sections[MANIFEST][3])
    assert tuple(manifest[13:18]) == (1, 0, 3, 32, 2)
    manifest[15:17] = 1, 6
    message = refused(pack_container([*(sections | {MANIFEST: stored(MANIFEST, bytes(manifest))}).values()]))
    assert "section 13 is too short for skip_weights" in message


def test_the_width_of_a_float_tensor_is_not_free(small):
    sections = parts(small[0])
    manifest = bytearray(sections[MANIFEST][3])
    manifest[16] = 31
    assert "skip_weights" in refused(
        pack_container([*(sections | {MANIFEST: stored(MANIFEST, bytes(manifest))}).values()])
    )


def tampered(model, name, tensor):
    """An artifact of `model` with a tensor replaced, digest and checksums made to fit."""
    other = QuantizedModel(model.config, model.tensors | {name: tensor})
    return encode_artifact(other, Zlib(), INFO_TEXT)


def test_values_no_model_can_have_are_refused(small):
    model = small[0]
    codes, scale = torch.ones(8, 4, dtype=torch.int8), torch.ones(8, dtype=torch.float16)
    assert same(
        QuantizedModel(CONFIG, model.tensors | {"tok_emb.weight": QTensor(codes, scale, 6)}),
        decode_artifact(tampered(model, "tok_emb.weight", QTensor(codes, scale, 6)), CONFIG, CODECS),
    )
    assert "codes beyond" in refused(tampered(model, "tok_emb.weight", QTensor(codes * 32, scale, 6)))
    assert "codes beyond" in refused(tampered(model, "tok_emb.weight", QTensor(codes * -128, scale, 8)))
    assert "not a positive number" in refused(tampered(model, "tok_emb.weight", QTensor(codes, scale * 0, 6)))
    assert "not a positive number" in refused(tampered(model, "tok_emb.weight", QTensor(codes, scale / 0, 6)))
    assert "not finite" in refused(tampered(model, "skip_weights", torch.full((1, 4), float("inf"))))


@pytest.mark.parametrize(
    "other",
    [
        {"vocab_size": 9},
        {"num_layers": 3},
        {"num_layers": 1},
        {"model_dim": 8},
        {"num_kv_heads": 2},
        {"embed": UntiedEmbed()},
    ],
    ids=str,
)
def test_another_configuration_is_refused(small, other):
    message = refused(small[1], replace(CONFIG, **other))
    assert "configuration" in message


def test_the_manifest_states_every_parameter(small):
    raw, at = manifest_bytes(small[0]), 0
    for index, spec in enumerate(param_specs(CONFIG)):
        dims = len(spec.shape)
        name_id, _, _, ndim, *shape = struct.unpack_from(f"<HBBB{dims}I", raw, at)
        assert (name_id, ndim, tuple(shape)) == (index, dims, spec.shape)
        at += 5 + 4 * dims
    assert len(raw) == at + 32


# Codecs

RAW = bytes(range(256)) * 4 + b"parameter golf " * 40


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=40)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.integers(0, 70_000).map(bytes),
        st.binary(min_size=1, max_size=9).map(lambda b: b * 500),
    )
)
def test_codecs_give_back_any_bytes(name, raw):
    assert FAST[name].decode(FAST[name].encode(raw), len(raw)) == raw


@pytest.mark.parametrize("name", FAST)
@settings(max_examples=60)
@given(st.binary(max_size=80), st.integers(0, 5000))
def test_codecs_refuse_noise_with_input_error_only(name, body, length):
    try:
        assert len(FAST[name].decode(body, length)) == length
    except InputError as error:
        assert error.exit_code == 3


@pytest.mark.parametrize("name", FAST)
def test_codecs_refuse_a_wrong_length(name):
    coded = FAST[name].encode(RAW)
    for length in (0, 1, len(RAW) - 1, len(RAW) + 1, 400 << 20):
        with pytest.raises(InputError):
            FAST[name].decode(coded, length)


@pytest.mark.parametrize("name", FAST)
def test_codecs_refuse_every_truncation(name):
    coded = FAST[name].encode(RAW)
    for length in [*range(min(len(coded), 60)), *range(max(len(coded) - 60, 0), len(coded))]:
        with pytest.raises(InputError):
            FAST[name].decode(coded[:length], len(RAW))


TAILS = {
    "zero": b"\0",
    "noise": b"junk",
    "magic": b"\x28\xb5\x2f\xfd",
    "skippable frame": b"\x50\x2a\x4d\x18\0\0\0\0",
    "empty frame": zstandard.ZstdCompressor().compress(b""),
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("name", FAST)
def test_codecs_refuse_bytes_after_the_end(name, tail):
    with pytest.raises(InputError):
        FAST[name].decode(FAST[name].encode(RAW) + TAILS[tail], len(RAW))


# Bombs: bodies of less than a megabyte that hold a gibibyte of zeros

MEASURE = """
import importlib, re, sys
from pgolf.core.errors import InputError
kind, path = sys.argv[1:]
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
codec = getattr(importlib.import_module(f"pgolf.core.codecs.{kind}"), kind.title())()
codec.decode(codec.encode(b"warm up"), 7)
body = open(path, "rb").read()
before = peak()
try:
    codec.decode(body, 1000)
except InputError as error:
    print(peak() - before, error)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory of a process from /proc")
@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.fault(row="F9")
def test_a_bomb_is_refused_in_little_memory(tmp_path, kind):
    body = BOMBS[kind](64)
    assert len(body) < 1_200_000
    (tmp_path / "bomb").write_bytes(body)
    command = [sys.executable, "-c", MEASURE, kind, str(tmp_path / "bomb")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)
    kib, _, message = result.stdout.partition(" ")
    assert kind in message.lower()
    assert int(kib) < 16 << 10


RANS_MEASURE = """
import re, struct, sys
from pgolf.core.codecs.adaptive import Rans
from pgolf.core.errors import InputError
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
body, length = open(sys.argv[1], "rb").read(), int(sys.argv[2])
Rans().decode(Rans().encode(b"warm up"), 7)
before = peak()
try:
    print(len(Rans().decode(body, length)), end=" ")
except InputError as error:
    print(0, end=" ")
print(peak() - before)
"""


SIDE = 2048


@cache
def zeros_by_rans():
    """SIDE x SIDE zeros, encoded."""
    return Rans().encode(bytes(SIDE * SIDE), [(SIDE, SIDE)])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory of a process from /proc")
@pytest.mark.parametrize("lie", ["none", "length", "shape", "cut"])
@pytest.mark.fault(row="F9")
def test_rans_needs_memory_only_for_what_is_declared(tmp_path, lie):
    """Zeros take next to nothing: a bomb is what says it is one, and costs a few bytes for each it declares."""
    body, length = bytearray(zeros_by_rans()), SIDE * SIDE
    assert len(body) < 20_000
    if lie == "length":
        length = 1000
    elif lie == "shape":
        body[3:11] = struct.pack("<II", 2**31, 2**31)
    elif lie == "cut":
        body = body[: len(body) // 2]
    (tmp_path / "bomb").write_bytes(body)
    command = [sys.executable, "-c", RANS_MEASURE, str(tmp_path / "bomb"), str(length)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)
    decoded, kib = map(int, result.stdout.split())
    assert decoded == (SIDE * SIDE if lie == "none" else 0)
    assert kib < (6 * SIDE * SIDE >> 10) + (4 << 10) if lie in ("none", "cut") else kib < 4 << 10


@pytest.mark.parametrize("kind", ["zlib", "lzma", "brotli"])
def test_the_bombs_are_real(kind):
    raw = FAST[kind].decode(BOMBS[kind](2), 2 * UNIT)
    assert len(raw) == 2 * UNIT
    assert not any(raw[:: 1 << 16])


def test_the_zstd_bomb_is_real():
    frame = zstd_bomb(2)
    honest = frame[:4] + bytes([0x80, 0x58]) + struct.pack("<I", 2 * UNIT) + frame[8:]
    assert Zstd().decode(honest, 2 * UNIT) == bytes(2 * UNIT)
    assert zstandard.frame_content_size(frame) == 1000


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.fault(row="F9")
def test_a_bomb_inside_an_artifact_is_refused(small, kind):
    sections = parts(small[0])
    sections[SCALES] = (SCALES, FAST[kind].codec_id, 1000, BOMBS[kind](1))
    assert kind in refused(pack_container([*sections.values()])).lower()


@pytest.mark.fault(row="F9")
def test_sections_that_state_too_much_are_refused_before_decoding(small):
    sections = parts(small[0])
    for raw_len in (1 << 29, 0xFFFFFFFF):
        blob = pack_container([*(sections | {SCALES: (SCALES, 1, raw_len, b"x")}).values()])
        assert "more than 512 MiB" in refused(blob)
