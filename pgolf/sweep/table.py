"""The table of a sweep's results: a file of JSON lines, one row per cell, only ever appended to.

A row is added in one write under a lock and synced, so concurrent sweeps may share a table. A last line that a crash
has torn does not count, and the next row takes its place. A cell is finished when there is a row with its key whose
state is "done"; rows of failed cells stay beside it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.core.errors import InputError
from pgolf.core.files import append_durably, parse_json, read_bytes
from pgolf.stages.manifest import guarded

ROW_SCHEMA = "pgolf.sweep-row/1"
MAX_TABLE = 1 << 30
LOCK_WAIT_S = 60
Row = dict[str, Any]


@dataclass(frozen=True)
class Content:
    """What a table holds: its rows, how many bytes of it are whole lines, and whether only the last newline lacks."""

    rows: list[Row]
    whole_bytes: int
    open_line: bool = False


def read_table(path: Path) -> Content:
    """Read a table. InputError, naming the line, if it holds anything but rows; a torn last line is left out."""
    lines = read_bytes(path, MAX_TABLE).split(b"\n")
    rows = [parse_row(line, f"{path}, line {number}") for number, line in enumerate(lines[:-1], 1)]
    whole = sum(len(line) + 1 for line in lines[:-1])
    if lines[-1]:
        try:
            rows.append(parse_row(lines[-1], str(path)))
        except InputError:
            return Content(rows, whole)
        return Content(rows, whole + len(lines[-1]), open_line=True)
    return Content(rows, whole)


def parse_row(line: bytes, where: str) -> Row:
    """One line. InputError unless it is a row of this version."""
    row = parse_json(line, where)
    schema = row.get("schema") if isinstance(row, dict) else None
    if schema != ROW_SCHEMA:
        raise InputError(
            f"schema {schema!r}, expected {ROW_SCHEMA!r}", where, "this is no table of pgolf sweep, or of a newer one"
        )
    if not isinstance(row.get("key"), str) or row.get("state") not in ("done", "failed"):
        raise InputError("the row has no key or no known state", where, "remove the line; its cell is then done anew")
    return dict(row)


def rows_of(path: Path) -> list[Row]:
    """The rows of a table, none if there is no table yet."""
    return read_table(path).rows if path.exists() else []


def latest(rows: list[Row]) -> dict[str, Row]:
    """Key -> the row that counts: the finished one if there is one, else the newest failure."""
    found: dict[str, Row] = {}
    for row in rows:
        if found.get(row["key"], {}).get("state") != "done":
            found[row["key"]] = row
    return found


def append_row(path: Path, row: Row) -> bool:
    """Add a row; False, with nothing written, if its cell is finished already. StorageError, with the table as it was,
    if it cannot be written.
    """
    with guarded(path, wait_s=LOCK_WAIT_S):
        content = read_table(path) if path.exists() else Content([], 0)
        if any(old["key"] == row["key"] and old["state"] == "done" for old in content.rows):
            return False
        text = json.dumps({"schema": ROW_SCHEMA, **row}, allow_nan=False, ensure_ascii=False) + "\n"
        line = text.encode(errors="backslashreplace")
        append_durably(path, b"\n" + line if content.open_line else line, content.whole_bytes)
    return True
