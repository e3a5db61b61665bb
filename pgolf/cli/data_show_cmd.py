"""pgolf data show: what is in a dataset."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pgolf.cli import options
from pgolf.cli.output import note, print_json, table

STYLES = ("black on color(152)", "black on color(223)")
"""Backgrounds of neighbouring tokens."""
KIND_STYLES = {"byte": " bold", "operator": " bold italic", "special": " reverse"}
PLAIN_WIDTH = 120
SEPARATOR = "|"


def show(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Dataset directory: made by pgolf tokenize, or published shards.")
    ],
    tokenizer: options.Tokenizer = None,
    documents: Annotated[
        int, typer.Option("--documents", metavar="N", min=0, max=1000, help="Documents to show token by token.")
    ] = 3,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", min=1, max=100_000, help="Tokens to show of each of them.")
    ] = 120,
    split: Annotated[
        str, typer.Option("--split", help="Where the shown documents come from: val, or train. Val if there is one.")
    ] = "",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """What is in a dataset: sizes, lengths, use of the vocabulary, and documents with their token boundaries.

    Example: pgolf data show data/mine --documents 1
    """
    from pgolf.core.errors import ConfigError
    from pgolf.report.console import Console
    from pgolf.report.data_show import SPLITS, data_show

    if split and split not in SPLITS:
        raise ConfigError(f"{split!r} is neither val nor train", "--split")
    document = data_show(folder, tokenizer, documents, tokens, split)
    if as_json:
        print_json(document)
        return
    console = Console(quiet)
    for warning in document["warnings"]:
        console.warn(warning)
    show_facts(document)
    show_extremes(document["splits"])
    show_frequent(document["splits"])
    show_documents(document)


def figure(value: Any, digits: int = 0) -> str:
    """A number for people, a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def show_facts(document: dict[str, Any]) -> None:
    """A column per split."""
    splits = document["splits"].values()
    note(f"{document['dir']}: vocabulary of {document['vocab_size']:,}, tokenizer {document['tokenizer_sha256'][:12]}")
    note(f"transform: {document['transform_words']}")
    note(f"split: {document['rule_words']}")

    def figures(label: str, *path: str, digits: int = 0) -> list[str]:
        """One figure of every split."""
        values = []
        for entry in splits:
            value: Any = entry
            for key in path:
                value = value[key] if value is not None else None
            values.append(figure(value, digits))
        return [label, *values]

    per_document, vocabulary = "tokens_per_document", "vocabulary"
    rows = [
        figures("documents", "documents"),
        figures("tokens", "tokens"),
        figures("bytes of the text", "raw_bytes"),
        figures("bytes normalised", "normalised_bytes"),
        figures("bytes charged", "charged_bytes"),
        ["  taken from", *(entry["charged_from"] for entry in splits)],
        figures("bytes per token", "bytes_per_token", digits=4),
        figures("tokens per document: median", per_document, "median"),
        figures("  mean", per_document, "mean", digits=1),
        figures("  longest", per_document, "max"),
        figures("  shortest", per_document, "min"),
        figures("ids in use", vocabulary, "used_ids"),
        figures("ids not in use", vocabulary, "unused_ids"),
        ["byte pieces", *(f"{100 * entry['vocabulary']['byte_share']:.3f} %" for entry in splits)],
        figures("unigram entropy, bits per token", vocabulary, "entropy_bits", digits=4),
        figures("unigram model, bits per byte", vocabulary, "unigram_bpb", digits=4),
    ]
    known = [row for row in rows if set(row[1:]) != {"-"}]
    table("", ["", *document["splits"]], known, right=(1, 2))
    for name, entry in document["splits"].items():
        if entry["tokens_before_first_document"]:
            note(f"{name}: {entry['tokens_before_first_document']:,} tokens before the first BOS belong to no document")
    note(f"{document['never_used_ids']:,} of {document['vocab_size']:,} ids occur in no split")


def show_extremes(splits: dict[str, Any]) -> None:
    """The longest and the shortest document of every split."""
    for name, entry in splits.items():
        for which in ("longest", "shortest"):
            if one := entry.get(which):
                size = f"{one['tokens']:,} tokens" + (f", {one['bytes']:,} bytes" if one["bytes"] is not None else "")
                note(f"{which} in {name}: document {one['index']:,}, {size}: {one['text']}")


def show_frequent(splits: dict[str, Any]) -> None:
    """The most frequent tokens of every split, side by side."""
    found = [entry["vocabulary"]["most_frequent"] for entry in splits.values()]
    rows = []
    for rank in range(max(map(len, found))):
        cells = []
        for most in found:
            one = most[rank] if rank < len(most) else None
            cells += [one["piece"], f"{100 * one['share']:.2f} %"] if one else ["", ""]
        rows.append([str(rank + 1), *cells])
    columns = [column for name in splits for column in (f"in {name}", "share")]
    table("", ["", *columns], rows, right=(0, 2, 4))


def show_documents(document: dict[str, Any]) -> None:
    """Documents token by token: on backgrounds that alternate, or with a bar between tokens where there is no color."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, width=PLAIN_WIDTH, no_color=True, highlight=False)
    color = console.is_terminal and console.color_system is not None and not console.no_color
    for shown in document["shown"]:
        more = shown["tokens"] - 1 - len(shown["pieces"])
        head = f"{document['shown_split']} document {shown['index']}: {shown['tokens']:,} tokens with BOS"
        note(f"{head}, {shown['bytes']:,} bytes" if shown["bytes"] is not None else head)
        line = Text(overflow="fold")
        for number, piece in enumerate(shown["pieces"]):
            if not color and number:
                line.append(SEPARATOR)
            style = STYLES[number % len(STYLES)] + KIND_STYLES.get(piece["kind"], "") if color else ""
            line.append(piece["piece"], style)
        if more > 0:
            line.append(f" … {more:,} more")
        console.print(line)
        note("")
    if document["shown"] and document["transform"] != "none":
        note("<T> title, <A> all capitals, <C> next letter capital, <E> escape")
