"""pgolf data: get, merge, show, audit."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pgolf.cli import data_audit_cmd, data_show_cmd, options
from pgolf.cli.output import note, print_json, table


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Get and check datasets.")
    group.command("get")(get)
    group.command("merge")(merge)
    group.command("show")(data_show_cmd.show)
    group.command("audit")(data_audit_cmd.audit)
    app.add_typer(group, name="data", rich_help_panel="The road")


def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="sp1024, sp4096, sp8192 or caseops.")],
    train_shards: Annotated[
        int | None,
        typer.Option(
            "--train-shards", metavar="N", min=0, help="First train shards to have; 80, or all if fewer are published."
        ),
    ] = None,
    dest: Annotated[
        Path, typer.Option("--dest", metavar="DIR", help="Gets datasets/ and tokenizers/, and is made if missing.")
    ] = Path("data"),
    repo: Annotated[
        str, typer.Option("--repo", metavar="OWNER/NAME", help="Another repository than the published one.")
    ] = "",
    revision: Annotated[
        str, typer.Option("--revision", help="Branch, tag or commit. A folder stays at the commit it was begun with.")
    ] = "main",
    root: Annotated[str, typer.Option("--root", help="Folder of the published manifest.json.")] = "datasets",
    endpoint: Annotated[
        str, typer.Option("--endpoint", metavar="URL", help="The hub, or a mirror of it.")
    ] = "https://huggingface.co",
    workers: Annotated[int, typer.Option("--workers", min=1, max=64, help="Downloads side by side.")] = 8,
    retries: Annotated[int, typer.Option("--retries", min=1, help="Tries for each request before giving up.")] = 5,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace files from elsewhere, and move to the commit the revision stands for now.",
            rich_help_panel="Running",
        ),
    ] = False,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Download a published dataset, every file checked by its hash; the same command resumes or completes it.

    All validation shards and the tokenizer come along with the train shards. Needs the package huggingface-hub.

    Example: pgolf data get sp1024 --train-shards 10
    """
    from pgolf.report.console import Console
    from pgolf.stages import fetch, hub
    from pgolf.stages.adopt import adopt_fetched

    wish = hub.Wish(name=name, repo=repo, revision=revision, root=root, endpoint=endpoint, train_shards=train_shards)
    if dry_run:
        document = fetch.preview(wish, dest, Console(quiet), retries, force)
        if as_json:
            print_json(document)
            return
        rows = [
            [row["file"], "?" if row["bytes"] is None else f"{row['bytes']:,}", "yes" if row["present"] else "no"]
            for row in document["files"]
        ]
        table("", ["file", "bytes", "present"], rows, right=(1,))
        note(f"would download {document['download_bytes']:,} of {document['total_bytes']:,} bytes into {dest}")
        return
    console = Console(quiet)
    finish = partial(adopt_fetched, console=console)
    document = fetch.fetch(wish, dest, console, workers, retries, force, finish)
    if as_json:
        print_json(document)
        return
    files, seconds = document["files"], document["seconds"]
    done = f"{document['downloaded']} files downloaded, {document['downloaded_bytes']:,} bytes in {seconds:.1f} s"
    note(
        f"{done if document['network'] else 'unchanged, nothing to do'}: {document['dir']}: "
        f"{document['train_shards']} train shards, {len(files)} files, {document['reused']} of them there before; "
        f"{document['repo']} at {document['commit'][:12]}"
    )


def merge(
    parts: Annotated[list[Path], typer.Argument(metavar="PART...", help="What pgolf tokenize --shard I/N made.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Dataset directory to make.")],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Join the parts of a corpus that several jobs have tokenized: the very files that one job would have made.

    Example: pgolf data merge parts/1 parts/2 parts/3 --out data/whole
    """
    from pgolf.cli.stage_cmds import show_dataset
    from pgolf.report.console import Console
    from pgolf.stages.merge import merge as run_merge

    console = Console(quiet)
    show_dataset(run_merge(parts, out, console), out, "pgolf.data-merge/1", as_json, console.warnings)
