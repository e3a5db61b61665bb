"""pgolf eval and ttt: a score for a model, or one by every method."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pgolf.cli import options
from pgolf.cli.output import fail_after_result, note, print_json, table
from pgolf.core.errors import ConfigError, RuleError

ALL = "all"
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="Write the score document here (score.json) and reuse it while it is up to date."
    ),
]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME",
        help="Short for --set eval.method=NAME; all compares every method on the model, always anew.",
    ),
]
TttMethod = Annotated[str, typer.Option("--method", metavar="NAME", help="Short for --set ttt.method=NAME.")]
ClockName = Annotated[
    str,
    typer.Option(
        "--clock",
        metavar="NAME",
        help="Judge the budget (budget_seconds) by everything since the process began (strict), or from the first "
        "score to the last (core).",
        rich_help_panel="Running",
    ),
]
PositionsFile = Annotated[
    Path | None,
    typer.Option(
        "--positions", metavar="FILE", help="Write what every target cost here (.safetensors), for pgolf plot."
    ),
]
Audit = Annotated[
    Path | None,
    typer.Option(
        "--audit",
        metavar="FILE",
        help="The audit.json of pgolf audit run on this method, to be named in the score.",
        rich_help_panel="Running",
    ),
]
Ranks = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        metavar="N",
        min=1,
        help="Score on N GPUs of this machine, one process each; with --device cpu N processes on the CPU.",
        rich_help_panel="Running",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the options of both commands say."""

    path: Path
    data: Path
    out: Path | None
    tokenizer: Path | None
    preset: str
    sets: list[str]
    force: bool
    device: str
    as_json: bool
    dry_run: bool
    quiet: bool
    method: str
    clock: str
    positions: Path | None
    gpus: int | None
    audit: Path | None
    began_s: float


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("eval", rich_help_panel="The road")(evaluate)
    app.command("ttt", rich_help_panel="The road")(ttt)


