"""Watching a training run end to end: ledger, events, notes, trackers, recompilations, bad losses, pgolf plot."""

import csv
import functools
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import tensor_hash
from pretended_gpu import CUDA, pretended_gpu

from pgolf.config.load import resolve
from pgolf.core.dist import World
from pgolf.core.errors import ConfigError, RuleError
from pgolf.core.train.loop import fit, start_state
from pgolf.dataset import open_dataset
from pgolf.report.console import Console
from pgolf.report.watch.flops import training_flops
from pgolf.report.watch.stopwatch import Stopwatch
from pgolf.stages import checkpoints, watching
from pgolf.stages import train as train_stage
from pgolf.stages.model_files import load_checkpoint
from pgolf.sweep.cell import run_cell
from pgolf.sweep.table import append_row

IN_BUDGET = ("data", "forward_backward", "communication", "optimizer", "other")
TINY = ("--preset", "tiny", "--quiet", "--set", "train.val_max_tokens=256")


def events(out: Path, kind: str) -> list[dict[str, Any]]:
    """Events of one kind."""
    lines = (out / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def entry(out: Path) -> dict[str, Any]:
    """The manifest's entry of the checkpoint."""
    found: dict[str, Any] = json.loads((out / "manifest.json").read_text())["outputs"]["checkpoint.safetensors"]
    return found


def unfinished(out: Path) -> None:
    """Make a finished training one that a kill has ended after its last checkpoint."""
    (out / "checkpoint.safetensors").unlink()
    (out / "manifest.json").unlink()


class FakeTime:
    """A clock that stands still but for what parts of a run are said to take."""

    def __init__(self, patch: pytest.MonkeyPatch, costs: Callable[[str, int], float]) -> None:
        self.moment = 1000.0
        before = watching.RunWatch.phase

        def phase(watch: watching.RunWatch, name: str) -> None:
            before(watch, name)
            self.moment += costs(name, watch.state.step)

        def slow(name: str, stage: Any, attribute: str) -> None:
            function = getattr(stage, attribute)

            @functools.wraps(function)
            def wrapped(*args: Any, **options: Any) -> Any:
                self.moment += costs(name, 0)
                return function(*args, **options)

            patch.setattr(stage, attribute, wrapped)

        patch.setattr(watching.RunWatch, "phase", phase)
        slow("setup", train_stage, "start_state")
        slow("checkpoint", checkpoints.Checkpoints, "save")
        slow("checkpoint", train_stage, "save_checkpoint")
        slow("logging", train_stage, "show")
        validator = train_stage.validator

        def slow_validator(*args: Any) -> Callable[[], dict[str, Any]]:
            validate = validator(*args)

            def timed() -> dict[str, Any]:
                self.moment += costs("validation", 0)
                return validate()

            return timed

        patch.setattr(train_stage, "validator", slow_validator)

    def __call__(self) -> float:
        return self.moment


def train(data: Path, out: Path, now: Callable[[], float], *sets: str) -> dict[str, Any]:
    """Train preset tiny in this process on a given clock."""
    resolved = resolve("tiny", ["train.val_max_tokens=256", *sets])
    return train_stage.train(open_dataset(data), out, resolved, World(), Console(quiet=True), now=now)


COSTS = {
    "setup": 20.0, "data": 0.25, "forward_backward": 2.0, "communication": 0.125, "optimizer": 1.0, "other": 0.0625,
    "validation": 100.0, "checkpoint": 30.0, "logging": 0.5,
}  # fmt: skip


def test_the_ledger_has_every_second_once(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = FakeTime(monkeypatch, lambda name, step: COSTS[name])
    sets = ("train.iterations=12", "train.val_every=5", "train.checkpoint_every=4", "train.micro_batch_tokens=512")
    start = now.moment
    made = train(tiny_run / "data", tmp_path, now, *sets)
    seconds = made["seconds"]
    expected = {
        "setup": 20.0, "warm_up": 0.0, "data": 6.0, "forward_backward": 48.0, "communication": 1.5, "optimizer": 12.0,
        "other": 0.75, "validation": 400.0, "checkpoint": 90.0,
    }  # fmt: skip
    assert {name: seconds[name] for name in expected} == expected
    steps, shown = len(events(tmp_path, "step")), 12 + 4 + 1
    assert steps == 12 and seconds["logging"] == 0.5 * shown
    assert seconds["total"] == now.moment - start == sum(expected.values()) + seconds["logging"]
    assert seconds["train"] == sum(seconds[name] for name in IN_BUDGET) + 0.5 * 12
    (stop,) = events(tmp_path, "stop")
    assert stop["seconds"]["optimizer"] == 12.0 and stop["seconds"]["checkpoint"] == 60.0
    assert entry(tmp_path)["seconds"] == seconds
    step = events(tmp_path, "step")[6]
    phases = {"data": 0.5, "forward_backward": 4.0, "communication": 0.125, "optimizer": 1.0}
    assert step["step"] == 7 and step["phase_s"] == phases


def test_the_ledger_goes_on_where_a_killed_run_was(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = FakeTime(monkeypatch, lambda name, step: COSTS[name])
    sets = ("train.iterations=12", "train.val_every=0", "train.checkpoint_every=8")
    whole = train(tiny_run / "data", tmp_path, now, *sets)["seconds"]
    unfinished(tmp_path)
    again = train(tiny_run / "data", tmp_path, now, *sets)["seconds"]
    for name in ("forward_backward", "optimizer", "data", "other", "validation", "train"):
        assert again[name] == whole[name], name
    assert again["setup"] == 40.0 and again["total"] == sum(again.values()) - again["total"] - again["train"]


def test_stalls_are_noted_where_the_clock_ends_the_run(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def costs(name: str, step: int) -> float:
        return {"data": 10.0 if step == 30 else 0.125, "forward_backward": 0.875}.get(name, 0.0)

    now = FakeTime(monkeypatch, costs)
    sets = (
        "train.iterations=100000",
        "train.max_wallclock_seconds=60",
        "train.val_every=0",
        "train.checkpoint_every=40",
        "optim.matrix.momentum_warmup_steps=20",
    )
    figures = train(tiny_run / "data", tmp_path, now, *sets)["figures"]
    assert (figures["steps"], figures["tokens_planned"]) == (51, 62_336)
    (note,) = figures["notes"]
    assert "52,224 of 62,336 planned tokens (84%)" in note
    unfinished(tmp_path)
    again = train(tiny_run / "data", tmp_path, now, *sets)["figures"]
    assert again["tokens_planned"] == figures["tokens_planned"], "what was planned before a kill counts"


def test_an_average_that_never_began_is_noted(tiny_run: Path, tmp_path: Path) -> None:
    sets = ("train.iterations=3", "train.average=swa", "train.average.below=0.001")
    figures = train(tiny_run / "data", tmp_path, time.monotonic, *sets)["figures"]
    assert figures["averaged_steps"] == 0
    assert figures["notes"] == ["train.average never began: the last weights were exported"]


def test_an_even_run_has_no_notes(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = FakeTime(monkeypatch, lambda name, step: float(name == "forward_backward"))
    sets = ("train.iterations=100000", "train.max_wallclock_seconds=40", "train.val_every=0")
    sets += ("optim.matrix.momentum_warmup_steps=40",)
    figures = train(tiny_run / "data", tmp_path, now, *sets)["figures"]
    assert figures["steps"] == 40 and figures["tokens_seen"] == figures["tokens_planned"] == 40 * 1024
    assert figures["notes"] == [] and figures["stopped_by"] == "wallclock_cap"


def test_notes_stand_in_every_table(
    copy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pgolf: Any
) -> None:
    monkeypatch.setattr(watching, "shortfall", lambda seen, planned: ["the machine was asleep"])
    note = "Note: the machine was asleep"
    assert note in pgolf("train", copy_run / "data", "--out", tmp_path / "t", *TINY).good().out
    assert note in pgolf("train", copy_run / "data", "--out", tmp_path / "t", *TINY).good().out
    argv = ["run", "--out", copy_run, "--quiet"]
    assert note in pgolf(*argv, "--from", "train").good().out
    assert note in pgolf(*argv).good().out
    assert "Seed 1337: the machine was asleep." in (copy_run / "submission" / "README.md").read_text()
    assert "Note: run: the machine was asleep" in pgolf("plot", copy_run).good().out
    document = pgolf("train", copy_run / "data", "--out", tmp_path / "t", *TINY, "--json").good().document
    assert document["notes"] == ["the machine was asleep"]
    assert f"warning: {copy_run}: the machine was asleep" in pgolf("compare", "pr1855", copy_run).good().out
    assert f"Note: {copy_run}: the machine was asleep" in pgolf("leaderboard", copy_run, "--all").good().out
    page = tmp_path / "page.html"
    pgolf("report", copy_run, "--out", page, "--quiet").good()
    assert page.read_text().count("Note: the machine was asleep") == 3, "pipeline, training, scores"


def test_notes_stand_in_the_tables_of_sweeps(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pgolf: Any
) -> None:
    def remark(seen: int, planned: int) -> list[str]:
        return ["the machine was asleep"] if seen == 3 * 1024 else []

    monkeypatch.setattr(watching, "shortfall", remark)
    base = ["train.val_max_tokens=256", "train.checkpoint_every=0"]
    rows = []
    for steps in (2, 3):
        resolved = resolve("tiny", [*base, f"train.iterations={steps}"])
        task = {"sweep": "train", "config": resolved.values, "data": str(tiny_run / "data"), "tokenizer": ""}
        found = run_cell({**task, "folder": str(tmp_path / f"cell{steps}"), "device": "cpu", "threads": 0})
        settings = {"train.iterations": steps}
        rows.append({"key": str(steps), "cell": f"c{steps}", "folder": f"cell{steps}", "sweep": "train", **found})
        rows[-1] |= {"preset": "tiny", "settings": settings, "inputs": {}, "scored_on": {}}
        append_row(tmp_path / "results.jsonl", rows[-1])
    assert [row["notes"] for row in rows] == [[], ["the machine was asleep"]]
    shown = pgolf("sweep", "show", tmp_path, "--csv", tmp_path / "rows.csv").good().out
    assert "note: train.iterations=3: the machine was asleep" in shown
    read = [*csv.DictReader((tmp_path / "rows.csv").read_text().splitlines())]
    assert [row["notes"] for row in read] == ["", "the machine was asleep"]
    (group,) = pgolf("sweep", "show", tmp_path, "--json").good().document["groups"]
    notes = {one["settings"]["train.iterations"]: one["notes"] for one in group["configurations"]}
    assert notes == {2: [], 3: ["the machine was asleep"]}


def test_logged_steps_say_more(tiny_run: Path) -> None:
    steps = events(tiny_run / "train", "step")
    shown = [step for step in steps if step["shown"]]
    assert [step["step"] for step in shown] == [*range(1, 11), 15, 20]
    for step in shown:
        assert set(step["lr"]) == set(step["grad_norms"]) == {"token", "scalar", "matrix"}
        assert step["lr"]["token"] == pytest.approx(0.05 * step["lr_scale"])
        assert all(norm > 0 for norm in step["grad_norms"].values())
        assert step["memory_bytes"] > 1 << 20 and set(step["phase_s"]) == set(IN_BUDGET) - {"other"}
        assert step["phase_s"]["forward_backward"] > 0 and "mfu" not in step, "a CPU has no known peak"
    assert not any("lr" in step for step in steps if not step["shown"])
    (start,) = events(tiny_run / "train", "start")
    assert start["config"] == entry(tiny_run / "train")["resolved"]


def test_the_lines_that_others_parse_are_there(tiny_run: Path) -> None:
    log = (tiny_run / "train" / "train.log").read_text()
    number, average = r"\d+\.\d{4}", r"step_avg:\d+\.\d\dms"
    assert re.search(r"^model_params:\d+$", log, re.M) and re.search(r"^train_shards: \d+$", log, re.M)
    train_lines = re.findall(rf"^(\d+)/20 train_loss: ({number}) train_time: \d+\.\dm tok/s: \d+ {average}$", log, re.M)
    assert [int(step) for step, _ in train_lines] == [*range(1, 11), 15, 20]
    losses = {step["step"]: step["loss"] for step in events(tiny_run / "train", "step")}
    assert all(f"{losses[int(step)]:.4f}" == loss for step, loss in train_lines)
    val_lines = re.findall(rf"^(\d+)/20 val_loss: {number} val_bpb: ({number}) train_time:\d+ms {average}$", log, re.M)
    bpbs = {val["step"]: f"{val['val_bpb']:.4f}" for val in events(tiny_run / "train", "val")}
    assert {int(step): bpb for step, bpb in val_lines} == bpbs and sorted(bpbs) == [0, 10, 20]


def lines(log: str, *forms: str) -> list[tuple[str, ...]]:
    """The groups of every form, each of which is that of one line of a log."""
    found = [re.findall(f"^{form}$", log, re.M) for form in forms]
    assert [len(one) for one in found] == [1] * len(forms), dict(zip(forms, found))
    return [one if isinstance(one, tuple) else (one,) for (one,) in found]


METRIC = r"val_loss:\d+\.\d{8} val_bpb:\d+\.\d{8} eval_time:(\d+)ms"
LAYERS = r"\[\d+(?:, \d+)*\]"


def test_the_log_has_upstreams_lines_of_what_happens(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forms are those of the specification, training 8."""
    now = FakeTime(monkeypatch, lambda name, step: {"forward_backward": 1.0, "validation": 2.5}.get(name, 0.0))
    sets = ["train.max_wallclock_seconds=30", "train.reserve_seconds=10", "train.iterations=1000", "train.val_every=0"]
    sets += ["train.average=swa", "train.average.below=0.6", "train.average.every=2", "optim.warmdown=fraction"]
    sets += ["optim.warmdown.frac=0.5", "train.qat=straight_through", "train.qat.below=0.35", "model.xsa=xsa"]
    sets += ["model.xsa.last_n=1", "model.window=sliding", "model.window.tokens=8", "model.window.full_layers=1"]
    sets += ["model.loop=layers", "model.loop.start=0", "model.loop.end=0", "model.loop.enable_at=0.25"]
    train(tiny_run / "data", tmp_path, now, *sets)
    log = (tmp_path / "train.log").read_text()
    found = lines(
        log,
        r"model_params:\d+",
        r"train_shards: \d+",
        r"val_tokens: (\d+)",
        r"gptq:reserving 10s, effective=20000ms",
        rf"XSA:last_1 active_layers:({LAYERS})",
        rf"sliding_window_attn:layers=({LAYERS}) .+",
        rf"layer_loop:enabled step:(\d+) frac:(\d\.\d+) encoder:({LAYERS}) decoder:({LAYERS})",
        r"late_qat:enabled step:(\d+) scale:(\d\.\d+)",
        r"swa:start step:(\d+)",
        r"stopping_early: wallclock_cap train_time:(\d+)ms step:(\d+)/1000",
        r"swa:applying SWA weights",
        rf"pre-quantization post-swa {METRIC}",
    )
    tokens = sum(map(len, open_dataset(tiny_run / "data").split("val"))) - 1
    assert found[2] == (str(tokens),) and found[4:6] == [("[1]",), ("[0]",)]
    assert found[6] == ("5", "0.250", "[0, 0]", "[0, 1]") and found[7] == ("17", "0.3000")
    assert found[8:10] == [("16",), ("20000", "20")] and found[11] == ("2500",)
    looped = next(event for event in events(tmp_path, "mode") if event["looping"])
    assert (looped["step"], looped["fraction"], looped["lr_scale"]) == (5, 0.25, 1.0)
    assert [event["step"] for event in events(tmp_path, "swa")] == [16]


def test_what_was_on_before_is_no_news_in_a_run_that_goes_on(tiny_run: Path, tmp_path: Path) -> None:
    sets = ["train.iterations=12", "train.checkpoint_every=8", "train.val_every=0", "optim.warmdown=fraction"]
    sets += ["train.qat=straight_through", "train.qat.below=0.7", "optim.warmdown.frac=1.0"]
    sets += ["model.loop=layers", "model.loop.start=0", "model.loop.end=0", "model.loop.enable_at=0.25"]
    forms = r"layer_loop:enabled step:(\d+) frac:.+", r"late_qat:enabled step:(\d+) scale:.+"
    for _ in range(2):
        train(tiny_run / "data", tmp_path, time.monotonic, *sets)
        assert lines((tmp_path / "train.log").read_text(), *forms) == [("3",), ("4",)]
        unfinished(tmp_path)
    assert [event["step"] for event in events(tmp_path, "mode")] == [3, 4, 8]


def test_a_gpu_is_timed_by_its_own_clock_and_its_neighbours_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything a GPU would say is made up; the model runs on the CPU."""

    class Event:
        """A CUDA event of a device whose time stands in `at`."""

        at = 0.0

        def __init__(self) -> None:
            Event.at += 1.0
            self.moment = Event.at

        def elapsed_time(self, later: "Event") -> float:
            """Milliseconds."""
            return 1000 * (later.moment - self.moment)

    monkeypatch.setattr(watching, "device_mark", Event)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 12345)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    sets = ["train.log_every=4", "train.checkpoint_every=0", "train.val_every=0", "optim.width_rule=mup"]
    sets += ["train.length_schedule=growing", "train.length_schedule.first=16"]
    config = resolve("tiny", sets).config
    shards = [np.random.default_rng(0).integers(1, 500, 20_000).astype(np.uint16)]
    state = start_state(config.model, config.train, config.optim, shards, 3, World())
    moment, told = [0.0], list[dict[str, Any]]()

    def now() -> float:
        moment[0] += 0.01
        return moment[0]

    state.clock.now = now
    others = iter([[], [{"pid": 7, "bytes": 3 << 20, "name": "miner"}]])
    own = {"pid": os.getpid(), "bytes": 1 << 30, "name": "python"}
    watch = watching.RunWatch(
        state, config, World(device=torch.device("cuda", 0)), Console(quiet=True), Stopwatch(now), {},
        tell=told.append, validate=dict, save=lambda state, watched: None, stop_asked=lambda: False, compiled=False,
        probe=lambda device: [own, *next(others)],
    )  # fmt: skip
    fit(state, config.train, config.optim, World(), watch, False)
    kinds = ("step", "neighbours", "stop", "mode")
    by_kind = {kind: [event for event in told if event["event"] == kind] for kind in kinds}
    assert [(event["when"], len(event["others"])) for event in by_kind["neighbours"]] == [("start", 0), ("end", 1)]
    assert watch.findings["notes"] == ["not alone on the GPU: miner (7, 3 MiB)"]
    phases = {"other": 1.0, "data": 1.0, "forward_backward": 1.0, "communication": 1.0, "optimizer": 1.0}
    shown = [event for event in by_kind["step"] if event["shown"]]
    assert [event["step"] for event in shown] == [*range(1, 11), 12, 16, 20]
    rates = {"token": 0.05 * 512 / config.model.model_dim, "scalar": 0.04, "matrix": config.optim.matrix.lr}  # type: ignore[attr-defined]
    assert rates["token"] == 0.4, "a rule that changes nothing tests nothing"
    for event in shown:
        assert event["lr"] == pytest.approx({group: rate * event["lr_scale"] for group, rate in rates.items()})
    assert shown[-1]["phase_s"] == phases and shown[-1]["memory_bytes"] == 12345
    lengths = list[int]()
    for before, event in itertools.pairwise(shown):
        lengths.append([mode["length"] for mode in by_kind["mode"] if mode["step"] < event["step"]][-1] or 64)
        flops = training_flops(config.model, lengths[-1]) * (event["step"] - before["step"]) * 1024
        assert event["mfu"] == round(flops / (event["elapsed_s"] - before["elapsed_s"]) / 989e12, 4)
    assert set(lengths) == {16, 32, 64}
    seconds = by_kind["stop"][0]["seconds"]
    assert "training" not in seconds and seconds["optimizer"] == seconds["data"] > 10 * seconds["setup"]


def test_on_a_gpu_the_host_times_steps_that_are_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "device_mark", object)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    config = resolve("tiny", ["train.log_every=0", "train.iterations=1000"]).config
    shards = [np.random.default_rng(0).integers(1, 500, 20_000).astype(np.uint16)]
    state, moment = start_state(config.model, config.train, config.optim, shards, 3, World()), [0.0]
    state.clock.now = lambda: moment[0]
    watch = watching.RunWatch(
        state, config, World(device=torch.device("cuda", 0)), Console(quiet=True), Stopwatch(state.clock.now), {},
        tell=lambda event: None, validate=dict, save=lambda state, watched: None, stop_asked=lambda: False,
        compiled=False, probe=lambda device: [],
    )  # fmt: skip
    for name in ("data", "forward_backward", "other"):
        watch.phase(name)
    watch.warmed(state)
    state.clock.start()
    for step in range(200):
        for name in ("data", "forward_backward", "communication", "optimizer"):
            watch.phase(name)
        moment[0] += 101.0 if step == 50 else 1.0
        watch.phase("other")
        state.step += 1
    watch.on_event({"event": "stop", "step": 200, "elapsed_s": 300.0, "reason": "wallclock_cap"})
    assert watch.findings["tokens_planned"] == 300 * 1024 and "204,800 of 307,200" in watch.findings["notes"][0]


# What is not finite


@pytest.mark.fault(row="F18")
def test_a_bad_loss_names_its_tensor_and_leaves_good_checkpoints(tiny_run: Path, tmp_path: Path, pgolf: Any) -> None:
    rates = [f"optim.{key}=1e18" for key in ("token_lr", "matrix.lr", "scalar_lr")]
    hot = [word for rate in rates for word in ("--set", rate)]
    argv = ["train", tiny_run / "data", "--out", tmp_path, *TINY, "--set", "train.checkpoint_every=1", *hot]
    line = pgolf(*argv).refused(4, "the loss is nan: the ", "at step", "the last checkpoint is kept")
    assert re.search(r"the (weight|gradient of) [\w.]+ is not finite|loss or an activation", line)
    (failed,) = events(tmp_path, "failed")
    assert failed["reason"] in line and f"at step {failed['step']}" in line
    kept = [path for path in (tmp_path / "ckpt").iterdir() if ".resume" not in path.name]
    assert kept
    for path in kept:
        assert all(bool(weight.isfinite().all()) for weight in load_checkpoint(path).weights.values())


@pytest.mark.parametrize("where", ["weight", "momentum"])
@pytest.mark.fault(row="F18")
def test_no_checkpoint_is_made_of_what_is_not_finite(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """As on a GPU, where the loss of most steps is not looked at."""
    before = watching.RunWatch.on_save

    def poisoned(watch: watching.RunWatch, state: Any) -> None:
        if state.step == 10:
            weight = (
                state.model.tok_emb.weight if where == "weight" else state.optimizers.state()["exp_avg.tok_emb.weight"]
            )
            weight.data[3, 3] = torch.nan
        before(watch, state)

    monkeypatch.setattr(watching.RunWatch, "on_save", poisoned)
    with pytest.raises(RuleError, match=r"no checkpoint was written: .*tok_emb\.weight is not finite, at step 10"):
        train(tiny_run / "data", tmp_path, lambda: 0.0)
    kept = sorted(path.name for path in (tmp_path / "ckpt").iterdir())
    assert kept == ["step_00000005.resume.safetensors", "step_00000005.safetensors"]


@pytest.mark.fault(row="F18")
def test_a_loss_that_runs_away_ends_the_run(tiny_run: Path, tmp_path: Path, pgolf: Any) -> None:
    argv = ["train", tiny_run / "data", "--out", tmp_path, *TINY, "--set", "train.log_every=1"]
    argv += ["--set", "train.iterations=80", "--set", "optim.token_lr=30", "--set", "train.val_every=0"]
    line = pgolf(*argv, "--set", "train.max_loss_rise=0.01").refused(4, "diverged", "above its lowest", "at step")
    (failed,) = events(tmp_path, "failed")
    assert failed["reason"] in line and 60 <= failed["step"] < 80
    rare = [str(word).replace("log_every=1", "log_every=0") for word in argv]
    again = pgolf(*rare, "--set", "train.max_loss_rise=0.01", "--fresh").refused(4, "diverged")
    assert again == line, "how often a line is logged changes nothing"
    done = pgolf(*argv, "--set", "train.max_loss_rise=0").good()
    assert "resumed" not in done.err and events(tmp_path, "stop"), "the limit is no part of what a run is"


SMALL_BATCH = ("train.seq_len=32", "train.batch_tokens=64", "train.micro_batch_tokens=64")


class Poisoned:
    """On a GPU that is not there a weight becomes NaN before a step; `begun` is the last step that began."""

    def __init__(self, patch: pytest.MonkeyPatch, step: int) -> None:
        self.begun = 0
        before = watching.RunWatch.phase

        def phase(watch: watching.RunWatch, name: str) -> None:
            before(watch, name)
            if name == "data" and watch.warm:
                self.begun = watch.state.step + 1
                if self.begun == step:
                    with torch.no_grad():
                        watch.state.model.get_parameter("skip_weights").fill_(torch.nan)

        patch.setattr(watching.RunWatch, "phase", phase)

    def train(self, data: Path, out: Path, *sets: str) -> None:
        """Train on that GPU."""
        resolved = resolve("tiny", ["train.val_max_tokens=256", "train.compile=off", "train.val_every=0", *sets])
        with pretended_gpu():
            train_stage.train(open_dataset(data), out, resolved, World(device=CUDA), Console(quiet=True))


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="a torch that is built for GPUs asks for a real one")
@pytest.mark.parametrize(
    ("sets", "latest"),
    [
        (("train.log_every=500", "train.checkpoint_every=0"), 35),
        (("train.log_every=0", "train.checkpoint_every=5"), 15),
        (("train.log_every=0", "train.checkpoint_every=0", "train.val_every=14"), 14),
        pytest.param(("train.log_every=0", "train.checkpoint_every=0"), 35, marks=pytest.mark.slow),
        pytest.param(("train.log_every=16", "train.checkpoint_every=0"), 16, marks=pytest.mark.slow),
        pytest.param(("train.log_every=1", "train.checkpoint_every=5"), 13, marks=pytest.mark.slow),
        pytest.param(
            ("train.log_every=0", "train.checkpoint_every=0", "train.iterations=20"), 20, marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.fault(row="F18")
def test_a_gpu_s_bad_loss_is_told_with_its_step_however_rare_log_lines_are(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: tuple[str, ...], latest: int
) -> None:
    poisoned = Poisoned(monkeypatch, 13)
    with pytest.raises(RuleError, match="the loss is nan: the weight skip_weights is not finite, at step 13"):
        poisoned.train(tiny_run / "data", tmp_path, "train.iterations=60", *SMALL_BATCH, *sets)
    assert poisoned.begun == latest
    (failed,) = events(tmp_path, "failed")
    assert failed["step"] == 13
    kept = sorted(path.name for path in (tmp_path / "ckpt").iterdir()) if (tmp_path / "ckpt").is_dir() else []
    expected = [f"step_000000{step}{kind}.safetensors" for step in ("05", "10") for kind in (".resume", "")]
    assert kept == (expected if "train.checkpoint_every=5" in sets else [])


@pytest.mark.slow
@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="a torch that is built for GPUs asks for a real one")
@pytest.mark.fault(row="F18")
def test_a_gpu_s_loss_that_runs_away_ends_the_run_without_log_lines(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot = ("train.log_every=0", "train.checkpoint_every=0", "optim.token_lr=30", "train.max_loss_rise=0.01")
    with pytest.raises(RuleError, match=r"diverged: .* at 50 steps in a row, at step \d+"):
        Poisoned(monkeypatch, 0).train(tiny_run / "data", tmp_path, "train.iterations=100", *hot)
    (failed,) = events(tmp_path, "failed")
    assert 60 <= failed["step"] < 85


# Budgets that are too short


def test_a_budget_shorter_than_the_warm_up_is_refused(
    tiny_run: Path, tmp_path: Path, traced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes a second; the first, which is compiled, nine more."""
    compiled: list[float] = []

    def costs(name: str, step: int) -> float:
        if name == "optimizer":
            compiled.append(0.0 if compiled else 9.0)
            return 1.0 + compiled[-1]
        return 0.0

    now = FakeTime(monkeypatch, costs)
    sets = ("train.compile=on", "train.warmup_steps=4", "train.iterations=100000", "train.val_every=0")
    with pytest.raises(ConfigError) as caught:
        train(tiny_run / "data", tmp_path, now, *sets, "train.max_wallclock_seconds=3.9")
    assert "a budget of 3.9 s is shorter than the warm-up: 4 steps of 1 s, compilation not counted" in str(caught.value)
    assert caught.value.where == "train.max_wallclock_seconds" and not events(tmp_path, "step")
    figures = train(tiny_run / "data", tmp_path, now, *sets, "train.max_wallclock_seconds=4.1")["figures"]
    assert figures["steps"] == 5


def test_a_run_that_its_budget_cut_short_says_so(tiny_run: Path, tmp_path: Path, pgolf: Any) -> None:
    argv = ["train", tiny_run / "data", *TINY[:2], "--set", "train.val_max_tokens=256", "--set", "train.iterations=600"]
    budget = ("--set", "train.max_wallclock_seconds=0.001", "--set", "train.warmup_steps=20")
    result = pgolf(*argv, "--out", tmp_path / "short", *budget).good()
    notes = entry(tmp_path / "short")["figures"]["notes"]
    assert notes == [
        "the budget of 0.001 s was over after step 1: raise train.max_wallclock_seconds",
        "the budget was over after step 1, before momentum had risen to its value "
        "(optim.matrix.momentum_warmup_steps=100)",
    ]
    assert all(f"Note: {note}" in result.out for note in notes)


# Trackers


def test_trackers_are_shown_a_run_and_cannot_stop_it(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pgolf: Any
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    fake = "rows = []\ndef init(**options): pass\ndef log(numbers, step): rows.append((step, numbers))\n"
    (packages / "trackio.py").write_text(fake + "def finish(): rows.append('end')\n")
    (packages / "wandb.py").write_text("def init(**options): raise RuntimeError('no network')\n")
    monkeypatch.syspath_prepend(str(packages))
    argv = ["train", tiny_run / "data", "--preset", "tiny", "--quiet"]
    result = pgolf(*argv, "--out", tmp_path / "t", "--track", "trackio", "--track", "wandb", "--json").good()
    assert result.document["warnings"] == ["wandb failed and was switched off, training goes on: no network"]
    rows = sys.modules["trackio"].rows
    for name in ("trackio", "wandb"):
        sys.modules.pop(name)
    assert rows[-1] == "end" and [row[0] for row in rows[:-1]] == [0, *range(1, 11), 10, 15, 20, 20]
    losses = {step["step"]: step["loss"] for step in events(tmp_path / "t", "step")}
    assert {row[0]: row[1]["step/loss"] for row in rows[:-1] if "step/loss" in row[1]} == {
        step: loss for step, loss in losses.items() if step in (*range(1, 11), 15, 20)
    }
    assert tensor_hash(tmp_path / "t" / "checkpoint.safetensors") == tensor_hash(
        tiny_run / "train" / "checkpoint.safetensors"
    )


def test_a_missing_tracker_is_said_before_anything_begins(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pgolf: Any
) -> None:
    find = watching.sys.modules["importlib.util"].find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    out = tmp_path / "out"
    pgolf("train", tiny_run / "data", "--out", out, *TINY, "--track", "wandb").refused(5, "pip install 'pgolf[wandb]'")
    pgolf("run", "--preset", "tiny", "--out", out, "--track", "wandb", "-q").refused(5, "pip install 'pgolf[wandb]'")
    pgolf("run", "--preset", "tiny", "--out", out, "--track", "mlflow", "-q").refused(2, "mlflow", "tensorboard")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: object())
    argv = ["run", "--preset", "tiny", "--out", out, "--track", "wandb", "-q", "--until", "tokenize"]
    pgolf(*argv).refused(2, "--track", "train")
    assert not out.exists()


# Recompilations


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile traces and guards as ever, but generates no code: seconds instead of minutes."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


LEADER = (
    "--preset", "leader_tiny", "--quiet", "--set", "train.compile=on", "--set", "train.warmup_steps=1",
    "--set", "train.iterations=8", "--set", "train.val_max_tokens=256", "--set", "model.vocab_size=512",
)  # fmt: skip


def test_nothing_is_compiled_after_warm_up_nor_when_a_run_goes_on_with_its_momentum(
    tiny_run: Path, tmp_path: Path, traced: None, pgolf: Any
) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    argv = ["train", tiny_run / "data", *LEADER, "--set", "train.warmup_steps=2", "--json"]
    document = pgolf(*argv, "--out", straight).good().document
    assert document["compiled"] is True and document["recompiles"] == 0 and document["warnings"] == []
    looping = [event["step"] for event in events(straight, "mode") if event["looping"]]
    assert looping == [4] and not events(straight, "recompile")
    log = (straight / "train.log").read_text()
    warm = re.findall(r"^warmup_step: (\d+)/2$", log, re.M)
    assert warm == ["1", "2"] * 2 and log.index("warmup_step: 2/2") < log.index("\n0/8 val_loss")
    lines(log, r"ema:applying EMA weights", rf"pre-quantization post-ema {METRIC}", r"layer_loop:enabled step:4 .+")
    shutil.copytree(straight, resumed)
    unfinished(resumed)
    torch.compiler.reset()
    document = pgolf(*argv, "--out", resumed).good().document
    assert document["recompiles"] == 0 and document["warnings"] == []
    assert tensor_hash(resumed / "checkpoint.safetensors") == tensor_hash(straight / "checkpoint.safetensors")
    assert events(resumed, "step")[-1]["step"] == 8 and len(events(resumed, "step")) == 8 + 3


def test_what_is_compiled_later_is_told_with_its_reason(
    tiny_run: Path, tmp_path: Path, traced: None, monkeypatch: pytest.MonkeyPatch, pgolf: Any
) -> None:
    monkeypatch.setattr("pgolf.core.train.loop.warm_up", lambda *rest: None)
    document = pgolf("train", tiny_run / "data", "--out", tmp_path, *LEADER, "--json").good().document
    first, second = events(tmp_path, "recompile")
    assert document["recompiles"] == 2 == len(document["warnings"])
    assert (first["step"], first["reason"]) == (1, "first compilation")
    assert second["step"] == 5 and "looping" in second["reason"] and second["function"].startswith("forward ")
    assert second["reason"] in document["warnings"][1]
    assert "5/8 compiled again: forward" in (tmp_path / "train.log").read_text()


@pytest.mark.slow
def test_nothing_is_compiled_after_warm_up_for_real(tiny_run: Path, tmp_path: Path, pgolf: Any) -> None:
    torch.compiler.reset()
    document = pgolf("train", tiny_run / "data", "--out", tmp_path, *LEADER, "--json").good().document
    assert document["compiled"] is True and document["recompiles"] == 0


# pgolf plot


@pytest.fixture
def two_runs(tiny_run: Path, tmp_path: Path, pgolf: Any) -> list[Path]:
    """Two seeds of preset tiny, with an average."""
    places = [tmp_path / f"a_s{seed}" for seed in (1, 2)]
    for seed, place in enumerate(places, 1):
        pgolf("train", tiny_run / "data", "--out", place, *TINY, "--seed", seed, "--set", "train.average=ema").good()
    return places


def test_plot_shows_runs_side_by_side(two_runs: list[Path], tiny_run: Path, tmp_path: Path, pgolf: Any) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "made" / "curves"
    argv = ["plot", *two_runs, tiny_run, "--out", out, "--json"]
    document = pgolf(*argv, "--x", "tokens", "--smooth", 3).good().document
    assert document["out"] == [f"{out}.png", f"{out}.svg"] and document["schema"] == "pgolf.plot/1"
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    svg = out.with_suffix(".svg").read_text()
    assert svg.startswith("<?xml") and "<path" in svg
    assert [row["label"] for row in document["runs"]] == ["a_s1", "a_s2", "run"]
    for place, row in zip(two_runs, document["runs"]):
        figures = entry(place)["figures"]
        assert (row["steps"], row["tokens"], row["ended"]) == (20, 20 * 1024, "iterations")
        assert row["last_bpb"] == figures["bpb"] and row["last_loss"] == events(place, "step")[-1]["loss"]
    other = tmp_path / "grouped.svg"
    text = pgolf("plot", *two_runs, "--group", "--x", "seconds", "--out", other).good().out
    assert f"wrote {other}" in text and "a_s2" in text and "20,480" in text
    assert other.read_text().count("<path") > 10


def test_plot_says_what_it_cannot_do(
    two_runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pgolf: Any
) -> None:
    pgolf("plot", tmp_path).refused(3, "events.jsonl")
    pgolf("plot", *two_runs, "--x", "epochs").refused(2, "epochs", "seconds")
    pgolf("plot", *two_runs, "--out", tmp_path / "a.pdf").refused(2, ".pdf", ".svg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    pgolf("plot", *two_runs, "--out", tmp_path / "a").refused(5, "pip install 'pgolf[plot]'")
    assert "a_s1" in pgolf("plot", *two_runs).good().out, "the table needs no matplotlib"
    assert not list(tmp_path.glob("a.*"))
