"""A submission folder, made by any tool, by what is in it and what it says: files, schema, sizes, units, figures that
must fit together, imports, network (spec: submission 1, 4, 5, 6, 8). Nothing is executed unless `run` is asked for.
"""

import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgolf.accounting import CAP_BYTES
from pgolf.audit.triple import TEXT_BYTES, judge_bytes
from pgolf.core.errors import ConfigError, InputError
from pgolf.core.files import read_bytes, read_json, sha256_file
from pgolf.dataset import Dataset
from pgolf.stages.model_files import MAX_ARTIFACT
from pgolf.submission.audit_size import MAX_TEXT, SCRIPT, folder_size
from pgolf.submission.document import LIMIT_S, RECORD_SEEDS, schema_errors
from pgolf.submission.imports import needed_packages

CHECK_SCHEMA = "pgolf.submission-audit/2"
MEAN, RATIO, LOGGED = 5e-6, 1e-4, 5e-4
"""How far val_bpb may be from the mean of its seeds, a seed's ratio of loss to BPB from the others', and a seed's BPB
from the last one in its log, which may be printed with four decimals."""
LOG = re.compile(r"train_seed(-?\d+)\.log")
METRIC = re.compile(rb"val_bpb: ?(\d+(?:\.\d+)?)")
STATED = re.compile(rb"Total submission size[^:\n]*: *([\d,]+) bytes")
DATED = re.compile(r"^(20\d\d-\d\d-\d\d)_")
REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
IMAGE = frozenset(("torch", "numpy", "sentencepiece"))
"""What the naive baseline imports, and the challenge's machine therefore has."""
WRITTEN_AS = {"flash_attn": "flash-attn", "flash_attn_interface": "flash-attn-3", "zstd": "zstandard", "PIL": "pillow"}
"""Module -> package, where the names differ by more than underscores."""
Add = Callable[[str, str], None]


def number(value: Any) -> float | None:
    """A finite number, or nothing."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else None


def check_submission(folder: Path) -> dict[str, Any]:
    """Everything that can be said without running it: findings by level (violation, warning, note). InputError where
    there is no readable submission.json.
    """
    path = folder / "submission.json"
    said = read_json(path)
    if not isinstance(said, dict):
        raise InputError("submission.json is not an object", str(path))
    findings: list[dict[str, str]] = []

    def add(level: str, what: str) -> None:
        findings.append({"level": level, "what": what})

    seeds = seed_rows(said)
    for error in schema_errors(said):
        add("violation", f"submission.json, {error}")
    check_files(folder, said, add)
    check_mean(said, seeds, add)
    check_ratios(said, seeds, add)
    check_seeds(folder, seeds, add)
    check_size(folder, add)
    check_script(folder, add)
    check_audit(said.get("audit"), add)
    return verdict(folder, findings)


def seed_rows(said: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Results by seed, those that have the form of one."""
    found = said.get("seed_results")
    return {seed: row for seed, row in found.items() if isinstance(row, dict)} if isinstance(found, dict) else {}


def verdict(folder: Path, findings: list[dict[str, str]]) -> dict[str, Any]:
    """The findings as a document."""
    violated = any(finding["level"] == "violation" for finding in findings)
    return {
        "schema": CHECK_SCHEMA,
        "folder": str(folder),
        "verdict": "violated" if violated else "passed",
        "findings": findings,
    }


def check_files(folder: Path, said: dict[str, Any], add: Add) -> None:
    """What must be there is, nothing leads out of the folder, and listed files are as they are listed."""
    for name, level in ((SCRIPT, "violation"), ("README.md", "violation"), ("requirements.txt", "warning")):
        if not (folder / name).is_file():
            add(level, f"there is no {name}")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            add("violation", f"{path.relative_to(folder)} is a link; a submission has only files")
    listed = said.get("files") if isinstance(said.get("files"), dict) else {}
    for name, facts in (listed or {}).items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            add("violation", f"submission.json lists {name}, which is not in the folder")
        elif isinstance(facts, dict) and facts.get("sha256") != sha256_file(path):
            add("violation", f"{name} is not the file that submission.json lists")
    dated, date = DATED.match(folder.resolve().name), str(said.get("date", ""))[:10]
    if dated and dated[1] != date:
        add("warning", f"the folder is of {dated[1]}, submission.json of {date or 'no date'}")


def check_mean(said: dict[str, Any], seeds: dict[str, Any], add: Add) -> None:
    """val_bpb is the mean of the seeds', and its spread theirs."""
    claimed = number(said.get("val_bpb"))
    known = [value for row in seeds.values() if (value := number(row.get("val_bpb"))) is not None]
    if claimed is None:
        add("violation", "val_bpb is missing or no number")
    elif known and abs(statistics.fmean(known) - claimed) > MEAN:
        add("violation", f"val_bpb {claimed} is not the mean of its seeds, {statistics.fmean(known):.6f}")
    spread = number(said.get("val_bpb_std"))
    if spread is not None and len(known) > 1 and abs(statistics.stdev(known) - spread) > MEAN:
        whole = abs(statistics.pstdev(known) - spread) <= MEAN
        what = "that of a population (n)" if whole else f"not {statistics.stdev(known):.6f}, that of its seeds (n - 1)"
        add("warning", f"val_bpb_std {spread} is {what}")


def check_ratios(said: dict[str, Any], seeds: dict[str, Any], add: Add) -> None:
    """Loss over BPB is the same bytes per token for every seed, and those of the text where the tokens are known."""
    rows = {"mean": said, **seeds}
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


