"""Arranged sections come back, say in the header what they are, and run programs only when asked to."""

import shutil
import stat
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pgolf.core.artifact import PRELUDE, SECTION, decode_artifact
from pgolf.core.codecs.lzma import Lzma
from pgolf.core.codecs.store import Store
from pgolf.core.codecs.zlib import Zlib
from pgolf.core.errors import ConfigError, InputError, SetupError
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.params import CONTROL
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.layouts.arranged import (
    ARRANGEMENTS,
    BASE_2,
    BASE_3,
    COLUMNS,
    PLANES_2,
    PLANES_4,
    Arranged,
    Columns,
    similar_order,
)
from pgolf.layouts.bits import pack_bits, pack_signs, pack_trits, shuffle, unshuffle
from pgolf.layouts.methods import Packed, PerGroup, all_codecs, arranged_artifact, method_name, narrowest
from pgolf.layouts.programs import Lrzip, Program, Zpaq

CONFIG = ModelConfig(vocab_size=8, num_layers=2, model_dim=4, num_heads=2, num_kv_heads=1)
PACKING = """#!{python}
import sys, zlib, pathlib, os
words = sys.argv[1:]
assert sorted(os.listdir(".")) in (["raw"], ["coded.zpaq"]), os.listdir(".")
if "-d" in words or words[0] == "x":
    pathlib.Path("back").write_bytes({extra} * 1 + zlib.decompress(pathlib.Path("coded.zpaq").read_bytes()))
else:
    pathlib.Path("coded.zpaq").write_bytes(zlib.compress(pathlib.Path("raw").read_bytes()))
"""


def model_of(limits: list[int], seed: int = 0, config: ModelConfig = CONFIG) -> QuantizedModel:
    """A quantized model whose tensors have codes up to the limits in turn; limit 0 is a float16 tensor."""
    rng, model = np.random.default_rng(seed), QuantizedModel(config)
    for index, spec in enumerate(param_specs(config)):
        limit = limits[index % len(limits)]
        if spec.role == CONTROL or not limit:
            values = rng.standard_normal(spec.shape)
            kind = np.float32 if spec.role == CONTROL else np.float16
            model.tensors[spec.name] = torch.from_numpy(values.astype(kind))
            continue
        codes = torch.from_numpy(rng.integers(-limit, limit + 1, spec.shape).astype(np.int8))
        scale = torch.from_numpy(np.exp(rng.uniform(-9, 2, spec.shape[0])).astype(np.float16))
        model.tensors[spec.name] = QTensor(codes, scale, limit.bit_length() + 1)
    return model


def methods_of(blob: bytes) -> dict[int, str]:
    """Section -> method, as the header says."""
    count = PRELUDE.unpack_from(blob)[3]
    return {
        ident: method_name(codec) for ident, codec, *_ in (SECTION.unpack_from(blob, 16 + 14 * i) for i in range(count))
    }


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str = "", extra: str = 'b""') -> None:
    """Put programs of ours under the names lrzip and zpaq, and nothing else on the path."""
    folder.mkdir()
    for name in ("lrzip", "zpaq"):
        path = folder / name
        path.write_text(text or PACKING.format(python=sys.executable, extra=extra))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


# Bits and planes


def test_four_codes_of_six_bits_are_three_bytes() -> None:
    assert pack_bits(np.array([-32, -31, 0, 31], np.int8), 6) == (0 | 1 << 6 | 32 << 12 | 63 << 18).to_bytes(
        3, "little"
    )
    assert pack_trits(np.array([-1, 0, 1, 1, 0, 1], np.int8)) == bytes([0 + 3 + 2 * 9 + 2 * 27 + 81, 2])
    assert pack_signs(np.array([1, -1, 1, 1, -1, -1, -1, 1, 1], np.int8)) == bytes([0b10001101, 1])


