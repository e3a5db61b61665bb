"""Tokenization spread over processes, its results in the order of the documents."""

import hashlib
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from pgolf.core.bpb import byte_table
from pgolf.core.errors import InputError, PgolfError, SetupError
from pgolf.corpus.encoder import Encoded, Encoder
from pgolf.corpus.long_text import LongText
from pgolf.corpus.sources import Record, text_of
from pgolf.corpus.transforms import get_transform

BOS = 1
BATCH_BYTES, BATCH_DOCUMENTS = 1 << 20, 1024
FLIGHT_BYTES = 64 << 20
"""Text under way to and in the workers."""
LONG_BYTES = 4 << 20
"""A document beyond this never travels and is never decoded as a whole: its tokens may take ten times as much."""


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

    @property
    def is_long(self) -> bool:
        """Whether it is a single long document."""
        return len(self.records) == 1 and self.size > LONG_BYTES


@dataclass(frozen=True)
class Tokens:
    """A tokenized batch, an entry per document: ids with BOS, 0 tokens for a document of which nothing is left.

    `charges` (bytes per token) are there for transformed text; `table_bytes` is what the byte table would charge.
    `hashes` are the first 64 bits of the SHA-256 of the text, big-endian. Of a long document, whose `Fragment`s come
    before, there are no ids and charges here.
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


@dataclass(frozen=True)
class Fragment:
    """Some of the ids of a long document, BOS first; its `Tokens` follow. `hashes` has one entry."""

    first: int
    ids: np.ndarray
    charges: np.ndarray | None
    hashes: np.ndarray


def batches(records: Iterable[Record], first: int) -> Iterator[Batch | PgolfError]:
    """Records in batches of about 1 MiB, long ones alone; `first` is the index of the first record. If reading fails,
    the error comes last, behind the records before it.
    """
    held: list[Record] = []
    size, failure = 0, None
    try:
        for record in records:
            if held and len(record.content) > LONG_BYTES:
                first, batch = first + len(held), Batch(first, held, size)
                held, size = [], 0
                yield batch
                del batch
            held.append(record)
            size += len(record.content)
            del record  # it may be long
            if size >= BATCH_BYTES or len(held) >= BATCH_DOCUMENTS:
                first, batch = first + len(held), Batch(first, held, size)
                held, size = [], 0
                yield batch
                del batch
    except PgolfError as error:
        failure = error
    if held:
        yield Batch(first, held, size)
    if failure is not None:
        yield failure


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
        """Uses up the batch's text. InputError for a document that cannot be read, or whose bytes do not add up."""
        bos = BOS.to_bytes(2, "little")
        ids: list[bytes] = []
        charges: list[bytes] = []
        rows, hashes = [], []
        for index, record in enumerate(batch.records):
            digest, found = self.document(record)
            batch.records[index] = record._replace(content=b"")
            tokens = sum(map(len, found.ids)) // 2
            rows.append((tokens and tokens + 1, found.raw_bytes, found.normalised_bytes, found.stripped_bytes))
            hashes.append(digest[:8])
            if tokens:
                ids += [bos, *found.ids]
                charges += [b"\0\0", *found.charges] if self.encoder.charging else []
        counts, raw, normalised, stripped = np.array(rows, np.int64).reshape(-1, 4).T
        stream = np.frombuffer(b"".join(ids), "<u2")
        byte_charges = np.frombuffer(b"".join(charges), "<u2") if self.encoder.charging else None
        table = per_document(self.table.charges(np.concatenate([np.array([BOS], np.uint16), stream])), counts)
        charged, expected = table, normalised
        if byte_charges is not None:
            charged, expected = per_document(byte_charges, counts), raw - stripped
        self.check_known(batch, stream, counts)
        self.check_bytes(batch, charged, expected, counts)
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

    def document(self, record: Record) -> tuple[bytes, Encoded]:
        """SHA-256 of a document's text, and its tokens."""
        text = text_of(record, self.job.text_field)
        digest = hashlib.sha256(text.encode()).digest()
        with placed(record):
            return digest, self.encoder.encode(text)

    def in_fragments(self, batch: Batch) -> Iterator[Fragment | Tokens]:
        """A long document, which is never in memory but for its text as read. Raises what `__call__` does."""
        record, charging, state = batch.records[0], self.encoder.charging, Encoded()
        text = LongText(record, self.job.text_field)
        hashes = np.frombuffer(text.digest()[:8], ">u8").astype("<u8")
        tokens = table = charged = 0
        last = np.array([BOS], np.uint16)
        with placed(record):
            for _ in self.encoder.encode_pieces(text.pieces(), state):
                ids = np.frombuffer(b"".join(state.ids), "<u2")
                charges = np.frombuffer(b"".join(state.charges), "<u2") if charging else None
                state.ids.clear()
                state.charges.clear()
                if not len(ids):
                    continue
                self.check_known(batch, ids, np.array([len(ids)]))
                table += int(self.table.charges(np.concatenate([last, ids])).sum(dtype=np.int64))
                if charges is not None:
                    charged += int(charges.sum(dtype=np.int64))
                if not tokens:
                    ids = np.concatenate([last, ids])
                    charges = np.concatenate([np.zeros(1, np.uint16), charges]) if charges is not None else None
                tokens, last = tokens + len(ids), ids[-1:]
                yield Fragment(batch.first, ids, charges, hashes)
        expected = state.raw_bytes - state.stripped_bytes if charging else state.normalised_bytes
        nothing = np.zeros(0, np.uint16)
        row = Tokens(
            first=batch.first,
            ids=nothing,
            charges=nothing if charging else None,
            tokens=np.array([tokens]),
            hashes=hashes,
            raw_bytes=np.array([state.raw_bytes]),
            normalised_bytes=np.array([state.normalised_bytes]),
            table_bytes=np.array([table]),
            charged_bytes=np.array([charged if charging else table]),
        )
        self.check_bytes(batch, row.charged_bytes, np.array([expected]), row.tokens)
        yield row

    def check_known(self, batch: Batch, stream: np.ndarray, counts: np.ndarray) -> None:
        """InputError for a document with unknown characters."""
        unknown = np.flatnonzero(per_document(stream == self.encoder.tokenizer.unk_id(), counts))
        if len(unknown):
            index = int(unknown[0])
            raise InputError(
                f"document {batch.first + index} has characters that the tokenizer does not know",
                batch.records[index].where,
                "use a tokenizer with byte fallback",
            )

    def check_bytes(self, batch: Batch, charged: np.ndarray, expected: np.ndarray, counts: np.ndarray) -> None:
        """InputError for a document whose charges are not the bytes of its text."""
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


