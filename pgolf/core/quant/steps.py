"""Steps from the loss's curvature: half of the way to equal slopes, in the middle of the grid (spec: quantization 9.8).

Every role has its share: matrices the geometric mean of SDClip's step and of what the curvature asks for, embeddings
0.8 of SDClip's, which is too coarse for them; rows of high curvature get finer steps, columns of an embedding that
later columns can make up for coarser ones.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pgolf.core.model.params import ATTN, MLP, ParamSpec
from pgolf.core.quant.curvature import Calibration
from pgolf.core.quant.gptq import compensate, factorise
from pgolf.core.quant.grid import COLUMN_GRID, ROW_GRID, StepTensor, step_sizes

EMBED_SHARE = 0.8
"""Steps of embeddings over SDClip's."""
MOST_STEPS = 120
"""Steps that a row's largest weight may have: under 127, as compensation moves weights, and steps are rounded."""
OUTPUT_DAMPING = 0.1
"""Share of the mean diagonal added to B, and twice its rows over calibration tokens: of drawn labels it is noisy."""


@dataclass
class Planned:
    """What a parameter's codes are found with: the factor of its Hessian (None rounds without compensation), the steps
    of its rows (R,), the factors of its columns (C,) and what a squared error counts in each row (R,).
    """

    factor: tuple[Tensor, Tensor, Tensor] | None
    rows: Tensor
    columns: Tensor
    metric: Tensor
    least: Tensor
    """The finest steps (R,) at which codes of 8 bits reach the row's largest weight: no theta makes them finer."""
    coupling: Tensor | None = None
    """How much of each earlier row's error a row makes up for, (R,R) below the diagonal, where rows are coupled."""
    search: Callable[..., tuple[Tensor, Tensor]] | None = None
    """How a trellis is searched, where that is not by the script's own means."""

    def grid(self, theta: float = 1.0) -> tuple[Tensor, Tensor]:
        """Indices on the two grids: int16 (R,), int8 (C,)."""
        rows = (ROW_GRID * (theta * self.rows).clamp_min(self.least).log2()).round().to(torch.int16)
        return rows, (COLUMN_GRID * self.columns.log2()).round().clamp(-127, 127).to(torch.int8)

    def times(self, factor: float) -> "Planned":
        """The same with other steps."""
        return replace(self, rows=self.rows * factor)

    def ordered(self, sizes_RC: Tensor) -> Tensor:
        """Columns in the order in which they are solved."""
        return sizes_RC if self.factor is None else sizes_RC[:, self.factor[1]]

    def warning(self) -> str:
        """What a reader of the report should know."""
        return "rounded without compensation" if self.factor is None else ""


def typical(values: Tensor) -> float:
    """The geometric mean of those values that are at least a hundredth of the mean; 1 if all are zero. What is left out
    are rows of dead units, and of tokens that hardly occur.
    """
    exact = values.double()
    return float(exact[exact >= 1e-2 * exact.mean()].log().mean().exp()) or 1.0


def relative(values: Tensor) -> Tensor:
    """Values over what is typical, those below a hundredth of the mean raised to that; all 1 where all are zero;
    float64.
    """
    exact = values.double()
    return exact.clamp_min(1e-2 * float(exact.mean()) or 1.0) / typical(values)


def curvature_of(name: str, found: Calibration) -> tuple[Tensor, Tensor] | None:
    """H (C,C) and the loss's curvature by row (R,), per position: row r's curvature is rows[r] times H. Where a weight
    is a linear map and a table, both have their share of the table's, which is small there. None for a weight that was
    not seen.
    """
    count = max(found.tokens, 1)
    if name in found.inputs and name in found.outputs:
        hessian, rows = found.inputs[name] / count, found.outputs[name] / count
        if name in found.lookups:
            energies = found.energies[name] / count
            unit, mean = hessian.diagonal().sum(), rows.mean()
            hessian = hessian + found.lookups[name] / (count * len(rows) * mean)
            rows = rows + energies / unit
        return hessian, rows
    if name in found.lookups:
        hessian = found.lookups[name] / count
        return hessian, found.energies[name] / (count * hessian.diagonal().sum()).clamp_min(1e-30)
    return None


