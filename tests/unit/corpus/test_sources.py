"""Documents from files: what is cut where, what is named when it is bad, and how much memory it takes."""

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pgolf.core.errors import InputError, PgolfError, SetupError, StorageError
from pgolf.corpus import sources
from pgolf.corpus.sources import Reading, cut, documents, expand, records

JSONL, TXT = Reading(), Reading(separator=r"\n\n")


def texts(path: Path, reading: Reading = JSONL) -> list[str]:
    """Every document of one source."""
    return list(documents([path], reading))


def refused(path: Path, *words: str, reading: Reading = JSONL, kind: type[PgolfError] = InputError) -> str:
    """The error that reading a source ends with, after asserting its class and what it names."""
    with pytest.raises(kind) as caught:
        texts(path, reading)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
    return str(caught.value)


def jsonl(*found: str) -> bytes:
    """JSON lines."""
    return b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in found)


# Cutting


def pieces_of(content: bytes, cuts: list[int]) -> list[bytes]:
    """Content in pieces that end at the given places; some are empty."""
    ends = sorted(min(place, len(content)) for place in cuts)
    return [content[start:end] for start, end in zip([0, *ends], [*ends, len(content)])]


@given(
    st.lists(st.sampled_from([b"a", b"\n", b"--", b"-", b"\xc3", b"\xa9", b"<|end|>", b"<|", b""]), max_size=30),
    st.sampled_from([b"\n", b"\n\n", b"--", b"---", b"-\n-", b"<|end|>", "é".encode(), b"aa", b"aba"]),
    st.lists(st.integers(0, 60), max_size=40),
)
def test_pieces_do_not_matter_to_where_text_is_cut(words: list[bytes], separator: bytes, cuts: list[int]) -> None:
    content = b"".join(words)
    assert list(cut(pieces_of(content, cuts), separator, "x")) == content.split(separator)


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=10))
def test_without_a_separator_nothing_is_cut(content: bytes, cuts: list[int]) -> None:
    assert list(cut(pieces_of(content, cuts), b"", "x")) == [content]


def test_a_separator_in_single_bytes() -> None:
    content = b"one<|endoftext|>two<|endof<|endoftext|>"
    single = [bytes([byte]) for byte in content]
    assert list(cut(single, b"<|endoftext|>", "x")) == [b"one", b"two<|endof", b""]


