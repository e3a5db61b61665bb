"""The parts of the watch over a run, one by one: time, pace, operations, neighbours, health, recompilations."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from pgolf.config.load import resolve
from pgolf.core.dist import World
from pgolf.core.model.gpt import GPT
from pgolf.report.watch import neighbours
from pgolf.report.watch.flops import (
    PEAK_BANDWIDTH,
    PEAK_FLOPS,
    forward_flops,
    linear_flops,
    peak_bandwidth,
    peak_flops,
    training_flops,
)
from pgolf.report.watch.health import LASTING, SOUND, Divergence, Unread, culprit, group_norms, not_finite
from pgolf.report.watch.neighbours import in_words, others_on, parse_smi, strangers
from pgolf.report.watch.pace import LEAST_STEPS, QUEUED_STEPS, Pace, shortfall, tokens_planned
from pgolf.report.watch.recompiles import Recompiles
from pgolf.report.watch.stopwatch import STEP_PHASES, StepMarks, Stopwatch

# Time


@given(st.lists(st.tuples(st.sampled_from(["data", "optimizer", "validation"]), st.integers(0, 9))))
def test_phases_add_up_to_all_the_time(moves: list[tuple[str, int]]) -> None:
    moment = [5.0]
    watch = Stopwatch(lambda: moment[0])
    expected: dict[str, float] = {}
    phase = "setup"
    for name, seconds in moves:
        moment[0] += seconds
        expected[phase] = expected.get(phase, 0.0) + seconds
        phase = name
        watch.enter(name)
    found = watch.seconds()
    assert sum(found.values()) == moment[0] - 5.0
    assert {name: spent for name, spent in found.items() if spent} == {n: s for n, s in expected.items() if s}


def test_a_block_belongs_to_its_phase_and_what_was_spent_before_is_carried() -> None:
    moment = [0.0]
    watch = Stopwatch(lambda: moment[0])
    watch.carry({"setup": 10.0, "optimizer": 4.0})
    moment[0] = 1.0
    with pytest.raises(ZeroDivisionError), watch.during("validation"):
        moment[0] = 3.0
        _ = 1 / 0
    moment[0] = 3.5
    assert watch.seconds() == {"setup": 11.5, "optimizer": 4.0, "validation": 2.0}
    assert [*Stopwatch(lambda: 0.0).seconds()] == ["setup"]
    watch.carry({"of another kind": 0.0, "data": 0.0})
    assert [*watch.seconds()] == ["setup", "data", "optimizer", "validation", "of another kind"]
    moment[0] = 0.0
    assert sum(watch.seconds().values()) == 17.5, "a clock that jumps back takes nothing away"


class FakeEvent:
    """A CUDA event of a device whose time is given."""

    now = 0.0

    def __init__(self) -> None:
        self.at = FakeEvent.now

    def elapsed_time(self, later: "FakeEvent") -> float:
        """Milliseconds."""
        return 1000 * (later.at - self.at)


def test_marks_time_one_step_by_the_device() -> None:
    marks = StepMarks(FakeEvent)

    def step(micro: int = 2) -> None:
        for _ in range(micro):
            marks.add("data")
            FakeEvent.now += 0.25
            marks.add("forward_backward")
            FakeEvent.now += 2
        marks.add("communication")
        FakeEvent.now += 0.5
        marks.add("logging")
        FakeEvent.now += 50.0
        marks.add("optimizer")
        FakeEvent.now += 1
        marks.add("other")
        FakeEvent.now += 0.125

    step()
    assert marks.read() == {"data": 0.5, "forward_backward": 4.0, "communication": 0.5, "optimizer": 1.0}
    step()
    whole = {"other": 0.125, "data": 0.5, "forward_backward": 4.0, "communication": 0.5, "optimizer": 1.0}
    assert marks.read() == whole and marks.read() == {}
    step()
    marks.interrupted()
    assert marks.read() == {}, "a step that was interrupted is not counted"
    split = marks.split(122.5)
    assert sum(split.values()) == pytest.approx(122.5) and tuple(split) == STEP_PHASES
    assert split["optimizer"] == pytest.approx(122.5 * 2 / 12.125)
    assert StepMarks(FakeEvent).split(5.0) == {}


# Pace


def paced(times: list[float], every: int = 1, loop_at: int = -1) -> Pace:
    """A run whose steps take these times, logged `every` so many; 100 tokens a step."""
    pace, elapsed = Pace(100, 0, 0.0, 0.0), 0.0
    for step, seconds in enumerate(times, 1):
        if step - 1 == loop_at:
            pace.event({"event": "mode", "step": step - 1, "elapsed_s": elapsed})
        elapsed += seconds
        if step % every == 0:
            pace.event({"event": "step", "step": step, "elapsed_s": elapsed})
    pace.event({"event": "val", "step": len(times), "elapsed_s": elapsed})
    return pace


@pytest.mark.parametrize("every", [1, 5])
def test_an_even_run_sees_what_was_planned(every: int) -> None:
    pace = paced([0.5] * 200, every)
    assert tokens_planned(pace, "wallclock_cap", 10**6) == 20_000 and shortfall(20_000, 20_000) == []


def test_stalls_are_a_shortfall() -> None:
    planned = tokens_planned(paced([0.5] * 100 + [30.0] + [0.5] * 100), "wallclock_cap", 10**6)
    assert planned == round(130 / 0.5) * 100
    (note,) = shortfall(20_100, planned)
    assert "20,100 of 26,000 planned tokens (77%)" in note


def test_a_shortfall_begins_below_nine_tenths() -> None:
    assert shortfall(900, 1000) == [] and shortfall(899, 1000)


def test_slower_steps_of_a_schedule_are_no_stall() -> None:
    times = [0.5] * 120 + [0.8] * 60
    looped = paced(times, loop_at=120)
    assert tokens_planned(looped, "wallclock_cap", 10**6) == 18_000
    assert tokens_planned(paced(times), "wallclock_cap", 10**6) > 18_000 / 0.9, "else this tests nothing"


def test_few_steps_say_nothing_and_iterations_are_a_plan_of_their_own() -> None:
    pace = paced([0.5] * (LEAST_STEPS - 2) + [60.0])
    assert tokens_planned(pace, "wallclock_cap", 10**6) == 100 * (LEAST_STEPS - 1)
    coarse = [0.5] * 780 + [500.0] + [0.5] * 19
    assert tokens_planned(paced(coarse, every=200), "wallclock_cap", 10**6) == 80_000, "four lines say nothing"
    assert tokens_planned(paced(coarse, every=160), "wallclock_cap", 10**6) > 100_000
    assert tokens_planned(paced([0.5] * 50 + [60.0] + [0.5] * 50), "iterations", 101) == 10_100
    assert tokens_planned(paced([0.5] * 50 + [60.0] + [0.5] * 50), "wallclock_cap", 110) == 11_000


def leader_on_gpus(fast: float, slow: float, at: int, stall: float, together: int, lead: int) -> tuple[int, int]:
    """Tokens seen and planned by the leader's preset for 600 s on GPUs, which logs every 500th step. Steps take `fast`
    seconds, `slow` ones from 35 % of the time on, and the `at`-th one `stall` more. The host waits for the device after
    every `lead` steps.
    """
    train = resolve("leader").config.train
    pace, step, elapsed, looped, seen_by_host = Pace(train.batch_tokens, 0, 0.0, 0.0, together), 0, 0.0, False, 0.0
    assert not train.shown(499) and train.shown(500) and not train.shown(501)
    while elapsed < train.budget_s:
        if elapsed >= 0.35 * train.budget_s and not looped:
            looped = True
            pace.event({"event": "mode", "step": step, "elapsed_s": elapsed})
        step += 1
        elapsed += (slow if looped else fast) + (stall if step == at else 0.0)
        seen_by_host = elapsed if step % lead == 0 or train.shown(step) else seen_by_host
        pace.passed(step, seen_by_host)
        if train.shown(step):
            pace.event({"event": "step", "step": step, "elapsed_s": elapsed})
    for kind in ("val", "stop"):
        pace.event({"event": kind, "step": step, "elapsed_s": elapsed})
    return step * train.batch_tokens, tokens_planned(pace, "wallclock_cap", train.iterations)


@pytest.mark.parametrize(
    ("fast", "slow", "stall", "places", "together", "lead"),
    [
        (0.098, 0.135, 80.0, (300, 3200, 4200), 1, 1),
        (0.92, 1.15, 200.0, (100, 300, 350), QUEUED_STEPS, 1),
        (0.92, 1.15, 200.0, (100, 300, 350), QUEUED_STEPS, 3),
    ],
    ids=["eight", "one", "one whose host runs ahead"],
)
def test_a_stall_is_seen_between_log_lines_that_are_far_apart(
    fast: float, slow: float, stall: float, places: tuple[int, ...], together: int, lead: int
) -> None:
    even, planned = leader_on_gpus(fast, slow, 0, 0.0, together, lead)
    assert shortfall(even, planned) == [] and planned == pytest.approx(even, rel=0.06 if lead > 1 else 0.01)
    for at in places:
        seen, planned = leader_on_gpus(fast, slow, at, stall, together, lead)
        assert seen < even and shortfall(seen, planned), at


def test_what_a_step_leaves_to_do_until_its_log_line_is_a_part_of_it() -> None:
    """An average that takes weights in, or what a GPU has still to do of what the host has asked for."""
    pace, elapsed = Pace(100, 0, 0.0, 0.0), 0.0
    for step in range(1, 201):
        pace.passed(step, elapsed + 0.5)
        elapsed += 30.75 if step == 100 else 0.75
        pace.event({"event": "step", "step": step, "elapsed_s": elapsed})
    pace.event({"event": "val", "step": 200, "elapsed_s": elapsed})
    assert tokens_planned(pace, "wallclock_cap", 10**6) == 100 * (200 + 30 / 0.75)


def test_a_stall_in_the_last_step_and_the_choice_of_an_average() -> None:
    pace = Pace(100, 0, 0.0, 0.0, QUEUED_STEPS)
    for step in range(1, 103):
        pace.passed(step, 0.5 * step)
    pace.event({"event": "val", "step": 102, "elapsed_s": 151.0})
    assert tokens_planned(pace, "wallclock_cap", 10**6) == 30_200, "the device had not done what the host had asked for"
    pace.event({"event": "average", "step": 102, "elapsed_s": 251.0})
    pace.event({"event": "stop", "step": 102, "elapsed_s": 251.0})
    assert tokens_planned(pace, "wallclock_cap", 10**6) == 30_200


def test_a_run_that_goes_on_adds_to_what_was_planned_before() -> None:
    pace = Pace(100, 40, 20.0, before=4_500.0)
    for step in range(41, 81):
        pace.event({"event": "step", "step": step, "elapsed_s": step / 2})
    assert pace.planned() == 8_500


# Operations


PRESETS = ("baseline_sp1024", "demo", "tiny", "leader_tiny", "pr1394_tiny", "pr1493_tiny", "pr638_tiny", "ternary_tiny")


@pytest.mark.parametrize("looping", [False, True])
@pytest.mark.parametrize("preset", (*PRESETS, "tiny model.multi_token=mtp_heads", "tiny model.embed=untied"))
def test_operations_are_those_that_torch_counts(preset: str, looping: bool) -> None:
    preset, *sets = preset.split()
    config = resolve(preset, sets).config.model
    model = GPT(config).settle(torch.device("cpu"), "float32", "reference")
    model.looping = looping
    ids = torch.randint(2, config.vocab_size, (1, 64))
    with FlopCounterMode(display=False) as counted:
        loss = model(ids, ids)
    assert counted.get_total_flops() / 64 == pytest.approx(forward_flops(config, 64, looping), rel=0.02)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    total = counted.get_total_flops() + backward.get_total_flops()
    assert total / 64 == pytest.approx(training_flops(config, 64, looping), rel=0.02)


def test_a_window_and_a_loop_change_the_count() -> None:
    config = resolve("leader_tiny").config.model
    assert forward_flops(config, 64, True) > 1.3 * forward_flops(config, 64, False)
    short = resolve("tiny", ["model.window=sliding", "model.window.tokens=15", "model.window.full_layers=1"])
    plain = forward_flops(resolve("tiny").config.model, 64)
    assert plain - forward_flops(short.config.model, 64) == 4 * 64 * (64 - 16)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("NVIDIA A10", None),
        ("Tesla T4", None),
        ("", None),
    ],
)
def test_only_known_peaks_are_known(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
    assert peak_bandwidth(name) in ((None, *PEAK_BANDWIDTH.values()) if peak else (None,))
    assert all(1e14 < value < 1e16 for value in PEAK_FLOPS.values())


def test_bandwidths_are_those_of_the_data_sheets() -> None:
    assert peak_bandwidth("NVIDIA H100 80GB HBM3") == 3.35e12 and peak_bandwidth("NVIDIA H200") == 4.8e12
    assert peak_bandwidth("NVIDIA H100 PCIe") == 2.0e12 and peak_bandwidth("NVIDIA A10") is None
    assert set(PEAK_BANDWIDTH) <= set(PEAK_FLOPS)


def test_linear_maps_are_counted_by_role() -> None:
    config = resolve("tiny").config.model
    blocks = {"attn": 64 * 64 * 2 + 64 * 32 * 2, "mlp": 2 * 2 * 64 * 64}
    expected = {role: 2 * 2 * numel for role, numel in blocks.items()} | {"head": 2 * 512 * 64}
    assert linear_flops(config) == expected
    assert forward_flops(config, 64) == sum(expected.values()) + 2 * 4 * 64 * 64


# Neighbours


def test_lines_of_nvidia_smi() -> None:
    text = "4242, 1024, /usr/bin/python, with a comma\n77, [N/A], gnome-shell\n\n"
    assert parse_smi(text) == [
        {"pid": 4242, "bytes": 1 << 30, "name": "/usr/bin/python, with a comma"},
        {"pid": 77, "bytes": 0, "name": "gnome-shell"},
    ]
    assert parse_smi("") == []
    for bad in ("No devices were found", "x, 1, y"):
        with pytest.raises(ValueError):
            parse_smi(bad)


def test_this_process_is_no_stranger_whatever_its_number() -> None:
    me, other = {"pid": 5, "bytes": 3000, "name": "a"}, {"pid": 6, "bytes": 900, "name": "b"}
    assert strangers([me, other], 5, 0) == [other]
    assert strangers([me], 5, 0) == [] == strangers([], 5, 0)
    assert strangers([me, other], 1, own_bytes=2900) == [other], "a container's numbers are not the machine's"


def test_strangers_are_asked_for_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    gpu = World(device=torch.device("cuda", 0))
    listed = [{"pid": os.getpid(), "bytes": 1, "name": "me"}, {"pid": 1, "bytes": 2 << 20, "name": "miner"}]
    found = others_on(gpu, lambda device: listed)
    assert found == listed[1:] and in_words(found) == "miner (1, 2 MiB)"
    assert others_on(gpu, lambda device: None) is None
    assert others_on(World(), lambda device: listed) == []


def test_without_any_probe_nobody_can_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*argv: Any, **options: Any) -> Any:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(neighbours, "uuid_of", lambda device: "GPU-0")
    monkeypatch.setattr(subprocess, "run", missing)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert neighbours.ask(torch.device("cuda", 0)) is None
    done = subprocess.CompletedProcess([], 0, stdout="9, 2, python\n", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *argv, **options: done)
    assert neighbours.ask(torch.device("cuda", 0)) == [{"pid": 9, "bytes": 2 << 20, "name": "python"}]


# Health


def test_the_first_tensor_that_is_not_finite_is_named() -> None:
    good, huge = torch.ones(3), torch.full((4,), 1e38)
    rows = [("a", good), ("b", huge), ("ids", torch.ones(2, dtype=torch.int64)), ("none", torch.zeros(0))]
    assert not_finite(rows) == "" == not_finite([])
    for value in (float("nan"), float("inf"), -float("inf")):
        bad = torch.tensor([1.0, value])
        assert not_finite([*rows, ("c", bad), ("d", bad)]) == "c"
        assert not_finite([("half", bad.bfloat16()), *rows]) == "half"


def test_whose_fault_it_is(tiny_model: GPT) -> None:
    named = list(tiny_model.named_parameters())
    for _, weight in named:
        weight.grad = torch.zeros_like(weight)
    assert "loss or an activation" in culprit(named)
    named[3][1].grad[0] = torch.nan
    assert culprit(named) == f"the gradient of {named[3][0]} is not finite, all weights are"
    named[2][1].data.view(-1)[0] = torch.inf
    assert culprit(named) == f"the weight {named[2][0]} is not finite"


def test_norms_by_group() -> None:
    def weight(*grad: float) -> torch.Tensor:
        made = torch.zeros(len(grad), requires_grad=True)
        made.grad = torch.tensor(grad)
        return made

    idle = torch.zeros(2, requires_grad=True)
    found = group_norms({"matrix": [weight(3.0, 0.0), weight(4.0), idle], "token": [weight(-2.0)], "head": [idle]})
    assert found == {"matrix": 5.0, "token": 2.0}
    assert group_norms({"head": [idle]}) == {}


def verdicts(losses: list[float], rise: float = 2.0) -> list[int]:
    """Steps at which a run of these losses is given up."""
    divergence = Divergence(rise)
    return [step for step, loss in enumerate(losses, 1) if divergence.verdict(step, loss)]


def test_a_loss_that_stays_up_is_a_divergence() -> None:
    falling = [9.0 - 0.1 * step for step in range(40)]
    assert verdicts(falling) == []
    assert verdicts([*falling, *[8.0] * (LASTING + 2)]) == [40 + LASTING, 40 + LASTING + 1, 40 + LASTING + 2]
    assert verdicts([*falling, *[8.0] * (LASTING - 1), 5.5, *[8.0] * (LASTING - 1)]) == []
    assert verdicts([*falling, *[8.0] * 200], rise=0.0) == []
    assert verdicts([6.9, *[18.0] * 9, *[6.5] * 20]) == [], "the first ten steps may rise"
    assert verdicts([6.9, *[18.0] * (LASTING + 9)]) == [LASTING + 10]


def parts() -> dict[str, torch.Tensor]:
    """Two weights with gradients, one of them in bfloat16, and one without."""
    made = {"a": torch.ones(3), "b": torch.ones(2, 2).bfloat16(), "c": torch.ones(2)}
    for name, weight in made.items():
        weight.requires_grad_()
        weight.grad = None if name == "c" else torch.ones_like(weight)
    return made


def test_losses_that_nobody_has_read_are_read_together() -> None:
    unread = Unread(parts().items(), World())
    assert unread.read() == {} and unread.culprit(1) == SOUND
    for step, loss in ((4, 2.5), (5, 1.0), (6, float("inf"))):
        unread.note(step, torch.tensor(loss))
    assert unread.read() == {4: 2.5, 5: 1.0, 6: float("inf")} and unread.read() == {}


@pytest.mark.parametrize(
    ("poisoned", "words"),
    [
        ({}, SOUND),
        ({"a.grad": 1}, "the gradient of a is not finite, all weights are"),
        ({"a.grad": 1, "b": 1}, "the weight b is not finite"),
        ({"c": 1}, "the weight c is not finite"),
    ],
)
def test_what_was_not_finite_at_the_first_bad_loss_is_known_later(poisoned: dict[str, int], words: str) -> None:
    weights = parts()
    unread = Unread(weights.items(), World())
    unread.note(11, torch.tensor(3.0))
    with torch.no_grad():
        for name in poisoned:
            weight = weights[name[0]]
            (weight.grad if "grad" in name and weight.grad is not None else weight).view(-1)[1] = torch.nan
        unread.note(12, torch.tensor(torch.nan))
        for weight in weights.values():
            weight.fill_(torch.inf)
    for step in range(13, 20):
        unread.note(step, torch.tensor(torch.nan))
    assert [step for step, loss in unread.read().items() if loss == loss] == [11]
    assert unread.culprit(12) == words
    assert unread.culprit(11) == SOUND, "another rank's loss was the first, and here nothing was wrong"


# Recompilations


def test_compilations_are_counted_with_their_reason() -> None:
    def double(x: torch.Tensor) -> torch.Tensor:
        return (2 * x).sum()

    compiled = torch.compile(double, dynamic=False, fullgraph=True, backend="eager")
    compiled(torch.ones(3))
    watch = Recompiles()
    compiled(torch.zeros(3))
    assert watch.news() == []
    compiled(torch.ones(4))
    (found,) = watch.news()
    assert found["function"].startswith("double ") and "size mismatch" in found["reason"]
    assert watch.news() == []
