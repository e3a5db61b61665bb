"""What the training loop tells its watch, and what warming up leaves behind: nothing."""

import copy
import math
import random
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from pgolf.config.load import resolve
from pgolf.config.run import RunConfig
from pgolf.core.dist import World
from pgolf.core.errors import RuleError
from pgolf.core.evals.ledger import EvalWatch
from pgolf.core.train.clock import Clock
from pgolf.core.train.loop import TrainState, Watch, fit, start_state, validator, warm_up
from pgolf.report.console import Console
from pgolf.report.watch.stopwatch import Stopwatch
from pgolf.stages.watching import RunWatch


class Recorder(Watch):
    """Keeps everything it hears."""

    def __init__(self) -> None:
        super().__init__(self.keep, self.validated, self.saved, lambda: False)
        self.heard: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.norms: list[float] = []

    def keep(self, event: dict[str, Any]) -> None:
        """log."""
        self.heard.append(event["event"])
        self.events.append(event)

    def validated(self) -> dict[str, Any]:
        """validate."""
        self.heard.append("validate")
        return {}

    def saved(self, state: TrainState) -> None:
        """save."""
        self.heard.append("save")

    def warmed(self, state: TrainState) -> None:
        """Hook."""
        self.heard.append("warmed")

    def phase(self, name: str) -> None:
        """Hook."""
        self.heard.append(name)

    def gradients(self, state: TrainState, loss: torch.Tensor) -> None:
        """Hook: the gradients are there and are those of the loss."""
        self.norms.append(
            sum(float(weight.grad.norm()) for weight in state.model.parameters() if weight.grad is not None)
        )
        assert loss.ndim == 0 and all(one.weight.grad is not None for one in state.optimizers.matrices.values())

    def failed(self, state: TrainState, loss: float) -> None:
        """Hook."""
        self.heard.append("failed")


SHORT = ("train.iterations=6", "train.val_every=4", "train.checkpoint_every=4", "train.val_max_tokens=256")


def short(preset: str, *sets: str) -> RunConfig:
    """A run of six steps."""
    return resolve(preset, [*SHORT, *sets]).config


def started(config: RunConfig, world: World | None = None) -> TrainState:
    """Its start, on made-up tokens."""
    shards = [np.random.default_rng(0).integers(1, 500, 20_000).astype(np.uint16)]
    return start_state(config.model, config.train, config.optim, shards, 3, world or World())


def generators() -> list[Any]:
    """The state of every global generator."""
    return [random.getstate(), torch.get_rng_state().tolist(), [str(part) for part in np.random.get_state()]]


@pytest.mark.parametrize("preset", ["tiny", "leader_tiny", "ternary_tiny", "pr638_tiny", "pr1493_tiny"])
def test_a_run_with_warm_up_equals_one_without(preset: str) -> None:
    config = short(preset, "train.warmup_steps=2", "train.average=ema", "train.loader.kind=shuffled")
    plain, warmed = started(config), started(config)
    before, weights = generators(), copy.deepcopy(warmed.model.state_dict())
    averages = copy.deepcopy(warmed.averages)
    watch = Recorder()
    warm_up(warmed.model, warmed, config.train, config.optim, World(), watch)
    assert generators() == before and len(watch.norms) in (2, 4)
    assert "validate" not in watch.heard and "step" not in watch.heard, "warming up is no training"
    assert all(torch.equal(value, weights[name]) for name, value in warmed.model.state_dict().items())
    assert averages[""] and all(torch.equal(value, averages[""][name]) for name, value in warmed.averages[""].items())
    assert (warmed.step, warmed.taken, warmed.looped, warmed.clock.elapsed_s) == (0, 0, False, 0.0)
    fresh = plain.optimizers.state()
    assert all(torch.equal(value, fresh[name]) for name, value in warmed.optimizers.state().items())
    events = []
    for state in (plain, warmed):
        watch = Recorder()
        fit(state, config.train, config.optim, World(), watch, False)
        events.append([event["loss"] for event in watch.events if event["event"] == "step"])
    assert events[0] == events[1]
    theirs = warmed.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in plain.model.state_dict().items())
    theirs = warmed.optimizers.state()
    assert all(torch.equal(value, theirs[name]) for name, value in plain.optimizers.state().items())


