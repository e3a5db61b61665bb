"""Documents from files: .txt, .jsonl (also .gz and .zst), directories of both, and Python's own documentation."""

import ast
import gzip
import io
import json
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

from pgolf.core.errors import ConfigError, InputError
from pgolf.core.files import storage_error

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst")
MAX_LINE_BYTES = 256 << 20
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


def open_plain(path: Path) -> IO[bytes]:
    """The uncompressed bytes of a file."""
    if path.name.endswith(".gz"):
        return io.BufferedReader(gzip.open(path))
    if path.name.endswith(".zst"):
        import zstandard

        return io.BufferedReader(zstandard.open(path, "rb"))
    return open(path, "rb")


def lines(path: Path) -> Iterator[bytes]:
    """Lines split at \\n only. InputError for a damaged archive or a line beyond 256 MiB."""
    import zstandard

    try:
        with open_plain(path) as file:
            while line := file.readline(MAX_LINE_BYTES):
                if len(line) == MAX_LINE_BYTES:
                    raise InputError("a line is longer than 256 MiB", str(path))
                yield line
    except (EOFError, gzip.BadGzipFile, zstandard.ZstdError) as error:
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
        yield record["text"]


def documents(sources: Iterable[Path], separator: str) -> Iterator[str]:
    """Every document of the sources in order; `separator` cuts .txt files, empty keeps them whole."""
    cut = separator.encode().decode("unicode_escape") if separator else ""
    for path in expand(sources):
        if ".jsonl" in path.name:
            yield from jsonl_documents(path)
        else:
            text = utf8(b"".join(lines(path)), str(path))
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
