"""What is in a dataset: sizes, lengths of documents, use of the vocabulary, and documents as the model sees them."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.core.bpb import ByteTable, is_transformed
from pgolf.core.errors import InputError
from pgolf.core.files import read_json
from pgolf.core.shards import list_sidecars, open_shard
from pgolf.corpus.transforms import CAPNEXT, OPERATOR_NAMES, PUBLISHED_NAMES, get_transform
from pgolf.dataset import BOS, Dataset, open_dataset, open_documents

SPLITS = ("train", "val")
CHUNK = 1 << 22
"""Ids of a memory-mapped shard that are looked at together."""
IDS = 1 << 16
MOST_FREQUENT = 10
OPENING_CHARS, OPENING_TOKENS = 60, 240
TOTALS = ("raw_bytes", "normalised_bytes", "charged_bytes")
SIZE_IN_NAME = re.compile(r"sp(\d{3,5})(?!\d)")
MARKS = {operator: f"<{'C' if operator == CAPNEXT else name[0]}>" for operator, name in OPERATOR_NAMES.items()}
"""How operators of CaseOps are shown: <T>itle, <A>ll caps, next letter <C>apital, <E>scape."""
TRANSFORM_WORDS = {
    "none": "none: the text as it is",
    "caseops_v1": "caseops_v1: lower-case letters, and operators that say which were upper case",
}


@dataclass
class Tally:
    """Counts over a stream of ids that arrives in pieces, `counts` an entry per id. `unspaced` are the leading spaces
    that are not charged, because a boundary comes before them; `starts` are the positions of BOS.
    """

    table: ByteTable
    keep_starts: bool
    counts: np.ndarray = field(default_factory=lambda: np.zeros(IDS, np.int64))
    unspaced: int = 0
    starts: list[np.ndarray] = field(default_factory=list)
    length: int = 0
    first: int = -1
    after_boundary: bool = True

    def add(self, ids: np.ndarray) -> None:
        """The next ids of the stream, each of them within the table."""
        self.counts += np.bincount(ids, minlength=IDS)
        boundaries = self.table.boundary[ids]
        behind = np.flatnonzero(boundaries[:-1]) + 1
        self.unspaced += int(self.table.lead[ids[behind]].sum())
        self.unspaced += bool(self.after_boundary and self.table.lead[ids[0]])
        self.after_boundary = bool(boundaries[-1])
        if self.keep_starts:
            self.starts.append(np.flatnonzero(ids == BOS) + self.length)
        if not self.length:
            self.first = int(ids[0])
        self.length += len(ids)

    @property
    def charged_bytes(self) -> int:
        """What the byte table charges all targets; the first id of a stream is none."""
        counts = self.counts[: len(self.table.base)]
        everything = counts @ self.table.base + counts @ self.table.lead.astype(np.int64)
        return int(everything - self.unspaced - self.table.base[self.first])


@dataclass
class Split:
    """One split, opened: its shards, where documents begin, how many tokens they have with BOS, and their bytes if
    somebody noted them.
    """

    shards: list[np.ndarray]
    tally: Tally
    starts: np.ndarray
    lengths: np.ndarray
    raw_bytes: np.ndarray | None

    def ids(self, start: int, stop: int) -> np.ndarray:
        """Ids `start` to `stop` of the stream, (stop - start,)."""
        ends = np.cumsum([len(shard) for shard in self.shards])
        begins = ends - [len(shard) for shard in self.shards]
        parts = [
            shard[max(start - begin, 0) : stop - begin]
            for shard, begin, end in zip(self.shards, begins.tolist(), ends.tolist())
            if begin < stop and end > start
        ]
        return np.concatenate([np.empty(0, np.uint16), *parts])

    def document(self, index: int, most: int | None = None) -> np.ndarray:
        """The first `most` ids of a document, or all, without BOS."""
        start, length = int(self.starts[index]), int(self.lengths[index])
        return self.ids(start + 1, start + min(length, length if most is None else most + 1))


def open_for_show(folder: Path, tokenizer: Path | None) -> tuple[Dataset, dict[str, Any]]:
    """A dataset and its manifest, {} for published shards, whose folder name may tell the tokenizer's size."""
    size = SIZE_IN_NAME.search(folder.absolute().name)
    dataset = open_dataset(folder, tokenizer, int(size[1]) if size else 1024)
    path = folder / "manifest.json"
    return dataset, dict(read_json(path)) if path.is_file() else {}


def transform_name(dataset: Dataset, manifest: dict[str, Any]) -> str:
    """Which transform the text went through."""
    known = "caseops_v1" if dataset.transformed or is_transformed(dataset.tokenizer) else "none"
    name = str(manifest.get("transform", known))
    return PUBLISHED_NAMES.get(name, name)


