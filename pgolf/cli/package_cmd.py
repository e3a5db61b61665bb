"""pgolf package-submission: the folder that scores what it says."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pgolf.cli import options
from pgolf.cli.output import fail_after_result, note, print_json
from pgolf.core.errors import ConfigError, RuleError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("package-submission", rich_help_panel="The road")(package_submission)


def package_submission(
    artifacts: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", callback=options.all_there, help="Runs, or their artifacts, one per seed."),
    ] = None,
    out: Annotated[
        str,
        typer.Option("--out", metavar="DIR", help="Folder to make; DIR/ makes DIR/track_TRACK/DATE_NAME_BPB."),
    ] = "",
    check: Annotated[
        Path | None,
        typer.Option("--check", metavar="DIR", help="Make nothing, but check a folder that any tool has made."),
    ] = None,
    run: Annotated[
        bool, typer.Option("--run", help="With --check: execute its script too, which scores the artifacts on --data.")
    ] = False,
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

    Example: pgolf package-submission runs/a runs/b runs/c --out records/ --name "My first" --author Me
    """
    from pgolf.accounting import Size, size_on_disk
    from pgolf.report.console import Console
    from pgolf.stages.package import artifact_config, package

    if check is not None:
        if artifacts or out:
            raise ConfigError("--check takes no runs and no --out", "--check", "check a folder in a command of its own")
        show_check(checked(check, run, data), as_json)
        return
    if run:
        raise ConfigError("--run belongs to --check", "--run", "pgolf package-submission --check DIR --run --data DATA")
    if not artifacts or not out:
        raise ConfigError("RUN... and --out are missing", "package-submission", "or check a folder with --check DIR")
    given = [f"package.{key}={value}" for key, value in (("name", name), ("author", author), ("track", track)) if value]
    everything = [*(options.merged(sets, seed)), *given]
    if dry_run:
        from pgolf.bundle.script import build_script
        from pgolf.stages.model_files import artifact_info, load_model
        from pgolf.submission.entries import find_artifact

        artifacts = [find_artifact(path) for path in artifacts]
        model = load_model(artifacts[0])
        config = artifact_config(artifacts[0], preset, everything).config
        script = build_script(config, artifact_info(config, model.tokenizer_sha256).decode())
        size = size_on_disk(artifacts, len(script.packed), config.package.cap_bytes)
        if as_json:
            print_json({"schema": "pgolf.plan/1", "command": "package-submission", "out": out, **size.document()})
        else:
            note(f"would make {out}: {size.line()}")
        return
    console = Console(quiet)
    records = out.endswith(("/", "\\"))
    document = package(
        artifacts, Path(out), preset, everything, data, device, console, force, records=records, again=force
    )
    if as_json:
        print_json(document)
        return
    note(
        ("unchanged, nothing to do: " if document["fresh"] else "")
        + f"{document['out']}: {document['name']}, {document['val_bpb']:.6f} BPB"
    )
    note(Size(document["artifact_bytes"], document["code_bytes"], document["cap_bytes"]).line())
    for name_of_proof, proof in document["proof"].items():
        note(proof_line(name_of_proof, proof))


def checked(folder: Path, run: bool, data: Path | None) -> dict[str, Any]:
    """What a check of a folder has found; with `run` its script has been executed."""
    from pgolf.dataset import open_dataset
    from pgolf.submission.checking import check_submission, run_submission_folder

    if not run:
        return check_submission(folder)
    if data is None:
        raise ConfigError("--run needs the validation data", "--data", "name the dataset that the score is on")
    return run_submission_folder(folder, open_dataset(data))


def show_check(document: dict[str, Any], as_json: bool) -> None:
    """Findings, and exit 4 if one is a violation."""
    if as_json:
        print_json(document)
    else:
        for finding in document["findings"]:
            note(f"{finding['level']:<9} {finding['what']}")
        note(f"{document['verdict']}: {len(document['findings'])} findings")
    if document["verdict"] == "violated":
        fail_after_result(RuleError("what the folder says does not hold", document["folder"], "the findings say what"))


def proof_line(name: str, proof: Any) -> str:
    """What was proved, in a line."""
    if name == "training" and isinstance(proof, dict):
        same = "the same artifact bit for bit" if proof["identical"] else "the same losses"
        return f"training: {proof['steps']} steps with the script alone and with pgolf give {same}"
    if name == "training":
        return f"training: not compared: {proof}"
    equal = ", equal bit for bit" if proof["identical"] else ""
    return f"seed {name}: the script alone scores {proof['bpb']:.8f} BPB{equal}"
