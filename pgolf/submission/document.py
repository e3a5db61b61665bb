"""submission.json: the challenge's fields, exact sizes, and how sure the claim is (spec: submission 2, 3, 5)."""

import json
import math
import statistics
from functools import cache
from pathlib import Path
from typing import Any

from pgolf.accounting import Size
from pgolf.catalog import selector
from pgolf.config.describe import slot_keys, technique_rows
from pgolf.config.run import RunConfig
from pgolf.config.tree import flatten, to_values
from pgolf.core.errors import ConfigError
from pgolf.core.files import read_bytes
from pgolf.stages.calibrate import reads_training
from pgolf.stages.manifest import package_versions
from pgolf.submission.compare import fits_text, published, published_entry
from pgolf.submission.entries import Entry
from pgolf.submission.significance import Sample, compared, load_rules, sample_of

SUBMISSION_SCHEMA = "pgolf.submission/2"
SCHEMA_FILE = Path(__file__).with_name("submission.schema.json")
LIMIT_S = 600.0
"""Seconds the challenge gives to training, and again to evaluation."""
RECORD_SEEDS = 3
MACHINE = ("H100", 8)
"""The challenge's GPU, and how many."""


@cache
def submission_schema() -> dict[str, Any]:
    """The JSON Schema of submission.json, of any tool's; what pgolf itself writes must have more."""
    found: dict[str, Any] = json.loads(read_bytes(SCHEMA_FILE, 1 << 20))
    return found


def schema_errors(document: Any) -> list[str]:
    """What in a submission.json is not as the schema has it, a line each, by path."""
    from jsonschema import Draft202012Validator

    errors = Draft202012Validator(submission_schema()).iter_errors(document)
    return sorted(f"{'.'.join(map(str, error.absolute_path)) or 'the document'}: {error.message}" for error in errors)


def mean_or_none(values: list[float | None]) -> float | None:
    """The mean, or nothing where one is not known."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def training_seconds(entry: Entry, config: RunConfig) -> float | None:
    """Seconds on training data: the budget's clock, calibration unless the model makes up its text, and tuning. None
    where one of them is not known.
    """
    trained = entry.train.get("train_seconds")
    calibration, turn = calibration_seconds(entry), entry.quantize.get("sequential", {}).get("seconds", 0.0)
    if not reads_training(config.quant):
        calibration, turn = 0.0, 0.0
    if trained is None or calibration is None:
        return None
    return float(trained) + calibration + float(turn) + float(entry.quantize.get("tuned", {}).get("seconds", 0.0))


def calibration_seconds(entry: Entry) -> float | None:
    """Seconds that collecting the calibration took, also if that was for another quantized model; None where nothing
    tells.
    """
    made = entry.quantize
    usual = None if made.get("hessians_cached", not made) else made.get("seconds", {}).get("hessians", 0.0)
    found = made.get("calibration_seconds", usual)
    return None if found is None else float(found)


def seed_result(entry: Entry, code_bytes: int) -> dict[str, Any]:
    """One row of `seed_results`."""
    steps, seconds = entry.train.get("steps"), entry.train.get("train_seconds")
    return {
        "val_bpb": entry.score["score"]["bpb"],
        "val_loss": entry.score["score"]["val_loss"],
        "pre_quant_val_bpb": entry.bpb_of_form("float"),
        "post_quant_val_bpb": entry.bpb_of_form("quantized"),
        "artifact_bytes": entry.artifact.stat().st_size + code_bytes,
        "steps": steps,
        "step_avg_ms": 1000 * seconds / steps if steps and seconds is not None else None,
        "train_time_s": seconds,
        "eval_time_s": entry.score["seconds"]["score"],
    }


def hardware(entry: Entry) -> str:
    """The machine in words, as far as the score tells."""
    facts, ranks = entry.score.get("hardware") or {}, int(entry.score.get("world_size", 1))
    if "gpu" in facts:
        return f"{ranks}x{facts['gpu']}"
    return f"CPU, {facts.get('cpus', '?')} cores ({facts.get('system', '?')} {facts.get('machine', '?')})"


def on_challenge_machine(entry: Entry) -> bool:
    """Whether training and scoring ran on eight H100."""
    gpu, ranks = str((entry.score.get("hardware") or {}).get("gpu", "")), MACHINE[1]
    return MACHINE[0] in gpu and entry.score.get("world_size") == ranks == entry.train.get("world_size")


def compliance(entries: list[Entry], size: Size, config: RunConfig) -> dict[str, bool]:
    """The conditions that submissions state, each as it was found; times are those of the machine at hand. No stage of
    pgolf trains on validation data before it is scored, so that no_pre_quant_ttt and score_first_ttt always hold.
    """
    method = getattr(config, config.package.claim)
    chosen = flatten(to_values(method))
    trained = [training_seconds(entry, config) for entry in entries]
    clocks = [entry.score.get("clock", {}).get("kept", entry.score["seconds"]["score"] <= LIMIT_S) for entry in entries]
    return {
        "train_under_600s": all(seconds is not None and seconds <= LIMIT_S for seconds in trained),
        "artifact_under_16mb": size.headroom_bytes >= 0 and size.cap_bytes <= 16_000_000,
        "eval_under_600s": all(clocks),
        "no_slot": chosen.get("slot.kind") == "none",
        "no_pre_quant_ttt": True,
        "no_etlb": chosen.get("bias.kind") == "none",
        "no_ngram_cache": chosen.get("cache.kind") == "none",
        "score_first_ttt": True,
        "three_seeds": len(entries) >= RECORD_SEEDS,
        "challenge_hardware": all(map(on_challenge_machine, entries)),
    }


def used_techniques(config: RunConfig) -> list[dict[str, str]]:
    """The catalog's rows of what a configuration uses, with whether the naive baseline does as well."""
    scored, values = config.package.claim, flatten(to_values(config))
    keys = {path: f"{path}.{selector(slot)}" for slot, path in slot_keys(config).items()}
    plain, rows = flatten(to_values(RunConfig())), []
    for row in technique_rows():
        section, key = row["key"].partition(".")[0], keys.get(row["key"])
        other = section in ("eval", "ttt") and section != scored
        if key is None or other or row["name"] == "none" or values.get(key) != row["name"]:
            continue
        rows.append({**row, "baseline": "yes" if plain.get(key) == row["name"] else ""})
    return rows


