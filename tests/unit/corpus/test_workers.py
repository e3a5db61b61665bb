"""Several processes tokenize like one: same tokens, same errors, and nothing left behind."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from pgolf.config.run import TokenizeConfig
from pgolf.core.bpb import byte_table
from pgolf.core.errors import ConfigError, InputError, PgolfError, SetupError, StorageError
from pgolf.corpus import workers
from pgolf.corpus.sources import Record
from pgolf.corpus.tokenizer import train_tokenizer
from pgolf.corpus.transforms import get_transform
from pgolf.corpus.workers import Batch, Fragment, Job, Pool, Tokenizing, Tokens, batches, per_document, tokenized, whole

ODD = [
    "",
    "  ",
    "\0",
    " \0a\0 ",
    "\u2581",
    "a\u2581b",
    "½ ﬁ ™ … é",
    "\t\r\n x",
    "日本語 😀",
    "iPhone NASA's Xy",
    "a" * 3000,
]


def topics() -> list[str]:
    """English text that ships with Python."""
    from pydoc_data.topics import topics as found

    return [found[name] for name in sorted(found)[:40]]


TEXTS = [text for index, topic in enumerate(topics()) for text in (topic[:3000], ODD[index % len(ODD)])]


@pytest.fixture(scope="session")
def models() -> dict[str, bytes]:
    """A tokenizer for each transform."""
    names = ("none", "caseops_v1")
    return {name: train_tokenizer(topics(), 500, TokenizeConfig(transform=name)) for name in names}


def record(content: Any, number: int = 1) -> Record:
    """A record as a source would give it."""
    return Record(content, isinstance(content, bytes), "a.jsonl", number)


def as_records(texts: list[str]) -> list[Record]:
    """Half of them as text, half as JSON lines."""
    return [
        record(text if number % 2 else json.dumps({"text": text}).encode(), number)
        for number, text in enumerate(texts, 1)
    ]


def joined(found: list[Tokens]) -> dict[str, list[int] | None]:
    """Batches put together, in plain lists."""
    names = [field.name for field in fields(Tokens) if field.name != "first"]
    return {
        name: [value for tokens in found for value in getattr(tokens, name).tolist()]
        if getattr(found[0], name) is not None
        else None
        for name in names
    }


def run(texts: list[str], job: Job, count: int = 1) -> dict[str, list[int] | None]:
    """Tokenize documents with that many processes."""
    found = list(whole(tokenized(batches(as_records(texts), 0), job, count)))
    firsts = np.cumsum([0] + [len(tokens.tokens) for tokens in found])
    assert [tokens.first for tokens in found] == firsts[:-1].tolist()
    return joined(found)


def no_children() -> bool:
    """Whether every worker is gone."""
    deadline = time.monotonic() + 10
    while multiprocessing.active_children():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


# Batches


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 50), st.integers(1, 8), st.integers(0, 5))
def test_batches_have_every_record_once(sizes: list[int], size: int, count: int, first: int) -> None:
    records = [record("x" * length, index) for index, length in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "BATCH_BYTES", size)
        patch.setattr(workers, "BATCH_DOCUMENTS", count)
        found = list(batches(records, first))
    assert [item for batch in found for item in batch.records] == records
    assert [batch.first for batch in found] == np.cumsum([first] + [len(batch.records) for batch in found])[
        :-1
    ].tolist()
    for batch in found:
        assert batch.size == sum(len(item.content) for item in batch.records)
        assert len(batch.records) <= count and batch.size - len(batch.records[-1].content) < size


def failing(count: int) -> Iterator[Record]:
    """Records of a source that is damaged further on."""
    yield from as_records(TEXTS[:count])
    raise InputError("damaged archive", "a.jsonl", "fetch it again")


@pytest.mark.parametrize("count", [0, 3, 8])
def test_a_reading_error_comes_behind_the_records_before_it(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(workers, "BATCH_DOCUMENTS", 4)
    *found, error = batches(failing(count), 0)
    assert isinstance(error, InputError) and error.what == "damaged archive"
    assert [len(batch.records) for batch in found] == [4] * (count // 4) + [3] * bool(count % 4)


@given(st.lists(st.integers(0, 5), max_size=20))
def test_sums_per_document(counts: list[int]) -> None:
    values = np.arange(1, sum(counts) + 1, dtype=np.uint16)
    ends = np.cumsum([0, *counts])
    expected = [int(values[start:end].sum()) for start, end in zip(ends, ends[1:])]
    assert per_document(values, np.array(counts, np.int64)).tolist() == expected


# Tokens


@pytest.mark.parametrize("transform", ["none", "caseops_v1"])
def test_ids_are_those_of_sentencepiece_and_bytes_add_up(models: dict[str, bytes], transform: str) -> None:
    processor = SentencePieceProcessor(model_proto=models[transform])
    table = byte_table(processor, processor.vocab_size())
    found, ids = run(TEXTS, Job(models[transform], transform, "text")), []
    for index, text in enumerate(TEXTS):
        own = processor.encode(get_transform(transform).encode(text))
        ids += [1, *own] if own else []
        assert found["tokens"][index] == (len(own) + 1 if own else 0)
        assert found["raw_bytes"][index] == len(text.encode())
        assert found["hashes"][index] == int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        assert found["normalised_bytes"][index] == len(processor.normalize(text).replace("\u2581", " ").encode())
        assert found["table_bytes"][index] == int(table.charges(np.array([1, *own])).sum())
    assert found["ids"] == ids
    if transform == "none":
        assert found["charges"] is None and found["charged_bytes"] == found["table_bytes"]
        return
    ends = np.cumsum([0, *found["tokens"]])
    sums = [sum(found["charges"][start:end]) for start, end in zip(ends, ends[1:])]
    assert found["charged_bytes"] == sums
    for text, raw, charged in zip(TEXTS, found["raw_bytes"], sums):
        if text.isascii() and "\0" not in text:
            assert charged == len(text.strip(" \t\r\n")), "all but the blanks at the two ends"
        assert charged <= raw


@pytest.mark.parametrize("transform", ["none", "caseops_v1"])
@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 5000), (3, 20_000), (2, 1 << 20)])
def test_neither_processes_nor_batches_matter(
    models: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, transform: str, count: int, size: int
) -> None:
    job = Job(models[transform], transform, "text")
    expected = run(TEXTS, job)
    monkeypatch.setattr(workers, "BATCH_BYTES", size)
    monkeypatch.setattr(workers, "FLIGHT_BYTES", 3 * size)
    assert run(TEXTS, job, count) == expected
    assert no_children()


@pytest.mark.parametrize("transform", ["none", "caseops_v1"])
@pytest.mark.parametrize("count", [1, 2])
def test_long_documents_are_nothing_special(
    models: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, transform: str, count: int
) -> None:
    job = Job(models[transform], transform, "text")
    expected = run(TEXTS, job)
    monkeypatch.setattr(workers, "LONG_BYTES", 1000)
    monkeypatch.setattr(workers, "BATCH_BYTES", 1000)
    monkeypatch.setattr("pgolf.corpus.encoder.PART_CHARS", 500)
    monkeypatch.setattr("pgolf.corpus.encoder.LONG_WORD_CHARS", 100)
    parts = list(tokenized(batches(as_records(TEXTS), 0), job, count))
    assert sum(isinstance(part, Fragment) for part in parts) > 60
    assert joined(list(whole(parts))) == expected
    assert no_children()


@pytest.mark.parametrize("count", [1, 2])
def test_a_long_document_that_is_bad_is_named(
    models: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(workers, "LONG_BYTES", 1000)
    monkeypatch.setattr(workers, "BATCH_BYTES", 1000)
    bad = {
        b'{"text": "' + b"a " * 900 + b'\xff"}': "invalid UTF-8 at byte 1810",
        b'{"text": "' + b"a " * 900 + b'"': "not valid JSON: .*char 1811",
        json.dumps({"text": "\u200b" * 1_200_000}).encode(): "no place to cut",
    }
    for line, message in bad.items():
        work = batches([*as_records(TEXTS[:3]), record(line, 4), *as_records(TEXTS)], 0)
        with pytest.raises(InputError, match=message) as caught:
            list(tokenized(work, Job(models["none"], "none", "text"), count))
        assert caught.value.where.startswith("a.jsonl, line 4")
        assert no_children()


def test_text_under_way_is_bounded(models: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "BATCH_BYTES", 1000)
    monkeypatch.setattr(workers, "FLIGHT_BYTES", 10_000)
    taken, given_back = 0, 0

    def counted() -> Iterator[Record]:
        nonlocal taken
        for item in as_records(["x" * 999] * 200):
            taken += len(item.content)
            yield item

    for tokens in tokenized(batches(counted(), 0), Job(models["none"], "none", "text"), 2):
        given_back += int(tokens.raw_bytes.sum())
        assert taken - given_back < 16_000
    assert given_back == 999 * 200


# Errors


BAD_LINE = b'{"text": "\xff"}'


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 30_000, 1 << 20])
def test_the_first_bad_document_is_named_whatever_the_number_of_processes(
    models: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, count: int, size: int
) -> None:
    monkeypatch.setattr(workers, "BATCH_BYTES", size)

    def source() -> Iterator[Record]:
        for number, item in enumerate(as_records(TEXTS), 1):
            yield record(BAD_LINE, number) if number in (31, 33, 60) else item
        raise StorageError("the disk is gone")

    with pytest.raises(InputError) as caught:
        list(tokenized(batches(source(), 0), Job(models["none"], "none", "text"), count))
    assert (caught.value.what, caught.value.where) == ("invalid UTF-8 at byte 10", "a.jsonl, line 31")
    assert caught.value.fix == "convert the file to UTF-8" and caught.value.exit_code == 3
    assert no_children()


@pytest.mark.parametrize("count", [1, 2])
def test_documents_before_a_reading_error_are_tokenized(models: dict[str, bytes], count: int) -> None:
    found = []
    with pytest.raises(InputError, match="damaged archive"):
        for tokens in tokenized(batches(failing(50), 0), Job(models["none"], "none", "text"), count):
            found += tokens.tokens.tolist()
    assert len(found) == 50 and no_children()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("job", "kind", "word"),
    [
        (Job(b"not a model", "none", "text"), InputError, "SentencePiece"),
        (Job(b"", "none", "text"), InputError, "empty"),
        (Job(b"", "caps", "text"), ConfigError, "caps"),
    ],
)
def test_a_worker_that_cannot_begin(count: int, job: Job, kind: type[PgolfError], word: str) -> None:
    with pytest.raises(kind, match=word):
        list(tokenized(batches(as_records(TEXTS[:4]), 0), job, count))
    assert no_children()


def test_a_bug_in_a_worker_stays_a_bug_and_shows_where_it_is(models: dict[str, bytes], capfd: Any) -> None:
    job = Job(models["none"], "none", "text")
    with pytest.raises(AttributeError) as caught:
        list(tokenized([Batch(0, [record(None)], 1)], job, 2))
    assert any("text_of" in note for note in caught.value.__notes__), "the worker's own traceback"
    assert no_children() and capfd.readouterr().err == ""


@pytest.mark.parametrize(("number", "words"), [(signal.SIGKILL, "signal 9.*workers=1"), (signal.SIGSEGV, "signal 11")])
def test_a_killed_worker_ends_the_work(models: dict[str, bytes], number: int, words: str) -> None:
    def source() -> Iterator[Batch]:
        for index in range(1000):
            if index == 20:
                os.kill(multiprocessing.active_children()[0].pid, number)
            yield Batch(index, as_records(TEXTS[:1]), 1)

    started = time.monotonic()
    with pytest.raises(SetupError, match=words) as caught:
        list(tokenized(source(), Job(models["none"], "none", "text"), 2))
    assert len(str(caught.value).splitlines()) == 1 and time.monotonic() - started < 20
    assert no_children()


def test_leaving_early_leaves_no_processes(models: dict[str, bytes]) -> None:
    found = tokenized(batches(as_records(TEXTS * 50), 0), Job(models["none"], "none", "text"), 3)
    next(found)
    assert len(multiprocessing.active_children()) == 3
    found.close()
    assert no_children()


def test_a_pool_that_cannot_be_had_whole_is_taken_down(
    models: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, count = workers.start_worker, 0

    def third_fails() -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(11, "Resource temporarily unavailable")
        return start()

    monkeypatch.setattr(workers, "start_worker", third_fails)
    with pytest.raises(OSError, match="unavailable"):
        Pool(4)
    assert no_children()


def test_ctrl_c_does_not_reach_the_workers(models: dict[str, bytes]) -> None:
    """Not even while they are still being born; and this process gets it as ever."""
    process, connection = workers.start_worker()
    os.kill(process.pid, signal.SIGINT)
    connection.send(Job(models["none"], "none", "text"))
    connection.send(Batch(0, as_records(["a word"]), 6))
    os.kill(process.pid, signal.SIGINT)
    assert connection.recv().raw_bytes.tolist() == [6]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    process.terminate()
    process.join(10)
    connection.close()
    assert process.exitcode == -signal.SIGTERM


def test_workers_end_with_a_parent_that_was_killed(models: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(models["none"])
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, sys, time\n"
        "from pathlib import Path\n"
        "from pgolf.corpus.workers import Job, Pool\n"
        "if __name__ == '__main__':\n"
        "    Pool(2).begin(Job(Path(sys.argv[1]).read_bytes(), 'none', 'text'))\n"
        "    print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "    time.sleep(60)\n"
    )
    argv = [sys.executable, str(script), str(tmp_path / "model")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = list(map(int, parent.stdout.readline().split()))
        assert len(children) == 2
        parent.kill()
    deadline = time.monotonic() + 20
    while any(running(child) for child in children):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.02)


def running(process: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_tokenizer_that_loses_text_is_refused(models: dict[str, bytes]) -> None:
    """Where charges and bytes differ, the document is named."""
    tokenizing = Tokenizing(Job(models["none"], "none", "text"))
    tokenizing.table.base[:] += 1
    with pytest.raises(InputError, match="document 7 has") as caught:
        tokenizing(Batch(7, [record("some words", 3)], 10))
    assert caught.value.where == "a.jsonl, document 3"
