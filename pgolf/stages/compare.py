"""Every method on one model and the same targets: what each gains over plain evaluation, and at what cost."""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from pgolf.accounting import bpb_of
from pgolf.catalog import CATALOG
from pgolf.config.load import Resolved, resolve
from pgolf.core.dist import pick_device
from pgolf.core.errors import PgolfError
from pgolf.dataset import Dataset
from pgolf.report.console import Console
from pgolf.stages.eval_positions import document_starts
from pgolf.stages.evaluate import Scoring, score_split
from pgolf.stages.model_files import ModelFile

COMPARISON_SCHEMA = "pgolf.comparison/1"
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


def planned_ways() -> list[Way]:
    """Plain first, then every other evaluator, every adjuster on sliding windows, every test-time training; all other
    settings are those of the configuration.
    """
    bare = {key: f"eval.{key}=none" for key in SLOTS}
    ways = [Way(name, "eval", (f"eval.method={name}", *bare.values())) for name in CATALOG["EvalMethod"]]
    for key, slot in SLOTS.items():
        for kind in CATALOG[slot]:
            if kind != "none":
                sets = ("eval.method=sliding", *(bare | {key: f"eval.{key}={kind}"}).values())
                ways.append(Way(f"sliding + {key} {kind}", "eval", sets))
    return ways + [Way(f"ttt {name}", "ttt", (f"ttt.method={name}",)) for name in CATALOG["TttMethod"]]


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
    model: ModelFile, dataset: Dataset, resolved: Resolved, device: str, console: Console
) -> dict[str, Any]:
    """Score by every way, each on a fresh copy of the model; a way that this model cannot go has its error in the
    table.
    """
    rows, base, facts = list[dict[str, Any]](), None, dict[str, Any]()
    for way in planned_ways():
        console.line(f"eval: {way.label}")
        how = Scoring(began_s=time.monotonic())
        try:
            method = way.method(resolved)
            found, ledger = score_split(model, dataset, way.stage, method, pick_device(device, 0), console, how)
        except PgolfError as error:
            if way.label == "plain":
                raise
            rows.append({"label": way.label, "stage": way.stage, "error": error.what})
            continue
        base = ledger.losses if base is None else base
        starts = document_starts(ledger.tokens)
        if not facts:
            facts = {"targets": ledger.targets, "documents": len(starts), "partial": found["partial"]}
        comparable = len(base) == ledger.targets
        gain, gain_se = gain_over(base, ledger.losses, ledger.charges, starts) if comparable else (None, None)
        seconds = found["seconds"]
        rows.append(
            {
                "label": way.label,
                "stage": way.stage,
                "method": found["method"],
                "bpb": bpb_of(found["score"]),
                "gain": gain,
                "gain_se": gain_se,
                "seconds": round(seconds["total"] - seconds["load"], 3),
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
