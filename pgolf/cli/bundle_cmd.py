"""pgolf bundle: the submission script of a configuration, before there is anything to submit."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgolf.cli import options
from pgolf.cli.output import note, print_json, table

if TYPE_CHECKING:
    from pgolf.bundle.explain import Piece


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bundle", rich_help_panel="Looking")(bundle)


def bundle(
    preset: options.Preset = "",
    sets: options.Sets = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for train_gpt.py and train_gpt_readable.py."),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="List the bytes of every definition in it.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """The one script that trains, quantizes, compresses and scores a configuration, packed, and its size. That of a
    submission has as many bytes but for a few: artifacts that this one makes name an empty tokenizer.

    A definition's bytes are those that the packed file would lose with it: what definitions share is in none of them.

    Example: pgolf bundle --preset leader --out script --explain
    """
    from pgolf.bundle.explain import explain as explained
    from pgolf.bundle.script import build_script
    from pgolf.config.load import resolve
    from pgolf.core.files import make_dir, write_bytes
    from pgolf.stages.model_files import artifact_info
    from pgolf.submission.imports import needed_packages

    config = resolve(preset, sets).config
    script = build_script(config, artifact_info(config, hashlib.sha256().hexdigest()).decode())
    pieces = explained(script) if explain else []
    if out is not None:
        make_dir(out)
        write_bytes(out / "train_gpt.py", script.packed)
        write_bytes(out / "train_gpt_readable.py", script.readable.encode())
    needed = sorted(needed_packages(script.packed, "train_gpt.py").needed)
    sizes = {"packed": len(script.packed), "minified": len(script.minified), "readable": len(script.readable)}
    if as_json:
        rows = [vars(piece) for piece in pieces]
        where = str(out) if out else None
        print_json({"schema": "pgolf.bundle/1", "bytes": sizes, "imports": needed, "pieces": rows, "out": where})
        return
    if explain:
        show_pieces(pieces)
    if not quiet:
        note(f"train_gpt.py packs to {sizes['packed']:,} bytes ({sizes['minified']:,} characters minified)")
        note(f"it imports {', '.join(needed)}")
        if out is not None:
            note(f"wrote {out / 'train_gpt.py'} and the same to read, train_gpt_readable.py")


def show_pieces(pieces: "list[Piece]") -> None:
    """Every definition, and sums by module."""
    modules: dict[str, list[Any]] = {}
    for piece in pieces:
        modules.setdefault(piece.module, []).append(piece)
    rows = [[piece.name, piece.module, f"{piece.characters:,}", f"{piece.bytes:,}"] for piece in pieces]
    table("", ["definition", "module", "characters", "bytes saved without"], rows, right=(2, 3))
    sums = sorted(modules.items(), key=lambda item: -sum(piece.characters for piece in item[1]))
    totals = [[name, str(len(some)), f"{sum(piece.characters for piece in some):,}"] for name, some in sums]
    table("", ["module", "definitions", "characters"], totals, right=(1, 2))
