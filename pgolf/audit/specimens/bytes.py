"""Wrong byte counts, on a few sentences with a vocabulary of our own."""

from collections.abc import Callable

import numpy as np

from pgolf.core.bpb import ByteTable, byte_table
from pgolf.core.errors import InputError
from pgolf.corpus.transforms import CaseOps, TextTransform, get_transform

SPACE = "\u2581"
TEXTS = (
    "The Cat sat on THE mat, and iPhone users saw it.",
    "Na\u00efve caf\u00e9s \u2014 \u20ac5 each \U0001f600 in PARIS",
    "one two three",
    "A",
)
WORDS = ("the", "cat", "sat", "on", "mat", "and", "it", "one", "two", "three", "in")


class Processor:
    """As much of a SentencePiece processor as byte tables ask for."""

    def __init__(self, operators: tuple[str, ...]) -> None:
        letters = [chr(code) for code in range(33, 127)]
        pieces = ["<pad>", "<s>", "</s>", "<unk>", *operators, *(f"<0x{byte:02X}>" for byte in range(256)), SPACE]
        self.operators = operators
        self.pieces = [*pieces, *letters, *(SPACE + word for word in WORDS), *WORDS]
        self.first_byte = 4 + len(operators)
        self.ids = {piece: index for index, piece in enumerate(self.pieces)}

    def vocab_size(self) -> int:
        """Number of pieces."""
        return len(self.pieces)

    def is_control(self, index: int) -> bool:
        """Padding, beginning and end."""
        return index < 3

    def is_unknown(self, index: int) -> bool:
        """The unknown token."""
        return index == 3

    def is_unused(self, index: int) -> bool:
        """None."""
        return False

    def is_byte(self, index: int) -> bool:
        """Whether it stands for a byte."""
        return 0 <= index - self.first_byte < 256

    def id_to_piece(self, index: int) -> str:
        """Its text."""
        return self.pieces[index]

    def encode(self, text: str) -> list[int]:
        """BOS and the longest pieces that fit, bytes where none does."""
        found, rest = [1], text.replace(" ", SPACE)
        while rest:
            length = next((n for n in range(6, 0, -1) if rest[:n] in self.ids), 0)
            if length:
                found.append(self.ids[rest[:length]])
            else:
                found += [self.first_byte + byte for byte in rest[0].encode()]
            rest = rest[max(length, 1) :]
        return found

    def decode_prefix(self, ids: list[int]) -> str:
        """The text of the first ids of a document."""
        raw = b"".join(
            bytes([index - self.first_byte]) if self.is_byte(index) else self.pieces[index].encode()
            for index in ids[1:]
        )
        return raw.decode(errors="replace").replace(SPACE, " ")


Charge = Callable[[Processor, TextTransform, str], int]


def by_table(processor: Processor, text: str, change: Callable[[ByteTable, Processor], ByteTable]) -> int:
    """What a byte table charges a document."""
    ids = np.array(processor.encode(text))
    return int(change(byte_table(processor, processor.vocab_size()), processor).charges(ids).sum())


def right(processor: Processor, transform: TextTransform, text: str) -> int:
    """By the table, or by what each character of transformed text stands for."""
    if processor.operators:
        return int(transform.char_bytes(transform.encode(text)).sum())
    return by_table(processor, text, lambda table, _: table)


def double_space(processor: Processor, transform: TextTransform, text: str) -> int:
    """The leading space in the table, and again in the charge."""
    return by_table(processor, text, lambda table, _: ByteTable(table.base + table.lead, table.lead, table.boundary))


def replacement_bytes(processor: Processor, transform: TextTransform, text: str) -> int:
    """Bytes charged as the replacement character that they decode to."""
    each = np.array([processor.is_byte(index) for index in range(processor.vocab_size())])
    return by_table(
        processor, text, lambda table, _: ByteTable(np.where(each, 3, table.base), table.lead, table.boundary)
    )


def missing_sidecar(processor: Processor, transform: TextTransform, text: str) -> int:
    """Transformed text by the table: operators count."""
    return by_table(processor, transform.encode(text), lambda table, _: table)


def prefix_sidecar(processor: Processor, transform: TextTransform, text: str) -> int:
    """Differences of decoded prefixes: one that ends in an operator does not decode, and counts as it stands."""
    ids, total, before = processor.encode(transform.encode(text)), 0, 0
    for end in range(2, len(ids) + 1):
        prefix = processor.decode_prefix(ids[:end])
        try:
            size = len(transform.decode(prefix).encode())
        except InputError:
            size = len(prefix.encode())
        total += max(size - before, 0)
        before = size
    return total


MISCOUNTS: dict[str, tuple[str, Charge]] = {
    "double-space": ("none", double_space),
    "byte-as-three": ("none", replacement_bytes),
    "missing-sidecar": ("caseops_v1", missing_sidecar),
    "prefix-sidecar": ("caseops_v1", prefix_sidecar),
}
"""Name, the text transform under which it happens, and how it counts."""


def miscounted(transform_name: str, charge: Charge) -> tuple[np.ndarray, np.ndarray]:
    """Charges and bytes of the documents, (D,) each."""
    transform = get_transform(transform_name)
    processor = Processor(CaseOps.operators if transform_name != "none" else ())
    charged = np.array([charge(processor, transform, text) for text in TEXTS])
    return charged, np.array([len(text.encode()) for text in TEXTS])
