"""Whole pipelines on a GPU that is not there: nothing is left behind on the CPU or mixed with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import TECHNIQUES, Result, technique_sets
from pretended_gpu import CUDA, Far, Generator, pretended_gpu

from pgolf.config.load import preset_names

Pgolf = Callable[..., Result]
SMALL = (
    *("train.iterations=3", "train.val_max_tokens=512", "train.compile=off", "train.precision=float32"),
    *("eval.max_tokens=512", "ttt.max_tokens=512", "model.vocab_size=512"),
)
CLOSE_NATS = 0.02
"""How far losses may lie apart: Muon's products are in bfloat16, and torch divides them otherwise on a GPU."""
BESIDE_METHODS = {
    "curvature": ("quant.method=gptq", "quant.steps=curvature", "quant.rounding=trellis", "quant.states=4"),
    "coupled": ("quant.method=lqer", "quant.rounding=trellis", "quant.states=4", "quant.couple=rows"),
    "its own text": ("quant.method=gptq", "quant.calibration_source=self"),
    "gram": ("optim.matrix=muon", "optim.matrix.iteration=gram"),
}
"""What no slot chooses."""

pytestmark = pytest.mark.skipif(
    torch.backends.cuda.is_built(), reason="a torch that is built for GPUs asks for a real one"
)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda near, far: near + far,
        lambda near, far: far.addmm_(near, near),
        lambda near, far: near.add_(far[0, 0]),
        lambda near, far: torch.cat((near, far)),
        lambda near, far: torch.where(far > 0, near, far),
        lambda near, far: near[far.argsort()],
        lambda near, far: torch.nn.functional.embedding(near.long().abs(), far),
        lambda near, far: far @ near,
        lambda near, far: far.normal_(generator=torch.Generator()),
        lambda near, far: torch.randn(3, generator=torch.Generator(CUDA)),
        lambda near, far: far.numpy(),
    ],
)
def test_what_a_gpu_refuses_is_refused(mixed: Callable[..., Any]) -> None:
    with pretended_gpu(), pytest.raises((RuntimeError, TypeError), match=r"same device|device type"):
        mixed(torch.ones(4, 4), torch.ones(4, 4, device=CUDA))


def test_what_a_gpu_computes_is_computed() -> None:
    torch.manual_seed(0)
    near = torch.randn(4, 8, requires_grad=True)
    near.square().sum().backward()
    with pretended_gpu():
        far = near.detach().to(CUDA).requires_grad_()
        assert isinstance(far, Far) and far.device == CUDA and far.square().device == CUDA
        far.square().sum().backward()
        assert far.grad is not None and far.grad.device == CUDA and torch.equal(far.grad.cpu(), near.grad)
        assert far[torch.tensor([1, 2])].device == CUDA and (far + torch.tensor(1.0)).device == CUDA
        half = torch.nn.Linear(8, 2).to(CUDA).bfloat16()
        assert {weight.device for weight in half.parameters()} == {CUDA} and half(far.bfloat16()).device == CUDA
        view = far.detach()[:, :2]
        view.zero_()
        assert far[:, :2].abs().sum().item() == 0 and far.tolist()[0][2] == near[0, 2].item()
        assert torch.randn(3, device=CUDA, generator=torch.Generator(CUDA).manual_seed(1)).device == CUDA
        assert isinstance(torch.Generator(), Generator)
    assert not torch.cuda.is_available() and not isinstance(torch.Generator(), Generator)


def pipeline(pgolf: Pgolf, data: Path, out: Path, preset: str, *sets: str) -> list[float]:
    """From shards to the score after test-time training on the pretended GPU, then the same on the CPU: how far the
    losses of the stages, in nats, lie apart.
    """
    argv = ["run", "--data", data, "--preset", preset, "--until", "ttt", "--quiet"]
    argv += [word for one in (*SMALL, *sets) for word in ("--set", one)]
    with pretended_gpu():
        pgolf(*argv, "--out", out / "gpu").good()
    pgolf(*argv, "--out", out / "cpu").good()
    losses = []
    for stage in ("train", "quantize", "eval", "ttt"):
        far, near = (json.loads((out / place / stage / "score.json").read_text()) for place in ("gpu", "cpu"))
        assert (far["device"], near["device"]) == ("cuda:0", "cpu")
        losses.append(abs(far["score"]["val_loss"] - near["score"]["val_loss"]))
    return losses


def test_the_whole_road_on_a_gpu(tiny_run: Path, tmp_path: Path, pgolf: Pgolf) -> None:
    assert max(pipeline(pgolf, tiny_run / "data", tmp_path, "tiny")) < CLOSE_NATS


@pytest.mark.slow
@pytest.mark.parametrize("preset", [name for name in preset_names() if name.endswith("_tiny")])
def test_every_small_preset_on_a_gpu(preset: str, tiny_run: Path, tmp_path: Path, pgolf: Pgolf) -> None:
    assert max(pipeline(pgolf, tiny_run / "data", tmp_path, preset)) < CLOSE_NATS


@pytest.mark.slow
@pytest.mark.parametrize("sets", BESIDE_METHODS.values(), ids=BESIDE_METHODS)
def test_every_method_on_a_gpu(sets: tuple[str, ...], tiny_run: Path, tmp_path: Path, pgolf: Pgolf) -> None:
    assert max(pipeline(pgolf, tiny_run / "data", tmp_path, "tiny", *sets)) < CLOSE_NATS


PROGRAMS = {"lrzip": "lrzip", "pergroup": "lrzip", "zpaq": "zpaq"}
"""Codecs that run a program."""


@pytest.mark.slow
@pytest.mark.parametrize("choice", TECHNIQUES, ids="-".join)
def test_every_technique_on_a_gpu(choice: tuple[str, str], tiny_run: Path, tmp_path: Path, pgolf: Pgolf) -> None:
    program = PROGRAMS.get(choice[1], "")
    if program and not shutil.which(program):
        pytest.skip(f"needs the program {program}")
    assert max(pipeline(pgolf, tiny_run / "data", tmp_path, "tiny", *technique_sets(*choice))) < CLOSE_NATS
