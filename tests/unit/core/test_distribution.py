"""One, two and four ranks over gloo compute the same: losses, weights, and what a resumed run needs."""

import dataclasses
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from warm import run_ranks

from pgolf.config.load import resolve
from pgolf.core.dist import World, join_world
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.params import MATRIX
from pgolf.core.model.parts.layer_loop import LayerLoop
from pgolf.core.optim.config import OptimConfig
from pgolf.core.optim.muon import Muon, NorMuon
from pgolf.core.optim.parallel import Banks
from pgolf.core.optim.schedules import FractionWarmdown
from pgolf.core.train.config import TrainConfig
from pgolf.core.train.loop import TrainState, Watch, fit, start_state, warm_up

STEPS, HALF = 20, 10
MODEL = ModelConfig(vocab_size=64, num_layers=3, model_dim=32, num_heads=4, num_kv_heads=4)
LOOPED = dataclasses.replace(MODEL, loop=LayerLoop(start=1, end=1, extra_passes=1, enable_at=0.5, lora_rank=4))
TRAIN = TrainConfig(
    iterations=STEPS,
    batch_tokens=512,
    micro_batch_tokens=128,
    seq_len=32,
    max_wallclock_seconds=0.0,
    val_every=0,
    checkpoint_every=HALF,
    warmup_steps=2,
)
OPTIM = OptimConfig(
    matrix=Muon(bfloat16=False, weight_decay=0.05, momentum_warmup_steps=10),
    warmdown=FractionWarmdown(frac=0.5),
    grad_clip=0.3,
)
BANKS = dataclasses.replace(OPTIM, parallel=Banks())
EVERY = {
    "matrix": NorMuon(bfloat16=False, paired_heads=True, iteration="gram", momentum_warmup_steps=10),
    "clip_mode": "adaptive",
    "adam_every": 2,
}
CASES = {
    "replicated": (MODEL, OPTIM),
    "banks": (MODEL, BANKS),
    "every variant, replicated": (MODEL, dataclasses.replace(OPTIM, **EVERY)),
    "every variant, banks": (MODEL, dataclasses.replace(BANKS, **EVERY)),
    "matrices that come late, replicated": (LOOPED, OPTIM),
    "matrices that come late, banks": (LOOPED, BANKS),
}
"""What gives the same losses on any number of ranks."""
PRESETS = {"leader_tiny": 4096, "pr1512_tiny": 1024}
"""As they are but for a batch of so many tokens, four micro-batches: bfloat16, and each rank clips its own gradient."""
SIZES = (1, 2, 4)


def shards() -> list[np.ndarray]:
    """Tokens of which one mostly decides the next."""
    draw = np.random.default_rng(7)
    steps = np.where(draw.random(40_000) < 0.7, 3, draw.integers(0, 64, 40_000))
    return [(np.cumsum(steps) % 64).astype(np.uint16)]


def text() -> list[np.ndarray]:
    """English in bytes, a 1 before each document."""
    documents = "\x01".join(["", *(topics[name] for name in sorted(topics)[:20])])
    return [np.frombuffer(documents.encode(), np.uint8).astype(np.uint16)]


def snapshot(state: TrainState) -> dict[str, Any]:
    """Copies of all weights and of all an optimizer remembers, whole on every rank."""
    weights, held = state.model.state_dict(), state.optimizers.state()
    return {
        "weights": {name: value.clone() for name, value in weights.items()},
        "held": {name: value.clone() for name, value in held.items()},
    }


def go_on(state: TrainState, train: TrainConfig, optim: OptimConfig, world: World) -> dict[str, Any]:
    """Train to the end: the loss of every step, what a checkpoint half-way holds, how the ranks stand at the end."""
    found: dict[str, Any] = {"losses": [], "norms": []}

    def log(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            found["losses"].append(event["loss"])
            found["norms"].append(event["grad_norm"])

    watch = Watch(log, dict, lambda now: found.update(half=snapshot(now)), lambda: False)
    fit(state, train, optim, world, watch, False)
    gaps = [
        not torch.equal(world.sum_(weight.clone()) / world.size, weight) for weight in state.model.state_dict().values()
    ]
    found["agree"] = not world.any(any(gaps))
    kept = sum(value.numel() for one in state.optimizers.matrices.values() for value in one.memory.values())
    return found | {"kept": int(world.sum_(torch.tensor(kept))), "kept_here": kept}


def everything(world: World, before: Path | None) -> dict[str, Any]:
    """All cases; with the file of another number of ranks, also what follows from its checkpoint half-way."""
    found: dict[str, Any] = {}
    for name, (model, optim) in CASES.items():
        found[name] = go_on(start_state(model, TRAIN, optim, shards(), 5, world), TRAIN, optim, world)
    state = start_state(MODEL, TRAIN, BANKS, shards(), 5, world)
    warm_up(state.model, state, TRAIN, BANKS, world, Watch(print, dict, print, bool))
    found["warmed up"] = go_on(state, TRAIN, BANKS, world)
    for name in ("replicated", "banks") if before else ():
        stored, optim = torch.load(before)[name]["half"], CASES[name][1]
        state = start_state(MODEL, TRAIN, optim, shards(), 99, world)
        state.model.load_state_dict(stored["weights"])
        state.optimizers.load(stored["held"])
        state.step = HALF
        found[f"{name}, resumed"] = go_on(state, TRAIN, optim, world)
    return found


def preset(name: str, world: World, before: Path | None) -> dict[str, Any]:
    """One of the presets."""
    batch = [f"train.batch_tokens={PRESETS[name]}", f"train.micro_batch_tokens={PRESETS[name] // 4}"]
    config = resolve(name, [*batch, "train.val_every=0"]).config
    state = start_state(config.model, config.train, config.optim, text(), 5, world)
    return go_on(state, config.train, config.optim, world)


def test_ranks_wait_without_the_barrier_that_warns_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's own, which on the first rank speaks of a device that it was not told."""
    waited: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op: waited.append(tensor))
    World().barrier()
    assert not waited
    World(size=2).barrier()
    assert len(waited) == 1


