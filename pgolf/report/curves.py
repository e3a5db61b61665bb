"""The curves of training runs: read from their events, set side by side, drawn."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgolf.core.errors import ConfigError, InputError, SetupError
from pgolf.core.files import make_dir, parse_json, read_bytes, write_bytes

MOST_BYTES = 1 << 30
AXES = {"step": "optimizer steps", "tokens": "training tokens", "seconds": "seconds on the training clock"}
"""What can stand on the x axis, and its label."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which people who see few colours can tell apart; yellow is left out, it is too light."""
DASHES = ("-", "--", ":", "-.")
"""How lines beyond the last colour differ from the first ones."""


@dataclass
class Curves:
    """What one run's events say. Rows are (step, seconds, value): of `loss` nats per token, of `bpb` of validation."""

    place: Path
    label: str
    config: dict[str, Any] = field(default_factory=dict)
    loss: list[tuple[int, float, float]] = field(default_factory=list)
    bpb: list[tuple[int, float, float]] = field(default_factory=list)
    averaged: list[tuple[int, float, float]] = field(default_factory=list)
    """BPB of averaged weights, which is what such a run exports."""
    end: dict[str, Any] = field(default_factory=dict)
    """The event that ended it; empty if none has."""

    def at(self, row: tuple[int, float, float], x: str) -> float:
        """Where a row stands on an axis."""
        return row[0] * self.batch_tokens if x == "tokens" else row[("step", "seconds").index(x)]

    @property
    def batch_tokens(self) -> int:
        """Tokens per step. InputError if the events are too old to say."""
        try:
            return int(self.config["train"]["batch_tokens"])
        except KeyError:
            raise InputError("its events do not say how many tokens a step has", str(self.place)) from None

    def kind(self) -> str:
        """Equal for runs that differ in nothing but their seed."""
        values = {name: dict(section) for name, section in self.config.items()}
        values.get("train", {}).pop("seed", None)
        return json.dumps(values, sort_keys=True) if values else str(self.place)

    def summary(self) -> dict[str, Any]:
        """The run in a few numbers, None for what it has not."""
        vals = self.averaged or self.bpb
        return {
            "run": str(self.place),
            "label": self.label,
            "seed": self.config.get("train", {}).get("seed"),
            "steps": self.loss[-1][0] if self.loss else 0,
            "tokens": self.loss[-1][0] * self.batch_tokens if self.loss and self.config else None,
            "seconds": self.loss[-1][1] if self.loss else 0.0,
            "points": len(self.loss),
            "last_loss": self.loss[-1][2] if self.loss else None,
            "lowest_loss": min((row[2] for row in self.loss), default=None),
            "validations": len(self.bpb),
            "last_bpb": vals[-1][2] if vals else None,
            "lowest_bpb": min((row[2] for row in (*self.bpb, *self.averaged)), default=None),
            "ended": self.end.get("reason") if self.end else None,
            "notes": list(self.end.get("notes", [])),
        }


def events_file(run: Path) -> Path:
    """The events of a directory of `pgolf train` or `pgolf run`. InputError if there are none."""
    places = (run, run / "events.jsonl", run / "train" / "events.jsonl")
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise InputError("there is no events.jsonl, neither here nor in train/", str(run), "name a run's directory")
    return found


def read_curves(run: Path, label: str = "") -> Curves:
    """A run's curves. Where a killed run went back to a checkpoint, what it did beyond is replaced by what it did then.

    InputError if it has no events, or the file is none of pgolf's.
    """
    path = events_file(run)
    curves = Curves(run, label or run_name(run))
    series = {"step": (curves.loss, "loss"), "val": (curves.bpb, "val_bpb"), "average": (curves.averaged, "val_bpb")}
    lines = read_bytes(path, MOST_BYTES).decode(errors="replace").split("\n")
    if '"pgolf.events/1"' not in lines[0]:
        raise InputError("the first line is not that of a file of pgolf.events/1", str(path))
    for number, line in enumerate(lines, 1):
        start = line.rfind('{"event"')  # the next process may write behind the half line of a killed one
        if start < 0:
            continue
        try:
            event = parse_json(line[start:], f"{path}, line {number}")
        except InputError:
            continue
        try:
            if event["event"] in series:
                rows, key = series[event["event"]]
                for old, _ in series.values():
                    while old and (old[-1][0] > event["step"] or (old is rows and old[-1][0] == event["step"])):
                        old.pop()
                rows.append((int(event["step"]), float(event["elapsed_s"]), float(event[key])))
                curves.end = {}
            elif event["event"] == "start":
                curves.config = dict(event.get("config", {}))
            elif event["event"] in ("stop", "failed"):
                curves.end = event
        except (KeyError, TypeError, ValueError):
            raise InputError("this is not an event of pgolf's", f"{path}, line {number}") from None
    if not curves.loss and not curves.bpb:
        raise InputError("nothing has been trained there yet", str(path))
    return curves


def run_name(run: Path) -> str:
    """What a run is called: the name of its directory, for `train` below a run's that one's."""
    place = run.resolve()
    place = place.parent if place.suffix == ".jsonl" else place
    return place.parent.name if place.name == "train" else place.name


def read_runs(runs: Sequence[Path]) -> list[Curves]:
    """The curves of several runs, by name, or by path where names are equal."""
    names = [run_name(run) for run in runs]
    return [read_curves(run, name if names.count(name) == 1 else str(run)) for run, name in zip(runs, names)]


