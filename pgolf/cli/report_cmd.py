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
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A run's or submission's folder, or an artifact.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="HTML page to write.")] = Path("report.html"),
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """A self-contained HTML page about a run: its pipeline with times, curves, scores, a treemap of the artifact's
    bytes, quantization by tensor, audits, and where all of it comes from. It loads nothing from anywhere.

    Example: pgolf report runs/a --out report.html
    """
    from pgolf.core.files import write_bytes
    from pgolf.report.run_page import run_page

    found = run_page(path)
    content = found["html"].encode()
    write_bytes(out, content)
    if as_json:
        facts = {"run": str(path), "sections": found["sections"], "bytes": len(content), "out": str(out)}
        print_json({"schema": "pgolf.report/2", **facts})
    elif not quiet:
        note(f"wrote {out}: {', '.join(found['sections'])}")
