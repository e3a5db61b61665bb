"""Two sets of runs side by side, and published scores beside one's own."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from pgolf.audit.triple import TEXT_BYTES
from pgolf.submission.gather import Scored, doubts, gather, remarks, strangers
from pgolf.submission.significance import Rule, Sample, compared, sample_of

BOARD = Path(__file__).with_name("leaderboard.toml")
COMPARE_SCHEMA, BOARD_SCHEMA = "pgolf.compare/1", "pgolf.leaderboard/1"
SAME_TEXT = 1e-4
"""How far the bytes of two streams of the same text may be apart, a share: windows cut off their ends."""
ORDER = ("float", "quantized", "artifact")


@cache
def published() -> list[dict[str, Any]]:
    """The published scores."""
    entries: list[dict[str, Any]] = tomllib.loads(BOARD.read_text())["entry"]
    return entries


def published_entry(name: str) -> dict[str, Any] | None:
    """The entry of a preset, by any of its names, or of a pull request's number."""
    wanted = {name, f"#{name}", name.replace("pr", "#", 1)}
    found = (
        entry for entry in published() if name in (entry.get("preset"), entry.get("alias")) or entry["pr"] in wanted
    )
    return next(found, None)


def views(scores: list[Scored]) -> dict[str, list[Scored]]:
    """The scores by view, float models first, test-time training last."""
    ranked = sorted(scores, key=lambda score: (ORDER.index(score.form) if score.form in ORDER else 9, score.stage))
    found: dict[str, list[Scored]] = {}
    for score in ranked:
        found.setdefault(score.view, []).append(score)
    return found


def described(scores: list[Scored]) -> dict[str, Any]:
    """A side of a view."""
    sample = sample_of([score.bpb for score in scores])
    return {"n": sample.n, "bpb": sample.mean, "std": sample.std, "seeds": [score.seed for score in scores]}


def compare_runs(old: Path, new: Path, rules: list[Rule]) -> dict[str, Any]:
    """Every view that both have, the differences new - old, and what is doubtful about them."""
    sides = {"old": gather(old), "new": gather(new)}
    by_view = {name: views(scores) for name, scores in sides.items()}
    rows, warnings = [], [*doubts(str(old), sides["old"]), *doubts(str(new), sides["new"])]
    for view in [view for view in by_view["old"] if view in by_view["new"]]:
        before, after = by_view["old"][view], by_view["new"][view]
        found = compared(
            sample_of([score.bpb for score in before]),
            sample_of([score.bpb for score in after]),
            sum(score.bytes_per_token for score in after) / len(after),
            rules,
        )
        rows.append({"view": view, "old": described(before), "new": described(after), **found})
        warnings += remarks([*before, *after])
        warnings += [f"{view}: {doubt}" for doubt in strangers(before, after)]
    alone = {name: [view for view in by_view[name] if not any(row["view"] == view for row in rows)] for name in sides}
    gaps = {name: gaps_of(by_view[name]) for name in sides}
    return {
        "schema": COMPARE_SCHEMA,
        "old": str(old),
        "new": str(new),
        "rows": rows,
        "only": alone,
        "gaps": gaps,
        "warnings": list(dict.fromkeys(warnings)),
    }


def gaps_of(by_view: dict[str, list[Scored]]) -> list[dict[str, Any]]:
    """From view to view of the same side: what each step costs or gains, over the runs that have both."""
    rows = []
    names = list(by_view)
    for before, after in zip(names, names[1:]):
        mine = {score.run: score.bpb for score in by_view[before]}
        pairs = [score.bpb - mine[score.run] for score in by_view[after] if score.run in mine]
        if pairs:
            gap = sample_of(pairs)
            rows.append({"from": before, "to": after, "bpb": gap.mean, "std": gap.std, "n": gap.n})
    return rows


def compare_published(entry: dict[str, Any], new: Path, rules: list[Rule]) -> dict[str, Any]:
    """Every view of one's own runs beside a published score."""
    scores = gather(new)
    old = Sample(entry["bpb"], entry.get("std", 0.0), entry.get("seeds", 1), exact="std" not in entry)
    rows = []
    for view, mine in views(scores).items():
        sample = sample_of([score.bpb for score in mine])
        rate = sum(score.bytes_per_token for score in mine) / len(mine)
        side = {"n": old.n, "bpb": old.mean, "std": old.std, "seeds": []}
        rows.append({"view": view, "old": side, "new": described(mine), **compared(old, sample, rate, rules)})
    warnings = [*doubts(str(new), scores), *remarks(scores)]
    if not old.spread:
        warnings.append(f"{entry['pr']}: no spread over seeds was published; its mean counts as exact")
    if others := sorted({score.run for score in scores if not on_the_text(score)}):
        what = f"{entry['pr']} was scored on the challenge's validation text, which has other bytes than that of"
        warnings.append(f"{what} {', '.join(others)}: these scores cannot be compared")
    return {
        "schema": COMPARE_SCHEMA,
        "old": entry["pr"],
        "new": str(new),
        "rows": rows,
        "only": {"old": [], "new": []},
        "gaps": {"old": [], "new": gaps_of(views(scores))},
        "warnings": warnings,
    }


def on_the_text(score: Scored) -> bool:
    """Whether a score's bytes are those of the challenge's validation text."""
    return fits_text(score.document["score"]["bytes"])


def fits_text(count: int) -> bool:
    """Whether this is the number of bytes of the challenge's validation text."""
    return bool(abs(count / TEXT_BYTES - 1) <= SAME_TEXT)


def leaderboard(runs: list[Path]) -> dict[str, Any]:
    """The published table, best first, with the best score of each of one's own runs in its place."""
    rows = [{**entry, "own": False} for entry in published()]
    for path in runs:
        by_view = views(gather(path))
        best = min(by_view.values(), key=lambda scores: sample_of([score.bpb for score in scores]).mean)
        sample = sample_of([score.bpb for score in best])
        status = "own" if all(map(on_the_text, best)) else "own, on another text"
        row: dict[str, Any] = {"pr": "-", "name": str(path), "view": best[0].view, "bpb": sample.mean, "own": True}
        row |= {"status": status, "notes": remarks(best)}
        audits = {str(audit_word(score.document.get("audit"))) for score in best}
        rows.append({**row, "std": sample.std, "seeds": sample.n, "audit": ", ".join(sorted(audits))})
    return {"schema": BOARD_SCHEMA, "rows": sorted(rows, key=lambda row: row["bpb"])}


def audit_word(audit: Any) -> str:
    """What a score's audit came to."""
    return str(audit["verdict"]) if isinstance(audit, dict) else "unaudited"
