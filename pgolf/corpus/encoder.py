"""Documents to token ids and byte charges, exactly as SentencePiece would, but a word at a time.

Where no piece reaches over a blank, the ids of a text are those of its words in a row (`splits_at_blanks`). For BPE
that holds to the letter, because merges only ever happen inside a piece-to-be; so each distinct word goes through the
tokenizer once and is looked up ever after. Other tokenizers, and texts with a literal U+2581, go through whole.

A long document goes through in parts, cut where it changes nothing: at a blank, or at a joint, a place that no piece,
no normalisation rule and no word of the transform reaches over. BPE only ever merges two neighbours into a piece, so
what lies left and right of a joint never meets.
"""

import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from pgolf.core.bpb import load_tokenizer
from pgolf.core.errors import InputError
from pgolf.corpus.sp_model import BLANKS, BPE, SPACE, UNIGRAM, Rules, model_facts, splits_at_blanks
from pgolf.corpus.transforms import TextTransform

PART_CHARS = 1 << 17
"""A longer document is worked on in parts of about this size, so that memory stays bounded."""
LONG_WORD_CHARS = 1 << 16
"""How far back from the end of a part a place to cut is looked for."""
RUN_CHARS, CHARGED_RUN_CHARS = 1 << 20, 1 << 18
"""The most that may go through whole for want of a place to cut; less where offsets are needed, because
`encode_as_offset_mapping` takes some 300 bytes of memory per token, and a character may be four byte pieces."""
CACHED_WORDS, CACHED_WORD_CHARS, CACHED_JOINTS = 1 << 18, 64, 1 << 14
ODD_ASCII = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
ANCHOR = "x "
"""Encoded before a part and taken off again, so that the normaliser keeps the space before the part."""


def packed(values: list[int]) -> bytes:
    """Little-endian uint16."""
    return struct.pack(f"<{len(values)}H", *values)


class IrregularWord(Exception):
    """A word whose ids or bytes cannot be told without its neighbours."""


class Words(dict[str, bytes]):
    """Word -> its ids, filled on demand up to a number of entries; `charges` has the bytes charged to them."""

    def __init__(self, encode: Callable[[str], tuple[bytes, bytes]], charges: "Words | None" = None) -> None:
        super().__init__({"": b""})
        self.encode, self.charges = encode, charges

    def __missing__(self, word: str) -> bytes:
        ids, charges = self.encode(word)
        if len(self) < CACHED_WORDS and len(word) <= CACHED_WORD_CHARS:
            self[word] = ids
            if self.charges is not None:
                self.charges[word] = charges
        return ids


@dataclass
class Encoded:
    """One document without BOS. Bytes are of the original text; `charges` stays empty where a byte table will do.
    Whoever takes ids and charges out before the end leaves `begun` alone.
    """

    ids: list[bytes] = field(default_factory=list)
    charges: list[bytes] = field(default_factory=list)
    begun: bool = False
    """Whether there has been a token."""
    raw_bytes: int = 0
    normalised_bytes: int = 0
    stripped_bytes: int = 0
    """What the normaliser drops at the two ends."""
    pending_bytes: int = 0
    """Blanks since the last token, which the next one is charged."""

    def add(self, ids: bytes, charges: bytes = b"") -> None:
        """Append packed ids with their charges."""
        self.begun = True
        self.ids.append(ids)
        self.charges.append(charges)


@dataclass
class Slices:
    """Ids of a part, the bytes of the text under each, and the bytes before the first and after the last of them."""

    ids: list[int]
    charges: list[int]
    before: int
    after: int


