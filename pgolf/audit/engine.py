"""An audit of something that scores: all checks that it can stand, one after another."""

import time
from collections.abc import Callable
from typing import Any

from pgolf.audit.bench import Bench, Failed, Level
from pgolf.audit.checks.causality import check_causality
from pgolf.audit.checks.independence import check_independence
from pgolf.audit.checks.invariance import check_invariance
from pgolf.audit.checks.isolation import check_isolation
from pgolf.audit.checks.normalisation import check_normalisation
from pgolf.audit.checks.once import check_once
from pgolf.audit.checks.order import check_order
from pgolf.audit.checks.replay import check_replay
from pgolf.audit.stream import Stream
from pgolf.audit.subject import Subject
from pgolf.audit.verdict import HOLDS, PROPERTIES, Finding, untested

Say = Callable[[str], None]


LOUD = 0.01
"""Noise between equal runs, nats, above which a flip or a sum says nothing."""


def quiet(line: str) -> None:
    """Say nothing."""


def examine(
    subject: Subject,
    stream: Stream,
    level: Level,
    seed: int = 0,
    checks: str = "0abcdghijk",
    sweep: Stream | None = None,
    say: Say = quiet,
) -> list[Finding]:
    """The findings of these checks, (0) always among them. Sums are made on the stream `sweep` if there is one."""
    found: list[Finding] = []

    def timed(name: str, check: Callable[[], Any]) -> Any:
        began = time.monotonic()
        try:
            result = check()
        except Failed as failure:
            result = untested(name, str(failure))
        say(f"{name}: {time.monotonic() - began:.1f} s")
        return result

    first, base, noise = timed("0", lambda: check_replay(subject, stream))
    found.append(first)
    bench = Bench(subject, stream, level, seed, base, noise)
    if base.error or noise > LOUD:
        checks = "".join(set(checks) & set("0dghi"))
    summed = bench
    if sweep is not None and "b" in checks:
        summed = Bench(subject, sweep, level, seed, subject.run(sweep.tokens), noise)
    for name, check in {"d": check_once, "c": check_order, "a": check_causality, "b": check_normalisation}.items():
        if name in checks:
            where = summed if name == "b" else bench
            found.append(timed(name, lambda check=check, where=where: check(where)))  # type: ignore[misc]
    if not subject.records:
        found = implied(found)
    if set(checks) & set("ghi"):
        isolated = timed("ghi", lambda: check_isolation(bench))
        found += [finding for finding in isolated if finding.check in checks]
    if "j" in checks:
        found.append(timed("j", lambda: check_invariance(bench)))
    if "k" in checks:
        found.append(timed("k", lambda: check_independence(bench)))
    known = {finding.check for finding in found}
    reason = f"not tried at level {level.name}" if subject.records else "cannot be seen from outside a program"
    if base.error or noise > LOUD:
        reason = base.error or f"equal runs differ by {noise:.3g} nats"
    found += [untested(name, reason) for name in PROPERTIES if name not in known]
    return sorted(found, key=lambda finding: finding.check)


def implied(found: list[Finding]) -> list[Finding]:
    """For what shows losses only, (c) follows from (a) and (b): such totals can be reached by a decoder."""
    by_name = {finding.check: finding for finding in found}
    flips, sums = by_name.get("a"), by_name.get("b")
    if flips and sums and flips.verdict == sums.verdict == HOLDS:
        what = "follows from a and b: losses that do not depend on later tokens and sum to at most 1 can be decoded"
        by_name["c"] = Finding(check="c", verdict=HOLDS, what=what, n=min(flips.n, sums.n))
    return list(by_name.values())
