"""lrzip and zpaq, programs that PR #1855 and its followers need beside their script. Here they are rivals to measure.

They run with fixed arguments in a private directory, without a shell and for a limited time, and never because a file
that is read says so: `all_codecs` in `methods.py` has them only where the caller asks for it.
"""

import os
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pgolf.core.errors import ConfigError, InputError, SetupError

RAW, CODED, BACK = "raw", "coded.zpaq", "back"
"""Files in the private directory; archives know the first by its name, and zpaq insists on the ending of the second."""
HINT = "install it (apt-get install lrzip zpaq), or compress with compress.method=rans, which needs nothing"


@dataclass(frozen=True, kw_only=True)
class Program(ABC):
    """A compressor that is a program of its own."""

    codec_id: ClassVar[int]

    timeout_s: float = 900.0
    """Seconds after which the program is stopped, for each section."""

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise ConfigError(f"timeout_s must be above 0, not {self.timeout_s}", "timeout_s")

    @property
    def name(self) -> str:
        """The program."""
        return type(self).__name__.lower()

    @abstractmethod
    def packing(self) -> list[str]:
        """Its arguments that make `coded` of `raw`."""

    @abstractmethod
    def unpacking(self) -> list[str]:
        """Its arguments that make `back` of `coded`."""

    def encode(self, raw: bytes, shapes: Sequence[tuple[int, ...]] = ()) -> bytes:
        """Compress. SetupError when the program is missing or fails."""

        def failed(why: str) -> SetupError:
            return SetupError(f"{self.name} {why}", "compress", HINT)

        return self.made(self.packing(), RAW, raw, CODED, failed, None) if raw else b""

    def decode(self, coded: bytes, raw_len: int) -> bytes:
        """Decompress to exactly `raw_len` bytes; the program can write no more. SetupError when it is missing,
        InputError when what it makes is not that.
        """

        def failed(why: str) -> InputError:
            return InputError(f"{self.name} {why}", "artifact")

        raw = self.made(self.unpacking(), CODED, coded, BACK, failed, raw_len) if raw_len or coded else b""
        if len(raw) != raw_len:
            raise InputError(f"a section by {self.name} does not hold the {raw_len:,} bytes it promises", "artifact")
        return raw

    def made(
        self,
        arguments: list[str],
        source: str,
        content: bytes,
        target: str,
        failed: "Callable[[str], Exception]",
        most: int | None,
    ) -> bytes:
        """What the program writes to `target` when it finds `content` in `source`, at most `most` bytes."""
        path = shutil.which(self.name)
        if path is None:
            raise SetupError(f"the program {self.name} is not installed", "compress", HINT)
        with tempfile.TemporaryDirectory(prefix="pgolf-") as folder:
            place = Path(folder)
            (place / source).write_bytes(content)
            os.utime(place / source, (0, 0))
            try:
                done = subprocess.run(
                    [path, *arguments],
                    cwd=place,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=self.timeout_s,
                    check=False,
                    preexec_fn=None if most is None else file_limit(most),
                )
            except subprocess.TimeoutExpired:
                raise failed(f"did not finish within {self.timeout_s:g} seconds") from None
            result = place / target
            if done.returncode or not result.is_file():
                said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
                raise failed(f"failed with code {done.returncode}{': ' + said[-1][:160] if said else ''}")
            if most is not None and result.stat().st_size > most:
                raise failed(f"makes more than the {most:,} bytes promised")
            return result.read_bytes()


def file_limit(most: int) -> "Callable[[], None]":
    """Keeps a process from writing files much larger than `most` bytes."""

    def apply() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (most + (1 << 20), most + (1 << 20)))

    return apply


@dataclass(frozen=True, kw_only=True)
class Lrzip(Program):
    """lrzip with its ZPAQ back-end and no test of whether compressing is worth it. Needs the program; such an artifact
    cannot be submitted by pgolf. Effect: -241 kB against brotli (PR #1855). Source: PR #1855.
    """

    codec_id = 7

    def packing(self) -> list[str]:
        """Level 9, quiet."""
        return ["-z", "-T", "-L", "9", "-q", "-o", CODED, RAW]

    def unpacking(self) -> list[str]:
        """The stored name is not used."""
        return ["-d", "-q", "-o", BACK, CODED]


@dataclass(frozen=True, kw_only=True)
class Zpaq(Program):
    """zpaq at its strongest method. Needs the program; such an artifact cannot be submitted by pgolf. Source: ZPAQ
    7.15.
    """

    codec_id = 8

    def packing(self) -> list[str]:
        """Equal bytes whenever it runs: one thread, no attributes, and a date of ours."""
        return ["a", CODED, RAW, "-m5", "-t1", "-noattributes", "-until", "20000101000000"]

    def unpacking(self) -> list[str]:
        """Only the one file, under a name of ours."""
        return ["x", CODED, RAW, "-to", BACK, "-t1"]
