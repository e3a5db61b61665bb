"""A file is the old one or the whole new one; full disks and bad JSON end in an error that says so."""

import contextlib
import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pgolf.core.errors import InputError, StorageError
from pgolf.core.files import (
    GrowingFile,
    append_durably,
    append_text,
    atomic_file,
    clean_parts,
    cut_half_line,
    free_bytes,
    make_dir,
    move_file,
    parse_json,
    read_bytes,
    read_json,
    sha256_file,
    write_bytes,
    write_json,
)


@pytest.fixture
def target(tmp_path):
    """A file with old content."""
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    return path


def failing(code):
    """A function that raises an OSError."""

    def call(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return call


def untouched(path):
    """Whether the file still has its old content and nothing lies beside it."""
    return path.read_bytes() == b"old" and [entry.name for entry in path.parent.iterdir()] == [path.name]


# Writing


def test_a_write_replaces_the_file_and_leaves_nothing_else(target):
    write_bytes(target, b"new")
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


def test_pieces_are_joined_and_parents_made(tmp_path):
    path = tmp_path / "a" / "b" / "c.bin"
    write_bytes(path, (bytes([index]) for index in range(4)))
    assert path.read_bytes() == b"\0\1\2\3"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_buffers_are_written_whole(tmp_path, kind):
    write_bytes(tmp_path / "x", kind(b"abc"))
    assert (tmp_path / "x").read_bytes() == b"abc"


def test_a_failure_in_the_block_keeps_the_old_file(target):
    with pytest.raises(RuntimeError, match="half way"), atomic_file(target) as file:
        file.write(b"half")
        raise RuntimeError("half way")
    assert untouched(target)


def test_the_target_is_old_until_the_block_ends(target):
    with atomic_file(target) as file:
        file.write(b"new" * 100_000)
        file.flush()
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new" * 100_000


def test_pieces_that_fail_half_way_keep_the_old_file(target):
    def pieces():
        yield b"x" * 100_000
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bytes(target, pieces())
    assert untouched(target)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_a_storage_error(target, monkeypatch, code, call):
    monkeypatch.setattr(f"pgolf.core.files.os.{call}", failing(code))
    with pytest.raises(StorageError, match=r"no space left while writing out\.bin.*bytes are free") as caught:
        write_bytes(target, b"new")
    monkeypatch.undo()
    assert caught.value.exit_code == 6
    assert str(target.parent) in str(caught.value)
    assert untouched(target)


def test_a_disk_that_fills_while_writing(target):
    with pytest.raises(StorageError, match="no space left"), atomic_file(target) as file:
        file.write(b"some")
        failing(errno.ENOSPC)()
    assert untouched(target)


@pytest.mark.parametrize(
    ("code", "text"), [(errno.EACCES, "permission denied"), (errno.EROFS, "read-only"), (errno.EIO, "input/output")]
)
def test_other_failures_name_path_and_reason(target, monkeypatch, code, text):
    monkeypatch.setattr("pgolf.core.files.os.fsync", failing(code))
    with pytest.raises(StorageError, match=text) as caught:
        write_bytes(target, b"new")
    monkeypatch.undo()
    assert caught.value.exit_code == 6
    assert str(target) in str(caught.value)
    assert untouched(target)


def growing(path):
    """A file that grows in two pieces and is then put in its place."""
    file = GrowingFile(path.with_suffix(".growing"))
    file.append(b"....wh")
    file.append(b"ole")
    file.publish(path, b"the ")


WAYS = {
    "written": (lambda path: write_bytes(path, b"new"), ["file", "replace", "folder"]),
    "grown": (growing, ["file", "replace", "folder"]),
    "moved": (lambda path: move_file(path.with_name("other"), path), ["replace", "folder"]),
    "appended to": (lambda path: append_durably(path, b"new", 3), ["file"]),
    "begun": (lambda path: append_durably(path, b"new", 0), ["file", "folder"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_data_and_directory_are_synced_in_order(target, monkeypatch, way):
    calls = []
    fsync, replace = os.fsync, os.replace

    def sync(handle):
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    target.with_name("other").write_bytes(b"other")
    monkeypatch.setattr("pgolf.core.files.os.fsync", sync)
    monkeypatch.setattr("pgolf.core.files.os.replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    act, wanted = WAYS[way]
    act(target)
    assert calls == wanted
    found = {"grown": b"the whole", "moved": b"other", "appended to": b"oldnew"}
    assert target.read_bytes() == found.get(way, b"new")


def test_what_dead_writers_left_is_cleaned_away_and_nothing_else(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = [f".x.{gone.pid}.part", f".model.v2.bin.{gone.pid}.part"]
    kept = [f".x.{os.getpid()}.part", f"x.{gone.pid}.part", f".x.{gone.pid}.bin", ".x.name.part", "..part"]
    for name in left + kept:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / f".folder.{gone.pid}.part" / "within").mkdir(parents=True)
    clean_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    clean_parts(tmp_path / "nowhere")


def test_free_bytes_are_those_of_the_nearest_folder_there_is(tmp_path, monkeypatch):
    asked = []
    found = SimpleNamespace(f_bavail=3, f_bfree=5, f_frsize=7, f_bsize=11)
    monkeypatch.setattr("pgolf.core.files.os.statvfs", lambda path: (asked.append(path), found)[1])
    assert free_bytes(tmp_path / "a" / "b") == free_bytes(tmp_path) == 21
    assert asked == [tmp_path, tmp_path]
    monkeypatch.setattr("pgolf.core.files.os.statvfs", failing(errno.EIO))
    assert free_bytes(tmp_path) == 0


def test_a_directory_where_a_file_is_to_be_written(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError, match="a directory stands where a file"):
        write_bytes(tmp_path / "out", b"new")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_file_where_a_directory_is_needed(target):
    with pytest.raises(StorageError) as caught:
        write_bytes(target / "inner.bin", b"new")
    assert caught.value.exit_code == 6
    with pytest.raises(StorageError):
        make_dir(target)
    assert untouched(target)


def test_appending_adds_lines(tmp_path):
    for line in ("one\n", "zwei ü\n"):
        append_text(tmp_path / "log", line)
    assert (tmp_path / "log").read_text() == "one\nzwei ü\n"


@pytest.mark.parametrize("tail", [b"", b"ha", b"x" * 1_000_000])
def test_half_a_line_is_cut_off(tmp_path, tail):
    path = tmp_path / "log"
    cut_half_line(path)
    assert not path.exists()
    path.write_bytes(b"one\ntwo\n" + tail)
    cut_half_line(path)
    assert path.read_bytes() == b"one\ntwo\n"
    path.write_bytes(tail)
    cut_half_line(path)
    assert path.read_bytes() == b"", "a first line of which there is half"


def test_appending_to_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("pgolf.core.files.os.write", failing(errno.ENOSPC))
    with pytest.raises(StorageError, match="no space left"):
        append_text(tmp_path / "log", "line\n")


def test_appending_never_silently_loses_the_end_of_a_line(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr("pgolf.core.files.os.write", lambda handle, content: write(handle, content[:3]))
    with contextlib.suppress(StorageError):
        append_text(tmp_path / "log", "a whole line\n")
        assert (tmp_path / "log").read_text() == "a whole line\n"


# Reading


def test_reading_within_the_limit(target):
    assert read_bytes(target, 3) == b"old"
    with pytest.raises(InputError, match="has 3 bytes, more than the 2"):
        read_bytes(target, 2)


def test_reading_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file") as caught:
        read_bytes(tmp_path / "gone", 10)
    assert caught.value.exit_code == 3
    assert str(tmp_path / "gone") in str(caught.value)


def test_reading_a_directory(tmp_path):
    for read in (lambda: read_bytes(tmp_path, 10), lambda: sha256_file(tmp_path)):
        with pytest.raises(StorageError, match="is a directory"):
            read()


def test_sha256_of_a_file_of_several_pieces(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "x").write_bytes(content)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()
    with pytest.raises(InputError, match="no such file"):
        sha256_file(tmp_path / "y")


# JSON


def test_json_round_trip(tmp_path):
    value = {"b": [1, 2.5, None, True], "a": {"ü": "\u2028"}, "n": -1e-300}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert (tmp_path / "x.json").read_text().endswith("}\n")
    assert json.loads((tmp_path / "x.json").read_text()) == value


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_json_are_never_written(target, number):
    with pytest.raises(ValueError, match="JSON"):
        write_json(target, {"loss": number})
    assert untouched(target)


BAD_JSON = {
    "empty": b"",
    "duplicate": b'{"a": 1, "b": {"c": 1, "c": 2}}',
    "nan": b'{"a": NaN}',
    "infinity": b"[Infinity]",
    "minus infinity": b"[-Infinity]",
    "overflow": b'{"a": 1e999}',
    "negative overflow": b"[-1e999]",
    "trailing": b"{} {}",
    "trailing comma": b"[1,]",
    "single quotes": b"{'a': 1}",
    "cut": b'{"a": [1, 2',
    "utf-8": b'{"a": "\xff"}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "utf-32": '{"a": 1}'.encode("utf-32-le"),
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "long number": b"1" * 5000,
}


@pytest.mark.parametrize("kind", BAD_JSON)
@pytest.mark.fault(row="F10")
def test_bad_json_is_refused(tmp_path, kind):
    (tmp_path / "x.json").write_bytes(BAD_JSON[kind])
    with pytest.raises(InputError, match="not valid JSON") as caught:
        read_json(tmp_path / "x.json")
    assert str(tmp_path / "x.json") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"), [("[]", []), (b"1.5", 1.5), ('"\\ud83d\\ude00"', "\U0001f600"), (b'{"": null}', {"": None})]
)
def test_good_json_is_read(text, value):
    assert parse_json(text, "x") == value


def test_a_json_file_beyond_the_limit(tmp_path):
    (tmp_path / "x.json").write_bytes(b'"' + b"a" * 100 + b'"')
    with pytest.raises(InputError, match="102 bytes"):
        read_json(tmp_path / "x.json", max_bytes=101)
