"""Documents from files: .txt, .jsonl (also .gz and .zst), .parquet, directories of them, standard input, and Python's
own documentation. Reading yields records, still undecoded; whoever needs the text decodes it, in whatever process.
"""

import ast
import gzip
import json
import sys
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import count, repeat
from pathlib import Path
from typing import Any, NamedTuple

from pgolf.core.errors import ConfigError, InputError, SetupError
from pgolf.core.files import open_pieces, storage_error

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
STDIN = Path("-")
MAX_RECORD_BYTES, CHUNK_BYTES, ZSTD_STEP_BYTES = 256 << 20, 1 << 20, 1024
PARQUET_ROWS = 256
ESCAPES = {r"\n": "\n", r"\t": "\t", r"\r": "\r", r"\0": "\0"}
SKIPPED_PARTS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


class Record(NamedTuple):
    """One document as read: a line of JSON, UTF-8, or text; and where it stands, for error messages."""

    content: bytes | str
    is_json: bool
    path: str
    number: int

    @property
    def where(self) -> str:
        """The place in words."""
        return f"{self.path}, {'line' if self.is_json else 'document'} {self.number}"


class Reading(NamedTuple):
    """How sources are cut into documents."""

    separator: str = ""
    """Cuts .txt files; empty keeps a file whole."""
    text_field: str = "text"
    """Name of the text in JSON lines and parquet columns."""
    stdin_format: str = "jsonl"
    """What standard input holds: jsonl or txt."""


def expand(sources: Iterable[Path]) -> list[Path]:
    """Files to read, directories expanded in name order. InputError for anything that is not text."""
    files: list[Path] = []
    for source in sources:
        if source == STDIN:
            files.append(source)
        elif source.is_dir():
            found = sorted(path for path in source.rglob("*") if path.is_file() and path.name.endswith(SUFFIXES))
            if not found:
                raise InputError(f"the directory has no {', '.join(SUFFIXES)} files", str(source))
            files += found
        elif not source.exists():
            raise InputError("no such file or directory", str(source), "check the path")
        elif not source.name.endswith(SUFFIXES):
            raise InputError(
                f"{source.suffix or 'a file without suffix'} is not a text source",
                str(source),
                f"use {', '.join(SUFFIXES)}",
            )
        else:
            files.append(source)
    return files


def chunks(path: Path) -> Iterator[bytes]:
    """The uncompressed bytes of a file, or of standard input, in pieces of about 1 MiB. InputError for an archive that
    is damaged or cut off.
    """
    import zstandard

    try:
        if path == STDIN:
            if sys.stdin is None:
                raise InputError("standard input is closed", "standard input", "pipe the text into it")
            yield from iter(lambda: sys.stdin.buffer.read(CHUNK_BYTES), b"")
        elif path.name.endswith(".zst"):
            yield from gathered(zstd_chunks(path))
        else:
            with open_pieces(path) as raw:
                file = gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw
                while piece := file.read(CHUNK_BYTES):
                    yield piece
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"damaged archive: {error}", str(path), "fetch or compress it again") from None
    except OSError as error:
        raise storage_error(error, path, "reading") from None


def gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Small pieces put together to about 1 MiB."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= CHUNK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


def zstd_chunks(path: Path) -> Iterator[bytes]:
    """The frames of a zstd file one after the other; the last one must be complete. Input goes in small steps, because
    four bytes may stand for a block of 128 KiB.
    """
    import zstandard

    stream: Any = None
    with open_pieces(path) as file:
        while piece := file.read(ZSTD_STEP_BYTES):
            while piece:
                stream = stream or zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
                yield stream.decompress(piece)
                piece = stream.unused_data if stream.eof else b""
                stream = None if stream.eof else stream
    if stream is not None:
        raise InputError("the archive is cut off", str(path), "fetch or compress it again")


def cut(pieces: Iterable[bytes], separator: bytes, where: str) -> Iterator[bytes]:
    """What lies between separators, which may straddle pieces; all at once if the separator is empty.

    InputError for a document beyond 256 MiB.
    """
    held: list[bytes] = []
    size, seam = 0, b""
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        seam += piece
        if separator and separator in seam:
            joined = b"".join(held)
            held.clear()  # a long document is not to be here three times
            whole = joined.split(separator)[::-1]
            joined = seam = b""
            while len(whole) > 1:
                yield whole.pop()
            held = whole
            size, seam = len(held[0]), held[0]
        seam = seam[-len(separator) + 1 :] if len(separator) > 1 else b""
        if size > MAX_RECORD_BYTES:
            raise InputError(f"a document is longer than {MAX_RECORD_BYTES >> 20} MiB", where, "cut it into documents")
    whole = [b"".join(held)]
    held.clear()
    yield whole.pop()


