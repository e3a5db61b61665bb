"""tokenize: documents in, a dataset directory out, every byte accounted for."""

import hashlib
import math
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.config.load import Resolved
from pgolf.config.run import TokenizeConfig
from pgolf.config.tree import to_values
from pgolf.core.bpb import byte_table, is_transformed, load_tokenizer
from pgolf.core.errors import ConfigError, InputError, PgolfError
from pgolf.core.files import make_dir, read_bytes, read_json, sha256_file, write_json
from pgolf.corpus.sources import STDIN, Reading, Record, expand, python_documents, python_records, records, text_of
from pgolf.corpus.tokenizer import MAX_IDS, MAX_TOKENIZER, read_tokenizer, train_tokenizer
from pgolf.corpus.transforms import get_transform
from pgolf.corpus.workers import BOS, Fragment, Job, Pool, Tokens, available_cores, batches, tokenized
from pgolf.corpus.writer import TOTALS, DatasetWriter, check_place, commit, unfinished_commit
from pgolf.dataset import DATASET_SCHEMA, DOCUMENT, open_dataset
from pgolf.report.console import Console
from pgolf.stages.manifest import guarded, provenance, stage_key
from pgolf.stages.signals import Interrupted

BYTE_TOTALS = ("raw_bytes", "normalised_bytes", "table_bytes", "charged_bytes")
NOTE_EVERY_S = 30
PARALLEL_BYTES = 8 << 20
"""Below this, starting processes costs more than it saves."""
PART = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


