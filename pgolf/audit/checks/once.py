"""(d) Every target scored exactly once, with a finite loss, in an order that lengths alone decide."""

import numpy as np

from pgolf.audit.bench import Bench
from pgolf.audit.verdict import HOLDS, VIOLATED, Finding

SHUFFLES = 3
"""Streams of equal lengths and other content on which the order is compared."""


def check_once(bench: Bench) -> Finding:
    """Count commits, and compare the order on other content."""
    commits, base = bench.base.commits, bench.base
    missing, surplus = int((commits == 0).sum()), int(np.maximum(commits - 1, 0).sum())
    broken = int((~np.isfinite(base.nll[commits > 0])).sum())
    negative = int((base.nll[commits > 0] < 0).sum())
    moved = reordered(bench) if bench.subject.records and not base.error else 0
    figures = {"missing": missing, "surplus": surplus, "not_finite": broken, "negative": negative, "reordered": moved}
    faults = [
        f"{missing:,} targets were never scored" * bool(missing),
        f"{surplus:,} scores too many" * bool(surplus),
        f"{broken:,} losses are not finite" * bool(broken),
        f"{negative:,} losses are negative, probabilities above 1" * bool(negative),
        f"content decides the order: it differs on {moved} of {SHUFFLES} streams of equal lengths" * bool(moved),
        base.error,
    ]
    if not any(faults):
        what = f"each of {len(commits):,} targets once, in an order that content does not decide"
        return Finding(check="d", verdict=HOLDS, what=what, n=len(commits), figures=figures)
    odd = np.flatnonzero((commits != 1) | ~np.isfinite(base.nll) | (base.nll < 0))
    case = bench.case("d", targets=odd[:20].tolist(), commits=commits[odd[:20]].tolist(), figures=figures)
    what = "; ".join(fault for fault in faults if fault)
    return Finding(check="d", verdict=VIOLATED, what=what, n=len(commits), figures=figures, counterexample=case)


def reordered(bench: Bench) -> int:
    """On how many streams with the same documents' lengths and their tokens permuted the order is another."""
    rng, tokens, count = bench.rng(4), bench.stream.tokens, 0
    inner = np.flatnonzero(tokens != bench.subject.vocabulary.bos_id)
    for _ in range(SHUFFLES):
        other = tokens.copy()
        other[inner] = tokens[rng.permutation(inner)]
        trial = bench.subject.run(other)
        count += not (np.array_equal(trial.rank, bench.base.rank) and np.array_equal(trial.commits, bench.base.commits))
    return count
