"""package-submission: artifacts and their scores in, a submission folder out."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from pgolf.accounting import bpb_of
from pgolf.audit.report import is_violated
from pgolf.config.load import Resolved, resolve
from pgolf.config.run import RunConfig
from pgolf.config.tree import to_values
from pgolf.core.dist import pick_device
from pgolf.core.errors import ConfigError, InputError, RuleError
from pgolf.core.files import sha256_file
from pgolf.core.model.export import exported
from pgolf.dataset import Dataset, open_dataset
from pgolf.report.console import Console
from pgolf.stages.evaluate import rerotated, run_method
from pgolf.stages.inputs import changed_keys
from pgolf.stages.manifest import (
    describe_output,
    fresh_entry,
    guarded,
    notes_of,
    provenance,
    read_entries,
    stage_key,
    write_entry,
)
from pgolf.stages.model_files import ModelFile, load_model
from pgolf.stages.quantize import rounded
from pgolf.submission.document import RECORD_SEEDS, reference, training_seconds
from pgolf.submission.entries import CHECKPOINT, QUANTIZED, Entry, entry_of_run, find_artifact, input_of
from pgolf.submission.folder import build_folder, folder_name
from pgolf.submission.gather import score_document
from pgolf.submission.remedies import checkpoint_of


def nearby_scores(artifact: Path) -> list[dict[str, Any]]:
    """Score documents beside the artifact and in the neighbouring directories of its run."""
    folder = artifact.resolve().parent
    places = sorted({folder / "score.json", folder.parent / "score.json", *folder.parent.glob("*/score.json")})
    return [document for path in places if (document := score_document(path)) is not None]


def check_claim(config: RunConfig, dataset: Dataset) -> None:
    """Refuse to claim what the script would not compute, or a score of a part of the validation targets."""
    claim = config.package.claim
    method = getattr(config, claim)
    if method.num_loops:
        what = "the script runs a model's loop as it was trained"
        raise ConfigError(what, f"{claim}.num_loops", f"set {claim}.num_loops=0")
    targets = sum(map(len, dataset.split("val"))) - 1
    if 0 < method.max_tokens < targets:
        raise RuleError(
            f"the score to claim covers only {method.max_tokens / targets:.1%} of the validation targets",
            f"{claim}.max_tokens",
            f"score all of them: --set {claim}.max_tokens=0",
        )


def find_score(model: ModelFile, claim: str) -> dict[str, Any] | None:
    """The stored score of this very artifact by the claimed stage."""
    matching = [
        doc for doc in nearby_scores(model.path) if doc["model"]["sha256"] == model.sha256 and doc["stage"] == claim
    ]
    return matching[0] if matching else None


def artifact_config(artifact: Path, preset: str, sets: list[str]) -> Resolved:
    """The complete configuration an artifact was made with, from the manifest beside it, under a preset and --set."""
    entry = read_entries(artifact.parent).get(artifact.name)
    stored = entry.get("resolved") if isinstance(entry, dict) else None
    if not stored and not preset:
        raise InputError(
            "there is no manifest beside the artifact that says how it was trained",
            str(artifact),
            "name its preset with --preset",
        )
    resolved = resolve(preset=preset, sets=sets, stored=stored, stored_name="the artifact's manifest")
    made = ("model", "optim", "train", "quant", "compress")
    changed = [text for name in made if stored for text in changed_keys(stored[name], resolved.values[name], name)]
    if changed:
        raise ConfigError(
            f"the artifact was made otherwise: {', '.join(changed)}", str(artifact), "leave out what changes it"
        )
    return resolved


def open_data(place: Path | None, model: ModelFile) -> Dataset:
    """The dataset to score or prove on. ConfigError when nobody says where it is."""
    if place is None:
        raise ConfigError(
            f"{model.path} has no score yet",
            "package-submission",
            "score it with pgolf eval --out, or name the dataset with --data",
        )
    return open_dataset(place, vocab_size=model.config.model.vocab_size)


def entry_of(artifact: Path, config: Any, data: Path | None, device: str, console: Console) -> tuple[Entry, Dataset]:
    """An artifact with its score (made now if none is stored) and training record. RuleError for a partial score."""
    model = load_model(artifact)
    if model.kind != "artifact":
        raise InputError(f"a {model.kind} cannot be submitted", str(artifact), "give the output of pgolf compress")
    check_origin(artifact, model)
    if model.config.model != exported(model.config.model):
        what = "the artifact holds what a script does not export, as earlier versions of pgolf did"
        raise InputError(what, str(artifact), "quantize the checkpoint again, and compress it")
    claim = config.package.claim
    score = find_score(model, claim)
    place = data or (Path(score["data"]["path"]) if score else None)
    if score and score["method"] != {"name": score["method"]["name"], **to_values(getattr(config, claim))}:
        console.warn(f"the stored score of {artifact.name} was made with other {claim} settings; scoring anew")
        score = None
    if score and {*score["model"].get("overridden", ())} - {*rerotated(model.config.model, getattr(config, claim))}:
        console.warn(f"the stored score of {artifact.name} is not one of the model as it was trained; scoring anew")
        score = None
    dataset = open_data(place, model)
    if score and score["data"]["sha256"] != dataset.fingerprint("val"):
        raise InputError(
            "the score was made on other validation data than this", str(dataset.folder), "score the artifact again"
        )
    check_claim(config, dataset)
    if score is None:
        console.line(f"package: scoring {artifact.name}")
        made = run_method(model, dataset, claim, getattr(config, claim), device, console)
        score = made | provenance(score_device(device))
    if is_violated(score.get("audit")):
        audit = score["audit"]
        raise RuleError(
            f"the score's audit {audit['id']} proved a rule broken: {', '.join(audit['violated'])}",
            str(artifact),
            "score it by another method",
        )
    if score["partial"]:
        raise RuleError(
            f"the score covers only {score['share']:.1%} of the validation targets",
            str(artifact),
            f"score all of them: --set {claim}.max_tokens=0",
        )
    if not score.get("clock", {}).get("kept", True):
        console.warn(f"scoring {artifact.name} took longer than its budget, here on {score['device']}")
    return entry_of_run(artifact, config.train.seed, score), dataset


def package(
    artifacts: list[Path],
    out: Path,
    preset: str,
    sets: list[str],
    data: Path | None,
    device: str,
    console: Console,
    force: bool = False,
    title: str = "pgolf submission",
    records: bool = False,
    again: bool = False,
) -> dict[str, Any]:
    """Build the submission folder; returns submission.json with "fresh" set when nothing had to be done, which `again`
    does in any case. With `records` the folder gets its name in `out`, by track, date, title and score.
    """
    start = time.monotonic()
    artifacts = [find_artifact(path) for path in artifacts]
    resolved = [artifact_config(artifact, preset, sets) for artifact in artifacts]
    config = resolved[0].config
    reference(config.package.against)
    pairs = [entry_of(path, item.config, data, device, console) for path, item in zip(artifacts, resolved)]
    entries, dataset = [pair[0] for pair in pairs], pairs[0][1]
    check_seeds(entries, [item.config for item in resolved])
    name = config.package.name or preset or title
    if records:
        bpb = sum(bpb_of(entry.score["score"]) for entry in entries) / len(entries)
        out = folder_name(out, config, name, str(entries[0].score.get("date", ""))[:10], bpb)
    tell_doubts(entries, console)
    inputs = {str(entry.seed): entry.score["model"]["sha256"] for entry in entries}
    inputs["data"] = dataset.fingerprint("val")
    inputs["records"] = told_of(entries, config)
    if remarks := [note for entry in entries for note in notes_of(entry.train)]:
        inputs["remarks"] = "; ".join(remarks)
    key = stage_key("package", resolved[0].values, inputs)
    marker = out / "submission.json"
    with guarded(out):
        entry = fresh_entry(marker, key)
        if (
            not again
            and entry is not None
            and all(unchanged(out / name, file) for name, file in entry["figures"].get("files", {}).items())
        ):
            return dict(entry["figures"]) | {"fresh": True, "out": str(out)}

        def seal(part: Path, document: dict[str, Any]) -> None:
            seconds = rounded({"total": time.monotonic() - start})
            facts = describe_output(part / marker.name, "package", key, resolved[0].values, inputs, document, seconds)
            write_entry(part, marker.name, facts)

        proving = " and proving the script alone" if config.package.prove else ""
        console.line(f"package: building the folder{proving}")
        document = build_folder(entries, config, name, dataset, out, force, seal)
    return document | {"fresh": False, "out": str(out)}


def told_of(entries: list[Entry], config: Any) -> str:
    """One hash of what a folder tells beyond its artifacts and scores, and what may come later than those: audits,
    scores of the models before, the time on training data, whether there is a log.
    """
    rows = [
        [
            entry.score.get("audit"),
            entry.bpb_of_form("float"),
            entry.bpb_of_form("quantized"),
            training_seconds(entry, config),
            entry.log is not None,
        ]
        for entry in entries
    ]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def unchanged(path: Path, file: dict[str, Any]) -> bool:
    """Whether a file of the folder is the one that was written."""
    return path.is_file() and sha256_file(path) == file["sha256"]


def score_device(name: str) -> str:
    """The device that a name given on the command line stands for."""
    return str(pick_device(name, 0))


def check_origin(artifact: Path, model: ModelFile) -> None:
    """InputError when the records around an artifact are about another one, or about another checkpoint's."""
    folder = artifact.resolve().parent
    entry = read_entries(folder).get(artifact.name) or {}
    if entry.get("sha256") not in (None, sha256_file(artifact)):
        fix = "compress again, or keep the artifact apart from that manifest"
        raise InputError("the manifest beside the artifact is about another file", str(artifact), fix)
    made_of, trained = input_of(entry, "quantized"), checkpoint_of(artifact)
    run = folder.parent
    for stage, path, used in (
        ("quantize", run / "quantize" / QUANTIZED, made_of),
        ("train", run / "train" / CHECKPOINT, trained),
        ("train", folder / CHECKPOINT, trained),
    ):
        if used and path.is_file() and load_model(path).sha256 != used:
            what = f"the artifact was not made from the {stage}d model in its run, {path}".replace("traind", "trained")
            raise InputError(what, str(artifact), "run the stages after it again")


