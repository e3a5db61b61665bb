"""What targets cost by their place in the document and by the document's length: tables and pictures."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.core.errors import InputError, SetupError
from pgolf.core.files import make_dir, write_bytes
from pgolf.report.curves import COLOURS, DASHES
from pgolf.stages.eval_positions import Positions, load_positions

PANELS = {"position": "place in the document, tokens", "length": "length of the document, tokens"}
"""What is drawn over, and its label."""


@dataclass(frozen=True)
class Bin:
    """Targets from `low` to below `high` by what is drawn over; `se` is the standard error over documents."""

    low: int
    high: int
    tokens: int
    bpb: float
    se: float

    def document(self) -> dict[str, float | int]:
        """For JSON."""
        return vars(self)


def edges(most: int) -> list[int]:
    """Bounds of bins up to `most`: 1, 2, 4, 8 and so on, for places and lengths that begin at 1."""
    return [1 << power for power in range(most.bit_length() + 1)]


def binned(found: Positions, over: str) -> list[Bin]:
    """BPB by bins, empty ones left out. InputError without documents, or where no target of a bin is charged."""
    if not len(found.documents):
        raise InputError("no document begins among the scored targets", "positions", "score more of the stream")
    lengths = np.diff(np.append(found.documents, len(found.nats)))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    first = int(found.documents[0])
    value = np.arange(len(owner)) + first - found.documents[owner] + 1 if over == "position" else lengths[owner]
    bounds, bins = edges(int(value.max())), list[Bin]()
    nats, size = found.nats[first:].astype(np.float64), found.bytes[first:].astype(np.float64)
    for low, high in zip(bounds, bounds[1:]):
        inside = (low <= value) & (value < high)
        charged = float(size[inside].sum())
        if not charged:
            continue
        per_document = [np.bincount(owner[inside], x[inside], minlength=len(lengths)) for x in (nats, size)]
        bits = float(nats[inside].sum()) / math.log(2) / charged
        rest = per_document[0] / math.log(2) - bits * per_document[1]
        count = len(np.unique(owner[inside]))
        error = math.sqrt(float((rest**2).sum()) * count / (count - 1)) / charged if count > 1 else 0.0
        bins.append(Bin(low, high, int(inside.sum()), bits, error))
    return bins


def read_files(paths: Sequence[Path]) -> dict[str, Positions]:
    """The files by what sets them apart: their names, or their paths where names are equal."""
    names = [path.name for path in paths]
    return {(name if names.count(name) == 1 else str(path)): load_positions(path) for name, path in zip(names, paths)}


def summary(found: dict[str, Positions]) -> list[dict[str, Any]]:
    """For JSON: every file with its bins."""
    return [
        {
            "file": name,
            "targets": len(positions.nats),
            "documents": len(positions.documents),
            "method": positions.facts.get("method", {}).get("name"),
            **{over: [one.document() for one in binned(positions, over)] for over in PANELS},
        }
        for name, positions in found.items()
    ]


def draw_positions(found: dict[str, Positions], files: Sequence[Path]) -> None:
    """Write pictures of BPB along the document and by its length, side by side. SetupError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        fix = "pip install 'pgolf[plot]', or leave out --out"
        raise SetupError("drawing needs matplotlib, which is not installed", "--out", fix) from None
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes: Any = figure.subplots(1, len(PANELS))
    for axis, (over, label) in zip(axes, PANELS.items()):
        for index, (name, positions) in enumerate(found.items()):
            bins = binned(positions, over)
            style = {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}
            middles, values = [math.sqrt(one.low * one.high) for one in bins], [one.bpb for one in bins]
            axis.errorbar(middles, values, [one.se for one in bins], label=name, marker="o", markersize=3.5, **style)
        axis.set_xscale("log", base=2)
        axis.set_xlabel(label)
        axis.set_title("bits per byte", loc="left", fontsize=10)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(3, len(names)), frameon=False, fontsize=9)
    for file in files:
        picture = io.BytesIO()
        figure.savefig(picture, format=file.suffix.lower().lstrip("."), dpi=150)
        make_dir(file.parent)
        write_bytes(file, picture.getvalue())
