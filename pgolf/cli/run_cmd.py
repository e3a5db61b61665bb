"""pgolf run: the whole road."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pgolf.accounting import bpb_of
from pgolf.cli import options
from pgolf.cli.output import note, print_json, table
from pgolf.cli.stage_cmds import show_notes


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run", rich_help_panel="The road")(run)


def run(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Everything the run makes goes below this directory.")
    ],
    preset: options.Preset = "",
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Published shards or a dataset directory, instead of text."),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Text to train on (.txt, .jsonl, directories); repeatable. Without it: Python's own documentation.",
        ),
    ] = None,
    tokenizer: options.Tokenizer = None,
    first: Annotated[
        str,
        typer.Option("--from", metavar="STAGE", help="Start at this stage and run it again even if it is up to date."),
    ] = "",
    last: Annotated[str, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")] = "",
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require",
            metavar="STAGE.FIGURE<=X",
            help="End with exit code 4 unless this holds after the stage; quote it for the shell; repeatable.",
        ),
    ] = None,
    sets: options.Sets = None,
    seed: options.Seed = None,
    track: options.Track = None,
    device: options.Device = "auto",
    gpus: options.Gpus = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Text in, scored submission out: tokenize, train, quantize, compress, eval, ttt, package.

    A stage whose inputs and settings are unchanged is skipped, so a changed quant.* never trains again.

    A directory remembers its settings and its text or shards: later runs into it need only what changes.

    The first run into a directory takes the preset demo if none is named.

    Example: pgolf run --preset demo --out runs/demo
    """
    from pgolf.report.watch.track import check_trackers

    check_trackers(track or [])
    from pgolf.config.hazards import hazards
    from pgolf.core.dist import torchrun_size
    from pgolf.core.errors import ConfigError
    from pgolf.report.console import Console
    from pgolf.stages.manifest import guarded
    from pgolf.stages.pipeline import Layout, Pipeline, check_sources, chosen_stages, parse_requirement, preflight
    from pgolf.stages.pipeline import run as run_stages
    from pgolf.stages.remembered import recall, remember

    if data is not None and text:
        raise ConfigError("--data and --text exclude each other", "run")
    if torchrun_size() > 1:
        raise ConfigError(
            "pgolf run is one process",
            "torchrun",
            "use --gpus N without torchrun, or torchrun with pgolf train",
        )
    requirements = [parse_requirement(item) for item in require or []]
    stages = chosen_stages(first, last)
    if outside := [item.text for item in requirements if item.stage not in stages]:
        what = f"--require {outside[0]} is about a stage that does not run"
        raise ConfigError(what, "run", f"stages are {', '.join(stages)}")
    if track and "train" not in stages:
        raise ConfigError("--track is about train, which does not run", "run", f"stages are {', '.join(stages)}")
    plan = recall(out, preset, options.merged(sets, seed), data, text or [], tokenizer)
    console = Console(quiet)
    checked = preflight(out, plan.resolved, device, stages, dry_run, gpus)
    if "tokenize" in stages:
        check_sources(plan.data, plan.text, plan.tokenizer, plan.resolved)
        checked.append("text, shards and tokenizer")
    for hazard in hazards(plan.resolved.config, stages):
        console.warn_once(hazard)
    if dry_run:
        show_plan(out, plan.resolved, stages, checked, as_json, console.warnings)
        return
    with guarded(out / "run"):
        remember(out, plan)
        pipeline = Pipeline(
            Layout(out), plan.resolved, device, console, plan.data, plan.text, plan.tokenizer, track or [], gpus
        )
        reports = run_stages(pipeline, stages, requirements, bool(first))
    if as_json:
        rows = [report.document() for report in reports]
        name = plan.resolved.preset
        print_json(
            {"schema": "pgolf.run/1", "out": str(out), "preset": name, "stages": rows, "warnings": console.warnings}
        )
    else:
        show_table(out, reports, plan.resolved.config)


def show_plan(
    out: Path, resolved: Any, stages: tuple[str, ...], checked: list[str], as_json: bool, warnings: list[str]
) -> None:
    """What a run would do."""
    from pgolf.sizing import parameters, predict

    _, size, _ = predict(resolved.config)
    count = parameters(resolved.config)
    if as_json:
        print_json(
            {
                "schema": "pgolf.plan/1",
                "out": str(out),
                "stages": list(stages),
                "checked": checked,
                "parameters": count,
                "predicted": True,
                **size.document(),
                "config": resolved.values,
                "warnings": warnings,
            }
        )
        return
    note(f"would run {', '.join(stages)} into {out}")
    note(f"checked: {'; '.join(checked)}")
    note(f"{count:,} parameters; predicted {size.line()}")


def show_table(out: Path, reports: list[Any], config: Any) -> None:
    """The table at the end of a run of a configuration."""
    rows = [
        [r.stage, "up to date" if r.fresh else f"{r.seconds:.1f}", r.file, f"{r.bytes:,}", remark(r)] for r in reports
    ]
    rows.append(["all", f"{sum(r.seconds for r in reports):.1f}", str(out), "", ""])
    table("", ["stage", "seconds", "file", "bytes", "result"], rows, right=(1, 3))
    by_stage = {report.stage: report.figures for report in reports}
    labels = {
        "train": "float model",
        "quantize": "quantized model",
        "eval": "artifact, {method}",
        "ttt": "artifact after test-time training, {method}",
    }
    for stage, label in labels.items():
        if stage in by_stage:
            part = ", on a part of the validation split" if by_stage[stage].get("partial") else ""
            method = by_stage[stage].get("method", "")
            note(f"BPB {bpb_of(by_stage[stage]):.4f}  {label.format(method=method)}{part}")
    show_notes(by_stage.get("train", {}))
    if "package" in by_stage:
        from pgolf.accounting import Size

        figures = by_stage["package"]
        note(f"Size: {Size(figures['artifact_bytes'], figures['code_bytes'], figures['cap_bytes']).line()}")
        note(f"Submission folder: {out / 'submission'}")
        if (bits := getattr(config.quant, "bits", 0)) and not getattr(config.quant, "bits_per_weight", 0):
            other = f"--from quantize --set quant.bits={4 if bits == 5 else 5}"
            note(f"Next: {program()} run --out {out} {other}   (requantizes, never retrains)")


def program() -> str:
    """How to call pgolf again: by its path where it is not on the search path, as in a fresh .venv."""
    import shutil
    import sys

    called = sys.argv[0]
    return called if Path(called).name == "pgolf" and not shutil.which("pgolf") else "pgolf"


def remark(report: Any) -> str:
    """What a stage found, in a few words."""
    figures = report.figures
    if report.stage == "tokenize":
        return f"{figures['train_tokens']:,} train + {figures['val_tokens']:,} val tokens"
    if report.stage in ("train", "quantize", "eval", "ttt"):
        return f"{bpb_of(figures):.4f} BPB"
    return f"{figures['total_bytes']:,} of {figures['cap_bytes']:,} bytes"
