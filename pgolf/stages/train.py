"""train: a dataset in, a checkpoint out; resumable at any moment."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgolf.config.hazards import TRAIN, hazards
from pgolf.config.load import Resolved
from pgolf.config.run import RunConfig
from pgolf.core.dist import World, activation_dtype, pick_device, wants_compile
from pgolf.core.errors import ConfigError, InputError, SetupError, StorageError
from pgolf.core.evals.ledger import EvalWatch
from pgolf.core.files import free_bytes, make_dir
from pgolf.core.model.attend import choose_attention
from pgolf.core.model.config import param_specs
from pgolf.core.model.fused import choose_kernels
from pgolf.core.optim.optimizers import Optimizers
from pgolf.core.train.growth import Growth
from pgolf.core.train.loop import TrainState, fit, start_state, validator
from pgolf.dataset import Dataset
from pgolf.report.console import Console, ProgressLine, bar, clock
from pgolf.report.touched import touched
from pgolf.report.train_log import TrainLog
from pgolf.report.watch.stopwatch import Stopwatch, rounded
from pgolf.report.watch.track import tracking
from pgolf.stages.checkpoints import OTHERWISE, START_OVER, Checkpoints, training_changes
from pgolf.stages.manifest import fresh_entry, guarded, provenance, read_entries, record, stage_key
from pgolf.stages.memory import enough_memory
from pgolf.stages.model_files import save_checkpoint
from pgolf.stages.signals import Interrupted, StopFlag, ending
from pgolf.stages.steady_files import unchanged
from pgolf.stages.watching import RunWatch


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


@contextmanager
def own_limits(raised: bool) -> Iterator[None]:
    """Put back torch's limit on the graphs of a function, which compiled training and growing schedules raise."""
    if not raised:
        yield
        return
    limits = torch._dynamo.config
    with limits.patch(recompile_limit=limits.recompile_limit):
        yield


def planned_attention(config: RunConfig, device: torch.device) -> tuple[str, str]:
    """What will compute attention in training, and why. SetupError when what is configured is not possible here."""
    dtype = activation_dtype(config.train.precision, device)
    return choose_attention(config.model, device, dtype, config.train.attention)


def planned_kernels(config: RunConfig, device: torch.device) -> tuple[str, str]:
    """What will compute MLP and loss in training, and why. SetupError when what is configured is not possible here."""
    dtype = activation_dtype(config.train.precision, device)
    return choose_kernels(config.model, device, dtype, config.train.kernels)


def chosen_on(config: RunConfig, device: torch.device) -> dict[str, tuple[Any, str]]:
    """What training will be done with on a device, and why: compile, attention and kernels. SetupError when what is
    configured is not possible there.
    """
    return {
        "compile": choose_compile(config.train.compile, device),
        "attention": planned_attention(config, device),
        "kernels": planned_kernels(config, device),
    }


def check_sense(config: RunConfig) -> None:
    """ConfigError where lengths of model and training do not go together, or what is switched on touches nothing."""
    config.check_training()
    touched(config.model, config.optim, config.train)


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


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training run, as every rank is asked for it."""

    dataset: Dataset
    out: Path
    resolved: Resolved
    world: World
    console: Console
    fresh: bool
    """Whether what is in `out` is given up."""
    trackers: Sequence[str]
    """Are shown the events (`pgolf.report.watch.track`)."""
    now: Callable[[], float]
    """Tells every second of the run."""
    data: str
    """Fingerprint of the training data."""

    @property
    def config(self) -> RunConfig:
        """The complete configuration."""
        return self.resolved.config

    @property
    def key(self) -> str:
        """What the result depends on."""
        return train_key(self.resolved.values, self.data)


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

    SetupError when memory does not suffice, InputError when a shard changes under way.
    """
    check_sense(resolved.config)
    resolved.config.train.micro_steps(world.size)
    for text in hazards(resolved.config, (TRAIN,)) if world.leads else []:
        console.warn_once(text)
    job = Job(
        dataset=dataset,
        out=out,
        resolved=resolved,
        world=world,
        console=console,
        fresh=fresh,
        trackers=trackers,
        now=now,
        data=dataset.fingerprint("train"),
    )
    output = out / "checkpoint.safetensors"
    if not world.leads:
        return {} if world.any(False) else run_training(job)
    with guarded(output):
        entry = None if fresh else fresh_entry(output, job.key)
        if world.any(entry is not None) and entry is not None:
            return entry | {"fresh": True}
        if not fresh:
            refuse_to_overwrite(output, job.key, resolved.values)
        check_disk(out, job.config)
        return run_training(job) | {"fresh": False}


def refuse_to_overwrite(output: Path, key: str, values: dict[str, Any]) -> None:
    """ConfigError when the directory holds the finished result of another training run."""
    entry = read_entries(output.parent).get(output.name)
    if (
        isinstance(entry, dict)
        and output.is_file()
        and entry.get("key") != key
        and isinstance(entry.get("resolved"), dict)
    ):
        changed = ", ".join(training_changes(entry["resolved"], values)) or OTHERWISE
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


