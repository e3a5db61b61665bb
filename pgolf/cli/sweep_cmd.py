"""pgolf sweep: grids of training runs, and of everything that can be varied after training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgolf.cli import options
from pgolf.cli.output import fail_after_result, note, print_json, table
from pgolf.core.errors import ConfigError, PgolfError

if TYPE_CHECKING:
    from pgolf.report.console import Console
    from pgolf.sweep.grid import Choice
    from pgolf.sweep.plan import Plan, Scoring
    from pgolf.sweep.queue import Tally
    from pgolf.sweep.table import Row

Axes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=V1,V2,...",
        help="Values of one key; repeatable, and every combination is a cell. Quote a value that has commas.",
        rich_help_panel="Configuration",
    ),
]
Listed = Annotated[
    Path | None,
    typer.Option(
        "--grid",
        metavar="FILE",
        help="A TOML file of cells: tables [\\[cell]] of dotted keys. Each goes with every combination of --set.",
        rich_help_panel="Configuration",
    ),
]
Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Directory for results.jsonl and the files of every cell.")
]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs",
        min=0,
        help="Cells at once; 0: one per GPU; without GPU one per core, for training one.",
        rich_help_panel="Running",
    ),
]
Cluster = Annotated[
    str,
    typer.Option(
        "--cluster", metavar="NAME", help="Run cells as jobs of submitit: slurm or local.", rich_help_panel="Running"
    ),
]
ClusterSets = Annotated[
    list[str] | None,
    typer.Option(
        "--cluster-set",
        metavar="KEY=VALUE",
        help="A parameter of submitit, like timeout_min=60, gpus_per_node=1 or slurm_partition=gpu; repeatable.",
        rich_help_panel="Running",
    ),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw the results into this .png or .svg (matplotlib).")
]
OnValidation = Annotated[
    bool,
    typer.Option(
        "--on-validation", help="Score the validation split instead of the last training documents. Recorded."
    ),
]
Tokens = Annotated[
    int,
    typer.Option(
        "--tokens", min=0, help="Score at most this many targets; 0: as configured, of training at most a tenth."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Grids: one cell per combination of values, one row per cell in one table. All are checked before the "
        "first one runs. One that fails is a row with its error; the others go on, and the command then ends with that "
        "error's exit code. The same command again computes only what has no finished row.",
    )
    for command in (train, quantize, compress):
        group.command(command.__name__)(command)
    group.command("eval")(evaluate)
    group.command("ttt")(ttt)
    group.command("show")(show)
    app.add_typer(group, name="sweep", rich_help_panel="The road")


@dataclass(frozen=True)
class How:
    """The options that every sweep has, as given."""

    axes: list[str] | None
    listed: Path | None
    jobs: int
    cluster: str
    cluster_set: list[str] | None
    plot: Path | None
    device: str
    as_json: bool
    dry_run: bool
    quiet: bool


def train(
    data: options.Dataset,
    out: Out,
    axes: Axes = None,
    listed: Listed = None,
    seeds: Annotated[
        str,
        typer.Option(
            "--seeds", metavar="S1,S2,...", help="Train every cell with each seed.", rich_help_panel="Configuration"
        ),
    ] = "",
    tokenizer: options.Tokenizer = None,
    preset: options.Preset = "",
    jobs: Jobs = 0,
    cluster: Cluster = "",
    cluster_set: ClusterSets = None,
    plot: Plot = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a grid of models, each resumable; mean and spread of every configuration over the seeds.

    Example: pgolf sweep train data/mine --out sweeps/lr --preset tiny --set optim.matrix.lr=0.02,0.04 --seeds 1,2,3
    """
    from pgolf.sweep.plan import plan_train

    how = How(axes, listed, jobs, cluster, cluster_set, plot, device, as_json, dry_run, quiet)
    here = not cluster
    sweep(lambda cells, console: plan_train(data, tokenizer, out, cells, preset, device, here, console), how, seeds)


