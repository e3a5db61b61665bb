"""What is tested of a dataset that could be opened: ids, counts, totals, and what its manifest says of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.corpus.writer import hashes_sha256
from pgolf.dataset import DOCUMENTS_NAME
from pgolf.report.data_decode import Decoded
from pgolf.report.data_opened import Findings, Opened, Row, counted
from pgolf.report.data_overlap import Documents
from pgolf.report.data_text import TextReport, complete_sums
from pgolf.report.data_totals import (
    BOS,
    EOS,
    SAME,
    UNKNOWN,
    Counts,
    Mistake,
    Pieces,
    canonical,
    judge_claim,
    relative,
    truncated,
    variant_of,
)

CANONICAL_DOCUMENTS, REBUILD_DOCUMENTS, REBUILD_SHARD = 50_000, 10_000, 10_000_000
BYTE_LIKE, MOSTLY = 32, 0.95
"""Byte counts lie below this nearly always; ids below it are control symbols and rare bytes."""
SIDECAR_WITHIN = 0.01
"""A sidecar may differ from the decoded text by what the normaliser changes, which is less."""


@dataclass
class SplitAudit:
    """Everything about one split."""

    name: str
    row: Row
    counts: Counts
    documents: Documents
    decoded: Decoded = field(default_factory=Decoded)
    within: dict[str, Any] = field(default_factory=dict)
    totals: dict[str, int | None] = field(default_factory=dict)
    truncated: dict[str, dict[str, int]] = field(default_factory=dict)
    true_name: str = ""
    """Which of the totals is the bytes of the text."""

    @property
    def sidecar_off(self) -> float:
        """How much more the sidecars charge than the decoded text has, relatively."""
        return self.decoded.charged / self.decoded.bytes - 1 if self.decoded.bytes else 0.0

    @property
    def true_bytes(self) -> int | None:
        """The denominator of BPB."""
        return self.totals.get(self.true_name) if self.true_name else None


def check_ids(opened: Opened, split: SplitAudit, pieces: Pieces, findings: Findings) -> None:
    """Ids within the vocabulary, BOS where documents begin, and no other control symbol anywhere."""
    name, row, ids = split.name, split.row, split.counts.ids
    for path, shard in zip(row.paths, row.shards):
        check_shard_ids(path, shard, pieces, findings)
    if not len(row):
        return
    if not len(split.counts.starts):
        what = f"no document in {name} begins with BOS (id {BOS}); evaluation by documents would find none"
        findings.add(
            "corrupt", "no-bos", what, opened.source, "the exporter forgot it: tokenize anew (PR #1736, #1769)"
        )
    elif split.counts.starts[0]:
        what = f"{name} begins inside a document: the first BOS is at token {split.counts.starts[0]:,}"
        findings.add("corrupt", "first-bos", what, row.paths[0], "the beginning of the stream is missing")
    if split.counts.empty:
        what = f"{counted(split.counts.empty, 'document')} of {name} without a token"
        findings.add("warning", "empty-documents", what, opened.source, "leave empty documents out")
    if ids[EOS] and opened.tokenizer is not None and opened.tokenizer.is_control(EOS):
        appended = split.counts.eos_before_bos * 2 > len(split.counts.starts)
        what = f"EOS (id {EOS}) stands {ids[EOS]:,} times in {name}" + (
            ", appended to documents: a stream of the challenge has none" if appended else ""
        )
        check = "eos-appended" if appended else "control-ids"
        findings.add("warning", check, what, opened.source, "tokenize anew without it")
    if ids[UNKNOWN] and opened.tokenizer is not None and opened.tokenizer.is_unknown(UNKNOWN):
        what = f"the unknown symbol (id {UNKNOWN}) stands {ids[UNKNOWN]:,} times in {name}: that text is lost"
        findings.add("warning", "unknown-ids", what, opened.source, "use a tokenizer with byte fallback")
    odd = np.flatnonzero(pieces.boundary[: pieces.size] & (ids[: pieces.size] > 0))
    odd = odd[~np.isin(odd, (BOS, EOS, UNKNOWN))]
    if len(odd):
        what = f"control or unused ids within documents of {name}: {', '.join(map(str, odd[:10]))}, "
        what += f"{ids[odd].sum():,} times"
        findings.add("warning", "control-ids", what, opened.source, "was this stream padded?")


def check_shard_ids(path: Path, shard: np.ndarray, pieces: Pieces, findings: Findings) -> None:
    """One shard: ids that the tokenizer has, and that look like tokens."""
    small = beyond = 0
    first = -1
    for start in range(0, len(shard), 1 << 22):
        part = shard[start : start + (1 << 22)]
        small += int((part < BYTE_LIKE).sum())
        if pieces.size and int(part.max()) >= pieces.size:
            places = np.flatnonzero(part >= pieces.size)
            first = start + int(places[0]) if first < 0 else first
            beyond += len(places)
    if beyond:
        what = f"{beyond:,} ids beyond the vocabulary of {pieces.size:,}, the first at token {first:,} ({shard[first]})"
        findings.add("corrupt", "id-range", what, path, "damaged, or of another tokenizer: see --tokenizer")
    if (not pieces.size or pieces.size >= 8 * BYTE_LIKE) and small > MOSTLY * len(shard) and len(shard) >= 64:
        what = f"{small / len(shard):.0%} of the ids are below {BYTE_LIKE}: this is a byte sidecar, not tokens"
        findings.add("corrupt", "sidecar-as-tokens", what, path, "keep it apart under a name with _bytes_")


def check_tokenizer(
    opened: Opened, pieces: Pieces, splits: dict[str, SplitAudit], findings: Findings
) -> dict[str, Any]:
    """What the tokenizer must be able to do."""
    tokenizer, path = opened.tokenizer, opened.tokenizer_path
    if tokenizer is None:
        return {}
    if tokenizer.bos_id() != BOS:
        what = f"BOS has id {tokenizer.bos_id()}, shards have {BOS}"
        findings.add("corrupt", "bos-id", what, path, "use the tokenizer that made the shards")
    if pieces.bare < 0:
        what = "the tokenizer has no bare space piece, so spaces would be charged three bytes (issue #897)"
        findings.add("violation", "bare-space", what, path, "use another tokenizer, or train one")
    if not pieces.is_byte.any():
        what = "the tokenizer has no byte pieces: characters it does not know are lost"
        findings.add("warning", "byte-fallback", what, path, "use one with byte fallback")
    used = sum((split.counts.ids for split in splits.values()), np.zeros(1 << 16, np.int64))
    return {
        "file": str(path),
        "sha256": opened.tokenizer_sha256,
        "vocab_size": pieces.size,
        "ids_used": int((used[: pieces.size] > 0).sum()),
        "largest_id": int(np.flatnonzero(used)[-1]) if used.any() else None,
        "bos_id": tokenizer.bos_id(),
        "bare_space_id": pieces.bare if pieces.bare >= 0 else None,
        "byte_pieces": int(pieces.is_byte.sum()),
        "transform": opened.transform.name,
        "sampled": sum(split.decoded.sampled for split in splits.values()),
        "round_trips": sum(split.decoded.round_trips for split in splits.values()),
    }


def check_counts(opened: Opened, splits: dict[str, SplitAudit], expected: int, findings: Findings) -> None:
    """Numbers that tell where a dataset comes from: validation documents, and the size of train shards."""
    documents = len(splits["val"].documents)
    if not len(splits["val"].row):
        findings.add("warning", "no-validation", "there are no validation shards", opened.source)
    elif documents != expected:
        what = f"{counted(documents, 'validation document')}, not {expected:,}: not the canonical split"
        if documents == REBUILD_DOCUMENTS:
            what += "; this is the default of the rebuild script that let validation documents into train (issue #2127)"
        level = "warning" if documents == REBUILD_DOCUMENTS else "note"
        findings.add(level, "val-documents", what, opened.source, "see --expect-val-docs")
    shards = splits["train"].row.shards
    if len(shards) > 1 and all(len(shard) == REBUILD_SHARD for shard in shards[:-1]):
        what = f"train shards of {REBUILD_SHARD:,} tokens, as the rebuild script makes them: runs that logged 1499 of "
        what += "them had validation documents in train"
        findings.add("note", "rebuild-shards", what, opened.source, "look for overlap below (issue #2127)")


def whole(value: Any) -> int | None:
    """A number of a manifest, if it is one."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def fill_totals(opened: Opened, split: SplitAudit, pieces: Pieces, report: TextReport | None) -> None:
    """Every way to count the bytes of a split, and which of them is true."""
    recorded, sums = opened.recorded(split.name), complete_sums(report, split.name)
    row, decoded = split.row, split.decoded
    known = opened.tokenizer is not None
    sidecars = opened.sidecars if split.name == "val" and opened.transformed and opened.sidecars.whole else None
    sidecar = sum(int(part.sum(dtype=np.int64)) for part in sidecars.chunks()) if sidecars is not None else None
    if sidecar is not None and sidecars is not None and len(sidecars):
        sidecar -= int(sidecars.shards[0][0])
    split.totals = {
        "raw": sums.get("raw_bytes", whole(recorded.get("raw_bytes"))),
        "normalised": sums.get("normalised_bytes", whole(recorded.get("normalised_bytes"))),
        "table": split.counts.table_bytes(pieces) if known and len(row) else None,
        "sidecar": sidecar,
        "decoded": decoded.bytes if known and len(row) else None,
    }
    if not len(row) or not known:
        return
    split.true_name = "table" if not opened.transformed else "decoded"
    if sidecar is not None and abs(split.sidecar_off) <= SIDECAR_WITHIN:
        split.true_name = "sidecar"
    if split.true_name == "decoded":
        return
    split.truncated = truncated(row, sidecars, pieces.table, split.true_bytes or 0)


