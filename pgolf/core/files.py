"""Every write of pgolf and every bounded read go through this module.

A write goes to a temporary file in the target's directory, is flushed and fsynced, replaces the target, and the
directory is fsynced: the target is at any moment either the old file or the whole new one.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pgolf.core.errors import InputError, PgolfError, StorageError

CHUNK_BYTES = 1 << 20


def storage_error(error: OSError, path: Path, doing: str) -> PgolfError:
    """Translate an OSError met while `doing` something to `path` into the error a user should read."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = f"no space left while {doing} {path.name}"
        return StorageError(what, str(path.parent), f"{free_bytes(path):,} bytes are free there")
    if error.errno == errno.ENOENT and doing == "reading":
        return InputError("no such file", str(path), "check the path")
    return StorageError(
        f"{doing} failed: {(error.strerror or str(error)).lower()}", str(path), "check the path and its permissions"
    )


def free_bytes(path: Path) -> int:
    """Free bytes on the file system that holds `path` or its nearest existing parent; 0 if that cannot be told."""
    for parent in (path, *path.absolute().parents):
        if parent.exists():
            try:
                stat = os.statvfs(parent)
            except OSError:
                return 0
            return stat.f_bavail * stat.f_frsize
    return 0


def make_dir(path: Path) -> None:
    """Create a directory and its parents; StorageError if that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, path, "creating") from None


def clean_parts(folder: Path) -> None:
    """Remove temporary files, and folders of them, whose writers are no longer alive."""
    for part in folder.glob(".*.part") if folder.is_dir() else ():
        owner = part.name.split(".")[-2]
        with contextlib.suppress(OSError):
            if owner.isdigit() and not alive(int(owner)):
                (shutil.rmtree if part.is_dir() else os.unlink)(part)


def alive(process: int) -> bool:
    """Whether a process with this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Any]:
    """A binary file object whose content appears at `path` in one step when the block ends without an exception."""
    make_dir(path.parent)
    part = path.parent / f".{path.name}.{os.getpid()}.part"
    try:
        if path.is_dir():
            raise StorageError("a directory stands where a file is to be written", str(path), "name a file")
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_dir(path.parent)
    except OSError as error:
        raise storage_error(error, path, "writing") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


class GrowingFile:
    """A file that takes shape in pieces: appended to, made durable at times, put in its place when it is complete."""

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        """Open `path` with its first `keep_bytes`; what lies beyond is cut off. InputError if it has fewer."""
        self.path = path
        make_dir(path.parent)
        if keep_bytes and (size := path.stat().st_size if path.is_file() else 0) < keep_bytes:
            raise InputError(f"the file has {size:,} bytes, fewer than the {keep_bytes:,} noted", str(path))
        try:
            self.file = open(path, "r+b" if keep_bytes else "wb")  # noqa: SIM115, it stays open between appends
            self.file.truncate(keep_bytes)
            self.file.seek(keep_bytes)
        except OSError as error:
            raise storage_error(error, path, "writing") from None

    def append(self, content: Any) -> None:
        """Add bytes, or a contiguous array."""
        try:
            self.file.write(content)
        except OSError as error:
            raise storage_error(error, self.path, "writing") from None

    def sync(self) -> None:
        """Make everything appended so far durable; nothing is left to do for a file that is closed."""
        if self.file.closed:
            return
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise storage_error(error, self.path, "writing") from None

    def publish(self, path: Path, head: bytes) -> None:
        """Write `head` over the first bytes, close, and put the complete file at `path` in one step."""
        try:
            self.file.seek(0)
            self.file.write(head)
            self.sync()
            self.file.close()
            os.replace(self.path, path)
            sync_dir(path.parent)
        except OSError as error:
            raise storage_error(error, self.path, "writing") from None

    def close(self) -> None:
        """Close without publishing; what is on disk stays."""
        with contextlib.suppress(OSError):
            self.file.close()


def move_file(source: Path, target: Path) -> None:
    """Put a complete file at `target` on the same file system, in one step."""
    try:
        os.replace(source, target)
        sync_dir(target.parent)
    except OSError as error:
        raise storage_error(error, target, "writing") from None


