"""(j) Batches and ranks do not change scores."""

import numpy as np

from pgolf.audit.bench import Bench, noise_between
from pgolf.audit.verdict import HOLDS, VIOLATED, Finding, untested

TOLERANCE = 1e-5
"""Up to where losses in other batches count as equal, nats: sums in another order move float32 by about 1e-6."""


def check_invariance(bench: Bench) -> Finding:
    """The same stream in other batches and on two ranks."""
    variants = bench.subject.variants()
    if not variants:
        return untested("j", "the program's batches and ranks cannot be set from outside")
    found = {name: noise_between([bench.base, variant.run(bench.stream.tokens)]) for name, variant in variants.items()}
    worst = max(found, key=lambda name: np.nan_to_num(found[name], nan=np.inf))
    allowed = TOLERANCE + bench.tolerance
    if found[worst] <= allowed:
        what = f"{', '.join(found)}: losses within {found[worst]:.2g} nats"
        return Finding(check="j", verdict=HOLDS, what=what, n=len(found), figures=found)
    what = f"with {worst} losses differ by up to {found[worst]:.3g} nats"
    case = bench.case("j", variant=worst, difference=found[worst], allowed=allowed)
    return Finding(check="j", verdict=VIOLATED, what=what, n=len(found), figures=found, counterexample=case)