def check_recorded(
    opened: Opened, split: SplitAudit, report: TextReport | None, wrong: list[Mistake], findings: Findings
) -> None:
    """What the manifest says, against what was found."""
    if not opened.manifest or not split.row.whole:
        return
    recorded, sums, totals = opened.recorded(split.name), complete_sums(report, split.name), split.totals
    charged = totals["sidecar"] if opened.transformed else totals["table"]
    found: dict[str, int | None] = {
        "tokens": len(split.row),
        "documents": len(split.documents),
        "table_bytes": totals["table"],
        "charged_bytes": charged,
        "raw_bytes": sums.get("raw_bytes"),
        "normalised_bytes": sums.get("normalised_bytes"),
    }
    for key, value in found.items():
        claimed = whole(recorded.get(key))
        if claimed is None or value is None or claimed == value:
            continue
        alike = [
            mistake.described
            for mistake in wrong
            if key == "charged_bytes" and relative(claimed, mistake.bytes) <= SAME
        ]
        what = f"the manifest says {claimed:,} {key} for {split.name}, there are {value:,}"
        what += f"; that is the number of: {' / '.join(alike)}" if alike else ""
        findings.add("violation", "recorded-totals", what, opened.folder / "manifest.json", "make the dataset anew")


def check_lists(opened: Opened, split: SplitAudit, findings: Findings) -> None:
    """The document list against stream and manifest."""
    entries = opened.lists.get(split.name)
    if entries is None or not split.row.whole:
        return
    path = opened.folder / DOCUMENTS_NAME.format(split=split.name)
    recorded = opened.recorded(split.name)
    if len(entries) != len(split.documents):
        what = f"the list has {len(entries):,} documents, the stream {len(split.documents):,}"
        findings.add("corrupt", "document-list", what, path, "make the dataset anew")
        return
    lengths = np.diff(split.documents.starts, append=len(split.row))
    wrong = np.flatnonzero(lengths != entries["tokens"])
    if len(wrong):
        index = int(wrong[0])
        what = f"{len(wrong):,} documents have other lengths than the list says; document {index:,} has "
        what += f"{lengths[index]:,} tokens, not {entries['tokens'][index]:,}"
        findings.add("corrupt", "document-list", what, path, "make the dataset anew")
    raw, listed = whole(recorded.get("raw_bytes")), int(entries["bytes"].sum(dtype=np.int64))
    if raw is not None and raw != listed:
        what = f"the manifest says {raw:,} raw_bytes for {split.name}, its document list adds up to {listed:,}"
        findings.add("violation", "recorded-totals", what, path, "make the dataset anew")
    digest = recorded.get("documents_sha256")
    if "document_list" in recorded and isinstance(digest, str) and digest != hashes_sha256(path):
        what = "the hash of the documents is not the manifest's"
        findings.add("corrupt", "document-list", what, path, "make the dataset anew")


