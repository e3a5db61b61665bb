"""The text that a stream claims to be, tokenized again and held against it, document by document."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pgolf.core.errors import PgolfError
from pgolf.corpus.sources import Reading, Record, records
from pgolf.corpus.workers import Job, Tokens, batches, tokenized, whole
from pgolf.report.console import Console
from pgolf.report.data_opened import Findings, Opened, counted
from pgolf.report.data_overlap import Documents, hash_ids

LISTED = 20
CUT_SLACK = 16
"""The last tokens of a document that was cut may be others than where it goes on."""
SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")
SUMS = ("raw_bytes", "normalised_bytes", "table_bytes", "charged_bytes")


@dataclass
class Matches:
    """How a text fits a split: which of its documents it has, and their byte totals as the text gives them."""

    documents: Documents
    seen: np.ndarray
    order: np.ndarray
    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SUMS, 0))
    matched: int = 0

    def find(self, digest: int) -> tuple[int, bool]:
        """Index of the document with these ids, -1 if there is none, and whether it is new: the first of equals that
        the text has not had yet, else any.
        """
        first, last = (
            int(np.searchsorted(self.documents.hashes, np.uint64(digest), side, self.order)) for side in SIDES
        )
        same = self.order[first:last]
        unseen = same[~self.seen[same]]
        if len(unseen):
            return int(unseen[0]), True
        return int(same[0]) if len(same) else -1, False


@dataclass
class TextReport:
    """The outcome for all splits."""

    splits: dict[str, Matches]
    read: int = 0
    empty: int = 0
    differing: list[dict[str, Any]] = field(default_factory=list)
    differing_count: int = 0
    sidecar_wrong: list[dict[str, Any]] = field(default_factory=list)
    sidecar_wrong_count: int = 0
    unmatched: list[dict[str, Any]] = field(default_factory=list)
    unmatched_count: int = 0
    cut: list[dict[str, Any]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "documents": self.read,
            "empty": self.empty,
            "matched": {name: found.matched for name, found in self.splits.items()},
            "without_text": {name: int((~found.seen).sum()) for name, found in self.splits.items()},
            "unmatched": self.unmatched_count,
            "unmatched_examples": self.unmatched,
            "cut": self.cut,
            "totals_differ": self.differing_count,
            "totals_differ_examples": self.differing,
            "sidecar_wrong": self.sidecar_wrong_count,
            "sidecar_wrong_examples": self.sidecar_wrong,
            "bytes": {name: found.sums for name, found in self.splits.items()},
        }


def compare_text(
    sources: list[Path], opened: Opened, splits: dict[str, Documents], findings: Findings, console: Console
) -> TextReport:
    """Tokenize the text again and match its documents with those of the streams."""
    report = TextReport(
        {
            name: Matches(documents, np.zeros(len(documents), bool), np.argsort(documents.hashes, kind="stable"))
            for name, documents in splits.items()
        }
    )
    options = opened.manifest.get("resolved", {}).get("tokenize", {}) if opened.manifest else {}
    options = options if isinstance(options, dict) else {}
    reading = Reading(str(options.get("document_separator", "")), str(options.get("text_field", "text")))
    held: list[Record] = []

    def kept() -> Any:
        for record in records(sources, reading):
            held.append(record)
            yield record

    job = Job(opened.model, opened.transform.name, reading.text_field)
    try:
        with console.progress() as line:
            for tokens in whole(tokenized(batches(kept(), 0), job, 1)):
                line.show(f"audit: text, {tokens.first + len(tokens.tokens):,} documents")
                match_batch(tokens, [record.where for record in held[: len(tokens.tokens)]], opened, report)
                del held[: len(tokens.tokens)]
    except PgolfError as error:
        findings.error("text", error)
    judge(report, opened, findings)
    return report


def match_batch(tokens: Tokens, places: list[str], opened: Opened, report: TextReport) -> None:
    """Find every document of a batch in the streams; `places` says where in the text each of them stands."""
    ends = np.cumsum(tokens.tokens)
    for index, (end, count) in enumerate(zip(ends, tokens.tokens)):
        report.read += 1
        if not count:
            report.empty += 1
            continue
        ids = tokens.ids[end - count : end]
        sums = {key: int(getattr(tokens, key)[index]) for key in SUMS}
        charges = tokens.charges[end - count : end] if tokens.charges is not None else None
        entry = {"text": tokens.first + index, "where": places[index]}
        if not match(ids, charges, sums, entry, opened, report) and not match_cut(ids, entry, report):
            report.unmatched_count += 1
            if len(report.unmatched) < LISTED:
                report.unmatched.append(entry | {"tokens": int(count)} | sums)


def match(
    ids: np.ndarray,
    charges: np.ndarray | None,
    sums: dict[str, int],
    entry: dict[str, Any],
    opened: Opened,
    report: TextReport,
) -> bool:
    """Look for a document in every split, in val first; where it is found, compare its totals."""
    digest = hash_ids(ids)
    places = {name: found.find(digest) for name, found in report.splits.items()}
    known = [name for name, (index, _) in places.items() if index >= 0]
    if not known:
        return False
    name = min(known, key=lambda name: not places[name][1])
    found, (index, new) = report.splits[name], places[name]
    place = {"split": name, "document": index} | entry
    if new:
        found.seen[index] = True
        found.matched += 1
        for key in SUMS:
            found.sums[key] += sums[key]
    totals = dict(sums)
    if name == "val" and charges is not None and opened.sidecars.whole:
        start, stop = found.documents.bounds(index)
        sidecar = opened.sidecars.cut(start, stop)
        totals["sidecar_bytes"] = int(sidecar.sum(dtype=np.int64))
        if not np.array_equal(sidecar, charges):
            report.sidecar_wrong_count += 1
            if len(report.sidecar_wrong) < LISTED:
                report.sidecar_wrong.append(place | totals)
    if len({size for key, size in totals.items() if key != "table_bytes" or charges is None}) > 1:
        report.differing_count += 1
        if len(report.differing) < LISTED:
            report.differing.append(place | totals)
    return True


def match_cut(ids: np.ndarray, entry: dict[str, Any], report: TextReport) -> bool:
    """Whether a document that the end of a shard cuts off is the beginning of these ids."""
    for name, found in report.splits.items():
        for index in found.documents.cut if len(found.documents) else ():
            if found.seen[index]:
                continue
            stored = found.documents.ids(index)
            common = min(len(ids), len(stored))
            different = np.flatnonzero(ids[:common] != stored[:common])
            equal = int(different[0]) if len(different) else common
            if equal >= max(len(stored) - CUT_SLACK, len(stored) // 2, 2):
                found.seen[index] = True
                place = {"split": name, "document": index, "tokens": len(stored), "equal_tokens": equal}
                report.cut.append(place | entry | {"text_tokens": len(ids)})
                return True
    return False


def judge(report: TextReport, opened: Opened, findings: Findings) -> None:
    """Findings on how the text fits."""
    for found in report.splits.values():
        for repeat in found.documents.repeats:
            found.seen[repeat["document"]] = True
    missing = {name: int((~found.seen).sum()) for name, found in report.splits.items()}
    matched = sum(found.matched for found in report.splits.values())
    where = opened.source
    for row in report.cut:
        what = f"document {row['document']:,} of {row['split']} is cut off: its {row['tokens']:,} tokens begin the "
        what += f"{row['text_tokens']:,} of the text"
        findings.add("note", "text-cut", what, row["where"])
    unmatched = report.unmatched_count
    first = report.unmatched[0]["where"] if report.unmatched else ""
    if report.read and not matched and not report.cut:
        what = f"none of the {counted(report.read, 'document')} of the text is in the stream"
        findings.add("violation", "text-tokens", what, where, "another text, tokenizer or transform made these shards")
    elif unmatched and missing["val"]:
        what = (
            f"{counted(unmatched, 'document')} of the text not in the stream, and {missing['val']:,} of the stream's "
        )
        what += "validation documents not in the text: the tokens differ"
        findings.add("violation", "text-tokens", what, first, "tokenize the text anew")
    elif unmatched:
        what = f"{counted(unmatched, 'document')} of the text in neither split"
        findings.add("warning", "text-unmatched", what, first, "give the text that the shards were made of")
    elif missing["val"]:
        what = f"{counted(missing['val'], 'validation document')} not compared: the text does not have them"
        findings.add("note", "text-partial", what, where)
    if report.sidecar_wrong_count:
        row = report.sidecar_wrong[0]
        what = (
            f"{counted(report.sidecar_wrong_count, 'document')} charged other bytes in the sidecar than by the text; "
        )
        what += f"document {row['document']:,}: {row['sidecar_bytes']:,} instead of {row['charged_bytes']:,}"
        findings.add("violation", "sidecar-text", what, row["where"], "make the sidecar anew (PR #1855)")
    if report.differing_count:
        row = report.differing[0]
        what = f"{counted(report.differing_count, 'document')} with different bytes by different counts; document "
        what += (
            f"{row['document']:,} of {row['split']}: raw {row['raw_bytes']:,}, normalised {row['normalised_bytes']:,}"
        )
        findings.add("note", "text-totals", what, row["where"])


def complete_sums(report: TextReport | None, name: str) -> dict[str, int]:
    """Byte totals of a split as the text gives them; nothing unless the text has every document of it, uncut."""
    found = report.splits.get(name) if report is not None else None
    return dict(found.sums) if found and found.matched == len(found.documents) and found.matched else {}