def quantize(
    checkpoint: options.Checkpoint,
    data: options.Data,
    out: Out,
    axes: Axes = None,
    listed: Listed = None,
    method: Annotated[
        str, typer.Option("--eval", metavar="METHOD", help="Score with this method instead of the configured one.")
    ] = "",
    tokens: Tokens = 0,
    on_validation: OnValidation = False,
    tokenizer: options.Tokenizer = None,
    preset: options.Preset = "",
    jobs: Jobs = 0,
    cluster: Cluster = "",
    cluster_set: ClusterSets = None,
    plot: Plot = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Quantize, compress and score a checkpoint in many ways: bytes, BPB, Pareto front. Nothing is trained.

    Example: pgolf sweep quantize runs/a/checkpoint.safetensors --data data/mine --out sweeps/q --set quant.bits=4,5,6
    """
    from pgolf.sweep.plan import Scoring

    how = How(axes, listed, jobs, cluster, cluster_set, plot, device, as_json, dry_run, quiet)
    scoring = Scoring(data=data, tokenizer=tokenizer, method=method, tokens=tokens, on_validation=on_validation)
    sweep_model("quantize", checkpoint, out, preset, scoring, how)


def compress(
    quantized: options.Quantized,
    out: Out,
    axes: Axes = None,
    listed: Listed = None,
    preset: options.Preset = "",
    jobs: Jobs = 0,
    cluster: Cluster = "",
    cluster_set: ClusterSets = None,
    plot: Plot = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress a quantized model in many ways: bytes and seconds. Codecs lose nothing, so nothing is scored.

    Example: pgolf sweep compress runs/a/q5.safetensors --out sweeps/codec --set compress.method=zlib,lzma,brotli
    """
    how = How(axes, listed, jobs, cluster, cluster_set, plot, device, as_json, dry_run, quiet)
    sweep_model("compress", quantized, out, preset, None, how)


def evaluate(
    model: options.Model,
    data: options.Data,
    out: Out,
    axes: Axes = None,
    listed: Listed = None,
    tokens: Tokens = 0,
    on_validation: OnValidation = False,
    tokenizer: options.Tokenizer = None,
    preset: options.Preset = "",
    jobs: Jobs = 0,
    cluster: Cluster = "",
    cluster_set: ClusterSets = None,
    plot: Plot = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Score a model with many settings of eval: BPB and seconds, on training documents unless --on-validation.

    Example: pgolf sweep eval runs/a/model.pgz --data data/mine --out sweeps/eval --set eval.stride=16,32,64
    """
    from pgolf.sweep.plan import Scoring

    how = How(axes, listed, jobs, cluster, cluster_set, plot, device, as_json, dry_run, quiet)
    scoring = Scoring(data=data, tokenizer=tokenizer, tokens=tokens, on_validation=on_validation)
    sweep_model("eval", model, out, preset, scoring, how)


def ttt(
    model: options.Model,
    data: options.Data,
    out: Out,
    axes: Axes = None,
    listed: Listed = None,
    tokens: Tokens = 0,
    on_validation: OnValidation = False,
    tokenizer: options.Tokenizer = None,
    preset: options.Preset = "",
    jobs: Jobs = 0,
    cluster: Cluster = "",
    cluster_set: ClusterSets = None,
    plot: Plot = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Score a model with many settings of ttt: BPB and seconds, on training documents unless --on-validation.

    Example: pgolf sweep ttt runs/a/model.pgz --data data/mine --out sweeps/ttt --set ttt.lr=0.001,0.002,0.004
    """
    from pgolf.sweep.plan import Scoring

    how = How(axes, listed, jobs, cluster, cluster_set, plot, device, as_json, dry_run, quiet)
    scoring = Scoring(data=data, tokenizer=tokenizer, tokens=tokens, on_validation=on_validation)
    sweep_model("ttt", model, out, preset, scoring, how)


def sweep_model(kind: str, model: Path, out: Path, preset: str, scoring: "Scoring | None", how: How) -> None:
    """A sweep over one model file."""
    from pgolf.sweep.plan import plan_model

    sweep(lambda cells, console: plan_model(kind, model, out, cells, preset, scoring, console), how)


def sweep(make: "Callable[[list[Choice], Console], Plan]", how: How, seeds: str = "") -> None:
    """The body of every sweep: all cells are planned and checked, then run, then shown."""
    from pgolf.core.dist import torchrun_size
    from pgolf.report.console import Console
    from pgolf.stages.signals import Interrupted
    from pgolf.sweep.grid import choices
    from pgolf.sweep.plot import check_plot
    from pgolf.sweep.queue import Queue, finished
    from pgolf.sweep.table import latest, rows_of
    from pgolf.sweep.workers import Workers, cluster_workers, local_workers

    if torchrun_size() > 1:
        raise ConfigError("pgolf sweep is one process", "torchrun", "it starts its cells itself")
    if how.cluster_set and not how.cluster:
        raise ConfigError("--cluster-set is only for --cluster", "sweep")
    cells = choices(how.axes or [], how.listed, seeds)
    if how.plot:
        check_plot(how.plot)
    console = Console(how.quiet)
    plan = make(cells, console)
    if how.cluster:
        jobs = how.jobs or len(cells)
        workers: Workers = cluster_workers(how.cluster, how.cluster_set or [], plan.out / "jobs", how.device, jobs)
    else:
        workers = local_workers(plan.sweep, how.device, how.jobs, len(cells))
    if how.dry_run:
        show_plan(plan, finished(plan), workers.slots, how.as_json)
        return
    queue = Queue(plan, workers, console)
    if queue.tally.found:
        console.line(f"sweep: {len(queue.tally.found)} of {len(cells)} cells have a row in {plan.table}, left alone")
    try:
        tally = queue.run()
    except Interrupted as interruption:
        text = f"{len(finished(plan) & queue.keys)} of {len(cells)} cells are finished; the same command goes on"
        raise Interrupted(interruption.number, text) from None
    rows = [row for key, row in latest(rows_of(plan.table)).items() if key in queue.keys]
    show_result(plan.table, rows, how.plot, how.as_json, counts(plan, tally), console.warnings)
    if tally.failed:
        fail_after_result(first_failure(rows))


def counts(plan: "Plan", tally: "Tally") -> dict[str, int]:
    """How many cells came how by their rows."""
    return {
        "cells": len(plan.cells),
        "computed": len(tally.done),
        "found": len(tally.found),
        "elsewhere": len(tally.elsewhere),
        "failed": len(tally.failed),
    }


def first_failure(rows: "list[Row]") -> PgolfError:
    """The error of the first failed cell, said to be that of so many."""
    from pgolf.core import errors

    failed = [row for row in rows if row["state"] == "failed"]
    error = failed[0]["error"]
    kind = getattr(errors, error["kind"], PgolfError)
    many = f"{len(failed)} of {len(rows)} cells failed, the first: " if len(rows) > 1 else ""
    found: PgolfError = kind(many + error["what"], error["where"], error["fix"])
    return found


def show_plan(plan: "Plan", done: set[str], slots: int, as_json: bool) -> None:
    """What a sweep would do."""
    from pgolf.sweep.summary import short_names, varying

    if as_json:
        cells = [
            {
                "cell": cell.id,
                "settings": cell.settings,
                "finished": cell.key in done,
                "predicted_total_bytes": cell.predicted_bytes or None,
                "folder": str(plan.folder(cell)),
            }
            for cell in plan.cells
        ]
        head = {"schema": "pgolf.plan/1", "command": f"sweep {plan.sweep}", "table": str(plan.table), "at_once": slots}
        print_json({**head, "scored_on": plan.scored_on, "inputs": plan.inputs, "cells": cells})
        return
    keys = varying([cell.settings for cell in plan.cells])
    rows = [
        [
            cell.id,
            *(str(cell.settings[key]) if key in cell.settings else "-" for key in keys),
            f"{cell.predicted_bytes:,}" if cell.predicted_bytes else "-",
            "finished" if cell.key in done else "to do",
        ]
        for cell in plan.cells
    ]
    columns = ["cell", *short_names(keys).values(), "predicted bytes", "state"]
    table("", columns, rows, right=tuple(range(1, len(columns) - 1)))
    left = sum(cell.key not in done for cell in plan.cells)
    note(f"would compute {left} of {len(rows)} cells, {slots} at once, into {plan.table}")


def show_result(
    results: Path,
    rows: "list[Row]",
    plot: Path | None,
    as_json: bool,
    numbers: dict[str, int],
    warnings: list[str],
) -> None:
    """Rows as a document or as tables, and the picture if one is wanted."""
    from pgolf.cli.sweep_view import group_document, show_rows
    from pgolf.sweep.plot import plot as draw
    from pgolf.sweep.summary import groups

    if plot and any(row["state"] == "done" for row in rows):
        draw(groups(rows), plot)
    if as_json:
        document = {"schema": "pgolf.sweep/1", "table": str(results), **numbers}
        parts = [group_document(group) for group in groups(rows)]
        print_json({**document, "groups": parts, "rows": rows, "warnings": warnings})
        return
    show_rows(rows, results.parent)
    said = [f"{numbers[name]} {name}" for name in ("computed", "found", "elsewhere", "failed") if numbers.get(name)]
    note(f"table: {results}" + (f" ({', '.join(said)})" if said else ""))


def show(
    results: Annotated[Path, typer.Argument(metavar="TABLE", help="A results.jsonl, or the directory of a sweep.")],
    plot: Plot = None,
    as_csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the rows into this file, comma-separated.")
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """The rows of a table: the Pareto front of cells that can be compared, means over the seeds of training runs.

    Example: pgolf sweep show sweeps/q --plot sweeps/q/front.png
    """
    from pgolf.cli.sweep_view import csv_text
    from pgolf.core.files import write_bytes
    from pgolf.sweep.plot import check_plot
    from pgolf.sweep.table import latest, read_table

    if plot:
        check_plot(plot)
    path = results / "results.jsonl" if results.is_dir() else results
    rows = list(latest(read_table(path).rows).values())
    if as_csv:
        write_bytes(as_csv, csv_text(rows).encode())
    done = sum(row["state"] == "done" for row in rows)
    numbers = {"cells": len(rows), "failed": len(rows) - done}
    show_result(path, rows, plot, as_json, numbers, [])
