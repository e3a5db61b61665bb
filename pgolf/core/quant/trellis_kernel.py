"""The search along a trellis as a Triton kernel, and a solve that stays on the GPU with it."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pgolf.core.errors import SetupError
from pgolf.core.quant.grid import TrellisTensor
from pgolf.core.quant.steps import Planned
from pgolf.core.quant.trellis import PARITY_CHECKS, SEGMENT
from pgolf.core.quant.trellis_codes import trellis_codes


@cache
def segment_search() -> Any:
    """A program goes down one segment, a lane for each state, and back along the best path. The highest bit of a state
    is the lowest of the two states before it, which differ by twice the check `ODD`.
    """
    import triton
    import triton.language as tl

    @triton.jit
    def search_segment(
        target,
        half,
        metric,
        codes,
        values,
        best,
        rows,
        length,
        limit,
        EVEN: tl.constexpr,
        ODD: tl.constexpr,
        STATES: tl.constexpr,
    ):
        start = tl.program_id(0) * length
        lane = tl.arange(0, STATES)
        parity = lane // (STATES // 2)
        one = 2 * (lane ^ (EVEN * parity)) + parity
        two = one ^ (2 * ODD)
        first = parity.to(tl.float32)
        second = first + 2.0
        first_low = tl.ceil((-2.0 * limit - first) * 0.25)
        first_high = tl.floor((2.0 * limit + 1.0 - first) * 0.25)
        second_low = tl.ceil((-2.0 * limit - second) * 0.25)
        second_high = tl.floor((2.0 * limit + 1.0 - second) * 0.25)
        paths = tl.where(lane == 0, 0.0, float("inf"))
        for row in range(length):
            at = start + row
            inside = at < rows
            x = tl.div_rn(tl.load(target + at, mask=inside, other=0.0), tl.load(half + at, mask=inside, other=1.0))
            weight = tl.load(metric + at, mask=inside, other=0.0)
            # Next to 1.5 * 2^23 there are no fractions; what is too large for that is beyond the limits too.
            near = ((x - first) * 0.25 + 12582912.0) - 12582912.0
            far = ((x - second) * 0.25 + 12582912.0) - 12582912.0
            near = 4.0 * tl.minimum(tl.maximum(near, first_low), first_high) + first
            far = 4.0 * tl.minimum(tl.maximum(far, second_low), second_high) + second
            onward = tl.gather(paths, one, 0) + weight * ((x - near) * (x - near))
            turning = tl.gather(paths, two, 0) + weight * ((x - far) * (x - far))
            # Of two paths that cost the same, that from the lower state, as in torch.
            turned = (turning < onward) | ((turning == onward) & (two < one))
            paths = tl.where(turned, turning, onward)
            tl.store(best + at * STATES + lane, tl.floor(tl.where(turned, far, near) * 0.5).to(tl.int8))
        tl.debug_barrier()
        state = tl.argmin(paths, 0)
        for back in range(length):
            at = start + length - 1 - back
            code = tl.load(best + at * STATES + state).to(tl.int32)
            highest = state // (STATES // 2)
            tl.store(codes + at, code.to(tl.float32), mask=at < rows)
            tl.store(values + at, (2 * code + highest).to(tl.float32), mask=at < rows)
            state = (2 * (state ^ (EVEN * highest)) + highest) ^ (2 * ODD * (code & 1))

    return search_segment


def kernel_viterbi(
    target_R: Tensor, half_R: Tensor, metric_R: Tensor, states: int, limit: int
) -> tuple[Tensor, Tensor]:
    """As `viterbi` for limits up to 127, with one launch for all segments and no need to wait for it."""
    rows = len(target_R)
    count, length = -(-rows // SEGMENT), min(rows, SEGMENT)
    codes, values = torch.empty(2, rows, device=target_R.device)
    best = torch.empty(count * length * states, dtype=torch.int8, device=target_R.device)
    given = target_R.contiguous(), half_R.contiguous(), metric_R.contiguous(), codes, values, best
    even, odd = (check >> 1 for check in PARITY_CHECKS[states])
    # Without fusion a product is rounded before it is added, as in torch.
    segment_search()[(count,)](*given, rows, length, limit, even, odd, states, num_warps=1, enable_fp_fusion=False)
    return codes, values


def kernel_device(wanted: torch.device | None = None) -> torch.device:
    """Where the kernel runs: the device wanted, or the current GPU; in Triton's interpreter the CPU. SetupError where
    there is no Triton or the device is no GPU.
    """
    try:
        import triton
    except ImportError as error:
        raise SetupError(f"triton is missing: {error}", "quant.search", "set quant.search=torch") from None
    if triton.knobs.runtime.interpret:
        return torch.device("cpu")
    if (wanted and wanted.type != "cuda") or not torch.cuda.is_available():
        raise SetupError("triton needs a CUDA device", "quant.search", "set quant.search=torch")
    return wanted or torch.device("cuda", torch.cuda.current_device())


def moved(plan: Planned, device: torch.device) -> Planned:
    """The plan on another device, with the kernel as its search."""
    factor = plan.factor and (plan.factor[0].to(device), plan.factor[1].to(device), plan.factor[2].to(device))
    rows, columns, metric, least = (part.to(device) for part in (plan.rows, plan.columns, plan.metric, plan.least))
    return replace(plan, factor=factor, rows=rows, columns=columns, metric=metric, least=least, search=kernel_viterbi)


def kernel_codes(weight_RC: Tensor, plan: Planned, block: int, states: int) -> TrellisTensor:
    """As `trellis_codes`, solved on the GPU, from which only what is stored comes back."""
    device = kernel_device()
    made = trellis_codes(weight_RC.to(device), moved(plan, device), block, states)
    return replace(made, codes=made.codes.cpu(), scale=made.scale.cpu(), columns=made.columns.cpu())
