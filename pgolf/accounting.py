"""Exact size accounting: decimal bytes of files as they will be uploaded, against the cap. Used by every stage."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CAP_BYTES = 16_000_000
"""The challenge's cap on code plus artifact, decimal."""


@dataclass(frozen=True)
class Size:
    """Bytes of the artifact, of the counted code, and the cap."""

    artifact_bytes: int
    code_bytes: int
    cap_bytes: int = CAP_BYTES

    @property
    def total_bytes(self) -> int:
        """What counts."""
        return self.artifact_bytes + self.code_bytes

    @property
    def headroom_bytes(self) -> int:
        """Bytes left under the cap; negative when over it. Exactly at the cap is allowed."""
        return self.cap_bytes - self.total_bytes

    def document(self) -> dict[str, int]:
        """The five integers of every JSON document about size."""
        return {
            "artifact_bytes": self.artifact_bytes,
            "code_bytes": self.code_bytes,
            "total_bytes": self.total_bytes,
            "cap_bytes": self.cap_bytes,
            "headroom_bytes": self.headroom_bytes,
        }

    def line(self) -> str:
        """One line for people."""
        verdict = (
            f"{self.headroom_bytes:,} bytes to spare"
            if self.headroom_bytes >= 0
            else f"{-self.headroom_bytes:,} bytes OVER THE CAP"
        )
        parts = f"artifact {self.artifact_bytes:,} + code {self.code_bytes:,} = {self.total_bytes:,}"
        return f"{parts} of {self.cap_bytes:,} bytes, {verdict}"


def size_on_disk(artifacts: Iterable[Path], code_bytes: int, cap_bytes: int = CAP_BYTES) -> Size:
    """The size of a submission whose artifacts, one for each seed, lie on disk: the largest counts."""
    return Size(max((path.stat().st_size for path in artifacts), default=0), code_bytes, cap_bytes)


def share(size: dict[str, Any]) -> float:
    """Share of the cap used."""
    return float(size["total_bytes"]) / float(size["cap_bytes"])


def bpb_of(score: dict[str, Any]) -> float:
    """Bits per byte of a score's figures, be it that of a part of the validation split (`bpb_partial`)."""
    return float(score["bpb"] if "bpb" in score else score["bpb_partial"])
