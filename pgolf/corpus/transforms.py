"""Reversible rewriting of text before it is tokenized, and the bytes that each rewritten character stands for.

A transform spares the vocabulary from holding a word once per spelling. What it adds are operators, which code for no
bytes of the document, so bits per byte must be counted with `char_bytes` and never with the rewritten text's own length
(spec: data 6.3 and 7; PR #1855).
"""

import re
from contextlib import suppress
from string import ascii_letters
from typing import TYPE_CHECKING, Protocol

from pgolf.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    import numpy as np

TITLE, ALLCAPS, CAPNEXT, ESC = "\ue001", "\ue002", "\ue003", "\ue004"
"""Operators of CaseOps, in the order of their ids, from Unicode's private use area."""

OPERATOR_NAMES = {TITLE: "TITLE", ALLCAPS: "ALLCAPS", CAPNEXT: "CAPNEXT", ESC: "ESC"}

UPPER = re.compile(r"[A-Z](?:(?<![A-Za-z].)((?:[A-Z]++(?![a-z]))?))?")
"""One upper-case letter, or a whole word of two and more. Group 1 is what follows in that word, "" for a lone letter
that starts a word, and None inside a word. It begins with a plain character class, for which `re` has a fast scan.
"""

OPERATOR = re.compile(f"[{TITLE}-{ESC}]")

MARKED = re.compile(
    f"{TITLE}(?:(?<![A-Za-z].)[A-Za-z])?"
    f"|{ALLCAPS}(?:(?<![A-Za-z].)[A-Za-z]++(?!{CAPNEXT}))?"
    f"|{CAPNEXT}[A-Za-z]?"
    f"|{ESC}[{TITLE}-{ESC}]?"
)
"""An operator with all that it acts on, where this can be told on the spot; an operator alone where it cannot. Each
alternative begins with a literal, for which `re` has a fast scan.
"""


class TextTransform(Protocol):
    """A lossless rewriting of text: `decode(encode(text)) == text` for every string."""

    name: str
    """Name in configurations and manifests."""

    operators: tuple[str, ...]
    """Symbols that a tokenizer must keep whole, in the order of their ids."""

    def encode(self, text: str) -> str:
        """The rewritten text."""

    def decode(self, text: str) -> str:
        """The original text. InputError where no text could have been rewritten like that."""

    def char_bytes(self, text: str) -> "np.ndarray":
        """UTF-8 bytes of the original that each character of the rewritten `text` stands for, int64 (len(text),). Lone
        surrogates count 3.
        """


class NoTransform:
    """The text as it is."""

    name = "none"
    operators: tuple[str, ...] = ()

    def encode(self, text: str) -> str:
        """The same text."""
        return text

    def decode(self, text: str) -> str:
        """The same text."""
        return text

    def char_bytes(self, text: str) -> "np.ndarray":
        """The UTF-8 length of each character, int64 (len(text),)."""
        return utf8_lengths(code_points(text))


class CaseOps:
    """Upper-case ASCII letters as operators before lower-case words, lossless. Source: PR #1729, #1855
    (lossless_caps_caseops_v1).
    """

    # A word is a maximal run of ASCII letters. TITLE stands before a word whose first letter is upper case, CAPNEXT
    # before an upper-case letter further on, ALLCAPS instead of both before a word of at least two letters that are all
    # upper case. ESC stands before an operator that was in the text already. Everything else passes unchanged: no
    # Unicode case table is asked, hence no character changes its length. What a word becomes does not depend on its
    # neighbours (spec: data 7).

    name = "caseops_v1"
    operators: tuple[str, ...] = (TITLE, ALLCAPS, CAPNEXT, ESC)

    def encode(self, text: str) -> str:
        """The text with marked instead of upper-case ASCII letters."""
        return UPPER.sub(marked, OPERATOR.sub(rf"{ESC}\g<0>", text))

    def decode(self, text: str) -> str:
        """The text that `text` stands for, also for forms that `encode` never makes, such as CAPNEXT before the first
        letter of a word. InputError for an operator that is out of place or has nothing to act on.
        """
        with suppress(IrregularError):
            return MARKED.sub(unmarked, text)
        return decode_stepwise(text)

    def char_bytes(self, text: str) -> "np.ndarray":
        """UTF-8 bytes of the original per character, int64 (len(text),): 0 for operators unless they are escaped."""
        import numpy as np

        codes = code_points(text)
        lengths = utf8_lengths(codes)
        operators = np.flatnonzero(codes - np.uint32(ord(TITLE)) < len(self.operators))  # below TITLE wraps round
        lengths[operators] = 0
        escapes = operators[codes[operators] == ord(ESC)]
        # In an unbroken row of ESC every second one is escaped by the one before it.
        starts = np.maximum.accumulate(np.where(np.diff(escapes, prepend=-2) > 1, escapes, 0))
        literal = escapes[(escapes - starts) % 2 == 0] + 1
        literal = literal[literal < len(codes)]
        lengths[literal] = utf8_lengths(codes[literal])
        return lengths


