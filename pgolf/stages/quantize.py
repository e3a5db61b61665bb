"""quantize: a checkpoint in, integer codes out. What a calibration found is kept in a file."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pgolf.catalog import name_of
from pgolf.config.hazards import QUANTIZE, hazards
from pgolf.config.load import Resolved
from pgolf.config.run import RunConfig
from pgolf.config.tree import to_values
from pgolf.core.dist import World, pick_device
from pgolf.core.errors import InputError, RuleError
from pgolf.core.model.config import param_specs
from pgolf.core.model.gpt import GPT
from pgolf.core.model.params import ATTN, CONTROL, EMBED, HEAD, MLP
from pgolf.core.quant.base import IN_TURN, check_finite
from pgolf.core.quant.curvature import Calibration
from pgolf.core.quant.gptq import Gptq, check_search
from pgolf.core.quant.gptq_lqer import Lqer
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.core.quant.roles import ByRole, compensating, known_by_role
from pgolf.core.quant.sequential import InTurn, PairedStream, held_batches
from pgolf.core.quant.steps import Planned
from pgolf.core.quant.tuned import tuned_to
from pgolf.core.quant.tuning import KlTuning
from pgolf.core.quant.variants import CoarseLayers
from pgolf.core.shards import TrainStream
from pgolf.dataset import Dataset
from pgolf.fast_trellis import fast_coupled_viterbi, fast_viterbi
from pgolf.report.console import Console
from pgolf.report.quantized import tensor_report
from pgolf.stages.budget import Fit, Fitter, downgraded
from pgolf.stages.calibrate import (
    Depth,
    calibration,
    collected_seconds,
    kept_beside,
    reads_training,
    training_stream,
    training_tokens,
)
from pgolf.stages.coding import quantized_model
from pgolf.stages.judge import Judge
from pgolf.stages.manifest import fresh_entry, guarded, provenance, record, stage_key
from pgolf.stages.memory import enough_memory, trim_memory
from pgolf.stages.model_files import ModelFile, artifact_info, load_model, save_quantized, with_tokenizer
from pgolf.stages.packing import CODE_SECTIONS, encoded, script_bytes


def compiled_search(plan: Planned) -> Callable[..., Any]:
    """The compiled search along a trellis, which a quantizer takes unless it asks for the kernel."""
    return fast_viterbi if plan.coupling is None else fast_coupled_viterbi


def knowing(quantizer: Any, model: ModelFile, found: Calibration) -> Callable[[Any], Mapping[str, Any]]:
    """What tells a quantizer, this one or it with other thetas, what it needs to know of each parameter, with the
    compiled search where it has a trellis.
    """
    if isinstance(quantizer, ByRole):
        return knowing_by_role(quantizer, model, found)
    if not (isinstance(quantizer, Gptq) and quantizer.planned):
        return lambda same: found.inputs
    roles: dict[str, Any] = {
        role: dataclasses.replace(quantizer.own(role), theta=1.0) for role in (EMBED, ATTN, MLP, HEAD)
    }
    plain = dataclasses.replace(quantizer, theta=1.0, bits_per_weight=0.0, **roles)
    specs = [spec for spec in param_specs(model.config.model) if spec.role != CONTROL]
    base = plain.plan(specs, model.weights, found)
    for plan in base.values():
        plan.search = compiled_search(plan)
    return lambda same: same.scaled(specs, model.weights, base)


def knowing_by_role(quantizer: ByRole, model: ModelFile, found: Calibration) -> Callable[[ByRole], Mapping[str, Any]]:
    """The same for a quantizer by role."""
    plain: dict[str, Any] = {
        role: dataclasses.replace(one, theta=1.0, bits_per_weight=0.0)
        for role, one in quantizer.quantizers().items()
        if isinstance(one, Gptq)
    }
    base = known_by_role(dataclasses.replace(quantizer, **plain), param_specs(model.config.model), model.weights, found)
    for plan in base.values():
        if isinstance(plan, Planned):
            plan.search = compiled_search(plan)

    def known(same: ByRole) -> dict[str, Any]:
        scaled = dict(base)
        for role, one in same.quantizers().items():
            if isinstance(one, Gptq) and one.planned:
                specs = [spec for spec in param_specs(model.config.model) if spec.role == role]
                scaled |= one.scaled(specs, model.weights, base)
        return scaled

    return known


class TimedTurn(InTurn):
    """Parameters quantized in turn under the eyes of people; `seconds` are what the last time took."""

    def __init__(self, model: GPT, batches: Sequence[torch.Tensor], console: Console) -> None:
        super().__init__(model, batches)
        self.console, self.seconds = console, 0.0

    def stop(self, x: torch.Tensor, stream: PairedStream | None) -> bool:
        """As the core does; what a thread has freed is of no use to the next."""
        last = super().stop(x, stream)
        trim_memory()
        return last

    def codes(
        self, weights: Mapping[str, torch.Tensor], known: Mapping[str, Any], code: Callable[..., QTensor | torch.Tensor]
    ) -> dict[str, QTensor | torch.Tensor]:
        """As the core does."""
        start, count, total = time.monotonic(), itertools.count(1), sum(weight.ndim == 2 for weight in weights.values())
        with self.console.progress() as line, enough_memory("quant.calibration_seqs"):

            def shown(*given: Any) -> QTensor | torch.Tensor:
                line.count("matrices in turn", next(count), total)
                return code(*given)

            made = super().codes(weights, known, shown)
        self.seconds = time.monotonic() - start
        return made


def in_turn(
    quantizer: Any, model: ModelFile, dataset: Dataset, device: torch.device, console: Console
) -> TimedTurn | None:
    """What quantizes a model's parameters in the order in which they act, if that is asked for."""
    first = next((one for one in compensating(quantizer) if one.sequential), None)
    if first is None:
        return None
    network = model.build(device)
    batches = first.batches(network, training_stream(dataset, first))
    return TimedTurn(network, held_batches(batches), console)


