"""Token shards: what is written is read back, every kind of damage is named, and the stream never skips an id."""

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.core.errors import InputError, PgolfError
from pgolf.core.shards import HEADER_BYTES, SHARD_MAGIC, TokenStream, list_shards, load_split, open_shard, write_shard

ids_lists = st.lists(st.integers(0, 65535), min_size=1, max_size=40)


def raw_shard(ids, magic=SHARD_MAGIC, version=1, count=None, order="<"):
    """Bytes of a shard, put together without pgolf."""
    count = len(ids) if count is None else count
    return struct.pack(f"{order}256i", magic, version, count, *[0] * 253) + struct.pack(f"{order}{len(ids)}H", *ids)


# Round trip


@given(ids_lists)
def test_written_ids_are_read_back(tmp_path_factory, ids):
    path = tmp_path_factory.mktemp("shard") / "a_train_000000.bin"
    write_shard(path, np.array(ids, dtype=np.uint16))
    assert path.read_bytes() == raw_shard(ids)
    assert open_shard(path).dtype == np.dtype("<u2")
    assert open_shard(path).tolist() == ids


def test_one_id_is_enough(tmp_path):
    write_shard(tmp_path / "x.bin", np.array([65535], dtype=np.uint16))
    assert (tmp_path / "x.bin").stat().st_size == HEADER_BYTES + 2
    assert open_shard(tmp_path / "x.bin").tolist() == [65535]


@pytest.mark.parametrize("large", [65536, 2**31])
def test_an_id_beyond_two_bytes_is_refused(tmp_path, large):
    with pytest.raises(InputError, match=f"token id {large} does not fit"):
        write_shard(tmp_path / "x.bin", np.array([3, large, 4]))
    assert not (tmp_path / "x.bin").exists()


def test_nonzero_reserved_words_are_ignored(tmp_path):
    content = bytearray(raw_shard([3, 4]))
    content[1000] = 77
    (tmp_path / "x.bin").write_bytes(content)
    assert open_shard(tmp_path / "x.bin").tolist() == [3, 4]


def test_a_strided_big_endian_array_is_written_as_its_values(tmp_path):
    ids = np.arange(20, dtype=">u2")[::3]
    write_shard(tmp_path / "x.bin", ids)
    assert open_shard(tmp_path / "x.bin").tolist() == [0, 3, 6, 9, 12, 15, 18]


# Damage