class Encoder:
    """One tokenizer and one text transform. InputError if the model file is not one."""

    def __init__(self, model: bytes, transform: TextTransform, where: str = "tokenizer") -> None:
        self.tokenizer: Any = load_tokenizer(model, where)
        self.facts = model_facts(model, where)
        self.pieces = [self.tokenizer.id_to_piece(index) for index in range(self.tokenizer.vocab_size())]
        self.transform = transform
        self.charging = bool(transform.operators)
        self.dropped = dict.fromkeys(map(ord, transform.operators))
        self.cuts = splits_at_blanks(self.tokenizer, self.facts, self.pieces)
        self.by_word = self.cuts and self.facts.model_type == BPE and self.facts.byte_fallback
        self.anchor_ids = len(self.tokenizer.encode(ANCHOR))
        self.anchor_bytes = len(self.normal(ANCHOR))
        self.charges = Words(lambda word: self.encode_word(word)[::-1])
        self.words = Words(self.encode_word, self.charges)
        self.is_joint = lru_cache(CACHED_JOINTS)(self.find_joint)

    def normal(self, text: str) -> bytes:
        """A text as the tokenizer's normaliser leaves it, spaces as spaces, in UTF-8."""
        return bytes(self.tokenizer.normalize(text).replace(SPACE, " ").encode())

    def encode(self, text: str) -> Encoded:
        """A document; without ids if the normaliser leaves nothing of it.

        InputError if the tokenizer or the transform loses text, or there is no place to cut a long one.
        """
        state = Encoded()
        for _ in self.encode_pieces([text], state):
            pass
        return state

    def encode_pieces(self, pieces: Iterable[str], state: Encoded) -> Iterator[None]:
        """`encode` of a document that comes in pieces; stops after each of its parts, so that ids and charges can be
        taken out of `state`.
        """
        for part, after_blank in self.parts(pieces):
            anchored = after_blank and state.begun
            state.raw_bytes += len(part.encode()) + after_blank
            state.pending_bytes += after_blank
            words = self.split(part) if self.by_word else []
            state.normalised_bytes += self.normalised_bytes(part, words, anchored)
            try:
                if not self.by_word or (state.begun and not after_blank):
                    raise IrregularWord
                self.add_words(words, state)
            except IrregularWord:
                self.add_part(part, state, anchored)
            yield
        state.stripped_bytes += state.pending_bytes

    # Cutting

    def parts(self, pieces: Iterable[str]) -> Iterator[tuple[str, bool]]:
        """Parts of a long text, each with whether a blank lies before it (and belongs to no part). They do not depend
        on how the text is cut into pieces.
        """
        rest, after_blank = "", False
        for piece in pieces:
            rest, start = rest + piece, 0
            while found := self.place_to_cut(rest, start):
                end, at_blank = found
                yield rest[start:end], after_blank
                start, after_blank = end + at_blank, at_blank
            rest = rest[start:]
        yield rest, after_blank

    def place_to_cut(self, text: str, start: int) -> tuple[int, bool] | None:
        """Where a part that begins at `start` ends, and whether at a blank; None if the text is not long enough.
        InputError if there is no such place for too long.
        """
        longest = CHARGED_RUN_CHARS if self.charging else RUN_CHARS
        for end in range(start + PART_CHARS, min(len(text), start + longest + 1), LONG_WORD_CHARS):
            first = max(end - LONG_WORD_CHARS, start + 1)
            blank = max(text.rfind(blank, first, end) for blank in BLANKS) if self.cuts else -1
            if blank >= 0:
                return blank, True
            joint = next(
                (place for place in range(end - 2, first, -1) if self.is_joint(text[place - 2 : place + 2])), 0
            )
            if joint:
                return joint, False
        if len(text) - start > longest:
            where = f"{text[start : start + 20]!r} and on"
            raise InputError(f"a run of {longest:,} characters has no place to cut it", where, "put blanks into it")
        return None

    @cached_property
    def inside(self) -> set[str]:
        """Two neighbouring characters of every piece."""
        return {piece[at : at + 2] for piece in self.pieces for at in range(len(piece) - 1)}

    @cached_property
    def in_rules(self) -> np.ndarray:
        """Which bytes are neighbours in a normalisation rule, (256, 256) bool."""
        return Rules(self.facts.charsmap).neighbours()

    @cached_property
    def has_joints(self) -> bool:
        """Whether this kind of tokenizer works on what lies between joints without a look beyond."""
        return not self.facts.dummy_prefix and self.facts.plain_spaces and self.facts.model_type in (UNIGRAM, BPE)

    def find_joint(self, four: str) -> bool:
        """Whether nothing reaches over the middle of four characters: no normalisation rule, for which the outer two
        count because they may change the inner ones, nor the transform, nor a piece. What CaseOps makes of a word
        depends on its first letter and on whether all are capitals: it does not reach over two that it leaves alone.
        """
        left, right = four[1], four[2]
        if not self.has_joints or self.transform.encode(left + right) != left + right:
            return False
        encoded = [char.encode() for char in four]
        if any(self.in_rules[before[-1], after[0]] for before, after in pairwise(encoded)):
            return False
        ends, begins = self.tokenizer.normalize(left), self.tokenizer.normalize(right)
        if not ends or not begins or SPACE in ends + begins:
            return False
        # A reserved symbol stays as it is, so the raw characters count, too.
        return not any(a + b in self.inside for a in (left, ends[-1]) for b in (right, begins[0]))

    @staticmethod
    def split(part: str) -> list[str]:
        """The words of a part; n blanks in a row give n - 1 empty ones."""
        for blank in BLANKS[1:]:
            part = part.replace(blank, " ")
        return part.split(" ")

    def normalised_bytes(self, part: str, words: list[str], anchored: bool) -> int:
        """UTF-8 bytes of a part after normalisation, with the space before it if `anchored`."""
        if words and part.isascii() and not ODD_ASCII.search(part):
            empty = words.count("")
            return len(part) - empty + anchored if empty < len(words) else 0
        if anchored:
            return len(self.normal(ANCHOR + part)) - self.anchor_bytes
        return len(self.normal(part)) - (self.facts.dummy_prefix and bool(self.normal(part)))

    # Word by word

    def encode_word(self, word: str) -> tuple[bytes, bytes]:
        """Ids and charges of a word that a space comes before. IrregularWord if they depend on its neighbours."""
        if SPACE in word or len(word) > LONG_WORD_CHARS:
            raise IrregularWord
        if not self.charging:
            return packed(self.tokenizer.encode(ANCHOR + word)[self.anchor_ids :]), b""
        slices = self.word_slices(word) if word.translate(self.dropped) == word else self.slices(word, True)
        if slices.after or not slices.ids:
            raise IrregularWord
        return packed(slices.ids), packed(slices.charges)

    def word_slices(self, word: str) -> Slices:
        """`slices` of a word that a space comes before and that has no literal operator: operators charge nothing."""
        text = ANCHOR + self.coded(word)
        mapping = self.tokenizer.encode_as_offset_mapping(text)
        ids, offsets = mapping["ids"][self.anchor_ids :], mapping["offsets"][self.anchor_ids :]
        if word.isascii():
            charges = [len(text[start:end].encode("ascii", "ignore")) for start, end in offsets]
        else:
            charges = [len(text[start:end].translate(self.dropped).encode()) for start, end in offsets]
        return Slices(ids, charges, 0, 1 + len(word.encode()) - sum(charges))

    def add_words(self, words: list[str], state: Encoded) -> None:
        """Add the words of a part. IrregularWord, with nothing added, if one of them has to go through whole."""
        empty, head = 0, None
        if not state.begun:
            empty = next((index for index, word in enumerate(words) if word), len(words))
            if empty == len(words):
                state.pending_bytes += empty - 1
                return
            head = self.first_word(words[empty])
            words = words[empty + 1 :]
        ids = list(map(self.words.__getitem__, words))
        if head:
            state.stripped_bytes += state.pending_bytes + empty + head.before
            state.pending_bytes = 1 if words else 0
            state.add(packed(head.ids), packed(head.charges))
        state.add(b"".join(ids), self.charges_of(words, ids, state) if self.charging and words else b"")

    def first_word(self, word: str) -> Slices:
        """The first word of a document, with no space before it. IrregularWord if it leaves nothing, or not all."""
        if SPACE in word or len(word) > LONG_WORD_CHARS:
            raise IrregularWord
        slices = self.slices(word, False) if self.charging else Slices(self.tokenizer.encode(word), [], 0, 0)
        if slices.after or not slices.ids:
            raise IrregularWord
        return slices

    def charges_of(self, words: list[str], ids: list[bytes], state: Encoded) -> bytes:
        """Charges of words that follow `pending_bytes` blanks, the space before each among them; settles what is left
        of these: every further blank goes to the first token after it, as SentencePiece's slices have it.
        """
        charges = np.frombuffer(b"".join(map(self.charges.__getitem__, words)), "<u2").astype(np.int64)
        lengths = np.fromiter(map(len, ids), np.int64, len(ids)) // 2
        filled = np.flatnonzero(lengths)
        if len(filled):
            blanks = np.diff(filled, prepend=-state.pending_bytes) - 1
            charges[(np.cumsum(lengths) - lengths)[filled]] += blanks
            state.pending_bytes = len(words) - 1 - int(filled[-1])
        else:
            state.pending_bytes += len(words) - 1
        return packed_charges(charges)

    # A part at once

    def add_part(self, part: str, state: Encoded, anchored: bool) -> None:
        """Add a part that cannot be split into words; `anchored` says that a blank comes before it."""
        if not self.charging:
            anchor, skip = (ANCHOR, self.anchor_ids) if anchored else ("", 0)
            if ids := self.tokenizer.encode(anchor + part)[skip:]:
                state.add(packed(ids))
            return
        slices = self.slices(part, anchored)
        if not slices.ids:
            state.pending_bytes += len(part.encode())
            return
        if state.begun:
            slices.charges[0] += state.pending_bytes - anchored + slices.before
        else:
            state.stripped_bytes += state.pending_bytes + slices.before
        state.pending_bytes = slices.after
        state.add(packed(slices.ids), packed_charges(np.array(slices.charges)))

    def coded(self, text: str) -> str:
        """A text after the transform. InputError unless it can be had back."""
        coded = self.transform.encode(text)
        if self.transform.decode(coded) != text:
            raise InputError("the text transform does not give the text back", repr(text[:40]), "please report this")
        return coded

    def slices(self, text: str, anchored: bool) -> Slices:
        """Ids of a text, and the original bytes under each, read off the slice of the transformed text that it covers
        (PR #1855); `anchored` puts a space, and its byte, before the text. InputError if text would be lost.
        """
        coded = self.coded(text)
        anchor, skip = (ANCHOR, self.anchor_ids) if anchored else ("", 0)
        mapping = self.tokenizer.encode_as_offset_mapping(anchor + coded)
        ids, ends = mapping["ids"][skip:], np.array(mapping["offsets"][skip:], np.int64).reshape(-1, 2)
        under = np.concatenate([[0, 1] if anchored else [], self.transform.char_bytes(coded)]).astype(np.int64)
        before = np.concatenate([[0], under.cumsum()])  # of the anchor only the space counts
        if not ids:
            return Slices([], [], 0, int(before[-1]))
        first, last = int(ends[0, 0]), int(ends[-1, 1])
        lost = (anchor + coded)[len(anchor) : first] + (anchor + coded)[last:]
        if self.normal(lost).strip():
            raise InputError("the tokenizer loses text", repr(lost[:40]), "use one with byte fallback")
        charges = (before[ends[:, 1]] - before[ends[:, 0]]).tolist()
        return Slices(ids, charges, int(before[first]), int(before[-1] - before[last]))


def packed_charges(charges: np.ndarray) -> bytes:
    """Charges as the sidecar holds them. InputError for one that does not fit: a very long run of blanks."""
    if charges.max(initial=0) > 65535:
        raise InputError(
            f"a run of {charges.max():,} blanks does not fit a byte sidecar, whose entries go to 65,535",
            "tokenize.transform",
            "take the run out of the text",
        )
    return charges.astype("<u2").tobytes()
