"""(b) The probabilities of all tokens sum to at most 1: put each in a target's place, and add up what they get."""

import time

import numpy as np

from pgolf.audit.bench import Bench
from pgolf.audit.stream import PHRASE
from pgolf.audit.verdict import HOLDS, VIOLATED, Finding

EXACT = 1e-5
"""How far above 1 a sum of float32 losses may be."""


def sweep_positions(bench: Bench, rng: np.random.Generator) -> np.ndarray:
    """Targets to sweep: early ones, late ones, some in the second copy of a phrase, and any."""
    base, stream = bench.base, bench.stream
    targets = np.flatnonzero((base.rank >= 0) & (stream.tokens[1:] != bench.subject.vocabulary.bos_id))
    order = targets[np.argsort(base.rank[targets], kind="stable")]
    third = max(len(order) // 3, 1)
    second = [np.arange(to + PHRASE * 2 // 3, to + PHRASE) - 1 for _, to in stream.planted]
    repeats = np.intersect1d(np.concatenate(second), order) if second else order
    groups = (order[:third], order[-third:], repeats if len(repeats) else order, order)
    quota = max(bench.level.sweeps // len(groups), 1)
    return np.concatenate([rng.choice(group, quota, replace=len(group) < quota) for group in groups])


def sweep_values(bench: Bench, position: int, rng: np.random.Generator) -> np.ndarray:
    """The tokens to put at `position`: all but BOS, which would change the documents, or the likeliest and a draw."""
    order: np.ndarray = bench.subject.likely(bench.stream.tokens, position)
    order = order[order != bench.subject.vocabulary.bos_id]
    own, most = int(bench.stream.tokens[position]), bench.level.values
    if len(order) <= most:
        return order
    head, rest = order[: most // 2], order[most // 2 :]
    chosen = np.concatenate([head, rng.choice(rest, most - len(head), replace=False)])
    if own not in chosen:
        chosen[-1] = own
    return chosen


def mass(bench: Bench, target: int, values: np.ndarray) -> float:
    """What these tokens get together at a target."""
    wanted = np.append(bench.base.before(target), target)
    streams = [bench.stream.edited(target + 1, token) for token in values.tolist()]
    losses = np.array([trial.nll[target] for trial in bench.run_all(streams, wanted)], np.float64)
    return float(np.exp(-losses).sum())


def check_normalisation(bench: Bench) -> Finding:
    """Sweep some targets; the counterexample is the largest sum."""
    rng = bench.rng(2)
    allowed = EXACT + bench.tolerance
    sums: dict[int, float] = {}
    values_of: dict[int, np.ndarray] = {}
    began = time.monotonic()
    for target in rng.permutation(np.unique(sweep_positions(bench, rng))).tolist():
        if not bench.in_time(began, len(sums)):
            break
        values_of[target] = sweep_values(bench, target + 1, rng)
        sums[target] = mass(bench, target, values_of[target])
    if not sums:
        return Finding(check="b", verdict=HOLDS, what="there is nothing to sweep", n=0)
    worst = max(sums, key=lambda target: sums[target] if np.isfinite(sums[target]) else np.inf)
    over = sum(not total <= 1 + allowed for total in sums.values())
    figures = {
        "largest_sum": sums[worst],
        "smallest_sum": min(sums.values()),
        "tokens_tried": int(np.mean([len(values) for values in values_of.values()])),
        "vocabulary": bench.subject.vocabulary.size,
        "allowed": 1 + allowed,
    }
    if not over:
        what = f"at {len(sums)} targets the tokens tried get {sums[worst]:.6f} at most"
        return Finding(check="b", verdict=HOLDS, what=what, n=len(sums), figures=figures)
    what = f"at {over} of {len(sums)} targets the tokens' probabilities exceed 1: {sums[worst]:.6g}"
    case = bench.case("b", target=worst, values=values_of[worst].tolist(), sum=sums[worst], allowed=1 + allowed)
    return Finding(check="b", verdict=VIOLATED, what=what, n=len(sums), figures=figures, counterexample=case)
