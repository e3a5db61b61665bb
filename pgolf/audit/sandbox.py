"""What a piece of Python reaches for while it runs: files it reads and writes, sockets. Watched by the interpreter's
own audit events, so code that opens files without Python (compiled extensions) is not seen.
"""

import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import gettempdir
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
SYSTEM = ("/proc", "/sys", "/dev", "/usr", "/lib", "/etc", "/run")


@dataclass(eq=False)
class Reached:
    """Files read and written (paths as given), and network events, in order. What `denied` says of is refused."""

    read: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    network: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    denied: tuple[Path, ...] = ()
    deny_network: bool = True

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        """Take an event. PermissionError where it is refused."""
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            path, flags = os.fsdecode(args[0]), args[2] or 0
            (self.written if flags & WRITING else self.read).append(path)
            if self.denied and Path(path).resolve() in self.denied:
                self.refused.append(path)
                raise PermissionError(f"{path} may not be read here")
        elif event in ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.__new__"):
            self.network.append(event)
            if self.deny_network:
                self.refused.append(event)
                raise PermissionError("no network during evaluation")

    def kept(self) -> list[str]:
        """Files written that stay: not under the folder for temporary files, no device, no compiled module."""
        rooms = (Path(gettempdir()).resolve(), Path("/dev"), Path("/proc"))
        found = {path: Path(path).resolve() for path in self.written if "__pycache__" not in path}
        return sorted(path for path, place in found.items() if not any(place.is_relative_to(room) for room in rooms))

    def foreign(self, allowed: tuple[Path, ...] = ()) -> list[str]:
        """Files read that are neither the interpreter's, nor a package's, nor the system's, nor under `allowed`."""
        homes = [Path(path).resolve() for path in {*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix}]
        homes += [Path(__file__).resolve().parents[1], *(Path(root) for root in SYSTEM), *allowed]
        found = {path: Path(path).resolve() for path in self.read}
        return sorted(path for path, place in found.items() if not any(place.is_relative_to(home) for home in homes))


WATCHING: list[Reached] = []
"""Who is told: of the whole process, since the interpreter has one hook for all of it, which stays once it is there."""


def tell(event: str, args: tuple[Any, ...]) -> None:
    """The interpreter's hook."""
    for reached in WATCHING:
        reached.see(event, args)


@cache
def listen() -> None:
    """Have the interpreter tell, once."""
    sys.addaudithook(tell)


@contextmanager
def watched(denied: tuple[Path, ...] = (), deny_network: bool = True) -> Iterator[Reached]:
    """Everything reached for in the block; opening a `denied` file or a socket in it fails."""
    listen()
    reached = Reached(denied=tuple(path.resolve() for path in denied), deny_network=deny_network)
    WATCHING.append(reached)
    try:
        yield reached
    finally:
        WATCHING.remove(reached)
