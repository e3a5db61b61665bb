"""How many cells run at once, with how many threads, and on which GPU; and that every preset survives the trip."""

from pathlib import Path

import pytest
import torch

from pgolf.config.load import preset_names, resolve
from pgolf.config.tree import flatten
from pgolf.core.errors import ConfigError, SetupError
from pgolf.sweep.cell import CELLS
from pgolf.sweep.plan import STAGES
from pgolf.sweep.workers import cluster_workers, local_workers, visible_gpus


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with eight cores, of which torch would use all."""
    monkeypatch.setattr("pgolf.corpus.workers.available_cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("sweep", "jobs", "cells", "slots", "threads"),
    [
        ("train", 0, 9, 1, 8),
        ("train", 2, 9, 2, 4),
        ("quantize", 0, 20, 8, 1),
        ("quantize", 0, 3, 3, 2),
        ("quantize", 3, 20, 3, 2),
        ("eval", 16, 20, 16, 1),
        ("ttt", 0, 1, 1, 8),
    ],
)
def test_cores_are_shared_out(sweep: str, jobs: int, cells: int, slots: int, threads: int) -> None:
    workers = local_workers(sweep, "cpu", jobs, cells)
    assert (workers.device, workers.slots, workers.threads) == ("cpu", slots, threads)
    assert workers.free == [""] * slots


@pytest.mark.usefixtures("eight_cores")
def test_who_asked_for_one_thread_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert local_workers("train", "cpu", 1, 4).threads == 1


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with four GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("device", "jobs", "cells", "places"),
    [
        ("auto", 0, 9, ["0", "1", "2", "3"]),
        ("cuda", 0, 2, ["0", "1"]),
        ("cuda:2", 0, 9, ["2"]),
        ("cuda", 6, 9, ["0", "1", "2", "3", "0", "1"]),
        ("cuda:1", 2, 9, ["1", "1"]),
    ],
)
def test_every_gpu_gets_a_cell(device: str, jobs: int, cells: int, places: list[str]) -> None:
    workers = local_workers("train", device, jobs, cells)
    assert workers.device == "cuda" and workers.free == places and workers.slots == len(places)


@pytest.mark.usefixtures("four_gpus")
def test_gpus_are_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7,GPU-ab,1")
    assert visible_gpus(4) == ["5", "7", "GPU-ab", "1"]
    assert local_workers("train", "cuda:2", 0, 9).free == ["GPU-ab"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(SetupError):
        local_workers("train", "cuda", 0, 1)


@pytest.mark.parametrize("text", ["timeout_min", "=5", "a b=5"])
def test_a_cluster_setting_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        cluster_workers("local", [text], Path("jobs"), "auto", 1)


def test_every_sweep_has_its_cell() -> None:
    assert set(CELLS) == set(STAGES)


@pytest.mark.parametrize("preset", preset_names())
def test_a_configuration_reaches_the_cell_unchanged(preset: str) -> None:
    """As nested values, and the sections of a score as --set has them."""
    values = resolve(preset).values
    assert resolve(stored=values).values == values
    for stage in ("eval", "ttt"):
        sets = [f"{key}={value}" for name in ("model", stage) for key, value in flatten(values[name], name).items()]
        config = resolve(sets=sets).values
        assert config["model"] == values["model"] and config[stage] == values[stage]
