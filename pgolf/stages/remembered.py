"""settings.json: what a run directory was made with, so that a later run into it needs only what changes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.config.load import Resolved, resolve
from pgolf.core.errors import InputError
from pgolf.core.files import read_json, write_json

SETTINGS_SCHEMA = "pgolf.settings/1"
FIRST_PRESET = "demo"


@dataclass(frozen=True)
class RunPlan:
    """The configuration of a run and where its text or shards come from."""

    resolved: Resolved
    data: Path | None
    text: list[Path]
    tokenizer: Path | None


def read_settings(out: Path) -> dict[str, Any]:
    """The content of a directory's settings.json; empty without one. InputError if it is not one."""
    path = out / "settings.json"
    if not path.is_file():
        return {}
    document = read_json(path)
    if not isinstance(document, dict) or document.get("schema") != SETTINGS_SCHEMA:
        raise InputError(f"not a {SETTINGS_SCHEMA} document", str(path), "remove it, or choose another --out")
    return document


def recall(
    out: Path, preset: str, sets: list[str], data: Path | None, text: list[Path], tokenizer: Path | None
) -> RunPlan:
    """What to run: the command line over what the directory remembers. A named preset replaces a remembered
    configuration; named text or shards replace remembered ones.
    """
    before = read_settings(out)
    stored = None if preset else before.get("resolved")
    resolved = resolve(preset or ("" if stored else FIRST_PRESET), sets, stored, f"{out}/settings.json")
    name = preset or str(before.get("preset", FIRST_PRESET))
    if data is None and not text and before:
        data = Path(before["data"]) if before.get("data") else None
        text = [Path(item) for item in before.get("text", [])]
        tokenizer = tokenizer or (Path(before["tokenizer"]) if before.get("tokenizer") else None)
    return RunPlan(Resolved(resolved.config, resolved.origins, name), data, text, tokenizer)


def remember(out: Path, plan: RunPlan) -> None:
    """Write settings.json, with absolute paths."""
    document = {
        "schema": SETTINGS_SCHEMA,
        "preset": plan.resolved.preset,
        "data": str(plan.data.resolve()) if plan.data else None,
        "text": [str(path.resolve()) for path in plan.text],
        "tokenizer": str(plan.tokenizer.resolve()) if plan.tokenizer else None,
        "resolved": plan.resolved.values,
    }
    if read_settings(out) != document:
        write_json(out / "settings.json", document)
