"""pgolf data audit: is this dataset what it should be?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from pgolf.cli import options
from pgolf.cli.output import fail_after_result, note, print_json, table

TOTALS = {
    "raw": "UTF-8 of the documents",
    "normalised": "UTF-8 after the tokenizer's normaliser",
    "table": "byte table over the whole stream",
    "sidecar": "byte sidecars over the whole stream",
    "decoded": "every document decoded again",
}


def audit(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Dataset directory, or published shards.")],
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="SOURCE", help="The text it was made of, to compare with; repeatable."),
    ] = None,
    tokenizer: options.Tokenizer = None,
    claimed_bytes: Annotated[
        int | None,
        typer.Option("--claimed-bytes", metavar="N", min=1, help="Say what a number of validation bytes is."),
    ] = None,
    expect_val_docs: Annotated[
        int, typer.Option("--expect-val-docs", metavar="N", min=1, help="Validation documents there should be.")
    ] = 50_000,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the report there as JSON, too.")
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check shards, documents, byte totals and the border between train and validation; all faults in one run.

    Exit code 3 if something is corrupt, 4 if a rule is violated. Nothing is mended.

    Example: pgolf data audit data/mine --text docs.jsonl.zst
    """
    from pgolf.core.files import write_json
    from pgolf.report.console import Console
    from pgolf.report.data_audit import audit as run_audit
    from pgolf.report.data_audit import verdict_error

    document = run_audit(folder, tokenizer, text or [], claimed_bytes, expect_val_docs, Console(quiet))
    if out is not None:
        write_json(out, document)
    if as_json:
        print_json(document)
    else:
        show(document)
    if error := verdict_error(document):
        fail_after_result(error)


def show(document: dict[str, Any]) -> None:
    """The report for people, the verdict last. Names of files are made visible: they may hold anything."""
    from pgolf.report.data_show import visible

    show_header(document)
    show_text(document)
    show_totals(document)
    show_mistakes(document)
    counts = dict.fromkeys(("corrupt", "violation", "warning", "note"), 0)
    for finding in document["findings"]:
        counts[finding["level"]] += 1
        where = f" ({finding['where']})" if finding["where"] not in ("", document["folder"]) else ""
        fix = f". {finding['fix']}" if finding["fix"] else ""
        note(visible(f"{finding['level']:<9} {finding['check']}: {finding['what']}{where}{fix}"))
    note(f"{document['verdict']}: " + ", ".join(f"{count} {level}" for level, count in counts.items()))


def show_header(document: dict[str, Any]) -> None:
    """What was looked at."""
    kind = "with manifest" if document["manifest"] else "no manifest"
    source = f", shards in {document['adopted_from']}" if document["adopted_from"] else ""
    note(f"{document['folder']}: {kind}{source}")
    tokenizer = document["tokenizer"]
    if tokenizer:
        note(
            f"tokenizer {tokenizer['file']}: {tokenizer['vocab_size']:,} ids, {tokenizer['ids_used']:,} of them used, "
            f"sha256 {tokenizer['sha256'][:12]}, transform {tokenizer['transform']}; "
            f"{tokenizer['round_trips']} of {tokenizer['sampled']} sampled documents come back"
        )
    overlap = document["overlap"]
    if all(split["documents"] for split in document["splits"].values()):
        note(
            f"train and validation share {overlap['documents']:,} documents and {overlap['openings']:,} other openings"
        )


def show_text(document: dict[str, Any]) -> None:
    """How much of the streams the given text is."""
    text = document["text"]
    if text:
        parts = [
            f"{text['matched'][name]:,} of {split['documents']:,} in {name}"
            for name, split in document["splits"].items()
        ]
        note(f"text: {text['documents']:,} documents, token for token the same as {' and '.join(parts)}")


def shown(value: int | None) -> str:
    """A count, or a dash where there is none."""
    return "-" if value is None else f"{value:,}"


def show_totals(document: dict[str, Any]) -> None:
    """Every byte total beside every other; the true one is marked."""
    from pgolf.report.data_opened import counted

    rows = []
    for name, split in document["splits"].items():
        rows.append([name, "documents", shown(split["documents"]), "", counted(len(split["shards"]), "shard")])
        rows.append(["", "tokens", shown(split["tokens"]), "", ""])
        for total, entry in split["totals"].items():
            if entry["bytes"] is not None:
                mark = "* " if total == split["true"] else ""
                share = f"{entry['ratio']:.6f}" if entry["ratio"] else "-"
                rows.append(["", f"{mark}{total} bytes", shown(entry["bytes"]), share, TOTALS[total]])
        for length, cut in split["truncated"].items():
            if not cut["tokens"]:
                continue
            what = f"{cut['tokens']:,} targets in whole windows"
            share = f"{cut['bytes'] / split['totals'][split['true']]['bytes']:.6f}"
            rows.append(["", f"{split['true']} at {length}", shown(cut["bytes"]), share, what])
        if split["bytes_per_token"]:
            rows.append(["", "bytes per token", f"{split['bytes_per_token']:.6f}", "", ""])
    table("Totals (* is the denominator of BPB)", ["split", "total", "count", "ratio", "what"], rows, right=(2, 3))


def show_mistakes(document: dict[str, Any]) -> None:
    """What known mistakes would have given."""
    rows = [
        [mistake["name"], shown(mistake["bytes"]), f"{mistake['ratio']:.4f}", mistake["what"], mistake["source"]]
        for mistake in document["mistakes"]
        if not mistake["harmless"]
    ]
    if rows:
        columns = ["mistake", "bytes", "ratio", "what", "source"]
        table("Validation bytes by known mistakes", columns, rows, right=(1, 2))
    harmless = [mistake["name"] for mistake in document["mistakes"] if mistake["harmless"]]
    if harmless:
        note(f"Without effect here: {', '.join(harmless)}")