def also_in_turn(known: Callable[[Any], Mapping[str, Any]], turn: InTurn) -> Callable[[Any], Mapping[str, Any]]:
    """What tells a quantizer what it needs to know, and what quantizes in turn."""
    return lambda same: {**known(same), IN_TURN: turn}


def judge_of(model: ModelFile, dataset: Dataset, device: torch.device, console: Console) -> Judge | None:
    """A judge of what is made of a model; None, with a warning, where the data does not allow it."""
    try:
        return Judge(model, dataset, device)
    except InputError as error:
        console.warn(f"what quantization costs is not known: {error.what}")
        return None


def check_gap(result: QuantizedModel, judge: Judge, limit: float, console: Console) -> dict[str, Any]:
    """What quantization costs, as figures. RuleError when that is more than `limit` BPB."""
    cost = judge.cost(result.weights())
    gap, kl = float(cost.gap.sum()), float(cost.kl.sum())
    if not gap <= limit:
        raise RuleError(
            f"the quantized model is {gap:.3f} BPB worse than the float model on {judge.targets:,} training targets",
            f"quant.max_gap {limit:g}",
            "take finer steps or, if it is meant to be so coarse, raise quant.max_gap",
        )
    console.line(f"quantize: {gap:+.4f} BPB, KL {kl:.4f}, on {judge.targets:,} training targets")
    return {"gap_bpb": gap, "kl_bpb": kl, "judged_targets": judge.targets}


def submission_bytes(config: RunConfig, made: QuantizedModel, tokenizer_sha256: str) -> int:
    """Bytes of the artifact of a quantized model and of the script beside it."""
    info = artifact_info(config, tokenizer_sha256)
    blob, _ = encoded(made, config.compress, info)
    return len(blob) + script_bytes(config, info)


def tuned(
    made: QuantizedModel,
    model: ModelFile,
    dataset: Dataset,
    quantizer: Any,
    device: torch.device,
    judge: Judge | None,
    console: Console,
) -> tuple[QuantizedModel, dict[str, Any]]:
    """A quantized model tuned to its float model, on the training tokens after those that a calibration takes; and what
    this changed, as figures.
    """
    start, tuning, stream = time.monotonic(), quantizer.tune, TrainStream(dataset.split("train"))
    if wanting := compensating(quantizer):
        stream.position = training_tokens(wanting[0])
    with console.progress() as line:
        batches = tuning.batches(stream)
        result = tuned_to(
            tuning, made, model.build(device), batches, lambda done: line.count("tuning", done, tuning.steps)
        )
    seconds = time.monotonic() - start
    tokens = tuning.steps * tuning.seqs * tuning.seq_len
    figures = {"kind": name_of("QuantTuning", type(tuning)), "tokens": tokens, "seconds": round(seconds, 3)}
    if judge:
        before, after = (float(judge.cost(one.weights()).kl.sum()) for one in (made, result))
        console.line(f"quantize: tuned on {tokens:,} training tokens, KL {before:.4f} -> {after:.4f}")
        figures |= {"kl_bpb_before": before, "kl_bpb_after": after}
    return result, figures


