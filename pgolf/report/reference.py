"""The reference pages of docs/, made from the program itself: python -m pgolf.report.reference --write docs.

`--check docs` changes nothing and fails when a page is stale. Pages: configuration.md (every key, of every choice),
commands.md (every command's help), techniques.md (every line of the catalog) and rules.md (what is held legal). The one
module of this package that looks at the command line, because it describes it.
"""

import argparse
import dataclasses
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pgolf.catalog import CATALOG, load, name_of, selector
from pgolf.config.describe import field_doc, measured, our_effect, slot_keys, technique_rows
from pgolf.config.hazards import HAZARDS
from pgolf.config.load import preset_description, preset_names
from pgolf.config.run import RunConfig
from pgolf.config.tree import join, slot_of
from pgolf.core.files import read_bytes, write_bytes

HELP_WIDTH = 100
MADE_BY = "<!-- Made by `python -m pgolf.report.reference --write docs`; change the source, not this file. -->"


@dataclass(frozen=True)
class KeyRow:
    """One key, its default and meaning. `choices` are those of its slot that have it so; empty if all have. It occurs
    `again` where a slot is inside one of its own choices: the page does not list it there.
    """

    key: str
    default: str
    meaning: str
    choices: tuple[str, ...] = ()
    again: bool = False


def toml_value(value: Any) -> str:
    """A leaf as a preset would write it."""
    return json.dumps(value) if isinstance(value, bool | str) else repr(value)


def key_rows(config: Any, path: str, within: tuple[str, ...] = ()) -> Iterator[KeyRow]:
    """Rows of every key below a configuration, the keys of every choice included. `within` are the slots around it."""
    for field in dataclasses.fields(config):
        value, full, slot = getattr(config, field.name), join(path, field.name), slot_of(field.type)
        meaning = field_doc(type(config), field.name)
        if slot:
            yield from slot_rows(value, full, slot, meaning, within)
        elif dataclasses.is_dataclass(value):
            yield from key_rows(value, full, within)
        else:
            yield KeyRow(full, toml_value(value), meaning)


def slot_rows(value: Any, path: str, slot: str, meaning: str, within: tuple[str, ...] = ()) -> Iterator[KeyRow]:
    """The selector's row, then the keys of every choice; what several choices have alike stands once. A slot inside one
    of its own choices has no choice that contains it again.
    """
    key, chosen = selector(slot), name_of(slot, type(value))
    yield KeyRow(join(path, key), toml_value(chosen), f"{meaning} One of {', '.join(CATALOG[slot])}.")
    again = slot in within
    found: dict[KeyRow, tuple[str, ...]] = {}
    for name in CATALOG[slot]:
        default = value if name == chosen else load(slot, name)()
        if again and any(slot_of(field.type) in within for field in dataclasses.fields(default)):
            continue
        for row in key_rows(default, path, (*within, slot)):
            row = dataclasses.replace(row, again=again or row.again)
            found[row] = (*found.get(row, ()), name)
    for row, names in found.items():
        everywhere = len(names) == len(CATALOG[slot]) > 1
        yield row if everywhere or row.choices else dataclasses.replace(row, choices=names)


def section_rows(config: RunConfig, section: str) -> list[KeyRow]:
    """Every key of one section of a run."""
    field = RunConfig.__dataclass_fields__[section]
    value, slot = getattr(config, section), slot_of(field.type)
    return list(slot_rows(value, section, slot, field_doc(RunConfig, section)) if slot else key_rows(value, section))


def markdown_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def code(text: str) -> str:
    """Text in backticks, or nothing."""
    return f"`{text}`" if text else ""


