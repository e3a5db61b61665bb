"""pgolf's own watch over a training run: where the time goes, what a step is like, and whether all is well."""

import math
import resource
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor

from pgolf.config.run import RunConfig
from pgolf.core.dist import World
from pgolf.core.errors import ConfigError, RuleError
from pgolf.core.model.config import param_specs
from pgolf.core.model.params import HEAD, MATRIX, SCALAR, TOKEN
from pgolf.core.optim.schedules import Progress
from pgolf.core.train.average import Swa
from pgolf.core.train.loop import TrainState, Watch
from pgolf.report.console import Console
from pgolf.report.watch.flops import peak_flops, training_flops
from pgolf.report.watch.health import LOOK_STEPS, Divergence, Unread, culprit, group_norms, not_finite
from pgolf.report.watch.neighbours import Probe, ask, in_words, others_on
from pgolf.report.watch.pace import QUEUED_STEPS, Pace, shortfall, tokens_planned
from pgolf.report.watch.recompiles import Recompiles
from pgolf.report.watch.stopwatch import StepMarks, Stopwatch, rounded

FEW_STEPS = 5
"""A budget that ends training before so many steps is remarked upon."""
NO_PROBE = "whether other processes are on the GPU is unknown: neither pynvml nor nvidia-smi says"


def peak_memory(device: torch.device) -> int:
    """The most bytes in use so far: torch's on a GPU, the whole process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def cut_short(config: RunConfig, steps: int) -> list[str]:
    """Remarks on a run that its budget has ended after so many steps."""
    train, notes = config.train, []
    if steps < FEW_STEPS:
        notes.append(
            f"the budget of {train.budget_s:g} s was over after step {steps}: raise train.max_wallclock_seconds"
        )
    warm = getattr(config.optim.matrix, "momentum_warmup_steps", 0)
    if steps < warm <= train.iterations:
        notes.append(
            f"the budget was over after step {steps}, before momentum had risen to its value "
            f"(optim.matrix.momentum_warmup_steps={warm})"
        )
    return notes


def device_mark() -> Any:
    """A CUDA event, recorded."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


