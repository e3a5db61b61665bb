"""What brings an artifact under the cap: first what a sweep has tried already."""

import itertools
from pathlib import Path
from typing import Any

from pgolf.accounting import Size
from pgolf.core.errors import PgolfError
from pgolf.submission.entries import input_of, quantization_of
from pgolf.sweep.table import latest, rows_of

ADVICE = "quantize to it: pgolf quantize --budget BYTES, or with a lower quant.bits or a larger quant.k"
TABLE = "results.jsonl"
MAX_TABLES, SHOWN = 100, 3


def checkpoint_of(artifact: Path) -> str:
    """SHA-256 of the checkpoint that an artifact's run has quantized, empty where no manifest tells it."""
    return input_of(quantization_of(artifact), "checkpoint")


def tables_near(artifact: Path) -> list[Path]:
    """Tables of sweeps in the artifact's run, and in the folders beside it."""
    run = artifact.resolve().parent.parent
    found = (path for base in (run, run.parent) for depth in ("", "*/", "*/*/") for path in base.glob(depth + TABLE))
    return list(dict.fromkeys(itertools.islice(found, MAX_TABLES)))


def fitting_rows(artifact: Path, size: Size) -> list[dict[str, Any]]:
    """Cells of quantization sweeps over the same checkpoint that fit the cap, the best score first."""
    checkpoint, found = checkpoint_of(artifact), []
    for table in tables_near(artifact) if checkpoint else ():
        try:
            rows = latest(rows_of(table)).values()
        except PgolfError:
            continue
        for row in rows:
            figures = row.get("figures") or {}
            same = row["state"] == "done" and (row.get("inputs") or {}).get("model") == checkpoint
            if same and figures.get("total_bytes", size.cap_bytes + 1) <= size.cap_bytes and "bpb" in figures:
                found.append({**row, "table": str(table)})
    return sorted(found, key=lambda row: float(row["figures"]["bpb"]))


def remedies(artifact: Path, size: Size) -> str:
    """The nearest remedies, in a line: cells of a sweep that fit, or what to try."""
    rows = fitting_rows(artifact, size)
    cells = [
        f"{' '.join(f'{key}={value}' for key, value in row['settings'].items())} "
        f"({row['figures']['total_bytes']:,} bytes, {row['figures']['bpb']:.4f} BPB)"
        for row in rows[:SHOWN]
    ]
    if cells:
        return f"of the sweep in {rows[0]['table']} these fit: {'; '.join(cells)}"
    codec = "compress with compress.method=rans"
    return f"{ADVICE}; {codec}; pgolf sweep quantize tries several"