def coupled_rows(outputs_RR: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Rounding row after row under B (R,R) as it is best one at a time (arXiv:2505.22988): with B = S S^T, S upper,
    tr(E^T B E) is the sum over rows i of S_ii^2 |E_i + sum over k < i of M_ik E_k|^2. Returns S_ii^2 (R,) float64 and M
    (R,R) float32. `damping` is the share of the mean diagonal that is added to B.
    """
    exact = outputs_RR.double()
    damped = exact + torch.eye(len(exact), dtype=exact.dtype) * damping * exact.diagonal().mean().clamp_min(1e-300)
    upper = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    return upper.diagonal().square(), (upper / upper.diagonal()).T.tril(-1).float().contiguous()


def conditional(upper: Tensor, order: Tensor, dead: Tensor) -> Tensor:
    """1 / U_jj^2 in original order, float64 (C,): the curvature of a column that the later ones make up for; 0 of one
    that is dead.
    """
    found = torch.empty(len(order), dtype=torch.float64)
    found[order] = upper.diagonal().double() ** -2
    return found.where(~dead, 0.0)


def plan_steps(
    specs: Sequence[ParamSpec],
    weights: Mapping[str, Tensor],
    found: Calibration,
    grid: Callable[[str], tuple[int, float]],
    damping: float,
    by_curvature: bool,
    coupled: bool = False,
) -> dict[str, Planned]:
    """What each parameter is to be quantized with. `grid` has, by role, SDClip's step over row deviation behind a code
    width; without `by_curvature` steps are just that, and so are those of a matrix of zeros and of one of which the
    loss feels nothing, as before such a matrix. With `coupled` rows make up for each other.
    """
    plans, asked, usual, sizes = {}, {}, {}, {}
    for spec in specs:
        weight = weights[spec.name].float()
        spread = weight.std(dim=1, correction=min(1, weight.size(1) - 1))
        sigma = grid(spec.role)[1] * spread.where(spread > 0, weight.abs().amax(dim=1)).double().clamp_min(1e-10)
        known = curvature_of(spec.name, found)
        # Of sums, as without curvature: a dead column, which gets the diagonal 1, is nothing beside them.
        factor = None if known is None else factorise(known[0] * max(found.tokens, 1), damping)
        least = weight.abs().amax(dim=1) / MOST_STEPS
        plan = Planned(factor, sigma, torch.ones(weight.size(1)), torch.ones(len(weight)), least)
        plans[spec.name] = plan
        if known is None or factor is None:
            continue
        plan.metric = relative(known[1]).sqrt().float()
        if coupled and spec.name in found.couplings:
            noise = OUTPUT_DAMPING + 2 * len(weight) / max(found.tokens, 1)
            alone, plan.coupling = coupled_rows(found.couplings[spec.name], noise)
            plan.metric = relative(alone).float()
        if not by_curvature or not all(bool(part.any()) for part in (weight, *known)):
            continue
        spent = conditional(*factor)
        if spec.role in (ATTN, MLP):
            asked[spec.name] = -0.5 * math.log(typical(known[1]) * float(spent.mean()))
            usual[spec.name], sizes[spec.name] = math.log(typical(sigma)), spec.numel
        else:
            plan.rows = EMBED_SHARE * plan.rows
            plan.columns = (1 / relative(spent)).sqrt().sqrt().float()
            plan.least = (weight / plan.columns).abs().amax(dim=1) / MOST_STEPS
        plan.rows = plan.rows * relative(known[1]) ** -0.25
    if asked:
        total = sum(sizes.values())
        common = sum(sizes[name] * (usual[name] - asked[name]) for name in asked) / total
        for name in asked:
            plans[name].rows = plans[name].rows * math.exp(0.5 * (asked[name] + common - usual[name]))
    return plans


def solve(weight_RC: Tensor, plan: Planned, block: int, code: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> Tensor:
    """int8 codes (R,C), with compensation where there is a Hessian. `code` gives a column's codes and values."""
    if plan.factor is not None:
        return compensate(weight_RC, plan.factor, block, code)
    return torch.stack([code(column, place)[0] for place, column in enumerate(weight_RC.T)], dim=1).to(torch.int8)


def grid_codes(weight_RC: Tensor, plan: Planned, block: int) -> StepTensor:
    """A tensor on the logarithmic grid, rounded to nearest. As steps do not come from a code width, that is 8 bits."""
    rows, columns = plan.grid()
    steps = plan.ordered(step_sizes(rows, columns))

    def nearest(column_R: Tensor, place: int) -> tuple[Tensor, Tensor]:
        codes = (column_R / steps[:, place]).round().clamp(-127, 127)
        return codes, codes * steps[:, place]

    codes = solve(weight_RC, plan, block, nearest)
    return StepTensor(codes, rows, 8, plan.warning(), columns=columns)


def entropy(codes: Tensor) -> float:
    """Order-0 entropy in bits of integer codes."""
    counts = torch.unique(codes, return_counts=True)[1].double()
    share = counts / counts.sum()
    return float(-(share * share.log2()).sum())


def bits_at(plans: Mapping[str, Planned], weights: Mapping[str, Tensor], theta: float) -> float:
    """Bits that all codes take together by the order-0 entropy of each tensor rounded to nearest: what GPTQ's codes,
    and a trellis's, take within a percent, without solving anything.
    """
    total = 0.0
    for name, plan in plans.items():
        weight = weights[name].float()
        total += weight.numel() * entropy((weight / step_sizes(*plan.grid(theta))).round().to(torch.int16))
    return total


def solve_theta(bits: Callable[[float], float], wanted: float) -> float:
    """The theta at which `bits`, which falls with it, is `wanted`; by bisection of its logarithm to 0.2 %."""
    low, high = -16.0, 16.0
    while high - low > 0.003:
        middle = (low + high) / 2
        low, high = (middle, high) if bits(2.0**middle) > wanted else (low, middle)
    return float(2.0 ** ((low + high) / 2))