def tell_doubts(entries: list[Entry], console: Console) -> None:
    """Warnings about what a reviewer will miss."""
    for entry in entries:
        if entry.log is None:
            console.warn(f"seed {entry.seed}: there is no training log beside {entry.artifact}; reviewers want one")
        if not isinstance(entry.score.get("audit"), dict):
            console.warn(f"seed {entry.seed}: the score is unaudited; pgolf eval --audit FILE puts an audit into it")
    if len(entries) < RECORD_SEEDS:
        console.warn(f"a record needs {RECORD_SEEDS} seeds, here {'is one' if len(entries) == 1 else 'are two'}")


def check_seeds(entries: list[Entry], configs: list[Any]) -> None:
    """InputError when runs of different configurations or equal seeds are put into one folder."""
    seeds = [entry.seed for entry in entries]
    if len(set(seeds)) != len(seeds):
        raise InputError(
            f"two artifacts have the same seed: {seeds}", "package-submission", "give one artifact per seed"
        )
    if len({entry.score["data"]["sha256"] for entry in entries}) > 1:
        raise InputError(
            "the artifacts were scored on different validation data", "package-submission", "score all on one dataset"
        )
    for config, entry in zip(configs, entries):
        first, own = to_values(configs[0]), to_values(config)
        first["train"].pop("seed")
        own["train"].pop("seed")
        if first != own:
            raise InputError(
                "the artifacts were made with different configurations", str(entry.artifact), "package them separately"
            )
