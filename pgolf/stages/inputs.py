"""Opening what commands are given: a model with its stored configuration, and the data that belongs to it."""

from pathlib import Path
from typing import Any

from pgolf.config.load import Resolved, resolve
from pgolf.config.tree import flatten
from pgolf.core.errors import ConfigError
from pgolf.dataset import Dataset, open_dataset
from pgolf.report.console import Console
from pgolf.stages.model_files import ModelFile, load_model


def model_config(model: ModelFile, preset: str, sets: list[str]) -> Resolved:
    """The configuration stored in a model file, under a preset and --set. ConfigError if they change the model."""
    resolved = resolve(preset=preset, sets=sets, stored=model.stored, stored_name=model.path.name)
    if changed := changed_keys(model.stored["model"], resolved.values["model"], "model"):
        raise ConfigError(
            f"the file's model cannot be changed: {', '.join(changed)}",
            str(model.path),
            "leave out the preset or --set that does",
        )
    return resolved


def changed_keys(old: dict[str, Any], new: dict[str, Any], path: str = "") -> list[str]:
    """Dotted keys whose values differ, as `key old -> new`; keys that `old` does not have are left out."""
    before, after = flatten(old, path), flatten(new, path)
    return [f"{key} {before[key]} -> {after[key]}" for key in after if key in before and before[key] != after[key]]


def model_and_data(
    path: Path, data: Path, tokenizer: Path | None, preset: str, sets: list[str], console: Console
) -> tuple[ModelFile, Resolved, Dataset]:
    """A model, its configuration, and the dataset, whose warnings are passed on."""
    model = load_model(path)
    resolved = model_config(model, preset, sets)
    dataset = open_dataset(data, tokenizer, model.config.model.vocab_size)
    for warning in dataset.warnings:
        console.warn(warning)
    return model, resolved, dataset
