"""tokenize: documents in, a dataset directory out, every byte accounted for."""

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.config.load import Resolved
from pgolf.config.run import TokenizeConfig
from pgolf.config.tree import to_values
from pgolf.core.bpb import ByteTable, byte_table, load_tokenizer
from pgolf.core.errors import ConfigError, InputError
from pgolf.core.files import make_dir, read_bytes, read_json, sha256_file, write_bytes, write_json
from pgolf.core.shards import list_shards, write_shard
from pgolf.corpus.sources import documents, expand, python_documents
from pgolf.corpus.tokenizer import train_tokenizer
from pgolf.dataset import BOS, DATASET_SCHEMA, MAX_TOKENIZER, Dataset, open_dataset
from pgolf.report.console import Console
from pgolf.stages.manifest import guarded, provenance, stage_key

BATCH_DOCUMENTS = 512
BYTE_TOTALS = ("raw_bytes", "normalised_bytes", "charged_bytes")
SPACE = "\u2581"


@dataclass
class SplitWriter:
    """Collects the ids of one split, writes full shards, and keeps the totals."""

    folder: Path
    name: str
    shard_tokens: int
    pending: list[np.ndarray] = field(default_factory=list)
    pending_tokens: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("documents", "tokens", *BYTE_TOTALS), 0))
    document_hash: Any = field(default_factory=hashlib.sha256)

    def add(self, ids: np.ndarray, raw: bytes, normalised_bytes: int, charged_bytes: int) -> None:
        """One document, BOS included."""
        self.pending.append(ids)
        self.pending_tokens += len(ids)
        for key, value in zip(self.totals, (1, len(ids), len(raw), normalised_bytes, charged_bytes)):
            self.totals[key] += value
        self.document_hash.update(hashlib.sha256(raw).digest())
        while self.pending_tokens >= self.shard_tokens:
            self.flush(self.shard_tokens)

    def flush(self, count: int) -> None:
        """Write the first `count` pending ids as a shard."""
        if count == 0:
            return
        ids = np.concatenate(self.pending)
        path = self.folder / f"fineweb_{self.name}_{len(self.shards):06d}.bin"
        write_shard(path, ids[:count])
        self.shards.append({"file": path.name, "tokens": count, "sha256": sha256_file(path)})
        self.pending, self.pending_tokens = [ids[count:]], len(ids) - count

    def close(self) -> dict[str, Any]:
        """Write the rest and return the manifest's entry of this split."""
        self.flush(self.pending_tokens)
        return {"shards": self.shards, **self.totals, "documents_sha256": self.document_hash.hexdigest()}


def to_validation(index: int, digest: bytes, config: TokenizeConfig) -> bool:
    """Whether the document with this index and SHA-256 belongs to validation."""
    if config.split == "first":
        return index < config.val_docs
    return int.from_bytes(digest[:8], "big") < config.val_share * 2**64


def batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of up to `size` texts."""
    iterator = iter(texts)
    while batch := list(islice(iterator, size)):
        yield batch


def normalised_length(tokenizer: Any, text: str, dummy_prefix: bool) -> int:
    """UTF-8 bytes of the text as the tokenizer's normaliser sees it, spaces as spaces."""
    normal = tokenizer.normalize(text)
    return len((normal.removeprefix(SPACE) if dummy_prefix else normal).replace(SPACE, " ").encode())


