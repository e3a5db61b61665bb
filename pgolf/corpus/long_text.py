"""The text of one long document in pieces, so that only its bytes as read are ever in memory as a whole.

A long JSON line is read by the json module like any other, after the insides of its long strings have been replaced by
marks. What stands in a long string is checked and decoded by json's own scanner, a stretch at a time. So the result and
the errors, with their places, are those of `json.loads`.
"""

import codecs
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from pgolf.core.errors import InputError
from pgolf.corpus.sources import Record, text_in, utf8_bytes

PIECE_BYTES = 1 << 20
"""More than an escape may take when it is cut off by characters of four bytes, so that every piece gets on."""
SHORT_STRING_BYTES = 1 << 16
"""A JSON string of up to this size stays where it is."""
MAX_AROUND_BYTES = 8 << 20
"""The most that a long line may hold besides its long strings: json makes 24 times as much of empty objects."""
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
ESCAPE_CHARS = 6
scan_string: Any = json.decoder.scanstring  # type: ignore[attr-defined]
HIGH, LOW = re.compile("[\ud800-\udbff]"), re.compile("[\udc00-\udfff]")


def utf8_pieces(content: bytes, where: str) -> Iterator[str]:
    """Decoded text; InputError with the offset of the first bad byte."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(content), PIECE_BYTES):
        held = len(decoder.getstate()[0])
        try:
            yield decoder.decode(content[start : start + PIECE_BYTES], start + PIECE_BYTES >= len(content))
        except UnicodeDecodeError as error:
            what = f"invalid UTF-8 at byte {start - held + error.start}"
            raise InputError(what, where, "convert the file to UTF-8") from None


class Stretch(NamedTuple):
    """Part of the inside of a JSON string."""

    value: str
    chars: int
    """How many characters it takes in the line."""
    stop: int
    """The byte behind it."""
    closed: bool
    """Whether the string's closing quote stands there."""


def stretches(content: bytes, start: int) -> Iterator[Stretch]:
    """The inside of the JSON string that begins at byte `start` of valid UTF-8, as json reads it, up to its closing
    quote or to the first stretch that is in error.
    """
    while start < len(content):
        text, taken = codecs.utf_8_decode(content[start : start + PIECE_BYTES], "strict", False)
        if start + taken < len(content):
            text = text[: before_open_escape(text)]
        try:
            value, end = scan_string(text + '"', 0, True)
        except json.JSONDecodeError:
            return
        closed = end <= len(text)
        if not closed and start + taken == len(content):
            return
        inside = text[: end - 1] if closed else text
        start += len(inside.encode())
        yield Stretch(value, len(inside), start, closed)
        if closed:
            return


def before_open_escape(text: str) -> int:
    """Where to cut the inside of a string so that no escape is cut in two: its length, or a little less."""
    last = text.rfind("\\", max(len(text) - ESCAPE_CHARS + 1, 0))
    if last < 0:
        return len(text)
    row = last + 1 - len(text[: last + 1].rstrip("\\"))
    length = ESCAPE_CHARS if text[last + 1 : last + 2] == "u" else 2
    return last if row % 2 and last + length > len(text) else len(text)


def paired(values: Iterator[str]) -> Iterator[str]:
    """The same text, with surrogate pairs whose halves lie in two values put together."""
    held = ""
    for value in values:
        text = held + value
        if held and LOW.match(value):
            text = (held + value[0]).encode("utf-16", "surrogatepass").decode("utf-16") + value[1:]
        held = text[-1] if text and HIGH.match(text[-1]) else ""
        yield text[: len(text) - len(held)]
    yield held


@dataclass(frozen=True)
class Gap:
    """The inside of a long string that an outline leaves out: where it begins in the line, where in the outline it
    ends, and how many characters the line has more than the outline.
    """

    start: int
    outline_stop: int
    removed_chars: int