def check_sidecar_total(
    opened: Opened, split: SplitAudit, wrong: list[Mistake], compared: bool, findings: Findings
) -> None:
    """A sidecar holds the bytes of the decoded text, give or take what the normaliser changes; `compared` if it
    was held against the text itself.
    """
    sidecar, decoded = split.totals["sidecar"], split.decoded
    if sidecar is None:
        return
    off = split.sidecar_off
    if abs(off) > SIDECAR_WITHIN:
        best = min(wrong, key=lambda one: (relative(sidecar, one.bytes), one.name != "prefix-sidecar"), default=None)
        what = f"the sidecars charge {off:+.1%} against the decoded text"
        if best and relative(sidecar, best.bytes) < SIDECAR_WITHIN:
            what += f"; nearest known mistake: {best.described}"
        findings.add("violation", "sidecar-total", what, opened.source, "make the sidecars anew from the text")
    elif off and not compared:
        what = f"the sidecars charge {decoded.charged:,} bytes, the decoded text has {decoded.bytes:,}: probably what "
        what += "the tokenizer's normaliser changes"
        findings.add("note", "sidecar-normaliser", what, opened.source, "--text tells for sure")


def check_canonical(opened: Opened, split: SplitAudit, pieces: Pieces, findings: Findings) -> dict[str, Any] | None:
    """Whether this is the challenge's validation set, by its size."""
    if split.true_bytes is None:
        return None
    answer = canonical(split.row, variant_of(opened, pieces.size), split.true_bytes)
    size = f"{split.true_bytes:,} validation bytes"
    if answer["canonical"]:
        what = f"{size}: the size of the canonical validation set ({answer['off_bytes']:+,} of {answer['bytes']:,})"
    else:
        what = f"{size}, {split.true_bytes / answer['bytes']:.2%} of the canonical {answer['bytes']:,}: scores are not "
        what += "comparable with the challenge's"
    stream = answer.get("stream")
    if stream and answer["canonical"]:
        equal = stream["tokens"] == stream["tokens_here"]
        what += f"; {stream['tokens_here']:,} scored tokens at length {stream['length']}, "
        what += "as published" if equal else f"published are {stream['tokens']:,}"
    findings.add("note", "canonical-bytes", what, opened.source)
    return answer


