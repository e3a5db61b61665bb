"""Steps for a budget: found on real checkpoints of tiny models, and on one whose costs are known in closed form."""

import dataclasses
import math
import re

import pytest
import torch
from torch import Tensor

from pgolf.config.load import resolve
from pgolf.core.errors import ConfigError, RuleError
from pgolf.core.model.config import param_specs
from pgolf.core.model.params import CONTROL
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.core.quant.roles import ByRole
from pgolf.core.quant.row_quantile import RowQuantile
from pgolf.core.quant.sdclip import SdClip
from pgolf.report.console import Console
from pgolf.stages.budget import CLIPPED, COMPRESSIONS, SLACK, Fitter

MATTERS = {"embed": 5.0, "attn": 1.0, "mlp": 0.2}
"""What a squared error counts, by role."""
FIXED = 3000


class Case:
    """Gaussian weights, a cost that is quadratic in the errors, and a size that is that of the codes' entropy."""

    def __init__(self, *sets: str, matters: dict[str, float] = MATTERS) -> None:
        wide = ["model.model_dim=128", "model.num_heads=4", "model.num_kv_heads=2", "model.vocab_size=512"]
        self.config = resolve("tiny", [*wide, "quant.method=sdclip", *sets]).config
        self.specs = [spec for spec in param_specs(self.config.model) if spec.role != CONTROL]
        draw = torch.Generator().manual_seed(3)
        self.weights = {
            spec.name: torch.randn(spec.shape, generator=draw) if spec.role != CONTROL else torch.ones(spec.shape)
            for spec in param_specs(self.config.model)
        }
        self.matters, self.sizes = matters, list[int]()
        self.fitter = Fitter(self.config, self.weights, lambda quantizer: {}, self.cost, self.total, Console(True))

    def cost(self, model: QuantizedModel) -> Tensor:
        """Sixteen equal parts of the weighted squared error."""
        total = 0.0
        for spec in self.specs:
            found = model.tensors[spec.name]
            assert isinstance(found, QTensor)
            total += self.matters[spec.role] * float((self.weights[spec.name] - found.dequantize()).square().sum())
        return torch.full((16,), total / 16, dtype=torch.float64)

    def total(self, quantizer: object, model: QuantizedModel) -> int:
        """Bytes by entropy, and some that no step changes."""
        coded = sum(self.fitter.code_bytes(model, role) for role in self.fitter.roles)
        self.sizes.append(round(coded) + FIXED)
        return self.sizes[-1]


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_the_budget_is_met_and_no_roles_bytes_are_worth_more(case: Case, share: float) -> None:
    plain = case.total(None, case.fitter.quantized(case.fitter.start))
    case.sizes.clear()
    budget = int(share * plain)
    fit = case.fitter.solve(budget)
    assert budget - SLACK <= fit.total_bytes <= budget
    assert len(case.sizes) == fit.compressions <= COMPRESSIONS and case.sizes[-1] == fit.total_bytes
    gains = [one.gain for one in fit.worth.values()]
    assert max(gains) < 1.2 * min(gains) and not case.fitter.console.warnings
    by_theory = {role: math.sqrt(MATTERS["mlp"] / weight) for role, weight in MATTERS.items()}
    for role, wanted in by_theory.items():
        ratio = fit.quantizer.step_over_sigma(spec_of(case, role)) / fit.quantizer.step_over_sigma(spec_of(case, "mlp"))
        assert ratio == pytest.approx(wanted, rel=0.15), f"{role}: errors that count w times as much, steps 1/sqrt(w)"
    again = case.fitter.quantized(fit.quantizer)
    assert again.digest() == fit.model.digest(), "the quantizer alone makes this model"
    document = fit.document()
    assert document["total_bytes"] == fit.total_bytes and set(document["roles"]) == {"embed", "attn", "mlp"}
    for role, one in fit.worth.items():
        told = document["roles"][role]
        assert (told["bpb_per_kilobyte"], told["error"]) == (1000 * one.gain, 1000 * one.error)
        assert told["code_bytes"] == round(one.bytes)