def fitted(
    budget: int,
    model: ModelFile,
    config: RunConfig,
    known: Callable[[Any], Mapping[str, Any]],
    judge: Judge | None,
    console: Console,
) -> Fit:
    """Steps at which the submission has `budget` bytes; see `pgolf.stages.budget`."""
    if judge is None:
        raise InputError("what bytes are worth is measured on training documents", "--budget", "tokenize anew")
    measure = judge

    def total(quantizer: Any, made: QuantizedModel) -> int:
        return submission_bytes(dataclasses.replace(config, quant=quantizer), made, model.tokenizer_sha256)

    if isinstance(config.quant, CoarseLayers):
        specs, weights = model.config.model, model.weights
        return downgraded(
            budget, config.quant, config, lambda one: quantized_model(specs, weights, one, known(one)), total, console
        )

    def cost(made: QuantizedModel) -> torch.Tensor:
        return measure.cost(made.weights()).kl

    return Fitter(config, model.weights, known, cost, total, console).solve(budget)


def check_reserve(model: ModelFile, spent: Mapping[str, float], console: Console) -> dict[str, Any]:
    """When the last training token was read on the clock of training, as figures, where that clock is known: what reads
    training tokens after training is training too in the records. Warns when that was beyond the budget; `spent` has
    the seconds of each.
    """
    trained = model.meta.get("figures", {}).get("train_seconds", 0.0)
    budget_s, after = model.config.train.max_wallclock_seconds, sum(spent.values())
    if not after:
        return {}
    both = trained + after
    if trained:
        limit = f"of {budget_s:g} s" if budget_s else "without a budget"
        console.line(
            f"quantize: the last training token was read {both:.1f} s after training began, {limit}; "
            f"train.reserve_seconds={after + 1:.1f} keeps what this took and a second"
        )
    if 0 < budget_s < both:
        parts = [f"{what} ({seconds:.1f} s)" for what, seconds in spent.items() if seconds]
        console.warn(
            f"training ({trained:.1f} s) and {' and '.join(parts)} took {both - budget_s:.1f} s more than "
            f"train.max_wallclock_seconds={budget_s:g}: raise train.reserve_seconds"
        )
    found = {"elapsed_s": round(both, 3), "budget_s": budget_s, "within_budget": both <= budget_s if budget_s else None}
    return {"last_training_token": found} if trained else {}


def quantize(
    checkpoint: Path,
    dataset: Dataset,
    out: Path,
    resolved: Resolved,
    device_name: str,
    console: Console,
    kept: Path | None = None,
    force: bool = False,
    budget: int = 0,
    shared: Depth | None = None,
) -> dict[str, Any]:
    """Quantize a checkpoint into `out`; returns the manifest entry with "fresh" set when nothing had to be done. The
    calibration is that in `kept`, which must be the right one unless forced, else one beside `out`; where it is not the
    right one, it is made anew. So is one in `kept` that is `shared` with others, for whom it is to hold that much. With
    a `budget` steps are found at which the submission has that many bytes.
    """
    start = time.monotonic()
    device = pick_device(device_name, 0)
    model = load_model(checkpoint)
    if model.kind != "checkpoint":
        raise InputError(f"a {model.kind} cannot be quantized again", str(checkpoint), "give the float checkpoint")
    model = with_tokenizer(model, dataset)
    check_finite(model.weights)
    model = model.exported()
    quantizer = resolved.config.quant
    resolved.config.check_layers()
    known_bad = hazards(resolved.config, (QUANTIZE,), trained="train" in model.stored)
    for text in known_bad:
        console.warn_once(text)
    section: dict[str, Any] = {"quant": to_values(quantizer, "Quantizer")}
    if budget:
        section |= {"budget": budget} | {name: resolved.values[name] for name in CODE_SECTIONS}
    if model.left:
        section["exported_without"] = list(model.left)
    inputs = {"checkpoint": model.sha256, "data": dataset.fingerprint("train")}
    key = stage_key("quantize", section, inputs)
    with guarded(out), enough_memory("quant.calibration_batch"):
        if not force and (entry := fresh_entry(out, key)):
            return entry | {"fresh": True}
        check_search(quantizer, device)
        seconds = {"load": time.monotonic() - start}
        place = Place(kept or kept_beside(out), shared or Depth(), kept is not None and shared is None and not force)
        found, cached = calibrated(model, dataset, quantizer, device, console, place, seconds)
        known, turn = knowing(quantizer, model, found), in_turn(quantizer, model, dataset, device, console)
        if turn:
            known = also_in_turn(known, turn)
        result, resolved, figures = coded(model, dataset, resolved, known, device, console, budget)
        read = dict[str, float]()
        if reads_training(quantizer):
            spent = collected_seconds(place.file) if cached else seconds.get("hessians", 0.0)
            figures["calibration_seconds"] = None if spent is None else round(spent, 3)
            read["calibration"] = 0.0 if cached else seconds.get("hessians", 0.0)
            read["sequential calibration"] = turn.seconds if turn else 0.0
        read["tuning"] = figures.get("tuned", {}).get("seconds", 0.0)
        figures |= check_reserve(model, read, console)
        if turn:
            figures["sequential"] = {
                "tokens": sum(ids.numel() for ids in turn.batches),
                "seconds": round(turn.seconds, 3),
            }
        rows, warnings = tensor_report(result, model.weights, found)
        warnings += short_of_bits(resolved.config.quant, rows)
        for warning in warnings:
            console.warn(warning)
        meta = {
            "config": resolved.values,
            "checkpoint_sha256": model.sha256,
            "tokenizer_sha256": model.tokenizer_sha256,
            "provenance": provenance(str(device)),
            "tensors": rows,
        }
        save_quantized(out, result, meta)
        weights = sum(math.prod(row["shape"]) for row in rows)
        bits = sum(row["entropy_bits"] * math.prod(row["shape"]) for row in rows)
        figures = {
            "method": name_of("Quantizer", type(quantizer)),
            "quantized_tensors": len(rows),
            "quantized_weights": weights,
            "kept_weights": sum(spec.numel for spec in param_specs(result.config)) - weights,
            "entropy_bits": round(bits / max(weights, 1), 4),
            "hessians_cached": cached,
            "warnings": [*known_bad, *warnings],
            **figures,
            "tensors": rows,
        }
        seconds["total"] = time.monotonic() - start
        entry = record(out, "quantize", key, resolved.values, inputs, figures, rounded(seconds), str(device))
    return entry | {"fresh": False}


