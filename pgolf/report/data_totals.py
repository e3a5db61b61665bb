"""Byte totals of a token stream, counted right and counted wrong.

Every way to count is a sum over ids, so one pass that counts ids, and ids after a boundary, gives all of them. The
wrong ways are those that happened: the number a mistake would have given on this very stream tells it from others.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pgolf.core.bpb import ByteTable
from pgolf.corpus.sp_model import SPACE
from pgolf.corpus.transforms import TITLE
from pgolf.report.data_opened import Opened, Row

IDS = 1 << 16
BOS, EOS, UNKNOWN = 1, 2, 3
LENGTHS = (1024, 2048)
"""Evaluation lengths of the challenge; a stream is cut to a multiple of one, plus one token."""
SAME = 1e-4
"""Totals this close, relatively, are taken for the same: truncation moves them by less."""
CANONICAL_BYTES, CANONICAL_WITHIN = 151_078_000, 10_000
CANONICAL_STREAMS = {
    "sp1024": (1024, 62_021_632, None),
    "sp4096": (2048, 45_508_608, 151_074_052),
    "sp8192": (2048, 40_540_160, 151_078_222),
    "caseops": (2048, 47_851_520, 151_074_499),
}
"""Published logs: evaluation length, scored tokens, bytes they were divided by (unknown for sp1024)."""


@dataclass(frozen=True)
class Pieces:
    """Per possible id, whatever the vocabulary: what its piece is. `length` is in UTF-8, U+2581 as the three bytes it
    has; a byte piece has 1; control, unknown, unused and absent ids have 0 and are boundaries.
    """

    size: int
    length: np.ndarray
    marks: np.ndarray
    lead: np.ndarray
    is_byte: np.ndarray
    boundary: np.ndarray
    bare: int
    """Id of the piece that is nothing but U+2581, or -1."""

    @property
    def table(self) -> ByteTable:
        """The byte table, also of a tokenizer that must not be used."""
        return ByteTable(self.length - 2 * self.marks - self.lead, self.lead, self.boundary)


def pieces_of(tokenizer: Any) -> Pieces:
    """Look at every piece of a SentencePiece processor; without one, every id is nothing."""
    length, marks = np.zeros(IDS, np.int64), np.zeros(IDS, np.int64)
    lead, is_byte, boundary = np.zeros(IDS, bool), np.zeros(IDS, bool), np.ones(IDS, bool)
    size, bare = min(tokenizer.vocab_size(), IDS) if tokenizer is not None else 0, -1
    for index in range(size):
        if tokenizer.is_control(index) or tokenizer.is_unknown(index) or tokenizer.is_unused(index):
            continue
        piece = tokenizer.id_to_piece(index)
        boundary[index], is_byte[index] = False, tokenizer.is_byte(index)
        lead[index], marks[index] = piece.startswith(SPACE), piece.count(SPACE)
        length[index] = 1 if is_byte[index] else len(piece.encode())
        bare = index if piece == SPACE else bare
    return Pieces(size, length, marks, lead, is_byte, boundary, bare)


@dataclass
class Counts:
    """Occurrences among the targets of a stream, that is all but its first id: of every id, and of every id right after
    a boundary.
    """

    ids: np.ndarray = field(default_factory=lambda: np.zeros(IDS, np.int64))
    after_boundary: np.ndarray = field(default_factory=lambda: np.zeros(IDS, np.int64))
    starts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Positions of BOS."""
    empty: int = 0
    """Documents without a token."""
    eos_before_bos: int = 0

    def of(self, values: np.ndarray) -> int:
        """Sum of a value per id over the stream."""
        return int((self.ids * values).sum())

    def table_bytes(self, pieces: Pieces) -> int:
        """What the byte table charges to the whole stream."""
        return self.of(pieces.table.base + pieces.lead) - int(self.after_boundary[pieces.lead].sum())


def count(rows: list[Row], pieces: Pieces) -> Counts:
    """Count one stream, or several read as one."""
    counts, position = Counts(), 0
    previous, starts = np.zeros(0, np.uint16), []
    for row in rows:
        for part in row.chunks():
            joined = np.concatenate([previous, part])
            before, target = joined[:-1], joined[1:]
            counts.ids += np.bincount(target, minlength=IDS)
            counts.after_boundary += np.bincount(target[pieces.boundary[before]], minlength=IDS)
            at_start = before[target == BOS]
            counts.empty += int((at_start == BOS).sum())
            counts.eos_before_bos += int((at_start == EOS).sum())
            starts.append(np.flatnonzero(part == BOS) + position)
            previous, position = part[-1:], position + len(part)
    counts.starts = np.concatenate([np.zeros(0, np.int64), *starts]).astype(np.int64)
    return counts


def usable(tokens: int, length: int) -> int:
    """Targets that a stream of so many tokens has under the challenge's rule: whole windows only."""
    return max(tokens - 1, 0) // length * length


def tail_bytes(row: Row, sidecars: Row | None, table: ByteTable, length: int) -> int:
    """Bytes charged to the targets that this rule leaves out."""
    first = usable(len(row), length)
    if sidecars is not None:
        return int(sidecars.cut(first + 1, len(sidecars)).sum(dtype=np.int64))
    return int(table.charges(row.cut(first, len(row))).sum(dtype=np.int64))