@settings(deadline=None, max_examples=80)
@given(st.sampled_from([3, 4, 5, 6, 7, BASE_3, BASE_2]), st.integers(0, 50), st.randoms(use_true_random=False))
def test_packed_codes_come_back(layout: int, count: int, random) -> None:
    half = 1 << layout - 1
    alphabet = {BASE_3: [-1, 0, 1], BASE_2: [-1, 1]}.get(layout) or range(-half, half)
    raw = np.array([random.choice(alphabet) for _ in range(count)], np.int8).tobytes()
    arranged = Arranged(layout, Store())
    coded = arranged.encode(raw)
    assert len(coded) == arranged.size(len(raw)) <= -(-len(raw) * 7 // 8)
    assert arranged.decode(coded, len(raw)) == raw
    assert Arranged(layout, Zlib()).decode(Arranged(layout, Zlib()).encode(raw), len(raw)) == raw


@given(st.binary(max_size=200), st.integers(1, 5))
def test_shuffled_bytes_come_back(raw: bytes, stride: int) -> None:
    assert unshuffle(shuffle(raw, stride), stride) == raw
    assert shuffle(b"aAbBc", 2) == b"abcAB"


@pytest.mark.parametrize(
    ("layout", "coded", "count"),
    [(BASE_3, b"\xf3", 5), (BASE_3, b"\x51", 4), (BASE_2, b"\x80", 7), (6, b"\0\0\x80", 3)],
)
def test_packed_bytes_that_no_codes_give_are_refused(layout: int, coded: bytes, count: int) -> None:
    with pytest.raises(InputError):
        Arranged(layout, Store()).decode(coded, count)


# Columns


@settings(deadline=None, max_examples=60)
@given(
    st.lists(hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9)), max_size=4),
    st.booleans(),
)
def test_columns_come_back(matrices: list[np.ndarray], similar: bool) -> None:
    raw, codec = b"".join(matrix.tobytes() for matrix in matrices), Columns(Zlib(), similar)
    coded = codec.encode(raw, [matrix.shape for matrix in matrices])
    assert codec.decode(coded, len(raw)) == raw
    assert Columns(Zlib()).decode(coded, len(raw)) == raw


def test_columns_stand_one_after_another() -> None:
    raw = np.arange(6, dtype=np.int8).reshape(2, 3).tobytes()
    assert Columns(Store()).encode(raw, [(2, 3)]).endswith(bytes([0, 3, 1, 4, 2, 5]))


def test_similar_rows_become_neighbours(rng: np.random.Generator) -> None:
    kinds = rng.integers(-40, 40, (4, 64))
    codes = (kinds[rng.integers(0, 4, 80)] + rng.integers(-1, 2, (80, 64))).astype(np.int8)
    order = similar_order(codes)
    assert sorted(order) == list(range(80)) and order[0] == 0
    changes = np.abs(np.diff(codes[order].astype(int), axis=0)).sum(1) > 64 * 3
    assert changes.sum() == 3
    plain, similar = (Columns(Lzma(), way).encode(codes.tobytes(), [codes.shape]) for way in (False, True))
    assert len(similar) < len(plain)


@pytest.mark.parametrize(
    "change",
    [
        lambda good: good[:10],
        lambda good: good[:2] + struct.pack("<IIB", 3, 2, 1) + good[11:],
        lambda good: good[:2] + struct.pack("<IIB", 2**31, 2**31, 1) + good[11:],
        lambda good: good[:2] + struct.pack("<IIB", 3, 3, 2) + good[11:],
        lambda good: good[:15] + b"\0" + good[16:],
        lambda good: good[:11] + struct.pack("<I", 2**31) + good[15:],
    ],
)
def test_damaged_columns_are_refused(change) -> None:
    raw = np.arange(9, dtype=np.int8).tobytes()
    good = Columns(Store(), similar=True).encode(raw, [(3, 3)])
    assert Columns(Store()).decode(good, 9) == raw
    with pytest.raises(InputError):
        Columns(Store()).decode(change(good), 9)


def test_an_order_that_is_no_permutation_is_refused() -> None:
    import zlib

    side = zlib.compress(struct.pack("<3H", 0, 0, 2))
    coded = struct.pack("<HIIBI", 1, 3, 1, 1, len(side)) + side + b"abc"
    with pytest.raises(InputError, match="permutation"):
        Columns(Store()).decode(coded, 3)


# Artifacts


@pytest.mark.parametrize(
    ("codes", "layout"),
    [
        ([-1, 1], BASE_2),
        ([-1, 0, 1], BASE_3),
        ([0, 0], BASE_3),
        ([-4, 3], 3),
        ([4], 4),
        ([31, -32], 6),
        ([64], 0),
        ([], BASE_3),
    ],
)
def test_codes_take_the_fewest_bits(codes: list[int], layout: int) -> None:
    assert narrowest(np.array(codes, np.int8).tobytes()) == layout


