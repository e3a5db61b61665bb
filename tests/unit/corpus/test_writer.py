"""Growing datasets: shards against an independent layout, and going on after every way of being cut short."""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgolf.core.errors import InputError, StorageError
from pgolf.core.files import GrowingFile, write_json
from pgolf.corpus.writer import (
    SPLITS,
    TOTALS,
    DatasetWriter,
    SplitWriter,
    commit,
    documents_header,
    hashes_sha256,
    unfinished_commit,
)
from pgolf.dataset import DOCUMENT, PARTIAL

LIMIT = 10
KEY = "k" * 64


def batch(first: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, int]]:
    """Documents `first` to `first + count`: document n has n % 7 + 1 tokens of value n."""
    entries = np.zeros(count, DOCUMENT)
    numbers = np.arange(first, first + count)
    entries["hash"], entries["bytes"], entries["tokens"] = numbers * 10**17, numbers, numbers % 7 + 1
    ids = np.repeat(numbers, numbers % 7 + 1).astype("<u2")
    return entries, ids, ids + 1, dict.fromkeys(TOTALS, len(ids)) | {"documents": count}


def fill(writer: DatasetWriter, until: int, step: int = 1) -> None:
    """Add documents, every third to val, `step` at a time."""
    while writer.next_document < until:
        first, count = writer.next_document, min(step, until - writer.next_document)
        split = "val" if first % 3 == 0 else "train"
        writer.splits[split].add(*batch(first, count))
        writer.mark(first + count)


def finished(writer: DatasetWriter) -> dict[str, bytes]:
    """Every published file after finishing."""
    writer.finish()
    writer.close()
    return {path.name: path.read_bytes() for path in sorted(writer.folder.iterdir()) if path.name != "progress.json"}


