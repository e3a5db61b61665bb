"""Every method on one model and the same targets: what each gains over plain evaluation, and at what cost."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pgolf.catalog import CATALOG
from pgolf.config.load import Resolved, resolve
from pgolf.core.dist import pick_device
from pgolf.core.errors import ConfigError, PgolfError, RuleError
from pgolf.dataset import Dataset
from pgolf.report.console import Console
from pgolf.stages.eval_positions import document_starts
from pgolf.stages.evaluate import Scoring, score_split
from pgolf.stages.model_files import ModelFile

COMPARISON_SCHEMA = "pgolf.comparison/2"
LIMITS = ("max_tokens", "budget_seconds")
"""Keys of eval that hold for test-time training too."""
SLOTS = {
    "slot": "EvalSlot",
    "temperature": "EvalTemperature",
    "bias": "EvalBias",
    "cache": "EvalCache",
    "mixer": "EvalMixer",
    "tilt": "EvalTilt",
}
"""Key of a method -> the slot of its adjusters."""


@dataclass(frozen=True)
class Way:
    """One way to score: its name in the table, eval or ttt, and how it differs from the configuration."""

    label: str
    stage: str
    sets: tuple[str, ...]

    def method(self, resolved: Resolved) -> Any:
        """The method with its settings. ConfigError where they do not go together."""
        found = resolve(stored=resolved.values, stored_name="the configuration", sets=list(self.sets))
        return getattr(found.config, self.stage)


@dataclass(frozen=True)
class Judged:
    """How each way is timed: by which clock, and how long the process had run before the first one, which counts for
    all as if it were scored alone.
    """

    clock: str = "strict"
    before_s: float = 0.0

    def scoring(self) -> Scoring:
        """For a way that begins now."""
        return Scoring(clock=self.clock, began_s=time.monotonic() - self.before_s)


def shared_limits(resolved: Resolved) -> tuple[str, ...]:
    """Settings by which test-time training scores as many targets in the same time as eval, unless --set says
    otherwise.
    """
    values = {f"ttt.{key}": getattr(resolved.config.eval, key) for key in LIMITS}
    return tuple(f"{key}={value}" for key, value in values.items() if not resolved.origins[key].startswith("--set"))


def planned_ways(resolved: Resolved, only: Sequence[str] = ()) -> list[Way]:
    """Plain first, then every other evaluator, every adjuster on sliding windows, every test-time training; all other
    settings are those of the configuration. With `only` plain and those. ConfigError for one that there is not.
    """
    ways = every_way(resolved)
    labels = [way.label for way in ways]
    if strange := [label for label in only if label not in labels]:
        raise ConfigError(f"there is no method {strange[0]!r} to compare", "", f"there are {', '.join(labels)}")
    return [way for way in ways if not only or way.label in ("plain", *only)]


def every_way(resolved: Resolved) -> list[Way]:
    """All of them."""
    bare = {key: f"eval.{key}=none" for key in SLOTS}
    ways = [Way(name, "eval", (f"eval.method={name}", *bare.values())) for name in CATALOG["EvalMethod"]]
    for key, slot in SLOTS.items():
        for kind in CATALOG[slot]:
            if kind != "none":
                sets = ("eval.method=sliding", *(bare | {key: f"eval.{key}={kind}"}).values())
                ways.append(Way(f"sliding + {key} {kind}", "eval", sets))
    limits = shared_limits(resolved)
    return ways + [Way(f"ttt {name}", "ttt", (f"ttt.method={name}", *limits)) for name in CATALOG["TttMethod"]]


def gain_over(
    base: np.ndarray, nats: np.ndarray, charges: np.ndarray, starts: np.ndarray
) -> tuple[float, float | None]:
    """What losses (T,) gain over others in bits per byte, and the standard error of that over documents, which begin
    at the targets `starts`: that of a ratio of sums over documents. None for fewer than two.
    """
    per_byte = 1 / (math.log(2) * float(charges.sum(dtype=np.int64)))
    saved = base.astype(np.float64) - nats
    gain = float(saved.sum()) * per_byte
    if len(starts) < 2:
        return gain, None
    rest = np.add.reduceat(saved - gain * math.log(2) * charges, starts)
    count = len(starts)
    return gain, float(np.sqrt((rest**2).sum() * count / (count - 1))) * per_byte


def compare_methods(
    model: ModelFile,
    dataset: Dataset,
    resolved: Resolved,
    device: str,
    console: Console,
    judged: Judged | None = None,
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Score by every way, or plain and some others, each on a fresh copy of the model; a way that this model cannot go
    has its error in the table.
    """
    rows, base, facts = list[dict[str, Any]](), None, dict[str, Any]()
    judged = judged or Judged()
    for way in planned_ways(resolved, only):
        console.line(f"eval: {way.label}")
        how = judged.scoring()
        try:
            method = way.method(resolved)
            found, ledger = score_split(model, dataset, way.stage, method, pick_device(device, 0), console, how)
        except PgolfError as error:
            if way.label == "plain":
                raise
            rows.append({"label": way.label, "stage": way.stage, "error": error.what})
            continue
        base = ledger.losses if base is None else base
        starts = document_starts(ledger.reveal(0, ledger.targets + 1))
        if not facts:
            facts = {"targets": ledger.targets, "documents": len(starts)}
            facts |= {name: found[name] for name in ("partial", "share")}
        comparable = len(base) == ledger.targets
        gain, gain_se = gain_over(base, ledger.losses, ledger.charges, starts) if comparable else (None, None)
        seconds, score = found["seconds"], found["score"]
        rows.append(
            {
                "label": way.label,
                "stage": way.stage,
                "method": found["method"],
                **{name: score[name] for name in ("bpb", "bpb_partial") if name in score},
                "targets": score["tokens"],
                "share": found["share"],
                "gain": gain,
                "gain_se": gain_se,
                "seconds": round(seconds["total"] - seconds["load"], 3),
                "clock": found["clock"],
                "adaptive": found["adaptive"],
                "document_independent": found["document_independent"],
            }
        )
    return {
        "schema": COMPARISON_SCHEMA,
        **facts,
        "model": model.describe(),
        "data": {"path": str(dataset.folder.resolve()), "sha256": dataset.fingerprint("val")},
        "rows": rows,
        "warnings": [*console.warnings],
    }


def judge_all(document: dict[str, Any]) -> None:
    """RuleError if a way took longer than its budget, by the clock that counts."""
    late = [row for row in document["rows"] if "clock" in row and not row["clock"]["kept"]]
    if late:
        clocks = [(row["label"], row["clock"]) for row in late]
        took = [f"{label} {clock[clock['judged'] + '_s']:.1f} s of {clock['budget_s']:g}" for label, clock in clocks]
        judged = clocks[0][1]["judged"]
        other = ", or judge by --clock core" if judged == "strict" else ""
        raise RuleError(
            f"by the {judged} clock {len(late)} of {len(document['rows'])} methods took longer than their budget: "
            + ", ".join(took),
            "eval.budget_seconds",
            f"the table is complete; for no limit set eval.budget_seconds=0{other}",
        )
