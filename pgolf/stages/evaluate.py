"""eval and ttt: a model and a dataset in, a score out."""

import time
from pathlib import Path
from typing import Any

import torch

from pgolf.catalog import name_of
from pgolf.config.load import Resolved
from pgolf.config.tree import to_values
from pgolf.core.dist import activation_dtype, pick_device
from pgolf.core.evals.ledger import evaluate
from pgolf.core.files import write_json
from pgolf.core.model.attend import choose_attention
from pgolf.dataset import Dataset
from pgolf.report.console import Console, bar
from pgolf.stages.manifest import fresh_entry, guarded, provenance, record, stage_key
from pgolf.stages.model_files import ModelFile, check_tokenizer
from pgolf.stages.quantize import rounded

SCORE_SCHEMA = "pgolf.score/1"


def run_method(
    model: ModelFile, dataset: Dataset, stage: str, method: Any, device_name: str, console: Console, started: float
) -> dict[str, Any]:
    """Score the validation split and return the score document. `stage` is eval or ttt."""
    device = pick_device(device_name, 0)
    check_tokenizer(model, dataset.tokenizer_sha256, dataset.vocab_size, str(dataset.folder))
    slot = "EvalMethod" if stage == "eval" else "TttMethod"
    tokens, charges = dataset.validation()
    network = model.build(device)
    loaded = time.monotonic()
    name = name_of(slot, type(method))
    with console.progress() as line:

        def progress(done: int, of: int) -> None:
            spent = time.monotonic() - loaded
            line.show(
                f"{stage} {name} {bar(done / of)} {done:,} of {of:,} · ETA {spent / done * (of - done):.0f} s "
                f"· {done / max(spent, 1e-9):,.0f} tok/s"
            )

        score, ledger = evaluate(network, tokens, charges, method, progress)
    scored = time.monotonic()
    return {
        "schema": SCORE_SCHEMA,
        "stage": stage,
        "score": score.document(),
        "partial": ledger.partial,
        "share": score.tokens / (len(tokens) - 1),
        "method": {"name": name, **to_values(method)},
        "model": model.describe(),
        "data": {
            "path": str(dataset.folder.resolve()),
            "split": "val",
            "sha256": dataset.fingerprint("val"),
            "vocab_size": dataset.vocab_size,
        },
        "tokenizer_sha256": dataset.tokenizer_sha256,
        "seconds": rounded({"load": loaded - started, "score": scored - loaded, "total": scored - started}),
        "device": str(device),
        "attention": network.attention_backend,
        "threads": torch.get_num_threads(),
        "audit": "unaudited",
        "warnings": [*console.warnings],
    }


def score_model(
    model: ModelFile,
    dataset: Dataset,
    stage: str,
    resolved: Resolved,
    device: str,
    console: Console,
    out: Path | None,
    force: bool = False,
) -> dict[str, Any]:
    """Score a model file; with `out` the document is written there and reused while it is fresh."""
    started = time.monotonic()
    method = getattr(resolved.config, stage)
    if out is None:
        return (
            run_method(model, dataset, stage, method, device, console, started) | provenance(device) | {"fresh": False}
        )
    changed = {"overridden": list(model.overridden)} if model.overridden else {}
    section = {stage: to_values(method, "EvalMethod" if stage == "eval" else "TttMethod")}
    inputs = {"model": model.sha256, "data": dataset.fingerprint("val"), "tokenizer": dataset.tokenizer_sha256}
    place = pick_device(device, 0)
    attention, _ = choose_attention(model.config.model, place, activation_dtype("auto", place))
    machine = {"device": str(place), "threads": torch.get_num_threads(), "attention": attention}
    key = stage_key(stage, section | machine | changed, inputs)
    with guarded(out):
        if not force and (entry := fresh_entry(out, key)):
            return dict(entry["figures"]) | {"fresh": True}
        document = run_method(model, dataset, stage, method, device, console, started)
        write_json(out, document | provenance(document["device"]))
        record(out, stage, key, resolved.values, inputs, document, document["seconds"], document["device"])
    return document | {"fresh": False}