def configuration_page() -> str:
    """configuration.md."""
    config = RunConfig()
    parts = [
        f"{MADE_BY}\n\n# Configuration\n\n"
        "Every key of a run, its default and its meaning. Set one with `--set KEY=VALUE`, or in a TOML file given to "
        "`--preset`, where the dots become tables. Values come from, each overriding the one before: these defaults, "
        "the configuration stored in the input file, the presets as they are named, `--set`. "
        "`pgolf config show --preset A,B` prints the "
        "result and where every value came from.\n\n"
        "Where the column *only with* names choices, the key exists, with this default, only under those choices of "
        "its slot; see [techniques.md](techniques.md). The defaults of model, optim, train, quant, compress and eval "
        "are those of the challenge's naive baseline.\n\n"
        "## Presets\n\n"
    ]
    parts.append(markdown_table(("preset", "what it is"), [(code(p), preset_description(p)) for p in preset_names()]))
    parts.append(
        '\nA preset may start with `extends = "NAME"`, or `"A,B"`, to build on others as `--preset` puts them '
        "together; `description` is shown in lists.\n"
    )
    for section in RunConfig.__dataclass_fields__:
        rows = [
            (code(row.key), ", ".join(map(code, row.choices)), code(row.default), row.meaning)
            for row in section_rows(config, section)
            if not row.again
        ]
        parts.append(f"\n## {section}\n\n{field_doc(RunConfig, section)}\n\n")
        parts.append(markdown_table(("key", "only with", "default", "meaning"), rows))
    return "".join(parts)


def techniques_page() -> str:
    """techniques.md."""
    ours = measured()["techniques"]
    counts = f"{len(technique_rows())} techniques in {len({row['key'] for row in technique_rows()})} slots"
    parts = [
        f"{MADE_BY}\n\n# Techniques\n\n"
        f"{counts}: everything `pgolf techniques` knows. A slot is a place in a run that can be filled in several "
        "ways; the selector key (`kind` for parts of a model, `method` for stages) chooses. How to add one is told in "
        "[architecture.md](architecture.md). Effects are in BPB: published ones in their authors' words, mostly of one "
        "seed; ours with standard errors, explained [below](#what-each-is-worth).\n"
    ]
    for key, rows in groupby(technique_rows(), key=lambda row: row["key"]):
        own = list(rows)
        title = next((f"{key}.{selector(slot)}" for slot, where in slot_keys(RunConfig()).items() if where == key), key)
        parts.append(f"\n## {title}\n\n")
        table = [
            (
                code(row["name"]),
                row["summary"],
                row["source"] or "-",
                row["published_effect"] or "-",
                our_effect(ours.get(f"{row['key']} {row['name']}")) or "-",
                code(row["file"]),
            )
            for row in own
        ]
        columns = ("name", "what it does", "source", "published effect", "our effect", "file")
        parts.append(markdown_table(columns, table))
    return "".join([*parts, harmful(), worth()])


def harmful() -> str:
    """The section of techniques.md with every combination that is known to hurt."""
    rows = [
        (
            one.what,
            ", ".join(code(key.replace("STAGE", stage)) for stage in one.stages for key in one.keys),
            ", ".join(one.stages),
            one.effect,
            one.source,
        )
        for one in HAZARDS
    ]
    return (
        "\n## Combinations that hurt\n\nThey are allowed. The stage that suffers warns of them, `pgolf run` before its "
        "first stage and `pgolf config show` too, and keeps the sentence in the `warnings` of its result. Effects are "
        "published ones, in BPB, more for worse. What cannot work at all is refused.\n\n"
        + markdown_table(("combination", "set by", "stage", "effect", "source"), rows)
    )


def worth() -> str:
    """The section of techniques.md with every measured change, pairs included."""
    found = measured()
    rows = {**found["techniques"], **found["settings"]}
    order = sorted(rows, key=lambda name: -rows[name]["gain"])
    parts = [
        f"\n## What each is worth\n\nMade by `{found['command']}`: {found['setting']}. The baseline's BPB is "
        f"{found['baseline']['bpb']:.4f}. BPB is less for better; a change within two standard errors is none that was "
        "seen. A model this small after so few steps says which techniques work and which hurt at the start; it does "
        "not rank them at full size. Bytes are those that the artifact is predicted to have beyond the baseline's, "
        "with its quantizer and codec, or with the quantizer that fits the model's precision.\n\n"
    ]
    parts.append(
        markdown_table(("technique", "our effect"), [(code(name), our_effect(rows[name])) for name in order])
        if order
        else ""
    )
    if pairs := found["pairs"]:
        table = [(code(name), our_effect(row), f"{-row['sum']:+.4f}") for name, row in pairs.items()]
        parts.append(
            "\nThe best five parts of a model two by two, beside the sum of their single effects: gains do not add.\n\n"
        )
        parts.append(markdown_table(("pair", "our effect", "sum of the two"), table))
    return "".join(parts)


