"""Weights that act as they will be exported: the formulas, and what training with them computes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from pgolf.config.load import resolve
from pgolf.core.dist import World
from pgolf.core.errors import ConfigError
from pgolf.core.model.config import param_specs
from pgolf.core.model.gpt import GPT
from pgolf.core.model.params import ATTN, MLP
from pgolf.core.train.loop import TrainState, Watch, fit, modes, start_state, train_step
from pgolf.core.train.qat import CrownQ, Noise, SoftRound, SoftRounding, StraightThrough
from pgolf.report.touched import touched


def weights(rows: int = 5, columns: int = 40, scale: float = 0.3) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(4)) * scale


def test_rows_are_rounded_to_the_floored_grid_of_the_early_records() -> None:
    matrix = weights()
    matrix[2] *= 20
    found = StraightThrough().weights(matrix, MLP)
    for row, value in zip(matrix, found):
        step = max(float(row.abs().max()), 1.0) / 31
        assert torch.allclose(value, (row / step).round() * step, atol=1e-6)
    assert float(matrix[0].abs().max()) < 1 and len(found[0].unique()) < 31


def test_with_k_the_grid_is_that_of_the_export() -> None:
    from pgolf.core.quant.sdclip import SdClip

    matrix = weights()
    spec = next(spec for spec in param_specs(resolve("tiny").config.model) if spec.role == MLP)
    exported = SdClip(bits=6, k=12.85).quantize(spec, matrix, None).dequantize()
    assert float((StraightThrough(k=12.85).weights(matrix, MLP) - exported).abs().max()) < 1e-3
    assert torch.isfinite(StraightThrough(k=12.85).weights(torch.zeros(3, 8), MLP)).all()


def test_gradients_pass_straight_through() -> None:
    matrix = weights().requires_grad_()
    factor = torch.randn(5, 40, generator=torch.Generator().manual_seed(5))
    (StraightThrough().weights(matrix, MLP) * factor).sum().backward()
    assert torch.equal(matrix.grad, factor)


def test_soft_rounding_goes_from_the_identity_to_rounding() -> None:
    kind = SoftRound(bits=6, k=12.85)
    extras: list[Any] = []
    kind.enlist(extras, torch.device("cpu"), None)
    soft: SoftRounding = extras[0]
    matrix = weights().double()
    steps = kind.steps(matrix)
    assert soft.extra_parts(0.5, 0.5) == () and soft.extra_parts(0.9, 0.49) == (soft,)
    soft.slope.fill_(1e-3)
    assert float(((soft.weights(matrix, MLP) - matrix) / steps).abs().max()) < 1e-6
    soft.extra_parts(1.0, 0.0)
    assert float(soft.slope) == 16
    ratio = (matrix / steps).requires_grad_()
    far = (ratio.detach() - ratio.detach().floor() - 0.5).abs() > 0.2
    rounded = soft.weights(ratio * steps, MLP) / steps
    assert float((rounded - ratio.round()).detach().abs()[far].max()) < 0.01
    rounded.sum().backward()
    assert bool((ratio.grad > 0).all())


def test_soft_rounding_has_the_gradient_of_its_formula() -> None:
    kind = SoftRound(bits=4, k=4.0)
    soft = SoftRounding(kind, torch.tensor(3.0, dtype=torch.float64))
    matrix = weights(2, 6).double()
    steps = kind.steps(matrix)

    def rounded(ratio: torch.Tensor) -> torch.Tensor:
        middle = ratio.detach().floor() + 0.5
        return middle + ((ratio - middle) * 3).tanh() / (2 * torch.tensor(1.5, dtype=torch.float64).tanh())

    ratio = (matrix / steps).requires_grad_()
    assert torch.allclose(rounded(ratio) * steps, soft.weights(matrix, MLP))
    assert torch.autograd.gradcheck(rounded, (ratio,))


def test_noise_is_uniform_within_half_a_step_and_new_every_time() -> None:
    kind, matrix = Noise(bits=6), weights(4, 4000)
    first, second = kind.weights(matrix, ATTN), kind.weights(matrix, ATTN)
    off = (first - matrix) / kind.steps(matrix)
    assert float(off.abs().max()) <= 0.5 + 1e-5 and abs(float(off.mean())) < 0.01
    assert abs(float(off.var()) - 1 / 12) < 0.003 and not torch.equal(first, second)


def test_noise_is_as_wide_as_a_step_of_the_export_however_small_the_row() -> None:
    """max|row| / 127: the export knows no floor."""
    kind, matrix = Noise(), weights(3, 6000, scale=1e-3)
    matrix[1] *= 1e5
    matrix[2] = 0.0
    noise = (kind.weights(matrix, ATTN) - matrix).double()
    for row, found in zip(matrix.double(), noise):
        step = max(abs(float(value)) for value in row) / 127
        assert float(found.abs().max()) <= 0.5 * step * (1 + 1e-3) + 1e-12
        assert float(found.var()) == pytest.approx(step**2 / 12, rel=0.1, abs=1e-24)


def test_noise_is_for_layers_that_run_more_than_once() -> None:
    config = resolve("leader_tiny").config.model
    model = GPT(config)
    model.attach(more=(Noise(),))
    loose = {name for name, module in model.named_modules() if getattr(module, "treatment", None) is not None}
    assert loose and {name.split(".")[1] for name in loose} == {"2", "3"}
    model.attach()
    assert not any(getattr(module, "treatment", None) for module in model.modules())


@pytest.mark.parametrize("preset", ["pr638_tiny", "leader_tiny"])
@pytest.mark.parametrize("kind", ["straight_through", "soft_round", "noise", "crown_q"])
def test_the_report_counts_what_is_covered_and_refuses_nothing(preset: str, kind: str) -> None:
    plain, config = (resolve(preset, [f"train.qat={name}"]).config for name in ("none", kind))
    assert touched(plain.model, plain.optim, plain.train) == touched(config.model, config.optim)
    extras: list[Any] = []
    config.train.qat.enlist(extras, torch.device("cpu"), None)
    model = GPT(config.model)
    model.attach(more=extras[0].extra_parts(0.99, 0.01))
    if (kind, preset) == ("noise", "pr638_tiny"):
        assert not model.covered
        with pytest.raises(ConfigError, match="no layer runs more than once") as caught:
            touched(config.model, config.optim, config.train)
        assert caught.value.where == "train.qat"
    else:
        found = touched(config.model, config.optim, config.train)[f"qat {kind}"]
        assert found == f"{len(model.covered)} matrices" and model.covered


def test_crown_q_adds_the_squared_error_that_rounding_is_expected_to_make() -> None:
    config = resolve("tiny").config.model
    model, ids = GPT(config, 1), torch.arange(2 * 16).view(2, 16)
    plain = model(ids, ids).detach()
    model.attach(more=(CrownQ(weight=500.0),))
    expected = 0.0
    for spec in param_specs(config):
        if spec.role in (ATTN, MLP):
            matrix = model.get_parameter(spec.name).detach().double()
            expected += float((matrix.square() * (matrix.abs().amax(1, keepdim=True) / 15).square()).sum()) / 12
    assert expected > 0 and float(model(ids, ids).detach() - plain) == pytest.approx(500 * expected, rel=1e-4)


@pytest.mark.parametrize("values", [{"bits": 1}, {"bits": 9}, {"k": -1.0}, {"below": 0.0}, {"below": 1.1}])
@pytest.mark.parametrize("kind", [StraightThrough, SoftRound, Noise, CrownQ])
def test_bad_values_are_refused(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**values)
    assert caught.value.where in values


def test_qat_and_other_precisions_or_kernels_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="that model"):
        resolve("ternary_tiny", ["train.qat=noise"])
    with pytest.raises(ConfigError, match="fused kernels"):
        resolve("tiny", ["train.qat=noise", "train.kernels=triton"])


def begin(sets: list[str], preset: str = "tiny") -> tuple[TrainState, Any]:
    """A run before its first step."""
    config = resolve(preset, ["train.iterations=8", "train.val_every=0", "train.log_every=1", *sets]).config
    shards = [np.random.default_rng(0).integers(4, 500, 20_000).astype(np.uint16)]
    return start_state(config.model, config.train, config.optim, shards, 3, World()), config


def run(state: TrainState, config: Any, compiled: bool = False) -> list[dict[str, Any]]:
    """Its events."""
    events: list[dict[str, Any]] = []

    def validate() -> dict[str, Any]:
        return {"covered": len(state.model.covered)}

    fit(
        state,
        config.train,
        config.optim,
        World(),
        Watch(events.append, validate, lambda s: None, lambda: False),
        compiled,
    )
    return events


LATE = ["train.qat=straight_through", "train.qat.below=0.6", "optim.warmdown=fraction", "optim.warmdown.frac=0.9"]


def test_late_qat_begins_on_time_changes_training_and_leaves_validation_alone() -> None:
    state, config = begin([*LATE, "train.val_every=2"])
    events = run(state, config)
    started = [event for event in events if event["event"] == "mode" and event["parts"]]
    assert [event["parts"] for event in started] == [["StraightThrough"]]
    assert optim_scale(config, started[0]["step"]) < 0.6 <= optim_scale(config, started[0]["step"] - 1)
    assert {event["covered"] for event in events if event["event"] in ("val", "stop")} == {0}
    plain_state, plain = begin(LATE[2:])
    losses = [event["loss"] for event in events if event["event"] == "step"]
    others = [event["loss"] for event in run(plain_state, plain) if event["event"] == "step"]
    at = started[0]["step"]
    assert losses[:at] == others[:at] and losses[at] != others[at]


def optim_scale(config: Any, step: int) -> float:
    from pgolf.core.optim.schedules import Progress

    return float(config.optim.warmdown.scale(Progress(step, config.train.iterations, 0.0, 0.0)))


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("straight_through", marks=pytest.mark.slow),
        "soft_round",
        "noise",
        pytest.param("crown_q", marks=pytest.mark.slow),
    ],
)
def test_switching_it_on_changes_the_compiled_forward_without_another_compilation(kind: str) -> None:
    sets = [f"train.qat={kind}", "train.qat.below=0.3", "train.qat.bits=4", *LATE[2:], "train.warmup_steps=1"]
    state, config = begin(sets, "leader_tiny")
    for weight in state.model.parameters():
        weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    before = {name: weight.clone() for name, weight in state.model.state_dict().items()}
    torch._dynamo.reset()
    counter = CompileCounter()
    forward = torch.compile(state.model, dynamic=False, fullgraph=True, backend=counter)
    ids = torch.randint(4, 500, (2, 32), generator=torch.Generator().manual_seed(0))
    losses = {}
    for mode in modes(state, config.train, config.optim):
        state.model.attach(*mode)
        losses[mode[0], bool(mode[2])] = float(forward(ids, ids).detach())
    compiled = counter.frame_count
    assert losses[True, True] != losses[True, False]
    for mode in modes(state, config.train, config.optim):
        state.model.attach(*mode)
        forward(ids, ids)
    assert counter.frame_count == compiled
    assert all(torch.equal(weight, before[name]) for name, weight in state.model.state_dict().items())
    torch._dynamo.reset()


def test_a_compiled_step_computes_what_an_eager_one_does() -> None:
    sets = [*LATE, "train.qat.below=1.0", "optim.warmdown.min_lr=0.5"]
    (one, config), (two, _) = begin(sets), begin(sets)
    ids = torch.randint(4, 500, (2, 64), generator=torch.Generator().manual_seed(0))
    batches = [[ids, ids]] * 8
    losses = []
    for state, forward in ((one, one.model), (two, torch.compile(two.model, backend="aot_eager", fullgraph=True))):
        state.model.attach(False, 0, (StraightThrough(bits=4),))
        losses.append(
            [
                float(
                    train_step(
                        forward, state, iter(batches), config.train, 1.0, World(), Watch(print, dict, print, bool)
                    )
                )
                for _ in range(3)
            ]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch._dynamo.reset()
