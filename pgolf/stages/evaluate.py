"""eval and ttt: a model and a dataset in, a score out."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from pgolf.catalog import name_of
from pgolf.config.hazards import hazards
from pgolf.config.load import Resolved
from pgolf.config.run import RunConfig
from pgolf.config.tree import to_values
from pgolf.core.dist import World, activation_dtype, pick_device
from pgolf.core.errors import ConfigError
from pgolf.core.evals.base import EvalMethod
from pgolf.core.evals.ledger import Ledger, evaluate
from pgolf.core.files import write_json
from pgolf.core.model.attend import choose_attention
from pgolf.core.model.config import ModelConfig
from pgolf.core.model.parts.fixed_order import FixedOrder
from pgolf.core.model.parts.layer_loop import LayerLoop
from pgolf.dataset import Dataset
from pgolf.report.console import Console
from pgolf.source import source_sha256
from pgolf.stages.eval_clock import EvalClock
from pgolf.stages.eval_cost import foreseen
from pgolf.stages.eval_partial import PartialLedger
from pgolf.stages.eval_positions import Positions, document_starts, is_positions, load_positions, save_positions
from pgolf.stages.eval_watch import ScoringWatch
from pgolf.stages.inputs import changed_keys, reshaped, warn_of_change
from pgolf.stages.manifest import fresh_entry, guarded, processor, provenance, record, stage_key
from pgolf.stages.model_files import ModelFile, check_tokenizer
from pgolf.stages.quantize import rounded

SCORE_SCHEMA = "pgolf.score/2"
SCORE_BEFORE = "pgolf.score/1"
"""Version 1 calls the ratio of a partial score `bpb` too, and has no clock."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How a score is made, beyond what decides it: on which ranks, by which clock it is judged, when that began (on
    the monotonic clock; None: now), where to keep an unfinished ledger and under which key, what every target cost, and
    what is known of the method's audit.
    """

    world: World = World()
    clock: str = "strict"
    began_s: float | None = None
    partial: PartialLedger | None = None
    positions: Path | None = None
    key: str = ""
    audit: Any = "unaudited"


def upgrade_score(document: dict[str, Any]) -> dict[str, Any]:
    """A score document of version 1 as version 2 has it, but for the clock, which it has not."""
    score = dict(document["score"])
    if document["partial"]:
        score["bpb_partial"] = score.pop("bpb")
    return document | {"schema": SCORE_SCHEMA, "score": score}


def slot_of_stage(stage: str) -> str:
    """The catalog's slot for the methods of eval or ttt."""
    return "EvalMethod" if stage == "eval" else "TttMethod"


def relooped(model: ModelFile, passes: int) -> ModelFile:
    """The model with so many passes through its loop, marked as changed. ConfigError if it has no loop, or its weights
    do not suffice.
    """
    loop, config = model.config.model.loop, model.config.model
    if not isinstance(loop, LayerLoop):
        raise ConfigError("the model has no loop", "num_loops", "set num_loops=0")
    new = dataclasses.replace(loop, extra_passes=passes - 1) if passes > 1 else FixedOrder()
    changed = f"model.loop.extra_passes {loop.extra_passes} -> {passes - 1}"
    if loop.extra_passes == passes - 1:
        return model
    return reshaped(model, dataclasses.replace(config, loop=new), (*model.overridden, changed))


def rerotated(config: ModelConfig, method: Any) -> tuple[str, ...]:
    """What a method changes of a model's rotary frequencies, as `key old -> new`. ConfigError if it cannot."""
    seen = SimpleNamespace(config=config)
    method.rope.stretch(seen)
    return tuple(changed_keys(to_values(config), to_values(seen.config), "model"))


def as_scored(model: ModelFile, method: Any) -> ModelFile:
    """The model as a method uses it: with its passes through the loop, and marked with that and with other rotary
    frequencies, which the method gives it when it begins. ConfigError if it cannot be used so.
    """
    if method.num_loops:
        model = relooped(model, method.num_loops)
    marks = rerotated(model.config.model, method)
    return dataclasses.replace(model, overridden=(*model.overridden, *marks))


