"""The self-test: every specimen, what must catch it, and what does; every legal method, which nothing may catch."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from pgolf.accounting import Size
from pgolf.audit.bench import Level
from pgolf.audit.checks.charges import check_charges
from pgolf.audit.checks.provenance import provenance_finding
from pgolf.audit.checks.size import check_size
from pgolf.audit.engine import examine
from pgolf.audit.legal import LEGAL, legal_subject
from pgolf.audit.specimens import conduct, passes, pipelines, slots, vectors
from pgolf.audit.specimens.base import Specimen
from pgolf.audit.specimens.bytes import MISCOUNTS, miscounted, right
from pgolf.audit.specimens.model import VOCABULARY, specimen_subject
from pgolf.audit.stream import drawn_stream, plain_vocabulary
from pgolf.audit.verdict import Finding, broken, violations
from pgolf.core.errors import RuleError

TARGETS, WINDOW = 240, 32
SPECIMEN_LEVEL = Level(name="specimens", targets=TARGETS, flips=6, flips_total=36, sweeps=4, values=VOCABULARY)
"""Few flips are enough where an effect is not rare, and every token is swept."""
SCORERS: dict[str, type[Specimen]] = {
    "slot-scored": slots.SlotScored,
    "slot-context per window": slots.SlotContext,
    "slot-context per batch": slots.SlotContextPerBatch,
    "pre-eval TTT": passes.PreEvalTtt,
    "last epoch scored": passes.LastEpochScored,
    "hash-backoff": vectors.HashBackoff,
    "hash-backoff per rank": vectors.HashBackoffPerRank,
    "tilt-leaky": vectors.LeakyTilt,
    "two-pass": passes.TwoPass,
    "min-of-passes": passes.MinOfPasses,
    "min-of-passes, one looks ahead": passes.MinWithSharedSlot,
    "entropy-expert": vectors.EntropyExpert,
    "p^(1/n) bytes": vectors.SpreadBytes,
    "early sliding window list": passes.EarlyWindowList,
    "val temperature fit": passes.ValTemperature,
    "warm-up on val, discarded": conduct.WarmUpOnVal,
    "warm-up on val, kept": conduct.WarmUpKept,
    "tail left out": passes.CutTail,
    "batch-size dependent": vectors.BatchDependent,
    "seed from the target": vectors.TargetDraw,
    "content decides the order": conduct.ContentSchedule,
    "phones home": conduct.PhonesHome,
    "reads another file": conduct.ReadsOtherFile,
    "unsteady": conduct.Unsteady,
}
"""Those that score, by the name in the table."""


@dataclass(frozen=True)
class Case:
    """A row: what must catch it (letters), what may, where it comes from, and how its findings come about by seed."""

    name: str
    caught: str
    perhaps: str
    source: str
    what: str
    findings: Callable[[int], list[Finding]]


def scorer_findings(subject: Callable[[int], Any], seed: int) -> list[Finding]:
    """All checks on a short stream of its own."""
    stream = drawn_stream(plain_vocabulary(VOCABULARY), TARGETS, WINDOW, seed)
    return examine(subject(seed), stream, SPECIMEN_LEVEL, seed)


def charge_findings(transform: str, charge: Any, seed: int) -> list[Finding]:
    """Bytes."""
    return [check_charges(*miscounted(transform, charge))]


def pipeline_findings(tested: str, faults: Callable[[int], list[str]], seed: int) -> list[Finding]:
    """Provenance."""
    return [provenance_finding(faults(seed), 1, tested)]


def oversize_findings(seed: int) -> list[Finding]:
    """A file pruned to 16 x 2^20 bytes."""
    code = 20_000 + seed
    return [check_size(Size((16 << 20) - code, code))]


def first_line(thing: Any) -> str:
    """The first sentence of a docstring."""
    return (thing.__doc__ or "").strip().split("\n")[0]


def cases() -> Iterator[Case]:
    """The rows: specimens, then legal methods."""
    for name, specimen in SCORERS.items():
        find = partial(scorer_findings, partial(specimen_subject, specimen))
        yield Case(name, specimen.caught, specimen.perhaps, specimen.source, first_line(specimen), find)
    for name, (transform, charge) in MISCOUNTS.items():
        yield Case(name, "f", "", "spec of bytes", first_line(charge), partial(charge_findings, transform, charge))
    swap = partial(pipeline_findings, "validation splits swapped and hidden")
    yield Case(
        "prequant-ttt",
        "e",
        "",
        "PR #1485 and others",
        first_line(pipelines.prequant_ttt),
        partial(swap, partial(pipelines.swap_faults, pipelines.prequant_ttt)),
    )
    overlap = partial(pipeline_findings, "no document is in both splits")
    yield Case(
        "10,000-document export",
        "e",
        "",
        "issue #2127",
        first_line(pipelines.export_faults),
        partial(overlap, partial(pipelines.export_faults, pipelines.EXPORTED)),
    )
    yield Case("oversize in 2^20 units", "g", "", "size rule", first_line(oversize_findings), oversize_findings)
    for name in LEGAL:
        find = partial(scorer_findings, partial(legal_subject, name, targets=TARGETS))
        yield Case(f"legal: {name}", "", "", "", "", find)
    for transform in ("none", "caseops_v1"):
        find = partial(charge_findings, transform, right)
        yield Case(f"legal: bytes, transform {transform}", "", "", "", "", find)
    honest = partial(swap, partial(pipelines.swap_faults, pipelines.honest))
    yield Case("legal: training alone", "", "", "", "", honest)
    export = partial(overlap, partial(pipelines.export_faults, pipelines.HELD_OUT))
    yield Case("legal: separate splits", "", "", "", "", export)


def slug(name: str) -> str:
    """A name as a method would have it."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def refuse(name: str, where: str) -> None:
    """RuleError if that is the name of a specimen, not of a method, with what is wrong with it."""
    for case in cases():
        if case.caught and slug(case.name) == slug(name):
            raise RuleError(
                f"{case.name} gets no score: {case.what.rstrip('.')} ({case.source}). It breaks: {broken(case.caught)}",
                where,
                "docs/rules.md says what is held legal, pgolf audit specimens shows it caught",
            )


def judged(case: Case, seed: int) -> tuple[str, bool]:
    """What caught it, and whether that is exactly what must."""
    got = "".join(sorted(violations(case.findings(seed))))
    return got, set(case.caught) <= set(got) <= {*case.caught, *case.perhaps}
