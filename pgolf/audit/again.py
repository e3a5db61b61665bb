"""A counterexample run again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgolf.audit.checks.order import late_commits
from pgolf.audit.legal import legal_subject
from pgolf.audit.program import Program
from pgolf.audit.reduced import reduced
from pgolf.audit.specimens.matrix import SCORERS
from pgolf.audit.specimens.model import specimen_subject
from pgolf.audit.stream import plain_vocabulary, tokenizer_vocabulary
from pgolf.audit.subject import InProcess, Subject
from pgolf.config.load import resolve
from pgolf.core.errors import InputError
from pgolf.dataset import BOS, open_dataset
from pgolf.stages.model_files import load_model

CASE_SCHEMA = "pgolf.counterexample/1"


def subject_of(about: dict[str, Any], where: str) -> Subject:
    """Make the subject anew, on as many ranks. InputError if that is impossible."""
    found = made(about, where)
    if isinstance(found, InProcess) and "world_size" in about:
        return replace(found, world_size=about["world_size"])
    return found


def made(about: dict[str, Any], where: str) -> Subject:
    """Make the subject anew. InputError if that is impossible."""
    kind = about.get("kind")
    if kind == "specimen":
        found = next(one for one in SCORERS.values() if one.__name__ == about["name"])
        return specimen_subject(found, about["seed"])
    if kind == "legal":
        return legal_subject(about["name"], about["seed"], about["targets"])
    if kind == "program":
        vocabulary = plain_vocabulary(about["vocab_size"], about["bos_id"])
        return Program(tuple(about["command"]), vocabulary, Path(about["folder"]), about["timeout_s"])
    if kind == "evaluator":
        model = load_model(Path(about["model"]["path"]))
        if model.sha256 != about["model"]["sha256"]:
            raise InputError("the model is not the one that was audited", str(model.path), "give it back its file")
        dataset = open_dataset(Path(about["data"]), None, model.config.model.vocab_size)
        values = dict(about["method"])
        stored = {about["stage"]: {"method": values.pop("name"), **values}}
        method = getattr(resolve(stored=stored, stored_name=where).config, about["stage"])
        if about["reduced"]:
            method, _ = reduced(method, about["targets"])
        vocabulary = tokenizer_vocabulary(dataset.tokenizer, model.config.model.vocab_size, BOS)
        return InProcess(model.build(torch.device("cpu")), method, vocabulary, about)
    raise InputError(f"a counterexample about {kind!r} is a finding to read, nothing to run", where)


def play(case: Any, where: str) -> dict[str, Any]:
    """Run it: what came out, and whether the violation is still there. InputError if it is no counterexample."""
    if not isinstance(case, dict) or case.get("schema") != CASE_SCHEMA:
        raise InputError("not a counterexample", where, "give a counterexample-*.json of pgolf audit")
    subject = subject_of(case["subject"], where)
    tokens = np.array(case["tokens"], np.int64)
    kind = case["property"]
    if kind == "a":
        return flip(subject, tokens, case)
    if kind == "b":
        return sweep(subject, tokens, case)
    if kind == "c":
        late = late_commits(subject, tokens)
        what = f"{len(late):,} commits came after something had seen their targets"
        return {"property": kind, "what": what, "violated": bool(late)}
    if kind == "d":
        trial = subject.run(tokens)
        odd = int(((trial.commits != 1) | ~np.isfinite(trial.nll)).sum())
        return {"property": kind, "what": f"{odd:,} targets without exactly one finite score", "violated": bool(odd)}
    if kind == "j" and case["variant"] in (variants := subject.variants()):
        other = variants[case["variant"]].run(tokens)
        gap = float(np.nanmax(np.abs(other.nll - subject.run(tokens).nll)))
        what = f"with {case['variant']} losses differ by up to {gap:.6g} nats"
        return {"property": kind, "what": what, "violated": not gap <= case["allowed"]}
    raise InputError(f"a counterexample of ({kind}) is a finding to read, nothing to run", where)


def flip(subject: Subject, tokens: np.ndarray, case: dict[str, Any]) -> dict[str, Any]:
    """Both scores of the target, with and without the edit."""
    edited, edit, target = tokens.copy(), case["edit"], case["target"]
    edited[edit["position"]] = edit["to"]
    before, after = (float(subject.run(stream).nll[target]) for stream in (tokens, edited))
    what = (
        f"target {target} costs {before:.9g} nats, and {after:.9g} when token {edit['position']} is {edit['to']} "
        f"instead of {edit['from']}"
    )
    moved = not abs(before - after) <= case["tolerance"]
    return {"property": "a", "what": what, "nll": [before, after], "violated": moved}


def sweep(subject: Subject, tokens: np.ndarray, case: dict[str, Any]) -> dict[str, Any]:
    """The sum over the tokens tried."""
    total, target = 0.0, case["target"]
    for token in case["values"]:
        edited = tokens.copy()
        edited[target + 1] = token
        total += float(np.exp(-np.float64(subject.run(edited).nll[target])))
    what = f"at target {target}, {len(case['values'])} tokens get {total:.9g} together"
    return {"property": "b", "what": what, "sum": total, "violated": not total <= case["allowed"]}
