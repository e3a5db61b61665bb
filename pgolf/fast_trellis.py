"""The trellis searches of `pgolf.core.quant.trellis` compiled: the same codes, hundreds of times faster on a CPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.core.quant.trellis import SEGMENT, arrivals


def farthest(limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The least and the most of (k - subset) / 4 with floor(k / 2) within ±limit, for each k mod 4, float32 (4,)."""
    subset = np.arange(4, dtype=np.float32)
    return np.ceil((-2 * limit - subset) / np.float32(4)), np.floor((2 * limit + 1 - subset) / np.float32(4))


class Compiled:
    """A search that numba compiles when it is first called. The machine code is kept where numba keeps such, beside
    this file or in the user's folder of caches, so that the next process finds it; where that cannot be, or what is
    found there is damaged, it is compiled and not kept.
    """

    def __init__(self, search: Callable[..., None]) -> None:
        self.search = search
        self.fast: Any = None

    def __call__(self, *arguments: Any) -> None:
        """Fill the last two arguments."""
        if self.fast is None:
            self.fast = self.compiled(arguments)
        self.fast(*arguments)

    def compiled(self, arguments: tuple[Any, ...]) -> Any:
        """The machine code for arguments of such types."""
        import numba

        try:
            fast = numba.njit(cache=True)(self.search)
            fast.compile(tuple(map(numba.typeof, arguments)))
        except Exception:  # no folder, a full disk, or a file that is no cache: whatever it is, numba can do without
            return numba.njit(self.search)
        return fast


def search(
    target: Any, half: Any, metric: Any, before: Any, way: Any, limits: Any, segment: int, codes: Any, values: Any
) -> None:
    """The search over all segments of a column, (rows, 4) candidates and costs to codes and values."""
    states, rows, (low, high) = len(before), len(target), limits
    paths, sums = np.empty(states, np.float32), np.empty(states, np.float32)
    taken = np.empty((segment, states), np.uint8)
    near, cost = np.empty((segment, 4), np.float32), np.empty(4, np.float32)
    first, second = before[:, 0].copy(), before[:, 1].copy()
    way_first, way_second = way[:, 0].copy(), way[:, 1].copy()
    for start in range(0, rows, segment):
        length = min(segment, rows - start)
        paths[:] = np.inf
        paths[0] = 0
        for row in range(length):
            x, weight = target[start + row] / half[start + row], metric[start + row]
            for subset in range(4):
                n = np.rint((x - np.float32(subset)) / np.float32(4))
                n = min(max(n, low[subset]), high[subset])
                near[row, subset] = np.float32(4) * n + np.float32(subset)
                away = x - near[row, subset]
                cost[subset] = weight * (away * away)
            for state in range(states):
                one = paths[first[state]] + cost[way_first[state]]
                other = paths[second[state]] + cost[way_second[state]]
                taken[row, state] = other < one
                sums[state] = min(one, other)
            paths[:] = sums
        state = int(np.argmin(paths))
        for row in range(length - 1, -1, -1):
            arrival = taken[row, state]
            value = near[row, way[state, arrival]]
            codes[start + row], values[start + row] = np.floor(value / np.float32(2)), value
            state = before[state, arrival]


def coupled_search(
    target: Any,
    half: Any,
    metric: Any,
    onto: Any,
    before: Any,
    way: Any,
    limits: Any,
    segment: int,
    codes: Any,
    values: Any,
) -> None:
    """The search in which errors count together with those before them; all in float32 and in the same order."""
    states, rows, (low, high) = len(before), len(target), limits
    paths, sums, came = np.empty(states, np.float32), np.empty(states, np.float32), np.empty(states, np.int64)
    near, cost = np.empty((2, states), np.float32), np.empty((2, states), np.float32)
    taken, chosen = np.empty((segment, states), np.uint8), np.empty((segment, states), np.float32)
    whole, wanted, other = (
        target.copy(),
        np.empty((states, segment), np.float32),
        np.empty((states, segment), np.float32),
    )
    for start in range(0, rows, segment):
        length = min(segment, rows - start)
        stop = start + length
        paths[:] = np.inf
        paths[0] = 0
        for state in range(states):
            wanted[state, :length] = whole[start:stop]
        for place in range(length):
            row = start + place
            for state in range(states):
                x = wanted[state, place] / half[row]
                for branch in range(2):
                    subset = (state & 1) + 2 * branch
                    n = np.rint((x - np.float32(subset)) / np.float32(4))
                    n = min(max(n, low[subset]), high[subset])
                    value = np.float32(4) * n + np.float32(subset)
                    near[branch, state] = value
                    cost[branch, state] = metric[row] * ((x - value) * (x - value))
            for state in range(states):
                first, second = before[state, 0], before[state, 1]
                turn, other_turn = way[state, 0] >> 1, way[state, 1] >> 1
                one, two = paths[first] + cost[turn, first], paths[second] + cost[other_turn, second]
                if two < one:
                    taken[place, state], sums[state], came[state] = 1, two, second
                    chosen[place, state] = near[other_turn, second]
                else:
                    taken[place, state], sums[state], came[state] = 0, one, first
                    chosen[place, state] = near[turn, first]
            paths[:] = sums
            for state in range(states):
                error, source = target[row] - chosen[place, state] * half[row], wanted[came[state]]
                for later in range(place + 1, length):
                    other[state, later] = source[later] + onto[row, start + later] * error
            wanted, other = other, wanted
        state = int(np.argmin(paths))
        for place in range(length - 1, -1, -1):
            value = chosen[place, state]
            codes[start + place], values[start + place] = np.floor(value / np.float32(2)), value
            state = before[state, taken[place, state]]
        if stop < rows:
            for row in range(start, stop):
                error = target[row] - values[row] * half[row]
                for later in range(stop, rows):
                    whole[later] += onto[row, later] * error


SEARCH, COUPLED_SEARCH = Compiled(search), Compiled(coupled_search)


def fast_viterbi(target_R: Tensor, half_R: Tensor, metric_R: Tensor, states: int, limit: int) -> tuple[Tensor, Tensor]:
    """As `viterbi`: codes m (R,) and values k (R,), float32."""
    codes, values = torch.empty(len(target_R)), torch.empty(len(target_R))
    before, way = (table.numpy() for table in arrivals(states))
    columns = (column.contiguous().numpy() for column in (target_R, half_R, metric_R))
    SEARCH(*columns, before, way, farthest(limit), SEGMENT, codes.numpy(), values.numpy())
    return codes, values


def fast_coupled_viterbi(
    target_R: Tensor, half_R: Tensor, metric_R: Tensor, states: int, limit: int, coupling_RR: Tensor
) -> tuple[Tensor, Tensor]:
    """As `coupled_viterbi`: codes m (R,) and values k (R,), float32."""
    codes, values = torch.empty(len(target_R)), torch.empty(len(target_R))
    before, way = (table.numpy() for table in arrivals(states))
    columns = (column.contiguous().numpy() for column in (target_R, half_R, metric_R))
    onto = coupling_RR.T.contiguous().numpy()
    COUPLED_SEARCH(*columns, onto, before, way, farthest(limit), SEGMENT, codes.numpy(), values.numpy())
    return codes, values
