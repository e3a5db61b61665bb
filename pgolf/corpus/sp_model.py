"""What a SentencePiece model file says of itself, beyond what its library tells (sentencepiece_model.proto)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pgolf.core.errors import InputError

UNIGRAM, BPE = 1, 2
SPACE = "\u2581"
BLANKS = " \t\n\r"
LABEL_BITS = 0x800000FF
VARINT, BYTES = 0, 2
"""Wire types of protobuf."""


def varint(content: bytes, at: int) -> tuple[int, int]:
    """A protobuf varint and the offset behind it. ValueError if it does not end."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a varint of more than ten bytes")


def fields(content: bytes) -> Iterator[tuple[tuple[int, int], Any]]:
    """((number, wire type), value) of every field of a protobuf message; nested messages stay bytes. ValueError if it
    is damaged.
    """
    at = 0
    while at < len(content):
        tag, at = varint(content, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = varint(content, at)
            yield (number, kind), value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"wire type {kind}")
        size, at = varint(content, at) if kind == 2 else (8 if kind == 1 else 4, at)
        if at + size > len(content):
            raise ValueError("a field is longer than the message")
        yield (number, kind), content[at : at + size]
        at += size


def nested(content: bytes, *numbers: int) -> list[dict[tuple[int, int], Any]]:
    """The fields of nested messages, which protobuf joins if one occurs twice; the last of equal ones counts."""
    joined = {number: bytearray() for number in numbers}
    for (number, kind), value in fields(content):
        if kind == BYTES and number in joined:
            joined[number] += value
    return [dict(fields(bytes(message))) for message in joined.values()]


@dataclass(frozen=True)
class ModelFacts:
    """How a tokenizer works on text. `blanks` are the ASCII characters it takes for a space."""

    model_type: int
    byte_fallback: bool
    dummy_prefix: bool
    plain_spaces: bool
    """Runs of spaces become one, spaces are escaped, and they lead a piece."""
    charsmap: bytes


def model_facts(content: bytes, where: str) -> ModelFacts:
    """Read a model file. InputError if it is not one."""
    try:
        trainer, normalizer = nested(content, 2, 3)
    except (ValueError, IndexError, TypeError) as error:
        raise InputError(f"not a SentencePiece model: {error}", where, "give the .model file") from None
    return ModelFacts(
        model_type=trainer.get((3, VARINT), 1),
        byte_fallback=bool(trainer.get((35, VARINT), 0)),
        dummy_prefix=bool(normalizer.get((3, VARINT), 1)),
        plain_spaces=bool(
            normalizer.get((4, VARINT), 1) and normalizer.get((5, VARINT), 1) and not trainer.get((24, VARINT), 0)
        ),
        charsmap=normalizer.get((2, BYTES), b""),
    )


class Rules:
    """The left sides of the normalisation rules: the keys of a double-array trie of 32-bit units (Aoe 1989; the layout
    of Darts-clone). A unit's children lie at its own position xor its offset xor the next byte, and carry that byte as
    their label.
    """

    def __init__(self, charsmap: bytes) -> None:
        """`charsmap` as the model file has it: the trie's size, the trie, the right sides."""
        size = min(int.from_bytes(charsmap[:4], "little"), max(len(charsmap) - 4, 0))
        self.units = np.frombuffer(charsmap, "<u4", size // 4, offset=4) if size >= 4 else np.zeros(0, "<u4")
        self.base = np.arange(len(self.units), dtype=np.int64) ^ ((self.units >> 10) << ((self.units & 512) >> 6))

    def have_child(self, parents: np.ndarray, label: int) -> np.ndarray:
        """Which of the units at positions `parents` have a child of that label, bool."""
        places = self.base[parents] ^ label
        inside = places < len(self.units)
        result: np.ndarray = inside & (self.units[np.where(inside, places, 0)] & LABEL_BITS == label)
        return result

    def cross_blanks(self) -> bool:
        """Whether a rule reads a blank together with its neighbours."""
        if not len(self.units):
            return False
        root, others = np.zeros(1, np.int64), np.arange(1, len(self.units))
        for blank in BLANKS.encode():
            if self.have_child(others, blank).any():
                return True
            if self.have_child(root, blank)[0]:
                child = np.array([self.base[0] ^ blank])
                if any(self.have_child(child, label)[0] for label in range(1, 256)):
                    return True
        return False

    def neighbours(self) -> np.ndarray:
        """Which bytes stand side by side in a rule, (256, 256) bool; true of some that do not, as unused units are not
        told from used ones.
        """
        pairs = np.zeros((256, 256), bool)
        others = np.arange(1, len(self.units))
        for label in range(1, 256):
            pairs[self.units[1:][self.have_child(others, label)] & 255, label] = True
        return pairs


def splits_at_blanks(tokenizer: Any, facts: ModelFacts, pieces: list[str]) -> bool:
    """Whether the pieces of a text are those of its parts between blanks: no piece and no normalisation rule reaches
    over a blank, so that a part's pieces do not depend on its neighbours. `pieces` is the vocabulary.
    """
    seen = f"{SPACE if facts.dummy_prefix else ''}a{SPACE}b"
    return (
        facts.plain_spaces
        and all(tokenizer.normalize(f"a{blank}b") == seen for blank in BLANKS)
        and not any(SPACE in piece[1:] or any(blank in piece for blank in BLANKS) for piece in pieces)
        and not Rules(facts.charsmap).cross_blanks()
    )
