"""How a sweep's rows look: as tables, JSON and CSV."""

import csv
import io
from pathlib import Path
from typing import Any

from pgolf.cli.output import note, table
from pgolf.sweep.grid import SEED
from pgolf.sweep.summary import (
    AXES,
    NAMES,
    Group,
    described,
    figure,
    front_rows,
    groups,
    means,
    seconds_text,
    short_names,
    varying,
    where_scored,
)
from pgolf.sweep.table import Row


def shown(value: Any) -> str:
    """A setting in a table's cell."""
    return "-" if value is None else str(value)


def show_rows(rows: list[Row], out: Path) -> None:
    """Every group of comparable rows as a table with what follows from it."""
    parts = groups(rows)
    for group in parts:
        if len(parts) > 1:
            inputs = ", ".join(f"{name} {value[:12]}" for name, value in group.inputs.items())
            note(f"sweep {group.sweep}: {inputs}")
        if group.done:
            (show_means if group.sweep == "train" else show_cells)(group, out)
        for row in group.failed:
            settings = " ".join(f"{key}={value}" for key, value in row["settings"].items())
            note(f"failed: {settings or 'as configured'}: {row['error']['what']}")
        show_notes(group)


def show_notes(group: Group) -> None:
    """Remarks on finished cells, with the settings they hold for unless that is all of them."""
    for text in dict.fromkeys(text for row in group.done for text in row["notes"]):
        rows = [row for row in group.done if text in row["notes"]]
        names = [" ".join(f"{key}={value}" for key, value in row["settings"].items()) or row["cell"] for row in rows]
        note(f"note: {'' if len(rows) == len(group.done) else ', '.join(names) + ': '}{text}")


def show_cells(group: Group, out: Path) -> None:
    """Cells by their first figure, those of the Pareto front marked."""
    across, up = AXES[group.sweep]
    keys = varying([described(row) for row in group.done])
    best = [row["key"] for row in front_rows(group)]
    figures = [name for name in ("total_bytes", "bpb", "seconds") if name in (*AXES[group.sweep], "seconds")]
    rows = []
    for row in sorted(group.done, key=lambda row: (figure(row, across), figure(row, up))):
        texts = {"seconds": seconds_text(figure(row, "seconds"))}
        if "total_bytes" in figures:
            over = " OVER" if row["figures"]["headroom_bytes"] < 0 else ""
            texts["total_bytes"] = f"{row['figures']['total_bytes']:,}{over}"
        if "bpb" in figures:
            texts["bpb"] = f"{figure(row, 'bpb'):.5f}"
        settings = [shown(described(row).get(key)) for key in keys]
        rows.append(["*" if row["key"] in best else "", *settings, *(texts[name] for name in figures), row["cell"]])
    columns = ["", *short_names(keys).values(), *(NAMES[name] for name in figures), "cell"]
    table("", columns, rows, right=tuple(range(1, len(columns) - 1)))
    note(f"* Pareto front of {NAMES[across]} and {NAMES[up]}: {len(best)} of {len(rows)} cells")
    if text := where_scored(group):
        note(text)
    note(f"files: {out / Path(group.done[0]['folder']).parent}/CELL")


def show_means(group: Group, out: Path) -> None:
    """Configurations by their mean."""
    found = means(group)
    keys = varying([mean.settings for mean in found])
    rows = []
    for mean in found:
        error = "" if mean.behind_se is None else f" ± {mean.behind_se:.5f}"
        rows.append(
            [
                *(shown(mean.settings.get(key)) for key in keys),
                str(len(mean.rows)),
                f"{mean.mean:.5f}",
                *("-" if value is None else f"{value:.5f}" for value in (mean.deviation, mean.error)),
                "best" if mean is found[0] else f"+{mean.behind:.5f}{error}",
                seconds_text(mean.seconds),
            ]
        )
    columns = [*short_names(keys).values(), "n", "mean BPB", "std", "SE", "behind ± SE", "seconds"]
    table("", columns, rows, right=tuple(range(len(columns))))
    note(where_scored(group))
    if any(len(mean.rows) < 3 for mean in found):
        note("fewer than three runs say little about a spread; give more --seeds")
    best = min(group.done, key=lambda row: figure(row, "bpb"))
    seed = f", seed {best['settings'][SEED]}" if SEED in best["settings"] else ""
    note(f"best run: {out / best['folder']}{seed}, BPB {figure(best, 'bpb'):.5f}")


def group_document(group: Group) -> dict[str, Any]:
    """A group for JSON; its cells are named, their rows stand elsewhere."""
    document: dict[str, Any] = {"sweep": group.sweep, "inputs": group.inputs, "scored_on": group.scored_on}
    document["cells"] = [row["cell"] for row in group.rows]
    if group.sweep == "train":
        return document | {"configurations": [mean.document() for mean in means(group)]}
    return document | {"axes": list(AXES[group.sweep]), "front": [row["cell"] for row in front_rows(group)]}


def csv_text(rows: list[Row]) -> str:
    """Rows as CSV: what they are, settings, figures, seconds."""
    settings = list(dict.fromkeys(key for row in rows for key in row["settings"]))
    figures = list(dict.fromkeys(key for row in rows for key in row.get("figures", {})))
    stages = list(dict.fromkeys(key for row in rows for key in row.get("seconds", {})))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    named = [f"seconds.{key}" for key in stages]
    writer.writerow(["sweep", "cell", "state", "scored_on", "preset", *settings, *figures, *named, "error", "notes"])
    for row in rows:
        values = [row["settings"].get(key, "") for key in settings]
        values += [row.get("figures", {}).get(key, "") for key in figures]
        values += [row.get("seconds", {}).get(key, "") for key in stages]
        split = row["scored_on"].get("split", "")
        head = [row["sweep"], row["cell"], row["state"], split, row["preset"]]
        error, notes = row.get("error", {}).get("what", ""), "; ".join(row.get("notes", []))
        writer.writerow([*head, *values, error, notes])
    return text.getvalue()