class Outline:
    """A JSON line with marks in place of the insides of its long strings. A stretch that is in error stays, and what
    follows it is cut off. InputError if too much of the line lies outside of long strings.
    """

    def __init__(self, content: bytes, text_field: str, where: str) -> None:
        """`content` is valid UTF-8. The name `text_field` never counts as long, however it may be escaped."""
        self.content, self.where = content, where
        self.stem = hashlib.sha256(content).hexdigest()  # which no line contains
        self.text, self.kept_bytes, self.copied = "", 0, 0
        self.gaps: dict[str, Gap] = {}
        at, short_bytes = 0, max(SHORT_STRING_BYTES, 2 * ESCAPE_CHARS * len(text_field) + 2)
        while (quote := content.find(b'"', at)) >= 0:
            if found := STRING.match(content, quote, quote + short_bytes):
                at = found.end()
                self.check_size(at)
                continue
            if not self.leave_out(quote + 1):
                self.keep(self.copied + PIECE_BYTES)
                return
            at = self.copied + 1
        self.keep(len(content))

    def check_size(self, stop: int) -> None:
        """InputError if what is kept up to byte `stop` is too much."""
        if self.kept_bytes + stop - self.copied > MAX_AROUND_BYTES:
            what = f"the line has more than {MAX_AROUND_BYTES} bytes besides its long strings"
            raise InputError(what, self.where, "leave other fields than the text out")

    def keep(self, stop: int) -> None:
        """Copy the line up to byte `stop`."""
        self.check_size(min(stop, len(self.content)))
        part = self.content[self.copied : stop]
        self.text += part.decode(errors="ignore")  # only a character at the cut can be incomplete
        self.kept_bytes, self.copied = self.kept_bytes + len(part), self.copied + len(part)

    def leave_out(self, start: int) -> bool:
        """Put a mark for the inside of the string that begins at byte `start`; whether its closing quote is found."""
        self.keep(start)
        mark, chars, closed = f"{self.stem}{len(self.gaps)}", 0, False
        for stretch in stretches(self.content, start):
            self.copied, chars, closed = stretch.stop, chars + stretch.chars, stretch.closed
        self.text += mark
        self.gaps[mark] = Gap(start, len(self.text), chars - len(mark))
        return closed

    def loads(self) -> Any:
        """What json.loads makes of the line, marks for long strings. InputError if it is not JSON."""
        try:
            return json.loads(self.text)
        except json.JSONDecodeError as error:
            place = error.pos + sum(gap.removed_chars for gap in self.gaps.values() if gap.outline_stop <= error.pos)
            reason = f"{error.msg}: line 1 column {place + 1} (char {place})"
        except (ValueError, RecursionError) as error:
            reason = str(error)
        raise InputError(f"not valid JSON: {reason}", self.where)

    def pieces(self, value: str) -> Iterator[str]:
        """The text of a string of the line, which may be a mark."""
        if value not in self.gaps:
            return iter([value])
        return paired(stretch.value for stretch in stretches(self.content, self.gaps[value].start))


@dataclass(frozen=True)
class LongText:
    """The text of a record that is to be read in pieces, as often as one likes. InputError for what `text_of` refuses,
    here or in `digest`.
    """

    record: Record
    text_field: str

    @cached_property
    def outline(self) -> Outline:
        """The line, if it is one."""
        assert isinstance(self.record.content, bytes)
        return Outline(self.record.content, self.text_field, self.record.where)

    @cached_property
    def value(self) -> str:
        """The text in the line's outline."""
        return text_in(self.outline.loads(), self.text_field, self.record.where)

    def pieces(self) -> Iterator[str]:
        """The text, about a million characters at a time."""
        content = self.record.content
        if isinstance(content, str):
            return (content[start : start + PIECE_BYTES] for start in range(0, len(content), PIECE_BYTES))
        return self.outline.pieces(self.value) if self.record.is_json else utf8_pieces(content, self.record.where)

    def digest(self) -> bytes:
        """SHA-256 of the text."""
        content, digest, chars = self.record.content, hashlib.sha256(), 0
        if self.record.is_json and isinstance(content, bytes):
            for _ in utf8_pieces(content, self.record.where):
                pass
        for piece in self.pieces():
            digest.update(utf8_bytes(piece, chars, self.record.where))
            chars += len(piece)
        return digest.digest()
