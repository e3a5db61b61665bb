"""pgolf tokenize, train, quantize, compress: one stage each."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgolf.cli import options
from pgolf.cli.output import note, print_json, table
from pgolf.core.errors import ConfigError

if TYPE_CHECKING:
    from pgolf.accounting import Size
    from pgolf.stages.model_files import ModelFile


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (tokenize, train, quantize, compress):
        app.command(command.__name__, rich_help_panel="The road")(command)


def tokenize(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="Text: .txt, .jsonl (also .gz, .zst), .parquet, directories; - reads standard input.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Dataset directory to make.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="FILE", help="Use this SentencePiece model instead of training one."),
    ] = None,
    shard: Annotated[
        str,
        typer.Option("--shard", metavar="I/N", help="Only the I-th of N equal parts; pgolf data merge joins them."),
    ] = "",
    stdin_format: Annotated[
        str, typer.Option("--stdin-format", metavar="FORMAT", help="What standard input holds: jsonl or txt.")
    ] = "jsonl",
    preset: options.Preset = "",
    sets: options.Sets = None,
    seed: options.Seed = None,
    force: options.Force = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Documents to token shards, every byte accounted for. The same command again goes on after an interruption.

    Example: pgolf tokenize docs.jsonl.zst --out data/mine --set model.vocab_size=1024
    """
    from pgolf.config.load import resolve
    from pgolf.report.console import Console

    resolved = resolve(preset, options.merged(sets, seed))
    if stdin_format not in ("jsonl", "txt"):
        raise ConfigError(f"{stdin_format!r} is neither jsonl nor txt", "--stdin-format")
    if dry_run:
        from pgolf.corpus.sources import STDIN, expand

        files = [{"file": str(path), "bytes": 0 if path == STDIN else path.stat().st_size} for path in expand(sources)]
        plan(
            as_json,
            {"command": "tokenize", "out": str(out), "files": files},
            f"would tokenize {len(files)} files into {out}",
        )
        return
    from pgolf.stages.tokenize import tokenize as run_stage

    if device != "auto":
        from pgolf.core.dist import pick_device

        pick_device(device, 0)
    console = Console(quiet)
    manifest = run_stage(
        sources, out, resolved, tokenizer, console, force=force, shard=shard, stdin_format=stdin_format
    )
    show_dataset(manifest, out, "pgolf.tokenize/1", as_json, console.warnings)


def show_dataset(manifest: dict[str, Any], out: Path, schema: str, as_json: bool, warnings: list[str]) -> None:
    """The answer of commands that make a dataset."""
    splits = {
        name: {key: value for key, value in split.items() if key not in ("shards", "sidecars", "document_list")}
        | {"shards": len(split["shards"])}
        for name, split in manifest["splits"].items()
    }
    document = {
        "schema": schema,
        "out": str(out),
        "fresh": manifest["fresh"],
        "vocab_size": manifest["vocab_size"],
        "tokenizer_sha256": manifest["tokenizer"]["sha256"],
        "transform": manifest["transform"],
        "rule": manifest["rule"],
        "splits": splits,
        "empty_documents": manifest["empty_documents"],
        "warnings": warnings,
    }
    if as_json:
        print_json(document)
        return
    note(
        up_to_date(manifest)
        + f"{out}: vocabulary of {manifest['vocab_size']}, {manifest['empty_documents']} empty documents left out"
    )
    keys = ("documents", "tokens", "raw_bytes", "normalised_bytes", "table_bytes", "charged_bytes", "shards")
    rows = [[name, *(f"{split[key]:,}" for key in keys)] for name, split in splits.items()]
    table("", ["split", *keys], rows, right=tuple(range(1, 8)))


def up_to_date(entry: dict[str, Any]) -> str:
    """A word about work that was not needed."""
    return "unchanged, nothing to do: " if entry["fresh"] else ""


def plan(as_json: bool, document: dict[str, Any], text: str) -> None:
    """The answer to --dry-run."""
    if as_json:
        print_json({"schema": "pgolf.plan/1", **document})
    else:
        note(text)


