"""Checkpoints come back bit for bit, and a file that differs in one bit, lies about itself or is cut off is refused."""

import contextlib
import hashlib
import json
import os
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pgolf.core.errors import InputError, StorageError
from pgolf.core.tensorfile import BLANK, load_tensors, save_tensors, tensor_meta, tensors_sha256

SCHEMA = "pgolf.checkpoint/1"
META = {"schema": SCHEMA, "step": 7, "config": {"model": {"num_layers": 2}}, "note": 'quotes " and ümläuts', "lr": 0.1}


def tensors():
    """One tensor of every kind that pgolf stores."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(5, 7, generator=generator)
    return {
        "a.float32": normal,
        "a.float16": normal.half(),
        "a.bfloat16": normal.bfloat16(),
        "b.int8": torch.arange(-128, 128).to(torch.int8),
        "b.int64": torch.tensor([2**62, -1]),
        "c.scalar": torch.tensor(3.0),
        "c.empty": torch.zeros(0, 4),
        "c.special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "d.transposed": normal.T,
    }


def bits(tensor):
    """Raw bytes of a tensor."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Path and bytes of a good file."""
    path = tmp_path_factory.mktemp("good") / "model.safetensors"
    save_tensors(path, tensors(), META)
    return path, path.read_bytes()


def build(metadata, header=None, body=bytes(8), seal=True):
    """A safetensors file by hand, its hash filled in where the metadata leaves it blank."""
    entries = header if header is not None else {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    with contextlib.suppress(TypeError, KeyError, ValueError):  # some are malformed on purpose
        metadata = {"pgolf": json.dumps({"sha256": metadata["sha256"], **json.loads(metadata["pgolf"])})}
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    blob = struct.pack("<Q", len(text)) + text + body
    return blob.replace(BLANK.encode(), hashlib.sha256(blob).hexdigest().encode(), 1) if seal else blob


def refused(path, blob, schema=SCHEMA):
    """The message with which a file's bytes are refused."""
    path.write_bytes(blob)
    with pytest.raises(InputError) as caught:
        load_tensors(path, schema)
    assert caught.value.exit_code == 3
    assert str(path) in str(caught.value)
    return str(caught.value)


# Round trip


def test_tensors_metadata_and_hash_come_back(good):
    path, blob = good
    loaded, meta, digest = load_tensors(path, SCHEMA)
    assert {key: meta[key] for key in META} == META
    assert meta["tensors_sha256"] == tensors_sha256(tensors())
    assert set(loaded) == set(tensors())
    for name, tensor in tensors().items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(loaded[name]) == bits(tensor)
    assert digest.encode() in blob
    assert hashlib.sha256(blob.replace(digest.encode(), BLANK.encode())).hexdigest() == digest


def test_the_hash_is_returned_on_writing(tmp_path):
    digest = save_tensors(tmp_path / "x", {"w": torch.ones(3)}, META)
    assert load_tensors(tmp_path / "x", SCHEMA)[2] == digest
    assert save_tensors(tmp_path / "y", {"w": torch.zeros(3)}, META) != digest


def test_a_handmade_file_is_read(tmp_path):
    (tmp_path / "x").write_bytes(
        build({"pgolf": json.dumps({"schema": SCHEMA}), "sha256": BLANK}, body=struct.pack("<2f", 1.5, -2))
    )
    loaded, meta, _ = load_tensors(tmp_path / "x", SCHEMA)
    assert loaded["x"].tolist() == [1.5, -2.0]
    assert meta == {"schema": SCHEMA}


def test_equal_content_makes_equal_files(tmp_path):
    blobs = set()
    for index in range(20):
        save_tensors(tmp_path / f"{index}", {"w": torch.ones(3), "v": torch.zeros(2, 2)}, META)
        blobs.add((tmp_path / f"{index}").read_bytes())
    assert len(blobs) == 1


def test_metadata_that_is_not_json_is_refused_before_writing(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_tensors(tmp_path / "x", {"w": torch.ones(3)}, {"schema": SCHEMA, "loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


# One bit


def flipped(blob, bit):
    """The bytes with one bit changed."""
    work = bytearray(blob)
    work[bit // 8] ^= 1 << bit % 8
    return bytes(work)


def undetected(path, blob, positions):
    """Those bit positions whose flip the reader does not notice; flips happen in place, which is fast."""
    missed = []
    path.write_bytes(blob)
    with path.open("r+b", buffering=0) as file:
        for bit in map(int, positions):
            os.pwrite(file.fileno(), bytes([blob[bit // 8] ^ 1 << bit % 8]), bit // 8)
            try:
                load_tensors(path, SCHEMA)
                missed.append(bit)
            except InputError:
                pass
            os.pwrite(file.fileno(), blob[bit // 8 : bit // 8 + 1], bit // 8)
    assert path.read_bytes() == blob
    return missed


def data_start(blob):
    """Where the header ends."""
    return 8 + struct.unpack_from("<Q", blob)[0]


@pytest.mark.fault(row="F8")
def test_every_bit_of_the_header_is_protected(tmp_path, good):
    assert data_start(good[1]) > 600
    assert undetected(tmp_path / "x", good[1], range(8 * data_start(good[1]))) == []


@pytest.mark.fault(row="F8")
def test_bits_of_the_data_are_protected(tmp_path, good, rng):
    positions = rng.choice(np.arange(8 * data_start(good[1]), 8 * len(good[1])), 300, replace=False)
    assert undetected(tmp_path / "x", good[1], positions) == []


def test_a_flip_in_the_data_is_called_damage(tmp_path, good):
    assert "SHA-256 does not match" in refused(tmp_path / "x", flipped(good[1], 8 * len(good[1]) - 3))


def test_a_flip_that_swaps_two_tensors_is_noticed(tmp_path, good):
    assert b"a.float16" in good[1]
    assert "SHA-256 does not match" in refused(tmp_path / "x", good[1].replace(b"a.float16", b"a.float17"))


# Sizes


@pytest.mark.fault(row="F7")
def test_every_truncation_is_refused(tmp_path, good):
    start = data_start(good[1])
    lengths = [*range(0, start, 7), *range(start - 3, len(good[1]), 11), len(good[1]) - 1]
    for length in lengths:
        assert refused(tmp_path / "x", good[1][:length])


def test_trailing_bytes_are_refused(tmp_path, good):
    assert refused(tmp_path / "x", good[1] + b"\0")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 17 << 20])
@pytest.mark.fault(row="F10")
def test_a_huge_header_length_is_refused_at_once(tmp_path, good, length):
    assert f"claims {length:,} bytes" in refused(tmp_path / "x", struct.pack("<Q", length) + good[1][8:])


@pytest.mark.parametrize(
    ("blob", "message"), [(b"", "only 0 bytes"), (b"\0" * 7, "only 7 bytes"), (bytes(64), "not valid JSON")]
)
def test_files_too_small_for_a_header(tmp_path, blob, message):
    assert message in refused(tmp_path / "x", blob)


def test_missing_files_and_directories(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_tensors(tmp_path / "gone", SCHEMA)
    with pytest.raises(StorageError, match="is a directory"):
        load_tensors(tmp_path, SCHEMA)


# Content

OURS = {"pgolf": json.dumps({"schema": SCHEMA}), "sha256": BLANK}


@pytest.mark.fault(row="F10")
def test_duplicate_keys_are_refused(tmp_path):
    blob = build(OURS)
    text = blob[8:-8].replace(b'"x":', b'"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"x":', 1)
    twice = struct.pack("<Q", len(text)) + text + blob[-8:]
    assert "duplicate key" in refused(tmp_path / "x", twice)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("pgolf.quantized/1", "is a pgolf.quantized, not a pgolf.checkpoint"),
        ("other/1", "is a other, not a pgolf.checkpoint"),
        ("pgolf.checkpoint/2", "format version 2 of pgolf.checkpoint; this pgolf reads 1"),
        ("pgolf.checkpoint/10", "format version 10"),
        ("", "without a schema"),
    ],
)
@pytest.mark.fault(row="F11")
def test_another_schema_or_version_is_named(tmp_path, schema, message):
    assert message in refused(tmp_path / "x", build({"pgolf": json.dumps({"schema": schema}), "sha256": BLANK}))


def test_somebody_elses_safetensors_file_is_pointed_to_import(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "x")
    with pytest.raises(InputError, match="pgolf import"):
        load_tensors(tmp_path / "x", SCHEMA)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        [],
        "text",
        {"sha256": BLANK},
        {"pgolf": json.dumps({"schema": SCHEMA})},
        {"pgolf": json.dumps({"schema": SCHEMA}), "sha256": BLANK[1:]},
        {"pgolf": "{broken", "sha256": BLANK},
    ],
    ids=str,
)
def test_incomplete_metadata_is_refused(tmp_path, metadata):
    assert refused(tmp_path / "x", build(metadata))


@pytest.mark.parametrize("inner", [5, None, {"schema": SCHEMA}, "[]", "null", "7"], ids=repr)
def test_metadata_of_a_wrong_type_is_refused(tmp_path, inner):
    assert refused(tmp_path / "x", build({"pgolf": inner, "sha256": BLANK}))


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]},
        {"dtype": "Q9", "shape": [2], "data_offsets": [0, 8]},
        {"shape": [2]},
        7,
    ],
    ids=str,
)
@pytest.mark.fault(row="F11")
def test_a_sealed_file_with_impossible_tensors_is_refused(tmp_path, entry):
    assert "not a valid safetensors file" in refused(tmp_path / "x", build(OURS, {"x": entry}))


def test_tensor_meta_reads_without_verifying(tmp_path, good):
    (tmp_path / "x").write_bytes(flipped(good[1], 8 * len(good[1]) - 1))
    meta, digest = tensor_meta(tmp_path / "x")
    assert {key: meta[key] for key in META} == META
    assert meta["tensors_sha256"] == tensors_sha256(tensors())
    assert digest == load_tensors(good[0], SCHEMA)[2]
