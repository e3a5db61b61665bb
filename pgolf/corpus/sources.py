"""Documents from files: .txt, .jsonl (also .gz and .zst), directories of both, and Python's own documentation."""

import ast
import gzip
import json
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pgolf.core.errors import ConfigError, InputError
from pgolf.core.files import storage_error

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst")
MAX_LINE_BYTES, CHUNK_BYTES, ZSTD_STEP_BYTES = 256 << 20, 1 << 20, 1024
SKIPPED_PARTS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def expand(sources: Iterable[Path]) -> list[Path]:
    """Files to read, directories expanded in name order. InputError for anything that is not text."""
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            found = sorted(path for path in source.rglob("*") if path.is_file() and path.name.endswith(SUFFIXES))
            if not found:
                raise InputError("the directory has no .txt or .jsonl files", str(source))
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
    """The uncompressed bytes of a file in pieces. InputError for an archive that is cut off."""
    if path.name.endswith(".zst"):
        yield from zstd_chunks(path)
        return
    with gzip.open(path) if path.name.endswith(".gz") else open(path, "rb") as file:
        while piece := file.read(CHUNK_BYTES):
            yield piece


def zstd_chunks(path: Path) -> Iterator[bytes]:
    """The frames of a zstd file one after the other; the last one must be complete. Input goes in small steps, because
    four bytes may stand for a block of 128 KiB.
    """
    import zstandard

    stream: Any = None
    with open(path, "rb") as file:
        while piece := file.read(ZSTD_STEP_BYTES):
            while piece:
                stream = stream or zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
                yield stream.decompress(piece)
                piece = stream.unused_data if stream.eof else b""
                stream = None if stream.eof else stream
    if stream is not None:
        raise InputError("the archive is cut off", str(path), "fetch or compress it again")


def lines(path: Path) -> Iterator[bytes]:
    """Lines split at \\n only, without it. InputError for a damaged archive or a line beyond 256 MiB."""
    import zstandard

    rest = b""
    try:
        for piece in chunks(path):
            *whole, tail = piece.split(b"\n")
            if whole:
                yield rest + whole[0]
                yield from whole[1:]
                rest = tail
            else:
                rest += tail
            if len(rest) > MAX_LINE_BYTES:
                raise InputError("a line is longer than 256 MiB", str(path))
        if rest:
            yield rest
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"damaged archive: {error}", str(path), "fetch or compress it again") from None
    except OSError as error:
        raise storage_error(error, path, "reading") from None


def utf8(content: bytes, where: str) -> str:
    """Decoded text; InputError with the offset of the first bad byte."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"invalid UTF-8 at byte {error.start}", where, "convert the file to UTF-8") from None


def jsonl_documents(path: Path) -> Iterator[str]:
    """The `text` of every line."""
    for number, line in enumerate(lines(path), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            record: Any = json.loads(utf8(line, where))
        except (ValueError, RecursionError) as error:
            raise InputError(f"not valid JSON: {error}", where) from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise InputError('the line is not an object with a string "text"', where)
        try:
            record["text"].encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text has half a surrogate pair at character {error.start}", where) from None
        yield record["text"]


def documents(sources: Iterable[Path], separator: str) -> Iterator[str]:
    """Every document of the sources in order; `separator` cuts .txt files, empty keeps them whole."""
    cut = separator.encode().decode("unicode_escape") if separator else ""
    for path in expand(sources):
        if ".jsonl" in path.name:
            yield from jsonl_documents(path)
        else:
            text = utf8(b"\n".join(lines(path)), str(path))
            yield from text.split(cut) if cut else [text]


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
