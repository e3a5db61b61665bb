"""Opening what commands are given: a model with its stored configuration, and the data that belongs to it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pgolf.config.load import Resolved, resolve
from pgolf.config.tree import flatten
from pgolf.core.errors import ConfigError
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.dataset import Dataset, open_dataset
from pgolf.report.console import Console
from pgolf.stages.model_files import ModelFile, load_model

HOW_WEIGHTS_ARE_USED = ("window", "documents", "loop", "position", "smear")
"""Parts of a model that a score may change, to see what that does; the score then says so."""


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


def rescored(model: ModelFile, preset: str, sets: list[str], console: Console) -> tuple[ModelFile, Resolved]:
    """The model and configuration to score with: those of the file, or, after a warning and marked, with another way to
    use its weights. ConfigError for other changes of the model, or those that need weights it does not have.
    """
    resolved = resolve(preset=preset, sets=sets, stored=model.stored, stored_name=model.path.name)
    changed = changed_keys(model.stored["model"], resolved.values["model"], "model")
    if not changed or not all(text.split(".")[1] in HOW_WEIGHTS_ARE_USED for text in changed):
        return model, model_config(model, preset, sets)
    warn_of_change(changed, console)
    return used_as(model, resolved), resolved


def used_as(model: ModelFile, resolved: Resolved) -> ModelFile:
    """The file's own model, its weights used as a configuration says, and marked with what that changes. ConfigError if
    weights are missing.
    """
    changed = changed_keys(model.stored["model"], resolved.values["model"], "model")
    if not changed:
        return model
    ways = {name: getattr(resolved.config.model, name) for name in HOW_WEIGHTS_ARE_USED}
    return reshaped(model, dataclasses.replace(model.config.model, **ways), tuple(changed))


def warn_of_change(changed: Sequence[str], console: Console) -> None:
    """Say, once, that weights are used in another way than they were trained."""
    console.warn_once(f"not the model as it was trained: {', '.join(changed)}; the score is marked")


def reshaped(model: ModelFile, config: ModelConfig, changed: tuple[str, ...]) -> ModelFile:
    """The model with another configuration, `changed` being the difference. ConfigError if weights are missing."""
    weights = leading_weights(config, model)
    whole = dataclasses.replace(model.config, model=config)
    return dataclasses.replace(model, config=whole, weights=weights, overridden=changed)


def leading_weights(config: ModelConfig, model: ModelFile) -> dict[str, Any]:
    """What a model of `config` takes of a file's weights: all of a tensor, or its first rows where it needs fewer (a
    loop with fewer passes has fewer long connections). ConfigError if something is missing.
    """
    found = {}
    for spec in param_specs(config):
        weight = model.weights.get(spec.name)
        if weight is None or weight.shape[1:] != spec.shape[1:] or len(weight) < spec.shape[0]:
            have = "the file has none" if weight is None else f"the file's is {tuple(weight.shape)}"
            what = f"the changed model needs {spec.name} {spec.shape}, {have}"
            raise ConfigError(what, str(model.path), "leave out the preset or --set that changes it")
        found[spec.name] = weight[: spec.shape[0]]
    return found


def changed_keys(old: dict[str, Any], new: dict[str, Any], path: str = "") -> list[str]:
    """Dotted keys whose values differ, as `key old -> new`; keys that `old` does not have are left out."""
    before, after = flatten(old, path), flatten(new, path)
    return [f"{key} {before[key]} -> {after[key]}" for key in after if key in before and before[key] != after[key]]


def model_and_data(
    path: Path,
    data: Path,
    tokenizer: Path | None,
    preset: str,
    sets: list[str],
    console: Console,
    scoring: bool = False,
) -> tuple[ModelFile, Resolved, Dataset]:
    """A model, its configuration, and the dataset, whose warnings are passed on. To score it, its weights may be used
    in another way (see `rescored`).
    """
    model = load_model(path)
    model, resolved = rescored(model, preset, sets, console) if scoring else (model, model_config(model, preset, sets))
    dataset = open_dataset(data, tokenizer, model.config.model.vocab_size)
    for warning in dataset.warnings:
        console.warn(warning)
    return model, resolved, dataset
