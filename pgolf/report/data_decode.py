"""Each document of a stream decoded again, and its bytes held against what its tokens are charged."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pgolf.core.errors import InputError
from pgolf.corpus.transforms import ESC
from pgolf.report.console import Console
from pgolf.report.data_opened import Findings, Opened, Row, counted
from pgolf.report.data_overlap import Documents, hash_ids, opening_hash
from pgolf.report.data_totals import BOS, Pieces

LONGEST = 1 << 22
"""A document of more tokens is not decoded, so that memory stays bounded."""
SAMPLE = 64
UNDECODABLE_SHARE = 0.01
"""More documents than this do not fail to decode by what the normaliser does."""
LISTED = 20


@dataclass
class Decoded:
    """What decoding a split gave: bytes of the text, and documents whose charges differ from their bytes."""

    bytes: int = 0
    documents: int = 0
    """Documents that could be decoded."""
    charged: int = 0
    """What the tokens of these documents are charged."""
    differing: int = 0
    cut_differing: int = 0
    """Differing only because the end of a shard cuts them off."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    undecodable: list[int] = field(default_factory=list)
    """Transformed ones in which an operator stands where none may."""
    too_long: int = 0
    operators: int = 0
    """Operators that are not escaped."""
    charged_symbols: dict[str, int] = field(default_factory=lambda: {"bos": 0, "operator": 0})
    """How many symbols that stand for no byte are charged some."""
    first_wrong: dict[str, int] = field(default_factory=dict)
    """Where the first of them is."""
    sampled: int = 0
    round_trips: int = 0


class Decoder:
    """One tokenizer and transform on documents of ids."""

    def __init__(self, opened: Opened, pieces: Pieces) -> None:
        self.opened, self.pieces, self.table = opened, pieces, pieces.table
        ids = [opened.tokenizer.piece_to_id(operator) for operator in opened.transform.operators]
        self.is_operator = np.zeros(1 << 16, bool)
        self.is_operator[ids] = True
        self.escape = ids[opened.transform.operators.index(ESC)] if ids else -1

    def texts(self, documents: list[np.ndarray]) -> list[str]:
        """Documents as the tokenizer gives them back, operators still in place, without ids that it does not have."""
        size = self.pieces.size
        return list(self.opened.tokenizer.decode([ids[1:][ids[1:] < size].tolist() for ids in documents]))

    def text_bytes(self, text: str) -> tuple[int, bool]:
        """UTF-8 bytes of the original of a decoded text, and whether it could be had back."""
        try:
            return len(self.opened.transform.decode(text).encode()), True
        except InputError:
            return int(self.opened.transform.char_bytes(text).sum()), False

    def charged(self, documents: list[np.ndarray], stream: np.ndarray, charges: np.ndarray | None) -> np.ndarray:
        """Bytes charged per document, (D,) int64, by the sidecar's `charges` or else by the table."""
        if charges is None:
            before = np.concatenate([stream[-1:], stream[:-1]])
            charges = self.table.base[stream] + (self.table.lead[stream] & ~self.table.boundary[before])
        starts = np.cumsum([0, *(len(ids) for ids in documents[:-1])])
        result: np.ndarray = np.add.reduceat(charges.astype(np.int64), starts)
        return result

    def plain_operators(self, stream: np.ndarray) -> np.ndarray:
        """Which ids of a stream are operators that are not escaped: of unbroken ESCs every second one is."""
        mask: np.ndarray = self.is_operator[stream]
        escapes = np.flatnonzero(stream == self.escape)
        first = np.maximum.accumulate(np.where(np.diff(escapes, prepend=-2) > 1, escapes, 0))
        escaped = escapes[(escapes - first) % 2 == 0] + 1
        mask[escaped[escaped < len(stream)]] = False
        return mask


def decode_split(
    opened: Opened, pieces: Pieces, documents: Documents, sidecars: Row | None, name: str, console: Console
) -> Decoded:
    """Hash every document of a split, and decode it where there is a tokenizer. Fills the hashes of `documents`."""
    found, hashes, openings = Decoded(), np.zeros(len(documents), np.uint64), np.zeros(len(documents), np.uint64)
    decoder = Decoder(opened, pieces) if opened.tokenizer is not None else None
    cut = documents.cut
    with console.progress() as line:
        for first, batch in documents.batches():
            line.count(f"audit: documents of {name}", first, len(documents))
            hashes[first : first + len(batch)] = [hash_ids(ids) for ids in batch]
            openings[first : first + len(batch)] = [opening_hash(ids) for ids in batch]
            if decoder is not None:
                decode_batch(decoder, documents, first, batch, sidecars, cut, found)
    documents.hashes, documents.openings = hashes, openings
    return found


