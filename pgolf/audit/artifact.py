"""An artifact by itself: does it decode, to the same each time, to a model that works, and does it fit?"""

from pathlib import Path
from typing import Any

import torch

from pgolf.audit.checks.size import check_artifact_size
from pgolf.audit.report import audit_document
from pgolf.audit.sandbox import watched
from pgolf.audit.verdict import HOLDS, VIOLATED, Finding
from pgolf.core.errors import InputError
from pgolf.report.console import Console
from pgolf.stages.model_files import ModelFile, load_model

PROBE = 64
"""Tokens of the row on which two decodings are compared."""


def probe(model: ModelFile) -> torch.Tensor:
    """Logits (1,T,V) of a fixed row."""
    config = model.config.model
    ids = (torch.arange(PROBE) * 7919 % config.vocab_size)[None]
    with torch.no_grad():
        network = model.build(torch.device("cpu"))
        return network.head(network.hidden(ids)).float()


def audit_artifact(path: Path, console: Console) -> dict[str, Any]:
    """Decode twice, compare logits, judge the size, watch what is opened. InputError if it is no artifact."""
    with watched() as reached:
        model = load_model(path)
        if model.kind != "artifact":
            raise InputError(f"a {model.kind} is no artifact", str(path), "give what pgolf compress made")
        first, second = probe(model), probe(load_model(path))
    findings = [same(first, second), files(reached.foreign((path.resolve(),)), path)]
    size = check_artifact_size(path, model)
    findings[1] = size if size.verdict == VIOLATED or findings[1].verdict == HOLDS else findings[1]
    network = Finding(check="h", verdict=HOLDS, what="no socket was opened", n=1)
    if reached.network:
        network = Finding(check="h", verdict=VIOLATED, what=f"{len(reached.network)} attempts at the network", n=1)
    return audit_document([*findings, network], "artifact", {"kind": "artifact", **model.describe()})


def same(first: torch.Tensor, second: torch.Tensor) -> Finding:
    """(0): both decodings give the same finite logits."""
    if not first.isfinite().all():
        return Finding(check="0", verdict=VIOLATED, what="the model's logits are not finite", n=1)
    if not torch.equal(first, second):
        return Finding(check="0", verdict=VIOLATED, what="decoded twice, it gives other logits", n=1)
    return Finding(check="0", verdict=HOLDS, what="decoded twice, it gives the same finite logits", n=1)


def files(foreign: list[str], path: Path) -> Finding:
    """(g): nothing but the artifact is read."""
    if foreign:
        return Finding(check="g", verdict=VIOLATED, what=f"reading {path.name} opens {', '.join(foreign[:5])}", n=1)
    return Finding(check="g", verdict=HOLDS, what="nothing but the artifact was read", n=1)
