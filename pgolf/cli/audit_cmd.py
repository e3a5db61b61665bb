"""pgolf audit: is a score legal?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from pgolf.cli import options
from pgolf.cli.data_audit_cmd import audit as audit_data
from pgolf.cli.output import fail_after_result, note, print_json, table
from pgolf.core.errors import ConfigError, RuleError

app = typer.Typer(no_args_is_help=True, help="Prove that a score breaks a rule, or how sure it is that it does not.")
Level = Annotated[
    str,
    typer.Option(
        "--level",
        metavar="NAME",
        help="quick (a minute), full (a quarter of an hour) or real (the method as it is set, 200,000 targets).",
    ),
]
Targets = Annotated[
    int, typer.Option("--targets", metavar="N", min=0, help="Targets of the streams; 0: as the level has it.")
]
StreamSeed = Annotated[int, typer.Option("--stream-seed", metavar="N", help="Seed of streams and edits.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Write audit.json, audit.md and counterexamples there."),
]


def register(main: typer.Typer) -> None:
    """Add the group."""
    main.add_typer(app, name="audit", rich_help_panel="Proof")
    app.command("run")(run)
    app.command("external")(external)
    app.command("data")(audit_data)
    app.command("artifact")(artifact)
    app.command("submission")(submission)
    app.command("triple")(triple)
    app.command("specimens")(specimens)
    app.command("replay")(replay)


def run(
    evaluator: Annotated[
        str,
        typer.Argument(metavar="EVALUATOR", help="eval or ttt, as the model is configured, or eval.sliding and so on."),
    ],
    model: Annotated[
        Path,
        typer.Option(
            "--model", metavar="FILE", callback=options.there, help="Checkpoint, quantized model or artifact."
        ),
    ],
    data: options.Data,
    level: Level = "quick",
    targets: Targets = 0,
    stream_seed: StreamSeed = 0,
    out: Out = None,
    tokenizer: options.Tokenizer = None,
    preset: options.Preset = "",
    sets: options.Sets = None,
    device: options.Device = "cpu",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Audit one of pgolf's methods on a model: flips, sums over the vocabulary, order, bytes, files, network and more.

    On a CPU equal means to the last bit.
    Exit code 4 if a rule is proved broken, or one that the level demands was not tested.

    Example: pgolf audit run eval.sliding --model runs/a/model.pgz --data data/mine --out runs/a/audit
    """
    from pgolf.audit.bench import level_of
    from pgolf.audit.evaluator import Asked, audit_method
    from pgolf.core.dist import pick_device
    from pgolf.dataset import open_dataset
    from pgolf.report.console import Console
    from pgolf.stages.inputs import rescored
    from pgolf.stages.model_files import load_model

    stage, _, name = evaluator.partition(".")
    if stage not in ("eval", "ttt"):
        raise ConfigError(f"{evaluator!r} is no evaluator", "EVALUATOR", "give eval, ttt, eval.METHOD or ttt.METHOD")
    console = Console(quiet)
    chosen = [f"{stage}.method={name}"] * bool(name) + (sets or [])
    asked = Asked(
        level=level_of(level), targets=targets, seed=stream_seed, tokenizer=tokenizer, device=pick_device(device, 0)
    )
    found, resolved = rescored(load_model(model), preset, chosen, console)
    dataset = open_dataset(data, tokenizer, found.config.model.vocab_size)
    document = audit_method(found, dataset, stage, getattr(resolved.config, stage), asked, console)
    finish(document, out, as_json)


def external(
    command: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND...", help="The program, after --, with {tokens} and {scores} for its files."),
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Dataset whose validation text the streams are made of."),
    ] = None,
    vocab_size: Annotated[
        int, typer.Option("--vocab-size", metavar="N", min=8, max=65536, help="Ids there are, without --data.")
    ] = 256,
    bos_id: Annotated[
        int, typer.Option("--bos-id", metavar="N", min=0, help="Token that begins documents, without --data.")
    ] = 1,
    variants: Annotated[
        list[str] | None,
        typer.Option("--variant", metavar="COMMAND", help="Another command that must give the same; repeatable."),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="A run may take so long.")
    ] = 60.0,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Runs at once.")] = 2,
    level: Level = "quick",
    targets: Targets = 0,
    stream_seed: StreamSeed = 0,
    out: Out = None,
    tokenizer: options.Tokenizer = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Audit any program that reads tokens and writes the loss of each target, without looking inside it.

    {tokens} is a shard as the challenge has them: 1,024 bytes, then uint16.
    {scores} is what it must write: nats, one per line or .npy, for every token but the first.
    It runs many times, in this folder, and is told nothing of the audit.

    Example: pgolf audit external --data data/mine -- python examples/bigram_scorer.py {tokens} {scores} 1024
    """
    import shlex

    from pgolf.audit.bench import level_of
    from pgolf.audit.evaluator import Asked, audit_program, program_vocabulary
    from pgolf.audit.program import Program, check_command
    from pgolf.dataset import open_dataset
    from pgolf.report.console import Console

    asked = Asked(level=level_of(level), targets=targets, seed=stream_seed, tokenizer=tokenizer)
    others = [shlex.split(text) for text in variants or []]
    for one in (command, *others):
        check_command(one)
    if bos_id >= vocab_size:
        raise ConfigError(f"token {bos_id} is not one of {vocab_size}", "--bos-id")
    dataset = open_dataset(data, tokenizer, vocab_size) if data else None
    program = Program(
        tuple(command),
        program_vocabulary(dataset, vocab_size, bos_id),
        Path.cwd(),
        timeout,
        tuple(tuple(one) for one in others),
        jobs=jobs,
    )
    finish(audit_program(program, dataset, asked, Console(quiet)), out, as_json)


def artifact(
    path: Annotated[
        Path,
        typer.Argument(metavar="ARTIFACT", callback=options.there, help="An artifact made by pgolf compress."),
    ],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check that an artifact decodes, decodes to the same again, gives finite logits, and fits the cap with its script.

    Example: pgolf audit artifact runs/a/model.pgz
    """
    from pgolf.audit.artifact import audit_artifact
    from pgolf.report.console import Console

    finish(audit_artifact(path, Console(quiet)), None, as_json)


