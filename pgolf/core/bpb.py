"""Bits per byte: the score, and what each token is charged.

BPB = nats / (ln 2 * bytes), a ratio of sums over the scored targets. For plain text a target's byte charge depends on
its own id and on the one before: the UTF-8 length of its piece, plus one for a leading space unless the previous id is
a boundary (BOS, unknown, padding). Text that was transformed before tokenization is charged from sidecar shards, which
hold the original bytes of every token. Source: the challenge's evaluation; issue #897 on tokenizers without a bare
space piece; PR #2071 on tables used for transformed text.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.core.errors import InputError
from pgolf.core.shards import list_shards, list_sidecars, load_sidecars, load_split

OPERATOR = "\ue001"
"""The first operator of CaseOps; a tokenizer that reserves it was made for transformed text."""
CHARGE_CHUNK = 1 << 20


@dataclass(frozen=True)
class Score:
    """Sums over scored targets: nats, tokens, bytes. Scores add; ratios are only ever taken here."""

    nats: float
    tokens: int
    bytes: int

    @property
    def val_loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def bpb(self) -> float:
        """Bits per byte."""
        return self.nats / (math.log(2) * self.bytes)

    def document(self) -> dict[str, float | int]:
        """Sums and ratios at full precision, as every JSON document has them."""
        sums = {"nats": self.nats, "tokens": self.tokens, "bytes": self.bytes}
        return {**sums, "val_loss": self.val_loss, "bpb": self.bpb}

    def __add__(self, other: "Score") -> "Score":
        return Score(self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes)


@dataclass(frozen=True)
class ByteTable:
    """Per id: UTF-8 bytes of the piece without its leading mark, whether it has one, whether it is a boundary."""

    base: np.ndarray
    lead: np.ndarray
    boundary: np.ndarray

    @property
    def typical(self) -> np.ndarray:
        """Bytes of every id with its leading space, (V,) int64."""
        return self.base + self.lead

    def charges(self, ids: np.ndarray) -> np.ndarray:
        """Bytes charged to targets 1 .. N-1 of a stream of N ids, (N-1,) int32."""
        result = np.empty(max(len(ids) - 1, 0), np.int32)
        for start in range(0, len(result), CHARGE_CHUNK):
            part = ids[start : start + CHARGE_CHUNK + 1]
            target, previous = part[1:], part[:-1]
            spaces = self.lead[target] & ~self.boundary[previous]
            result[start : start + CHARGE_CHUNK] = self.base[target] + spaces
        return result


def byte_table(tokenizer: Any, vocab_size: int) -> ByteTable:
    """Tables for a SentencePiece processor, padded to `vocab_size`. InputError without a bare space piece."""
    size = max(vocab_size, tokenizer.vocab_size())
    base, lead, boundary = np.zeros(size, np.int64), np.zeros(size, bool), np.ones(size, bool)
    for index in range(tokenizer.vocab_size()):
        if tokenizer.is_control(index) or tokenizer.is_unknown(index) or tokenizer.is_unused(index):
            continue
        boundary[index] = False
        piece = tokenizer.id_to_piece(index)
        lead[index] = piece.startswith("\u2581")
        base[index] = (
            1 if tokenizer.is_byte(index) else len(piece.removeprefix("\u2581").replace("\u2581", " ").encode())
        )
    if not (lead & (base == 0)).any():
        raise InputError(
            "the tokenizer has no bare space piece, so spaces would be charged three bytes",
            "tokenizer",
            "see issue #897; train another",
        )
    return ByteTable(base, lead, boundary)


def load_tokenizer(content: bytes, where: str) -> Any:
    """A SentencePiece processor from the bytes of a model file. InputError if they are not one."""
    from sentencepiece import SentencePieceProcessor

    if not content:
        raise InputError("the tokenizer file is empty", where, "give the .model file of the tokenizer")
    try:
        return SentencePieceProcessor(model_proto=content)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"not a SentencePiece model: {error}", where, "give the .model file of the tokenizer"
        ) from None


def is_transformed(tokenizer: Any) -> bool:
    """Whether a tokenizer reserves the operators of a text transform, so that a byte table would count them."""
    return bool(tokenizer.piece_to_id(OPERATOR) != tokenizer.unk_id())


def validation_stream(folder: Path, tokenizer: Any, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The validation split of a directory of shards: ids (N,) uint16 and the bytes charged to targets, (N-1,).

    InputError for bad shards, or when the tokenizer needs byte sidecars and they are missing or do not fit.
    """
    shards = load_split(list_shards(folder, "val"), vocab_size)
    if not shards:
        raise InputError("there are no validation shards", str(folder), "expected files like fineweb_val_000000.bin")
    ids = np.concatenate(shards)
    if is_transformed(tokenizer):
        return ids, load_sidecars(list_sidecars(folder), shards, folder)
    return ids, byte_table(tokenizer, vocab_size).charges(ids)
