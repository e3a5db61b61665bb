"""pgolf data audit: everything about a dataset that can be checked, all faults in one run, nothing mended."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pgolf.core.errors import InputError, PgolfError, RuleError
from pgolf.report.console import Console
from pgolf.report.data_checks import (
    SplitAudit,
    check_canonical,
    check_claim,
    check_counts,
    check_ids,
    check_lists,
    check_recorded,
    check_sidecar_total,
    check_tokenizer,
    fill_totals,
    whole,
)
from pgolf.report.data_decode import check_decoded, decode_split
from pgolf.report.data_files import open_all
from pgolf.report.data_opened import SPLITS, Findings, Opened, counted
from pgolf.report.data_overlap import Documents, compare_splits, find_repeats, look_within
from pgolf.report.data_text import compare_text, complete_sums
from pgolf.report.data_totals import Pieces, count, mistakes, pieces_of

AUDIT_SCHEMA = "pgolf.data-audit/1"


def audit_split(opened: Opened, name: str, pieces: Pieces, console: Console, findings: Findings) -> SplitAudit:
    """Count, hash and decode one split."""
    row = opened.rows[name]
    console.line(f"audit: {name}: {counted(len(row.paths), 'shard')}, {len(row):,} tokens")
    counts = count([row], pieces)
    split = SplitAudit(name, row, counts, Documents(row, counts.starts))
    split.documents.repeats = find_repeats(split.documents)
    check_ids(opened, split, pieces, findings)
    aligned = name == "val" and opened.transformed and opened.sidecars.whole and row.whole
    split.decoded = decode_split(opened, pieces, split.documents, opened.sidecars if aligned else None, name, console)
    check_decoded(opened, name, split.decoded, split.documents, findings)
    split.within = look_within(name, split.documents, findings)
    return split


def audit(
    folder: Path,
    tokenizer: Path | None,
    text: list[Path],
    claimed_bytes: int | None,
    expect_val_docs: int,
    console: Console,
) -> dict[str, Any]:
    """The whole audit as a document. InputError if there is no dataset at all."""
    findings = Findings()
    opened = open_all(folder, tokenizer, findings, console)
    pieces = pieces_of(opened.tokenizer)
    splits = {name: audit_split(opened, name, pieces, console, findings) for name in SPLITS}
    val = splits["val"]
    overlap = compare_splits(opened, val.documents, splits["train"].documents, findings)
    report = None
    if text and opened.tokenizer is not None:
        documents = {name: split.documents for name, split in splits.items()}
        report = compare_text(text, opened, documents, findings, console)
    for split in splits.values():
        fill_totals(opened, split, pieces, report)
    true_bytes = val.true_bytes
    wrong = mistakes(val.counts, pieces, opened, val.decoded.operators, true_bytes) if true_bytes is not None else []
    for split in splits.values():
        check_recorded(opened, split, report, wrong if split is val else [], findings)
        check_lists(opened, split, findings)
    check_sidecar_total(opened, val, wrong, bool(complete_sums(report, "val")), findings)
    facts = check_tokenizer(opened, pieces, splits, findings)
    check_counts(opened, splits, expect_val_docs, findings)
    size = check_canonical(opened, val, pieces, findings)
    claim = check_claim(claimed_bytes, val, opened, wrong, findings) if claimed_bytes is not None else None
    return {
        "schema": AUDIT_SCHEMA,
        "folder": str(folder),
        "manifest": bool(opened.manifest),
        "adopted_from": str(opened.source) if opened.source != folder else None,
        "verdict": "corrupt" if findings.of("corrupt") else "violated" if findings.of("violation") else "passed",
        "tokenizer": facts,
        "splits": {name: split_document(opened, split) for name, split in splits.items()},
        "canonical": size,
        "mistakes": [asdict(mistake) | {"ratio": ratio(mistake.bytes, val.true_bytes)} for mistake in wrong],
        "claim": claim,
        "overlap": overlap,
        "text": report.document() if report is not None else None,
        "findings": findings.document(),
        "warnings": console.warnings,
    }


def ratio(value: int | None, base: int | None) -> float | None:
    """One total against another."""
    return value / base if value is not None and base else None


def split_document(opened: Opened, split: SplitAudit) -> dict[str, Any]:
    """What the JSON document says of a split."""
    decoded, base = split.decoded, split.true_bytes
    return {
        "shards": [{"file": path.name, "tokens": len(shard)} for path, shard in zip(split.row.paths, split.row.shards)],
        "tokens": len(split.row),
        "documents": len(split.documents),
        "bytes_per_token": ratio(base, max(len(split.row) - 1, 1)),
        "true": split.true_name or None,
        "totals": {name: {"bytes": size, "ratio": ratio(size, base)} for name, size in split.totals.items()},
        "truncated": split.truncated,
        "recorded": {key: value for key, value in opened.recorded(split.name).items() if whole(value) is not None},
        "decoded_documents": decoded.documents,
        "decoded_differ": decoded.differing,
        "decoded_differ_cut": decoded.cut_differing,
        "decoded_differ_examples": decoded.examples,
        **split.within,
    }


def verdict_error(document: dict[str, Any]) -> PgolfError | None:
    """The error that a failed audit ends with: InputError if something is corrupt, else RuleError."""
    for level, kind in (("corrupt", InputError), ("violation", RuleError)):
        found = [finding for finding in document["findings"] if finding["level"] == level]
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            return kind(f"{level}: {found[0]['check']}{more}; {found[0]['what']}", found[0]["where"], found[0]["fix"])
    return None