Work = Callable[[World, Path | None], dict[str, Any]]


def one_rank(rank: int, work: Work, size: int, port: int, folder: Path) -> None:
    """A process of its own among `size`; the first writes what it found."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    world = join_world("cpu")
    found = work(world, folder / f"{size // 2}.pt")
    if world.leads:
        torch.save(found, folder / f"{size}.pt")
    world.barrier()
    world.close()
    os._exit(0)  # threads of connections may abort an interpreter that is taken down (pytorch issue 38228)


def on_ranks(work: Work, folder: Path) -> dict[int, dict[str, Any]]:
    """Number of ranks -> what they found; more than one may go on where half as many stood."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.save(work(World(), None), folder / "1.pt")
    torch.set_num_threads(threads)
    for size in SIZES[1:]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        run_ranks(one_rank, size, work, size, port, folder)
    return {size: torch.load(folder / f"{size}.pt") for size in SIZES}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """All cases by number of ranks."""
    return on_ranks(everything, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def preset_found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """A preset by number of ranks."""
    return on_ranks(partial(preset, request.param), tmp_path_factory.mktemp("preset"))


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("name", [*CASES, "warmed up"])
def test_losses_are_those_of_one_rank(found: dict[int, dict[str, Any]], name: str, size: int) -> None:
    one, many = found[1][name], found[size][name]
    assert len(one["losses"]) == STEPS and one["losses"][-1] < 0.9 * one["losses"][0]
    assert many["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert many["norms"] == pytest.approx(one["norms"], rel=1e-3) and min(one["norms"]) > 0.3
    assert many["agree"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [name for name in CASES if "banks" in name])
def test_banks_step_as_replicated_matrices_do(found: dict[int, dict[str, Any]], name: str, size: int) -> None:
    banks, replicated = found[size][name], found[size][name.replace("banks", "replicated")]
    assert banks["losses"] == pytest.approx(replicated["losses"], rel=0 if size == 1 else 1e-5)
    assert banks["norms"] == pytest.approx(replicated["norms"], rel=0 if size == 1 else 1e-3)


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize(
    "preset_found", [pytest.param("leader_tiny", marks=pytest.mark.slow), "pr1512_tiny"], indirect=True
)
def test_presets_as_they_are_stay_close(preset_found: dict[int, dict[str, Any]], size: int) -> None:
    one, many = preset_found[1], preset_found[size]
    assert many["losses"] == pytest.approx(one["losses"], rel=5e-3) and len(one["losses"]) == STEPS
    assert many["agree"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_each_rank_remembers_its_share_and_a_checkpoint_has_all(
    found: dict[int, dict[str, Any]], name: str, size: int
) -> None:
    one, many = found[1][name], found[size][name]
    assert many["kept"] == one["kept"] == one["kept_here"]
    assert many["kept_here"] < 1.5 * one["kept"] / size
    assert list(many["half"]["held"]) == list(one["half"]["held"])
    matrices = [spec.name for spec in param_specs(CASES[name][0]) if spec.group == MATRIX]
    assert {f"momentum.{matrix}" for matrix in matrices} <= set(many["half"]["held"])
    for part in ("held", "weights"):
        for key, value in one["half"][part].items():
            torch.testing.assert_close(many["half"][part][key], value, rtol=2e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("name", ["replicated", "banks"])
def test_another_number_of_ranks_goes_on_from_a_checkpoint(
    found: dict[int, dict[str, Any]], name: str, size: int
) -> None:
    assert found[size][f"{name}, resumed"]["losses"] == pytest.approx(found[1][name]["losses"][HALF:], rel=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_warm_up_leaves_no_trace_in_banks(found: dict[int, dict[str, Any]], size: int) -> None:
    warm, cold = found[size]["warmed up"], found[size]["banks"]
    assert warm["losses"] == cold["losses"]
    assert all(torch.equal(value, cold["half"]["held"][key]) for key, value in warm["half"]["held"].items())
