"""What changes in the course of a run: rows, windows, the weights of targets, and rates with the width."""

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from pgolf.config.load import resolve
from pgolf.core.dist import World
from pgolf.core.errors import ConfigError
from pgolf.core.model.gpt import GPT
from pgolf.core.optim.optimizers import Optimizers
from pgolf.core.optim.rates import MupWidth
from pgolf.core.train.byte_loss import ByteWeighted
from pgolf.core.train.growth import GrowingLength, GrowingWindow, Horizon
from pgolf.core.train.loop import TrainState, Watch, fit, modes, start_state
from pgolf.stages.train import own_limits


@pytest.fixture(autouse=True)
def usual_limit() -> Iterator[None]:
    """What schedules let torch compile stays in this test."""
    with torch._dynamo.config.patch(recompile_limit=8):
        yield


def begin(sets: list[str], preset: str = "tiny", token_bytes: Any = None) -> tuple[TrainState, Any]:
    """A run of 12 steps before its first."""
    config = resolve(preset, ["train.iterations=12", "train.val_every=0", "train.log_every=1", *sets]).config
    shards = [np.random.default_rng(0).integers(4, 500, 40_000).astype(np.uint16)]
    return start_state(config.model, config.train, config.optim, shards, 3, World(), token_bytes), config


def run(state: TrainState, config: Any) -> list[dict[str, Any]]:
    """Its events."""
    events: list[dict[str, Any]] = []
    fit(state, config.train, config.optim, World(), Watch(events.append, dict, lambda s: None, lambda: False), False)
    return events


def test_rows_double_in_equal_intervals() -> None:
    kind = GrowingLength(first=128, until=0.6)
    lengths = [kind.length(fraction, 1024) for fraction in (0.0, 0.19, 0.21, 0.39, 0.41, 0.59, 0.6, 1.0)]
    assert lengths == [128, 128, 256, 256, 512, 512, 0, 0]


@pytest.mark.parametrize(("first", "seq_len"), [(100, 1024), (1024, 1024), (2048, 1024), (256, 768)])
def test_rows_must_double_to_the_full_length(first: int, seq_len: int) -> None:
    with pytest.raises(ConfigError, match="power of two"):
        GrowingLength(first=first).check(seq_len)


