"""pgolf plot: curves of training runs, and what targets cost."""

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
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Directories of pgolf train or pgolf run, or events.jsonl; or files of pgolf eval --positions.",
        ),
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
    """Curves of training runs, or what every target of a score cost: a table, and with --out a picture.

    Of runs, finished or not, it shows loss and validation BPB; of files of pgolf eval --positions, BPB along documents
    and by their length.

    Example: pgolf plot runs/a runs/b --out curves.png --x seconds
    """
    from pgolf.report.curves import AXES, draw, picture_files, read_runs

    if x not in AXES:
        raise ConfigError(f"{x!r} is no axis", "--x", f"axes are {', '.join(AXES)}")
    files = picture_files(out or [])
    if all(path.suffix == ".safetensors" for path in runs):
        plot_positions(runs, files, as_json)
        return
    found = read_runs(runs)
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


def plot_positions(paths: list[Path], files: list[Path], as_json: bool) -> None:
    """The body for files of pgolf eval --positions."""
    from pgolf.report.positions import PANELS, draw_positions, read_files, summary

    found = read_files(paths)
    if files:
        draw_positions(found, files)
    rows = summary(found)
    if as_json:
        print_json({"schema": "pgolf.plot_positions/1", "out": [str(file) for file in files], "files": rows})
        return
    for row in rows:
        for over, label in PANELS.items():
            cells = [
                [f"{b['low']:,} to {b['high'] - 1:,}", f"{b['tokens']:,}", f"{b['bpb']:.4f}", f"{b['se']:.4f}"]
                for b in row[over]
            ]
            table(f"{row['file']}: {row['method']}", [label, "targets", "BPB", "se"], cells, right=(1, 2, 3))
    for file in files:
        note(f"wrote {file}")
