"""What `--errors FILE` adds to a test run: every error of pgolf that a test provokes goes into the file, a JSON line
each, from which `python -m benchmarks.errors` makes docs/errors.md.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pgolf.core.errors import PgolfError

PACKAGE = Path(__file__).resolve().parents[1] / "pgolf"


def record(target: Path) -> None:
    """Have every error that is made in pgolf noted with the line of source that makes it."""
    made = PgolfError.__init__
    known: set[tuple[str, int]] = set()

    def noted(self: PgolfError, *args: Any, **named: Any) -> None:
        made(self, *args, **named)
        frame = sys._getframe(1)
        place = Path(frame.f_code.co_filename)
        if place.is_relative_to(PACKAGE) and (place.name, frame.f_lineno) not in known:
            known.add((place.name, frame.f_lineno))
            name = place.relative_to(PACKAGE.parent).as_posix()
            line = {"module": name, "line": frame.f_lineno, "code": self.exit_code, "text": str(self)}
            with open(target, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(json.dumps(line) + "\n")

    PgolfError.__init__ = noted  # type: ignore[method-assign]


def start(config: pytest.Config) -> None:
    """Begin, if asked to."""
    if target := config.getoption("--errors"):
        record(Path(str(target)))
