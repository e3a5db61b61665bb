"""A submission folder by what it says: sizes, seeds, logs, and figures that must fit together (spec: submission 5)."""

import math
import re
import statistics
from pathlib import Path
from typing import Any

from pgolf.accounting import CAP_BYTES
from pgolf.audit.triple import TEXT_BYTES, judge_bytes
from pgolf.core.errors import InputError
from pgolf.core.files import read_json
from pgolf.submission.audit_size import folder_size

MEAN, RATIO = 5e-6, 1e-4
"""How far val_bpb may be from the mean of its seeds, and a seed's ratio of loss to BPB from the others'."""
LOG = re.compile(r"train_seed(-?\d+)\.log")


def number(value: Any) -> float | None:
    """A finite number, or nothing."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def audit_submission(folder: Path) -> dict[str, Any]:
    """Everything that can be said without running it: findings by level (violation, warning, note)."""
    path = folder / "submission.json"
    said = read_json(path)
    if not isinstance(said, dict):
        raise InputError("submission.json is not an object", str(path))
    findings: list[dict[str, str]] = []

    def add(level: str, what: str) -> None:
        findings.append({"level": level, "what": what})

    results = said.get("seed_results")
    seeds: dict[str, Any] = results if isinstance(results, dict) else {}
    check_mean(said, seeds, add)
    check_ratios(said, seeds, add)
    for seed, result in seeds.items():
        size = number(result.get("artifact_bytes")) if isinstance(result, dict) else None
        if size is not None and size > CAP_BYTES:
            add("violation", f"seed {seed}: {size:,.0f} bytes, over the cap of {CAP_BYTES:,}")
    logged = {match.group(1) for file in folder.iterdir() if (match := LOG.fullmatch(file.name))}
    for seed in sorted(set(seeds) - logged):
        add("warning", f"seed {seed} has no log (train_seed{seed}.log)")
    if len(seeds) < 3:
        add("warning", f"{len(seeds)} seed{'s' * (len(seeds) != 1)}; a record needs three")
    check_size(folder, add)
    check_audit(said.get("audit"), add)
    violated = any(finding["level"] == "violation" for finding in findings)
    return {
        "schema": "pgolf.submission-audit/1",
        "folder": str(folder),
        "verdict": "violated" if violated else "passed",
        "findings": findings,
    }


def check_mean(said: dict[str, Any], seeds: dict[str, Any], add: Any) -> None:
    """val_bpb is the mean of the seeds'."""
    claimed = number(said.get("val_bpb"))
    each = [number(result.get("val_bpb")) for result in seeds.values() if isinstance(result, dict)]
    known = [value for value in each if value is not None]
    if claimed is None:
        add("violation", "val_bpb is missing or no number")
    elif known and abs(statistics.fmean(known) - claimed) > MEAN:
        add("violation", f"val_bpb {claimed} is not the mean of its seeds, {statistics.fmean(known):.6f}")


def check_ratios(said: dict[str, Any], seeds: dict[str, Any], add: Any) -> None:
    """Loss over BPB is the same bytes per token for every seed, and those of the text where the tokens are known."""
    rows = {"mean": said, **{seed: result for seed, result in seeds.items() if isinstance(result, dict)}}
    ratios = {}
    for name, row in rows.items():
        loss, bpb = number(row.get("val_loss")), number(row.get("val_bpb"))
        if loss and bpb:
            ratios[name] = loss / (math.log(2) * bpb)
    if not ratios:
        add("note", "no val_loss: bytes per token cannot be told")
        return
    first = next(iter(ratios.values()))
    for name, ratio in ratios.items():
        if abs(ratio / first - 1) > RATIO:
            add("violation", f"{name}: {ratio:.6f} bytes per token, {first:.6f} elsewhere")
    tokens = number(said.get("val_tokens"))
    if tokens is None:
        add("note", f"{first:.6f} bytes per token; without val_tokens they cannot be held against the text's bytes")
        return
    found = judge_bytes(first * tokens, number(said.get("val_bytes")) or TEXT_BYTES, RATIO)
    names = [signature["name"] for signature in found["signatures"]]
    if "sound" not in names:
        add(
            "violation", f"{found['bytes']:,} bytes are implied, {found['ratio']:.4f} of the text's: {', '.join(names)}"
        )


def check_size(folder: Path, add: Any) -> None:
    """Files as they are uploaded fit the cap."""
    size = folder_size(folder)
    line = f"{size['total_bytes']:,} bytes of {size['cap_bytes']:,} as uploaded"
    add("violation" if size["headroom_bytes"] < 0 else "note", line)


def check_audit(audit: Any, add: Any) -> None:
    """What the score's own audit says."""
    if not isinstance(audit, dict):
        add("warning", "the score is unaudited")
    elif audit.get("verdict") == "violated":
        add("violation", f"the score's audit {audit.get('id')} proved a rule broken: {audit.get('violated')}")
    else:
        add("note", f"audit {audit.get('id')} at level {audit.get('level')}: {audit.get('verdict')}")
