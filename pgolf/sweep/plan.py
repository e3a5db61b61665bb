"""The cells of a sweep, every one resolved and checked before the first runs.

A cell is known by its key: a hash of all that its figures depend on (settings of its stages, hashes of its inputs, what
it is scored on). Two sweeps that ask for the same cell mean the same row of the table.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pgolf.config.load import Resolved, resolve
from pgolf.config.tree import flatten
from pgolf.core.dist import pick_device
from pgolf.core.errors import ConfigError, InputError
from pgolf.core.quant.gptq import Gptq
from pgolf.core.quant.roles import compensating
from pgolf.dataset import Dataset, open_dataset
from pgolf.report.console import Console
from pgolf.sizing import predict
from pgolf.stages.calibrate import Depth
from pgolf.stages.held_out import Tail, find_tail, seen_in_training, write_tail
from pgolf.stages.inputs import changed_keys, model_config, rescored
from pgolf.stages.manifest import STAGE_FORMAT
from pgolf.stages.model_files import ModelFile, check_tokenizer, load_model
from pgolf.stages.packing import CODE_SECTIONS
from pgolf.stages.train import (
    check_data,
    check_gpu,
    check_sense,
    chosen_on,
    train_key,
)
from pgolf.sweep.grid import Choice

STAGES = {
    "train": ("train",),
    "quantize": ("quantize", "compress", "eval"),
    "compress": ("compress",),
    "eval": ("eval",),
    "ttt": ("ttt",),
}
"""What a cell of each sweep goes through. Only sweep train trains."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the grid: its settings, its key, and the task handed to the process that computes it."""

    settings: dict[str, Any]
    key: str
    task: dict[str, Any]
    predicted_bytes: int

    @property
    def id(self) -> str:
        """The name of the cell's directory."""
        return self.key[:12]

    @property
    def label(self) -> str:
        """Its settings on one line."""
        return " ".join(f"{key}={value}" for key, value in self.settings.items()) or "as configured"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What cells are scored on: the validation split of a dataset, or the end of its training split, of which `prepare`
    makes a dataset of its own at `held_out`. Rows repeat `facts`.
    """

    dataset: Dataset
    tokenizer: Path | None
    """As given to open the dataset."""
    facts: dict[str, Any]
    sets: list[str]
    """Overrides for scoring alone; they do not change what an artifact says of itself."""
    tail: Tail | None = None
    held_out: Path | None = None

    @property
    def places(self) -> dict[str, str]:
        """The paths that a task needs."""
        data, held_out = str(self.dataset.folder), path_text(self.held_out)
        return {"data": data, "tokenizer": path_text(self.tokenizer), "held_out": held_out}

    def prepare(self) -> None:
        """Make the dataset of held-out documents, if it is those that are scored."""
        if self.tail is not None and self.held_out is not None:
            write_tail(self.dataset, self.tail, self.held_out)


@dataclass(kw_only=True)
class Plan:
    """A sweep ready to run."""

    sweep: str
    out: Path
    cells: list[Cell]
    inputs: dict[str, str]
    preset: str
    scored: Scored | None = None

    @property
    def table(self) -> Path:
        """The results table."""
        return self.out / "results.jsonl"

    def folder(self, cell: Cell) -> Path:
        """Where a cell keeps its files."""
        return self.out / ("runs" if self.sweep == "train" else "cells") / cell.id

    @property
    def scored_on(self) -> dict[str, Any]:
        """What rows say of the tokens that were scored; nothing for a sweep that scores none."""
        return self.scored.facts if self.scored else {}


def json_hash(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def cell_key(sweep: str, config: Any, inputs: dict[str, Any]) -> str:
    """What a cell's figures depend on, as one hash."""
    return json_hash([sweep, [STAGE_FORMAT[stage] for stage in STAGES[sweep]], config, inputs])


def settings_of(choice: Choice, resolved: Resolved) -> dict[str, Any]:
    """The chosen keys with the values they have come to, a slot's name for a slot."""
    values = flatten(resolved.values)
    return {key: values.get(key, str(text)) for key, text in choice.items()}