def encode_all(
    texts: Iterable[str],
    tokenizer: Any,
    table: ByteTable,
    writers: dict[str, SplitWriter],
    config: Any,
    console: Console,
) -> int:
    """Tokenize every document into its split; returns the number of documents that were empty and left out.

    InputError when a document's byte charges do not add up to the bytes of its normalised text.
    """
    index = empty = 0
    dummy_prefix = tokenizer.normalize("a").startswith(SPACE)
    with console.progress() as line:
        for batch in batches(texts, BATCH_DOCUMENTS):
            encoded = tokenizer.encode(batch, num_threads=config.threads or -1)
            for text, pieces in zip(batch, encoded):
                raw = text.encode()
                digest = hashlib.sha256(raw).digest()
                ids = np.array([BOS, *pieces], dtype=np.uint16)
                charged, normalised = (
                    int(table.charges(ids.astype(np.int64)).sum()),
                    normalised_length(tokenizer, text, dummy_prefix),
                )
                if charged != normalised:
                    raise InputError(
                        f"document {index} has {normalised:,} normalised bytes, but its tokens are charged {charged:,}",
                        "tokenize",
                        "the tokenizer loses text: use one with byte fallback",
                    )
                if pieces:
                    split = "val" if to_validation(index, digest, config) else "train"
                    writers[split].add(ids, raw, normalised, charged)
                empty += not pieces
                index += 1
            line.show(f"tokenize {index:,} documents, {sum(w.totals['tokens'] for w in writers.values()):,} tokens")
    return empty


def source_hash(sources: list[Path], python_docs: bool) -> str:
    """SHA-256 over the source files, or over the text of Python's documentation."""
    digest = hashlib.sha256()
    if python_docs:
        for text in python_documents():
            digest.update(hashlib.sha256(text.encode()).digest())
    for path in expand(sources):
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def fresh_manifest(folder: Path, key: str) -> dict[str, Any] | None:
    """The manifest of a dataset that was made with this key and is intact, or None."""
    try:
        manifest = read_json(folder / "manifest.json")
        if manifest.get("key") != key:
            return None
        dataset = open_dataset(folder)
        dataset.fingerprint("train", "val")
    except (InputError, AttributeError):
        return None
    return dict(manifest)