DAMAGE = {
    "empty": (b"", "has 0 bytes"),
    "cut header": (raw_shard([1, 2])[:700], "has 700 bytes"),
    "no ids": (raw_shard([]), "has 1,024 bytes"),
    "magic": (raw_shard([1, 2], magic=20240521), "magic number 20240521.*not a token shard"),
    "big-endian": (raw_shard([1, 2], order=">"), "big-endian"),
    "version": (raw_shard([1, 2], version=2), "shard version 2, expected 1"),
    "truncated": (raw_shard([1, 2, 3])[:-2], "promises 3 ids, the file holds 2\\b"),
    "odd": (raw_shard([1, 2, 3])[:-1], "promises 3 ids, the file holds 2.5"),
    "trailing": (raw_shard([1, 2, 3]) + b"\0\0", "promises 3 ids, the file holds 4"),
    "zero count": (raw_shard([1, 2], count=0), "promises 0 ids, the file holds 2"),
    "negative count": (raw_shard([1, 2], count=-2), "promises -2 ids"),
    "huge count": (raw_shard([1, 2], count=2**31 - 1), "promises 2,147,483,647 ids"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_shard_is_named(tmp_path, kind):
    content, message = DAMAGE[kind]
    path = tmp_path / "x_val_000000.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        open_shard(path)
    assert caught.value.exit_code == 3
    assert str(path) in str(caught.value)


def test_every_damage_has_its_own_message(tmp_path):
    messages = set()
    for content, _ in DAMAGE.values():
        (tmp_path / "x.bin").write_bytes(content)
        with pytest.raises(InputError) as caught:
            open_shard(tmp_path / "x.bin")
        messages.add(str(caught.value))
    assert len(messages) == len(DAMAGE)


def test_a_missing_shard(tmp_path):
    with pytest.raises(InputError, match="no such file") as caught:
        open_shard(tmp_path / "gone.bin")
    assert "gone.bin" in str(caught.value)


def test_a_directory_instead_of_a_shard(tmp_path):
    with pytest.raises(PgolfError) as caught:
        open_shard(tmp_path)
    assert caught.value.exit_code in (3, 6)
    assert str(tmp_path) in str(caught.value)


def test_ids_beyond_the_vocabulary(tmp_path):
    paths = [tmp_path / f"x_train_00000{index}.bin" for index in range(2)]
    write_shard(paths[0], np.array([0, 99], dtype=np.uint16))
    write_shard(paths[1], np.array([5, 100, 7], dtype=np.uint16))
    assert [shard.tolist() for shard in load_split(paths, 101)] == [[0, 99], [5, 100, 7]]
    with pytest.raises(InputError, match="token id 100 is beyond the vocabulary of 100") as caught:
        load_split(paths, 100)
    assert "x_train_000001.bin" in str(caught.value)


# Listing


def test_only_shards_of_the_split_are_listed_in_order(tmp_path):
    good = ["fineweb_train_000000.bin", "fineweb_train_000001.bin", "fineweb_train_000010.bin"]
    others = [
        "fineweb_val_000000.bin",
        "fineweb_val_bytes_000000.bin",
        "fineweb_train_bytes_000000.bin",
        "fineweb_bytes_train_000000.bin",
        "fineweb_train_00000.bin",
        "fineweb_train_000002.bin.part",
        ".fineweb_train_000003.bin.77.part",
        "fineweb_train_000004.idx",
        "fineweb_test_000000.bin",
    ]
    for name in reversed(good + others):
        (tmp_path / name).touch()
    assert list_shards(tmp_path, "train") == [tmp_path / name for name in good]
    assert list_shards(tmp_path, "val") == [tmp_path / "fineweb_val_000000.bin"]
    assert list_shards(tmp_path / "nowhere", "train") == []


# Stream


@given(st.lists(ids_lists, min_size=1, max_size=5), st.lists(st.integers(1, 90), min_size=1, max_size=6))
def test_the_stream_repeats_the_concatenation(shards, counts):
    arrays = [np.array(ids, dtype=np.uint16) for ids in shards]
    stream = TokenStream(arrays)
    taken = [stream.take(count) for count in counts]
    assert [len(piece) for piece in taken] == counts
    assert taken[0].dtype == np.int64
    expected = np.resize(np.concatenate(arrays), sum(counts))
    np.testing.assert_array_equal(np.concatenate(taken), expected)
    assert stream.position == sum(counts)


@given(st.lists(ids_lists, min_size=1, max_size=4), st.integers(0, 200), st.integers(1, 60))
def test_a_position_is_all_a_stream_remembers(shards, before, count):
    arrays = [np.array(ids, dtype=np.uint16) for ids in shards]
    stream = TokenStream(arrays)
    if before:
        stream.take(before)
    resumed = TokenStream(arrays, position=before)
    np.testing.assert_array_equal(stream.take(count), resumed.take(count))


# What a type checker knows


TYPED = """
from pathlib import Path

import numpy as np

from pgolf.core.shards import TrainStream, list_shards, load_split
from pgolf.dataset import Dataset


def right(dataset: Dataset, folder: Path) -> None:
    TrainStream(dataset.split("train"))
    TrainStream(load_split(list_shards(folder, "train"), 9), 7)


def wrong(dataset: Dataset, folder: Path, name: str, ids: np.ndarray) -> None:
    TrainStream(dataset.split("val"))
    TrainStream(dataset.split(name))
    TrainStream(load_split(list_shards(folder, "val"), 9))
    TrainStream([dataset.validation()[0]])
    TrainStream([ids])
"""


@pytest.mark.slow
def test_a_type_checker_lets_no_validation_tokens_into_what_calibration_takes(tmp_path):
    path = tmp_path / "typed.py"
    path.write_text(TYPED)
    root = Path(__file__).parents[3]
    argv = [sys.executable, "-m", "mypy", "--config-file", str(root / "pyproject.toml"), "--no-error-summary"]
    done = subprocess.run([*argv, str(path)], cwd=root, capture_output=True, text=True, timeout=600)
    assert not done.stderr
    wanted = [number for number, line in enumerate(TYPED.splitlines(), 1) if line.startswith("    TrainStream")][2:]
    found = [line.split(":")[1] for line in done.stdout.splitlines() if 'expected "TrainShards"' in line]
    assert [int(number) for number in found] == wanted and done.stdout.count("error") == len(wanted), done.stdout