def utf8(content: bytes, where: str) -> str:
    """Decoded text; InputError with the offset of the first bad byte."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"invalid UTF-8 at byte {error.start}", where, "convert the file to UTF-8") from None


def text_of(record: Record, text_field: str) -> str:
    """The text of a record. InputError for bytes that are not UTF-8, a bad line, or half a surrogate pair."""
    if isinstance(record.content, str):
        return record.content
    if not record.is_json:
        return utf8(record.content, record.where)
    try:
        found: Any = json.loads(utf8(record.content, record.where))
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", record.where) from None
    value = text_in(found, text_field, record.where)
    utf8_bytes(value, 0, record.where)
    return value


def text_in(found: Any, text_field: str, where: str) -> str:
    """The text of a line's JSON. InputError if it is not an object with that text."""
    value = found.get(text_field) if isinstance(found, dict) else None
    if not isinstance(value, str):
        fix = "name the field with tokenize.text_field"
        raise InputError(f"the line is not an object with a string {text_field!r}", where, fix)
    return value


def utf8_bytes(text: str, before: int, where: str) -> bytes:
    """Encoded text, of which so many characters come before. InputError for half a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the text has half a surrogate pair at character {before + error.start}", where) from None


def parquet_records(path: Path, text_field: str) -> Iterator[Record]:
    """Rows of a parquet file, a few hundred at a time. SetupError without pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise SetupError("parquet files need pyarrow", str(path), "pip install 'pgolf[parquet]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if text_field not in file.schema_arrow.names:
                columns = ", ".join(file.schema_arrow.names)
                fix = f"name the column with tokenize.text_field; there are {columns}"
                raise InputError(f"there is no column {text_field!r}", str(path), fix)
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    if not isinstance(text, str):
                        raise InputError(f"row {number} of column {text_field!r} is not a string", str(path))
                    if len(text) > MAX_RECORD_BYTES:
                        what = f"row {number} is longer than {MAX_RECORD_BYTES >> 20} MiB"
                        raise InputError(what, str(path), "cut it into documents")
                    yield Record(text, False, str(path), number)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise storage_error(error, path, "reading") from None
        reason = " ".join(str(error).split())
        raise InputError(f"damaged parquet file: {reason}", str(path), "fetch or write it again") from None


def records(sources: Iterable[Path], reading: Reading) -> Iterator[Record]:
    """Every document of the sources in order. Blank lines of JSON files are no documents."""
    separator = reading.separator
    for written, meant in ESCAPES.items():
        separator = separator.replace(written, meant)
    try:
        mark = separator.encode()
    except UnicodeEncodeError:
        raise ConfigError("the separator is not UTF-8", "tokenize.document_separator", "give it as text") from None
    for path in expand(sources):
        name = "standard input" if path == STDIN else str(path)
        if path.name.endswith(".parquet"):
            yield from parquet_records(path, reading.text_field)
            continue
        is_json = reading.stdin_format == "jsonl" if path == STDIN else not path.name.endswith(".txt")
        found = cut(chunks(path), b"\n" if is_json else mark, name)
        # A loop would hold every document until the next one.
        numbered = map(Record, found, repeat(is_json), repeat(name), count(1))
        yield from filter(lambda record: record.content.strip(), numbered) if is_json else numbered


def documents(sources: Iterable[Path], reading: Reading) -> Iterator[str]:
    """The text of every document of the sources in order."""
    return (text_of(record, reading.text_field) for record in records(sources, reading))


def docstrings(path: Path) -> str:
    """All docstrings of a Python file, in source order, parsed and never run."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    return "\n\n".join(text for text in texts if text)


@cache
def python_documents() -> tuple[str, ...]:
    """The documentation that ships with Python: a document per pydoc topic and per module of the library."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ConfigError("this Python comes without pydoc_data", "the demo's text", "name text with --text") from None
    library = Path(sysconfig.get_path("stdlib"))
    modules = (
        path
        for path in sorted(library.rglob("*.py"))
        if not SKIPPED_PARTS.intersection(path.relative_to(library).parts)
    )
    return (*(topics[name] for name in sorted(topics)), *(text for path in modules if (text := docstrings(path))))


def python_records() -> Iterator[Record]:
    """Python's documentation as records."""
    return (Record(text, False, "Python's documentation", number) for number, text in enumerate(python_documents(), 1))
