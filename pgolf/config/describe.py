"""Help texts out of the source: docstrings of classes, and of the fields right under which they stand."""

import ast
import dataclasses
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from pgolf.catalog import CATALOG, load
from pgolf.config.run import RunConfig
from pgolf.config.tree import join, slot_of
from pgolf.core.files import read_json


@cache
def class_docs(module: str) -> dict[str, dict[str, str]]:
    """Class -> field -> docstring for one module; the class's own docstring is under an empty name."""
    tree = ast.parse(Path(str(import_module(module).__file__)).read_text(encoding="utf-8"))
    docs: dict[str, dict[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            docs[node.name] = {"": " ".join((ast.get_docstring(node) or "").split())}
            for item, after in zip(node.body, node.body[1:]):
                if (
                    isinstance(item, ast.AnnAssign)
                    and isinstance(item.target, ast.Name)
                    and isinstance(after, ast.Expr)
                ):
                    docs[node.name][item.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return docs


def field_doc(cls: type, name: str) -> str:
    """The docstring of a dataclass field, looked up through the base classes."""
    for base in cls.__mro__:
        if base.__module__.startswith("pgolf.") and (
            text := class_docs(base.__module__).get(base.__name__, {}).get(name)
        ):
            return text
    return ""


def class_doc(cls: type) -> str:
    """The docstring of a class on one line."""
    return class_docs(cls.__module__)[cls.__name__][""]


def key_help(config: Any, path: str = "", slot: str = "") -> dict[str, str]:
    """Dotted key -> meaning, for every key of a configuration."""
    from pgolf.catalog import selector

    helps = {join(path, selector(slot)): f"one of {', '.join(CATALOG[slot])}"} if slot else {}
    for field in dataclasses.fields(config):
        value, full, inner = getattr(config, field.name), join(path, field.name), slot_of(field.type)
        if inner or dataclasses.is_dataclass(value):
            helps |= key_help(value, full, inner)
        else:
            helps[full] = field_doc(type(config), field.name)
    return helps


def slot_keys(config: Any, path: str = "") -> dict[str, str]:
    """Slot -> the dotted key it is set by."""
    keys: dict[str, str] = {}
    for field in dataclasses.fields(config):
        value, full, slot = getattr(config, field.name), join(path, field.name), slot_of(field.type)
        if slot:
            keys[slot] = full
        if slot or dataclasses.is_dataclass(value):
            keys |= slot_keys(value, full)
    return keys


def technique_rows() -> list[dict[str, str]]:
    """Every line of the catalog, then every text transform: key, name, summary, source, file."""
    from pgolf.corpus.transforms import TRANSFORMS

    keys, rows = slot_keys(RunConfig()), []
    transforms = [("tokenize.transform", name, type(transform)) for name, transform in TRANSFORMS.items()]
    parts = [(keys[slot], name, load(slot, name)) for slot, choices in CATALOG.items() for name in choices]
    for key, name, cls in parts + transforms:
        match = re.fullmatch(r"(.*?)(?: Effect: (.*?)\.)?(?: Source: (.*?)\.?)?", class_doc(cls))
        summary, effect, source = match.groups("") if match else ("", "", "")
        file = cls.__module__.replace(".", "/") + ".py"
        rows.append(
            {"key": key, "name": name, "summary": summary, "source": source, "published_effect": effect, "file": file}
        )
    return rows


@cache
def measured() -> dict[str, Any]:
    """What `python -m benchmarks.ablate --write` found: its setting, and a row per technique under `KEY NAME`."""
    found = read_json(Path(__file__).parent / "measured.json")
    return found if isinstance(found, dict) else {}


def our_effect(row: dict[str, Any] | None) -> str:
    """A measured row in words: BPB against the baseline with standard error, step time and parameters in percent, and
    the artifact's predicted bytes.
    """
    if not row:
        return ""
    doubt = 2 * row["standard_error"] + 1e-4  # as exact as the figures are written
    verdict = "" if abs(row["gain"]) <= doubt else " (helps)" if row["gain"] > 0 else " (hurts)"
    return (
        f"{-row['gain']:+.4f} ± {row['standard_error']:.4f}{verdict}; time {100 * row['time'] - 100:+.0f} %, "
        f"parameters {row['parameters_percent']:+.1f} %, artifact {row['artifact_bytes_added']:+,} bytes"
    )