def warn_of_use(model: ModelFile, given: ModelFile, stage: str, method: Any, console: Console) -> None:
    """Warn of what a method changes of a model, `given` before, and of what is known to hurt."""
    if added := model.overridden[len(given.overridden) :]:
        warn_of_change(added, console)
    config: RunConfig = dataclasses.replace(model.config, **{stage: method})
    for text in hazards(config, (stage,), trained="train" in model.stored):
        console.warn_once(text)


def shown_method(stage: str, method: Any) -> dict[str, Any]:
    """A method as documents have it: its name and settings."""
    return {"name": name_of(slot_of_stage(stage), type(method)), **to_values(method)}


def labels(method: EvalMethod) -> dict[str, bool]:
    """Whether the predictor is built from scored tokens too, and whether documents are scored independently, as the
    method and its adjusters say of themselves.
    """
    adjusters = method.adjusters()
    return {
        "adaptive": method.learns or any(adjuster.learns for adjuster in adjusters),
        "document_independent": method.alone() and not any(adjuster.crosses for adjuster in adjusters),
    }


def score_split(
    model: ModelFile, dataset: Dataset, stage: str, method: Any, device: torch.device, console: Console, how: Scoring
) -> tuple[dict[str, Any], Ledger]:
    """Score the validation split: the part of the score document that says what came out and what it took, and the
    ledger. `stage` is eval or ttt.
    """
    began = time.monotonic() if how.began_s is None else how.began_s
    timer = EvalClock(method.budget_seconds, how.clock, began)
    check_tokenizer(model, dataset.tokenizer_sha256, dataset.vocab_size, str(dataset.folder))
    given, model = model, as_scored(model, method)
    if how.world.leads:
        warn_of_use(model, given, stage, method, console)
    tokens, charges = dataset.validation()
    targets = min(len(charges), method.max_tokens or len(charges))
    for text in foreseen(stage, method, targets, how.world.size) if how.world.leads else ():
        console.warn(text)
    network = model.build(device)
    name = name_of(slot_of_stage(stage), type(method))
    timer.enter("prepare")
    with console.progress() as line:
        watch = ScoringWatch(f"{stage} {name}", timer, console, line, how.world, how.partial)
        watch.resume(min(len(tokens) - 1, method.max_tokens or len(tokens)))
        how.world.barrier()
        score, ledger = evaluate(network, tokens, charges, method, watch)
    watch.agree()
    timer.enter("end")
    phases = {phase: spent for phase, spent in timer.seconds().items() if phase != "end"}
    sums = score.document()
    partial = ledger.targets < len(tokens) - 1
    if partial:
        sums["bpb_partial"] = sums.pop("bpb")
    if stage == "ttt":
        warn_of_little(watch, method, ledger.targets)
    document = {
        "score": sums,
        "partial": partial,
        "share": score.tokens / (len(tokens) - 1),
        "method": shown_method(stage, method),
        **labels(method),
        "model": model.describe(),
        "seconds": rounded(phases | {"total": sum(phases.values())}),
        "clock": watch.document(),
        **({"learned": watch.learning()} if stage == "ttt" else {}),
        "world_size": how.world.size,
        "attention": network.attention_backend,
    }
    return document, ledger


def warn_of_little(watch: ScoringWatch, method: Any, targets: int) -> None:
    """A warning where test-time training took no step, or the weights learned less often than they were to, and not for
    want of time.
    """
    wanted, named = getattr(method, "phases", 0), f"{watch.label} of {targets:,} targets"
    if watch.stopped_at is not None:
        return
    if not watch.weight_steps + watch.adapter_steps:
        watch.console.warn(f"{named}: nothing was learned, chunks are too long or have no epochs (ttt.chunk_tokens)")
    if watch.phases < wanted:
        why = "documents or tokens are too few for the others (ttt.prefix_docs, ttt.base.chunk_tokens)"
        if not method.base.epochs:
            why = "which have no epochs (ttt.base.epochs)"
        watch.console.warn(f"{named}: the weights learned in {watch.phases} of {wanted} phases, {why}")