def test_roles_that_are_not_even_at_the_end_are_told_with_the_way_on(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    budget = int(0.8 * case.total(None, case.fitter.quantized(case.fitter.start)))
    with monkeypatch.context() as patch:
        patch.setattr("pgolf.stages.budget.ROUNDS", 1)
        fit = case.fitter.solve(budget)
    (warning,) = case.fitter.console.warnings
    middle = fit.worth["embed"].gain / float(re.search(r"embed ([\d.]+)", warning)[1])
    for role, one in fit.worth.items():
        assert float(re.search(rf"{role} ([\d.]+)", warning)[1]) == pytest.approx(one.gain / middle, abs=0.01)
    onward = Case(*re.findall(r"--set (\S+)", warning))
    even = onward.fitter.solve(budget)
    assert not onward.fitter.console.warnings
    gains = [one.gain for one in even.worth.values()]
    assert max(gains) < 1.2 * min(gains)


def spec_of(case: Case, role: str):
    return next(spec for spec in case.specs if spec.role == role)


def test_bytes_of_equal_roles_that_cost_more_at_the_same_size_buy_less(case: Case) -> None:
    budget = int(0.8 * case.total(None, case.fitter.quantized(case.fitter.start)))
    even = Case()
    theta = even.fitter.narrowed(budget, 1.0, even.fitter.own_thetas(), COMPRESSIONS)
    unbalanced = even.fitter.best
    assert unbalanced is not None and theta > 0
    best = case.fitter.solve(budget).model
    assert float(case.cost(best).sum()) < 0.85 * float(case.cost(unbalanced[1]).sum())


def test_steps_get_finer_until_those_of_every_role_are_at_their_least() -> None:
    """A role that is there first does not end the search."""
    case = Case()
    thetas = case.fitter.own_thetas()
    budget = case.total(None, case.fitter.quantized(case.fitter.with_thetas(0.6, thetas)))
    case.fitter.floors = {role: thetas[role] * {"embed": 0.9}.get(role, 0.1) for role in case.fitter.roles}
    found = case.fitter.narrowed(budget, 1.0, thetas, COMPRESSIONS)
    assert found < 0.7 and case.fitter.best is not None
    assert budget - SLACK <= case.fitter.best[2] <= budget


def test_roles_with_quantizers_of_their_own_are_balanced_too(case: Case) -> None:
    """The same steps as with one quantizer for all; a role that has no steps stays as it is."""
    roles = [f"quant.{role}.method=sdclip" for role in ("embed", "attn", "mlp", "head")]
    mixed = Case("quant.method=by_role", *roles, "quant.embed.bits=8", "quant.embed.k=20", "quant.attn.theta=2")
    budget = int(0.8 * case.total(None, case.fitter.quantized(case.fitter.start)))
    one, fit = case.fitter.solve(budget), mixed.fitter.solve(budget)
    assert budget - SLACK <= fit.total_bytes <= budget and fit.compressions <= COMPRESSIONS
    for role in MATTERS:
        spec = spec_of(case, role)
        assert fit.quantizer.step_over_sigma(spec) == pytest.approx(one.quantizer.step_over_sigma(spec), rel=0.05)
    assert mixed.fitter.quantized(fit.quantizer).digest() == fit.model.digest()
    document = fit.document()
    assert document["theta"] == 1.0 and document["roles"]["attn"]["theta"] == fit.quantizer.attn.theta
    frozen = Case("quant.method=by_role", *roles[:2], "quant.mlp.method=row_quantile", "quant.head.method=float")
    assert frozen.fitter.roles == ["embed", "attn"]


def test_codes_do_not_outgrow_their_width() -> None:
    """With one role that matters beyond measure, its steps stop where 4 bits end; all bytes that are left go unused."""
    case = Case("quant.bits=4", "quant.k=7", "quant.embed.bits=4", "quant.embed.k=7", matters=MATTERS | {"embed": 1e6})
    fit = case.fitter.solve(10_000_000)
    assert fit.total_bytes < 10_000_000 - SLACK and fit.compressions <= COMPRESSIONS
    for spec in case.specs:
        found = fit.model.tensors[spec.name]
        assert isinstance(found, QTensor)
        assert float((found.codes.abs() == 7).float().mean()) < 20 * CLIPPED


def test_a_budget_that_cannot_be_met_is_refused_with_the_smallest_size(case: Case) -> None:
    with pytest.raises(RuleError, match=r"2,500 bytes cannot be reached; the smallest is 3,\d\d\d"):
        case.fitter.solve(2500)


def test_a_quantizer_whose_steps_cannot_be_scaled_is_refused(case: Case) -> None:
    fixed = {role: RowQuantile() for role in ("embed", "attn", "mlp", "head")}
    of_no_role_here = ByRole(**fixed | {"head": SdClip()})
    for quantizer in (RowQuantile(), ByRole(**fixed), of_no_role_here):
        config = dataclasses.replace(case.config, quant=quantizer)
        with pytest.raises(ConfigError, match="cannot be scaled"):
            Fitter(config, case.weights, lambda quantizer: {}, case.cost, case.total, Console(True))
