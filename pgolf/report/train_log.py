"""events.jsonl and train.log of a run: one for programs, the other with the lines reviewers grep for."""

import json
from pathlib import Path
from typing import Any

import torch

from pgolf.catalog import name_of
from pgolf.config.run import RunConfig
from pgolf.config.tree import flatten, to_values
from pgolf.core.dist import World
from pgolf.core.files import append_text, cut_half_line, write_bytes
from pgolf.core.model.config import layer_plan, model_parts
from pgolf.core.model.gpt import GPT
from pgolf.core.model.parts.window import PatternWindow, SlidingWindow
from pgolf.core.model.parts.xsa import Xsa
from pgolf.core.train import qat
from pgolf.dataset import Dataset
from pgolf.report.console import Console
from pgolf.report.touched import touched
from pgolf.report.watch.neighbours import in_words
from pgolf.stages.manifest import package_versions


def standing_lines(config: RunConfig) -> list[str]:
    """What the challenge's scripts say of a configuration before the first step."""
    train, count, lines = config.train, config.model.num_layers, []
    for part in model_parts(config.model).values():
        if isinstance(part, Xsa):
            layers = list(part.layers(count))
            lines.append(f"XSA:last_{len(layers)} active_layers:{layers}")
        elif isinstance(part, SlidingWindow | PatternWindow):
            lines.append(f"sliding_window_attn:layers={list(part.layers(count))} window={part.tokens}")
    if train.budget_s and train.reserve_seconds:
        lines.append(f"gptq:reserving {train.reserve_seconds:g}s, effective={1000 * train.budget_s:.0f}ms")
    return lines


def quantizes(parts: list[str]) -> bool:
    """Whether one of these is quantization-aware training."""
    return not vars(qat).keys().isdisjoint(parts)


class TrainLog:
    """Writes events as they happen; a resumed run appends, a new one starts empty files. `mode` is the last event of
    that kind before the step from which a run goes on: what was on then is no news.
    """

    def __init__(self, folder: Path, config: RunConfig, console: Console, resumed: int, mode: dict[str, Any]) -> None:
        self.events, self.log = folder / "events.jsonl", folder / "train.log"
        self.config, self.console = config, console
        self.looping, self.changed = mode.get("looping", False), bool(mode.get("parts") or mode.get("length"))
        self.quantizing = quantizes(mode.get("parts", []))
        if not resumed:
            start = {"event": "start", "schema": "pgolf.events/1", "config": to_values(config)}
            write_bytes(self.events, json.dumps(start).encode() + b"\n")
            write_bytes(self.log, b"")
        else:
            cut_half_line(self.events)
            cut_half_line(self.log)

    def text(self, line: str) -> None:
        """One line of train.log, shown on the console too."""
        append_text(self.log, line + "\n")
        self.console.line(line)

    def header(self, model: GPT, dataset: Dataset, world: World, compiled: str, attention: str, kernels: str) -> None:
        """Hyperparameters, data and environment, and what was chosen for it."""
        append_text(
            self.log,
            "Hyperparameters:\n"
            + "".join(f"  {key}: {value}\n" for key, value in sorted(flatten(to_values(self.config)).items())),
        )
        versions = " ".join(f"{name} {number}" for name, number in package_versions().items())
        append_text(self.log, f"versions: {versions}\n")
        self.text(f"train_shards: {len(dataset.shards['train'])}")
        self.text(f"val_tokens: {sum(map(len, dataset.split('val'))) - 1}")
        self.text(f"model_params:{sum(p.numel() for p in model.parameters())}")
        parts = touched(model.config, self.config.optim, self.config.train)
        append_text(self.log, "".join(f"part {part}: {text}\n" for part, text in parts.items()))
        self.text(
            f"world_size:{world.size} device:{world.device} compile:{compiled} attention:{attention} "
            f"kernels:{kernels} seed:{self.config.train.seed}"
        )
        for line in standing_lines(self.config):
            self.text(line)

    def event(self, event: dict[str, Any]) -> None:
        """Record an event; steps and validations become lines in the form of the challenge's scripts."""
        append_text(self.events, json.dumps(event) + "\n")
        ms, total = event["elapsed_s"] * 1000, self.config.train.iterations
        head = f"{event['step']}/{total}"
        average = f"step_avg:{ms / max(event['step'], 1):.2f}ms"
        times = f"train_time:{ms:.0f}ms {average}"
        if event["event"] == "step" and event["shown"]:
            speed = f"train_time: {ms / 60_000:.1f}m tok/s: {event['tokens_per_s']:.0f}"
            self.text(f"{head} train_loss: {event['loss']:.4f} {speed} {average}")
        elif event["event"] == "val":
            self.text(f"{head} val_loss: {event['val_loss']:.4f} val_bpb: {event['val_bpb']:.4f} {times}")
        elif event["event"] == "average":
            kind = name_of("Average", type(self.config.train.average))
            label = "ema" if kind == "emas" else kind
            chosen = f" decay:{event['average']}" if "average" in event else ""
            self.text(f"{label}:applying {label.upper()} weights")
            self.text(f"{head} average:{kind}{chosen} averaged_steps:{event['taken']}")
            found = f"val_loss:{event['val_loss']:.8f} val_bpb:{event['val_bpb']:.8f}"
            self.text(f"pre-quantization post-{label} {found} eval_time:{1000 * event['eval_s']:.0f}ms")
        elif event["event"] == "warmup_step":
            self.text(f"warmup_step: {event['number']}/{event['of']}")
        elif event["event"] == "swa":
            self.text(f"swa:start step:{event['step']}")
        elif event["event"] == "mode":
            if event["looping"] and not self.looping:
                order = [step.layer for step in layer_plan(self.config.model)]
                halves = f"encoder:{order[: len(order) // 2]} decoder:{order[len(order) // 2 :]}"
                self.text(f"layer_loop:enabled step:{event['step']} frac:{event['fraction']:.3f} {halves}")
            quantizing = quantizes(event["parts"])
            if quantizing and not self.quantizing:
                self.text(f"late_qat:enabled step:{event['step']} scale:{event['lr_scale']:.4f}")
            if event["parts"] or event["length"] or self.changed:
                acting = ",".join(event["parts"]) or "none"
                self.text(f"{head} training_parts:{acting} row_tokens:{event['length'] or 'all'} {times}")
            self.looping, self.changed = event["looping"], bool(event["parts"] or event["length"])
            self.quantizing = quantizing
        elif event["event"] == "failed":
            self.text(f"failed: {event['reason']} step:{event['step']}/{total} train_time:{ms:.0f}ms")
        elif event["event"] == "recompile":
            self.text(f"{head} compiled again: {event['function']}: {event['reason']}")
        elif event["event"] == "neighbours" and event["others"] is not None:
            self.text(f"{head} other processes on the GPU: {in_words(event['others']) or 'none'}")
        elif event["event"] == "stop":
            if event["reason"] == "wallclock_cap":
                self.text(f"stopping_early: wallclock_cap train_time:{ms:.0f}ms step:{event['step']}/{total}")
            if torch.cuda.is_available():
                used, kept = torch.cuda.max_memory_allocated() >> 20, torch.cuda.max_memory_reserved() >> 20
                self.text(f"peak memory allocated: {used} MiB reserved: {kept} MiB")
            spent = " ".join(f"{phase}:{seconds:.1f}s" for phase, seconds in event["seconds"].items())
            self.text(f"tokens seen:{event['tokens_seen']} planned:{event['tokens_planned']} time {spent}")
