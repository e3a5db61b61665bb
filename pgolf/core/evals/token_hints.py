"""Hints from phrases that came before: the token expert of the n-gram tilt (spec: evaluation 7.2).

All orders are looked up for all positions at once: positions with equal contexts are brought together by sorting, in
the order in which they came, and what each of them sees is what those before it have left. The result is that of a
table which is asked before it is told, position by position.
"""

import numpy as np

HASH_BASE = 0x9E3779B97F4A7C15
"""Odd factor of the rolling hash, the golden ratio in 64 bits."""


def mixed_ids(ids: np.ndarray) -> np.ndarray:
    """A scattered uint64 for every id, by the finaliser of splitmix64."""
    x = ids.astype(np.uint64) * np.uint64(HASH_BASE)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def longer_hash(left: np.ndarray, right: np.ndarray, tokens: int) -> np.ndarray:
    """Hashes (N,) of the tokens up to each position from those of its last `tokens` and of those before these."""
    factor = np.uint64(pow(HASH_BASE, tokens, 1 << 64))
    found = left.copy()
    found[tokens:] += right[:-tokens] * factor
    return found


def rolling_hashes(tokens: np.ndarray, lengths: list[int]) -> dict[int, np.ndarray]:
    """Length -> 64-bit hash (N,) of so many tokens up to and with each position, for ascending lengths; of fewer at the
    start of the stream.
    """
    powers, found = {1: mixed_ids(tokens)}, dict[int, np.ndarray]()
    for length in lengths:
        base = max(found, default=0)
        made, rest = (found[base] if base else None), length - base
        while rest:
            step = 1 << (rest.bit_length() - 1)
            for half in (1 << n for n in range(step.bit_length() - 1)):
                if 2 * half not in powers:
                    powers[2 * half] = longer_hash(powers[half], powers[half], half)
            made = powers[step] if made is None else longer_hash(made, powers[step], length - rest)
            rest -= step
        assert made is not None
        found[length] = made
    return found


def group_equal(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (N,) that bring equal uint64 keys together, each group in the order of the indices, and where groups
    begin, (N,) bool. Sorts one word per key, its upper bits with the index below, and looks at whole keys afterwards.
    """
    bits = np.uint64(max(len(keys) - 1, 1).bit_length())
    words = (keys >> bits << bits) | np.arange(len(keys), dtype=np.uint64)
    words.sort()
    order = (words & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    words >>= bits
    whole, begins = keys[order], np.ones(len(keys), dtype=bool)
    begins[1:] = words[1:] != words[:-1]
    if (mistaken := ~begins[1:] & (whole[1:] != whole[:-1])).any():
        groups = begins.cumsum()
        members = np.flatnonzero(np.isin(groups, groups[1:][mistaken]))
        order[members] = order[members][np.lexsort((order[members], whole[members], groups[members]))]
        whole = keys[order]
    begins[1:] = whole[1:] != whole[:-1]
    return order, begins


def ranks_in_groups(begins: np.ndarray) -> np.ndarray:
    """How many of its group come before each entry, (N,) int64."""
    place = np.arange(len(begins))
    return place - np.maximum.accumulate(np.where(begins, place, 0))


def expert_hints(
    tokens: np.ndarray, lowest: int, highest: int, step: int, threshold_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """For the targets of a stream (N,) the hinted token or -1, (N-1,) int64, and its share of what came, float32."""
    orders = range(lowest, highest + 1, step)
    targets = len(tokens) - 1
    hint, share = np.full(targets, -1), np.zeros(targets, dtype=np.float32)
    # Position i is asked for target i, which is token i + 1; only repeated contexts can have repeated longer ones.
    asked, hashes = np.arange(targets), rolling_hashes(tokens[:-1], [order - 1 for order in orders])
    for order in orders:
        asked = asked[np.searchsorted(asked, order - 2) :]
        if not len(asked):
            break
        turn, begins = group_equal(hashes[order - 1][asked])
        several = ~(begins & np.append(begins[1:], True))
        turn, begins = turn[several], begins[several]
        if not len(turn):
            break
        group, came = begins.cumsum() - 1, tokens[asked[turn] + 1]
        pairs, pair_begins = group_equal(group.astype(np.uint64) << np.uint64(16) | came.astype(np.uint64))
        count = np.empty(len(turn), dtype=np.int64)
        count[pairs] = ranks_in_groups(pair_begins) + 1
        # The best count so far, one stretch of numbers per group; entries that raise it name the best token.
        top = np.maximum.accumulate(count + group * (targets + 1))
        raised = np.append(True, top[1:] > top[:-1])
        best = np.maximum.accumulate(np.where(raised, np.arange(len(turn)), 0))
        known = np.flatnonzero(~begins)
        total, last = ranks_in_groups(begins)[known], known - 1
        part = (top[last] - group[last] * (targets + 1)) / total
        floor, least = (0.7, 3) if order <= 10 else (0.6, 2) if order <= 13 else (0.5, 2)
        taken = (part >= floor * threshold_scale) & (total >= least)
        places = asked[turn[known[taken]]]
        hint[places], share[places] = came[best[last[taken]]], part[taken]
        asked = asked[np.sort(turn)]
    return hint, share
