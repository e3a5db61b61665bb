"""What every benchmark shares: the parser's common options, timing, and one document or table as the result."""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from pgolf.cli.output import note, print_json, table

SCHEMA = "pgolf.benchmark/1"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """An argument parser that shows the module's docstring and knows --json."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", dest="as_json", help="one JSON document instead of a table")
    return made


def seconds_of(action: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def spread(seconds: list[float]) -> dict[str, float]:
    """The least and the middle of repeated timings; the least is what the machine's other work disturbs least."""
    return {"min_s": round(min(seconds), 4), "median_s": round(statistics.median(seconds), 4)}


def machine() -> dict[str, Any]:
    """Where the numbers were taken."""
    packages = {name: version(name) for name in ("torch", "numpy", "sentencepiece")}
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **packages,
    }


def show(name: str, options: argparse.Namespace, rows: list[dict[str, Any]], remarks: list[str] | None = None) -> None:
    """Print the result: rows share their keys, which are the table's columns."""
    settings = {key: value for key, value in vars(options).items() if key != "as_json"}
    if options.as_json:
        document = {"schema": SCHEMA, "benchmark": name, "machine": machine(), "settings": settings, "rows": rows}
        print_json(document | {"remarks": remarks or []})
        return
    columns = list(rows[0])
    numbers = tuple(i for i, column in enumerate(columns) if isinstance(rows[0][column], int | float))
    table("", columns, [[cell(row[column]) for column in columns] for row in rows], right=numbers)
    for remark in remarks or []:
        note(remark)


def cell(value: Any) -> str:
    """A table cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
