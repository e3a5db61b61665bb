"""What the rows of a table say together: Pareto fronts, means over seeds. Loaded without torch."""

import json
import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

from pgolf.sweep.grid import SEED
from pgolf.sweep.table import Row

AXES = {
    "quantize": ("total_bytes", "bpb"),
    "compress": ("total_bytes", "seconds"),
    "eval": ("seconds", "bpb"),
    "ttt": ("seconds", "bpb"),
}
"""The two figures of each sweep that are both better when smaller."""
NAMES = {"total_bytes": "bytes", "bpb": "BPB", "seconds": "seconds"}


@dataclass(frozen=True)
class Group:
    """Rows that can be compared: of one sweep over the same inputs, scored on the same tokens."""

    sweep: str
    inputs: dict[str, str]
    scored_on: dict[str, Any]
    rows: list[Row]

    @property
    def done(self) -> list[Row]:
        """Rows of finished cells."""
        return [row for row in self.rows if row["state"] == "done"]

    @property
    def failed(self) -> list[Row]:
        """Rows of failed cells."""
        return [row for row in self.rows if row["state"] == "failed"]


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A configuration over its seeds: mean, standard deviation (n - 1) and standard error of BPB; the last two are None
    for a single run. `behind` is the difference to the best mean, `behind_se` its standard error (Welch: the two
    squared standard errors added).
    """

    settings: dict[str, Any]
    rows: list[Row]
    mean: float
    deviation: float | None
    error: float | None
    behind: float = 0.0
    behind_se: float | None = None

    @property
    def seeds(self) -> list[Any]:
        """The seeds that the grid names."""
        return [row["settings"][SEED] for row in self.rows if SEED in row["settings"]]

    @property
    def seconds(self) -> float:
        """Mean seconds of a run."""
        return statistics.fmean(figure(row, "seconds") for row in self.rows)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "settings": self.settings,
            "n": len(self.rows),
            "seeds": self.seeds,
            "mean_bpb": self.mean,
            "std_bpb": self.deviation,
            "se_bpb": self.error,
            "behind_bpb": self.behind,
            "behind_se_bpb": self.behind_se,
            "mean_seconds": self.seconds,
            "notes": list(dict.fromkeys(text for row in self.rows for text in row["notes"])),
            "cells": [row["cell"] for row in self.rows],
        }


def groups(rows: list[Row]) -> list[Group]:
    """Rows by what they can be compared with, in the order of their first ones."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[json.dumps([row["sweep"], row["inputs"], row["scored_on"]], sort_keys=True)].append(row)
    return [Group(some[0]["sweep"], some[0]["inputs"], some[0]["scored_on"], some) for some in found.values()]


def figure(row: Row, name: str) -> float:
    """A figure of a finished row; `seconds` are those of its stages, what cells have in common counted in each."""
    if name == "seconds":
        return math.fsum(value for key, value in row["seconds"].items() if key != "cell")
    return float(row["figures"][name])


def front(points: list[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats, by the first coordinate: no other is at most as large in both
    coordinates and smaller in one.
    """
    chosen: list[int] = []
    best = math.inf
    for index in sorted(range(len(points)), key=lambda index: points[index]):
        equal = bool(chosen) and points[chosen[-1]] == points[index]
        if points[index][1] < best or equal:
            chosen.append(index)
            best = points[index][1]
    return chosen


def front_rows(group: Group) -> list[Row]:
    """The rows of a group's Pareto front, by the first figure; none for training."""
    if group.sweep == "train":
        return []
    across, up = AXES[group.sweep]
    return [group.done[index] for index in front([(figure(row, across), figure(row, up)) for row in group.done])]


def means(group: Group) -> list[Mean]:
    """The configurations of a training sweep, the best mean first."""
    by_settings: dict[str, list[Row]] = defaultdict(list)
    for row in group.done:
        by_settings[json.dumps(without_seed(row), sort_keys=True)].append(row)
    found = sorted(map(mean_of, by_settings.values()), key=lambda mean: mean.mean)
    return [
        replace(
            mean,
            behind=mean.mean - found[0].mean,
            behind_se=None
            if mean is found[0] or mean.error is None or found[0].error is None
            else math.hypot(mean.error, found[0].error),
        )
        for mean in found
    ]


def mean_of(rows: list[Row]) -> Mean:
    """One configuration's runs."""
    scores = [figure(row, "bpb") for row in rows]
    deviation = statistics.stdev(scores) if len(scores) > 1 else None
    error = None if deviation is None else deviation / math.sqrt(len(scores))
    mean = statistics.fmean(scores)
    return Mean(settings=without_seed(rows[0]), rows=rows, mean=mean, deviation=deviation, error=error)


def described(row: Row) -> dict[str, Any]:
    """A row's settings, the preset among them."""
    return {**({"preset": row["preset"]} if row["preset"] else {}), **row["settings"]}


def without_seed(row: Row) -> dict[str, Any]:
    """The same without the seed."""
    return {key: value for key, value in described(row).items() if key != SEED}


def short_names(keys: list[str]) -> dict[str, str]:
    """Dotted keys by as many of their last words as it takes to tell them apart; method and kind never stand alone."""
    names = {}
    for key in keys:
        words = key.split(".")
        least = 2 if words[-1] in ("method", "kind") else 1
        tails = [".".join(words[-count:]) for count in range(least, len(words) + 1)]
        alone = (tail for tail in tails if sum(f".{other}".endswith(f".{tail}") for other in keys) == 1)
        names[key] = next(alone, key)
    return names


def varying(settings: list[dict[str, Any]]) -> list[str]:
    """Keys that do not have one value throughout, in the order they come in; all keys if there is a single entry."""
    keys = list(dict.fromkeys(key for entry in settings for key in entry))
    return [key for key in keys if len(settings) == 1 or len({repr(entry.get(key)) for entry in settings}) > 1]


def outcome(row: Row) -> str:
    """A row's result in a few words."""
    if row["state"] == "failed":
        return f"failed: {row['error']['what']}"
    figures = row["figures"]
    size = [f"{figures['total_bytes']:,} bytes"] if "total_bytes" in figures else []
    score = [f"BPB {figures['bpb']:.5f}"] if "bpb" in figures else []
    return ", ".join([*size, *score]) + f" in {seconds_text(figure(row, 'seconds'))} s"


def seconds_text(seconds: float) -> str:
    """Seconds, few of them with another decimal."""
    return f"{seconds:,.1f}" if seconds >= 10 else f"{seconds:.2f}"


def where_scored(group: Group) -> str:
    """What a group's BPB was measured on, in a few words."""
    facts = group.scored_on
    if group.sweep == "train":
        return "BPB on validation, as training scores it (train.val_max_tokens)"
    if not facts:
        return ""
    if facts["split"] == "val":
        return f"BPB on {facts['targets']:,} targets of VALIDATION: do not choose an evaluator's settings by it"
    seen = {True: ", which training may have read", False: ", not read in training", None: ""}[
        facts["seen_in_training"]
    ]
    return f"BPB on the last {facts['documents']:,} training documents ({facts['targets']:,} targets){seen}"