def attribution(rows: list[dict[str, str]]) -> dict[str, str]:
    """Technique -> where it comes from."""
    return {f"{row['key']} {row['name']}": row["source"] for row in rows if row["source"]}


def technique_summary(rows: list[dict[str, str]]) -> str:
    """What is not as in the naive baseline, in a line."""
    words = [f"{row['key'].rpartition('.')[2]} {row['name']}" for row in rows if not row["baseline"]]
    return ", ".join(words) or "naive baseline"


def reference(against: str) -> dict[str, Any]:
    """The published score to compare with: by number or preset, or the best merged one. ConfigError if unknown."""
    if not against:
        return min((row for row in published() if row["status"] == "merged"), key=lambda row: float(row["bpb"]))
    if (entry := published_entry(against)) is None:
        known = ", ".join(str(row["pr"]) for row in published()[:8])
        raise ConfigError(f"there is no published score {against!r}", "package.against", f"such as {known}")
    return entry


def comparison(entries: list[Entry], bytes_per_token: float, against: str) -> dict[str, Any] | None:
    """The claim beside a published score by both rules, the written and the practised; None where it was scored on
    another text than the challenge's.
    """
    if not all(fits_text(entry.score["score"]["bytes"]) for entry in entries):
        return None
    row = reference(against)
    old = Sample(row["bpb"], row.get("std", 0.0), row.get("seeds", 1), exact="std" not in row)
    found = compared(old, sample_of([e.score["score"]["bpb"] for e in entries]), bytes_per_token, load_rules(None))
    rules = {rule["name"]: rule for rule in found["rules"]}
    kept = {key: found[key] for key in ("delta_bpb", "delta_nats", "interval_bpb", "t", "df")}
    return {
        "pr": row["pr"],
        "val_bpb": row["bpb"],
        **kept,
        "p_strict": rules["written"]["p_found"],
        "p_progression": rules["practised"]["p_found"],
        "beats_strict": rules["written"]["beats"],
        "beats_progression": rules["practised"]["beats"],
    }


def submission_document(
    entries: list[Entry], size: Size, config: RunConfig, title: str, proofs: dict[str, Any]
) -> dict[str, Any]:
    """submission.json, without the list of files."""
    scores = [entry.score["score"] for entry in entries]
    losses, bpbs = [score["val_loss"] for score in scores], [score["bpb"] for score in scores]
    spread = len(entries) > 1
    options, used = config.package, used_techniques(config)
    results = {str(entry.seed): seed_result(entry, size.code_bytes) for entry in entries}
    sizes = [row["artifact_bytes"] for row in results.values()]
    trained = [training_seconds(entry, config) for entry in entries]
    per_token = scores[0]["bytes"] / scores[0]["tokens"]
    return {
        "schema": SUBMISSION_SCHEMA,
        "author": options.author,
        "github_id": options.github_id,
        "name": title,
        "blurb": options.blurb,
        "date": str(entries[0].score.get("date", ""))[:10],
        "track": options.track,
        "val_loss": statistics.fmean(losses),
        "val_bpb": statistics.fmean(bpbs),
        "val_loss_std": statistics.stdev(losses) if spread else None,
        "val_bpb_std": statistics.stdev(bpbs) if spread else None,
        "val_tokens": scores[0]["tokens"],
        "val_bytes": scores[0]["bytes"],
        "bytes_per_token": per_token,
        "seeds": [entry.seed for entry in entries],
        "seed_results": results,
        "bytes_total": size.total_bytes,
        "bytes_code": size.code_bytes,
        "bytes_model_max": size.artifact_bytes,
        "artifact_bytes_mean": math.ceil(statistics.fmean(sizes)),
        "artifact_bytes_max": max(sizes),
        "pre_quant_val_bpb": mean_or_none([row["pre_quant_val_bpb"] for row in results.values()]),
        "post_quant_val_bpb": mean_or_none([row["post_quant_val_bpb"] for row in results.values()]),
        "train_time_s_max": max((s for s in trained if s is not None), default=None),
        "eval_time_s_max": max(float(row["eval_time_s"]) for row in results.values()),
        **size.document(),
        "scored_by": entries[0].score["method"],
        "compliance": compliance(entries, size, config),
        "comparison": comparison(entries, per_token, options.against),
        "attribution": attribution(used),
        "technique_summary": technique_summary(used),
        "audit": entries[0].score.get("audit", "unaudited"),
        "proof": proofs,
        "versions": package_versions(),
        "hardware": hardware(entries[0]),
    }