def check_seeds(folder: Path, seeds: dict[str, Any], add: Add) -> None:
    """Every seed has a log that says the same, fits the cap, and kept to the times; a record needs three."""
    for seed, row in seeds.items():
        size = number(row.get("artifact_bytes"))
        if size is not None and size > CAP_BYTES:
            add("violation", f"seed {seed}: {size:,.0f} bytes, over the cap of {CAP_BYTES:,}")
        for key in ("train_time_s", "eval_time_s"):
            seconds = number(row.get(key))
            if seconds is not None and seconds > LIMIT_S:
                add("violation", f"seed {seed}: {key} {seconds:.2f}, over {LIMIT_S:.0f} seconds")
        logs = [path for path in (folder / f"train_seed{seed}.log", folder / f"train_seed{seed}.txt") if path.is_file()]
        if logs:
            check_log(seed, row, read_bytes(logs[0], MAX_TEXT), add)
        else:
            add("warning", f"seed {seed} has no log (train_seed{seed}.log)")
    logged = {match.group(1) for file in folder.iterdir() if (match := LOG.fullmatch(file.name))}
    if other := sorted(logged - set(seeds)):
        add("warning", f"there are logs of seeds without results: {', '.join(other)}; all runs are to be told")
    if len(seeds) < RECORD_SEEDS:
        add("warning", f"{len(seeds)} seed{'s' * (len(seeds) != 1)}; a record needs three")


def check_log(seed: str, row: dict[str, Any], log: bytes, add: Add) -> None:
    """The last metric and the size in a log are those of submission.json."""
    metrics, stated = METRIC.findall(log), STATED.findall(log)
    claimed, size = number(row.get("val_bpb")), number(row.get("artifact_bytes"))
    if not metrics:
        add("warning", f"seed {seed}: its log has no val_bpb")
    elif claimed is not None and abs(float(metrics[-1]) - claimed) > LOGGED:
        add("violation", f"seed {seed}: the log ends with val_bpb {float(metrics[-1])}, the claim is {claimed}")
    if stated and size is not None and int(stated[-1].replace(b",", b"")) != size:
        add("warning", f"seed {seed}: the log states {stated[-1].decode()} bytes, submission.json {size:,.0f}")


def check_size(folder: Path, add: Add) -> None:
    """Files as they are uploaded fit the cap."""
    size = folder_size(folder)
    line = f"{size['total_bytes']:,} bytes of {size['cap_bytes']:,} as uploaded"
    add("violation" if size["headroom_bytes"] < 0 else "note", line)
    for doubt in size["doubts"]:
        add("warning", doubt)


def check_script(folder: Path, add: Add) -> None:
    """The script imports nothing but the standard library and what is required, and reaches for no network."""
    script = folder / SCRIPT
    if not script.is_file():
        return
    local = frozenset(path.stem for path in folder.glob("*.py")) | {path.name for path in folder.iterdir()}
    try:
        found = needed_packages(read_bytes(script, MAX_TEXT), str(script), local)
    except InputError as error:
        add("violation", f"{SCRIPT}: {error.what}")
        return
    listed = required(folder / "requirements.txt")
    for name in sorted(found.needed - IMAGE):
        if not {folded(name), folded(WRITTEN_AS.get(name, name))} & listed:
            add("violation", f"{SCRIPT} imports {name}, which requirements.txt does not name")
    for name in sorted(found.optional):
        add("note", f"{SCRIPT} uses {name} where it is installed")
    for what in found.network:
        add("violation", f"{SCRIPT}, {what}: there is no network while it is scored")


def folded(name: str) -> str:
    """A package's name, however it is spelled."""
    return name.lower().replace("_", "-")


def required(path: Path) -> set[str]:
    """Names in a requirements.txt."""
    lines = read_bytes(path, MAX_TEXT).decode(errors="replace").splitlines() if path.is_file() else []
    return {folded(match[1]) for line in lines if (match := REQUIREMENT.match(line))}


def check_audit(audit: Any, add: Add) -> None:
    """What the score's own audit says."""
    if not isinstance(audit, dict):
        add("warning", "the score is unaudited")
    elif audit.get("verdict") == "violated":
        add("violation", f"the score's audit {audit.get('id')} proved a rule broken: {audit.get('violated')}")
    else:
        add("note", f"audit {audit.get('id')} at level {audit.get('level')}: {audit.get('verdict')}")


def run_submission_folder(folder: Path, dataset: Dataset) -> dict[str, Any]:
    """`check_submission`, and then the script scores the folder's artifacts alone, as it did when pgolf made it.
    ConfigError for a folder that another tool has made: how its script is asked for a score is not known.
    """
    from pgolf.submission.proof import command, empty_room, last_document, run_alone

    document, said = check_submission(folder), read_json(folder / "submission.json")
    if not str(said.get("schema", "")).startswith("pgolf.submission/"):
        fix = "pgolf audit external audits any program that writes its losses"
        raise ConfigError("only a folder that pgolf has made tells how its script is run", "--run", fix)
    findings = list(document["findings"])
    for seed, row in seed_rows(said).items():
        claim = number(row.get("val_bpb"))
        names = [name for name in (f"model_seed{seed}.pgz", "model.pgz") if (folder / name).is_file()]
        if not names:
            findings.append({"level": "violation", "what": f"seed {seed} has no artifact to run"})
            continue
        files = {name: read_bytes(folder / name, MAX_ARTIFACT) for name in (SCRIPT, "tokenizer.model", names[0])}
        with empty_room(files, dataset, ("val",)) as room:
            found = last_document(run_alone(room, command(SCRIPT, names[0], "data"), "auto"))["score"]
        same = claim is not None and abs(found["bpb"] - claim) <= MEAN
        what = f"seed {seed}: the script scores {found['bpb']:.8f} BPB, the claim is {claim}"
        findings.append({"level": "note" if same else "violation", "what": what})
    return verdict(folder, findings)
