"""Every way to score, on one model and the same targets: the table of docs/evaluation.md.

What `pgolf eval --method all` does, at the window, stride and number of targets given here. Gains are over plain
windows of the same length; their standard error is over documents. With --only some methods are scored, and plain; with
--join their rows go into the table of a document, if that has the same plain score.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.report import parser, show
from pgolf.accounting import bpb_of
from pgolf.config.load import resolve
from pgolf.dataset import open_dataset
from pgolf.report.console import Console
from pgolf.stages.compare import compare_methods, planned_ways
from pgolf.stages.model_files import load_model

HEAD = "| method | BPB | gain |"
"""How the table begins that --join adds to."""


def settings(options: argparse.Namespace) -> list[str]:
    """Window, stride and targets for eval and ttt alike, but for a stride of test-time training by documents, which has
    none; and what was asked for besides.
    """
    sets = []
    for stage in ("eval", "ttt"):
        sets += [f"{stage}.seq_len={options.window}"]
        sets += [f"{stage}.max_tokens={options.targets}", f"{stage}.budget_seconds=0"]
    chosen = dict(pair.partition("=")[::2] for pair in options.set)
    if chosen.get("ttt.method", "chunk") == "chunk":
        sets += [f"ttt.stride={options.stride}"]
    return ["eval.method=sliding", f"eval.stride={options.stride}", *sets, *options.set]


def rows_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The table; a way that the model cannot go has a row of dashes."""
    rows = []
    for row in document["rows"]:
        good = "error" not in row
        rows.append(
            {
                "method": row["label"],
                "BPB": round(bpb_of(row), 5) if good else "-",
                "gain": round(row["gain"], 5) if good and row["gain"] is not None else "-",
                "se": round(row["gain_se"], 5) if good and row["gain_se"] is not None else "-",
                "seconds": round(row["seconds"], 1) if good else "-",
                "kind": ("adaptive" if row["adaptive"] else "fixed") if good else row["error"],
                "documents": ("alone" if row["document_independent"] else "in a row") if good else "-",
            }
        )
    return rows


def line_of(row: dict[str, Any], first: bool) -> str:
    """A row as the document has it; that of plain gains nothing."""
    cells = [row["method"], *(row[name] for name in ("BPB", "gain", "se", "seconds", "kind", "documents"))]
    for place, form in ((1, ".4f"), (2, "+.4f"), (3, ".4f"), (4, ".0f")):
        if isinstance(cells[place], float):
            cells[place] = "-" if first and place in (2, 3) else format(cells[place], form)
    return f"| {' | '.join(cells)} |"


def joined(text: str, rows: list[dict[str, Any]], order: list[str]) -> str:
    """A document with these rows in its table, each in the place that its method has in `order`. SystemExit if it has
    no such table, or another plain score.
    """
    lines = text.split("\n")
    begin = next((place for place, line in enumerate(lines) if line.startswith(HEAD)), -1) + 2
    if begin < 2:
        raise SystemExit(f"the document has no table that begins with {HEAD}")
    end = next(place for place in range(begin, len(lines) + 1) if not "".join(lines[place : place + 1]).startswith("|"))
    table = {line.split("|")[1].strip(): line for line in lines[begin:end]}
    good = [row for row in rows if row["BPB"] != "-"]
    found = {row["method"]: line_of(row, row["method"] == "plain") for row in good}
    before, now = (part["plain"].split("|")[2].strip() if "plain" in part else "-" for part in (table, found))
    if before != now:
        raise SystemExit(f"the document's plain score is {before}, now it is {now}: these do not compare")
    table |= {name: line for name, line in found.items() if name != "plain"}
    ordered = sorted(table, key=lambda name: order.index(name) if name in order else len(order))
    return "\n".join([*lines[:begin], *(table[name] for name in ordered), *lines[end:]])


def main() -> None:
    """Score and print."""
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="checkpoint, quantized model or artifact")
    arguments.add_argument("--data", type=Path, required=True, help="dataset with a validation split")
    arguments.add_argument("--tokenizer", type=Path, help="tokenizer of published shards")
    arguments.add_argument("--window", type=int, default=512, help="tokens per window")
    arguments.add_argument("--stride", type=int, default=64, help="stride of sliding windows")
    arguments.add_argument("--targets", type=int, default=131072, help="validation targets to score")
    arguments.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="other settings; repeatable")
    arguments.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="these alone, and plain")
    arguments.add_argument("--join", type=Path, metavar="FILE", help="put the rows into this document's table")
    options = arguments.parse_args()
    model = load_model(options.model)
    resolved = resolve(sets=settings(options), stored=model.stored, stored_name=options.model.name)
    dataset = open_dataset(options.data, options.tokenizer, model.config.model.vocab_size)
    document = compare_methods(model, dataset, resolved, "auto", Console(), only=options.only)
    where = f"{document['targets']:,} targets in {document['documents']:,} documents"
    options.model, options.data = options.model.name, options.data.name
    options.tokenizer, path = options.tokenizer and options.tokenizer.name, options.join
    options.join, rows = str(path or ""), rows_of(document)
    show("evaluation", options, rows, [f"{where}; gain and se over plain, the latter over documents"])
    if path:
        order = [way.label for way in planned_ways(resolved)]
        text = joined(path.read_text(encoding="utf-8"), rows, order)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
