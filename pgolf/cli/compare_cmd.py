"""pgolf compare and pgolf leaderboard: is it better, and where would it stand?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from pgolf.cli import options
from pgolf.cli.output import note, print_json, table


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("compare", rich_help_panel="Proof")(compare)
    app.command("leaderboard", rich_help_panel="Looking")(leaderboard)


def compare(
    old: Annotated[str, typer.Argument(metavar="OLD", help="A run, a folder of runs, or a published preset or PR.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="A run, or a folder of runs that differ in their seed.")],
    rule: Annotated[
        Path | None, typer.Option("--rule", metavar="FILE", help="Rules as TOML; the challenge's if left out.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Is NEW better than OLD? Differences by stage with their intervals, tests over seeds, and what rules say of them.

    Negative differences are gains. Nats per token are converted by the bytes per token of NEW. What is published is
    always OLD, also where it is named second.

    Example: pgolf compare pr1855 runs/mine
    """
    from pgolf.submission.compare import compare_published, compare_runs, published_entry
    from pgolf.submission.significance import load_rules

    rules = load_rules(rule)
    if Path(old).exists() and not new.exists() and published_entry(str(new)):
        old, new = str(new), Path(old)
    entry = None if Path(old).exists() else published_entry(old)
    document = compare_published(entry, new, rules) if entry else compare_runs(Path(old), new, rules)
    if as_json:
        print_json(document)
        return
    rows = [[row["view"], side(row["old"]), side(row["new"]), *differences(row)] for row in document["rows"]]
    names = [f"{one['name']} rule" for one in document["rows"][0]["rules"]] if rows else []
    columns = ["scored", "OLD", "NEW", "BPB", "nats per token", "p two-sided", "p one-sided", *names]
    table(f"{document['old']} and {document['new']}", columns, rows)
    for name, gaps in document["gaps"].items():
        for gap in gaps:
            note(f"{name.upper()}: {gap['from']} to {gap['to']}: {gap['bpb']:+.5f} BPB (n={gap['n']})")
    for name, alone in document["only"].items():
        if alone:
            note(f"only {name.upper()} has: {'; '.join(alone)}")
    for warning in document["warnings"]:
        note(f"warning: {warning}")


def side(sample: dict[str, Any]) -> str:
    """Mean, spread and number."""
    spread = f" ± {sample['std']:.5f}" if sample["std"] else ""
    return f"{sample['bpb']:.5f}{spread} (n={sample['n']})"


def differences(row: dict[str, Any]) -> list[str]:
    """The cells of a difference."""

    def chance(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    def interval(name: str, value: float) -> str:
        ends = row[name]
        return f"{value:+.5f}" + (f" [{ends[0]:+.5f}, {ends[1]:+.5f}]" if ends else "")

    verdicts = ["beats" if one["beats"] else f"no (p {chance(one['p_found'])})" for one in row["rules"]]
    return [
        interval("interval_bpb", row["delta_bpb"]),
        interval("interval_nats", row["delta_nats"]),
        chance(row["p_two_sided"]),
        chance(row["p_one_sided"]),
        *verdicts,
    ]


def leaderboard(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="[RUN]...", help="Runs to place in it.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also open, closed and disputed ones, and own runs that are not audited.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """The published scores, best first, with one's own runs in their place. Own runs must be audited to be shown.

    Example: pgolf leaderboard runs/mine --all
    """
    from pgolf.submission.compare import leaderboard as board

    document = board(runs or [])
    shown = [row for row in document["rows"] if everything or row["status"] == "merged" or row.get("audit") == "passed"]
    hidden = len(document["rows"]) - len(shown)
    if as_json:
        print_json(document | {"rows": shown, "hidden": hidden})
        return
    rows = []
    for row in shown:
        spread = f" ± {row['std']:.5f}" if row.get("std") else ""
        was = "".join(f" (was {one['before']:g}: {one['reason']})" for one in row.get("corrections", []))
        name = f"{row['name']}, {row['view']}" if row["own"] else row["name"]
        facts = [row["pr"], row["status"], row.get("date", ""), row.get("source", "")]
        rows.append([f"{row['bpb']:.5f}{spread}", *facts, name + was])
    table("Published scores", ["BPB", "PR", "status", "date", "source", "what"], rows)
    for text in dict.fromkeys(text for row in shown for text in row.get("notes", [])):
        note(f"Note: {text}")
    if hidden:
        note(f"{hidden} not shown (open, closed, disputed, or own and unaudited): --all")
