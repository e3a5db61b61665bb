"""pgolf package-submission: the folder that scores what it says."""

from pathlib import Path
from typing import Annotated

import typer

from pgolf.cli import options
from pgolf.cli.output import note, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("package-submission", rich_help_panel="The road")(package_submission)


def package_submission(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Artifacts, one per seed.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Submission folder to make.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Dataset to score or prove on; the score's own if left out."),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Title of the submission (package.name).")] = "",
    author: Annotated[str, typer.Option("--author", help="Display name of the author (package.author).")] = "",
    track: Annotated[str, typer.Option("--track", help="10min_16mb or non_record_16mb (package.track).")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing folder.")] = False,
    preset: options.Preset = "",
    sets: options.Sets = None,
    seed: options.Seed = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Script, artifact, metadata, logs and README in one folder, proved by running the script alone.

    Example: pgolf package-submission runs/a/model.pgz --out records/mine --name "My first" --author Me
    """
    from pgolf.accounting import Size, size_on_disk
    from pgolf.report.console import Console
    from pgolf.stages.package import artifact_config, package

    given = [f"package.{key}={value}" for key, value in (("name", name), ("author", author), ("track", track)) if value]
    everything = [*(options.merged(sets, seed)), *given]
    if dry_run:
        from pgolf.bundle.script import build_script
        from pgolf.stages.model_files import artifact_info, load_model

        model = load_model(artifacts[0])
        config = artifact_config(artifacts[0], preset, everything).config
        script = build_script(config, artifact_info(config, model.tokenizer_sha256).decode())
        size = size_on_disk(artifacts, len(script.packed), config.package.cap_bytes)
        if as_json:
            print_json({"schema": "pgolf.plan/1", "command": "package-submission", "out": str(out), **size.document()})
        else:
            note(f"would make {out}: {size.line()}")
        return
    console = Console(quiet)
    document = package(artifacts, out, preset, everything, data, device, console, force)
    if as_json:
        print_json(document)
        return
    note(
        ("unchanged, nothing to do: " if document["fresh"] else "")
        + f"{out}: {document['name']}, {document['val_bpb']:.6f} BPB"
    )
    note(Size(document["artifact_bytes"], document["code_bytes"], document["cap_bytes"]).line())
    for seed, proof in document["proof"].items():
        note(
            f"seed {seed}: the script alone scores {proof['bpb']:.8f} BPB"
            + (", equal bit for bit" if proof["identical"] else "")
        )
