"""pgolf eval and ttt: a score for a model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pgolf.cli import options
from pgolf.cli.output import note, print_json, table

Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Checkpoint, quantized model or artifact; the file says which.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="Write the score document here (score.json) and reuse it while it is up to date."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("eval", rich_help_panel="The road")(evaluate)
    app.command("ttt", rich_help_panel="The road")(ttt)


def evaluate(
    model: Model,
    data: options.Data,
    out: Out = None,
    tokenizer: options.Tokenizer = None,
    preset: options.Preset = "",
    sets: options.Sets = None,
    seed: options.Seed = None,
    force: options.Force = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Score a model with fixed weights: bits per byte over the validation split, every target exactly once.

    Example: pgolf eval runs/a/model.pgz --data data/mine --set eval.method=sliding --set eval.stride=64
    """
    score(
        "eval", model, data, out, tokenizer, preset, options.merged(sets, seed), force, device, as_json, dry_run, quiet
    )


def ttt(
    model: Model,
    data: options.Data,
    out: Out = None,
    tokenizer: options.Tokenizer = None,
    preset: options.Preset = "",
    sets: options.Sets = None,
    seed: options.Seed = None,
    force: options.Force = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Score a model that learns from what it has already been scored on.

    Example: pgolf ttt runs/a/model.pgz --data data/mine --set ttt.lr=0.002
    """
    score(
        "ttt", model, data, out, tokenizer, preset, options.merged(sets, seed), force, device, as_json, dry_run, quiet
    )


def score(
    stage: str,
    path: Path,
    data: Path,
    out: Path | None,
    tokenizer: Path | None,
    preset: str,
    sets: list[str],
    force: bool,
    device: str,
    as_json: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """The body of both commands."""
    from pgolf.report.console import Console
    from pgolf.stages.evaluate import score_model
    from pgolf.stages.inputs import model_and_data

    console = Console(quiet)
    model, resolved, dataset = model_and_data(path, data, tokenizer, preset, sets, console, scoring=True)
    if dry_run:
        method = getattr(resolved.config, stage)
        targets = sum(map(len, dataset.split("val"))) - 1
        targets = min(targets, method.max_tokens or targets)
        document = {
            "schema": "pgolf.plan/1",
            "command": stage,
            "targets": targets,
            "method": resolved.values[stage],
            "model": model.describe(),
        }
        if as_json:
            print_json(document)
        else:
            note(f"would score {targets:,} targets of {data} with {resolved.values[stage]['method']}")
        return
    document = score_model(model, dataset, stage, resolved, device, console, out, force)
    if as_json:
        print_json(document)
    else:
        show(document)


def show(document: dict[str, Any]) -> None:
    """The score as a small table."""
    score, method = document["score"], document["method"]
    settings = ", ".join(f"{key}={value}" for key, value in method.items() if key != "name")
    rows = [
        ["BPB", f"{score['bpb']:.8f}"],
        ["val_loss (nats per token)", f"{score['val_loss']:.8f}"],
        ["targets", f"{score['tokens']:,}"],
        ["bytes", f"{score['bytes']:,}"],
        ["method", f"{method['name']} ({settings})"],
        ["model", f"{document['model']['kind']} {document['model']['path']}"],
        [
            "seconds",
            f"{document['seconds']['score']:.1f}" + (" (nothing to do: unchanged)" if document["fresh"] else ""),
        ],
    ]
    if document["model"]["overridden"]:
        rows.insert(1, ["not as trained", ", ".join(document["model"]["overridden"])])
    if document["partial"]:
        rows.insert(1, ["partial", f"the first {document['share']:.1%} of the validation targets"])
    table("", ["", ""], rows)