def truths_of(split: SplitAudit, transformed: bool) -> dict[str, int]:
    """The totals that may be called the bytes of the validation text."""
    wrong = {"table", "sidecar"} - {split.true_name} if transformed else set()
    truths = {name: size for name, size in split.totals.items() if size and name not in wrong}
    truths |= {f"{split.true_name} at length {length}": cut["bytes"] for length, cut in split.truncated.items()}
    first = {split.true_name: truths[split.true_name]} if split.true_name in truths else {}
    return first | truths


def check_claim(
    claimed: int, split: SplitAudit, opened: Opened, wrong: list[Mistake], findings: Findings
) -> dict[str, Any]:
    """What a number of bytes that somebody claims is."""
    claim = judge_claim(claimed, truths_of(split, opened.transformed), wrong)
    if claim["kind"] == "true":
        findings.add("note", "claimed-bytes", f"the {claimed:,} bytes claimed are a true total: {claim['equals'][0]}")
        return claim
    names = {mistake.name: mistake.described for mistake in wrong}
    if claim["kind"] == "mistake":
        what = f"the {claimed:,} bytes claimed are those of a mistake: {' / '.join(names[n] for n in claim['equals'])}"
    elif claim["off"] is None:
        what = f"the {claimed:,} bytes claimed cannot be judged: no total could be computed"
    else:
        near = names.get(claim["nearest"], claim["nearest"])
        what = f"the {claimed:,} bytes claimed are no total of this stream; nearest is {near}, {claim['off']:.2%} away"
    fix = f"the true denominator is {split.true_bytes:,}" if split.true_bytes else ""
    findings.add("violation", "claimed-bytes", what, opened.source, fix)
    return claim
