"""(g), (h), (i): what an evaluation reads, whether it reaches for a network, and what it looks at before the clock."""

from contextlib import suppress

from pgolf.audit.bench import Bench
from pgolf.audit.sandbox import watched
from pgolf.audit.verdict import HOLDS, VIOLATED, Finding, untested

LISTED = 10


def check_isolation(bench: Bench) -> list[Finding]:
    """One run under watch, with sockets refused."""
    if not bench.subject.records:
        return [untested("i", "a program's clock cannot be seen from outside")]
    with watched() as reached, suppress(PermissionError):
        bench.subject.run(bench.stream.tokens)
    files = [f"read {path}" for path in reached.foreign()] + [f"wrote {path}" for path in reached.kept()]
    early = [event for event in bench.base.events if event[0].startswith("early")]
    tokens = sum(stop - start for _, start, stop, _ in early)
    attempts = f"{len(reached.network)} attempts at the network ({', '.join(sorted({*reached.network}))}), refused"
    return [
        verdict(bench, "g", files, "no file was read but code and model, none was left", f"{len(files)} other files"),
        verdict(bench, "h", reached.network, "no socket was opened", attempts),
        verdict(
            bench,
            "i",
            [f"{kind} at tokens {start} to {stop - 1}" for kind, start, stop, _ in early],
            "no token was looked at before the clock",
            f"{tokens:,} tokens were looked at before the clock started",
        ),
    ]


def verdict(bench: Bench, name: str, seen: list[str], clean: str, broken: str) -> Finding:
    """A violation where something was seen."""
    if not seen:
        return Finding(check=name, verdict=HOLDS, what=clean, n=1)
    what, case = f"{broken}: {', '.join(seen[:LISTED])}", bench.case(name, seen=seen[:LISTED])
    return Finding(check=name, verdict=VIOLATED, what=what, n=1, counterexample=case)
