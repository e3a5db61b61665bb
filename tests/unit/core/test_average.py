"""Averages of weights: published vectors, closed forms, and what training exports."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pgolf.config.load import resolve
from pgolf.core.dist import World
from pgolf.core.errors import ConfigError, InputError
from pgolf.core.train.average import Ema, Emas, LastWeights, Swa
from pgolf.core.train.clock import Clock
from pgolf.core.train.config import TrainConfig
from pgolf.core.train.loop import TrainState, Watch, fit, start_state


def averaged(kind: Any, weights: list[torch.Tensor], start: torch.Tensor, scales: list[float] | None = None) -> Any:
    """A running average as the loop forms it, and how many steps count in it."""
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(start.clone())
    state = SimpleNamespace(model=model, averages=kind.kept(model), taken=0, step=0)
    for step, weight in enumerate(weights, 1):
        model.weight.data.copy_(weight)
        state.step = step
        kind.absorb(state, scales[step - 1] if scales else 1.0)
    return state.averages[""]["weight"], state.taken


def test_ema_agrees_with_the_record(oracle: Any) -> None:
    golden = oracle("unit_ema.npz")
    decay, start = float(golden["decay"]), torch.from_numpy(golden["ema0"])
    for count in range(1, len(golden["params"]) + 1):
        weights = [torch.from_numpy(row) for row in golden["params"][:count]]
        found, taken = averaged(Ema(decay=decay), weights, start)
        assert taken == count and float((found - torch.from_numpy(golden["ema"][count - 1])).abs().max()) < 1e-6


def test_ema_of_constant_weights_is_a_geometric_series() -> None:
    found, _ = averaged(Ema(decay=0.9), [torch.ones(3)] * 20, torch.zeros(3))
    assert torch.allclose(found, torch.full((3,), 1 - 0.9**20), atol=1e-6)


def test_swa_is_the_mean_of_the_late_weights_at_its_interval() -> None:
    weights = [torch.full((2,), float(step)) for step in range(1, 21)]
    scales = [1.0] * 9 + [0.4] * 11
    found, taken = averaged(Swa(below=0.5, every=3), weights, torch.zeros(2), scales)
    assert taken == 3 and torch.allclose(found, torch.full((2,), (12 + 15 + 18) / 3))


def test_nothing_is_kept_without_an_average(tiny_model: Any) -> None:
    assert LastWeights().kept(tiny_model) == {} and LastWeights().copies == 0


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Ema, {"decay": 1.0}),
        (Ema, {"decay": 0.0}),
        (Swa, {"below": 0.0}),
        (Swa, {"every": 0}),
        (Emas, {"decays": "0.9;0.99"}),
        (Emas, {"decays": "0.9,1.0"}),
        (Emas, {"decays": "0.9,0.90"}),
        (Emas, {"tokens": 1}),
    ],
)
def test_bad_values_are_refused(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**values)
    assert caught.value.where in values


def trained(tmp_path: Path, sets: list[str]) -> tuple[TrainState, list[dict[str, torch.Tensor]], list[dict[str, Any]]]:
    """A short training: its end, the weights after every step, and its events."""
    config = resolve("tiny", ["train.iterations=6", "train.val_every=0", "train.log_every=1", *sets]).config
    shards = [np.random.default_rng(0).integers(4, 500, 20_000).astype(np.uint16)]
    state = start_state(config.model, config.train, config.optim, shards, 3, World())
    history: list[dict[str, torch.Tensor]] = []
    events: list[dict[str, Any]] = []

    def log(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "step":
            history.append({name: weight.clone() for name, weight in state.model.state_dict().items()})

    fit(state, config.train, config.optim, World(), Watch(log, dict, lambda s: None, lambda: False), False)
    return state, history, events


def test_training_exports_the_average(tmp_path: Path) -> None:
    raw, history, _ = trained(tmp_path, [])
    assert all(torch.equal(weight, history[-1][name]) for name, weight in raw.model.state_dict().items())
    state, same, events = trained(tmp_path, ["train.average=ema", "train.average.decay=0.7"])
    assert all(torch.equal(same[-1][name], history[-1][name]) for name in same[-1])
    first = start_weights()
    for name, weight in state.model.state_dict().items():
        expected = first[name]
        for weights in same:
            expected = 0.7 * expected + 0.3 * weights[name]
        assert torch.allclose(weight, expected, atol=1e-6), name
    assert [event["event"] for event in events][-3:] == ["val", "average", "stop"]
    assert events[-2]["taken"] == 6


def start_weights() -> dict[str, torch.Tensor]:
    """The weights `trained` begins with."""
    config = resolve("tiny").config
    shards = [np.zeros(20_000, np.uint16)]
    return dict(start_state(config.model, config.train, config.optim, shards, 3, World()).model.state_dict())


def test_a_stopped_run_keeps_its_raw_weights() -> None:
    config = resolve("tiny", ["train.iterations=6", "train.val_every=0", "train.average=ema"]).config
    shards = [np.random.default_rng(0).integers(4, 500, 20_000).astype(np.uint16)]
    state = start_state(config.model, config.train, config.optim, shards, 3, World())
    events: list[str] = []
    watch = Watch(lambda event: events.append(event["event"]), dict, lambda s: None, lambda: state.step >= 2)
    fit(state, config.train, config.optim, World(), watch, False)
    assert "average" not in events and state.taken == 2
    assert any(not torch.equal(w, state.averages[""][n]) for n, w in state.model.named_parameters())


def test_several_averages_are_those_of_each_decay_alone_and_the_best_on_withheld_tokens_is_exported() -> None:
    sets = ["train.average=emas", "train.average.decays=0.5,0.9", "train.average.tokens=3000", "train.seq_len=64"]
    config = resolve("tiny", ["train.iterations=6", "train.val_every=0", "train.log_every=1", *sets]).config
    ids = np.random.default_rng(0).integers(4, 500, 20_000).astype(np.uint16)
    ids[[16_500, 16_900, 18_000]] = 1
    state = start_state(config.model, config.train, config.optim, [ids], 3, World())
    kept = config.train.average
    assert isinstance(kept, Emas) and kept.cut(ids) == 16_900
    assert [len(shard) for shard in kept.seen([ids])] == [16_900]
    events: list[dict[str, Any]] = []
    fit(state, config.train, config.optim, World(), Watch(events.append, dict, lambda s: None, lambda: False), False)
    event = events[-1]
    losses = event["withheld_losses"]
    assert set(losses) == {"0.5", "0.9"} and event["average"] == min(losses, key=losses.get)
    weights = state.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in state.averages[event["average"]].items())
    for decay in (0.5, 0.9):
        alone = resolve("tiny", ["train.iterations=6", "train.val_every=0", "train.seq_len=64"]).config
        train = replace(alone.train, average=Ema(decay=decay))
        single = start_state(alone.model, train, alone.optim, [ids[:16_900]], 3, World())
        fit(single, train, alone.optim, World(), Watch(lambda e: None, dict, lambda s: None, lambda: False), False)
        for name, value in single.averages[""].items():
            assert torch.equal(value, state.averages[str(decay)][name])


def test_too_little_to_withhold_is_refused() -> None:
    with pytest.raises(InputError, match="too few to withhold"):
        Emas(tokens=1000).seen([np.zeros(100_000, np.uint16), np.zeros(3_999, np.uint16)])


def test_the_reserve_shortens_the_budget() -> None:
    config = TrainConfig(max_wallclock_seconds=600.0, reserve_seconds=12.0)
    assert config.budget_s == 588.0 and TrainConfig(max_wallclock_seconds=0.0).budget_s == 0.0
    with pytest.raises(ConfigError, match="reserve"):
        TrainConfig(max_wallclock_seconds=5.0, reserve_seconds=5.0)
    times = iter(float(second) for second in range(10_000))
    run = resolve("tiny", ["train.max_wallclock_seconds=100", "train.reserve_seconds=60", "train.val_every=0"]).config
    state = start_state(run.model, run.train, run.optim, [np.zeros(20_000, np.uint16)], 3, World())
    state.clock = Clock(now=lambda: next(times))
    watch = Watch(lambda event: None, dict, lambda s: None, lambda: False)
    event = fit(state, run.train, run.optim, World(), watch, False)
    assert event["reason"] == "wallclock_cap" and 40 <= event["elapsed_s"] < 50
