"""pgolf config show, diff and plot-schedules, techniques, doctor."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pgolf.cli import options
from pgolf.cli.output import fail_after_result, note, print_json, table


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Look at configurations.")
    group.command("show")(show)
    group.command("diff")(diff)
    group.command("plot-schedules")(plot_schedules)
    app.add_typer(group, name="config", rich_help_panel="Looking")
    app.command("techniques", rich_help_panel="Looking")(techniques)
    app.command("doctor", rich_help_panel="Looking")(doctor)


def show(
    section: Annotated[str, typer.Argument(metavar="[SECTION]", help="Only keys below this dotted name.")] = "",
    preset: options.Preset = "",
    sets: options.Sets = None,
    seed: options.Seed = None,
    as_json: options.Json = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say what each key means.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Every key with its value and where the value came from.

    Example: pgolf config show quant --preset demo --set quant.bits=5
    """
    from pgolf.config.load import preset_description, preset_names, resolve
    from pgolf.config.tree import flatten
    from pgolf.core.errors import ConfigError
    from pgolf.report.console import Console

    resolved = resolve(preset, options.merged(sets, seed))
    flat = {
        key: value
        for key, value in flatten(resolved.values).items()
        if f"{key}.".startswith(f"{section}." if section else "")
    }
    if not flat:
        raise ConfigError(
            f"there is no key or section {section!r}", "config show", f"sections are {', '.join(resolved.values)}"
        )
    console = Console(quiet)
    if resolved.preset or sets:  # the defaults have none, and must show at once
        from pgolf.config.hazards import hazards

        for text in hazards(resolved.config):
            console.warn_once(text)
    helps = {}
    if explain:
        from pgolf.config.describe import key_help

        helps = key_help(resolved.config)
    if as_json:
        keys = {key: {"value": value, "from": resolved.origins.get(key, "")} for key, value in flat.items()}
        meanings = {"meaning": {key: helps.get(key, "") for key in flat}} if explain else {}
        document = {"schema": "pgolf.config/1", "preset": preset, "section": section, "config": resolved.values}
        print_json({**document, "keys": keys, **meanings, "warnings": console.warnings})
        return
    last = {key: helps.get(key, "") if explain else resolved.origins.get(key, "") for key in flat}
    rows = [[key, repr(value), last[key]] for key, value in flat.items()]
    table("", ["key", "value", "meaning" if explain else "from"], rows)
    if not preset:
        note("Presets: " + "; ".join(f"{name} ({preset_description(name)})" for name in preset_names()))


def diff(
    before: Annotated[str, typer.Argument(metavar="PRESET", help="A preset or a TOML file.")],
    after: Annotated[str, typer.Argument(metavar="PRESET", help="Another one.")],
    sets: options.Sets = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Keys in which two presets differ; --set applies to the second.

    Example: pgolf config diff baseline_sp1024 demo
    """
    from pgolf.config.load import resolve
    from pgolf.config.tree import flatten

    left, right = flatten(resolve(before).values), flatten(resolve(after, sets or []).values)
    keys = [*left, *(key for key in right if key not in left)]
    rows = [[key, left.get(key), right.get(key)] for key in keys if left.get(key) != right.get(key)]
    if as_json:
        print_json(
            {"schema": "pgolf.config-diff/1", "changed": {key: {"before": old, "after": new} for key, old, new in rows}}
        )
    else:
        table("", ["key", before, after], [[str(key), shown(old), shown(new)] for key, old, new in rows])


def shown(value: Any) -> str:
    """A value, or a dash where the key does not exist."""
    return "-" if value is None else repr(value)


def plot_schedules(
    preset: Annotated[str, typer.Argument(metavar="[PRESET]", help="A preset or a TOML file.")] = "",
    sets: options.Sets = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Draw into this .png or .svg (needs matplotlib).")
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Learning rate, momentum, weight decay and layer loop over the run: a table, or with --out a picture.

    Example: pgolf config plot-schedules leader --out schedules.svg
    """
    from pgolf.config.load import resolve
    from pgolf.report.schedules import FINE, SHOWN, TITLES, plot, sample

    config = resolve(preset, sets or []).config
    fine = sample(config, FINE)
    if out:
        plot(fine, preset or "defaults", out)
    if as_json:
        document = {"schema": "pgolf.schedules/1", "preset": preset, "out": str(out) if out else None}
        print_json(document | {"values": fine})
    elif out:
        note(f"wrote {out}")
    else:
        columns = ["fraction", "step", *TITLES]
        table("", columns, [[f"{row[key]:.6g}" for key in columns] for row in sample(config, SHOWN)])


def techniques(as_json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Every technique there is: where it goes, what it does, its source, and what it is worth, published and measured
    by us.
    """
    from pgolf.config.describe import measured, our_effect, technique_rows

    ours = measured()["techniques"]
    rows = [row | {"our_effect": our_effect(ours.get(f"{row['key']} {row['name']}"))} for row in technique_rows()]
    if as_json:
        print_json({"schema": "pgolf.techniques/1", "setting": measured()["setting"], "techniques": rows})
    else:
        columns = ("key", "name", "summary", "source", "published_effect", "our_effect")
        table(
            "",
            ["key", "name", "what it does", "source", "published, BPB", "ours, BPB"],
            [[row[column] for column in columns] for row in rows],
        )
        note(f"BPB against the same model without it, less is better; ours: {measured()['setting']}")


def doctor(as_json: options.Json = False, quiet: options.Quiet = False) -> None:
    """What this machine offers: packages, GPU, compilers, disk. Exit code 5 if something required is missing."""
    from pgolf.report.doctor import examine

    rows = examine()
    missing = [row for row in rows if row["required"] and not row["ok"]]
    if as_json:
        print_json({"schema": "pgolf.doctor/1", "ok": not missing, "checks": rows})
    else:
        table(
            "",
            ["", "what", "found", "remedy"],
            [
                ["ok" if row["ok"] else "MISSING" if row["required"] else "-", row["name"], row["found"], row["fix"]]
                for row in rows
            ],
        )
    if missing:
        from pgolf.core.errors import SetupError

        fail_after_result(SetupError(f"{missing[0]['name']} is missing", "doctor", missing[0]["fix"]))
