"""Rounding along a trellis inside GPTQ: down the rows of each column, as rows are independent given H."""

import torch
from torch import Tensor

from pgolf.core.quant.grid import TrellisTensor, step_sizes
from pgolf.core.quant.steps import Planned, solve
from pgolf.core.quant.trellis import coupled_viterbi, viterbi


def trellis_codes(weight_RC: Tensor, plan: Planned, block: int, states: int) -> TrellisTensor:
    """A tensor on the logarithmic grid, its columns rounded along a trellis one after the other."""
    rows, columns = plan.grid()
    halves = plan.ordered(step_sizes(rows, columns)) / 2
    search = plan.search or (viterbi if plan.coupling is None else coupled_viterbi)
    more = () if plan.coupling is None else (plan.coupling,)

    def along(column_R: Tensor, place: int) -> tuple[Tensor, Tensor]:
        half = halves[:, place]
        codes, values = search(column_R, half, plan.metric * half.square(), states, 127, *more)
        return codes, values * half

    codes = solve(weight_RC, plan, block, along)
    memory = torch.tensor([states.bit_length() - 1], dtype=torch.uint8)
    return TrellisTensor(codes, rows, 8, plan.warning(), columns=columns, memory=memory)
