"""(e) No validation data before evaluation: what is made of a dataset does not depend on its validation split, and can
be made while that split cannot be read.
"""

from collections.abc import Callable
from pathlib import Path

from pgolf.audit.sandbox import watched
from pgolf.audit.verdict import HOLDS, VIOLATED, Finding, case_of
from pgolf.core.errors import PgolfError

Maker = Callable[[], str]
"""Makes a model and returns a hash of its weights."""


def check_swap(first: Maker, second: Maker) -> list[str]:
    """Faults of two makers that differ in the validation split they are given."""
    return ["another validation split gives other weights"] * (first() != second())


def check_hidden(make: Maker, hidden: tuple[Path, ...]) -> list[str]:
    """Faults of a maker while these files cannot be opened."""
    with watched(denied=hidden, deny_network=False) as reached:
        try:
            make()
        except (OSError, PgolfError):
            if not reached.refused:
                raise
    if not reached.refused:
        return []
    return [f"{len(reached.refused)} attempts to read the validation split ({Path(reached.refused[0]).name})"]


def check_overlap(val: set[int], train: set[int]) -> list[str]:
    """Faults of the hashes of two splits' documents."""
    shared = len(val & train)
    return [f"{shared:,} of {len(val):,} validation documents are in the training split"] * bool(shared)


def provenance_finding(faults: list[str], n: int, tested: str, replay: str = "") -> Finding:
    """The verdict of both; `replay` is the command that shows it again."""
    if not faults:
        return Finding(check="e", verdict=HOLDS, what=tested, n=n)
    case = case_of("e", {"kind": "pipeline"}, replay, faults=faults)
    return Finding(check="e", verdict=VIOLATED, what="; ".join(faults), n=n, counterexample=case)
