"""Every way to score, on one model and the same targets: the table of docs/evaluation.md.

What `pgolf eval --method all` does, at the window, stride and number of targets given here. Gains are over plain
windows of the same length; their standard error is over documents.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.report import parser, show
from pgolf.config.load import resolve
from pgolf.dataset import open_dataset
from pgolf.report.console import Console
from pgolf.stages.compare import compare_methods
from pgolf.stages.model_files import load_model


def settings(options: argparse.Namespace) -> list[str]:
    """Window, stride and targets for eval and ttt alike, and what was asked for besides."""
    sets = []
    for stage in ("eval", "ttt"):
        sets += [f"{stage}.seq_len={options.window}", f"{stage}.stride={options.stride}"]
        sets += [f"{stage}.max_tokens={options.targets}", f"{stage}.budget_seconds=0"]
    return ["eval.method=sliding", *sets, *options.set]


def rows_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The table; a way that the model cannot go has a row of dashes."""
    rows = []
    for row in document["rows"]:
        good = "error" not in row
        rows.append(
            {
                "method": row["label"],
                "BPB": round(row["bpb"], 5) if good else "-",
                "gain": round(row["gain"], 5) if good else "-",
                "se": round(row["gain_se"], 5) if good and row["gain_se"] is not None else "-",
                "seconds": round(row["seconds"], 1) if good else "-",
                "kind": ("adaptive" if row["adaptive"] else "fixed") if good else row["error"],
                "documents": ("alone" if row["document_independent"] else "in a row") if good else "-",
            }
        )
    return rows


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
    options = arguments.parse_args()
    model = load_model(options.model)
    resolved = resolve(sets=settings(options), stored=model.stored, stored_name=options.model.name)
    dataset = open_dataset(options.data, options.tokenizer, model.config.model.vocab_size)
    document = compare_methods(model, dataset, resolved, "auto", Console())
    where = f"{document['targets']:,} targets in {document['documents']:,} documents"
    options.model, options.data = options.model.name, options.data.name
    options.tokenizer = options.tokenizer and options.tokenizer.name
    show("evaluation", options, rows_of(document), [f"{where}; gain and se over plain, the latter over documents"])


if __name__ == "__main__":
    main()
