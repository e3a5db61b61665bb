"""train: a dataset in, a checkpoint out; resumable at any moment."""

import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.config.load import Resolved
from pgolf.config.run import RunConfig
from pgolf.core.dist import World, activation_dtype, pick_device, wants_compile
from pgolf.core.errors import ConfigError, InputError, SetupError, StorageError
from pgolf.core.files import clean_parts, free_bytes, make_dir
from pgolf.core.model.attend import choose_attention
from pgolf.core.model.config import param_specs
from pgolf.core.model.fused import choose_kernels
from pgolf.core.optim.optimizers import Optimizers
from pgolf.core.tensorfile import load_tensors, save_tensors
from pgolf.core.train.loop import TrainState, fit, start_state, validator
from pgolf.dataset import Dataset
from pgolf.report.console import Console, ProgressLine, bar, clock
from pgolf.report.touched import touched
from pgolf.report.train_log import TrainLog
from pgolf.report.watch.stopwatch import Stopwatch, rounded
from pgolf.report.watch.track import tracking
from pgolf.stages.inputs import changed_keys
from pgolf.stages.manifest import fresh_entry, guarded, provenance, read_entries, record, stage_key
from pgolf.stages.model_files import load_checkpoint, save_checkpoint
from pgolf.stages.signals import Interrupted, StopFlag
from pgolf.stages.watching import RunWatch

RESUME_SCHEMA = "pgolf.resume/1"
START_OVER = "choose another --out, or give up what is there with --fresh (pgolf run: --from train)"
STEP_FILE = re.compile(r"^step_(\d{8})\.safetensors$")


def choose_compile(mode: str, device: torch.device) -> tuple[bool, str]:
    """Whether to compile, and why. SetupError when `on` is not possible here."""
    import importlib.util
    import shutil

    compiler = any(map(shutil.which, ("g++", "clang++")))
    able = importlib.util.find_spec("triton") is not None if device.type == "cuda" else compiler
    if mode == "on" and not able:
        missing = "triton" if device.type == "cuda" else "a C++ compiler (g++ or clang++)"
        raise SetupError(
            f"torch.compile needs {missing}, which is not installed",
            "train.compile=on",
            "install it, or set train.compile=off",
        )
    chosen = wants_compile(mode, device) and able
    if mode != "auto":
        return chosen, f"{mode}: as configured"
    if device.type != "cuda":
        return chosen, "auto: off on a CPU"
    return chosen, "auto: a GPU with triton" if able else "auto: off, triton is missing"


def planned_attention(config: RunConfig, device: torch.device) -> tuple[str, str]:
    """What will compute attention in training, and why. SetupError when what is configured is not possible here."""
    dtype = activation_dtype(config.train.precision, device)
    return choose_attention(config.model, device, dtype, config.train.attention)


def planned_kernels(config: RunConfig, device: torch.device) -> tuple[str, str]:
    """What will compute MLP and loss in training, and why. SetupError when what is configured is not possible here."""
    dtype = activation_dtype(config.train.precision, device)
    return choose_kernels(config.model, device, dtype, config.train.kernels)


def check_gpu(config: RunConfig, device_name: str) -> None:
    """SetupError when a configuration made for GPUs would land on a CPU without anybody having asked for that."""
    if config.train.needs_gpu and device_name == "auto" and pick_device(device_name, 0).type == "cpu":
        raise SetupError(
            "this configuration is meant for a GPU and there is none",
            "train.needs_gpu",
            "add --device cpu to train slowly",
        )


def train_key(config: dict[str, Any], data: str) -> str:
    """What a training run depends on: its sections and the data."""
    sections = {name: config[name] for name in ("model", "optim", "train")}
    volatile = ("checkpoint_every", "keep_checkpoints", "log_every", "max_loss_rise", "needs_gpu", "prefetch")
    sections["train"] = {key: value for key, value in sections["train"].items() if key not in volatile}
    return stage_key("train", sections, {"data": data})


