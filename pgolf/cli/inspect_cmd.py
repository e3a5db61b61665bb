"""pgolf size, inspect, import: looking at files and bringing them in."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pgolf.cli import options
from pgolf.cli.output import fail_after_result, note, print_json, table
from pgolf.core.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("size", rich_help_panel="Looking")(size)
    app.command("inspect", rich_help_panel="Looking")(inspect)
    app.command("import", rich_help_panel="Looking")(import_model)


def size(
    target: Annotated[
        str,
        typer.Argument(
            metavar="PRESET|FILE|DIR", help="A preset (predicted), a model file or a submission folder (exact)."
        ),
    ],
    sets: options.Sets = None,
    seed: options.Seed = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Bytes against the cap: predicted from a preset before any training, exact for files and folders, ours or not.

    Exit code 4 if the cap is exceeded.

    Example: pgolf size baseline_sp1024 --set model.num_layers=8
    """
    from pgolf.config.load import preset_names, resolve

    if target not in preset_names() and not target.endswith(".toml") and Path(target).exists():
        document = exact_size(Path(target), resolve("", options.merged(sets, seed)).config.package.cap_bytes)
    else:
        from pgolf.sizing import size_document

        document = size_document(resolve(target, options.merged(sets, seed)).config, target)
    if as_json:
        print_json(document)
    else:
        show_size(document)
    if document["headroom_bytes"] < 0:
        from pgolf.core.errors import RuleError

        over = f"{-document['headroom_bytes']:,} bytes over the cap of {document['cap_bytes']:,}"
        fail_after_result(RuleError(over, target, "fewer bits, a coarser step or a smaller model"))


def exact_size(path: Path, cap: int) -> dict[str, Any]:
    """Bytes of a file, or of what counts in a submission folder."""
    from pgolf.submission.audit_size import folder_size

    return {"schema": "pgolf.size/1", "target": str(path), "predicted": False, **folder_size(path, cap)}


def show_size(document: dict[str, Any]) -> None:
    """The size as a table."""
    from pgolf.accounting import Size

    if "tensors" in document:
        rows = [
            [
                t["name"],
                "x".join(map(str, t["shape"])),
                f"{t['parameters']:,}",
                t["role"],
                f"{t['bits_per_weight']:.2f}",
                f"{t['bytes']:,}",
            ]
            for t in document["tensors"]
        ]
        table("", ["tensor", "shape", "parameters", "role", "bits", "bytes"], rows, right=(2, 4, 5))
        note(f"{document['parameters']:,} parameters")
        note(
            f"predicted artifact {document['artifact_bytes']:,} bytes, "
            f"between {document['artifact_bytes_low']:,} and {document['artifact_bytes_high']:,}"
        )
        if record := document["as_recorded"]:
            note(
                f"as the record coded it: artifact {record['artifact_bytes']:,} bytes, between "
                f"{record['artifact_bytes_low']:,} and {record['artifact_bytes_high']:,}; with its script of "
                f"{record['code_bytes']:,} bytes {record['total_bytes']:,}"
            )
    else:
        table(
            "",
            ["file", "counts as", "bytes", "why"],
            [[f["file"], f["counts_as"], f"{f['bytes']:,}", f["why"]] for f in document["files"]],
            right=(2,),
        )
        for doubt in document["doubts"]:
            note(f"Note: {doubt}")
    note(Size(document["artifact_bytes"], document["code_bytes"], document["cap_bytes"]).line())


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            callback=options.there,
            help="Checkpoint, quantized model, artifact, shard, dataset directory or score document.",
        ),
    ],
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw a quantized model's errors against bytes (.png, .svg)."),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """What a file holds, after verifying it.

    Example: pgolf inspect runs/a/model.pgz
    """
    from pgolf.report.inspection import inspect_file

    document = inspect_file(file)
    if plot:
        from pgolf.report.quantized import plot_errors

        rows = plotted_tensors(document, file)
        plot_errors(rows, plot)
        document["plot"] = str(plot)
    if as_json:
        print_json(document)
        return
    for key, value in document.items():
        if not isinstance(value, list | dict):
            note(f"{key}: {value:,}" if isinstance(value, int) and not isinstance(value, bool) else f"{key}: {value}")
    for key, value in document.items():
        if isinstance(value, list) and value:
            columns = list(value[0])
            right = tuple(i for i, c in enumerate(columns) if any(isinstance(row[c], int | float) for row in value))
            table(key, columns, [[cell(row[c]) for c in columns] for row in value], right=right)


def plotted_tensors(document: dict[str, Any], file: Path) -> list[dict[str, Any]]:
    """The rows of a quantized model's matrices, with bytes. InputError for another file."""
    from pgolf.stages.model_files import load_model

    if document.get("kind") != "quantized":
        raise InputError(f"a {document.get('kind')} has no quantization errors to draw", str(file), "see --help")
    coded = {row["tensor"]: row.get("coded_bits") for row in document["tensors"]}
    made = [row for row in load_model(file).meta.get("tensors", []) if coded.get(row["name"])]
    if not made:
        raise InputError("the file does not say what its errors are", str(file), "quantize anew")
    sizes = {row["name"]: row["shape"][0] * row["shape"][1] for row in made}
    return [row | {"coded_bytes": coded[row["name"]] * sizes[row["name"]] / 8} for row in made]


def cell(value: Any) -> str:
    """A table cell."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def import_model(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", callback=options.there, help="A .pt, .ptz or .safetensors state dict, or an artifact."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="FILE", help="Checkpoint (or, for int8 archives and artifacts, quantized model) to write."
        ),
    ],
    run_programs: Annotated[
        bool,
        typer.Option("--run-programs", help="Run lrzip or zpaq where an artifact needs them; only if you trust it."),
    ] = False,
    preset: options.Preset = "",
    sets: options.Sets = None,
    seed: options.Seed = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Bring in a model trained elsewhere; its sizes are read off names and shapes.

    Example: pgolf import final_model.pt --out imported/checkpoint.safetensors
    """
    from pgolf.foreign import import_file

    document = import_file(file, out, preset, options.merged(sets, seed), dry_run, run_programs)
    if dry_run:
        document = {**document, "schema": "pgolf.plan/1", "command": "import"}
    if as_json:
        print_json(document)
    else:
        model = document["model"]
        note(
            f"{out}: {document['kind']}, {document['parameters']:,} parameters, {model['num_layers']} layers "
            f"of width {model['model_dim']}, vocabulary {model['vocab_size']}"
        )
        for key, why in (("guessed", "neither names nor metadata tell; check, and --set"), ("unread", "metadata")):
            if document[key]:
                note(f"{key} ({why}): {', '.join(document[key])}")