def resolve_all(choices: list[Choice], one: Callable[[list[str]], Resolved]) -> list[tuple[Choice, Resolved]]:
    """Every choice with what `one` makes of it as --set; a ConfigError says which cell it is about."""
    found = []
    for choice in choices:
        sets = [f"{key}={value}" for key, value in choice.items()]
        try:
            found.append((choice, one(sets)))
        except ConfigError as error:
            where = f"{error.where}; cell {' '.join(sets)}" if sets else error.where
            raise ConfigError(error.what, where, error.fix) from None
    return found


def distinct(cells: list[Cell]) -> list[Cell]:
    """The cells. ConfigError if two are the same, as after a value written in two ways."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        if cell.key in seen:
            what = f"two cells are the same: {seen[cell.key].label} and {cell.label}"
            raise ConfigError(what, "sweep", "give each once")
        seen[cell.key] = cell
    return cells


def plan_train(
    data: Path,
    tokenizer: Path | None,
    out: Path,
    choices: list[Choice],
    preset: str,
    device: str,
    local: bool,
    console: Console,
) -> Plan:
    """Training runs, checked as far as that goes without running them; `local` also checks this machine for them.

    ConfigError, InputError or SetupError for the first cell that cannot run.
    """
    resolved_cells = resolve_all(choices, lambda sets: resolve(preset, sets))
    dataset = opened(data, tokenizer, resolved_cells[0][1].config.model.vocab_size, console)
    inputs = {"data": dataset.fingerprint("train"), "validation": dataset.fingerprint("val")}
    cells, checked = [], set()
    for choice, resolved in resolved_cells:
        config = resolved.config
        check_sense(config)
        config.train.micro_steps(1)
        if (wants := (config.model.vocab_size, config.train.batch_tokens)) not in checked:
            check_data(dataset, config)
            checked.add(wants)
        if local:
            place = pick_device(device, 0)
            check_gpu(config, device)
            chosen_on(config, place)
        cells.append(
            Cell(
                settings=settings_of(choice, resolved),
                key=cell_key("train", train_key(resolved.values, inputs["data"]), inputs),
                task={"config": resolved.values, "data": str(data), "tokenizer": path_text(tokenizer)},
                predicted_bytes=predict(config)[1].total_bytes,
            )
        )
    return Plan(sweep="train", out=out, cells=distinct(cells), inputs=inputs, preset=preset)


def opened(data: Path, tokenizer: Path | None, vocab_size: int, console: Console) -> Dataset:
    """A dataset, its warnings passed on."""
    dataset = open_dataset(data, tokenizer, vocab_size)
    for warning in dataset.warnings:
        console.warn(warning)
    return dataset


def path_text(path: Path | None) -> str:
    """A path for JSON, empty for none."""
    return str(path) if path else ""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How the command line says to score."""

    data: Path
    tokenizer: Path | None = None
    method: str = ""
    """Another evaluation method than the configured one."""
    tokens: int = 0
    """How many targets; 0 is as configured."""
    on_validation: bool = False
    """Whether validation may be looked at."""

    def find(self, stage: str, model: ModelFile, limit: int, out: Path, console: Console) -> Scored:
        """What that is for a model, which has been configured to score `limit` targets (0: all)."""
        dataset = opened(self.data, self.tokenizer, model.config.model.vocab_size, console)
        check_tokenizer(model, dataset.tokenizer_sha256, dataset.vocab_size, str(dataset.folder))
        sets = [f"{stage}.method={self.method}"] if self.method else []
        if self.on_validation:
            targets, limit = sum(map(len, dataset.split("val"))) - 1, self.tokens or limit
            facts = {"split": "val", "targets": min(limit or targets, targets), "data": dataset.fingerprint("val")}
            sets = [*sets, f"{stage}.max_tokens={limit}"]
            return Scored(dataset=dataset, tokenizer=self.tokenizer, facts=facts, sets=sets)
        tail = find_tail(dataset, self.tokens or limit)
        facts = {"split": "train", "targets": len(tail.ids) - 1, "data": dataset.fingerprint("train")}
        facts |= {"first_token": tail.first, "documents": tail.documents}
        seen = seen_in_training(model, dataset, tail)
        if seen:
            console.warn("the model may have been trained on the documents that are scored: they are easy for it")
        return Scored(
            dataset=dataset,
            tokenizer=self.tokenizer,
            facts=facts | {"seen_in_training": seen},
            sets=[*sets, f"{stage}.max_tokens=0"],
            tail=tail,
            held_out=out / f"held_out_{json_hash(facts)[:8]}",
        )