def make(out: Path, **options: Any) -> DatasetWriter:
    """A writer with sidecars, and a tokenizer of ten bytes in place."""
    writer = DatasetWriter(out, KEY, LIMIT, True, 0, **options)
    if not writer.resumed:
        writer.put_tokenizer(b"0123456789")
    return writer


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Sixty documents without interruption."""
    writer = make(tmp_path_factory.mktemp("straight"))
    fill(writer, 60)
    return finished(writer)


# Layout


def test_the_files_are_what_they_should_be(straight: dict[str, bytes]) -> None:
    values = {"train": [n for n in range(60) if n % 3], "val": [n for n in range(60) if n % 3 == 0]}
    expected = {"tokenizer.model": b"0123456789"}
    for split, numbers in values.items():
        ids = [n for n in numbers for _ in range(n % 7 + 1)]
        streams = {f"fineweb_{split}": ids} | ({"fineweb_val_bytes": [n + 1 for n in ids]} if split == "val" else {})
        for stem, stream in streams.items():
            for index in range(0, len(stream), LIMIT):
                part = stream[index : index + LIMIT]
                header = struct.pack("<256i", 20240520, 1, len(part), *[0] * 253)
                expected[f"{stem}_{index // LIMIT:06d}.bin"] = header + struct.pack(f"<{len(part)}H", *part)
        entries = np.array([(n * 10**17, n, n % 7 + 1) for n in numbers], DOCUMENT)
        expected[f"documents_{split}.npy"] = documents_header(len(numbers)) + entries.tobytes()
    assert straight == expected


@pytest.mark.parametrize("step", [2, 3, 60])
def test_batches_do_not_matter(tmp_path: Path, step: int) -> None:
    results = []
    for size in (1, step):
        split = SplitWriter(tmp_path / str(size), "train", LIMIT, False, {})
        for first in range(0, 60, size):
            split.add(*batch(first, size))
        split.finish()
        results.append({path.name: path.read_bytes() for path in (tmp_path / str(size)).iterdir()})
    assert results[0] == results[1] and len(results[0]) > 20


@pytest.mark.parametrize(("documents", "sizes"), [(0, []), (1, [1]), (4, [10]), (5, [10, 5])])
def test_exact_multiples_leave_no_empty_shard(tmp_path: Path, documents: int, sizes: list[int]) -> None:
    split = SplitWriter(tmp_path, "val", LIMIT, True, {})
    if documents:
        split.add(*batch(0, documents))
    entry = split.finish()
    assert [shard["tokens"] for shard in entry["shards"]] == sizes
    assert [shard["tokens"] for shard in entry["sidecars"]] == sizes
    assert len(list(tmp_path.glob("*.bin"))) == 2 * len(sizes) and not list(tmp_path.glob("*.growing"))
    loaded = np.load(tmp_path / "documents_val.npy")
    assert len(loaded) == documents == entry["document_list"]["documents"]


def test_a_shard_may_be_shorter_than_one_document(tmp_path: Path) -> None:
    split = SplitWriter(tmp_path, "train", 2, False, {})
    assert split.add(*batch(6, 1)), "a shard became full"
    assert [shard["tokens"] for shard in split.finish()["shards"]] == [2, 2, 2, 1]


@pytest.mark.parametrize("count", [0, 1, 9, 10, 999_999, 123_456_789_012])
def test_the_header_of_a_document_list(tmp_path: Path, count: int) -> None:
    import io

    header = io.BytesIO(documents_header(count))
    assert len(documents_header(count)) == len(documents_header(0))
    assert np.lib.format.read_magic(header) == (1, 0)
    assert np.lib.format.read_array_header_1_0(header) == ((count,), False, DOCUMENT)


def test_hashes_are_hashed_in_order(tmp_path: Path) -> None:
    entries = batch(0, 50)[0]
    np.save(tmp_path / "a.npy", entries)
    expected = hashlib.sha256(b"".join(int(value).to_bytes(8, "little") for value in entries["hash"])).hexdigest()
    assert hashes_sha256(tmp_path / "a.npy") == expected
    np.save(tmp_path / "b.npy", entries[::-1])
    assert hashes_sha256(tmp_path / "b.npy") != expected


# Going on


@pytest.mark.parametrize("noted", [0, 1, 4, 5, 17, 33, 59, 60])
@pytest.mark.parametrize("beyond", [0, 1, 12, 60])
def test_going_on_from_any_note(tmp_path: Path, straight: dict[str, bytes], noted: int, beyond: int) -> None:
    writer = make(tmp_path)
    fill(writer, noted)
    writer.note()
    fill(writer, min(noted + beyond, 60))
    if noted + beyond >= 60:
        writer.finish()  # all is published, and the process ends before the manifest
    writer.close()
    again = make(tmp_path)
    assert again.resumed and again.next_document == noted
    fill(again, 60)
    assert finished(again) == straight


def test_going_on_time_and_again(tmp_path: Path, straight: dict[str, bytes], rng: np.random.Generator) -> None:
    reached = 0
    for _ in range(12):
        writer = make(tmp_path)
        assert writer.next_document == reached
        target = min(reached + int(rng.integers(0, 9)), 60)
        fill(writer, target)
        if rng.random() < 0.7:
            writer.note()
            reached = target
        fill(writer, min(target + int(rng.integers(0, 9)), 60))
        if rng.random() < 0.5:
            writer.close()
        else:
            writer.finish()
            writer.close()
    writer = make(tmp_path)
    fill(writer, 60)
    assert finished(writer) == straight


def test_a_note_tells_of_the_last_mark(tmp_path: Path, straight: dict[str, bytes]) -> None:
    """A batch that was only half added when the signal came does not count."""
    writer = make(tmp_path)
    fill(writer, 20)
    writer.splits["train"].add(*batch(20, 3))
    writer.splits["val"].documents.append(batch(30, 1)[0].data)
    writer.splits["val"].totals["documents"] += 1
    writer.empty += 5
    writer.note()
    writer.close()
    again = make(tmp_path)
    assert (again.next_document, again.empty) == (20, 0)
    fill(again, 60)
    assert finished(again) == straight


def test_a_note_while_a_shard_is_being_published(
    tmp_path: Path, straight: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = make(tmp_path)
    fill(writer, 20)
    with monkeypatch.context() as patch:

        def stop(path: Path) -> str:
            raise KeyboardInterrupt

        patch.setattr("pgolf.corpus.writer.sha256_file", stop)
        with pytest.raises(KeyboardInterrupt):
            fill(writer, 60)
    before = writer.next_document
    writer.note()
    writer.close()
    again = make(tmp_path)
    assert again.resumed and again.next_document == before >= 20
    fill(again, 60)
    assert finished(again) == straight


def test_parts_start_where_they_start(tmp_path: Path) -> None:
    for resumed, reached in ((False, 30), (True, 33)):
        writer = DatasetWriter(tmp_path, KEY, LIMIT, True, 30)
        assert (writer.resumed, writer.next_document) == (resumed, reached)
        writer.put_tokenizer(b"0123456789")
        fill(writer, 33)
        writer.note()
        writer.close()


def half_way(out: Path) -> Path:
    """A folder left after 40 documents; returns the working folder."""
    writer = make(out)
    fill(writer, 40)
    writer.note()
    writer.close()
    return out / PARTIAL


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit a JSON file."""
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def flip(path: Path) -> None:
    """Change the last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a bit of a finished shard": lambda folder: flip(folder / "fineweb_train_000001.bin"),
    "a bit of a finished sidecar": lambda folder: flip(folder / "fineweb_val_bytes_000000.bin"),
    "a finished shard is gone": lambda folder: (folder / "fineweb_val_000000.bin").unlink(),
    "a finished shard is cut": lambda folder: os.truncate(folder / "fineweb_val_000000.bin", 1030),
    "a growing shard is gone": lambda folder: next(folder.glob("fineweb_train_*.growing")).unlink(),
    "a growing sidecar is cut": lambda folder: os.truncate(next(folder.glob("*_bytes_*.growing")), 1024),
    "a document list is cut": lambda folder: os.truncate(folder / "documents_train.growing", 200),
    "a document list is gone": lambda folder: (folder / "documents_val.growing").unlink(),
    "the tokenizer is another": lambda folder: flip(folder / "tokenizer.model"),
    "the tokenizer is gone": lambda folder: (folder / "tokenizer.model").unlink(),
    "the note is gone": lambda folder: (folder / "progress.json").unlink(),
    "the note is empty": lambda folder: (folder / "progress.json").write_bytes(b""),
    "the note is cut": lambda folder: os.truncate(folder / "progress.json", 100),
    "the note is no object": lambda folder: (folder / "progress.json").write_text("[1]"),
    "the note is binary": lambda folder: (folder / "progress.json").write_bytes(b"\xff\xfe\0"),
    "the note has no splits": lambda folder: change(folder / "progress.json", lambda note: note.pop("splits")),
    "a split is a number": lambda folder: change(
        folder / "progress.json", lambda note: note["splits"].update(val=5)
    ),
    "the document is a word": lambda folder: change(
        folder / "progress.json", lambda note: note.update(next_document="ten")
    ),
    "the document is another": lambda folder: change(
        folder / "progress.json", lambda note: note.update(next_document=39)
    ),
    "entries are negative": lambda folder: change(
        folder / "progress.json", lambda note: note["splits"]["val"]["fineweb_val"].update(entries=-1)
    ),
    "fewer entries": lambda folder: change(
        folder / "progress.json", lambda note: note["splits"]["train"]["fineweb_train"].update(entries=0)
    ),
    "a total is a word": lambda folder: change(
        folder / "progress.json", lambda note: note["splits"]["val"]["totals"].update(tokens="x")
    ),
    "another schema": lambda folder: change(folder / "progress.json", lambda note: note.update(schema="pgolf/9")),
    "another key": lambda folder: change(folder / "progress.json", lambda note: note.update(key="other")),
    "a shard elsewhere": lambda folder: change(
        folder / "progress.json",
        lambda note: note["splits"]["val"]["fineweb_val"]["shards"][0].update(file="../fineweb_val_000000.bin"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_leftovers_mean_starting_over(tmp_path: Path, straight: dict[str, bytes], kind: str) -> None:
    DAMAGE[kind](half_way(tmp_path))
    writer = make(tmp_path)
    assert not writer.resumed and writer.next_document == 0
    fill(writer, 60)
    assert finished(writer) == straight


def test_leftovers_are_dropped_when_asked(tmp_path: Path, straight: dict[str, bytes]) -> None:
    half_way(tmp_path)
    writer = make(tmp_path, resume=False)
    assert not writer.resumed
    fill(writer, 60)
    assert finished(writer) == straight


# Into place


def complete(out: Path, documents: int = 60) -> dict[str, bytes]:
    """A working folder that is ready to be committed; returns its files."""
    writer = make(out)
    fill(writer, documents)
    manifest = {"key": KEY, "splits": writer.finish()}
    writer.close()
    write_json(writer.folder / "manifest.json", manifest)
    return {path.name: path.read_bytes() for path in writer.folder.iterdir()}


def test_commit_replaces_an_older_dataset(tmp_path: Path) -> None:
    complete(tmp_path)
    commit(tmp_path)
    (tmp_path / "notes.txt").write_text("the user's own")
    (tmp_path / "fineweb_val_extra.bin").write_text("the user's own")
    new = complete(tmp_path, 20)
    assert unfinished_commit(tmp_path, KEY) and not unfinished_commit(tmp_path, "other")
    commit(tmp_path)
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found.pop("notes.txt") == found.pop("fineweb_val_extra.bin") == b"the user's own"
    assert found == new and not unfinished_commit(tmp_path, KEY)


class Stop(BaseException):
    """The process ends here."""


class Countdown:
    """Lets the n-th call that changes a directory end the process."""

    def __init__(self, patch: pytest.MonkeyPatch, left: int) -> None:
        self.left = left
        for name in ("replace", "unlink", "fsync", "rmdir"):
            patch.setattr(os, name, self.counted(getattr(os, name)))

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of os that counts."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if not self.left:
                raise Stop
            return function(*args, **kwargs)

        return call


def test_commit_can_be_cut_short_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every rename, removal and sync of the whole: before the last rename there is no manifest, and committing again
    gives the whole dataset.
    """
    old, new = tmp_path / "old", tmp_path / "new"
    before = complete(old)
    commit(old)
    expected = complete(new, 20)
    for stop_at in range(1, 200):
        out = tmp_path / f"out{stop_at}"
        shutil.copytree(old, out)
        shutil.copytree(new / PARTIAL, out / PARTIAL)
        with monkeypatch.context() as patch:
            Countdown(patch, stop_at)
            try:
                commit(out)
            except Stop:
                pass
            else:
                break
        found = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        if "manifest.json" in found:
            assert found in (before, expected), "a manifest beside files of another dataset"
        if unfinished_commit(out, KEY):
            commit(out)
        found = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        assert found == expected, f"after stopping at call {stop_at}"
    else:
        pytest.fail("it never passed")
    assert stop_at > 20, "the calls were not counted"


def test_files_report_what_they_cannot_do(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    with pytest.raises(InputError, match="3 bytes, fewer than the 5"):
        GrowingFile(tmp_path / "a", 5)
    assert (tmp_path / "a").read_bytes() == b"123"
    with pytest.raises(StorageError):
        GrowingFile(tmp_path)
    with pytest.raises(StorageError):
        GrowingFile(tmp_path / "a" / "b")
    file = GrowingFile(tmp_path / "a", 2)
    file.append(b"x")
    file.sync()
    assert (tmp_path / "a").read_bytes() == b"12x"
    file.publish(tmp_path / "b", b"AB")
    file.sync()
    file.close()
    assert (tmp_path / "b").read_bytes() == b"ABx" and not (tmp_path / "a").exists()
    assert set(SPLITS) == {"train", "val"}