def tokenize(
    sources: list[Path],
    out: Path,
    resolved: Resolved,
    tokenizer: Path | None,
    console: Console,
    python_docs: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Make a dataset directory and return its manifest, with "fresh" set when nothing had to be done."""
    options = resolved.config.tokenize
    vocab_size = options.vocab_size or resolved.config.model.vocab_size
    section: dict[str, Any] = {"tokenize": to_values(options), "vocab_size": 0 if tokenizer else vocab_size}
    section["tokenize"].pop("threads")
    inputs = {"text": source_hash(sources, python_docs), "tokenizer": sha256_file(tokenizer) if tokenizer else ""}
    key = stage_key("tokenize", section, inputs)
    with guarded(out / "manifest.json"):
        if not force and (manifest := fresh_manifest(out, key)):
            return manifest | {"fresh": True}
        start = time.monotonic()

        def texts() -> Iterable[str]:
            return python_documents() if python_docs else documents(sources, options.document_separator)

        if tokenizer:
            content = read_bytes(tokenizer, MAX_TOKENIZER)
        else:
            console.line(f"tokenize: training a SentencePiece BPE of {vocab_size} pieces")
            train = (
                text
                for index, text in enumerate(texts())
                if not to_validation(index, hashlib.sha256(text.encode()).digest(), options)
            )
            content = train_tokenizer(train, vocab_size, options.character_coverage)
        processor = load_tokenizer(content, str(tokenizer or out))
        if processor.vocab_size() > 65535:
            raise InputError(
                f"the tokenizer has {processor.vocab_size():,} ids; uint16 shards hold 65,535",
                str(tokenizer),
                "use a smaller one",
            )
        make_dir(out)
        for path in (out / "manifest.json", *(path for split in ("train", "val") for path in list_shards(out, split))):
            path.unlink(missing_ok=True)
        table = byte_table(processor, processor.vocab_size())
        writers = {name: SplitWriter(out, name, options.shard_tokens) for name in ("train", "val")}
        empty = encode_all(texts(), processor, table, writers, options, console)
        check_splits(writers, options)
        write_bytes(out / "tokenizer.model", content)
        manifest = {
            "schema": DATASET_SCHEMA,
            "key": key,
            "vocab_size": processor.vocab_size(),
            "tokenizer": {
                "file": "tokenizer.model",
                "sha256": hashlib.sha256(content).hexdigest(),
                "trained_here": tokenizer is None,
            },
            "transform": options.transform,
            "splits": {name: writer.close() for name, writer in writers.items()},
            "empty_documents": empty,
            "source": "python_documentation" if python_docs else [str(path) for path in sources],
            "inputs": inputs,
            "resolved": resolved.values,
            "seconds": {"total": round(time.monotonic() - start, 3)},
            **provenance(),
        }
        write_json(out / "manifest.json", manifest)
        show_totals(manifest["splits"], console)
    return manifest | {"fresh": False}


def show_totals(splits: dict[str, Any], console: Console) -> None:
    """Every byte total of both splits."""
    for name, split in splits.items():
        totals = ", ".join(f"{key.removesuffix('_bytes')} {split[key]:,}" for key in BYTE_TOTALS if key in split)
        console.line(f"tokenize: {name}: {split['documents']:,} documents, {split['tokens']:,} tokens; bytes: {totals}")


def check_splits(writers: dict[str, SplitWriter], options: Any) -> None:
    """ConfigError when a split got no document."""
    counts = {name: writer.totals["documents"] for name, writer in writers.items()}
    for name, count in counts.items():
        if not count:
            total = sum(counts.values())
            hint = (
                "set tokenize.val_docs lower"
                if options.split == "first"
                else "set tokenize.val_share, or cut the text with tokenize.document_separator"
            )
            raise ConfigError(
                f"all {total} documents went to one split, none to {name}", f"tokenize.split={options.split}", hint
            )


def adopt_dataset(folder: Path, out: Path, tokenizer: Path | None, vocab_size: int, console: Console) -> dict[str, Any]:
    """Take shards from elsewhere into a run: a manifest with their hashes and the tokenizer, no copy of shards."""
    with guarded(out / "manifest.json"):
        dataset = open_dataset(folder, tokenizer, vocab_size)
        for warning in dataset.warnings:
            console.warn(warning)
        key = stage_key(
            "tokenize", {"adopted_from": str(folder.resolve())}, {"shards": dataset.fingerprint("train", "val")}
        )
        if manifest := fresh_manifest(out, key):
            return manifest | {"fresh": True}
        make_dir(out)
        write_bytes(out / "tokenizer.model", dataset.tokenizer_bytes)
        manifest = {
            "schema": DATASET_SCHEMA,
            "key": key,
            "adopted_from": str(dataset.folder.resolve()),
            "vocab_size": dataset.vocab_size,
            "tokenizer": {"file": "tokenizer.model", "sha256": dataset.tokenizer_sha256, "trained_here": False},
            "splits": {name: split_entry(dataset, name) for name in ("train", "val")},
            **provenance(),
        }
        write_json(out / "manifest.json", manifest)
        show_totals(manifest["splits"], console)
    return manifest | {"fresh": False}


def split_entry(dataset: Dataset, name: str) -> dict[str, Any]:
    """What the manifest says of an adopted split: shards with hashes, tokens, documents, charged bytes."""
    if not dataset.shards[name]:
        return {"shards": [], "tokens": 0, "documents": 0, "charged_bytes": 0}
    ids = dataset.split(name)
    shards = [
        {"file": path.name, "tokens": len(part), "sha256": dataset.shard_hash(path)}
        for path, part in zip(dataset.shards[name], ids)
    ]
    table = dataset.byte_table()
    charged = sum(int(table.charges(np.asarray(part, dtype=np.int64)).sum()) for part in ids)
    documents_found = sum(int((np.asarray(part) == BOS).sum()) for part in ids)
    return {
        "shards": shards,
        "tokens": sum(len(part) for part in ids),
        "documents": documents_found,
        "charged_bytes": charged,
    }
