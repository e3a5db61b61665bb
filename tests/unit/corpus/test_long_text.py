"""A long document read in pieces: its text and its errors are those of reading it at once."""

import hashlib
import json
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgolf.core.errors import InputError
from pgolf.corpus import long_text
from pgolf.corpus.long_text import LongText
from pgolf.corpus.sources import Record, text_of


@pytest.fixture(autouse=True, params=[(32, 3), (37, 60), (70, 20)], ids=lambda param: f"{param[0]} bytes")
def small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces, and short strings, of a few bytes."""
    piece, short = request.param
    monkeypatch.setattr(long_text, "PIECE_BYTES", piece)
    monkeypatch.setattr(long_text, "SHORT_STRING_BYTES", short)


def outcome(read: Iterator[str]) -> str:
    """The text, or the error."""
    try:
        return "text " + "".join(read)
    except InputError as error:
        return f"error {error}"


def in_pieces(record: Record) -> Iterator[str]:
    """The text of a record read in pieces, twice, as tokenization does."""
    text = LongText(record, "text")
    digest = text.digest()
    found = list(text.pieces())
    assert digest == hashlib.sha256("".join(found).encode()).digest()
    yield from found


def at_once(record: Record) -> Iterator[str]:
    """The text of a record."""
    yield text_of(record, "text")


def same(content: bytes | str, is_json: bool) -> str:
    """Assert that both ways agree; what they say."""
    record = Record(content, is_json, "a.jsonl", 3)
    found = outcome(in_pieces(record))
    assert found == outcome(at_once(record))
    return found


values: st.SearchStrategy[object] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=90)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=30), inner, max_size=3)),
    max_leaves=6,
)
fragments = st.sampled_from(
    [
        *'{}[]":, \\u',
        '"text"',
        '"text": "',
        r"\ud83d",
        r"\ude00",
        r"\ud83d\ude00",
        r"\\",
        r"\"",
        r"\n",
        r"\u00e9",
        r"\u12",
        r"\x",
        "\t",
        "\0",
        "\xe9",
        "\U0001f600",
        "\ufeff",
        "abcdefghij" * 3,
        "1e5",
        "NaN",
        '"x": 1, ',
        "}",
    ]
)


@settings(max_examples=400)
@given(values, st.text(max_size=200), st.booleans(), st.text(max_size=60))
def test_json_of_any_form(value: object, text: str, ascii_only: bool, key: str) -> None:
    for document in ({"text": text, key: value}, {key: value, "text": text}, {"a": [{"text": text}], "text": value}):
        line = json.dumps(document, ensure_ascii=ascii_only)
        expected = document["text"]
        found = same(line.encode(), True)
        assert isinstance(expected, str) is found.startswith("text ")
        if isinstance(expected, str):
            assert found == f"text {expected}"


@settings(max_examples=600)
@given(st.lists(fragments, max_size=20).map("".join), st.sampled_from(['{"text": "', ""]), st.sampled_from(['"}', ""]))
@example("a" * 100 + "\\ud83d", '{"text": "', '"}')
@example("a" * 100 + "\\", '{"text": "', '"}')
@example("\\" * 101, '{"text": "', '"}')
@example("\\" * 100, '{"text": "', '"}')
@example("a" * 100 + '", "text": "' + "b" * 100, '{"text": "', '"}')
@example("a" * 100 + '" : 5 5', '{"text": "', '"}')
@example("a" * 100 + '", "' + "\xe9" * 50 + '": x', '{"text": "', "")
def test_lines_that_may_be_bad(middle: str, start: str, end: str) -> None:
    same((start + middle + end).encode(), True)


@given(
    st.lists(st.sampled_from([b"a" * 9, b"\xc3", b"\xa9", b"\xf0\x9f\x98\x80", b"\xf0\x9f", b'"', b"{"]), max_size=20)
)
def test_bytes_that_may_not_be_utf8(parts: list[bytes]) -> None:
    content = b"".join(parts)
    same(content, False)
    same(b'{"text": "' + content + b'"}', True)


@given(st.text(max_size=200))
def test_text_as_it_is(text: str) -> None:
    assert same(text, False) == f"text {text}"


@pytest.mark.parametrize("more", ["[{}]," * 300, '"ab",' * 300, "1" * 1500])
def test_a_line_that_is_mostly_something_else(monkeypatch: pytest.MonkeyPatch, more: str) -> None:
    line = f'{{"text": "a", "more": [{more}1]}}'.encode()
    assert same(line, True) == "text a"
    monkeypatch.setattr(long_text, "MAX_AROUND_BYTES", 1000)
    found = outcome(in_pieces(Record(line, True, "a.jsonl", 3)))
    assert found.startswith("error the line has more than 1000 bytes besides its long strings (a.jsonl, line 3)")