def decode_batch(
    decoder: Decoder,
    documents: Documents,
    first: int,
    batch: list[np.ndarray],
    sidecars: Row | None,
    cut: set[int],
    found: Decoded,
) -> None:
    """Compare the documents of one batch with their charges."""
    position = int(documents.starts[first])
    if len(batch) == 1 and len(batch[0]) > LONGEST:
        found.too_long += 1
        return
    stream = np.concatenate(batch)
    charges = sidecars.cut(position, position + len(stream)) if sidecars is not None else None
    charged = decoder.charged(batch, stream, charges)
    if decoder.opened.transformed:
        check_charges(decoder, stream, charges, position, found)
    texts = decoder.texts(batch)
    if found.sampled < SAMPLE:
        sample_round_trips(decoder, batch, texts, first, cut, found)
    for offset, text in enumerate(texts):
        index = first + offset
        size, whole = decoder.text_bytes(text)
        if not whole and index not in cut:
            found.undecodable.append(index)
        found.documents += 1
        found.bytes += size
        found.charged += int(charged[offset])
        if size != charged[offset] and (sidecars is not None or not decoder.opened.transformed):
            note_difference(found, index, int(charged[offset]), size, index in cut)


def note_difference(found: Decoded, index: int, charged: int, size: int, is_cut: bool) -> None:
    """A document whose charges are not the bytes of its text."""
    found.cut_differing += is_cut
    found.differing += not is_cut
    if not is_cut and len(found.examples) < LISTED:
        found.examples.append({"document": index, "charged_bytes": charged, "decoded_bytes": size})


def check_charges(
    decoder: Decoder, stream: np.ndarray, charges: np.ndarray | None, position: int, found: Decoded
) -> None:
    """Neither BOS nor an operator stands for a byte."""
    plain = decoder.plain_operators(stream)
    found.operators += int(plain.sum())
    if charges is None:
        return
    for name, mask in (("bos", stream == BOS), ("operator", plain)):
        wrong = np.flatnonzero(mask & (charges > 0))
        if len(wrong):
            found.first_wrong.setdefault(name, position + int(wrong[0]))
            found.charged_symbols[name] += len(wrong)


def sample_round_trips(
    decoder: Decoder, batch: list[np.ndarray], texts: list[str], first: int, cut: set[int], found: Decoded
) -> None:
    """Whether the first complete documents encode to the same ids again."""
    for offset, (ids, text) in enumerate(zip(batch, texts)):
        if found.sampled < SAMPLE and first + offset not in cut and len(ids) > 1:
            found.sampled += 1
            found.round_trips += decoder.opened.tokenizer.encode(text) == ids[1:].tolist()


def check_decoded(opened: Opened, name: str, found: Decoded, documents: Documents, findings: Findings) -> None:
    """What decoding says of a split's tokens and charges."""
    where = opened.source
    if found.sampled and 2 * found.round_trips < found.sampled:
        what = f"{found.sampled - found.round_trips} of {found.sampled} documents of {name} encode to other ids again"
        fix = "name the tokenizer that made the shards with --tokenizer"
        findings.add("corrupt", "tokenizer-mismatch", what, opened.tokenizer_path, fix)
    elif found.round_trips < found.sampled:
        what = f"{found.sampled - found.round_trips} of {found.sampled} documents of {name} encode to other ids again"
        findings.add("warning", "round-trip", what, where, "was another version of SentencePiece at work?")
    if found.undecodable:
        index, many = found.undecodable[0], len(found.undecodable) > UNDECODABLE_SHARE * found.documents
        what = f"{counted(len(found.undecodable), 'document')} of {name} cannot be transformed back, the first is "
        what += f"document {index:,}" + (
            "" if many else ": the tokenizer's normaliser makes letters of other characters"
        )
        fix = "tokenize the text anew" if many else ""
        level = "violation" if many else "note"
        findings.add(level, "operator-order", what, documents.row.path_of(int(documents.starts[index])), fix)
    if found.too_long:
        what = f"{found.too_long} documents of {name} have more than {LONGEST:,} tokens and were not decoded"
        findings.add("note", "not-decoded", what, where)
    for check, noun in (("bos", "BOS"), ("operator", "operator")):
        if count := found.charged_symbols[check]:
            at = found.first_wrong[check]
            what = f"{counted(count, noun)} with bytes charged in the sidecar, the first at token {at:,}"
            findings.add("violation", f"sidecar-{check}", what, documents.row.path_of(at), "make the sidecar anew")
    if found.differing and not opened.transformed:
        example = found.examples[0]
        what = (
            f"{counted(found.differing, 'document')} of {name} not charged the bytes of the text; document "
            f"{example['document']:,} has {example['decoded_bytes']:,} bytes, charged {example['charged_bytes']:,}"
        )
        findings.add(
            "violation",
            "decoded-bytes",
            what,
            documents.row.path_of(int(documents.starts[example["document"]])),
            "use a lossless tokenizer",
        )