def test_short_rows_hold_the_same_tokens_in_the_same_order() -> None:
    sets = ["train.seq_len=64", "train.length_schedule=growing", "train.length_schedule.first=16"]
    state, config = begin(sets)
    shapes: list[tuple[int, ...]] = []
    forward = state.model.forward

    def spied(ids: torch.Tensor, targets: torch.Tensor, starts: Any = None) -> torch.Tensor:
        shapes.append(tuple(ids.shape))
        assert torch.equal(ids.flatten()[1:], targets.flatten()[:-1]) or ids.size(1) == 64
        return forward(ids, targets, starts)

    state.model.forward = spied  # type: ignore[method-assign]
    events = run(state, config)
    rows = config.train.micro_batch_tokens // 16
    assert shapes[0] == (rows, 16) and shapes[-1] == (rows // 4, 64)
    assert [shape[1] for shape in shapes] == sorted(shape[1] for shape in shapes)
    assert [event["length"] for event in events if event["event"] == "mode"] == [16, 32, 0]


def random_model(sets: list[str]) -> GPT:
    """A model in which everything has an effect."""
    model = GPT(resolve("tiny", sets).config.model, 0)
    for parameter in model.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    return model


def test_a_window_bounds_attention_and_only_in_training() -> None:
    kind = GrowingWindow(first=8, last=32, until=0.9)
    assert [kind.extra_parts(f, 1.0) for f in (0.0, 0.29, 0.31, 0.61, 0.9)] == [
        (Horizon(tokens=8),),
        (Horizon(tokens=8),),
        (Horizon(tokens=16),),
        (Horizon(tokens=32),),
        (),
    ]
    model = random_model([])
    ids = torch.randint(4, 500, (1, 64), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 0] = 3
    layers = model.config.num_layers
    with torch.no_grad():
        model.attach(more=(Horizon(tokens=4),))
        near, far = 4 * layers, slice(4 * layers + 1, None)
        same = model.hidden(ids)[0] - model.hidden(other)[0]
        assert bool((same[far] == 0).all()) and float(same[:near].abs().max()) > 0
        model.attach()
        assert float((model.hidden(ids)[0] - model.hidden(other)[0])[far].abs().max()) > 0


def test_the_shorter_of_two_windows_holds() -> None:
    sets = ["model.window=sliding", "model.window.tokens=6", "model.window.full_layers=0"]
    model = random_model(sets)
    ids = torch.randint(4, 500, (1, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = model.hidden(ids)
        model.attach(more=(Horizon(tokens=20),))
        assert torch.equal(model.hidden(ids), own)
        model.attach(more=(Horizon(tokens=2),))
        assert not torch.equal(model.hidden(ids), own)


def test_every_shape_of_the_schedules_is_compiled_once_in_warm_up() -> None:
    sets = [
        "train.seq_len=64",
        "train.length_schedule=growing",
        "train.length_schedule.first=16",
        "train.window_schedule=growing",
        "train.window_schedule.first=8",
        "train.window_schedule.last=16",
        "train.window_schedule.until=0.4",
    ]
    state, config = begin(sets)
    torch._dynamo.reset()
    counter = CompileCounter()
    forward = torch.compile(state.model, dynamic=False, fullgraph=True, backend=counter)
    found = modes(state, config.train, config.optim)
    ids = torch.zeros(1, 64, dtype=torch.int64)
    for _ in range(2):
        for mode in found:
            state.model.attach(*mode)
            width = mode[1] or 64
            forward(ids.view(-1, width), ids.view(-1, width))
        assert counter.frame_count == len(found) == 4
    torch._dynamo.reset()


def test_what_training_lets_torch_compile_is_put_back() -> None:
    for raised in (False, True):
        with own_limits(raised):
            assert torch._dynamo.config.recompile_limit == 8
    with own_limits(True):
        GrowingLength(first=16).enlist([], None, None)
        assert torch._dynamo.config.recompile_limit == 64
    assert torch._dynamo.config.recompile_limit == 8


def test_schedules_may_have_more_graphs_than_torch_compiles_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = ["train.seq_len=64", "train.length_schedule=growing", "train.length_schedule.first=4"]
    sets += ["train.window_schedule=growing", "train.window_schedule.first=2", "train.window_schedule.last=32"]
    torch._dynamo.reset()
    sets += ["train.window_schedule.until=0.9", "train.iterations=40", "train.warmup_steps=1"]
    counter, compiled = CompileCounter(), list[int]()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))

    class Counting(Watch):
        """Looks when warm-up is over."""

        def warmed(self, state: TrainState) -> None:
            """Hook."""
            compiled.append(counter.frame_count)

    events: list[dict[str, Any]] = []
    watch = Counting(events.append, dict, lambda state: None, lambda: False)
    state, config = begin(sets)
    fit(state, config.train, config.optim, World(), watch, True)
    assert compiled == [counter.frame_count] == [len(modes(state, config.train, config.optim))] and compiled[0] > 8
    assert len({(event["length"], *event["parts"]) for event in events if event["event"] == "mode"}) > 4
    assert state.step == 40
    torch._dynamo.reset()


def test_targets_weigh_by_a_power_of_their_bytes() -> None:
    token_bytes = np.random.default_rng(1).integers(0, 9, 512)
    extras: list[Any] = []
    ByteWeighted(power=0.5).enlist(extras, torch.device("cpu"), token_bytes)
    model = GPT(resolve("tiny").config.model, 2)
    ids = torch.randint(4, 500, (2, 33), generator=torch.Generator().manual_seed(0))
    ids, targets = ids[:, :-1], ids[:, 1:]
    losses = model.nll(ids, targets).detach().double()
    weights = torch.from_numpy(np.maximum(token_bytes, 1) ** 0.5)[targets]
    model.attach(more=extras[0].extra_parts(0.0, 1.0))
    expected = float((losses * weights).sum() / weights.sum())
    assert float(model(ids, targets).detach()) == pytest.approx(expected, rel=1e-5)
    assert abs(expected - float(losses.mean())) > 1e-4


def test_equal_bytes_train_as_the_plain_mean_does() -> None:
    plain = [event["loss"] for event in run(*begin([])) if event["event"] == "step"]
    same = run(*begin(["train.loss=byte_weighted"], token_bytes=np.full(512, 3)))
    assert [event["loss"] for event in same if event["event"] == "step"] == pytest.approx(plain, rel=1e-4)


def trained_loss(width: int, rule: str, factor: float) -> float:
    """The loss of a short training whose Adam rates are `factor` times those of width 32."""
    sets = [
        f"model.model_dim={width}",
        "train.batch_tokens=1024",
        "train.micro_batch_tokens=1024",
        "train.seq_len=32",
        f"optim.width_rule={rule}",
        *(["optim.width_rule.base_dim=32"] if rule == "mup" else []),
        f"optim.token_lr={0.05 * factor}",
        "optim.warmdown=fraction",
        "train.iterations=40",
    ]
    config = resolve("tiny", [*sets, "train.val_every=0", "train.log_every=1"]).config
    rng = np.random.default_rng(5)
    words = rng.integers(4, 500, (60, 4)).astype(np.uint16)
    shards = [words[rng.zipf(1.5, 30_000) % 60].ravel()]
    state = start_state(config.model, config.train, config.optim, shards, 3, World())
    losses = [event["loss"] for event in run(state, config) if event["event"] == "step"]
    return float(np.mean(losses[-8:]))


@pytest.mark.slow
def test_mup_keeps_the_best_rate_from_one_width_to_another() -> None:
    factors = (0.1, 1.0, 10.0)
    best = {
        (width, rule): min(factors, key=lambda factor: trained_loss(width, rule, factor))
        for width, rule in ((32, "mup"), (256, "mup"))
    }
    assert best[32, "mup"] == best[256, "mup"]


def test_mup_scales_the_rates_of_tables_alone() -> None:
    config = resolve("tiny", ["optim.width_rule=mup", "optim.width_rule.base_dim=32", "optim.token_weight_decay=0.1"])
    model = GPT(config.config.model, 0)
    optim = config.config.optim
    ratio = 32 / config.config.model.model_dim
    scaled = {group["base"] for group in Optimizers(model, optim, World()).adam.param_groups}
    plain_optim = replace(optim, width_rule=type(optim.decay_schedule)())
    plain = {group["base"] for group in Optimizers(model, plain_optim, World()).adam.param_groups}
    assert (optim.token_lr * ratio, 0.1 / ratio) in scaled and (optim.token_lr, 0.1) in plain
    assert len(scaled & plain) == len(plain) - 1
    with pytest.raises(ConfigError):
        MupWidth(base_dim=0)
