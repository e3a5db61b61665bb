"""pgolf plot: curves of training runs."""

from pathlib import Path
from typing import Annotated

import typer

from pgolf.cli import options
from pgolf.cli.output import note, print_json, table
from pgolf.core.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plot", rich_help_panel="Looking")(plot)


def plot(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Directories of pgolf train or pgolf run, or events.jsonl.")
    ],
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Draw into this .png or .svg, both for a name without ending; repeatable (needs matplotlib).",
        ),
    ] = None,
    x: Annotated[str, typer.Option("--x", metavar="AXIS", help="Draw over step, tokens or seconds.")] = "step",
    smooth: Annotated[
        int, typer.Option("--smooth", metavar="POINTS", min=1, help="Draw the loss's mean over about so many points.")
    ] = 1,
    group: Annotated[
        bool, typer.Option("--group", help="Runs that differ only in their seed as one: mean, least and most.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Loss and validation BPB of training runs, finished or not: a table, and with --out a picture of their curves.

    Example: pgolf plot runs/a runs/b --out curves.png --x seconds
    """
    from pgolf.report.curves import AXES, draw, picture_files, read_runs

    if x not in AXES:
        raise ConfigError(f"{x!r} is no axis", "--x", f"axes are {', '.join(AXES)}")
    files, found = picture_files(out or []), read_runs(runs)
    if files:
        draw(found, files, x, smooth, group)
    rows = [run.summary() for run in found]
    if as_json:
        print_json({"schema": "pgolf.plot/1", "x": x, "out": [str(file) for file in files], "runs": rows})
        return
    columns = ["run", "seed", "steps", "tokens", "seconds", "loss", "BPB", "ended by"]
    cells = [
        [
            row["label"],
            shown(row["seed"], "d"),
            shown(row["steps"], ","),
            shown(row["tokens"], ","),
            shown(row["seconds"], ".1f"),
            shown(row["last_loss"], ".4f"),
            shown(row["last_bpb"], ".4f"),
            row["ended"] or "-",
        ]
        for row in rows
    ]
    table("", columns, cells, right=tuple(range(1, 7)))
    for row in rows:
        for text in row["notes"]:
            note(f"Note: {row['label']}: {text}")
    for file in files:
        note(f"wrote {file}")


def shown(value: int | float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)
