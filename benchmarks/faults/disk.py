"""A disk that fails, or a machine that stops, at the n-th request that pgolf.core.files makes in order to write."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

CRASH = 0
"""In place of an error number: the process is killed."""


class Disk:
    """Counts requests for writing. From the n-th on, or with `once` only there, each fails with `number`; half of what
    a failing write was given reaches the disk.
    """

    def __init__(
        self,
        fail_at: int,
        number: int,
        once: bool = True,
        told: Path | None = None,
        put: Callable[[Any, str, Any], None] = setattr,
    ) -> None:
        """Stand between pgolf.core.files and the system, put there by `put`. The count goes to the file `told`."""
        from pgolf.core import files

        self.count, self.fail_at, self.number, self.once, self.told = 0, fail_at, number, once, told
        put(files, "os", System(self))
        put(files, "open", self.open_file)

    def tick(self, before: Callable[[], object] = int) -> None:
        """One request. `before` is what still happens when it fails."""
        self.count += 1
        if self.told:
            self.told.write_text(str(self.count))
        if self.count == self.fail_at or (self.count > self.fail_at and not self.once):
            before()
            if self.number == CRASH:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(self.number, os.strerror(self.number))

    def open_file(self, path: Path, mode: str = "r") -> Any:
        """open(); files opened for writing are counted."""
        if mode == "rb":
            return open(path, mode)
        self.tick()
        return Counted(open(path, mode), self)


class System:
    """The module os, its writing functions counted."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, handle: int) -> None:
        """Counted."""
        self.disk.tick()
        os.fsync(handle)

    def replace(self, source: Path, target: Path) -> None:
        """Counted."""
        self.disk.tick()
        os.replace(source, target)

    def ftruncate(self, handle: int, size: int) -> None:
        """Counted."""
        self.disk.tick()
        os.ftruncate(handle, size)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        """Counted if it is for writing."""
        if flags & (os.O_WRONLY | os.O_RDWR):
            self.disk.tick()
        return os.open(path, flags, mode)

    def write(self, handle: int, content: bytes) -> int:
        """Counted."""
        self.disk.tick(lambda: os.write(handle, content[: len(content) // 2]))
        return os.write(handle, content)


class Counted:
    """A file whose writes are counted."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self.file, self.disk = file, disk

    def __enter__(self) -> "Counted":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, content: Any) -> int:
        """Counted; the half that a failing write leaves is flushed, as if the system had taken it."""

        def half() -> None:
            self.file.write(bytes(content)[: len(bytes(content)) // 2])
            self.file.flush()

        self.disk.tick(half)
        return int(self.file.write(content))

    def truncate(self, size: int) -> int:
        """Counted."""
        self.disk.tick()
        return int(self.file.truncate(size))