def submission(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", callback=options.there, help="A submission folder, ours or not.")
    ],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check a submission folder without running it, as package-submission --check does: files, schema, sizes, figures
    that must fit together, imports, network.

    Example: pgolf audit submission records/track_10min_16mb/2026-04-27_Example
    """
    from pgolf.cli.package_cmd import show_check
    from pgolf.submission.checking import check_submission

    show_check(check_submission(folder), as_json)


def triple(
    loss: Annotated[str, typer.Option("--loss", metavar="NATS", help="Published loss, nats per token, as printed.")],
    bpb: Annotated[str, typer.Option("--bpb", metavar="BITS", help="Published bits per byte, as printed.")],
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", min=1, help="Scored targets.")],
    expected_bytes: Annotated[
        int | None,
        typer.Option("--expected-bytes", metavar="N", min=1, help="Bytes of the text, if it is not the challenge's."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Judge a published loss, BPB and number of tokens: which bytes do they imply, and which mistake would give those?

    Exit code 4 if they cannot all be right.

    Example: pgolf audit triple --loss 2.32203 --bpb 1.06108 --tokens 47851520
    """
    from pgolf.audit.triple import judge_triple

    document = judge_triple(loss, bpb, tokens, expected_bytes)
    if as_json:
        print_json(document)
    else:
        note(document["what"])
        for reading in document["signatures"]:
            note(f"like {reading['name']}: {reading['what']} ({reading['source']})")
    if not document["sound"]:
        fail_after_result(RuleError(document["what"], "audit triple"))


def specimens(
    trials: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="Streams and models to try.")] = 1,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="Rows whose name has this in it; repeatable.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Processes.")] = 1,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Try the audit itself: methods that break a rule must be caught by just the right checks, legal ones by none.

    Example: pgolf audit specimens --only slot
    """
    from pgolf.audit.selftest import COLUMNS, self_test
    from pgolf.report.console import Console

    document = self_test(trials, only or [], jobs, Console(quiet))
    if as_json:
        print_json(document)
    else:
        rows = [[row["name"], *row["cells"], row["verdict"]] for row in document["rows"]]
        table("Specimens (X caught, . not caught, ~ too small to count on)", ["specimen", *COLUMNS, ""], rows)
        note(f"{document['seeds']} seeds, {document['wrong']} rows wrong")
    if document["wrong"]:
        fail_after_result(RuleError(f"{document['wrong']} rows are not as they must be", "audit specimens"))


def replay(
    case: Annotated[Path, typer.Argument(metavar="FILE", help="A counterexample-*.json of an audit.")],
    run_programs: Annotated[
        bool, typer.Option("--run-programs", help="Run the program that the file names: only if you trust the file.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Run a counterexample again: both scores, or the sum, side by side. Exit code 4 while it is one.

    Example: pgolf audit replay runs/a/audit/counterexample-a.json
    """
    from pgolf.audit.again import play
    from pgolf.core.files import read_json

    document = play(read_json(case), str(case), run_programs)
    if as_json:
        print_json(document)
    else:
        note(document["what"])
    if document["violated"]:
        fail_after_result(RuleError(document["what"], str(case)))


def finish(document: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Write and print a report; end with its exit code."""
    from pgolf.audit.report import line_of, verdict_error, write_report
    from pgolf.core.files import read_json

    cases = write_report(out, document) if out is not None else []
    if as_json:
        print_json(document)
    else:
        rows = [[one["property"], one["title"], line_of(one), one["what"]] for one in document["findings"]]
        table(f"Audit {document['id']}, level {document['level']}", ["", "property", "verdict", "seen"], rows)
        for limit in document["limits"]:
            note(limit)
        for path in cases:
            note(f"counterexample {path}: {read_json(path)['replay']}")
        note(f"audit {document['id']}: {document['verdict']}")
    if error := verdict_error(document):
        fail_after_result(error)
