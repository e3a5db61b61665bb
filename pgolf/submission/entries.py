"""What is known of one seed of a submission: its artifact, its score, and what its run's manifests and scores tell."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgolf.accounting import bpb_of
from pgolf.core.errors import InputError, PgolfError
from pgolf.core.files import read_json
from pgolf.dataset import DATASET_SCHEMA
from pgolf.stages.manifest import read_entries
from pgolf.submission.gather import Scored, scores_in

PLACES = ("model.pgz", "compress/model.pgz", "submission/model.pgz")
"""Where a folder's artifact may be."""
CHECKPOINT, QUANTIZED = "checkpoint.safetensors", "quantized.safetensors"
"""What training calls its model, and a run its quantized one."""
STAGES = ("tokenize", "train", "quantize", "compress", "eval", "ttt")


@dataclass(frozen=True)
class Entry:
    """One seed's artifact with its score document, the figures of its training and quantization, its training log, the
    other scores of its run, and the command lines that made it, in order.
    """

    artifact: Path
    seed: int
    score: dict[str, Any]
    train: dict[str, Any] = field(default_factory=dict)
    quantize: dict[str, Any] = field(default_factory=dict)
    log: Path | None = None
    scores: tuple[Scored, ...] = ()
    commands: tuple[str, ...] = ()

    def bpb_of_form(self, form: str) -> float | None:
        """Bits per byte of the float or quantized model on all that the claim covers; None where it was not scored."""
        claim = self.score["score"]
        same = [
            bpb_of(other.document["score"])
            for other in self.scores
            if other.form == form and other.stage == "eval" and other.document["score"]["tokens"] == claim["tokens"]
        ]
        return same[0] if same else None


def find_artifact(path: Path) -> Path:
    """The artifact itself, or that of a run's or submission's folder. InputError if there is none."""
    if not path.is_dir():
        return path
    found = [path / place for place in PLACES if (path / place).is_file()]
    if not found:
        raise InputError(f"there is none of {', '.join(PLACES)} in it", str(path), "name an artifact")
    return found[0]


def entry_of_run(artifact: Path, seed: int, score: dict[str, Any]) -> Entry:
    """The entry of an artifact, with what the directory it lies in, or the run around that, knows of it."""
    folder = artifact.resolve().parent
    run = folder.parent if (folder.parent / "train").is_dir() else folder
    train = figures_of(run, "train", CHECKPOINT)
    quantize = figures_in(quantization_of(artifact))
    logs = [path for path in (folder / "train.log", run / "train" / "train.log") if path.is_file()]
    log = logs[0] if logs and train else None
    return Entry(artifact, seed, score, train, quantize, log, tuple(scores_in(run)), commands(run, artifact))


def places(run: Path) -> list[Path]:
    """The directories in which a run's stages have left manifests."""
    return [run / name for name in ("data", *STAGES[1:]) if (run / name).is_dir()] + [run]


def figures_of(run: Path, stage: str, name: str) -> dict[str, Any]:
    """The figures with which a stage recorded its output, empty if nothing did."""
    return next(filter(None, (figures_in(read_entries(place).get(name)) for place in (run / stage, run))), {})


def figures_in(entry: Any) -> dict[str, Any]:
    """The figures of a manifest's entry with its seconds, empty if it has none."""
    if not isinstance(entry, dict) or not isinstance(entry.get("figures"), dict):
        return {}
    seconds = entry.get("seconds")
    return {**entry["figures"], "seconds": seconds if isinstance(seconds, dict) else {}}


def input_of(entry: Any, name: str) -> str:
    """The content hash that a manifest's entry has of an input, empty where it has none."""
    inputs = entry.get("inputs") if isinstance(entry, dict) else None
    return str(inputs.get(name, "")) if isinstance(inputs, dict) else ""


def content_of(path: Path) -> str:
    """The content hash that a model file states, empty where it states none."""
    from pgolf.core.tensorfile import tensor_meta
    from pgolf.stages.model_files import identity

    try:
        return identity(tensor_meta(path)[0])
    except PgolfError:
        return ""


def quantization_of(artifact: Path) -> dict[str, Any]:
    """The manifest's entry of the quantized model that an artifact was made from, whatever that is called: beside it,
    or in its run's `quantize`. Where the model's file is gone, an entry is taken if there is no other. Empty if none
    is known.
    """
    folder, gone = artifact.resolve().parent, []
    used = input_of(read_entries(folder).get(artifact.name), "quantized")
    for place in (folder.parent / "quantize", folder / "quantize", folder):
        for name, entry in read_entries(place).items():
            if not isinstance(entry, dict) or entry.get("stage") != "quantize":
                continue
            if not (place / name).is_file():
                gone.append(entry)
            elif content_of(place / name) == used if used else name == QUANTIZED:
                return entry
    return gone[0] if len(gone) == 1 else {}


def dataset_record(run: Path) -> dict[str, Any]:
    """What the manifest of a run's own dataset says, as the entry of a stage; empty where there is none."""
    try:
        found = read_json(run / "data" / "manifest.json")
    except PgolfError:
        return {}
    if not isinstance(found, dict) or found.get("schema") != DATASET_SCHEMA:
        return {}
    splits = found["splits"].items() if isinstance(found.get("splits"), dict) else ()
    tokens = {name: split.get("tokens", 0) for name, split in splits if isinstance(split, dict)}
    shards = [path.stat().st_size for path in (run / "data").glob("*.bin")]
    return {**found, "stage": "tokenize", "figures": {"tokens": tokens}, "bytes": sum(shards)}


def commands(run: Path, artifact: Path | None) -> tuple[str, ...]:
    """The command lines on record in a run, each once, in the order of the stages. Of the models that were quantized
    and compressed in it, those that an artifact was made by, as far as that is known.
    """
    found: dict[str, int] = {}
    entries = [entry for place in places(run) for entry in read_entries(place).values()]
    made = [quantization_of(artifact), read_entries(artifact.resolve().parent).get(artifact.name)] if artifact else []
    own = {str(entry["stage"]): entry for entry in made if isinstance(entry, dict) and "stage" in entry}
    for entry in (dataset_record(run), *entries):
        words = entry.get("argv") if isinstance(entry, dict) else None
        if not isinstance(words, list) or not words or own.get(str(entry.get("stage")), entry) != entry:
            continue
        if entry.get("stage") in STAGES:
            line = shlex.join(["pgolf", *map(str, words)])
            found[line] = min(found.get(line, len(STAGES)), STAGES.index(entry["stage"]))
    return tuple(sorted(found, key=lambda line: found[line]))
