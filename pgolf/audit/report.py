"""An audit as a document: JSON for programs, Markdown for readers, counterexamples as files that can be replayed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pgolf import __version__
from pgolf.audit.verdict import LIMITS, MANDATORY, Finding, missing, violations
from pgolf.core.errors import InputError, RuleError
from pgolf.core.files import read_json, write_bytes, write_json

AUDIT_SCHEMA = "pgolf.audit/1"
REPORT, MARKDOWN, CASE = "audit.json", "audit.md", "counterexample-{check}.json"


def audit_document(findings: list[Finding], level: str, subject: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """The whole audit; its id is a hash of everything else in it."""
    broken, untried = violations(findings), missing(findings, MANDATORY[level])
    document = {
        "schema": AUDIT_SCHEMA,
        "pgolf": __version__,
        "level": level,
        "subject": subject,
        "verdict": "violated" if broken else "incomplete" if untried else "passed",
        "violated": broken,
        "untested": untried,
        "findings": [finding.document() for finding in findings],
        "limits": list(LIMITS),
        **facts,
    }
    text = json.dumps(document, sort_keys=True, default=float)
    return {"id": hashlib.sha256(text.encode()).hexdigest()[:16], **json.loads(text)}


def verdict_error(document: dict[str, Any]) -> RuleError | None:
    """The error with which an audit ends that did not pass."""
    if document["verdict"] == "violated":
        what = f"proved violated: {', '.join(document['violated'])}"
    elif document["verdict"] == "incomplete":
        what = f"not tested, though mandatory at level {document['level']}: {', '.join(document['untested'])}"
    else:
        return None
    return RuleError(what, "audit", "the findings say why")


def line_of(finding: dict[str, Any]) -> str:
    """A verdict with its figures."""
    if finding["f95"] is None:
        return str(finding["verdict"])
    return f"{finding['verdict']} (n={finding['n']:,}, f95={finding['f95']:.2g})"


def markdown(document: dict[str, Any]) -> str:
    """The report for readers."""
    lines = [
        f"# Audit {document['id']}: {document['verdict']}",
        "",
        f"Level {document['level']}, pgolf {document['pgolf']}. Subject:",
        "",
        "```json",
        json.dumps(document["subject"], indent=2),
        "```",
        "",
        "| | property | verdict | what was seen |",
        "| --- | --- | --- | --- |",
    ]
    for finding in document["findings"]:
        lines.append(f"| {finding['property']} | {finding['title']} | {line_of(finding)} | {finding['what']} |")
    lines += ["", "Limits:", "", *(f"- {limit}" for limit in document["limits"]), ""]
    return "\n".join(lines)


def write_report(folder: Path, document: dict[str, Any]) -> list[Path]:
    """Write the report, and each counterexample as a file of its own, with the command that shows it again; the paths
    of the latter. Counterexamples of an earlier audit in the folder go.
    """
    cases = []
    for finding in document["findings"]:
        path = folder / CASE.format(check=finding["property"])
        if finding["counterexample"]:
            write_json(path, {"replay": f"pgolf audit replay {path}", **finding["counterexample"]})
            cases.append(path)
        else:
            path.unlink(missing_ok=True)
    write_json(folder / REPORT, document)
    write_bytes(folder / MARKDOWN, markdown(document).encode())
    return cases


def read_report(path: Path) -> dict[str, Any]:
    """A report from its file or its folder. InputError if it is none, or was edited."""
    document = read_json(path / REPORT if path.is_dir() else path)
    if not isinstance(document, dict) or document.get("schema") != AUDIT_SCHEMA:
        raise InputError("not the report of an audit", str(path), "give the audit.json of pgolf audit run")
    rest = {key: value for key, value in document.items() if key != "id"}
    if hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16] != document.get("id"):
        raise InputError("the report is not as it was written", str(path), "audit again")
    return document


def summary(document: dict[str, Any]) -> dict[str, Any]:
    """What a score says of its audit."""
    findings = {
        finding["property"]: {key: finding[key] for key in ("verdict", "n", "f95")} for finding in document["findings"]
    }
    kept = {key: document[key] for key in ("id", "level", "verdict", "violated", "untested")}
    return kept | {"findings": findings}


IDLE = ("batch_seqs", "budget_seconds", "max_tokens")
"""Settings of a method on which its scores do not depend, but for a queue of documents by batches."""


def audit_of(path: Path, stage: str, method: dict[str, Any], model: dict[str, Any], sha256: str) -> dict[str, Any]:
    """What a score says of the audit in a report: its summary, and whether it was made with these very weights.
    InputError when the report is about another method (settings with its name) or another architecture.
    """
    document, where = read_report(path), str(path)
    try:
        return matched(document, stage, method, model, where) | {
            "same_weights": document["subject"]["model"]["sha256"] == sha256
        }
    except (KeyError, TypeError, AttributeError) as error:
        lost = error if isinstance(error, KeyError) else "a value"
        raise InputError(
            f"the report has not the form of one: it lacks or garbles {lost}", where, "audit again"
        ) from None


def matched(
    document: dict[str, Any], stage: str, method: dict[str, Any], model: dict[str, Any], where: str
) -> dict[str, Any]:
    """The summary of a report, if it is about this method and architecture. InputError if not."""
    subject = document["subject"]
    if subject.get("kind") != "evaluator" or subject["stage"] != stage:
        raise InputError(f"the audit is not about {stage}", where, f"audit it: pgolf audit run {stage}")
    theirs = subject["method"]
    queued = {"batch_seqs"} if method.get("order") == "longest" else set[str]()
    for key in {*theirs, *method} - (set(IDLE) - queued):
        if theirs.get(key) != method.get(key):
            what = f"the audit is about another method: {key} is {theirs.get(key)!r} there, {method.get(key)!r} here"
            raise InputError(what, where, "audit the method as it is set")
    if subject["architecture"] != model:
        raise InputError("the audit is about a model of another architecture", where, "audit this model")
    return summary(document)


def spoken(audit: Any) -> str:
    """What a reader is told of a score's audit, in a line."""
    if not isinstance(audit, dict):
        return str(audit)
    tested = [f"{name} ({line_of(found)})" for name, found in audit["findings"].items() if found["n"]]
    weights = "these weights" if audit["same_weights"] else "other weights of this architecture"
    return f"{audit['id']} at level {audit['level']}, on {weights}: {audit['verdict']}; {'; '.join(tested)}"


def is_violated(audit: Any) -> bool:
    """Whether what a score says of its audit is that a rule is broken."""
    return isinstance(audit, dict) and audit.get("verdict") == "violated"