def rule_words(rule: Any) -> str:
    """The split rule of a manifest, for people."""
    if not isinstance(rule, dict):
        return "not recorded: the shards come as they are"
    try:
        first, stop = rule["documents"]
        of = f"of documents {first:,} to {stop - 1:,}"
        if rule["split"] == "first":
            return f"{of}, the first {rule['val_docs']:,} of the corpus are for validation"
        return f"{of}, those whose SHA-256 lies in the lowest {100 * rule['val_share']:g} % are for validation"
    except (KeyError, TypeError, ValueError):
        return "recorded, but not in a way known here"


def read_lengths(dataset: Dataset, name: str, tokens: int) -> np.ndarray | None:
    """The document list of a split, (D,), or None where there is none. InputError if it does not fit the shards."""
    path = dataset.documents.get(name)
    if path is None:
        return None
    entries = open_documents(path)
    if int(entries["tokens"].sum(dtype=np.int64)) != tokens:
        raise InputError("the document list does not fit the shards", str(path), "make the dataset anew")
    return entries


def open_split(dataset: Dataset, name: str, table: ByteTable) -> Split:
    """Open a split and go through all of its ids once. InputError for an id beyond the vocabulary."""
    shards = [open_shard(path) for path in dataset.shards[name]]
    listed = read_lengths(dataset, name, sum(map(len, shards)))
    tally = Tally(table, keep_starts=listed is None)
    for path, shard in zip(dataset.shards[name], shards):
        for at in range(0, len(shard), CHUNK):
            ids = np.asarray(shard[at : at + CHUNK])
            if int(ids.max()) >= dataset.vocab_size:
                raise InputError(
                    f"token id {int(ids.max())} is beyond the vocabulary of {dataset.vocab_size}",
                    str(path),
                    "use the tokenizer that made the shards",
                )
            tally.add(ids)
    if listed is not None:
        lengths = np.ascontiguousarray(listed["tokens"])
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        return Split(shards, tally, starts, lengths, np.ascontiguousarray(listed["bytes"]))
    starts = np.concatenate(tally.starts)
    return Split(shards, tally, starts, np.diff(starts, append=tally.length), None)


def charged(dataset: Dataset, name: str, split: Split, transform: str, noted: Any) -> tuple[int | None, str]:
    """The bytes charged to a split, and where the number comes from; None where it cannot be known."""
    if isinstance(noted, int) and noted > 0:
        return noted, "manifest"
    if transform == "none":
        return split.tally.charged_bytes, "byte table"
    sidecars = dataset.sidecars or list_sidecars(dataset.folder)
    if name != "val" or not sidecars:
        return None, "unknown: transformed text without byte sidecars"
    rows = [open_shard(path) for path in sidecars]
    if [len(row) for row in rows] != [len(shard) for shard in split.shards]:
        raise InputError(
            "the byte sidecars are not as long as the shards", str(sidecars[0]), "fetch or make both again"
        )
    total = sum(int(row[at : at + CHUNK].sum(dtype=np.int64)) for row in rows for at in range(0, len(row), CHUNK))
    return total - int(rows[0][0]), "byte sidecars"


