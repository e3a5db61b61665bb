"""Opening what commands are given: a model with its stored configuration, and the data that belongs to it."""

from pathlib import Path

from pgolf.config.load import Resolved, resolve
from pgolf.dataset import Dataset, open_dataset
from pgolf.report.console import Console
from pgolf.stages.model_files import ModelFile, load_model


def model_config(model: ModelFile, preset: str, sets: list[str]) -> Resolved:
    """The configuration stored in a model file, under a preset and --set."""
    return resolve(preset=preset, sets=sets, stored=model.stored, stored_name=model.path.name)


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
