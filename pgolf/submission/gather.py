"""Runs and their scores, as `compare` and `leaderboard` take them: a run's folder, a folder of runs, or a score."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.accounting import bpb_of
from pgolf.config.tree import flatten
from pgolf.core.errors import InputError, PgolfError
from pgolf.core.files import read_json
from pgolf.stages.evaluate import SCORE_BEFORE, SCORE_SCHEMA, upgrade_score
from pgolf.stages.manifest import notes_of, read_entries

FORMS = {"checkpoint": "float", "quantized": "quantized", "artifact": "artifact"}
CHECKPOINT = "checkpoint.safetensors"
WITHOUT = ("train.seed", "package.", "size.")
"""Keys in which seeds of one configuration may differ."""


@dataclass(frozen=True)
class Scored:
    """One score of a run: which form of the model, by which stage and method, and what it depends on beside."""

    run: str
    seed: int | None
    form: str
    stage: str
    method: str
    document: dict[str, Any]
    settings: dict[str, Any]
    """The training's configuration by dotted key, without what seeds may differ in; empty where it is not known."""
    notes: tuple[str, ...] = ()
    """Remarks on the training."""

    @property
    def view(self) -> str:
        """What makes scores of several runs comparable."""
        return f"{self.form}, {self.stage} {self.method}"

    @property
    def bpb(self) -> float:
        """Bits per byte."""
        return bpb_of(self.document["score"])

    @property
    def bytes_per_token(self) -> float:
        """Of the scored targets."""
        return float(self.document["score"]["bytes"]) / float(self.document["score"]["tokens"])


def score_document(path: Path) -> dict[str, Any] | None:
    """A score document, or nothing."""
    try:
        document = read_json(path)
    except PgolfError:
        return None
    if not is_score(document):
        return None
    return upgrade_score(document) if document["schema"] == SCORE_BEFORE else dict(document)


def is_score(document: Any) -> bool:
    """Whether a JSON value has the parts of a score document that packaging and comparing use."""
    try:
        numbers = [document["score"][key] for key in ("nats", "tokens", "bytes", "val_loss")]
        numbers.append(bpb_of(document["score"]))
        strings = [
            document["model"]["sha256"],
            document["model"]["kind"],
            document["data"]["path"],
            document["data"]["sha256"],
            document["device"],
        ]
        settled = isinstance(document["partial"], bool) and isinstance(document["method"]["name"], str)
        seconds = document["seconds"]["score"]
    except (KeyError, TypeError, ValueError):
        return False
    good = all(type(number) in (int, float) for number in (*numbers, seconds, document.get("share")))
    good &= all(isinstance(text, str) for text in (*strings, document.get("stage")))
    return bool(good and settled and document.get("schema") in (SCORE_SCHEMA, SCORE_BEFORE))


def training_of(folder: Path) -> tuple[int | None, dict[str, Any], tuple[str, ...]]:
    """Seed and settings of the training in a run's folder and remarks on it, if its manifest tells them."""
    for place in (folder / "train", folder):
        entry = read_entries(place).get(CHECKPOINT)
        if isinstance(entry, dict) and isinstance(entry.get("resolved"), dict):
            values = flatten(entry["resolved"])
            kept = {key: value for key, value in values.items() if not key.startswith(WITHOUT)}
            return values.get("train.seed"), kept, tuple(notes_of(entry.get("figures")))
    return None, {}, ()


def scores_in(folder: Path) -> list[Scored]:
    """The scores of one run, from its own folder and those of its stages."""
    seed, settings, notes = training_of(folder)
    found = []
    for path in sorted({*folder.glob("*.json"), *folder.glob("*/*.json")}):
        document = score_document(path)
        if document is not None:
            form, name = FORMS.get(document["model"]["kind"], "?"), document["method"]["name"]
            found.append(Scored(str(folder), seed, form, document["stage"], name, document, settings, notes))
    return found


def gather(path: Path) -> list[Scored]:
    """All scores at a path: a score document, a run's folder, or a folder whose folders are runs. InputError if there
    are none.
    """
    if path.is_file():
        document = score_document(path)
        if document is None:
            raise InputError("not a score", str(path), "give a score.json, or the folder of a run")
        told = map(training_of, (path.parent, path.parent.parent))
        seed, settings, notes = next((one for one in told if one[1]), (None, {}, ()))
        form, name = FORMS.get(document["model"]["kind"], "?"), document["method"]["name"]
        return [Scored(str(path), seed, form, document["stage"], name, document, settings, notes)]
    if not path.is_dir():
        raise InputError("there is no such run", str(path), "give the folder of a run, or a published preset's name")
    folders = [path] if is_run(path) else sorted(item for item in path.iterdir() if item.is_dir())
    found = [score for folder in folders for score in scores_in(folder)]
    if not found:
        raise InputError("there is no score", str(path), "score it: pgolf eval MODEL --data DATA --out RUN/score.json")
    return found


def is_run(folder: Path) -> bool:
    """Whether a folder is that of one run rather than of several."""
    return (
        (folder / "settings.json").is_file()
        or (folder / "train" / CHECKPOINT).is_file()
        or any(score_document(path) for path in folder.glob("*.json"))
    )


def remarks(scores: list[Scored]) -> list[str]:
    """Remarks on the training of runs, each once."""
    return list(dict.fromkeys(f"{score.run}: {note}" for score in scores for note in score.notes))


def doubts(side: str, scores: list[Scored]) -> list[str]:
    """What is wrong with taking these as seeds of one configuration."""
    found = []
    runs = {score.run: score for score in scores}
    seeds = [score.seed for score in runs.values()]
    if len(runs) < 3:
        found.append(f"{side}: {len(runs)} run{'s' if len(runs) > 1 else ''}, a record needs three seeds")
    known = [seed for seed in seeds if seed is not None]
    if len(set(known)) < len(known):
        found.append(f"{side}: a seed occurs twice ({', '.join(map(str, sorted(known)))})")
    settings = [score.settings for score in runs.values() if score.settings]
    mixed = sorted({key for one in settings for key in {*one, *settings[0]} if one.get(key) != settings[0].get(key)})
    if mixed:
        found.append(f"{side}: runs of several configurations, no mean of seeds (differ in {', '.join(mixed[:5])})")
    if any(score.document["partial"] for score in scores):
        found.append(f"{side}: scores of a part of the validation split")
    return found


def strangers(old: list[Scored], new: list[Scored]) -> list[str]:
    """What makes scores of the same view hard to compare: data, machine, versions."""
    found = []
    for name, read in (
        ("validation data", lambda d: d["data"]["sha256"]),
        ("device", lambda d: d["device"]),
        ("hardware", lambda d: json.dumps(d.get("hardware"), sort_keys=True)),
        ("library versions", lambda d: json.dumps(d.get("versions"), sort_keys=True)),
    ):
        if len({read(score.document) for score in (*old, *new)}) > 1:
            found.append(f"{name} differ between the scores")
    return found