def entropy_bits(counts: np.ndarray) -> float:
    """Entropy of the distribution behind some counts, in bits."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


class Show:
    """Puts the document together. `tokenizer` is the processor, `transform` the name of the text's."""

    def __init__(self, dataset: Dataset, transform: str) -> None:
        self.dataset, self.transform = dataset, transform
        self.tokenizer, self.table = dataset.tokenizer, dataset.byte_table()
        self.size = int(self.tokenizer.vocab_size())
        self.is_byte = np.array([index < self.size and self.tokenizer.is_byte(index) for index in range(IDS)])

    def piece(self, index: int) -> dict[str, Any]:
        """A token as it is shown: its id, a text that is safe anywhere, and its kind."""
        if index >= self.size:
            return {"id": index, "piece": f"<{index}>", "kind": "special"}
        text = self.tokenizer.id_to_piece(index)
        kind = "text"
        if self.tokenizer.is_byte(index):
            kind = "byte"
        elif self.transform != "none" and text in MARKS:
            kind = "operator"
        elif self.tokenizer.is_control(index) or self.tokenizer.is_unknown(index) or self.tokenizer.is_unused(index):
            kind = "special"
        return {"id": index, "piece": visible(text, self.transform), "kind": kind}

    def text(self, ids: np.ndarray) -> str:
        """The text that ids stand for, its transform taken back where that works."""
        text = str(self.tokenizer.decode([index for index in ids.tolist() if index < self.size]))
        for candidate in (text, text.rpartition(" ")[0]):
            try:
                return get_transform(self.transform).decode(candidate)
            except InputError:
                continue
        return text

    def document(self, split: Split, index: int) -> dict[str, Any]:
        """The facts about one document; `bytes` are those of its text if they are noted, else what it is charged."""
        opening = self.text(split.document(index, OPENING_TOKENS))
        return {
            "index": index,
            "tokens": int(split.lengths[index]),
            "bytes": self.document_bytes(split, index),
            "text": visible(" ".join(opening[: 4 * OPENING_CHARS].split()), self.transform)[:OPENING_CHARS],
        }

    def document_bytes(self, split: Split, index: int) -> int | None:
        """The bytes of a document, None for transformed text of which they are not noted."""
        if split.raw_bytes is not None:
            return int(split.raw_bytes[index])
        if self.transform != "none":
            return None
        ids = np.concatenate([np.array([BOS], np.uint16), split.document(index)])
        return int(self.table.charges(ids).sum(dtype=np.int64))

    def split(self, name: str, split: Split, noted: dict[str, Any]) -> dict[str, Any]:
        """Everything about one split but its documents' tokens."""
        tokens, lengths = split.tally.length, split.lengths
        entry: dict[str, Any] = {"shards": len(split.shards), "documents": len(lengths), "tokens": tokens}
        entry |= {key: noted[key] if isinstance(noted.get(key), int) else None for key in TOTALS}
        total, source = charged(self.dataset, name, split, self.transform, noted.get("charged_bytes"))
        entry |= {
            "charged_bytes": total,
            "charged_from": source,
            "bytes_per_token": total / tokens if total else None,
            "lengths_from": "document list" if split.raw_bytes is not None else "positions of BOS",
            "tokens_before_first_document": int(split.starts[0]) if len(lengths) else tokens,
            "tokens_per_document": None,
        }
        if len(lengths):
            entry["tokens_per_document"] = {
                "median": float(np.median(lengths)),
                "mean": float(lengths.mean(dtype=np.float64)),
                "max": int(lengths.max()),
                "min": int(lengths.min()),
            }
            entry["longest"] = self.document(split, int(lengths.argmax()))
            entry["shortest"] = self.document(split, int(lengths.argmin()))
        return entry | {"vocabulary": self.vocabulary(split.tally.counts, total)}

    def vocabulary(self, counts: np.ndarray, total: int | None) -> dict[str, Any]:
        """How a split uses the vocabulary. The unigram model knows nothing but how often each id occurs in it."""
        tokens, used = int(counts.sum()), int((counts > 0).sum())
        most = np.argsort(-counts, kind="stable")[: min(MOST_FREQUENT, used)].tolist()
        bits, in_bytes = entropy_bits(counts), int(counts[self.is_byte].sum())
        return {
            "used_ids": used,
            "unused_ids": self.dataset.vocab_size - used,
            "byte_tokens": in_bytes,
            "byte_share": in_bytes / tokens,
            "entropy_bits": bits,
            "unigram_bpb": bits * tokens / total if total else None,
            "most_frequent": [
                {**self.piece(index), "count": int(counts[index]), "share": int(counts[index]) / tokens}
                for index in most
            ],
        }

    def shown(self, split: Split, documents: int, tokens: int) -> list[dict[str, Any]]:
        """The first documents of a split with their first tokens."""
        return [
            {
                "index": index,
                "tokens": int(split.lengths[index]),
                "bytes": self.document_bytes(split, index),
                "pieces": [self.piece(value) for value in split.document(index, tokens).tolist()],
            }
            for index in range(min(documents, len(split.lengths)))
        ]


def visible(text: str, transform: str = "none") -> str:
    """A text in which nothing is hidden and nothing acts: operators as marks, what cannot be printed as an escape."""
    marks = MARKS if transform != "none" else {}
    return "".join(
        marks.get(char) or (char if char.isprintable() else char.encode("unicode_escape").decode()) for char in text
    )


def data_show(
    folder: Path, tokenizer: Path | None = None, documents: int = 3, tokens: int = 120, shown_split: str = ""
) -> dict[str, Any]:
    """The document of `pgolf data show`. An empty `shown_split` takes val, or train where there is no val.

    InputError for a dataset that cannot be read or a split that it does not have.
    """
    dataset, manifest = open_for_show(folder, tokenizer)
    transform = transform_name(dataset, manifest)
    names = [name for name in SPLITS if dataset.shards.get(name)]
    chosen = shown_split or ("val" if "val" in names else "train")
    if chosen not in names:
        raise InputError(f"the dataset has no {chosen} shards", str(folder), f"it has {' and '.join(names) or 'none'}")
    show = Show(dataset, transform)
    opened = {name: open_split(dataset, name, show.table) for name in names}
    noted = manifest.get("splits", {})
    counts = sum((split.tally.counts for split in opened.values()), np.zeros(IDS, np.int64))
    return {
        "schema": "pgolf.data-show/1",
        "dir": str(folder),
        "vocab_size": dataset.vocab_size,
        "tokenizer_sha256": dataset.tokenizer_sha256,
        "transform": transform,
        "transform_words": TRANSFORM_WORDS.get(transform, transform),
        "rule": manifest.get("rule"),
        "rule_words": rule_words(manifest.get("rule")),
        "splits": {name: show.split(name, split, noted.get(name, {})) for name, split in opened.items()},
        "never_used_ids": dataset.vocab_size - int((counts > 0).sum()),
        "shown_split": chosen,
        "shown": show.shown(opened[chosen], documents, tokens),
        "warnings": dataset.warnings,
    }
