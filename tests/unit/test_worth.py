"""What bytes of a role are worth, where the measure is noisy: it is reported as it was found, and never taken as equal
for being unclear alone.
"""

import math

import pytest
import torch
from test_budget import Case
from torch import Tensor

from pgolf.core.quant.qtensor import QuantizedModel
from pgolf.stages.budget import COMPRESSIONS, MORE_NUDGES, NUDGES, SLACK, Steps, Worth, averaged


class Noisy(Case):
    """A case whose parts of the cost differ as much as `noise` times the steps' changes."""

    def __init__(self, noise: float, matters: dict[str, float]) -> None:
        super().__init__(matters=matters)
        self.noise, self.draw, self.measured = noise, torch.Generator().manual_seed(1), 0

    def cost(self, model: QuantizedModel) -> Tensor:
        """Sixteen parts with a draw of each."""
        self.measured += 1
        return super().cost(model) + self.noise * torch.randn(16, generator=self.draw, dtype=torch.float64)


@pytest.mark.parametrize(
    ("gain", "error", "agrees"),
    [(1.0, 0.0, True), (1.09, 0.0, True), (1.3, 0.0, False), (1.3, 0.2, True), (-0.5, 0.5, False), (-0.5, 0.8, True)],
)
def test_agreement_is_within_two_standard_errors(gain: float, error: float, agrees: bool) -> None:
    """A negative gain is no more equal to the others' than it is by its error."""
    assert (Worth(gain, error, 1.0).apart(1.0) == 0) is agrees


def test_the_mean_and_error_are_those_measured() -> None:
    one = averaged([(-2.0, 1.0), (1.0, 3.0)], 5.0)
    assert one.gain == -0.5 and one.error == pytest.approx(math.hypot(2.0, 1.5)) and one.bytes == 5.0
    assert not one.clear and one.level == one.error > 0
    assert Worth(3.0, 1.0, 5.0).level == 3.0 and Worth(3.0, 1.0, 5.0).clear
    assert averaged([(3.0, 0.5)], 7.0) == Worth(3.0, 0.5, 7.0), "of one nudge there is no spread"
    assert not Worth(1.0, 1.0, 5.0).clear


def test_what_is_not_clear_is_averaged_over_more() -> None:
    clear, noisy = Noisy(0.0, {"embed": 5.0, "attn": 1.0, "mlp": 0.2}), Noisy(1e4, {"embed": 0, "attn": 0, "mlp": 0})
    for case, pairs in ((clear, len(NUDGES)), (noisy, len(NUDGES) + len(MORE_NUDGES))):
        worth = case.fitter.worths(1.0, case.fitter.own_thetas())
        least = 2 * len(case.fitter.roles) * len(NUDGES)
        assert least <= case.measured <= 2 * len(case.fitter.roles) * pairs
        assert (case.measured == least) is all(one.clear for one in worth.values())
    assert min(one.gain for one in worth.values()) < 0, "what was found is not raised to its error"


def test_worths_are_those_at_the_solution() -> None:
    case = Noisy(0.0, {"embed": 5.0, "attn": 1.0, "mlp": 0.2})
    budget = int(0.7 * case.total(None, case.fitter.quantized(case.fitter.start)))
    fit = case.fitter.solve(budget)
    assert budget - SLACK <= fit.total_bytes <= budget and fit.compressions <= COMPRESSIONS
    steps = Steps(fit.quantizer)
    assert fit.worth == case.fitter.worths(steps.whole, {role: steps.own(role) for role in fit.worth})
    for role, one in fit.worth.items():
        assert one.bytes == case.fitter.code_bytes(fit.model, role)