TRANSFORMS: dict[str, TextTransform] = {"none": NoTransform(), "caseops_v1": CaseOps()}

PUBLISHED_NAMES = {"lossless_caps_caseops_v1": "caseops_v1"}
"""What published manifests call a transform -> its name here."""


def get_transform(name: str) -> TextTransform:
    """The transform of that name. ConfigError if there is none."""
    if name not in TRANSFORMS:
        raise ConfigError(f"{name!r} is not a known transform", "transform", f"use {' or '.join(TRANSFORMS)}")
    return TRANSFORMS[name]


class IrregularError(Exception):
    """An operator whose effect depends on more than the characters beside it."""


def marked(match: re.Match[str]) -> str:
    """Replacement for a match of `UPPER`."""
    rest: str | None = match[1]
    return (CAPNEXT if rest is None else ALLCAPS if rest else TITLE) + str(match[0]).lower()


def unmarked(match: re.Match[str]) -> str:
    """Replacement for a match of `MARKED`. IrregularError for an operator that stands alone."""
    found: str = match[0]
    operator, target = found[0], found[1:]
    if not target:
        raise IrregularError
    return target if operator == ESC else target.upper()


def decode_stepwise(text: str) -> str:
    """`CaseOps.decode` for every kind of text, one character after the other (spec: data 7.2)."""
    out: list[str] = []
    in_word = in_caps = escaped = capnext = False
    mode = ""  # TITLE or ALLCAPS while it waits for its word

    def refuse(what: str, offset: int) -> InputError:
        return InputError(what, f"character {offset} of the transformed text", "decode only what encode has made")

    for offset, char in enumerate(text):
        letter = char in ascii_letters
        if escaped:
            if mode:
                raise refuse(f"{OPERATOR_NAMES[mode]} is followed by ESC instead of an ASCII letter", offset - 1)
            out.append(char)
            in_word, in_caps, escaped = letter, in_caps and letter, False
        elif char == ESC:
            escaped = True
        elif char == CAPNEXT:
            if capnext:
                raise refuse("a second CAPNEXT before the first one found its letter", offset)
            capnext = True
        elif char in (TITLE, ALLCAPS):
            if in_word or mode or capnext:
                place = "inside a word" if in_word else "after an operator that waits for its letter"
                raise refuse(f"{OPERATOR_NAMES[char]} stands {place}", offset)
            mode = char
        elif letter:
            in_caps = in_caps or mode == ALLCAPS
            out.append(char.upper() if mode or capnext or in_caps else char)
            in_word, mode, capnext = True, "", False
        else:
            if mode or capnext:
                operator = OPERATOR_NAMES[mode or CAPNEXT]
                raise refuse(f"{operator} waits for an ASCII letter and meets another character", offset)
            out.append(char)
            in_word = in_caps = False
    if mode or capnext or escaped:
        operator = OPERATOR_NAMES[ESC if escaped else mode or CAPNEXT]
        raise refuse(f"the text ends while {operator} waits for a character", len(text))
    return "".join(out)


def code_points(text: str) -> "np.ndarray":
    """Unicode code points, uint32 (len(text),)."""
    import numpy as np

    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def utf8_lengths(codes: "np.ndarray") -> "np.ndarray":
    """Bytes of each code point in UTF-8, int64; 3 for a surrogate, which lies in the range of 3."""
    import numpy as np

    lengths = np.ones(codes.shape, np.int64)
    for first in (0x80, 0x800, 0x10000):
        lengths += codes >= first
    return lengths