def training_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs in the sections that decide a training run."""
    return [text for name in ("model", "optim", "train") for text in changed_keys(old[name], new[name], name)]


def average_tensors(state: TrainState) -> Iterator[tuple[str, torch.Tensor]]:
    """The averages of a run by the names that resume files have for them."""
    for label, average in state.averages.items():
        for name, tensor in average.items():
            yield f"average{label and '@'}{label}.{name}", tensor


class Checkpoints:
    """Resumable checkpoints in one directory: weights, and beside them optimizer and loader state. The newest pair
    that verifies is the one that counts.
    """

    def __init__(self, folder: Path, meta: dict[str, Any], key: str, keep: int, console: Console) -> None:
        self.folder, self.meta, self.key, self.keep, self.console = folder, meta, key, keep, console
        self.watched: dict[str, Any] = {}
        """What the watch over the run noted in the pair that was restored."""

    def paths(self, step: int) -> tuple[Path, Path]:
        """Weights and resume file of a step."""
        return self.folder / f"step_{step:08d}.safetensors", self.folder / f"step_{step:08d}.resume.safetensors"

    def steps(self) -> list[int]:
        """Steps with a weights file, newest first."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted((int(match[1]) for match in map(STEP_FILE.match, names) if match), reverse=True)

    def save(self, state: TrainState, held: dict[str, Tensor], watched: dict[str, Any]) -> None:
        """Write a pair, the weights last because they make it count, then drop old pairs. `held` is the optimizers'
        state, which only all ranks together have.
        """
        weights, resume = self.paths(state.step)
        tensors = held | {"rng.torch": torch.get_rng_state()}
        tensors |= dict(average_tensors(state))
        elapsed = state.clock.elapsed_s
        facts = {
            "schema": RESUME_SCHEMA,
            "step": state.step,
            "elapsed_s": elapsed,
            "looped": state.looped,
            "averaged": state.taken,
            "watched": watched,
            "key": self.key,
        }
        save_tensors(resume, tensors, facts)
        save_checkpoint(weights, state.model.state_dict(), self.meta | {"step": state.step})
        for step in self.steps()[self.keep :]:
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
                changed = ", ".join(training_changes(model.stored, self.meta["config"])) or "the data"
                raise ConfigError(
                    "the run in this directory was trained with another configuration or other data",
                    f"{self.folder.parent}; changed: {changed}",
                    START_OVER,
                )
            state.model.load_state_dict(model.weights)
            state.optimizers = optimizers()
            state.optimizers.load(tensors)
            torch.set_rng_state(tensors["rng.torch"])
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
            for path in self.paths(step):
                path.unlink(missing_ok=True)


def check_data(dataset: Dataset, config: RunConfig) -> list[np.ndarray]:
    """The training shards. InputError or ConfigError when data and configuration do not fit."""
    if config.model.vocab_size < dataset.vocab_size:
        raise ConfigError(
            f"the tokenizer has {dataset.vocab_size} ids, the model only {config.model.vocab_size}",
            "model.vocab_size",
            f"set model.vocab_size={dataset.vocab_size}",
        )
    shards = dataset.split("train")
    total = sum(len(ids) for ids in shards)
    if total <= config.train.batch_tokens:
        raise InputError(
            f"the training split has {total:,} tokens, one batch needs {config.train.batch_tokens + 1:,}",
            str(dataset.folder),
            "lower train.batch_tokens",
        )
    return shards


def check_disk(out: Path, config: RunConfig) -> None:
    """StorageError when the checkpoints of this run would not fit on the disk."""
    one = sum(spec.numel for spec in param_specs(config.model)) * 4 * (3 + config.train.average.copies)
    needed = one * (config.train.keep_checkpoints + 1) + (1 << 20)
    if (free := free_bytes(out)) < needed:
        raise StorageError(
            f"checkpoints need {needed:,} bytes, {free:,} are free", str(out), "free some space or choose another --out"
        )