def command_paths(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command below a group as the words that call it, groups included."""
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from command_paths(child, (*path, name))


def help_text(words: tuple[str, ...]) -> str:
    """What `pgolf WORDS --help` prints on a terminal of fixed width, without colour."""
    import typer.rich_utils

    from pgolf.cli.main import app

    before = {name: getattr(typer.rich_utils, name) for name in ("MAX_WIDTH", "COLOR_SYSTEM", "FORCE_TERMINAL")}
    typer.rich_utils.MAX_WIDTH, typer.rich_utils.COLOR_SYSTEM = HELP_WIDTH, None
    typer.rich_utils.FORCE_TERMINAL = False
    try:
        with redirect_stdout(io.StringIO()) as printed:
            app([*words, "--help"], prog_name="pgolf", standalone_mode=False)
    finally:
        for name, value in before.items():
            setattr(typer.rich_utils, name, value)
    return "\n".join(line.rstrip() for line in printed.getvalue().strip("\n").splitlines())


def commands_page() -> str:
    """commands.md."""
    import typer

    from pgolf.cli.main import app

    parts = [f"{MADE_BY}\n\n# Commands\n\nThe help of every command, as `pgolf COMMAND --help` prints it.\n"]
    for words in command_paths(typer.main.get_command(app)):
        parts.append(f"\n## {' '.join(('pgolf', *words))}\n\n```text\n{help_text(words)}\n```\n")
    return "".join(parts)


def rules_page() -> str:
    """rules.md."""
    from pgolf.audit.triple import TEXT_BYTES, published_rows, rules

    laws = [
        (rule["topic"], rule["holding"], rule["source"], rule["confidence"], rule["default"])
        for rule in rules()["rule"]
    ]
    signs = [
        (one["name"], f"{one['low']:g} to {one['high']:g}", one["what"], one["source"]) for one in rules()["signature"]
    ]
    figures = []
    for row in published_rows():
        figures.append(
            (
                row["name"],
                f"{row['loss']:.5f}" if row["loss"] else "-",
                f"{row['bpb']:g}" if "bpb" in row else "-",
                f"{row['tokens']:,}" if "tokens" in row else "-",
                f"{row['bytes']:,}",
                row["basis"],
                f"{row['ratio']:.4f}",
                ", ".join(row["said"]),
            )
        )
    parts = [
        "# Rules",
        "",
        "What is held legal in the challenge, by whom, and how sure that is: *high* was read in rules or code, *thread*"
        " in public discussion seen in part, *unverified* could not be found. It may have changed since.",
        "",
        markdown_table(("topic", "holding", "source", "confidence", "pgolf"), laws),
        "## Signatures of miscounted bytes",
        "",
        f"A loss, a BPB and a number of tokens imply bytes. Over those of the validation text ({TEXT_BYTES:,} in whole"
        " windows of 2,048 tokens of 8,192):",
        "",
        markdown_table(("signature", "ratio", "what", "source"), signs),
        "## Published figures",
        "",
        "What `pgolf audit triple` says of published figures. No loss that we can cite was published: it follows from"
        " BPB, tokens and bytes, and *basis* says where the bytes come from.",
        "",
        markdown_table(("submission", "loss", "BPB", "tokens", "bytes", "basis", "ratio", "verdict"), figures),
    ]
    return "\n".join(parts)


def pages() -> dict[str, str]:
    """File name -> content of every generated page."""
    return {
        "commands.md": commands_page(),
        "configuration.md": configuration_page(),
        "rules.md": rules_page(),
        "techniques.md": techniques_page(),
    }


def stale_pages(folder: Path) -> list[str]:
    """Names of the pages in a folder that are missing or differ from what would be written now."""
    return [
        name
        for name, text in pages().items()
        if not (folder / name).is_file() or read_bytes(folder / name, 16 << 20) != text.encode()
    ]


def main(argv: list[str] | None = None) -> int:
    """Write the pages, or check them; returns 1 when one is stale."""
    parser = argparse.ArgumentParser(prog="python -m pgolf.report.reference", description="Reference pages of docs/.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", metavar="DIR", type=Path, help="write the pages into this directory")
    action.add_argument("--check", metavar="DIR", type=Path, help="fail when a page in this directory is stale")
    options = parser.parse_args(argv)
    if options.write:
        for name, text in pages().items():
            write_bytes(options.write / name, text.encode())
        return 0
    stale = stale_pages(options.check)
    for name in stale:
        print(f"{options.check / name} is stale; run python -m pgolf.report.reference --write {options.check}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
