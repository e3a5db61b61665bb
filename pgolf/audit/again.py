"""A counterexample run again."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgolf.audit.bench import LEVELS, Bench, noise_between
from pgolf.audit.checks.isolation import check_isolation
from pgolf.audit.checks.once import check_once
from pgolf.audit.checks.order import late_commits
from pgolf.audit.legal import legal_subject
from pgolf.audit.program import Program, check_command, without_network
from pgolf.audit.reduced import reduced
from pgolf.audit.specimens.matrix import SCORERS
from pgolf.audit.specimens.model import specimen_subject
from pgolf.audit.stream import Stream, plain_vocabulary, tokenizer_vocabulary
from pgolf.audit.subject import InProcess, Subject
from pgolf.audit.verdict import CASE_SCHEMA, VIOLATED
from pgolf.config.load import resolve
from pgolf.core.errors import ConfigError, InputError
from pgolf.dataset import BOS, open_dataset
from pgolf.stages.evaluate import as_scored
from pgolf.stages.inputs import used_as
from pgolf.stages.model_files import load_model


def subject_of(about: dict[str, Any], where: str, run_programs: bool) -> Subject:
    """Make the subject anew, on as many ranks. InputError if that is impossible."""
    found = made(about, where, run_programs)
    if isinstance(found, InProcess) and "world_size" in about:
        return replace(found, world_size=about["world_size"])
    return found


def made(about: dict[str, Any], where: str, run_programs: bool) -> Subject:
    """Make the subject anew. InputError if that is impossible, ConfigError for a program that may not be run."""
    kind = about.get("kind")
    if kind == "specimen":
        names = {one.__name__: one for one in SCORERS.values()}
        return specimen_subject(names[about["name"]], about["seed"])
    if kind == "legal":
        return legal_subject(about["name"], about["seed"], about["targets"])
    if kind == "program":
        if not run_programs:
            what = f"the file asks to run {shlex.join(map(str, about['command']))} in {about['folder']}"
            raise ConfigError(what, where, "give --run-programs if you trust it")
        check_command(about["command"])
        vocabulary = plain_vocabulary(about["vocab_size"], about["bos_id"])
        return Program(tuple(about["command"]), vocabulary, Path(about["folder"]), about["timeout_s"])
    if kind == "evaluator":
        model = load_model(Path(about["model"]["path"]))
        if model.sha256 != about["model"]["sha256"]:
            raise InputError("the model is not the one that was audited", str(model.path), "give it back its file")
        dataset = open_dataset(Path(about["data"]), None, model.config.model.vocab_size)
        values = dict(about["method"])
        stored = {"model": about["architecture"], about["stage"]: {"method": values.pop("name"), **values}}
        resolved = resolve(stored=stored, stored_name=where)
        method = getattr(resolved.config, about["stage"])
        model = as_scored(used_as(model, resolved), method)
        if about["reduced"]:
            method, _ = reduced(method, about["targets"])
        vocabulary = tokenizer_vocabulary(dataset.tokenizer, model.config.model.vocab_size, BOS)
        return InProcess(model.build(torch.device("cpu")), method, vocabulary, about)
    raise InputError(f"a counterexample about {kind!r} is a finding to read, nothing to run", where)


def play(case: Any, where: str, run_programs: bool = False) -> dict[str, Any]:
    """Run it: what came out, and whether the violation is still there. InputError if it is no counterexample, or one
    that another command shows; ConfigError if it is about a program and `run_programs` is not set.
    """
    if not isinstance(case, dict) or case.get("schema") != CASE_SCHEMA:
        raise InputError("not a counterexample", where, "give a counterexample-*.json of pgolf audit")
    if "tokens" not in case:
        raise InputError("this one is shown by another command", where, str(case.get("replay", "read it")))
    try:
        subject, tokens = subject_of(case["subject"], where, run_programs), np.array(case["tokens"], np.int64)
        return {"property": case["property"], **PLAYED[case["property"]](subject, tokens, case)}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        lost = error if isinstance(error, KeyError) else "a value"
        raise InputError(f"the counterexample is damaged: it lacks or garbles {lost}", where, "audit again") from None


def late(subject: Subject, tokens: np.ndarray, case: dict[str, Any]) -> dict[str, Any]:
    """Commits that came too late."""
    found = late_commits(subject, tokens)
    what = f"{len(found):,} commits came after something had seen their targets"
    return {"what": what, "violated": bool(found)}


def counted(subject: Subject, tokens: np.ndarray, case: dict[str, Any]) -> dict[str, Any]:
    """Commits and losses that are not as they must be."""
    finding = check_once(bench_of(subject, tokens))
    return {"what": finding.what, "violated": finding.verdict == VIOLATED}


def isolated(subject: Subject, tokens: np.ndarray, case: dict[str, Any]) -> dict[str, Any]:
    """What it reaches for."""
    if isinstance(subject, Program):
        finding = without_network(subject, tokens)
    else:
        found = check_isolation(bench_of(subject, tokens))
        finding = next(one for one in found if one.check == case["property"])
    return {"what": finding.what, "violated": finding.verdict == VIOLATED}


def varied(subject: Subject, tokens: np.ndarray, case: dict[str, Any]) -> dict[str, Any]:
    """Losses in other batches or on other ranks."""
    other, mine = subject.variants()[case["variant"]].run(tokens), subject.run(tokens)
    gap = noise_between([mine, other])
    what = f"with {case['variant']} losses differ by up to {gap:.6g} nats"
    return {"what": what, "violated": not gap <= case["allowed"]}


def bench_of(subject: Subject, tokens: np.ndarray) -> Bench:
    """What checks ask for, on this stream."""
    stream = Stream(tokens, np.flatnonzero(tokens == subject.vocabulary.bos_id), np.zeros((0, 2), np.int64))
    return Bench(subject, stream, LEVELS["quick"], 0, subject.run(tokens))


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
    return {"what": what, "nll": [before, after], "violated": moved}


def sweep(subject: Subject, tokens: np.ndarray, case: dict[str, Any]) -> dict[str, Any]:
    """The sum over the tokens tried."""
    total, target = 0.0, case["target"]
    for token in case["values"]:
        edited = tokens.copy()
        edited[target + 1] = token
        total += float(np.exp(-np.float64(subject.run(edited).nll[target])))
    what = f"at target {target}, {len(case['values'])} tokens get {total:.9g} together"
    return {"what": what, "sum": total, "violated": not total <= case["allowed"]}


PLAYED = {"a": flip, "b": sweep, "c": late, "d": counted, "g": isolated, "h": isolated, "i": isolated, "j": varied}
"""How a property's counterexample is run again."""