def truncated(row: Row, sidecars: Row | None, table: ByteTable, total: int) -> dict[str, dict[str, int]]:
    """Tokens and bytes under the challenge's rule for each of its lengths, for a stream charged `total`."""
    return {
        str(length): {
            "tokens": usable(len(row), length),
            "bytes": total - tail_bytes(row, sidecars, table, length),
        }
        for length in LENGTHS
    }


@dataclass(frozen=True)
class Mistake:
    """A wrong way to count, and what it gives here."""

    name: str
    what: str
    source: str
    bytes: int
    harmless: bool = False
    """Whether it changes nothing on this stream."""

    @property
    def described(self) -> str:
        """In words, with its source."""
        return f"{self.what} ({self.source})" if self.source else self.what


def mistakes(counts: Counts, pieces: Pieces, opened: Opened, operators: int, true_bytes: int) -> list[Mistake]:
    """Every known mistake on a validation stream with so many `operators` that are not escaped. Those of the table come
    on top of the mistake to use one, where text was transformed.
    """
    found, table = [], counts.table_bytes(pieces)
    if opened.transformed:
        # A prefix that ends in an operator does not decode: its three bytes are charged, then again with what follows.
        prefixes = true_bytes + operators * len(TITLE.encode())
        found += [
            Mistake("table-for-transformed", "byte table instead of sidecars", "PR #2071", table),
            Mistake("prefix-sidecar", "sidecar from differences of decoded prefixes", "PR #1736, #1851", prefixes),
        ]
    if len(opened.sidecars):
        both = count([opened.rows["val"], opened.sidecars], pieces).table_bytes(pieces)
        found.append(Mistake("sidecar-as-tokens", "sidecars taken for more tokens by a glob", "PR #1729 layout", both))
    for name, what, source, more in table_mistakes(counts, pieces):
        what += ", and no sidecars" if opened.transformed else ""
        found.append(Mistake(name, what, source, table + more, harmless=not more))
    return found


def table_mistakes(counts: Counts, pieces: Pieces) -> list[tuple[str, str, str, int]]:
    """Wrong byte tables: name, what, source, and the bytes they charge beyond the right one."""
    uncharged = int(counts.after_boundary[pieces.lead].sum())
    leads, marks = counts.of(pieces.lead), counts.of(pieces.marks)
    full = counts.of(pieces.length) - counts.table_bytes(pieces)
    return [
        ("double-space", "leading space in the table and in the charge", "issue #1719", leads),
        ("byte-as-three", "byte pieces charged as U+FFFD", "PR #1143, #1289", 2 * counts.of(pieces.is_byte)),
        ("space-as-bytes", "no bare space piece: a space is three bytes", "issue #897", 2 * (marks - uncharged)),
        ("mark-as-three", "U+2581 charged by its own UTF-8 length", "", full),
        ("inner-mark-as-three", "U+2581 inside pieces charged as three bytes", "", 2 * (marks - leads)),
        ("space-after-bos", "leading space after a boundary charged", "", uncharged),
    ]


def relative(value: int, other: int) -> float:
    """How far one total is from another."""
    return abs(value - other) / max(abs(other), 1)


def nearest(value: int, totals: dict[str, int]) -> tuple[str, float | None]:
    """The total that comes nearest, the first of equals; and how far off it is. Nothing if there is no total."""
    if not totals:
        return "", None
    name = min(totals, key=lambda key: relative(value, totals[key]))
    return name, relative(value, totals[name])


def judge_claim(claimed: int, truths: dict[str, int], wrong: list[Mistake]) -> dict[str, Any]:
    """What a claimed number of bytes is: a true total, a known mistake, or neither; the nearest total in any case."""
    true_name, true_off = nearest(claimed, truths)
    if true_off is not None and true_off <= SAME:
        return {"bytes": claimed, "kind": "true", "equals": [true_name], "nearest": true_name, "off": true_off}
    equal = [mistake.name for mistake in wrong if not mistake.harmless and relative(claimed, mistake.bytes) <= SAME]
    totals = truths | {mistake.name: mistake.bytes for mistake in wrong if not mistake.harmless}
    name, off = nearest(claimed, totals)
    kind = "mistake" if equal else "unknown"
    return {"bytes": claimed, "kind": kind, "equals": equal, "nearest": name, "off": off}


def canonical(row: Row, variant: str, true_bytes: int) -> dict[str, Any]:
    """How the validation stream compares with the challenge's."""
    off = true_bytes - CANONICAL_BYTES
    answer: dict[str, Any] = {"bytes": CANONICAL_BYTES, "off_bytes": off, "canonical": abs(off) < CANONICAL_WITHIN}
    if variant in CANONICAL_STREAMS:
        length, tokens, size = CANONICAL_STREAMS[variant]
        here = usable(len(row), length)
        answer["stream"] = {"variant": variant, "length": length, "tokens": tokens, "tokens_here": here, "bytes": size}
    return answer


def variant_of(opened: Opened, size: int) -> str:
    """Name of the published dataset with such a vocabulary, as far as its stream is known."""
    if opened.transformed:
        return "caseops" if size == 8192 else ""
    return f"sp{size}" if f"sp{size}" in CANONICAL_STREAMS else ""
