"""Tokenization spread over processes, its results in the order of the documents."""

import hashlib
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from pgolf.core.bpb import byte_table
from pgolf.core.errors import InputError, PgolfError, SetupError
from pgolf.corpus.encoder import Encoder
from pgolf.corpus.sources import Record, text_of
from pgolf.corpus.transforms import get_transform

BOS = 1
BATCH_BYTES, BATCH_DOCUMENTS = 1 << 20, 1024
FLIGHT_BYTES = 64 << 20
"""Text under way to and in the workers; one longer document may exceed it."""


class Job(NamedTuple):
    """What a worker needs to know once."""

    model: bytes
    transform: str
    text_field: str


class Batch(NamedTuple):
    """Consecutive documents; `first` is the index of the first one."""

    first: int
    records: list[Record]
    size: int


@dataclass(frozen=True)
class Tokens:
    """A tokenized batch, an entry per document: ids with BOS, 0 tokens for a document of which nothing is left.

    `charges` (bytes per token) are there for transformed text; `table_bytes` is what the byte table would charge.
    `hashes` are the first 64 bits of the SHA-256 of the text, big-endian.
    """

    first: int
    ids: np.ndarray
    charges: np.ndarray | None
    tokens: np.ndarray
    hashes: np.ndarray
    raw_bytes: np.ndarray
    normalised_bytes: np.ndarray
    table_bytes: np.ndarray
    charged_bytes: np.ndarray


class Failure(NamedTuple):
    """An error of a worker, to be raised where the results are read."""

    kind: type[PgolfError]
    what: str
    where: str
    fix: str


def batches(records: Iterable[Record], first: int) -> Iterator[Batch]:
    """Records in batches of about 1 MiB; `first` is the index of the first record."""
    held: list[Record] = []
    size = 0
    for record in records:
        held.append(record)
        size += len(record.content)
        if size >= BATCH_BYTES or len(held) >= BATCH_DOCUMENTS:
            yield Batch(first, held, size)
            first, held, size = first + len(held), [], 0
    if held:
        yield Batch(first, held, size)


class Tokenizing:
    """The work of one process: batches to tokens."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.encoder = Encoder(job.model, get_transform(job.transform))

    @cached_property
    def table(self) -> Any:
        """What a byte table charges; every tokenizer must have one, be it only to see what a mistake would cost."""
        return byte_table(self.encoder.tokenizer, self.encoder.tokenizer.vocab_size())

    def __call__(self, batch: Batch) -> Tokens:
        """InputError for a document that cannot be read, or whose bytes do not add up."""
        bos = BOS.to_bytes(2, "little")
        ids: list[bytes] = []
        charges: list[bytes] = []
        rows, hashes = [], []
        for record in batch.records:
            text = text_of(record, self.job.text_field)
            try:
                found = self.encoder.encode(text)
            except InputError as error:
                raise InputError(error.what, f"{record.where}: {error.where}", error.fix) from None
            digest = hashlib.sha256(text.encode()).digest()
            tokens = sum(map(len, found.ids)) // 2
            rows.append((tokens and tokens + 1, found.raw_bytes, found.normalised_bytes, found.stripped_bytes))
            hashes.append(digest[:8])
            if tokens:
                ids += [bos, *found.ids]
                charges += [b"\0\0", *found.charges] if self.encoder.charging else []
        counts, raw, normalised, stripped = np.array(rows, np.int64).reshape(-1, 4).T
        stream = np.frombuffer(b"".join(ids), "<u2")
        byte_charges = np.frombuffer(b"".join(charges), "<u2") if self.encoder.charging else None
        table = per_document(self.table.charges(np.concatenate([[BOS], stream])), counts)
        charged, expected = table, normalised
        if byte_charges is not None:
            charged, expected = per_document(byte_charges, counts), raw - stripped
        self.check(batch, charged, expected, counts)
        return Tokens(
            first=batch.first,
            ids=stream,
            charges=byte_charges,
            tokens=counts,
            hashes=np.frombuffer(b"".join(hashes), ">u8").astype("<u8"),
            raw_bytes=raw,
            normalised_bytes=normalised,
            table_bytes=table,
            charged_bytes=charged,
        )

    def check(self, batch: Batch, charged: np.ndarray, expected: np.ndarray, counts: np.ndarray) -> None:
        """InputError for the first document whose charges are not the bytes of its text."""
        wrong = np.flatnonzero((charged != expected) & (counts > 0))
        if len(wrong):
            index = int(wrong[0])
            kind = "bytes" if self.encoder.charging else "normalised bytes"
            raise InputError(
                f"document {batch.first + index} has {expected[index]:,} {kind}, but its tokens are charged "
                f"{charged[index]:,}",
                batch.records[index].where,
                "the tokenizer loses text or marks spaces in a way of its own: use one with byte fallback",
            )


def per_document(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums of consecutive runs of `counts` values, (D,) int64."""
    sums = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    ends = np.cumsum(counts)
    result: np.ndarray = sums[ends] - sums[ends - counts]
    return result


