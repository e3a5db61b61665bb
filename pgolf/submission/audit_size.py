"""What counts in a folder or file, ours or not: code, model, and the rest."""

from pathlib import Path
from typing import Any

from pgolf.accounting import Size
from pgolf.core.errors import InputError

MODEL_SUFFIXES = (".pgz", ".ptz", ".pt", ".safetensors", ".bin", ".xz", ".zst", ".br")
NOT_COUNTED = ("tokenizer.model", "train_gpt_readable.py")


def counts_as(path: Path) -> str:
    """code, model or nothing: the script and every other program beside it, the largest model, nothing else."""
    if path.name in NOT_COUNTED or path.suffix in (".model", ".vocab"):
        return "-"
    if path.suffix == ".py":
        return "code"
    return "model" if path.suffix in MODEL_SUFFIXES else "-"


def folder_size(path: Path) -> dict[str, Any]:
    """Files with what they count as, and the totals; with several models (one per seed) the largest counts."""
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    if not files:
        raise InputError("the folder is empty", str(path))
    rows: list[dict[str, Any]] = [
        {
            "file": str(item.relative_to(path)) if path.is_dir() else item.name,
            "counts_as": counts_as(item),
            "bytes": item.stat().st_size,
        }
        for item in files
    ]
    models = [int(row["bytes"]) for row in rows if row["counts_as"] == "model"]
    code = sum(int(row["bytes"]) for row in rows if row["counts_as"] == "code")
    return {"files": rows, **Size(max(models, default=0), code).document()}