def short_of_bits(quantizer: Any, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warnings where bits per weight were asked for that codes do not have; `rows` are the tensors' figures. Codes have
    8 bits, a trellis's as well, and the rows' largest weights keep steps from being finer. A low-rank part that is
    taken out first leaves less to code, so that nothing is said of those.
    """
    found = list[str]()
    asked = quantizer.quantizers() if isinstance(quantizer, ByRole) else {"": quantizer}
    for role, one in asked.items():
        wanted = 0.0 if isinstance(one, Lqer) else getattr(one, "bits_per_weight", 0.0)
        mine = [row for row in rows if role in ("", row["role"])]
        sizes = [math.prod(row["shape"]) for row in mine]
        had = sum(size * row["entropy_bits"] for size, row in zip(sizes, mine, strict=True)) / max(sum(sizes), 1)
        if mine and had < 0.97 * wanted:
            key = ".".join(part for part in ("quant", role, "bits_per_weight") if part)
            found.append(f"{key}={wanted:g} cannot be had: codes of 8 bits have {had:.2f} by entropy here")
    return found


@dataclass(frozen=True)
class Place:
    """A calibration's file, how much it is to hold at least, and whether one that does not serve is refused."""

    file: Path
    depth: Depth
    strict: bool


def calibrated(
    model: ModelFile,
    dataset: Dataset,
    quantizer: Any,
    device: torch.device,
    console: Console,
    place: Place,
    seconds: dict[str, float],
) -> tuple[Calibration, bool]:
    """The calibration a quantizer needs, empty where it needs none, and whether that came from a file."""
    if not (wanting := compensating(quantizer)):
        return Calibration(), False
    start, depth = time.monotonic(), Depth.of(wanting) | place.depth
    world = World(device=device)
    found, cached = calibration(model, dataset, wanting[0], place.file, depth, world, console, place.strict)
    seconds["hessians"] = time.monotonic() - start
    return found, cached


def coded(
    model: ModelFile,
    dataset: Dataset,
    resolved: Resolved,
    known: Callable[[Any], Mapping[str, Any]],
    device: torch.device,
    console: Console,
    budget: int,
) -> tuple[QuantizedModel, Resolved, dict[str, Any]]:
    """The quantized model, the configuration that made it, and what is known of its cost. RuleError if it is broken, or
    if the budget cannot be met.
    """
    config, figures = resolved.config, dict[str, Any]()
    limit = config.quant.max_gap
    judge = judge_of(model, dataset, device, console) if limit or budget else None
    if budget:
        fit = fitted(budget, model, config, known, judge, console)
        result, figures = fit.model, {"budget": {"bytes": budget, **fit.document()}}
        resolved = dataclasses.replace(resolved, config=dataclasses.replace(config, quant=fit.quantizer))
    else:
        result = quantized_model(model.config.model, model.weights, config.quant, known(config.quant))
    if isinstance(config.quant.tune, KlTuning):
        result, figures["tuned"] = tuned(result, model, dataset, config.quant, device, judge, console)
        if budget:
            total = figures["budget"]["total_bytes"] = submission_bytes(resolved.config, result, model.tokenizer_sha256)
            if total > budget:
                what = f"tuning made {total:,} bytes of {fit.total_bytes:,}, {total - budget:,} too many"
                raise RuleError(what, f"--budget {budget}", "give a budget smaller by that")
    if judge and limit:
        figures |= check_gap(result, judge, limit, console)
    return result, resolved, figures


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds to the millisecond."""
    return {name: round(value, 3) for name, value in seconds.items()}