def train(
    data: options.Dataset,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory for checkpoint, log and events.")],
    tokenizer: options.Tokenizer = None,
    preset: options.Preset = "",
    sets: options.Sets = None,
    seed: options.Seed = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
    track: options.Track = None,
    device: options.Device = "auto",
    gpus: options.Gpus = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a model; the same command again resumes an interrupted run.

    Several machines: torchrun --nnodes=2 --nproc_per_node=8 ... -m pgolf train DATA --out DIR

    Example: pgolf train data/mine --out runs/a --preset tiny
    """
    from pgolf.config.load import resolve
    from pgolf.report.watch.track import check_trackers

    check_trackers(track or [])
    from pgolf.core.dist import World, pick_device
    from pgolf.dataset import open_dataset
    from pgolf.report.console import Console
    from pgolf.stages.inputs import changed_keys
    from pgolf.stages.launch import check_ranks, joined_world, train_on_ranks
    from pgolf.stages.train import (
        check_data,
        check_gpu,
        check_sense,
        chosen_on,
    )
    from pgolf.stages.train import train as run_stage

    resolved = resolve(preset, options.merged(sets, seed))
    check_sense(resolved.config)
    dataset = open_dataset(data, tokenizer, resolved.config.model.vocab_size)
    if gpus:
        check_ranks(gpus, device)
        world = World(size=gpus, device=pick_device(device, 0))
    else:
        world = joined_world(device)
    console = Console(quiet or not world.leads)
    for warning in dataset.warnings if world.leads else []:
        console.warn(warning)
    if dry_run:
        from pgolf.config.hazards import hazards
        from pgolf.sizing import parameters, predict

        for text in hazards(resolved.config, ("train",)):
            console.warn_once(text)
        _, size, _ = predict(resolved.config)
        shards = check_data(dataset, resolved.config)
        count, options_ = parameters(resolved.config), resolved.config.train
        chosen = chosen_on(resolved.config, world.device)
        document = {
            "command": "train",
            "out": str(out),
            "parameters": count,
            "train_tokens": sum(map(len, shards)),
            "iterations": options_.iterations,
            "micro_steps": options_.micro_steps(world.size),
            "device": str(world.device),
            "compile": chosen["compile"][1],
            "attention": "{} ({})".format(*chosen["attention"]),
            "kernels": "{} ({})".format(*chosen["kernels"]),
            "predicted": True,
            **size.document(),
            "warnings": console.warnings,
        }
        plan(
            as_json,
            document,
            f"would train {count:,} parameters, {options_.iterations} steps of {options_.batch_tokens:,} tokens, "
            f"on {world.device} into {out}; predicted {size.line()}",
        )
        return
    check_gpu(resolved.config, device)
    if gpus:
        entry = train_on_ranks(gpus, dataset, out, resolved, device, console, fresh, track or [])
    else:
        entry = run_stage(dataset, out, resolved, world, console, fresh, track or [])
        world.close()
    if not world.leads:
        return
    figures = entry["figures"]
    if entry["fresh"] and (changed := changed_keys(entry["resolved"], resolved.values)):
        console.warn(f"the finished checkpoint keeps what it was made with: {', '.join(changed)}")
    if as_json:
        print_json(
            {
                "schema": "pgolf.train/1",
                "checkpoint": str(out / "checkpoint.safetensors"),
                "sha256": entry["sha256"],
                "fresh": entry["fresh"],
                **figures,
                "seconds": entry["seconds"],
                "warnings": console.warnings,
            }
        )
    else:
        note(
            f"{up_to_date(entry)}{out / 'checkpoint.safetensors'}: {figures['parameters']:,} parameters, "
            f"{figures['steps']} steps, val_loss {figures['val_loss']:.4f}, "
            f"BPB {figures['bpb']:.4f} on {figures['val_tokens']:,} targets"
        )
        show_notes(figures)


def show_notes(figures: dict[str, Any]) -> None:
    """Remarks on a training run, below whatever tells of its result."""
    from pgolf.stages.manifest import notes_of

    for text in notes_of(figures):
        note(f"Note: {text}")


def quantize(
    checkpoint: options.Checkpoint,
    data: options.Data,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Quantized model to write.")] = None,
    tokenizer: options.Tokenizer = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            "--hessians",
            metavar="FILE",
            help="Calibration to use, made if there is none; hessians.safetensors beside --out if left out.",
        ),
    ] = None,
    calibrate_only: Annotated[
        bool,
        typer.Option(
            "--calibrate-only",
            help="Write the calibration and quantize nothing. It is for any quantizer, but for quant.couple=rows only "
            "if that is set here too.",
        ),
    ] = False,
    budget: Annotated[
        int,
        typer.Option(
            "--budget",
            metavar="BYTES",
            min=0,
            help="Find the steps at which artifact and script together have at most so many bytes, and 2,000 less at "
            "the least; every role gets steps at which its bytes are worth as much as the others'.",
        ),
    ] = 0,
    preset: options.Preset = "",
    sets: options.Sets = None,
    seed: options.Seed = None,
    force: options.Force = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Weights to integer codes. A calibration is collected once per checkpoint and reused for every other setting.

    Example: pgolf quantize runs/a/checkpoint.safetensors --data data/mine --out q5.safetensors --set quant.bits=5
    """
    from pgolf.core.dist import torchrun_rank, torchrun_size
    from pgolf.report.console import Console
    from pgolf.stages.calibrate import calibrate, kept_beside
    from pgolf.stages.dry import predict_quantized
    from pgolf.stages.inputs import model_and_data
    from pgolf.stages.launch import joined_world
    from pgolf.stages.quantize import quantize as run_stage

    target = out or (calibration if calibrate_only else None)
    if target is None:
        raise ConfigError("name the file to write", "--out", "with --calibrate-only, --calibration FILE is enough")
    if calibrate_only and budget:
        raise ConfigError("a calibration has no bytes to fit", "--budget", "leave it out with --calibrate-only")
    if torchrun_size() > 1 and not calibrate_only:
        raise ConfigError("pgolf quantize is one process", "torchrun", "only --calibrate-only runs on several ranks")
    console = Console(quiet or torchrun_rank() > 0)
    model, resolved, dataset = model_and_data(checkpoint, data, tokenizer, preset, options.merged(sets, seed), console)
    kept = calibration or kept_beside(target)
    if calibrate_only and not dry_run:
        world = joined_world(device)
        done = calibrate(model, dataset, resolved.config.quant, kept, world, console, force)
        if world.leads and as_json:
            print_json({"schema": "pgolf.calibrate/1", **done})
        elif world.leads:
            text = "{file}: {tokens:,} tokens, {matrices} matrices and {tables} tables, {seconds:.1f} s"
            note(("up to date: " if done["fresh"] else "") + text.format(**done))
        world.close()
        return
    if dry_run:
        if calibrate_only:
            plan(as_json, {"command": "calibrate", "file": str(kept)}, f"would calibrate into {kept}")
            return
        strict = calibration is not None and not force
        size = predict_quantized(model, dataset, resolved.config, kept, console, strict)
        plan_quantize(model, size, out, budget, console.warnings, as_json)
        return
    entry = run_stage(checkpoint, dataset, target, resolved, device, console, calibration, force, budget)
    figures = entry["figures"]
    if as_json:
        print_json(
            {
                "schema": "pgolf.quantize/1",
                "out": str(out),
                "sha256": entry["sha256"],
                "bytes": entry["bytes"],
                "fresh": entry["fresh"],
                **figures,
                "warnings": list(dict.fromkeys([*figures["warnings"], *console.warnings])),
                "seconds": entry["seconds"],
            }
        )
        return
    note(
        f"{up_to_date(entry)}{out}: {figures['method']}, {figures['quantized_weights']:,} weights in "
        f"{figures['quantized_tensors']} matrices at {figures['entropy_bits']:.3f} bits by entropy, "
        f"{figures['kept_weights']:,} kept as floats"
    )
    if "budget" in figures:
        show_budget(figures["budget"])
    if "hessians" in entry["seconds"] and not entry["fresh"]:
        note(
            "the calibration came from its file"
            if figures["hessians_cached"]
            else f"calibrated in {entry['seconds']['hessians']:.1f} s, which is kept"
        )


def plan_quantize(
    model: "ModelFile", size: "Size", out: Path | None, budget: int, warnings: list[str], as_json: bool
) -> None:
    """What the command would do."""
    text = f"would quantize {sum(w.numel() for w in model.weights.values()):,} parameters into {out}; "
    if budget:
        text += f"steps would be found for {budget:,} bytes; without that, predicted {size.line()}"
    else:
        text += f"predicted {size.line()}"
    document = {"command": "quantize", "out": str(out), "predicted": True, **size.document(), "budget": budget}
    plan(as_json, {**document, "warnings": warnings}, text)


def show_budget(found: dict[str, Any]) -> None:
    """What a budget was spent on."""
    rows = [
        [
            role,
            f"{one['theta']:g}",
            f"{one['code_bytes']:,}",
            f"{one['bpb_per_kilobyte']:.3g} ± {one['error']:.1g}",
        ]
        for role, one in found["roles"].items()
    ]
    if rows:
        table("", ["role", "theta", "code bytes", "BPB per kilobyte"], rows, right=(1, 2, 3))
    note(
        f"{found['total_bytes']:,} of {found['bytes']:,} bytes with theta {found['theta']:g}, "
        f"found in {found['compressions']} compressions"
    )


def compress(
    quantized: options.Quantized,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Artifact to write (.pgz).")],
    preset: options.Preset = "",
    sets: options.Sets = None,
    seed: options.Seed = None,
    force: options.Force = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Codes to the artifact, its size counted together with the script that will ship beside it.

    Example: pgolf compress runs/a/q5.safetensors --out runs/a/model.pgz --set compress.method=brotli
    """
    from pgolf.accounting import Size
    from pgolf.report.console import Console
    from pgolf.stages.compress import compress as run_stage
    from pgolf.stages.inputs import model_config
    from pgolf.stages.model_files import load_model

    resolved = model_config(load_model(quantized), preset, options.merged(sets, seed))
    if dry_run:
        from pgolf.sizing import predict

        _, size, _ = predict(resolved.config)
        plan(
            as_json,
            {"command": "compress", "out": str(out), "predicted": True, **size.document()},
            f"would write {out}; predicted {size.line()}",
        )
        return
    from pgolf.core.dist import pick_device

    pick_device(device, 0)
    console = Console(quiet)
    entry = run_stage(quantized, out, resolved, console, force)
    figures = entry["figures"]
    if as_json:
        print_json(
            {
                "schema": "pgolf.compress/1",
                "out": str(out),
                "sha256": entry["sha256"],
                "fresh": entry["fresh"],
                **figures,
                "warnings": console.warnings,
                "seconds": entry["seconds"],
            }
        )
    else:
        size = Size(figures["artifact_bytes"], figures["code_bytes"], figures["cap_bytes"])
        note(f"{up_to_date(entry)}{out}: {size.line()}")
