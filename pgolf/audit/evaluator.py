"""Audits of pgolf's own methods on a model and a dataset, and of programs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pgolf.audit.bench import Level
from pgolf.audit.checks.size import check_artifact_size
from pgolf.audit.dataset import bytes_finding, provenance
from pgolf.audit.engine import examine
from pgolf.audit.program import Program, without_network
from pgolf.audit.reduced import reduced
from pgolf.audit.report import audit_document
from pgolf.audit.stream import Stream, Vocabulary, drawn_stream, plain_vocabulary, text_stream, tokenizer_vocabulary
from pgolf.audit.subject import InProcess
from pgolf.audit.verdict import HOLDS, STATISTICAL, VIOLATED, Finding, untested
from pgolf.config.tree import to_values
from pgolf.dataset import BOS, Dataset
from pgolf.report.console import Console
from pgolf.stages.evaluate import as_scored, shown_method
from pgolf.stages.model_files import ModelFile

QUICK, FULL = "0abcdghi", "0abcdghijk"
"""What is tried in runs of the evaluator."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How an audit is made: how much it tries, on streams of how many targets (0: the level's), drawn by which seed."""

    level: Level
    targets: int = 0
    seed: int = 0
    tokenizer: Path | None = None
    device: torch.device = torch.device("cpu")

    @property
    def length(self) -> int:
        """Targets of the streams."""
        return self.targets or self.level.targets

    @property
    def sweep_length(self) -> int:
        """Targets of the stream for sums, 0 if that is the same one."""
        return self.level.sweep_targets if 0 < self.level.sweep_targets < self.length else 0


def real_stream(dataset: Dataset, length: int, window: int, seed: int) -> Stream:
    """Pieces of the validation split."""
    tokens, _ = dataset.validation()
    return text_stream(tokens, BOS, length, window, seed)


def merged(findings: list[Finding], new: Finding) -> list[Finding]:
    """With one more finding; of two on the same property the violation counts, or what was tested."""
    order = {VIOLATED: 0, STATISTICAL: 1, HOLDS: 2}
    old = next((finding for finding in findings if finding.check == new.check), None)
    rest = [finding for finding in findings if finding.check != new.check]
    kept = min((one for one in (new, old) if one), key=lambda one: order.get(one.verdict, 3))
    return sorted([*rest, kept], key=lambda finding: finding.check)


def audit_method(
    model: ModelFile, dataset: Dataset, stage: str, method: Any, asked: Asked, console: Console
) -> dict[str, Any]:
    """Audit eval's or ttt's method as it is set, on a model. At levels quick and full its windows and chunks are made
    small, so that short streams hold several.
    """
    changes: dict[str, list[int]] = {}
    shown, architecture = shown_method(stage, method), to_values(model.config.model)
    model = as_scored(model, method)
    if asked.level.name != "real":
        method, changes = reduced(method, asked.sweep_length or asked.length)
    size = model.config.model.vocab_size
    vocabulary = tokenizer_vocabulary(dataset.tokenizer, size, BOS)
    about = {
        "kind": "evaluator",
        "stage": stage,
        "method": shown,
        "reduced": changes,
        "model": model.describe(),
        "architecture": architecture,
        "data": str(dataset.folder.resolve()),
        "data_sha256": dataset.fingerprint("val"),
        "seed": asked.seed,
        "targets": asked.sweep_length or asked.length,
        "device": str(asked.device),
        "threads": torch.get_num_threads(),
    }
    subject = InProcess(model.build(asked.device), method, vocabulary, about)
    stream = real_stream(dataset, asked.length, method.seq_len, asked.seed)
    checks = QUICK if asked.level.name == "quick" else FULL
    say = told(console, shown["name"])
    length = asked.sweep_length
    sweep = real_stream(dataset, length, method.seq_len, asked.seed + 1) if length else None
    findings = examine(subject, stream, asked.level, asked.seed, checks, sweep, say)
    findings = merged(findings, bytes_finding(dataset.folder, asked.tokenizer, console))
    if model.kind == "artifact":
        findings = with_size(findings, model)
    if asked.level.name != "quick":
        findings = merged(findings, provenance(model, dataset, asked.tokenizer, console))
    return audit_document(findings, asked.level.name, about)


def with_size(findings: list[Finding], model: ModelFile) -> list[Finding]:
    """With the size of the artifact judged too."""
    finding = check_artifact_size(model.path, model)
    if finding.verdict == VIOLATED:
        return merged(findings, finding)
    return findings


def told(console: Console, name: str) -> Callable[[str], None]:
    """Says how long each check took."""
    return lambda line: console.line(f"audit {name}: {line}")


def audit_program(program: Program, dataset: Dataset | None, asked: Asked, console: Console) -> dict[str, Any]:
    """Audit a program that writes losses; with a dataset on pieces of its text, and its bytes too."""
    if dataset is None:
        stream = drawn_stream(program.vocabulary, asked.length, 64, asked.seed)
    else:
        stream = real_stream(dataset, asked.length, 64, asked.seed)
    about = program.describe() | {"seed": asked.seed, "targets": asked.length}
    findings = examine(program, stream, asked.level, asked.seed, "0abcdjk", say=told(console, "program"))
    findings = merged(findings, without_network(program, stream.tokens))
    if dataset is not None:
        findings = merged(findings, bytes_finding(dataset.folder, asked.tokenizer, console))
    else:
        findings = merged(findings, untested("f", "there is no text to hold bytes against; give --data"))
    return audit_document(findings, asked.level.name, about)


def program_vocabulary(dataset: Dataset | None, vocab_size: int, bos_id: int) -> Vocabulary:
    """The ids of a dataset's tokenizer, or as many without one."""
    if dataset is None:
        return plain_vocabulary(vocab_size, bos_id)
    return tokenizer_vocabulary(dataset.tokenizer, dataset.vocab_size, BOS)