class Mute(Console):
    """Says nothing while cells are looked at; what is worth a warning comes again when they are computed."""

    def write(self, text: str) -> None:
        """Nothing."""


def plan_model(
    sweep: str, path: Path, out: Path, choices: list[Choice], preset: str, scoring: Scoring | None, console: Console
) -> Plan:
    """Cells of quantize, compress, eval or ttt over one model file; `scoring` is None for compress alone.

    ConfigError or InputError for the first cell that cannot run.
    """
    model = load_model(path)
    kind = {"quantize": "checkpoint", "compress": "quantized"}.get(sweep, model.kind)
    if model.kind != kind:
        raise InputError(f"sweep {sweep} takes a model of kind {kind}, this one is of kind {model.kind}", str(path))
    stage = "eval" if sweep == "quantize" else sweep
    if any(f"{stage}.max_tokens" in choice for choice in choices):
        raise ConfigError(f"a sweep scores all its cells on the same {stage}.max_tokens", "--set", "use --tokens")

    def one(sets: list[str]) -> Resolved:
        if sweep in ("eval", "ttt"):
            return rescored(model, preset, sets, Mute())[1]
        return model_config(model, preset, sets)

    resolved_cells = resolve_all(choices, one)
    scored = None
    if scoring is not None:
        limit = getattr(resolved_cells[0][1].config, stage).max_tokens
        scored = scoring.find(stage, model, limit, out, console)
    inputs = {"model": model.sha256}
    if scored is not None and sweep == "quantize":
        inputs["data"] = scored.dataset.fingerprint("train")
    plan = Plan(sweep=sweep, out=out, cells=[], inputs=inputs, preset=preset, scored=scored)
    plan.cells = distinct([model_cell(plan, model, stage, choice, resolved) for choice, resolved in resolved_cells])
    if sweep == "quantize":
        share_depth(plan.cells, [compensating(resolved.config.quant) for _, resolved in resolved_cells])
    return plan


def share_depth(cells: list[Cell], wanting: list[list[Gptq]]) -> None:
    """Tell every cell with a calibration how much it is to hold: what is enough for all cells that share it."""
    depths: dict[str, Depth] = {}
    for cell, quantizers in zip(cells, wanting):
        if path := cell.task.get("hessians"):
            depths[path] = depths.get(path, Depth()) | Depth.of(quantizers)
    for cell in cells:
        if path := cell.task.get("hessians"):
            cell.task["depth"] = asdict(depths[path])


def model_cell(plan: Plan, model: ModelFile, stage: str, choice: Choice, resolved: Resolved) -> Cell:
    """One cell of `plan_model`."""
    values = resolved.values
    task: dict[str, Any] = {"model": str(model.path), "config": values}
    depends: dict[str, Any] = {}
    if plan.scored is not None:
        score = resolve(stored=values, sets=plan.scored.sets).values
        task |= {"score": score, **plan.scored.places}
        depends["score"] = score[stage]
    if plan.sweep in ("eval", "ttt"):
        depends["changed"] = changed_keys(model.stored["model"], values["model"], "model")
    else:
        depends |= {name: values[name] for name in CODE_SECTIONS}
    if plan.sweep == "quantize":
        task |= shared_files(plan, values["quant"])
    facts = {name: value for name, value in plan.scored_on.items() if name != "seen_in_training"}
    return Cell(
        settings=settings_of(choice, resolved),
        key=cell_key(plan.sweep, depends, plan.inputs | {"scored": facts}),
        task=task,
        predicted_bytes=0 if plan.sweep in ("eval", "ttt") else predict(resolved.config)[1].total_bytes,
    )


def shared_files(plan: Plan, quant: dict[str, Any]) -> dict[str, str]:
    """Files that cells have in common: calibration, if the quantizer has any or its quantizers by role do, and the
    quantized model, which does not depend on the codec.
    """
    folder = plan.out / "shared"
    by_role = [value for value in quant.values() if isinstance(value, dict)]
    calibration = {
        key: value for part in (quant, *by_role) for key, value in part.items() if key.startswith("calibration")
    }
    names = {"quantized": json_hash([plan.inputs, quant])}
    if calibration:
        names["hessians"] = json_hash([plan.inputs, calibration])
    return {name: str(folder / f"{name}_{digest[:12]}.safetensors") for name, digest in names.items()}