def test_warm_up_visits_every_graph_of_the_schedule() -> None:
    config = short("leader_tiny", "train.warmup_steps=1")
    state = started(config)
    seen: list[bool] = []

    def forward(*batch: Any) -> torch.Tensor:
        seen.append(state.model.looping)
        return state.model(*batch)

    warm_up(forward, state, config.train, config.optim, World(), Recorder())
    assert seen == [False, True]


def test_what_a_step_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    config = short("tiny", "train.micro_batch_tokens=512")
    watch = Recorder()
    fit(started(config), config.train, config.optim, World(), watch, False)
    step = ["data", "forward_backward"] * 2 + ["communication", "optimizer", "other", "step"]
    start = ["warmed", "validate", "val"]
    assert watch.heard == [*start, *step * 4, "save", "validate", "val", *step * 2, "validate", "val", "stop"]
    assert len(watch.norms) == 6 and all(norm > 0 for norm in watch.norms)


def test_the_budget_is_kept_within_one_step_and_validation_is_free() -> None:
    config = short("tiny", "train.iterations=100000", "train.max_wallclock_seconds=50", "train.reserve_seconds=8")
    state, moment = started(config), [100.0]
    state.clock = Clock(now=lambda: moment[0])

    class Slow(Recorder):
        """Every part takes its time."""

        def phase(self, name: str) -> None:
            """Hook."""
            moment[0] += {"data": 0.25, "forward_backward": 1.0, "optimizer": 0.5}.get(name, 0.0)

        def validated(self) -> dict[str, Any]:
            """validate."""
            moment[0] += 1000.0
            return {}

        def saved(self, state: TrainState) -> None:
            """save."""
            moment[0] += 500.0

    event = fit(state, config.train, config.optim, World(), Slow(), False)
    assert event["reason"] == "wallclock_cap" and state.step == math.ceil(42 / 1.75)
    assert 42 <= event["elapsed_s"] == state.clock.elapsed_s < 42 + 1.75


def test_a_loss_that_is_no_number_is_told_before_it_ends_the_run() -> None:
    config = short("tiny")
    state, watch = started(config), Recorder()
    with torch.no_grad():
        next(state.model.parameters()).fill_(torch.nan)
    with pytest.raises(RuleError, match="at step 1"):
        fit(state, config.train, config.optim, World(), watch, False)
    assert watch.heard[-1] == "failed"


# Ranks share what training scores


@dataclass(frozen=True, kw_only=True)
class Together(World):
    """A rank among threads."""

    meet: threading.Barrier
    board: dict[int, torch.Tensor]
    rows: list[int] = field(default_factory=list)
    """Rows of each batch that this rank has scored."""

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Over the threads."""
        self.board[self.rank] = tensor.clone()
        self.meet.wait()
        tensor.copy_(torch.stack([self.board[rank] for rank in range(self.size)]).sum(0))
        self.meet.wait()
        return tensor


@dataclass(frozen=True, kw_only=True)
class Training(Together):
    """A rank among threads that train."""

    def max_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Over the threads."""
        rows = [torch.zeros_like(tensor) for _ in range(self.size)]
        rows[self.rank] = tensor
        return tensor.copy_(self.sum_(torch.stack(rows)).amax(0))

    def largest(self, *values: float) -> list[float]:
        """Over the threads."""
        return list(self.max_(torch.tensor(values, dtype=torch.float64)).tolist())

    def mean_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Over the threads."""
        for tensor in tensors:
            self.sum_(tensor).div_(self.size)

    def gather(self, rows: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Of the threads."""
        whole = torch.zeros(self.size, *rows.shape, dtype=rows.dtype)
        whole[self.rank] = rows
        return self.sum_(whole).flatten(0, 1), False


