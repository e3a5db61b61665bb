"""Fixtures every test may use: reference vectors, seeds, and models small enough for a CPU."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import error_record
import numpy as np
import pytest
import torch
from hypothesis import settings

from pgolf.core.model.config import ModelConfig
from pgolf.core.model.gpt import GPT
from pgolf.restricted import torch_is_safe

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Note the errors that tests provoke."""
    parser.addoption("--errors", metavar="FILE", help="append every error of pgolf that a test provokes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tell reports which rows of docs/reliability.md a test covers, skip what this torch cannot do, and put what takes
    longest first.
    """
    unsafe = pytest.mark.skip(reason="torch before 2.10 reads no foreign .pt file safely")
    for item in items:
        if item.get_closest_marker("reads_pt") and not torch_is_safe():
            item.add_marker(unsafe)
        item.user_properties += [("fault", mark.kwargs["row"]) for mark in item.iter_markers("fault")]
    items.sort(
        key=lambda item: "test_campaigns" not in item.nodeid
    )  # the longest of all, so that nothing waits for them


def pytest_configure(config: pytest.Config) -> None:
    """Begin before the first test; what tests and their processes keep in caches, they keep in a folder of theirs."""
    error_record.start(config)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = TemporaryDirectory(prefix="pgolf-caches-")
        config.add_cleanup(folder.cleanup)
        os.environ["XDG_CACHE_HOME"] = folder.name


settings.register_profile("pgolf", deadline=None, max_examples=25, derandomize=True, database=None)
settings.load_profile("pgolf")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference vectors and real data that lies beside the repository."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"needs the reference data in {path}")
    return path.resolve()


@pytest.fixture(scope="session")
def oracle(request: pytest.FixtureRequest) -> Callable[[str], dict[str, np.ndarray]]:
    """Name of an .npz file -> its arrays, from tests/golden, else from shared/oracles, else the test is skipped."""

    def load(name: str) -> dict[str, np.ndarray]:
        path = GOLDEN / name
        if not path.is_file():
            path = request.getfixturevalue("shared") / "oracles" / name
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    return load


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Global generators start equal in every test; tests that draw numbers use `rng` or a generator of their own."""
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded numpy generator."""
    return np.random.default_rng(20240520)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """Three layers of width 16, grouped heads, 60 ids."""
    return ModelConfig(vocab_size=60, num_layers=3, model_dim=16, num_heads=2, num_kv_heads=1)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., GPT]:
    """Config (and seed) -> a model whose every parameter is moved away from its start, so that no term drops out."""

    def build(config: ModelConfig, seed: int = 0) -> GPT:
        model = GPT(config, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
        return model

    return build


@pytest.fixture
def tiny_model(tiny_config: ModelConfig, make_model: Callable[..., GPT]) -> GPT:
    """A fresh model of `tiny_config` in which every part has an effect."""
    return make_model(tiny_config)
