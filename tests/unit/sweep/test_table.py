"""The results table: rows stay whole whatever happens, and a finished cell has one row."""

import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from pgolf.core.errors import InputError, StorageError
from pgolf.sweep.table import ROW_SCHEMA, append_row, latest, read_table, rows_of


def row(key: str, state: str = "done", **more: Any) -> dict[str, Any]:
    """A row with a key and little else."""
    return {"key": key, "state": state, **more}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A table with two rows."""
    path = tmp_path / "results.jsonl"
    assert append_row(path, row("a", bpb=1.5)) and append_row(path, row("b", note="zwei ü\nlines"))
    return path


def test_rows_come_back_as_they_were_written(results: Path) -> None:
    assert rows_of(results) == [
        {"schema": ROW_SCHEMA, **row("a", bpb=1.5)},
        {"schema": ROW_SCHEMA, **row("b", note="zwei ü\nlines")},
    ]
    assert len(results.read_bytes().splitlines()) == 2
    assert rows_of(results.parent / "none.jsonl") == []


def test_a_finished_cell_gets_no_second_row(results: Path) -> None:
    before = results.read_bytes()
    assert append_row(results, row("a", bpb=9.0)) is False
    assert append_row(results, row("a", "failed")) is False
    assert results.read_bytes() == before


def test_a_failed_cell_may_try_again(results: Path) -> None:
    for state in ("failed", "failed", "done"):
        assert append_row(results, row("c", state, attempt=state))
    assert len(rows_of(results)) == 5
    counts = latest(rows_of(results))
    assert list(counts) == ["a", "b", "c"] and counts["c"]["attempt"] == "done"


@pytest.mark.parametrize("cut", range(1, 60, 7))
@pytest.mark.fault(row="F21")
def test_a_torn_last_line_does_not_count_and_is_healed(results: Path, cut: int) -> None:
    whole = results.read_bytes()
    assert len(whole.splitlines()[1]) > 60
    results.write_bytes(whole[: -1 - cut])
    assert [found["key"] for found in rows_of(results)] == ["a"]
    assert append_row(results, row("b", again=True)) and append_row(results, row("c"))
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["key"] for line in lines] == ["a", "b", "c"] and lines[1]["again"]


def test_a_last_line_that_lacks_only_its_newline_counts(results: Path) -> None:
    results.write_bytes(results.read_bytes()[:-1])
    assert [found["key"] for found in rows_of(results)] == ["a", "b"]
    assert append_row(results, row("b")) is False
    assert append_row(results, row("c"))
    assert [json.loads(line)["key"] for line in results.read_text().splitlines()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "schema None"),
        (b'{"schema": "pgolf.sweep-row/2", "key": "x", "state": "done"}', "pgolf.sweep-row/2"),
        (b'{"schema": "pgolf.sweep-row/1", "key": "x", "state": "perhaps"}', "state"),
        (b'{"schema": "pgolf.sweep-row/1", "state": "done"}', "no key"),
        (b'{"schema": "pgolf.sweep-row/1", "key": "x", "state": "done", "bpb": NaN}', "NaN"),
        (b"\xff\xfe", "not valid JSON"),
        (b"", "not valid JSON"),
    ],
)
def test_a_damaged_line_in_the_middle_is_named(results: Path, line: bytes, words: str) -> None:
    first, second = results.read_bytes().splitlines(keepends=True)
    results.write_bytes(first + line + b"\n" + second)
    with pytest.raises(InputError, match="line 2") as caught:
        read_table(results)
    assert words in str(caught.value)
    before = results.read_bytes()
    with pytest.raises(InputError):
        append_row(results, row("c"))
    assert results.read_bytes() == before


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_leaves_the_table_as_it_was(results: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    before, write, calls = results.read_bytes(), os.write, []

    def half_written(handle: int, content: bytes) -> int:
        if calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        calls.append(call)
        return write(handle, content[:20])

    def not_synced(handle: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(f"pgolf.core.files.os.{call}", half_written if call == "write" else not_synced)
    with pytest.raises(StorageError, match="no space left"):
        append_row(results, row("c"))
    assert results.read_bytes() == before


def append_many(path: Path, worker: int) -> None:
    """Rows of one worker, and rows that all of them want to write."""
    for index in range(25):
        append_row(path, row(f"{worker}-{index}", text="x" * 5000))
        append_row(path, row(f"shared-{index}", by=worker))


@pytest.mark.fault(row="F21")
def test_writers_at_once_lose_nothing_and_finish_no_cell_twice(tmp_path: Path) -> None:
    path, context = tmp_path / "results.jsonl", multiprocessing.get_context("fork")
    workers = [context.Process(target=append_many, args=(path, worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        rows_of(path)
        workers[0].join(0.01)
    assert [worker.exitcode for worker in workers] == [0] * 4
    keys = [found["key"] for found in rows_of(path)]
    assert len(keys) == len(set(keys)) == 4 * 25 + 25
