"""pgolf report: one page about a result."""

from pathlib import Path
from typing import Annotated

import typer

from pgolf.cli import options
from pgolf.cli.output import note, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report", rich_help_panel="Looking")(report)


def report(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="An artifact, or a run's or submission's folder.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="HTML page to write.")] = Path("report.html"),
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """A self-contained HTML page about an artifact: a treemap of its bytes, and by what they are coded.

    Example: pgolf report runs/a --out report.html
    """
    from pgolf.core.files import write_bytes
    from pgolf.report.artifact_page import artifact_page

    found = artifact_page(path)
    write_bytes(out, found["html"].encode())
    if as_json:
        print_json({"schema": "pgolf.report/1", "file": found["file"], "bytes": found["bytes"], "out": str(out)})
    elif not quiet:
        note(f"wrote {out}: the {found['bytes']:,} bytes of {found['file']}")