@dataclass(frozen=True)
class Corpus:
    """Where documents come from, and how they are cut."""

    sources: list[Path]
    reading: Reading
    python_docs: bool = False

    def records(self) -> Iterator[Record]:
        """Every document, undecoded, in order."""
        return python_records() if self.python_docs else records(self.sources, self.reading)

    def texts(self) -> Iterator[str]:
        """Every document in order."""
        return (text_of(record, self.reading.text_field) for record in self.records())

    @property
    def once(self) -> bool:
        """Whether it can be read only once."""
        return STDIN in self.sources

    def sha256(self) -> str:
        """SHA-256 over the source files, or over the text of Python's documentation; empty for standard input."""
        digest = hashlib.sha256()
        if self.once:
            return ""
        if self.python_docs:
            for text in python_documents():
                digest.update(hashlib.sha256(text.encode()).digest())
        for path in expand(self.sources):
            digest.update(f"{path.name} {sha256_file(path)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def bytes_on_disk(self) -> int:
        """Size of the sources as they are stored; standard input counts as large."""
        if self.python_docs:
            return 0
        return PARALLEL_BYTES if self.once else sum(path.stat().st_size for path in expand(self.sources))


@dataclass(frozen=True)
class Part:
    """One of several jobs that share a corpus: the documents from `start` up to `stop`."""

    index: int = 1
    of: int = 1
    start: int = 0
    stop: int | None = None


def part_numbers(text: str, corpus: Corpus) -> tuple[int, int]:
    """`i/n` as numbers. ConfigError if it is anything else, or the corpus has no parts."""
    match = PART.fullmatch(text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"{text!r} is no part of a whole", "--shard", "parts are numbered 1/4, 2/4, 3/4, 4/4")
    if corpus.once:
        raise ConfigError("standard input cannot be shared between jobs", "--shard", "put the text in a file")
    return int(match[1]), int(match[2])


def read_part(text: str, corpus: Corpus) -> Part:
    """`i/n` to the i-th of n equal ranges of documents; counts the documents for it."""
    if not text:
        return Part()
    index, of = part_numbers(text, corpus)
    total = sum(1 for _ in corpus.records())
    return Part(index, of, total * (index - 1) // of, total * index // of)


def validation_mask(first: int, hashes: np.ndarray, config: TokenizeConfig) -> np.ndarray:
    """Which of consecutive documents belong to validation, (D,) bool; `first` is the index of the first one."""
    if config.split == "first":
        return np.arange(first, first + len(hashes)) < config.val_docs
    return hashes <= np.uint64(math.ceil(config.val_share * 2**64) - 1)


def in_validation(index: int, text: str, config: TokenizeConfig) -> bool:
    """The same for one document."""
    digest = hashlib.sha256(text.encode()).digest()
    return bool(validation_mask(index, np.array([int.from_bytes(digest[:8], "big")], np.uint64), config)[0])


def add_tokens(tokens: Tokens | Fragment, writer: DatasetWriter, config: TokenizeConfig) -> bool:
    """Put a batch, or a part of a document, where it belongs; returns whether a shard became full."""
    validation = validation_mask(tokens.first, tokens.hashes, config)
    if isinstance(tokens, Fragment):
        return writer.splits["val" if validation[0] else "train"].extend(tokens.ids, tokens.charges)
    kept, full = tokens.tokens > 0, False
    for name, mask in (("train", ~validation & kept), ("val", validation & kept)):
        if not mask.any():
            continue
        entries = np.zeros(int(mask.sum()), DOCUMENT)
        entries["hash"], entries["bytes"], entries["tokens"] = (
            tokens.hashes[mask],
            tokens.raw_bytes[mask],
            tokens.tokens[mask],
        )
        here = np.repeat(mask, tokens.tokens) if len(tokens.ids) else slice(0)
        counts = (1, *(getattr(tokens, key) for key in TOTALS[1:]))
        totals = {key: int(np.sum(mask * values)) for key, values in zip(TOTALS, counts)}
        charges = tokens.charges[here] if tokens.charges is not None else None
        full |= writer.splits[name].add(entries, tokens.ids[here], charges, totals)
    writer.empty += int((~kept).sum())
    writer.mark(tokens.first + len(kept))
    return full


def encode_corpus(
    corpus: Corpus,
    part: Part,
    job: Job,
    workers: int,
    pool: Pool | None,
    writer: DatasetWriter,
    config: TokenizeConfig,
    console: Console,
) -> None:
    """Tokenize what the writer does not have yet. Interrupted, it leaves a note to go on from."""
    todo = islice(corpus.records(), writer.next_document, part.stop)
    started = noted = time.monotonic()
    with console.progress() as line:
        try:
            for tokens in tokenized(batches(todo, writer.next_document), job, workers, pool):
                full = add_tokens(tokens, writer, config)
                now = time.monotonic()
                if not corpus.once and (full or now - noted > NOTE_EVERY_S):
                    writer.note()
                    noted = now
                size = sum(split.totals["raw_bytes"] for split in writer.splits.values())
                count = sum(split.totals["tokens"] for split in writer.splits.values())
                line.show(
                    f"tokenize {writer.next_document:,} documents, {count:,} tokens, {size / 1e6:,.0f} MB, "
                    f"{now - started:.0f} s, {workers} processes"
                )
        except BaseException as error:
            if not corpus.once:
                with suppress(PgolfError):  # the note before this one is still good
                    writer.note()
                if isinstance(error, Interrupted):
                    goes_on = f"{error}; the same command goes on at document {writer.next_document:,}"
                    raise Interrupted(error.number, goes_on) from None
            raise


def fresh_manifest(folder: Path, key: str) -> dict[str, Any] | None:
    """The manifest of a dataset that was made with this key and is intact, or None."""
    try:
        manifest = read_json(folder / "manifest.json")
        if manifest.get("key") != key:
            return None
        open_dataset(folder).verify()
    except (InputError, AttributeError):
        return None
    return dict(manifest)


def published_rule(corpus: Corpus, options: TokenizeConfig, given: bool, console: Console) -> TokenizeConfig:
    """The number of validation documents that stands beside a published document file (`x.jsonl` has
    `x.source_manifest.json`), unless the user gave one. InputError if the file is not the one described there.
    """
    for path in [] if corpus.once or corpus.python_docs else expand(corpus.sources):
        beside = path.with_name(
            f"{path.name.removesuffix('.zst').removesuffix('.gz').removesuffix('.jsonl')}.source_manifest.json"
        )
        if not beside.is_file():
            continue
        facts = read_json(beside)
        if not isinstance(facts, dict):
            raise InputError("this does not describe documents", str(beside), "fetch it again, or remove it")
        docs_val, docs_sha256 = facts.get("docs_val"), facts.get("docs_sha256")
        if isinstance(docs_sha256, str) and path.name.endswith(".jsonl") and sha256_file(path) != docs_sha256:
            raise InputError(f"the documents are not those of {beside.name}", str(path), "fetch both again")
        if options.split == "first" and isinstance(docs_val, int) and docs_val > 0 and docs_val != options.val_docs:
            if given:
                console.warn(f"{beside.name} names {docs_val:,} validation documents, not {options.val_docs:,}")
            else:
                console.line(f"tokenize: {docs_val:,} validation documents, as {beside.name} says")
                options = replace(options, val_docs=docs_val)
    return options


def check_tokenizer(content: bytes, options: TokenizeConfig, where: str) -> Any:
    """The processor of a tokenizer that can make a dataset. InputError or ConfigError for one that cannot."""
    processor = load_tokenizer(content, where)
    if processor.vocab_size() > MAX_IDS:
        raise InputError(
            f"the tokenizer has {processor.vocab_size():,} ids; shards hold {MAX_IDS:,}", where, "use a smaller one"
        )
    if processor.bos_id() != BOS:
        raise InputError(
            f"BOS has id {processor.bos_id()}, shards have {BOS}", where, "use a tokenizer whose bos_id is 1"
        )
    byte_table(processor, processor.vocab_size())
    operators = get_transform(options.transform).operators
    if is_transformed(processor) and not operators:
        fix = "set tokenize.transform=caseops_v1"
        raise ConfigError("the tokenizer reserves case operators, so text must be transformed for it", where, fix)
    if any(processor.piece_to_id(operator) == processor.unk_id() for operator in operators):
        fix = "use one made for the transform, or let pgolf train it"
        raise ConfigError(f"the tokenizer does not have the operators of {options.transform}", where, fix)
    return processor


def tokenize(
    sources: list[Path],
    out: Path,
    resolved: Resolved,
    tokenizer: Path | None,
    console: Console,
    python_docs: bool = False,
    force: bool = False,
    shard: str = "",
    stdin_format: str = "jsonl",
) -> dict[str, Any]:
    """Make a dataset directory and return its manifest, with "fresh" set when nothing had to be done.

    `shard` is i/n for one of n jobs on the same corpus; `pgolf data merge` puts their results together.
    """
    options = resolved.config.tokenize
    corpus = Corpus(sources, Reading(options.document_separator, options.text_field, stdin_format), python_docs)
    given = resolved.origins.get("tokenize.val_docs", "default") != "default"
    options = published_rule(corpus, options, given, console)
    if tokenizer is None and (shard or corpus.once):
        what = "standard input is read only once" if corpus.once else "the parts of a corpus need one tokenizer"
        raise ConfigError(f"{what}, so none can be trained on it", "tokenize", "give one with --tokenizer")
    if shard:
        part_numbers(shard, corpus)
    vocab_size = options.vocab_size or resolved.config.model.vocab_size
    section: dict[str, Any] = {"tokenize": to_values(options), "vocab_size": 0 if tokenizer else vocab_size}
    section["tokenize"].pop("workers")
    if not force:
        check_place(out)
    with guarded(out / "manifest.json"):
        inputs = {"text": corpus.sha256(), "tokenizer": sha256_file(tokenizer) if tokenizer else ""}
        whole_key = stage_key("tokenize", section, inputs)
        key = stage_key("tokenize", section | {"shard": shard}, inputs) if shard else whole_key
        fresh_start = force or corpus.once
        if not fresh_start and (manifest := fresh_manifest(out, key)):
            return manifest | {"fresh": True}
        if not fresh_start and unfinished_commit(out, key):
            commit(out)
            if manifest := fresh_manifest(out, key):
                return manifest | {"fresh": False}
        identity = {"key": key, "whole_key": whole_key, "inputs": inputs, "resolved": resolved.values}
        manifest = make_dataset(corpus, out, options, vocab_size, tokenizer, shard, identity, fresh_start, console)
        show_totals(manifest["splits"], console)
    return manifest | {"fresh": False}


def make_dataset(
    corpus: Corpus,
    out: Path,
    options: TokenizeConfig,
    vocab_size: int,
    tokenizer: Path | None,
    shard: str,
    identity: dict[str, Any],
    fresh_start: bool,
    console: Console,
) -> dict[str, Any]:
    """The body of `tokenize`: every file of the dataset, in the working folder and then in its place."""
    start, part = time.monotonic(), read_part(shard, corpus)
    sidecars = bool(get_transform(options.transform).operators)
    make_dir(out)
    workers = options.workers or (available_cores() if corpus.bytes_on_disk() >= PARALLEL_BYTES else 1)
    with ExitStack() as stack:
        pool = None
        if tokenizer and workers > 1:  # they get ready while the tokenizer is tried out
            pool = stack.enter_context(closing(Pool(workers)))
        content = read_tokenizer(tokenizer) if tokenizer else b""
        writer = DatasetWriter(out, identity["key"], options.shard_tokens, sidecars, part.start, resume=not fresh_start)
        stack.enter_context(closing(writer))
        if writer.resumed:
            console.line(f"tokenize: going on at document {writer.next_document:,}")
        content = content or trained_tokenizer(corpus, vocab_size, options, writer, console)
        processor = check_tokenizer(content, options, str(tokenizer or out))
        writer.put_tokenizer(content)
        if not corpus.once:
            writer.note()
        job = Job(content, options.transform, options.text_field)
        encode_corpus(corpus, part, job, workers, pool, writer, options, console)
        if not shard:
            check_splits({name: split.totals["documents"] for name, split in writer.splits.items()}, options.split)
        manifest = {
            "schema": DATASET_SCHEMA,
            **identity,
            "vocab_size": processor.vocab_size(),
            "tokenizer": {
                "file": "tokenizer.model",
                "sha256": hashlib.sha256(content).hexdigest(),
                "trained_here": tokenizer is None,
            },
            "transform": options.transform,
            "rule": split_rule(options, part.start, writer.next_document),
            "shard_tokens": options.shard_tokens,
            **({"part": {"index": part.index, "of": part.of}} if shard else {}),
            "splits": writer.finish(),
            "empty_documents": writer.empty,
            "source": "python_documentation" if corpus.python_docs else [str(path) for path in corpus.sources],
            "seconds": {"total": round(time.monotonic() - start, 3)},
            **provenance(),
        }
        write_json(writer.folder / "manifest.json", manifest)
    return commit(out)


def trained_tokenizer(
    corpus: Corpus, vocab_size: int, options: TokenizeConfig, writer: DatasetWriter, console: Console
) -> bytes:
    """The tokenizer that an interrupted run has trained already, or a new one, from training documents alone."""
    if writer.resumed:
        return read_bytes(writer.folder / "tokenizer.model", MAX_TOKENIZER)
    kind = "BPE" if options.model_type == "bpe" else options.model_type
    console.line(f"tokenize: training a SentencePiece {kind} of {vocab_size} pieces")
    train = (text for index, text in enumerate(corpus.texts()) if not in_validation(index, text, options))
    return train_tokenizer(islice(train, options.tokenizer_docs), vocab_size, options)


def split_rule(options: TokenizeConfig, start: int, stop: int) -> dict[str, Any]:
    """How documents `start` to `stop` of the corpus were divided, in terms that anybody can check."""
    if options.split == "first":
        border = min(max(options.val_docs, start), stop)
        ranges = {"val": [start, border], "train": [border, stop]}
        return {"split": "first", "val_docs": options.val_docs, "documents": [start, stop], "ranges": ranges}
    threshold = math.ceil(options.val_share * 2**64)
    return {
        "split": "hash",
        "val_share": options.val_share,
        "documents": [start, stop],
        "val": f"first 64 bits of the SHA-256 of the text, big-endian, below {threshold}",
    }


def show_totals(splits: dict[str, Any], console: Console) -> None:
    """Every byte total of both splits."""
    for name, split in splits.items():
        totals = ", ".join(f"{key.removesuffix('_bytes')} {split[key]:,}" for key in BYTE_TOTALS if key in split)
        console.line(f"tokenize: {name}: {split['documents']:,} documents, {split['tokens']:,} tokens; bytes: {totals}")


def check_splits(counts: dict[str, int], rule: str) -> None:
    """ConfigError when a split got no document."""
    for name, count in counts.items():
        if not count:
            total = sum(counts.values())
            hint = (
                "set tokenize.val_docs lower"
                if rule == "first"
                else "set tokenize.val_share, or cut the text with tokenize.document_separator"
            )
            raise ConfigError(
                f"all {total} documents went to one split, none to {name}", f"tokenize.split={rule}", hint
            )
