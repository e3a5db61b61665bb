"""Trellis-coded rounding down the rows of a column (spec: quantization 9.3).

Values are k times half a step. The state's lowest bit is the parity of k, so that stored is only m = floor(k / 2); bit
1 of k, the lowest of m, chooses the branch to the next state. States begin anew, with 0, every 256 rows.
"""

from functools import cache

import torch
from torch import Tensor

SEGMENT = 256
"""Rows after which the state begins anew."""
PARITY_CHECKS = {4: (0o5, 0o2), 8: (0o13, 0o4), 32: (0o45, 0o10), 64: (0o103, 0o24), 256: (0o515, 0o362)}
"""Ungerboeck's codes for one dimension, (h0, h1) by number of states."""


def next_state(states: int, state: Tensor, branch: Tensor) -> Tensor:
    """The state after a value with bit 1 `branch`."""
    even, odd = (check >> 1 for check in PARITY_CHECKS[states])
    return (state >> 1) ^ (even * (state & 1)) ^ (odd * branch)


@cache
def arrivals(states: int) -> tuple[Tensor, Tensor]:
    """The two states before each state and k mod 4 on the way from there, (S,2) int64 each."""
    before = torch.arange(states).repeat_interleave(2)
    branch = torch.arange(2).repeat(states)
    order = next_state(states, before, branch).argsort(stable=True)
    return before[order].view(-1, 2), ((before & 1) + 2 * branch)[order].view(-1, 2)


def candidates(target_R: Tensor, half_R: Tensor, metric_R: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """For each k mod 4 the nearest k with floor(k / 2) within ±limit, and what it costs: float32 (R,4) each."""
    subset = torch.arange(4.0, device=target_R.device)
    x = (target_R / half_R)[:, None]
    least, most = ((-2 * limit - subset) / 4).ceil(), ((2 * limit + 1 - subset) / 4).floor()
    k = 4 * ((x - subset) / 4).round().clamp(least, most) + subset
    return k, metric_R[:, None] * (x - k).square()


def viterbi(target_R: Tensor, half_R: Tensor, metric_R: Tensor, states: int, limit: int) -> tuple[Tensor, Tensor]:
    """Codes m (R,) and values k (R,), float32, whose weighted squared error is least among all that the trellis can
    reach. All segments go side by side.
    """
    before, way = (table.to(target_R.device) for table in arrivals(states))
    k, cost = candidates(target_R, half_R, metric_R, limit)
    rows, count = len(k), -(-len(k) // SEGMENT)
    length = min(rows, SEGMENT)
    cost = torch.cat((cost, cost.new_zeros(count * length - rows, 4))).view(count, length, 4)
    paths = cost.new_full((count, states), torch.inf)
    paths[:, 0] = 0
    taken = []
    for row in range(length):
        sums = paths[:, before] + cost[:, row, way]
        taken.append(sums[..., 1] < sums[..., 0])
        paths = torch.where(taken[-1], sums[..., 1], sums[..., 0])
    state, segment = paths.argmin(1), torch.arange(count, device=k.device)
    chosen = torch.empty(count, length, dtype=torch.int64, device=k.device)
    for row in reversed(range(length)):
        arrival = taken[row][segment, state].long()
        chosen[:, row], state = way[state, arrival], before[state, arrival]
    found = k.gather(1, chosen.view(-1, 1)[:rows])[:, 0]
    return (found / 2).floor(), found


def coupled_viterbi(
    target_R: Tensor, half_R: Tensor, metric_R: Tensor, states: int, limit: int, coupling_RR: Tensor
) -> tuple[Tensor, Tensor]:
    """As `viterbi`, where an error counts together with those before it: row i's cost is metric_R[i] times the square,
    in half steps, of error[i] + sum over k < i of coupling_RR[i, k] error[k]. Every path carries what its own errors
    are to the rows of the segment that are still to come; segments follow one another.
    """
    before, way = (table.to(target_R.device) for table in arrivals(states))
    branch, every = way >> 1, torch.arange(states, device=target_R.device)
    subset = (every & 1)[None] + 2.0 * torch.arange(2, device=target_R.device)[:, None]
    least, most = ((-2 * limit - subset) / 4).ceil(), ((2 * limit + 1 - subset) / 4).floor()
    onto_RR = coupling_RR.T.contiguous()
    wanted_R, found = target_R.clone(), torch.empty_like(target_R)
    for start in range(0, len(target_R), SEGMENT):
        stop = min(start + SEGMENT, len(target_R))
        paths = target_R.new_full((states,), torch.inf)
        paths[0] = 0
        wanted = wanted_R[start:stop].repeat(states, 1)
        taken, values = [], []
        for place, row in enumerate(range(start, stop)):
            x = wanted[:, place] / half_R[row]
            near = 4 * ((x - subset) / 4).round().clamp(least, most) + subset
            sums = paths[before] + (metric_R[row] * (x - near).square())[branch, before]
            taken.append(sums[:, 1] < sums[:, 0])
            arrival = taken[-1].long()
            came, turned = before[every, arrival], branch[every, arrival]
            paths = torch.where(taken[-1], sums[:, 1], sums[:, 0])
            values.append(near[turned, came])
            error = target_R[row] - values[-1] * half_R[row]
            wanted = wanted[came] + onto_RR[row, start:stop] * error[:, None]
        state = paths.argmin()
        for row in reversed(range(start, stop)):
            found[row] = values[row - start][state]
            state = before[state, taken[row - start][state].long()]
        for row in range(start, stop if stop < len(target_R) else start):
            wanted_R[stop:] += onto_RR[row, stop:] * (target_R[row] - found[row] * half_R[row])
    return (found / 2).floor(), found


def walk(codes_RC: Tensor, states: int) -> Tensor:
    """k of stored codes m, int32 (R,C), all columns and segments side by side."""
    rows, columns = codes_RC.shape
    count = -(-rows // SEGMENT)
    length = min(rows, SEGMENT)
    padded = torch.cat((codes_RC.int(), torch.zeros(count * length - rows, columns, dtype=torch.int32)))
    codes = padded.view(count, length, columns)
    state, found = torch.zeros_like(codes[:, 0]), torch.empty_like(codes)
    for row in range(length):
        found[:, row] = 2 * codes[:, row] + (state & 1)
        state = next_state(states, state, codes[:, row] & 1)
    return found.view(-1, columns)[:rows]