def smoothed(values: Sequence[float], span: int) -> list[float]:
    """The exponential mean over about `span` points, without the pull of an arbitrary start."""
    keep, total, weight, found = 1 - 2 / (span + 1), 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        found.append(total / weight)
    return found


@dataclass(frozen=True)
class Line:
    """A curve to draw, with what is drawn faintly behind it: `low` and `high`, or, for a single run, `raw`."""

    label: str
    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]
    raw: list[float]


def lines_of(runs: Sequence[Curves], which: str, x: str, span: int, group: bool) -> list[Line | None]:
    """One line per run, or per group of runs that differ in their seed: their mean, between least and most, where all
    of them have been. `which` is loss, bpb or averaged; only loss is smoothed; None where there is nothing to draw.
    """
    import numpy as np

    groups: dict[str, list[Curves]] = {}
    for index, run in enumerate(runs):
        groups.setdefault(run.kind() if group else str(index), []).append(run)
    found: list[Line | None] = []
    for members in groups.values():
        series = []
        for run in members:
            rows = getattr(run, which)
            raw = [row[2] for row in rows]
            values = smoothed(raw, span) if which == "loss" and span > 1 else raw
            series.append(([run.at(row, x) for row in rows], values, raw))
        if not all(places for places, _, _ in series):
            found.append(None)
        elif len(members) == 1:
            places, values, raw = series[0]
            found.append(Line(members[0].label, places, values, [], [], raw if values is not raw else []))
        else:
            first, last = max(places[0] for places, _, _ in series), min(places[-1] for places, _, _ in series)
            grid = sorted({place for places, _, _ in series for place in places if first <= place <= last} or {last})
            table = np.stack([np.interp(grid, places, values) for places, values, _ in series])
            mean, low, high = (list(map(float, values)) for values in (table.mean(0), table.min(0), table.max(0)))
            found.append(Line(common_name([run.label for run in members]), grid, mean, low, high, []))
    return found


def common_name(labels: Sequence[str]) -> str:
    """What a group is called: `a, 2 seeds` for a_s1 and a_s2, else by the first of them."""
    stems = {re.sub(r"[\W_]*(seed|s)?[\W_]*\d+$", "", label) for label in labels}
    return f"{stems.pop() if len(stems) == 1 else labels[0]}, {len(labels)} seeds"


def picture_files(outs: Sequence[Path]) -> list[Path]:
    """The files to write: as named, PNG and SVG for a name without ending. ConfigError for another ending."""
    found: list[Path] = []
    for out in outs:
        if out.suffix.lower() not in ("", ".png", ".svg"):
            raise ConfigError(f"{out} is neither .png nor .svg", "--out", "without an ending both are written")
        found += [out] if out.suffix else [out.with_suffix(".png"), out.with_suffix(".svg")]
    return list(dict.fromkeys(found))


def highest(lines: Sequence[Line]) -> float:
    """Where a panel ends above: at what the lines reach after their first twentieth, which else would hide the rest."""
    tops = []
    for line in lines:
        late = line.x[0] + 0.05 * (line.x[-1] - line.x[0])
        tops += [value for place, value in zip(line.x, line.high or line.raw or line.y) if place >= late]
    return max(tops)


def draw(runs: Sequence[Curves], files: Sequence[Path], x: str = "step", span: int = 1, group: bool = False) -> None:
    """Write pictures of training loss and validation BPB, one above the other. SetupError without matplotlib."""
    import io

    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError:
        fix = "pip install 'pgolf[plot]', or leave out --out"
        raise SetupError("drawing needs matplotlib, which is not installed", "--out", fix) from None
    losses, bpbs, averaged = (lines_of(runs, which, x, span, group) for which in ("loss", "bpb", "averaged"))
    panels = [(f"training loss, nats per token{f' (mean of about {span} points)' if span > 1 else ''}", losses)]
    if any(bpbs):
        panels.append(("validation, bits per byte", bpbs))
    figure = Figure(figsize=(8, 3.6 * len(panels) + 0.4), layout="constrained")
    axes: Any = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, lines) in zip(axes, panels):
        points = lines is bpbs
        for index, line in enumerate(lines):
            if line is None:
                continue
            style = {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}
            few = points or len(line.x) < 3
            axis.plot(
                line.x, line.y, label=line.label, linewidth=1.6, marker="o" if few else "", markersize=3.5, **style
            )
            if line.raw:
                axis.plot(line.x, line.raw, color=style["color"], alpha=0.25, linewidth=0.8, zorder=1)
            if line.low:
                axis.fill_between(line.x, line.low, line.high, color=style["color"], alpha=0.2, linewidth=0, zorder=1)
            if points and (star := averaged[index]):
                axis.plot(star.x[-1:], star.y[-1:], marker="*", markersize=12, markeredgecolor="white", **style)
        drawn = [line for line in lines if line is not None]
        bottom, top = min(min(line.low or line.raw or line.y) for line in drawn), highest(drawn)
        room = 0.06 * max(top - bottom, 1e-3)
        axis.set_ylim(bottom - room, top + room)
        axis.set_title(title, loc="left", fontsize=10)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel(AXES[x] + (" · ★ averaged weights" if any(averaged) else ""))
    axes[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=9)
    for file in files:
        picture = io.BytesIO()
        figure.savefig(picture, format=file.suffix.lower().lstrip("."), dpi=150)
        make_dir(file.parent)
        write_bytes(file, picture.getvalue())