def test_text_files_are_whole_without_a_separator(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("eins\r\n\r\nzwei\u2028drei\0 \n".encode())
    assert texts(path) == ["eins\r\n\r\nzwei\u2028drei\0 \n"]


@pytest.mark.parametrize(
    ("separator", "content", "expected"),
    [
        (r"\n\n", "a\nb\n\nc\n\n\nd", ["a\nb", "c", "\nd"]),
        (r"\n\n", "a\n\n", ["a", ""]),
        (r"\n---\n", "a\n---\nb---c", ["a", "b---c"]),
        (r"\t", "a\tb\\tc", ["a", "b\\tc"]),
        (r"\r\n", "a\r\nb\nc", ["a", "b\nc"]),
        (r"\0", "a\0b", ["a", "b"]),
        ("\n", "a\nb", ["a", "b"]),
        ("—§—", "eins—§—zwei—§drei", ["eins", "zwei—§drei"]),
        ("😀", "a😀b😁c", ["a", "b😁c"]),
        ("", "", [""]),
    ],
)
def test_text_files_are_cut_at_the_separator(tmp_path: Path, separator: str, content: str, expected: list[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content.encode())
    assert texts(path, Reading(separator)) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_separator_that_straddles_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one<|end|>two<|end|><|end|>three<|end")
    monkeypatch.setattr(sources, "CHUNK_BYTES", size)
    assert texts(path, Reading("<|end|>")) == ["one", "two", "", "three<|end"]


# JSON lines


def test_json_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = ['{"text": "one\u2028two\u2029\u0085\x0c"}', "", '{"text": "three"}\r', " \t", '{"text": "four"}']
    path.write_bytes("\n".join(lines).encode().replace(b"\x0c", b"\\f"))
    assert texts(path) == ["one\u2028two\u2029\u0085\x0c", "three", "four"]
    assert [record.number for record in records([path], JSONL)] == [1, 3, 5], "blank lines count as lines"


def test_a_text_file_with_jsonl_in_its_name_is_text(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl.txt"
    path.write_text("no JSON at all")
    assert texts(path) == ["no JSON at all"]


def test_the_field_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "wrong", "body": "right"}\n{"text": "only"}\n')
    assert next(documents([path], Reading(text_field="body"))) == "right"
    refused(path, "'body'", "line 2", "tokenize.text_field", reading=Reading(text_field="body"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", ["JSON"]),
        (b'{"text": "a"} {"text": "b"}', ["JSON"]),
        (b"[1]", ["object"]),
        (b'"text"', ["object"]),
        (b'{"text": null}', ["string 'text'"]),
        (b'{"text": ["a"]}', ["string 'text'"]),
        (b'\xef\xbb\xbf{"text": "a"}', ["JSON", "BOM"]),
        (b'{"text": ' + b"[" * 200_000, ["JSON"]),
        (b'{"n": ' + b"1" * 10_000 + b"}", ["JSON"]),
        (b'{"text": "ab\xff"}', ["UTF-8", "byte 12"]),
        (b'{"text": "abc\\ud800d"}', ["surrogate", "character 3"]),
        (b'{"text": "\\udc00\\ud800"}', ["surrogate", "character 0"]),
    ],
    ids=lambda value: value[:24].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, words: list[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl("good", "also good") + b"\n" + line + b"\n" + jsonl("after"))
    message = refused(path, str(path), "line 4", *words)
    assert len(message.splitlines()) == 1 and len(message) < 500


def test_surrogate_pairs_and_other_escapes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "\\ud83d\\ude00 \\u0000 \\ufffe \\u2581"}')
    assert texts(path) == ["\U0001f600 \0 \ufffe \u2581"]


def test_invalid_utf8_in_text_is_named_with_its_offset(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n\nalso \xe2\x82 not")
    refused(path, "byte 5", "document 2", str(path), reading=TXT)
    refused(path, "byte 11", "document 1", str(path))


# Archives


def test_gzip(tmp_path: Path) -> None:
    path, blob = tmp_path / "a.jsonl.gz", gzip.compress(jsonl("one", "two"))
    path.write_bytes(blob + gzip.compress(jsonl("three")))
    assert texts(path) == ["one", "two", "three"]
    for bad in (blob[:-1], blob[:20], blob + b"garbage", b"garbage", blob[:-8] + bytes(8)):
        path.write_bytes(bad)
        refused(path, str(path), "archive")


def test_zstd_frames(tmp_path: Path) -> None:
    path, packer = tmp_path / "a.jsonl.zst", zstandard.ZstdCompressor()
    skipped = struct.pack("<II", 0x184D2A50, 5) + b"hello"
    frames = [packer.compress(jsonl(str(number))) for number in range(2500)]
    path.write_bytes(skipped + packer.compress(b"") + b"".join(frames) + skipped)
    assert texts(path) == [str(number) for number in range(2500)]


def test_a_frame_of_unknown_size_and_lines_across_frames(tmp_path: Path) -> None:
    path, content = tmp_path / "a.jsonl.zst", jsonl("x" * 3_000_000, "yes " * 700_000, "z")
    blob = io.BytesIO()
    for part in (content[:1000], content[1000:4_000_000], content[4_000_000:]):
        with zstandard.ZstdCompressor().stream_writer(blob, closefd=False) as writer:
            writer.write(part)
    path.write_bytes(blob.getvalue())
    assert texts(path) == ["x" * 3_000_000, "yes " * 700_000, "z"]


def test_a_damaged_zstd_file(tmp_path: Path) -> None:
    path, packer = tmp_path / "a.jsonl.zst", zstandard.ZstdCompressor(write_checksum=True)
    blob = packer.compress(jsonl("one " * 100, "two"))
    flipped = bytearray(blob)
    flipped[-6] ^= 4
    for bad in (blob[:-1], blob[:9], blob + blob[:2], blob + b"garbage", b"garbage!", bytes(flipped)):
        path.write_bytes(bad)
        refused(path, str(path), "archive")


def test_an_error_after_good_lines_comes_after_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(jsonl(*map(str, range(400_000)))) + b"garbage")
    found = records([path], JSONL)
    assert json.loads(next(found).content) == {"text": "0"}
    with pytest.raises(InputError, match="archive"):
        list(found)


# Parquet


def parquet(path: Path, **columns: Any) -> Path:
    """A parquet file with several row groups."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=100)
    return path


def test_parquet_rows_in_order(tmp_path: Path) -> None:
    rows = [f"Zeile {number} \u2028 {'ü' * (number % 7)}" for number in range(1000)] + [""]
    path = parquet(tmp_path / "a.parquet", text=rows, other=list(range(1001)), body=["b"] * 1001)
    assert texts(path) == rows
    assert texts(path, Reading(text_field="body")) == ["b"] * 1001
    assert [record.where for record in records([path], JSONL)][-1] == f"{path}, document 1001"


@pytest.mark.parametrize("kind", ["large_string", "string_view", "dictionary"])
def test_other_string_columns(tmp_path: Path, kind: str) -> None:
    import pyarrow

    types_ = {
        "large_string": pyarrow.large_string(),
        "dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
        "string_view": pyarrow.string_view(),
    }
    column = pyarrow.array(["eins", "zwei", "eins"]).cast(types_[kind])
    assert texts(parquet(tmp_path / "a.parquet", text=column)) == ["eins", "zwei", "eins"]


def test_parquet_without_the_column_or_with_null_rows(tmp_path: Path) -> None:
    refused(parquet(tmp_path / "a.parquet", body=["a"], n=[1]), "'text'", "body, n", "tokenize.text_field")
    refused(parquet(tmp_path / "b.parquet", text=["a", None, "c"]), "row 2", "'text'", "b.parquet")
    refused(parquet(tmp_path / "c.parquet", text=[1, 2]), "row 1", "not a string")
    refused(parquet(tmp_path / "d.parquet", text=[b"a"]), "row 1", "not a string")


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=[f"some text number {n}" for n in range(500)])
    whole = path.read_bytes()
    damaged = [b"", b"PAR1", b"garbage" * 100, whole[:-1], whole[: len(whole) // 2]]
    damaged += [whole[:4] + bytes(len(whole) - 204) + whole[-200:], whole[:-300] + b"\xff" * 280 + whole[-20:]]
    for content in damaged:
        path.write_bytes(content)
        message = refused(path, "damaged parquet", str(path))
        assert len(message.splitlines()) == 1


def test_invalid_utf8_in_parquet(tmp_path: Path) -> None:
    import pyarrow

    offsets, content = pyarrow.py_buffer(struct.pack("<3i", 0, 2, 4)), pyarrow.py_buffer(b"oka\xff")
    column = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, content])
    refused(parquet(tmp_path / "a.parquet", text=column), "damaged parquet", "utf-8")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "a.parquet", text=["a"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(path, "pyarrow", "pip install 'pgolf[parquet]'", kind=SetupError)
    assert SetupError.exit_code == 5


def test_a_parquet_file_that_is_gone(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=["a"])
    found = sources.parquet_records(path, "text")
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        next(found)


def test_a_parquet_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet

    def refuse(*args: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", refuse)
    refused(parquet(tmp_path / "a.parquet", text=["a"]), "input/output error", kind=StorageError)


# Directories


def test_directories_are_read_in_name_order(tmp_path: Path) -> None:
    for name in (
        "b.txt",
        "a/z.jsonl",
        "a/b/c.txt",
        "c.jsonl.gz",
        "a.txt",
        "Z.txt",
        "readme.md",
        "d.jsonl.zst",
        "e.TXT",
    ):
        path = tmp_path / "all" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    names = [str(path.relative_to(tmp_path / "all")) for path in expand([tmp_path / "all"])]
    assert names == ["Z.txt", "a/b/c.txt", "a/z.jsonl", "a.txt", "b.txt", "c.jsonl.gz", "d.jsonl.zst"]
    twice = expand([tmp_path / "all" / "b.txt", tmp_path / "all" / "a"])
    assert [path.name for path in twice] == ["b.txt", "c.txt", "z.jsonl"], "the user's order comes first"


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.md").write_text("x")
    (tmp_path / "noname").write_text("x")
    for name, word in (("empty", ".parquet"), ("a.md", ".md"), ("noname", "suffix"), ("absent.txt", "no such file")):
        with pytest.raises(InputError, match=word) as caught:
            expand([tmp_path / name])
        assert name in str(caught.value)


# Standard input


def through_a_pipe(content: bytes, stdin_format: str, separator: str = "") -> list[str]:
    """Documents read from standard input by a process of its own."""
    script = (
        "import json, sys; from pathlib import Path; from pgolf.corpus.sources import Reading, documents;"
        f"print(json.dumps(list(documents([Path('-')], Reading({separator!r}, 'text', {stdin_format!r})))))"
    )
    done = subprocess.run([sys.executable, "-c", script], input=content, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    found: list[str] = json.loads(done.stdout)
    return found


def test_standard_input() -> None:
    lines = [f"{number} ü\u2028" * 50 for number in range(3000)]
    assert through_a_pipe(jsonl(*lines), "jsonl") == lines
    assert through_a_pipe(b"eins\r\nzwei", "txt") == ["eins\r\nzwei"]
    assert through_a_pipe(b"eins\n\nzwei\nx", "txt", r"\n\n") == ["eins", "zwei\nx"]


def test_standard_input_in_dribs_and_drabs(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "wb", buffering=0) as end:
        for byte in jsonl("one", "two"):
            end.write(bytes([byte]))
    with os.fdopen(read, "rb") as start:
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=start))
        assert texts(Path("-")) == ["one", "two"]


def test_bad_standard_input_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(jsonl("one") + b"{")))
    refused(Path("-"), "standard input, line 2")
    monkeypatch.setattr(sys, "stdin", None)
    refused(Path("-"), "standard input", "closed")


# Size


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_a_document_that_is_too_long_is_refused_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(sources, "MAX_RECORD_BYTES", 4 << 20)
    path, content = tmp_path / f"a{suffix}", b"x" * (40 << 20)
    pack = {".gz": lambda text: gzip.compress(text, 1), ".zst": zstandard.compress}
    path.write_bytes(pack.get(path.suffix, bytes)(content))
    taken = 0

    def counted(pieces: Any) -> Any:
        nonlocal taken
        for piece in pieces:
            taken += len(piece)
            yield piece

    with pytest.raises(InputError, match="4 MiB"):
        list(cut(counted(sources.chunks(path)), b"\n", str(path)))
    assert taken < 40 << 20, "all of it was read first"
    refused(path, "longer than 4 MiB", str(path))


def test_a_parquet_row_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_RECORD_BYTES", 1000)
    refused(parquet(tmp_path / "a.parquet", text=["a", "b" * 1001]), "row 2", "longer")


@pytest.mark.fault(row="F9")
def test_a_bomb_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    packer = zstandard.ZstdCompressor().compressobj()
    block = bytes(1 << 24)
    path.write_bytes(b"".join([*(packer.compress(block) for _ in range(256)), packer.flush()]))  # 4 GiB of zeros
    assert path.stat().st_size < 1 << 20
    script = (
        "from pathlib import Path; from pgolf.core.errors import InputError;"
        "from pgolf.corpus.sources import Reading, documents\n"
        f"try: list(documents([Path({str(path)!r})], Reading()))\n"
        "except InputError as error: print(error)\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    message, peak_kib = done.stdout.splitlines()
    assert "longer than 256 MiB" in message
    assert int(peak_kib) < 512 << 10, f"{int(peak_kib) >> 10} MiB for a document that was refused"