def run_method(
    model: ModelFile,
    dataset: Dataset,
    stage: str,
    method: Any,
    device_name: str,
    console: Console,
    how: Scoring | None = None,
) -> dict[str, Any]:
    """Score the validation split and return the score document; on several ranks, every one has it."""
    how = how or Scoring()
    device = how.world.device if how.world.size > 1 else pick_device(device_name, 0)
    document, ledger = score_split(model, dataset, stage, method, device, console, how)
    if how.positions and how.world.leads:
        facts = {"key": how.key, "method": document["method"], "model": document["model"]["sha256"]}
        starts = document_starts(ledger.reveal(0, ledger.targets + 1))
        save_positions(how.positions, Positions(ledger.losses, ledger.charges, starts, facts))
    return {
        "schema": SCORE_SCHEMA,
        "stage": stage,
        **document,
        "data": {
            "path": str(dataset.folder.resolve()),
            "split": "val",
            "sha256": dataset.fingerprint("val"),
            "vocab_size": dataset.vocab_size,
        },
        "tokenizer_sha256": dataset.tokenizer_sha256,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "audit": how.audit,
        "warnings": [*console.warnings],
    }


def resumable(stage: str, method: Any) -> bool:
    """Whether an interrupted evaluation may go on: what it would have learned is a function of the tokens."""
    return stage == "eval" and all(adjuster.replayable for adjuster in method.adjusters())


def score_key(model: ModelFile, dataset: Dataset, stage: str, method: Any, device: str) -> str:
    """What a score depends on, as one hash."""
    changed = {"overridden": list(model.overridden)} if model.overridden else {}
    section = {stage: to_values(method, slot_of_stage(stage))}
    place = pick_device(device, 0)
    wanted = model.config.train.attention_later
    attention, _ = choose_attention(model.config.model, place, activation_dtype("auto", place), wanted)
    machine = {"device": str(place), "threads": torch.get_num_threads(), "attention": attention}
    return stage_key(stage, section | machine | changed, score_inputs(model, dataset))


def score_inputs(model: ModelFile, dataset: Dataset) -> dict[str, str]:
    """The hashes of what a score is made of."""
    return {"model": model.sha256, "data": dataset.fingerprint("val"), "tokenizer": dataset.tokenizer_sha256}


def score_model(
    model: ModelFile,
    dataset: Dataset,
    stage: str,
    resolved: Resolved,
    device: str,
    console: Console,
    out: Path | None,
    force: bool = False,
    how: Scoring | None = None,
    run: Callable[..., dict[str, Any]] = run_method,
) -> dict[str, Any]:
    """Score a model file; with `out` the document is written there and reused while it is fresh, and what a killed
    evaluation had scored is used by the next. `run` does the scoring, as `run_method` does.
    """
    how = how or Scoring()
    method = getattr(resolved.config, stage)
    key = score_key(model, dataset, stage, method, device)
    how = dataclasses.replace(how, key=key)
    if out is None:
        document = run(model, dataset, stage, method, device, console, how)
        return document | provenance(document["device"]) | {"fresh": False}
    with guarded(out):
        entry = None if force or not has_positions(how) else fresh_entry(out, key)
        if entry and how.audit in ("unaudited", entry["figures"].get("audit")):
            return dict(entry["figures"]) | {"fresh": True}
        kept = out.with_name(f"{out.name}.ledger")
        place = pick_device(device, 0)
        same = f"{key} {source_sha256()} torch {torch.__version__} on {processor(place)}"
        partial = PartialLedger(kept, same) if resumable(stage, method) else None
        document = run(model, dataset, stage, method, device, console, dataclasses.replace(how, partial=partial))
        write_json(out, document | provenance(document["device"]))
        inputs = score_inputs(model, dataset)
        record(out, stage, key, resolved.values, inputs, document, document["seconds"], document["device"])
        if partial is not None:
            partial.remove()
    return document | {"fresh": False}


def has_positions(how: Scoring) -> bool:
    """Whether the file of every target's cost, if one is wanted, is there and belongs to this score."""
    if how.positions is None:
        return True
    if not how.positions.is_file() or not is_positions(how.positions):
        return False
    return bool(load_positions(how.positions).facts.get("key") == how.key)