@pytest.mark.parametrize(
    "method", [Packed(), Packed(coder="store"), PerGroup(coder="brotli"), PerGroup(coder="zstd", similar=False)]
)
@pytest.mark.parametrize("limits", [[31], [1], [127, 0, 3], [7, 15]])
def test_arranged_artifacts_come_back(method, limits: list[int]) -> None:
    model = model_of(limits)
    blob = arranged_artifact(model, method, b"{}")
    assert blob == arranged_artifact(model, method, b"{}")
    back = decode_artifact(blob, CONFIG, all_codecs())
    assert back.digest() == model.digest()


def test_the_header_states_every_arrangement() -> None:
    found = methods_of(arranged_artifact(model_of([31]), Packed(), b"{}"))
    assert found[1] == "lzma" and found[3] == "planes of 2, lzma" and found[5] == "planes of 4, lzma"
    assert found[16] == "6 bits, lzma"
    assert methods_of(arranged_artifact(model_of([31]), PerGroup(coder="zlib"), b"{}"))[17] == "columns, zlib"


def test_every_codec_byte_is_one_method() -> None:
    codecs = all_codecs()
    assert all(codec.codec_id == number < 256 for number, codec in codecs.items())
    names = [method_name(number) for number in codecs]
    assert len(names) == len(set(names)) == 8 + 7 * len(ARRANGEMENTS)
    assert {COLUMNS, PLANES_2, PLANES_4} < set(ARRANGEMENTS)


def test_a_coder_must_be_known() -> None:
    with pytest.raises(ConfigError, match="rans"):
        PerGroup(coder="rans")
    with pytest.raises(ConfigError, match="timeout"):
        Lrzip(timeout_s=0)


# Programs


@pytest.mark.parametrize("program", [Lrzip(), Zpaq()])
def test_programs_run_in_a_folder_of_their_own(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "bin", monkeypatch)
    coded = program.encode(b"some codes" * 50)
    assert program.decode(coded, 500) == b"some codes" * 50
    assert program.decode(program.encode(b""), 0) == b""
    with pytest.raises(InputError, match=r"400 bytes it promises|more than the 400"):
        program.decode(coded, 400)


@pytest.mark.parametrize("program", [Lrzip(), Zpaq()])
def test_a_program_that_writes_too_much_is_stopped(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "bin", monkeypatch, extra='b"x" * (3 << 20)')
    with pytest.raises(InputError, match=r"failed with code|more than"):
        program.decode(program.encode(b"some codes"), 10)


@pytest.mark.parametrize("name", ["lrzip", "zpaq"])
def test_a_missing_program_is_a_setup_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match=rf"the program {name} is not installed.*rans") as caught:
        arranged_artifact(model_of([31]), PerGroup(coder=name), b"{}")
    assert caught.value.exit_code == 5


def test_a_failing_or_endless_program_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "bin", monkeypatch, f"#!{sys.executable}\nimport sys\nsys.exit('no space; or so')\n")
    with pytest.raises(SetupError, match="lrzip failed with code 1: no space"):
        Lrzip().encode(b"x")
    with pytest.raises(InputError, match="zpaq failed with code 1"):
        Zpaq().decode(b"x", 1)
    install(tmp_path / "slow", monkeypatch, f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    with pytest.raises(SetupError, match=r"did not finish within 0\.2 seconds"):
        Lrzip(timeout_s=0.2).encode(b"x")


def test_no_program_runs_because_a_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "bin", monkeypatch)
    model = model_of([31])
    blob = arranged_artifact(model, PerGroup(), b"{}")
    assert methods_of(blob)[16] == "columns, lrzip"
    ran = tmp_path / "ran"
    install(tmp_path / "trap", monkeypatch, f"#!{sys.executable}\nopen({str(ran)!r}, 'w')\n")
    with pytest.raises(SetupError, match=r"needs the program lrzip.*--run-programs"):
        decode_artifact(blob, CONFIG, all_codecs())
    assert not ran.exists()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert decode_artifact(blob, CONFIG, all_codecs(programs=True)).digest() == model.digest()


@pytest.mark.parametrize("program", [Lrzip(), Zpaq()])
def test_the_real_programs_give_equal_bytes_twice(program: Program) -> None:
    if shutil.which(program.name) is None:
        pytest.skip(f"{program.name} is not installed")
    raw = np.random.default_rng(0).normal(0, 3, 20_000).astype(np.int8).tobytes()
    coded = program.encode(raw)
    assert coded == program.encode(raw) and len(coded) < len(raw)
    assert program.decode(coded, len(raw)) == raw
    with pytest.raises(InputError):
        program.decode(coded[: len(coded) // 2], len(raw))
