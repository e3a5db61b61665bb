"""Documents that occur twice: in both splits, within one, or cut at the end of a shard and begun again in the next.

Every document of a stream is known by 64 bits of a hash of its ids, its opening by another 64: so many that among the
challenge's eight million documents a chance meeting has odds of one in 10^7.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pgolf.report.data_opened import Findings, Opened, Row, counted

OPENING_TOKENS = 128
BATCH_TOKENS = 1 << 20
REPEAT_TOKENS = 16
"""A shorter piece of a document can begin like another by chance."""
NAMED = 10


@dataclass
class Documents:
    """Where the documents of a split begin, and what tells them apart: hashes of all their ids, and of the first
    OPENING_TOKENS after BOS (0 for documents that have fewer). `row` is their stream.
    """

    row: Row
    starts: np.ndarray
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    openings: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    repeats: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.starts)

    def bounds(self, index: int) -> tuple[int, int]:
        """Where a document begins and ends."""
        return int(self.starts[index]), int(self.starts[index + 1]) if index + 1 < len(self) else len(self.row)

    def ids(self, index: int) -> np.ndarray:
        """A document with its BOS."""
        return self.row.cut(*self.bounds(index))

    def shard_of(self, index: int) -> str:
        """Name of the shard in which a document begins."""
        return self.row.path_of(int(self.starts[index])).name

    @property
    def cut(self) -> set[int]:
        """Documents that the end of a stream, or of a shard, cut off."""
        return {len(self) - 1, *(int(repeat["document"]) for repeat in self.repeats)}

    def batches(self) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Documents in lots of about BATCH_TOKENS, with the index of the first."""
        held: list[np.ndarray] = []
        size = first = 0
        for index in range(len(self)):
            held.append(self.ids(index))
            size += len(held[-1])
            if size >= BATCH_TOKENS:
                yield first, held
                held, size, first = [], 0, index + 1
        if held:
            yield first, held


def hash_ids(ids: np.ndarray) -> int:
    """64 bits of a hash of token ids, never 0."""
    digest = hashlib.blake2b(np.ascontiguousarray(ids, "<u2").data, digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def opening_hash(ids: np.ndarray) -> int:
    """The hash of a document's opening, 0 if it is too short to have one."""
    return hash_ids(ids[1 : OPENING_TOKENS + 1]) if len(ids) > OPENING_TOKENS else 0


def find_repeats(documents: Documents) -> list[dict[str, Any]]:
    """Documents cut at the end of a shard that the next shard begins anew, as exports do that do not join shards."""
    row, found = documents.row, []
    for index, end in enumerate(row.ends[:-1]):
        last = int(np.searchsorted(documents.starts, end)) - 1
        if last < 0 or last + 1 >= len(documents) or documents.starts[last + 1] != end:
            continue
        tail, again = documents.ids(last), documents.ids(last + 1)
        if REPEAT_TOKENS < len(tail) < len(again) and np.array_equal(tail, again[: len(tail)]):
            names = (row.paths[index].name, row.paths[index + 1].name)
            found.append({"document": last, "cut_in": names[0], "begins_again_in": names[1], "tokens": len(tail)})
    return found


def later_copies(hashes: np.ndarray) -> int:
    """How many documents are equal to an earlier one."""
    return len(hashes) - len(np.unique(hashes))


def shared(mine: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of my hashes occur among the others, (D,) bool; 0 never does."""
    result: np.ndarray = np.isin(mine, others) & (mine != 0)
    return result


def pairs(val: Documents, train: Documents, mask: np.ndarray, mine: np.ndarray, others: np.ndarray) -> list[Any]:
    """The first few documents of val under a mask, each with the first of train that shares its hash."""
    found = []
    for index in np.flatnonzero(mask)[:NAMED]:
        other = np.flatnonzero(others == mine[index])
        row = {"val_document": int(index), "val_shard": val.shard_of(int(index))}
        if len(other):
            row |= {"train_document": int(other[0]), "train_shard": train.shard_of(int(other[0]))}
        found.append(row)
    return found


def spoken(found: list[dict[str, Any]]) -> str:
    """Pairs in words."""
    return "; ".join(
        f"val {row['val_document']:,} in {row['val_shard']}"
        + (f" = train {row['train_document']:,} in {row['train_shard']}" if "train_document" in row else "")
        for row in found
    )


def listed_overlap(opened: Opened, val: Documents, train: Documents) -> np.ndarray:
    """Validation documents whose text is in train, by the document lists; none where a list is missing or too short."""
    if "val" not in opened.lists or "train" not in opened.lists or len(opened.lists["val"]) != len(val):
        return np.zeros(len(val), bool)
    return np.isin(opened.lists["val"]["hash"], np.asarray(opened.lists["train"]["hash"]))


def compare_splits(opened: Opened, val: Documents, train: Documents, findings: Findings) -> dict[str, Any]:
    """What both splits have in common, and each of them twice."""
    by_tokens, by_text = shared(val.hashes, train.hashes), listed_overlap(opened, val, train)
    equal = by_tokens | by_text
    cut = shared(val.openings, train.openings) & ~equal
    examples = pairs(val, train, by_tokens, val.hashes, train.hashes)
    if not examples and equal.any():
        lists = opened.lists
        examples = pairs(val, train, equal, np.asarray(lists["val"]["hash"]), np.asarray(lists["train"]["hash"]))
    openings = pairs(val, train, cut, val.openings, train.openings)
    if equal.any():
        what = f"{counted(int(equal.sum()), 'validation document')} of {len(val):,} also in train: {spoken(examples)}"
        fix = "leave them out of train: a model trained on them has seen what it is scored on (issue #2127)"
        findings.add("violation", "overlap", what, opened.source, fix)
    if cut.any():
        what = f"{counted(int(cut.sum()), 'validation document')} with the first {OPENING_TOKENS} tokens of another in "
        fix = "cut or edited copies? Look at them, and leave them out of train"
        findings.add("warning", "overlap-openings", f"{what}train: {spoken(openings)}", opened.source, fix)
    return {
        "documents": int(equal.sum()),
        "by_tokens": int(by_tokens.sum()),
        "by_text": int(by_text.sum()) if {"val", "train"} <= set(opened.lists) else None,
        "openings": int(cut.sum()),
        "examples": examples,
        "opening_examples": openings,
    }


def look_within(name: str, documents: Documents, findings: Findings) -> dict[str, Any]:
    """Copies within a split, and documents that two shards share."""
    copies = later_copies(documents.hashes)
    openings = documents.openings[documents.openings != 0]
    opened_alike = later_copies(openings) - later_copies(documents.hashes[documents.openings != 0])
    where = documents.row.paths[0].parent if documents.row.paths else ""
    for repeat in documents.repeats:
        what = f"a document cut at the end of {repeat['cut_in']} begins again in {repeat['begins_again_in']}"
        what += f": its first {repeat['tokens']:,} tokens are in both"
        fix = "the shards are from different exports: a model sees these tokens twice"
        findings.add("warning", "shard-repeat", what, where, fix)
    if copies:
        what = f"{counted(copies, 'document')} of {name} equal to an earlier one; the text itself may repeat them"
        findings.add("note", "duplicates", what, where)
    if opened_alike:
        what = f"{counted(opened_alike, 'document')} of {name} with the first {OPENING_TOKENS} tokens of an earlier one"
        findings.add("note", "duplicate-openings", what, where)
    return {"duplicates": copies, "duplicate_openings": opened_alike, "repeats": documents.repeats}
