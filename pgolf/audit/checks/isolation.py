"""(g), (h), (i): what an evaluation reads, whether it reaches for a network, and what it looks at before the clock."""

from pgolf.audit.bench import Bench
from pgolf.audit.sandbox import watched
from pgolf.audit.verdict import HOLDS, VIOLATED, Finding, untested

LISTED = 10


def check_isolation(bench: Bench) -> list[Finding]:
    """One run under watch, with sockets refused."""
    if not bench.subject.records:
        return [untested("i", "a program's clock cannot be seen from outside")]
    error = ""
    with watched() as reached:
        try:
            bench.subject.run(bench.stream.tokens)
        except PermissionError as refusal:
            error = str(refusal)
    files = [f"read {path}" for path in reached.foreign()] + [f"wrote {path}" for path in reached.kept()]
    early = [event for event in bench.base.events if event[0].startswith("early")]
    tokens = sum(stop - start for _, start, stop, _ in early)
    return [
        verdict(bench, "g", files, "no file was read but code and model, none was left"),
        verdict(bench, "h", reached.network, "no socket was opened", error),
        verdict(bench, "i", ["look"] * bool(early), "no token was looked at before the clock", f"{tokens:,} tokens"),
    ]


def verdict(bench: Bench, name: str, seen: list[str], clean: str, more: str = "") -> Finding:
    """A violation where something was seen."""
    if not seen:
        return Finding(check=name, verdict=HOLDS, what=clean, n=1)
    what = {
        "g": f"{len(seen)} other files: {', '.join(seen[:LISTED])}",
        "h": f"{len(seen)} attempts at the network ({', '.join(sorted({*seen}))}), refused",
        "i": f"{more} were looked at before the clock started",
    }[name]
    case = bench.case(name, seen=seen[:LISTED])
    return Finding(check=name, verdict=VIOLATED, what=what, n=1, counterexample=case)