def on_threads(
    size: int, config: RunConfig, work: Callable[[TrainState, World], Any], kind: type[Together] = Together
) -> list[tuple[Any, list[int]]]:
    """What ranks find, and the rows that each of them has scored."""
    meet, board = threading.Barrier(size, timeout=60), dict[int, torch.Tensor]()
    worlds = [kind(rank=rank, size=size, meet=meet, board=board) for rank in range(size)]
    states = [started(config, world) for world in worlds]
    for state, world in zip(states, worlds):
        forward = state.model.nll

        def nll(ids: torch.Tensor, *rest: Any, forward: Any = forward, world: Together = world) -> torch.Tensor:
            world.rows.append(len(ids))
            return forward(ids, *rest)

        state.model.nll = nll  # type: ignore[method-assign]
    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(work, states, worlds))
    return list(zip(found, (world.rows for world in worlds)))


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_validation_and_all_get_the_number_of_one(size: int) -> None:
    config = short("tiny", "train.val_max_tokens=0", "train.micro_batch_tokens=128")
    tokens = np.random.default_rng(1).integers(1, 500, 64 * 21 + 10)
    charges = np.full(len(tokens) - 1, 3)

    def validate(state: TrainState, world: World) -> dict[str, Any]:
        return validator(state.model, config.train, tokens, charges, EvalWatch(world))()

    ((alone, rows),) = on_threads(1, config, validate)
    assert sum(rows) == 22 and max(rows) == 2 and alone["val_tokens"] == len(tokens) - 1
    shared = on_threads(size, config, validate)
    assert [found for found, _ in shared] == [alone] * size
    assert sum(sum(rows) for _, rows in shared) == 22 and max(sum(rows) for _, rows in shared) < 22 / size + 2


def test_ranks_share_the_choice_of_an_average() -> None:
    sets = ("train.average=emas", "train.average.decays=0.5,0.9", "train.average.tokens=1000")
    config = short("tiny", *sets, "train.micro_batch_tokens=128")

    def choose(state: TrainState, world: World) -> dict[str, Any]:
        for number, name in enumerate(state.averages):
            for weight in state.averages[name].values():
                weight.add_(number * torch.linspace(-0.1, 0.1, weight.numel()).view_as(weight))
        return config.train.average.export(state, config.train, world)

    ((alone, rows),) = on_threads(1, config, choose)
    shared = on_threads(2, config, choose)
    assert [found for found, _ in shared] == [alone] * 2 and len(set(alone["withheld_losses"].values())) == 2
    assert all(sum(mine) <= sum(rows) / 2 + 2 for _, mine in shared)


@pytest.mark.fault(row="F18")
@pytest.mark.parametrize("culprit", [0, 1])
def test_every_rank_tells_whose_fault_a_bad_loss_is(culprit: int) -> None:
    """Also those whose own loss was sound, and whose weights are all spoiled when they hear of it."""
    config = short("tiny", "train.micro_batch_tokens=512", "train.val_every=0", "train.checkpoint_every=0")

    def spoiled(state: TrainState, world: World) -> str:
        class Spoiling(RunWatch):
            """One rank's weight is no number from its third step on."""

            def phase(self, name: str) -> None:
                """Hook."""
                super().phase(name)
                if name == "data" and state.step == 2 and world.rank == culprit:
                    with torch.no_grad():
                        state.model.get_parameter("blocks.1.mlp.fc.weight")[0].fill_(torch.nan)

        watch = Spoiling(
            state, config, world, Console(quiet=True), Stopwatch(state.clock.now), {},
            tell=lambda event: None, validate=dict, save=lambda state, watched: None, stop_asked=lambda: False,
            compiled=False,
        )  # fmt: skip
        with pytest.raises(RuleError) as caught:
            fit(state, config.train, config.optim, world, watch, False)
        return caught.value.what

    found = [said for said, _ in on_threads(2, config, spoiled, Training)]
    assert found == ["the loss is nan: the weight blocks.1.mlp.fc.weight is not finite, at step 3"] * 2
