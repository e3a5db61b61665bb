"""(c) Scored before anything learns from it: no commit of a target that something has seen."""

import numpy as np

from pgolf.audit.bench import Bench
from pgolf.audit.subject import Subject
from pgolf.audit.verdict import HOLDS, VIOLATED, Finding, untested


def late_commits(subject: Subject, tokens: np.ndarray) -> list[tuple[int, str]]:
    """Targets committed too late, with the reason, in a run in which weights are watched."""
    return subject.run(tokens, hashes=True).late


def check_order(bench: Bench) -> Finding:
    """One run in which weights are watched, too."""
    if not bench.subject.records:
        return untested("c", "a program shows losses only; what it does between is judged by a and b")
    late, n = late_commits(bench.subject, bench.stream.tokens), bench.stream.targets
    kinds = [kind for kind, *_ in bench.base.events]
    figures = {"looks": kinds.count("look"), "reveals": kinds.count("reveal"), "late": len(late)}
    if not late:
        what = f"none of {n:,} targets was seen, and no weight moved, before its score was final"
        return Finding(check="c", verdict=HOLDS, what=what, n=n, figures=figures)
    target, why = late[0]
    what = f"{len(late):,} commits came too late, the first of target {target}: {why}"
    case = bench.case("c", target=target, why=why)
    return Finding(check="c", verdict=VIOLATED, what=what, n=n, figures=figures, counterexample=case)