class RunWatch(Watch):
    """Times the phases of a run and measures its logged steps, passes every event on to `tell`, keeps what is not
    finite out of checkpoints, counts recompilations and looks for strangers on the GPU.

    `before` is what `document` gave when the checkpoint was written from which the run goes on.
    """

    def __init__(
        self,
        state: TrainState,
        config: RunConfig,
        world: World,
        console: Console,
        stopwatch: Stopwatch,
        before: dict[str, Any],
        tell: Callable[[dict[str, Any]], None],
        validate: Callable[[], dict[str, Any]],
        save: Callable[[TrainState, dict[str, Any]], None],
        stop_asked: Callable[[], bool],
        compiled: bool,
        probe: Probe = ask,
    ) -> None:
        super().__init__(self.on_event, self.on_validation, self.on_save, stop_asked)
        self.state, self.config, self.world, self.console = state, config, world, console
        self.tell, self.measure, self.write, self.probe = tell, validate, save, probe
        self.stopwatch = stopwatch
        self.marks = StepMarks(device_mark) if world.device.type == "cuda" else None
        self.recompiles = Recompiles() if compiled else None
        self.recompiled: int = before.get("recompiles", 0)
        self.strangers: list[dict[str, Any]] = list(before.get("strangers", []))
        self.mode: dict[str, Any] = before.get("mode", {})
        elapsed = state.clock.elapsed_s
        planned, alone = before.get("planned_tokens", 0.0), self.marks and world.size == 1
        self.pace = Pace(config.train.batch_tokens, state.step, elapsed, planned, QUEUED_STEPS if alone else 1)
        self.divergence = Divergence(config.train.max_loss_rise)
        named = dict(state.model.named_parameters())
        # On a CPU every loss is read at once, but what was wrong with it one rank alone may know.
        self.unread = Unread(named.items(), world) if self.marks or world.size > 1 else None
        self.groups: dict[str, list[Tensor]] = {}
        for spec in param_specs(config.model):
            self.groups.setdefault(spec.group, []).append(named[spec.name])
        peak = peak_flops(torch.cuda.get_device_name(world.device)) if self.marks else None
        self.peak = peak * world.size if peak else None
        self.warm, self.rehearsed = False, 0
        self.sampling = state.taken > 0 or not isinstance(config.train.average, Swa)
        self.warm_up_at: list[float] = []
        self.memory: dict[str, Tensor] = {}
        if state.step and compiled and config.train.warmup_steps:
            self.memory = {name: tensor.clone() for name, tensor in state.optimizers.state().items()}
        self.norms: dict[str, float] = {}
        self.suspect = ""
        self.findings: dict[str, Any] = {}
        """Of the end, for the manifest."""
        self.last = state.step, elapsed, dict[str, float]()

    # What the loop tells

    def warmed(self, state: TrainState) -> None:
        """A run that goes on has its optimizer's memory back; from here on phases are those of steps. ConfigError for a
        budget in which the warm-up would not have had time.
        """
        self.check_budget()
        if self.memory:
            state.optimizers.load(self.memory)
            self.memory = {}
        self.interrupted()
        self.look_around("start")
        self.stopwatch.enter("training" if self.marks else "other")
        self.last = state.step, state.clock.elapsed_s, self.stopwatch.seconds()
        self.warm = True

    def phase(self, name: str) -> None:
        """Time it, by the device's clock where there is one. The last of a step ends it for the host, which waits for
        no device to say so.
        """
        if name == "other":
            self.step_ended()
        self.look_for_samples()
        if self.warm and self.marks:
            self.marks.add(name)
        elif self.warm:
            self.stopwatch.enter(name)

    def step_ended(self) -> None:
        """A step has passed: to keep the pace by, or one of warm-up."""
        if self.warm:
            self.pace.passed(self.state.step + 1, self.state.clock.elapsed_s)
            return
        self.rehearsed += 1
        of = max(self.config.train.warmup_steps, 1)
        self.tell({"event": "warmup_step", **self.place(), "number": (self.rehearsed - 1) % of + 1, "of": of})

    def gradients(self, state: TrainState, loss: Tensor) -> None:
        """Measure the gradients of logged steps; on a loss that is not finite find out whose fault it is. A GPU is not
        waited for in every step.
        """
        step = state.step + 1
        shown = self.config.train.shown(step)
        if not self.warm:
            if self.marks:
                torch.cuda.synchronize()
            self.warm_up_at.append(self.stopwatch.now())
            return
        if self.unread:
            self.unread.note(step, loss)
            if len(self.unread.losses) >= LOOK_STEPS:
                self.look()
        if not (shown or self.world.device.type == "cpu"):
            return
        if self.marks:
            self.marks.add("logging")
        with self.stopwatch.during("logging"):
            self.norms = group_norms(self.groups) if shown else {}
            sound = all(map(math.isfinite, (float(loss), *self.norms.values())))
            self.suspect = "" if sound else self.suspect or culprit(state.model.named_parameters())

    def failed(self, state: TrainState, loss: float) -> None:
        """RuleError with the first tensor that is not finite."""
        self.look()
        self.end(f"the loss is {loss}: {self.suspect or culprit(state.model.named_parameters())}")

    # What the loop asks

    def on_validation(self) -> dict[str, Any]:
        """Validate, and say how long it took."""
        self.look()
        self.look_for_recompiles()
        with self.stopwatch.during("validation"):
            began = self.stopwatch.now()
            found = self.measure()
            spent = self.stopwatch.now() - began
        self.interrupted()
        return found | {"eval_s": round(spent, 6)}

    def on_save(self, state: TrainState) -> None:
        """Write a checkpoint. RuleError, and no checkpoint, if a weight or an optimizer's memory is not finite."""
        self.look()
        self.look_for_recompiles()
        with self.stopwatch.during("checkpoint"):
            tensors = (*state.model.named_parameters(), *state.optimizers.state().items())
            name = not_finite(tensors)
            if self.world.any(bool(name)):
                self.end(f"no checkpoint was written: {name or 'a tensor of another rank'} is not finite")
            self.write(state, self.document())
        self.interrupted()

    def on_event(self, event: dict[str, Any]) -> None:
        """Add what is known of a logged step or of the end, tell it, and look whether all is well."""
        self.pace.event(event)
        if event["event"] == "step" and self.unread:
            self.unread.losses.pop(event["step"], None)
            self.look()
        self.look_for_samples()
        if event["event"] == "step" and event["shown"]:
            event = event | self.measured(event)
        elif event["event"] == "mode":
            event = self.mode = event | self.scheduled(event)
        with self.stopwatch.during("logging"):
            if event["event"] == "stop":
                self.findings = self.summary(event["reason"])
                event = event | self.findings | {"seconds": rounded(self.seconds())}
            self.tell(event)
            self.look_for_recompiles()
        if event["event"] == "step":
            self.judge(event["step"], event["loss"])

    # What it finds

    def check_budget(self) -> None:
        """ConfigError when fewer steps than those of the warm-up fit into the budget, at the speed of its fastest; the
        others may have been compiled, and two do not tell.
        """
        train, at = self.config.train, self.warm_up_at
        if train.warmup_steps < 3 or len(at) < 3:
            return
        fastest = self.world.largest(min(after - before for before, after in pairwise(at)))[0]
        if 0 < train.budget_s < train.warmup_steps * fastest:
            raise ConfigError(
                f"a budget of {train.budget_s:g} s is shorter than the warm-up: {train.warmup_steps} steps of "
                f"{fastest:.3g} s, compilation not counted",
                "train.max_wallclock_seconds",
                "raise it, or lower train.warmup_steps",
            )

    def place(self) -> dict[str, Any]:
        """Where the run stands, as fields of an event."""
        return {"step": self.state.step, "elapsed_s": self.state.clock.elapsed_s}

    def look(self) -> None:
        """Read what a GPU has computed since the last look. RuleError for a loss that is no number or has run away."""
        for step, loss in self.unread.read().items() if self.unread else ():
            if self.unread and not math.isfinite(loss):
                self.end(f"the loss is {loss}: {self.unread.culprit(step)}", step)
            self.judge(step, loss)

    def judge(self, step: int, loss: float) -> None:
        """RuleError when the loss has run away."""
        if wrong := self.divergence.verdict(step, loss):
            self.end(wrong, step)

    def end(self, wrong: str, step: int | None = None) -> NoReturn:
        """Tell that the run has failed, at a step before this one if that is named. RuleError."""
        place = self.place() if step is None else self.place() | {"step": step}
        self.tell({"event": "failed", **place, "reason": wrong})
        raise RuleError(
            f"{wrong}, at step {place['step']}", "train", "the last checkpoint is kept; lower the learning rates"
        )

    def interrupted(self) -> None:
        """Something that is no part of a step has happened."""
        if self.marks:
            self.marks.interrupted()
        if self.recompiles:
            self.recompiles.news()

    def measured(self, event: dict[str, Any]) -> dict[str, Any]:
        """More about a logged step: rates and gradient norms by group, peak memory, seconds by phase, and MFU."""
        optim, scale = self.config.optim, event["lr_scale"]
        wide = optim.width_rule.width_factor
        rates = {MATRIX: optim.matrix.lr, TOKEN: optim.token_lr, SCALAR: optim.scalar_lr, HEAD: optim.head_lr}  # type: ignore[attr-defined]
        step, elapsed, spent = self.last
        now = self.stopwatch.seconds()
        self.last = event["step"], event["elapsed_s"], now
        steps, seconds = event["step"] - step, event["elapsed_s"] - elapsed
        found: dict[str, Any] = {
            "lr": {group: rates[group] * scale * wide(group, self.config.model.model_dim) for group in self.groups},
            "grad_norms": {group: norm if math.isfinite(norm) else None for group, norm in self.norms.items()},
            "memory_bytes": peak_memory(self.world.device),
        }
        if self.marks:
            found["phase_s"] = rounded(self.marks.read())
        else:
            phases = ("data", "forward_backward", "communication", "optimizer")
            found["phase_s"] = rounded({name: (now.get(name, 0) - spent.get(name, 0)) / steps for name in phases})
        if self.peak and seconds > 0:
            train = self.config.train
            length = self.state.model.row_length or train.seq_len
            flops = training_flops(self.config.model, length, self.state.model.looping)
            found["mfu"] = round(flops * steps * train.batch_tokens / seconds / self.peak, 4)
        return found

    def scheduled(self, event: dict[str, Any]) -> dict[str, Any]:
        """More about a change of mode: the share of the run that has passed, and the multiplier of the rates."""
        train = self.config.train
        now = Progress(event["step"], train.iterations, event["elapsed_s"], train.budget_s)
        return {"fraction": now.fraction, "lr_scale": self.config.optim.warmdown.scale(now)}

    def look_for_samples(self) -> None:
        """Tell when the first weights count in a mean over the end of the run."""
        if self.state.taken and not self.sampling:
            self.sampling = True
            self.tell({"event": "swa", **self.place()})

    def look_for_recompiles(self) -> None:
        """Tell and warn of what was compiled while the clock ran."""
        for found in self.recompiles.news() if self.recompiles and self.warm else []:
            self.recompiled += 1
            self.tell({"event": "recompile", **self.place(), **found})
            self.console.warn(f"compiled {found['function']} again by step {self.state.step}: {found['reason']}")

    def look_around(self, when: str) -> None:
        """List strangers on the GPU."""
        if self.world.device.type != "cuda":
            return
        others = others_on(self.world, self.probe)
        self.tell({"event": "neighbours", **self.place(), "when": when, "others": others})
        if others is None:
            self.console.line(NO_PROBE)
        known = {one["pid"] for one in self.strangers}
        self.strangers += [one for one in others or [] if one["pid"] not in known]

    def seconds(self) -> dict[str, float]:
        """Seconds by phase; on a GPU those of training are divided as they were in the logged steps."""
        found = self.stopwatch.seconds()
        if self.marks and (split := self.marks.split(found.get("training", 0.0))):
            del found["training"]
            for phase, spent in split.items():
                found[phase] = found.get(phase, 0.0) + spent
        return found

    def document(self) -> dict[str, Any]:
        """What a run that goes on from here has to know."""
        return {
            "seconds": self.seconds(),
            "planned_tokens": self.pace.planned(),
            "recompiles": self.recompiled,
            "strangers": self.strangers,
            "mode": self.mode,
        }

    def summary(self, reason: str) -> dict[str, Any]:
        """Tokens seen and planned, recompilations and remarks, at the end."""
        self.look_around("end")
        seen = self.state.step * self.config.train.batch_tokens
        planned = tokens_planned(self.pace, reason, self.config.train.iterations)
        notes = shortfall(seen, planned) if reason != "signal" else []
        if self.config.train.average.copies and not self.state.taken:
            notes.append("train.average never began: the last weights were exported")
        if reason == "wallclock_cap":
            notes += cut_short(self.config, self.state.step)
        if self.strangers:
            notes.append(f"not alone on the GPU: {in_words(self.strangers)}")
        return {
            "tokens_seen": seen,
            "tokens_planned": planned,
            "recompiles": self.recompiled,
            "notes": notes,
        }