@contextmanager
def placed(record: Record) -> Iterator[None]:
    """Errors of the encoder name the record."""
    try:
        yield
    except InputError as error:
        raise InputError(error.what, f"{record.where}: {error.where}", error.fix) from None


def per_document(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums of consecutive runs of `counts` values, (D,) int64."""
    result, filled = np.zeros(len(counts), np.int64), counts > 0
    if filled.any():
        starts = np.cumsum(counts) - counts
        result[filled] = np.add.reduceat(values, starts[filled], dtype=np.int64)
    return result


def serve(connection: Any) -> None:
    """The body of a worker process: a job, then batches in, tokens or an error out, until the other side goes away."""
    with suppress(EOFError, OSError):
        job = connection.recv()
        tokenizing = cache(lambda: Tokenizing(job))
        while True:
            connection.send(answer(tokenizing, connection.recv()))


def answer(tokenizing: Callable[[], Tokenizing], batch: Batch) -> Tokens | Exception:
    """A batch tokenized, or what went wrong; a bug brings its traceback along."""
    try:
        return tokenizing()(batch)
    except PgolfError as error:
        return error
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        return error


class Pool:
    """Worker processes, each behind a pipe. They end when this process does, however that happens; the Ctrl-C of a
    terminal, which all of them get, is this process's business alone. They take a while to get ready, so they are best
    started before there is a job for them.
    """

    def __init__(self, size: int) -> None:
        self.free: SimpleQueue[tuple[Any, Any]] = SimpleQueue()
        self.workers: list[tuple[Any, Any]] = []
        self.threads = ThreadPoolExecutor(size)
        try:
            for _ in range(size):
                self.workers.append(start_worker())
        except BaseException:
            self.close()
            raise

    def begin(self, job: Job) -> None:
        """Tell every worker what to do, once, before the first batch."""
        for worker in self.workers:
            self.threads.submit(self.tell, worker, job)

    def tell(self, worker: tuple[Any, Any], job: Job) -> None:
        """A worker's job; waits until the worker is there."""
        with suppress(OSError):  # it is dead, as the first batch will show
            worker[1].send(job)
        self.free.put(worker)

    def call(self, batch: Batch) -> Tokens | Exception:
        """One batch through whichever worker is free."""
        process, connection = self.free.get()
        try:
            connection.send(batch)
            batch.records.clear()
            result: Tokens | Exception = connection.recv()
        except (EOFError, OSError):
            process.join(5)
            code = process.exitcode
            reason = f"signal {-code}" if code and code < 0 else f"exit code {code}"
            fix = "is there enough memory? Try tokenize.workers=1" if code == -9 else "the tokenizer may be damaged"
            result = SetupError(f"a tokenization process died: {reason}", "tokenize", fix)
        self.free.put((process, connection))
        return result

    def submit(self, batch: Batch) -> "Future[Tokens | Exception]":
        """Start on a batch."""
        return self.threads.submit(self.call, batch)

    def close(self) -> None:
        """End every worker."""
        for process, _ in self.workers:
            process.terminate()
        self.threads.shutdown(cancel_futures=True)
        for process, connection in self.workers:
            process.join(10)
            connection.close()


def start_worker() -> tuple[Any, Any]:
    """A process and this end of its pipe, which takes a `Job` first. It is born with SIGINT blocked, so that it need
    not run to be deaf to it.
    """
    from multiprocessing import get_context, resource_tracker

    context = get_context("spawn")
    resource_tracker.ensure_running()  # the first process would start it, and that unblocks signals
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return process, ours


def tokenized(
    work: Iterable[Batch | PgolfError], job: Job, workers: int, pool: Pool | None = None
) -> Iterator[Tokens | Fragment]:
    """Every batch tokenized, in order, by that many processes, which may wait in `pool` already; one works right here,
    as all do on long documents. An error comes after all that lies before it, whatever the number of processes.
    """
    here = cache(lambda: Tokenizing(job))
    if workers == 1:
        for batch in work:
            if isinstance(batch, Batch) and batch.is_long:
                yield from here().in_fragments(batch)
            else:
                yield tokens_of(batch if isinstance(batch, PgolfError) else here()(batch))
            del batch  # it may be long, and the next one too
        return
    pool, flight, size = pool or Pool(workers), deque[tuple[int, Future[Tokens | Exception]]](), 0
    failure: PgolfError | None = None
    try:
        pool.begin(job)
        for batch in work:
            if isinstance(batch, PgolfError):
                failure = batch
                break
            while flight and (batch.is_long or size + batch.size > FLIGHT_BYTES or len(flight) >= 4 * workers):
                size -= flight[0][0]
                yield tokens_of(flight.popleft()[1].result())
            if batch.is_long:
                yield from here().in_fragments(batch)
            else:
                flight.append((batch.size, pool.submit(batch)))
                size += batch.size
            del batch
        while flight:
            yield tokens_of(flight.popleft()[1].result())
        if failure is not None:
            raise failure
    finally:
        pool.close()


def whole(found: Iterable[Tokens | Fragment]) -> Iterator[Tokens]:
    """Tokenized batches with the ids of long documents put together."""
    held: list[Fragment] = []
    for tokens in found:
        if isinstance(tokens, Fragment):
            held.append(tokens)
            continue
        if held:
            ids = np.concatenate([fragment.ids for fragment in held])
            charges = [fragment.charges for fragment in held if fragment.charges is not None]
            tokens = replace(tokens, ids=ids, charges=np.concatenate(charges) if charges else None)
            held.clear()
        yield tokens


def tokens_of(result: Tokens | Exception) -> Tokens:
    """The tokens of a batch; raises if there is an error instead."""
    if isinstance(result, Exception):
        raise result
    return result


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