def evaluate(
    ctx: typer.Context,
    model: options.Model,
    data: options.Data,
    out: Out = None,
    tokenizer: options.Tokenizer = None,
    method: Method = "",
    positions: PositionsFile = None,
    preset: options.Preset = "",
    sets: options.Sets = None,
    seed: options.Seed = None,
    force: options.Force = False,
    device: options.Device = "auto",
    gpus: Ranks = None,
    clock: ClockName = "strict",
    audit: Audit = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Score a model with fixed weights: bits per byte over the validation split, every target exactly once.

    Example: pgolf eval runs/a/model.pgz --data data/mine --set eval.method=sliding --set eval.stride=64
    """
    asked = Asked(
        path=model,
        data=data,
        out=out,
        tokenizer=tokenizer,
        preset=preset,
        sets=options.merged(sets, seed),
        force=force,
        device=device,
        as_json=as_json,
        dry_run=dry_run,
        quiet=quiet,
        method=method,
        clock=clock,
        positions=positions,
        gpus=gpus,
        audit=audit,
        began_s=ctx.obj,
    )
    compare(asked) if method == ALL else score("eval", asked)


def ttt(
    ctx: typer.Context,
    model: options.Model,
    data: options.Data,
    out: Out = None,
    tokenizer: options.Tokenizer = None,
    method: TttMethod = "",
    positions: PositionsFile = None,
    preset: options.Preset = "",
    sets: options.Sets = None,
    seed: options.Seed = None,
    force: options.Force = False,
    device: options.Device = "auto",
    gpus: Ranks = None,
    clock: ClockName = "strict",
    audit: Audit = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Score a model that learns from what it has already been scored on.

    Example: pgolf ttt runs/a/model.pgz --data data/mine --set ttt.lr=0.002
    """
    score(
        "ttt",
        Asked(
            path=model,
            data=data,
            out=out,
            tokenizer=tokenizer,
            preset=preset,
            sets=options.merged(sets, seed),
            force=force,
            device=device,
            as_json=as_json,
            dry_run=dry_run,
            quiet=quiet,
            method=method,
            clock=clock,
            positions=positions,
            gpus=gpus,
            audit=audit,
            began_s=ctx.obj,
        ),
    )


def check(asked: Asked) -> None:
    """ConfigError for a clock that there is not, and what does not go together."""
    if asked.clock not in ("strict", "core"):
        raise ConfigError(f"{asked.clock!r} is no clock", "--clock", "clocks are strict and core")
    if asked.gpus:
        from pgolf.stages.launch import check_ranks

        check_ranks(asked.gpus, asked.device)


def check_names(sets: list[str]) -> None:
    """RuleError for a method that only the audit has, to be caught. Other names are looked at later."""
    from pgolf.catalog import CATALOG

    for key, _, name in (entry.partition("=") for entry in sets):
        slot = {"eval.method": "EvalMethod", "ttt.method": "TttMethod"}.get(key)
        if slot and name not in CATALOG[slot]:
            from pgolf.audit.specimens.matrix import refuse

            refuse(name, key)


def score(stage: str, asked: Asked) -> None:
    """The body of both commands."""
    from pgolf.report.console import Console
    from pgolf.stages.inputs import model_and_data

    check(asked)
    console = Console(asked.quiet)
    sets = [*([f"{stage}.method={asked.method}"] if asked.method else []), *asked.sets]
    check_names(sets)
    model, resolved, dataset = model_and_data(
        asked.path, asked.data, asked.tokenizer, asked.preset, sets, console, scoring=True
    )
    method = getattr(resolved.config, stage)
    if asked.dry_run:
        targets = sum(map(len, dataset.split("val"))) - 1
        targets = min(targets, method.max_tokens or targets)
        document = {
            "schema": "pgolf.plan/1",
            "command": stage,
            "targets": targets,
            "method": resolved.values[stage],
            "model": model.describe(),
        }
        if asked.as_json:
            print_json(document)
        else:
            note(f"would score {targets:,} targets of {asked.data} with {resolved.values[stage]['method']}")
        return
    from pgolf.stages.eval_clock import judge
    from pgolf.stages.evaluate import Scoring, run_method, score_model
    from pgolf.stages.launch import score_on_ranks

    how = Scoring(
        clock=asked.clock, began_s=asked.began_s, positions=asked.positions, audit=audited(stage, asked, model, method)
    )
    run = partial(score_on_ranks, asked.gpus, resolved) if asked.gpus else run_method
    document = score_model(model, dataset, stage, resolved, asked.device, console, asked.out, asked.force, how, run)
    if asked.as_json:
        print_json(document)
    else:
        show(document)
    try:
        judge(document, asked.clock)
    except RuleError as error:
        fail_after_result(error)


def audited(stage: str, asked: Asked, model: Any, method: Any) -> Any:
    """What the score will say of its audit."""
    from pgolf.audit.report import audit_of
    from pgolf.config.tree import to_values
    from pgolf.stages.evaluate import shown_method

    if asked.audit is None:
        return "unaudited"
    return audit_of(asked.audit, stage, shown_method(stage, method), to_values(model.config.model), model.sha256)


def settings_text(method: dict[str, Any], path: str = "") -> str:
    """The settings of a method in one line, without adjusters that are not there."""
    parts = []
    for key, value in method.items():
        if not isinstance(value, dict):
            parts += [f"{path}{key}={value}"] if key not in ("name", "kind") else []
        elif "kind" not in value:
            parts.append(settings_text(value, f"{path}{key}."))
        elif value["kind"] not in ("none", "as_trained"):
            parts += [f"{path}{key}={value['kind']}", settings_text(value, f"{path}{key}.")]
    return ", ".join(filter(None, parts))


def show(document: dict[str, Any]) -> None:
    """The score as a small table."""
    from pgolf.accounting import bpb_of

    score, method, clock = document["score"], document["method"], document["clock"]
    rows = [
        ["BPB, partial" if document["partial"] else "BPB", f"{bpb_of(score):.8f}"],
        ["val_loss (nats per token)", f"{score['val_loss']:.8f}"],
        ["targets", f"{score['tokens']:,}"],
        ["bytes", f"{score['bytes']:,}"],
        ["method", f"{method['name']} ({settings_text(method)})"],
        ["label", label_text(document)],
        ["model", f"{document['model']['kind']} {document['model']['path']}"],
        ["audit", audit_text(document["audit"])],
        ["seconds", seconds_text(document)],
        ["clocks", f"strict {clock['strict_s']:.1f} s, core {clock['core_s']:.1f} s of {clock['budget_s']:g} s"],
    ]
    if clock["adaptation_stopped_at"] is not None:
        rows.append(["adaptation", f"ended after {clock['adaptation_stopped_at']:,} targets, for want of time"])
    if learned := document.get("learned"):
        rows.append(["learned", learned_text(learned)])
    if document["model"]["overridden"]:
        rows.insert(1, ["not as trained", ", ".join(document["model"]["overridden"])])
    if document["partial"]:
        rows.insert(
            1, ["scored", f"the first {document['share']:.1%} of the validation targets, up to {score['tokens']:,}"]
        )
    table("", ["", ""], rows)


def learned_text(learned: dict[str, int]) -> str:
    """The steps of test-time training."""
    weights = f"{learned['weight_steps']:,} steps of the weights, in {learned['phases']:,} phases"
    return f"{weights}; {learned['adapter_steps']:,} of adapters"


def label_text(document: dict[str, Any]) -> str:
    """What kind of predictor it was."""
    kind = "adaptive" if document["adaptive"] else "fixed"
    return f"{kind}, {'document by document' if document['document_independent'] else 'across documents'}"


def audit_text(audit: Any) -> str:
    """The audit of a score in a few words."""
    return f"{audit['id']}, level {audit['level']}: {audit['verdict']}" if isinstance(audit, dict) else str(audit)


def seconds_text(document: dict[str, Any]) -> str:
    """What it took, by phase."""
    parts = [f"{name} {spent:.1f}" for name, spent in document["seconds"].items() if name != "total"]
    return ", ".join(parts) + (" (nothing to do: unchanged)" if document["fresh"] else "")


def compare(asked: Asked) -> None:
    """The body of pgolf eval --method all. Nothing made before is used."""
    import time

    from pgolf.core.files import write_json
    from pgolf.report.console import Console
    from pgolf.stages.inputs import model_and_data

    check(asked)
    if asked.gpus or asked.positions or asked.audit:
        raise ConfigError("every method is scored in this process, without files", "--method all", "name one method")
    console = Console(asked.quiet)
    model, resolved, dataset = model_and_data(
        asked.path, asked.data, asked.tokenizer, asked.preset, asked.sets, console, scoring=True
    )
    from pgolf.stages.compare import Judged, compare_methods, judge_all, planned_ways

    if asked.dry_run:
        labels = [way.label for way in planned_ways(resolved)]
        document = {"schema": "pgolf.plan/1", "command": "eval", "ways": labels, "model": model.describe()}
        print_json(document) if asked.as_json else note(f"would score by {len(labels)} methods: {', '.join(labels)}")
        return
    judged = Judged(asked.clock, time.monotonic() - asked.began_s)
    document = compare_methods(model, dataset, resolved, asked.device, console, judged)
    if asked.out:
        write_json(asked.out, document)
    if asked.as_json:
        print_json(document)
    else:
        show_comparison(document)
    try:
        judge_all(document)
    except RuleError as error:
        fail_after_result(error)


def show_comparison(document: dict[str, Any]) -> None:
    """The methods as a table."""
    from pgolf.accounting import bpb_of

    rows = []
    for row in document["rows"]:
        if "error" in row:
            rows.append([row["label"], "-", "-", "-", "-", row["error"]])
            continue
        gain = f"{row['gain']:+.5f}" if row["gain"] is not None else "-"
        error = f"{row['gain_se']:.5f}" if row["gain_se"] is not None else "-"
        label = ", ".join([label_text(row), *remarks(row, document)])
        rows.append([row["label"], f"{bpb_of(row):.5f}", gain, error, f"{row['seconds']:.1f}", label])
    title = f"{document['targets']:,} targets in {document['documents']:,} documents"
    title += f", the first {document['share']:.1%} of the validation split" if document["partial"] else ""
    score = "BPB, partial" if document["partial"] else "BPB"
    table(title, ["method", score, "gain", "se", "seconds", "label"], rows, right=(1, 2, 3, 4))


def remarks(row: dict[str, Any], document: dict[str, Any]) -> list[str]:
    """What else is to be said of a row of the comparison."""
    said, clock = list[str](), row["clock"]
    if row["targets"] != document["targets"]:
        said.append(f"on {row['targets']:,} targets")
    if clock["adaptation_stopped_at"] is not None:
        said.append(f"no adaptation after {clock['adaptation_stopped_at']:,} targets")
    return said if clock["kept"] else [*said, "over its budget"]