def serve(connection: Any, job: Job) -> None:
    """The body of a worker process: batches in, tokens out, until the other side goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, OSError):
        answer: Any = None
        try:
            work: Any = Tokenizing(job)
        except PgolfError as error:
            work, answer = None, Failure(type(error), error.what, error.where, error.fix)
        while True:
            batch = connection.recv()
            if work is not None:
                try:
                    answer = work(batch)
                except PgolfError as error:
                    answer = Failure(type(error), error.what, error.where, error.fix)
            connection.send(answer)


class Pool:
    """Worker processes, each behind a pipe. They end when this process does, however that happens."""

    def __init__(self, job: Job, size: int) -> None:
        from multiprocessing import get_context

        context = get_context("spawn")
        self.free: SimpleQueue[tuple[Any, Any]] = SimpleQueue()
        self.workers = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, job), daemon=True)
            process.start()
            theirs.close()
            self.workers.append((process, ours))
            self.free.put((process, ours))
        self.threads = ThreadPoolExecutor(size)

    def call(self, batch: Batch) -> Tokens | Failure:
        """One batch through whichever worker is free."""
        process, connection = self.free.get()
        try:
            connection.send(batch)
            answer: Tokens | Failure = connection.recv()
        except (EOFError, OSError):
            process.join(5)
            code = process.exitcode
            reason = f"signal {-code}" if code and code < 0 else f"exit code {code}"
            fix = "is there enough memory? Try tokenize.workers=1" if code == -9 else "the tokenizer may be damaged"
            answer = Failure(SetupError, f"a tokenization process died: {reason}", "tokenize", fix)
        self.free.put((process, connection))
        return answer

    def submit(self, batch: Batch) -> "Future[Tokens | Failure]":
        """Start on a batch."""
        return self.threads.submit(self.call, batch)

    def close(self) -> None:
        """End every worker."""
        for process, connection in self.workers:
            process.terminate()
            connection.close()
        self.threads.shutdown(wait=False, cancel_futures=True)
        for process, _ in self.workers:
            process.join(10)


def tokenized(work: Iterable[Batch], job: Job, workers: int) -> Iterator[Tokens]:
    """Every batch tokenized, in order, by that many processes; one works right here."""
    if workers == 1:
        yield from map(Tokenizing(job), work)
        return
    pool, flight, size = Pool(job, workers), deque[tuple[int, Future[Tokens | Failure]]](), 0
    try:
        for batch in work:
            while flight and (size + batch.size > FLIGHT_BYTES or len(flight) >= 4 * workers):
                size -= flight[0][0]
                yield result(flight.popleft()[1])
            flight.append((batch.size, pool.submit(batch)))
            size += batch.size
        while flight:
            yield result(flight.popleft()[1])
    finally:
        pool.close()


def result(future: "Future[Tokens | Failure]") -> Tokens:
    """The tokens of a batch, or the worker's error."""
    answer = future.result()
    if isinstance(answer, Failure):
        raise answer.kind(answer.what, answer.where, answer.fix)
    return answer


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
