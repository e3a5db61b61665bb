"""Where results go: tables or one JSON document on standard output, everything else on standard error."""

import json
import sys
from typing import Any, NoReturn

from pgolf.core.errors import PgolfError

NARROW = 8
"""Characters that a column of words keeps where the output is narrow."""


def fail_after_result(error: PgolfError) -> NoReturn:
    """End with an error's exit code after the result has been printed: its line goes to standard error alone."""
    import typer

    print(f"error: {error}", file=sys.stderr)
    raise typer.Exit(error.exit_code)


def print_json(document: dict[str, Any]) -> None:
    """The one JSON document of a command."""
    print(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False))


def table(title: str, columns: list[str], rows: list[list[str]], right: tuple[int, ...] = ()) -> None:
    """A table on standard output, fitted to its width; the figures of columns on the `right` are never broken, and a
    terminal that is too narrow for them breaks lines itself.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout)
    plain = not console.is_terminal
    if plain:
        console = Console(file=sys.stdout, width=max(console.width, 160), no_color=True)
    cells = [[cell if isinstance(cell, Text) else Text(str(cell)) for cell in row] for row in [columns, *rows]]
    words = [[word for cell in column for word in cell.plain.split(" ")] for column in zip(*cells, strict=True)]
    widths = [max(map(len, column)) for column in words]
    least = sum(width if index in right else min(width, NARROW) for index, width in enumerate(widths)) + 3 * len(widths)
    if least > console.width:
        console = Console(file=sys.stdout, width=least)
    grid = Table(title=title or None, box=box.ASCII if plain else box.SIMPLE, title_justify="left", pad_edge=False)
    for index, column in enumerate(columns):
        least_width = widths[index] if index in right else None
        grid.add_column(column, justify="right" if index in right else "left", overflow="fold", min_width=least_width)
    for cells_of_row in cells[1:]:
        grid.add_row(*cells_of_row)
    console.print(grid)


def note(text: str) -> None:
    """A line of the result on standard output."""
    print(text)