def progress_text(event: dict[str, Any], config: RunConfig, last_bpb: float) -> str:
    """The live line: step, share of the budget, ETA, speed, loss, last BPB."""
    options, elapsed = config.train, event["elapsed_s"]
    by_steps = event["step"] / options.iterations
    share = max(by_steps, elapsed / options.budget_s) if options.budget_s else by_steps
    left = elapsed / max(share, 1e-9) - elapsed
    bpb = f" · BPB {last_bpb:.4f}" if last_bpb else ""
    place = f"train {bar(share)} {share:4.0%} step {event['step']}/{options.iterations} · ETA {clock(left)}"
    return f"{place} · {event['tokens_per_s']:,.0f} tok/s · loss {event['loss']:.4f}{bpb}"


def train(
    dataset: Dataset,
    out: Path,
    resolved: Resolved,
    world: World,
    console: Console,
    fresh: bool = False,
    trackers: Sequence[str] = (),
    now: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Train, or go on training, into `out`; returns the manifest entry with "fresh" set when nothing had to be done.
    `trackers` are shown the events (`pgolf.report.watch.track`); every second of the run is told by `now`.
    """
    config, values = resolved.config, resolved.values
    config.train.micro_steps(world.size)
    data = dataset.fingerprint("train")
    key = train_key(values, data)
    output = out / "checkpoint.safetensors"
    if not world.leads:
        if world.any(False):
            return {}
        return run_training(dataset, out, config, values, key, data, world, console, fresh, trackers, now)
    with guarded(output):
        entry = None if fresh else fresh_entry(output, key)
        if world.any(entry is not None) and entry is not None:
            return entry | {"fresh": True}
        if not fresh:
            refuse_to_overwrite(output, key, values)
        check_disk(out, config)
        made = run_training(dataset, out, config, values, key, data, world, console, fresh, trackers, now)
        return made | {"fresh": False}


def refuse_to_overwrite(output: Path, key: str, values: dict[str, Any]) -> None:
    """ConfigError when the directory holds the finished result of another training run."""
    entry = read_entries(output.parent).get(output.name)
    if (
        isinstance(entry, dict)
        and output.is_file()
        and entry.get("key") != key
        and isinstance(entry.get("resolved"), dict)
    ):
        changed = ", ".join(training_changes(entry["resolved"], values)) or "the data"
        what = "the run in this directory was trained with another configuration or other data"
        raise ConfigError(what, f"{output.parent}; changed: {changed}", START_OVER)


def finished(dataset: Dataset, out: Path, resolved: Resolved) -> dict[str, Any] | None:
    """The manifest entry, with "fresh" set, of a directory where this training is done already."""
    entry = fresh_entry(out / "checkpoint.safetensors", train_key(resolved.values, dataset.fingerprint("train")))
    return entry and entry | {"fresh": True}


def check_agreement(resumed: int, out: Path, world: World) -> None:
    """InputError on every rank when they would not all go on from the step that this one has found."""
    found = world.sum_(torch.tensor([resumed, resumed**2], dtype=torch.float64, device=world.device)).tolist()
    if found[0] ** 2 != found[1] * world.size:
        raise InputError(
            f"the ranks see different checkpoints; this one that of step {resumed}",
            str(out),
            "choose an --out on storage that all nodes share",
        )


def run_training(
    dataset: Dataset,
    out: Path,
    config: RunConfig,
    values: dict[str, Any],
    key: str,
    data: str,
    world: World,
    console: Console,
    fresh: bool,
    trackers: Sequence[str],
    now: Callable[[], float],
) -> dict[str, Any]:
    """The body of `train`, on every rank; only the first writes."""
    stopwatch = Stopwatch(now)
    compiled, why = choose_compile(config.train.compile, world.device)
    attention, attention_why = planned_attention(config, world.device)
    kernels, kernels_why = planned_kernels(config, world.device)
    parts = touched(config.model, config.optim)
    shards, (tokens, charges) = check_data(dataset, config), dataset.validation()
    token_bytes = config.train.loss.token_table(dataset.tokenizer, dataset.vocab_size)
    state = start_state(config.model, config.train, config.optim, shards, config.train.seed, world, token_bytes)
    state.clock.now = now
    model = state.model
    made_by = provenance(str(world.device)) if world.leads else {}
    meta = {"config": values, "tokenizer_sha256": dataset.tokenizer_sha256, "data_sha256": data, "provenance": made_by}
    checkpoints = Checkpoints(out / "ckpt", meta, key, config.train.keep_checkpoints, console)
    if fresh and world.leads:
        checkpoints.clear()
    world.barrier()
    resumed = checkpoints.restore(state, lambda: Optimizers(model, config.optim, world))
    stopwatch.carry(checkpoints.watched.get("seconds", {}))
    check_agreement(resumed, out, world)
    make_dir(out)
    log = TrainLog(out, config, console, resumed) if world.leads else None
    if log:
        log.header(
            model,
            dataset,
            world,
            f"{compiled} ({why})",
            f"{attention} ({attention_why})",
            f"{kernels} ({kernels_why})",
        )
        if resumed:
            console.line(f"train: resumed at step {resumed}, {state.clock.elapsed_s:.1f} s of the budget are spent")
    last_bpb = 0.0
    with (
        StopFlag((signal.SIGINT, signal.SIGTERM)) as flag,
        console.progress() as line,
        tracking(trackers if world.leads else (), out, values, console.warn) as track,
    ):

        def tell(event: dict[str, Any]) -> None:
            nonlocal last_bpb
            last_bpb = event.get("val_bpb", last_bpb)
            if log:
                log.event(event)
                show(line, event, config, last_bpb)
            track(event)

        def save(current: TrainState, watched: dict[str, Any]) -> None:
            held = current.optimizers.state()
            if world.leads:
                checkpoints.save(current, held, watched)
            world.barrier()

        validate = validator(model, config.train, tokens, charges)
        watch = RunWatch(
            state,
            config,
            world,
            console,
            stopwatch,
            checkpoints.watched,
            tell=tell,
            validate=validate,
            save=save,
            stop_asked=lambda: flag.raised > 0,
            compiled=compiled,
        )
        stopwatch.enter("warm_up")
        event = fit(state, config.train, config.optim, world, watch, compiled)
        if event["reason"] == "signal":
            watch.save(state)
            number = flag.raised or signal.SIGTERM
            raise Interrupted(number, f"stopped at step {state.step}; the same command goes on from there")
    figures = {
        "val_loss": event["val_loss"],
        "bpb": event["val_bpb"],
        "val_tokens": event["val_tokens"],
        "steps": state.step,
    }
    figures |= {
        "train_seconds": round(state.clock.elapsed_s, 3),
        "stopped_by": event["reason"],
        "averaged_steps": state.taken,
        "average": event.get("average", ""),
        "withheld_losses": event.get("withheld_losses", {}),
        "compiled": compiled,
        "attention": attention,
        "kernels": kernels,
        "world_size": world.size,
    }
    figures |= {"parameters": sum(p.numel() for p in model.parameters()), "parts": parts, **watch.findings}
    entry: dict[str, Any] = {"figures": figures}
    if world.leads:
        with stopwatch.during("checkpoint"):
            save_checkpoint(
                out / "checkpoint.safetensors", model.state_dict(), meta | {"step": state.step, "figures": figures}
            )
        phases = watch.seconds()
        seconds = rounded({"train": state.clock.elapsed_s, "total": sum(phases.values()), **phases})
        entry = record(
            out / "checkpoint.safetensors",
            "train",
            key,
            values,
            {"data": data, "tokenizer": dataset.tokenizer_sha256},
            figures,
            seconds,
            str(world.device),
        )
    world.barrier()
    return entry


def show(line: ProgressLine, event: dict[str, Any], config: RunConfig, last_bpb: float) -> None:
    """Redraw the live line on step events."""
    if event["event"] == "step":
        line.show(progress_text(event, config, last_bpb))