def remove_dir(path: Path) -> None:
    """Remove a directory with all it holds; StorageError if that is impossible."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise storage_error(error, path, "removing") from None


def sync_dir(path: Path) -> None:
    """Make a rename inside `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write `content` atomically."""
    with atomic_file(path) as file:
        for piece in (content,) if isinstance(content, bytes | bytearray | memoryview) else content:
            file.write(piece)


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON; NaN and infinity are refused. Bytes of a file name that are not UTF-8,
    which Python keeps as lone surrogates, become JSON's own escapes.
    """
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode(errors="backslashreplace"))


def append_text(path: Path, text: str) -> None:
    """Append `text`, in one write call if the system takes it whole, so that concurrent lines stay whole."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            content = text.encode()
            while content:
                content = content[os.write(handle, content) :]
        finally:
            os.close(handle)
    except OSError as error:
        raise storage_error(error, path, "writing") from None


def cut_half_line(path: Path) -> None:
    """Cut off what follows the last line break, where a process was ended while it appended to a file of lines."""
    if not path.is_file():
        return
    try:
        with open(path, "r+b") as file:
            start = max(file.seek(0, os.SEEK_END) - CHUNK_BYTES, 0)
            file.seek(start)
            tail = file.read()
            if b"\n" in tail or not start:
                file.truncate(start + tail.rfind(b"\n") + 1)
    except OSError as error:
        raise storage_error(error, path, "writing") from None


def append_durably(path: Path, content: bytes, keep_bytes: int) -> None:
    """Write `content` behind the first `keep_bytes` of a file, cutting off what follows them, and sync it. The file is
    cut back to `keep_bytes` if that fails. Whoever calls holds the file's lock.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.ftruncate(handle, keep_bytes)
            try:
                rest = content
                while rest:
                    rest = rest[os.write(handle, rest) :]
                os.fsync(handle)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, keep_bytes)
                raise
        finally:
            os.close(handle)
        if not keep_bytes:
            sync_dir(path.parent)
    except OSError as error:
        raise storage_error(error, path, "writing") from None


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The whole file; InputError if it is missing or larger than `max_bytes` (checked before anything is allocated)."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise InputError(
                    f"the file has {size:,} bytes, more than the {max_bytes:,} such a file may have", str(path)
                )
            return file.read(size)
    except OSError as error:
        raise storage_error(error, path, "reading") from None


def read_head(path: Path, count: int) -> bytes:
    """The first `count` bytes, fewer if the file is shorter."""
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except OSError as error:
        raise storage_error(error, path, "reading") from None


def check_regular(path: Path) -> None:
    """InputError for a pipe, a socket or a device, which reading might wait for without end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError("this is no file but a pipe, a socket or a device", str(path), "name a file")


def open_pieces(path: Path) -> Any:
    """A file opened to be read in pieces, whatever its size; the caller bounds what it holds of it."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise storage_error(error, path, "reading") from None


def open_log(path: Path, append: bool = False) -> Any:
    """A file for another process, or the libraries of this one, to say things in: no result, and never renamed."""
    try:
        return open(path, "ab" if append else "wb")
    except OSError as error:
        raise storage_error(error, path, "writing") from None


def try_writing(folder: Path) -> None:
    """StorageError unless files can be made in a directory; leaves none."""
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise storage_error(error, folder, "writing") from None


def unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object hook that refuses duplicate keys."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def parse_json(text: bytes | str, where: str) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, no NaN, bounded nesting."""

    def refuse(token: str) -> Any:
        raise ValueError(f"{token} is not JSON")

    def finite(token: str) -> float:
        return float(token) if math.isfinite(float(token)) else refuse(token)

    try:
        plain = text.decode() if isinstance(text, bytes) else text
        return json.loads(plain, object_pairs_hook=unique_pairs, parse_constant=refuse, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", where, "the file is damaged; make it anew") from None


def read_json(path: Path, max_bytes: int = 64 << 20) -> Any:
    """Strict JSON from a file."""
    return parse_json(read_bytes(path, max_bytes), str(path))


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(CHUNK_BYTES):
                digest.update(piece)
    except OSError as error:
        raise storage_error(error, path, "reading") from None
    return digest.hexdigest()