def run_training(job: Job) -> dict[str, Any]:
    """The body of `train`, on every rank; only the first writes."""
    config, world, stopwatch = job.config, job.world, Stopwatch(job.now)
    compiled, _ = choose_compile(config.train.compile, world.device)
    shards, (tokens, charges) = check_data(job.dataset, config), job.dataset.validation()
    made_by = provenance(str(world.device)) if world.leads else {}
    meta = {
        "config": job.resolved.values,
        "tokenizer_sha256": job.dataset.tokenizer_sha256,
        "data_sha256": job.data,
        "provenance": made_by,
    }
    folder, keep = job.out / "ckpt", config.train.keep_checkpoints
    with (
        own_limits(compiled or any(isinstance(part, Growth) for part in vars(config.train).values())),
        enough_memory("train.micro_batch_tokens"),
        Checkpoints(folder, meta, job.key, keep, job.console) as saved,
    ):
        state = begun(job, shards)
        restore(job, state, saved)
        stopwatch.carry(saved.watched.get("seconds", {}))
        validate = validator(state.model, config.train, tokens, charges, EvalWatch(world))
        event, findings, seconds = watched(job, state, saved, stopwatch, validate, compiled)
        figures = outcome(job, state, event) | {"compiled": compiled} | findings
        entry: dict[str, Any] = {"figures": figures}
        if world.leads:
            output = job.out / "checkpoint.safetensors"
            with stopwatch.during("checkpoint"):
                saved.settle()
                save_checkpoint(output, state.model.state_dict(), meta | {"step": state.step, "figures": figures})
            inputs = {"data": job.data, "tokenizer": job.dataset.tokenizer_sha256}
            phases = seconds()
            spent = rounded({"train": state.clock.elapsed_s, "total": sum(phases.values()), **phases})
            entry = record(output, "train", job.key, job.resolved.values, inputs, figures, spent, str(world.device))
        world.barrier()
    return entry


def begun(job: Job, shards: list[np.ndarray]) -> TrainState:
    """The run before its first step; what it reads is looked after."""
    config, dataset = job.config, job.dataset
    token_bytes = config.train.loss.token_table(dataset.tokenizer, dataset.vocab_size)
    state = start_state(config.model, config.train, config.optim, shards, config.train.seed, job.world, token_bytes)
    state.clock.now = job.now
    state.read = unchanged(state.read, dataset.shards["train"])
    return state


def restore(job: Job, state: TrainState, saved: Checkpoints) -> None:
    """Go on from the newest checkpoint, the same on every rank, or leave `state` at its beginning."""
    if job.fresh and job.world.leads:
        saved.clear()
    job.world.barrier()
    resumed = saved.restore(state, lambda: Optimizers(state.model, job.config.optim, job.world))
    check_agreement(resumed, job.out, job.world)
    make_dir(job.out)


def begin_log(job: Job, state: TrainState, mode: dict[str, Any]) -> TrainLog:
    """The log of the run, its first lines written; `mode` was the last one before."""
    config, place = job.config, job.world.device
    log = TrainLog(job.out, config, job.console, state.step, mode)
    compiled, attention, kernels = (f"{what} ({why})" for what, why in chosen_on(config, place).values())
    log.header(state.model, job.dataset, job.world, compiled, attention, kernels)
    if state.step:
        spent = f"{state.clock.elapsed_s:.1f} s of the budget are spent"
        job.console.line(f"train: resumed at step {state.step}, {spent}")
    return log


def watched(
    job: Job,
    state: TrainState,
    saved: Checkpoints,
    stopwatch: Stopwatch,
    validate: Callable[[], dict[str, Any]],
    compiled: bool,
) -> tuple[dict[str, Any], dict[str, Any], Callable[[], dict[str, float]]]:
    """Train to the end; returns the last event, what the watch has found, and what tells the seconds by phase.

    Interrupted, with a checkpoint written, after a signal.
    """
    config, world, leads = job.config, job.world, job.world.leads
    log, last_bpb = begin_log(job, state, saved.watched.get("mode", {})) if leads else None, 0.0
    with (
        StopFlag(ending()) as flag,
        job.console.progress() as line,
        tracking(job.trackers if leads else (), job.out, job.resolved.values, job.console.warn) as track,
    ):

        def tell(event: dict[str, Any]) -> None:
            nonlocal last_bpb
            last_bpb = event.get("val_bpb", last_bpb)
            if log:
                log.event(event)
                show(line, event, config, last_bpb)
            track(event)

        def save(current: TrainState, noted: dict[str, Any]) -> None:
            held = current.optimizers.state()
            if leads:
                saved.save(current, held, noted)

        watch = RunWatch(
            state,
            config,
            world,
            job.console,
            stopwatch,
            saved.watched,
            tell=tell,
            validate=validate,
            save=save,
            stop_asked=lambda: flag.raised > 0,
            compiled=compiled,
        )
        stopwatch.enter("warm_up")
        event = fit(state, config.train, config.optim, world, watch, compiled)
        if "val_loss" not in event:  # a signal ended it, be it in the last step
            watch.save(state)
            saved.settle()
            world.barrier()
            number = flag.raised or signal.SIGTERM
            raise Interrupted(number, f"stopped at step {state.step}; the same command goes on from there")
        return event, watch.findings, watch.seconds


def outcome(job: Job, state: TrainState, event: dict[str, Any]) -> dict[str, Any]:
    """The figures of a finished run."""
    config, place = job.config, job.world.device
    return {
        "val_loss": event["val_loss"],
        "bpb": event["val_bpb"],
        "val_tokens": event["val_tokens"],
        "steps": state.step,
        "train_seconds": round(state.clock.elapsed_s, 3),
        "stopped_by": event["reason"],
        "averaged_steps": state.taken,
        "average": event.get("average", ""),
        "withheld_losses": event.get("withheld_losses", {}),
        "attention": planned_attention(config, place)[0],
        "kernels": planned_kernels(config, place)[0],
        "world_size": job.world.size,
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "parts": touched(config.model, config.optim, config.train),
        "warnings": hazards(config, (TRAIN,)),
    }


def show(line: ProgressLine, event: dict[str, Any], config: RunConfig, last_bpb: float) -> None:
    """Redraw the live line on step events."""
    if event["event"] == "step":
        line.show(progress_text(event, config, last_bpb))
