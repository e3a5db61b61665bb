"""Where results go: tables or one JSON document on standard output, everything else on standard error."""

import json
import sys
from typing import Any, NoReturn

from pgolf.core.errors import PgolfError


def fail_after_result(error: PgolfError) -> NoReturn:
    """End with an error's exit code after the result has been printed: its line goes to standard error alone."""
    import typer

    print(f"error: {error}", file=sys.stderr)
    raise typer.Exit(error.exit_code)


def print_json(document: dict[str, Any]) -> None:
    """The one JSON document of a command."""
    print(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False))


def table(title: str, columns: list[str], rows: list[list[str]], right: tuple[int, ...] = ()) -> None:
    """A table on standard output, fitted to its width."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout)
    plain = not console.is_terminal
    if plain:
        console = Console(file=sys.stdout, width=max(console.width, 160), no_color=True)
    grid = Table(title=title or None, box=box.ASCII if plain else box.SIMPLE, title_justify="left", pad_edge=False)
    for index, column in enumerate(columns):
        grid.add_column(column, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*[cell if isinstance(cell, Text) else Text(str(cell)) for cell in row])
    console.print(grid)


def note(text: str) -> None:
    """A line of the result on standard output."""
    print(text)
