"""Resumable checkpoints of a training run, written while it goes on."""

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from pgolf.core.errors import ConfigError, InputError
from pgolf.core.files import clean_parts
from pgolf.core.optim.optimizers import Optimizers
from pgolf.core.tensorfile import load_tensors, save_tensors
from pgolf.core.train.loop import TrainState
from pgolf.report.console import Console
from pgolf.stages.inputs import changed_keys
from pgolf.stages.model_files import load_checkpoint, save_checkpoint

RESUME_SCHEMA = "pgolf.resume/1"
START_OVER = "choose another --out, or give up what is there with --fresh (pgolf run: --from train)"
OTHERWISE = "the data, or the version of pgolf"
STEP_FILE = re.compile(r"^step_(\d{8})\.safetensors$")


def training_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs in the sections that decide a training run."""
    return [text for name in ("model", "optim", "train") for text in changed_keys(old[name], new[name], name)]


def copied(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors as they are at this moment, in the computer's own memory."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors}


def average_tensors(state: TrainState) -> Iterator[tuple[str, torch.Tensor]]:
    """The averages of a run by the names that resume files have for them."""
    for label, average in state.averages.items():
        for name, tensor in average.items():
            yield f"average{label and '@'}{label}.{name}", tensor


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """States of torch's generators, uint8, by the names that resume files have for them: the computer's own, and a
    device's where it has one.
    """
    found = {"rng.torch": torch.get_rng_state()}
    return found | {"rng.cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else found


def restore_generators(tensors: dict[str, Tensor], device: torch.device) -> None:
    """Put torch's generators back; that of a device is left where it is if the file was written without it."""
    torch.set_rng_state(tensors["rng.torch"])
    if device.type == "cuda" and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"], device)


class Checkpoints:
    """Resumable checkpoints in one directory: weights, and beside them optimizer and loader state. The newest pair
    that verifies is the one that counts.

    A thread writes them from a copy, which takes as much of the computer's memory as the run's own tensors do, while
    training goes on. What it could not write is raised by the next `save`, by `settle`, or at the end of the block.
    """

    def __init__(self, folder: Path, meta: dict[str, Any], key: str, keep: int, console: Console) -> None:
        self.folder, self.meta, self.key, self.keep, self.console = folder, meta, key, keep, console
        self.watched: dict[str, Any] = {}
        """What the watch over the run noted in the pair that was restored."""
        self.thread = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thread.shutdown()
        if error is None:
            self.settle()

    def paths(self, step: int) -> tuple[Path, Path]:
        """Weights and resume file of a step."""
        return self.folder / f"step_{step:08d}.safetensors", self.folder / f"step_{step:08d}.resume.safetensors"

    def steps(self) -> list[int]:
        """Steps with a weights file, newest first."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted((int(match[1]) for match in map(STEP_FILE.match, names) if match), reverse=True)

    def save(self, state: TrainState, held: dict[str, Tensor], watched: dict[str, Any]) -> None:
        """Copy everything and begin to write a pair; waits for the pair before. `held` is the optimizers' state, which
        only all ranks together have.
        """
        self.settle()
        tensors = held | generator_states(next(state.model.parameters()).device) | dict(average_tensors(state))
        facts = {
            "schema": RESUME_SCHEMA,
            "step": state.step,
            "elapsed_s": state.clock.elapsed_s,
            "looped": state.looped,
            "averaged": state.taken,
            "watched": watched,
            "key": self.key,
        }
        weights = copied(state.model.state_dict().items())
        self.writing = self.thread.submit(self.write, state.step, weights, copied(tensors.items()), facts)

    def write(self, step: int, weights: dict[str, Tensor], tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Write a pair, the weights last because they make it count, then drop old pairs."""
        place, resume = self.paths(step)
        save_tensors(resume, tensors, facts)
        save_checkpoint(place, weights, self.meta | {"step": step})
        for old in self.steps()[self.keep :]:
            self.remove(old)

    def settle(self) -> None:
        """Wait until what was saved is on the disk."""
        writing, self.writing = self.writing, None
        if writing:
            writing.result()

    def remove(self, step: int) -> None:
        """Remove a pair."""
        for path in self.paths(step):
            path.unlink(missing_ok=True)

    def restore(self, state: TrainState, optimizers: Callable[[], Optimizers]) -> int:
        """Load the newest pair that verifies into `state`; returns its step, 0 if there was nothing to resume.

        ConfigError if the checkpoints were made with another configuration or other data; InputError if there are
        checkpoints and none verifies.
        """
        problems = []
        clean_parts(self.folder)
        for step in self.steps():
            weights_path, resume_path = self.paths(step)
            try:
                model = load_checkpoint(weights_path)
                tensors, facts, _ = load_tensors(resume_path, RESUME_SCHEMA)
            except InputError as error:
                problems.append(str(error))
                self.console.warn(f"checkpoint of step {step} is not usable: {error}")
                continue
            if facts["key"] != self.key:
                changed = ", ".join(training_changes(model.stored, self.meta["config"])) or OTHERWISE
                raise ConfigError(
                    "the run in this directory was trained with another configuration or other data",
                    f"{self.folder.parent}; changed: {changed}",
                    START_OVER,
                )
            state.model.load_state_dict(model.weights)
            state.optimizers = optimizers()
            state.optimizers.load(tensors)
            restore_generators(tensors, next(state.model.parameters()).device)
            state.step = int(facts["step"])
            state.clock.spent_s = float(facts["elapsed_s"])
            state.looped, state.taken = bool(facts.get("looped", False)), int(facts.get("averaged", 0))
            for name, average in average_tensors(state):
                average.copy_(tensors[name])
            self.watched = dict(facts.get("watched", {}))
            return state.step
        if problems:
            raise InputError("no checkpoint of this run can be read", str(self.folder), START_OVER)
        return 0

    def clear(self) -> None:
        """Remove every pair."""
        for step in self.steps():
            self.remove(step)
