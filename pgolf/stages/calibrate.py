"""Calibration as a file: second moments of a checkpoint's inputs and gradients, collected once for every quantizer."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pgolf.core.dist import World
from pgolf.core.errors import InputError
from pgolf.core.quant.calibration import collect_hessians
from pgolf.core.quant.curvature import Calibration, collect_curvature
from pgolf.core.quant.gptq import Gptq
from pgolf.core.quant.roles import compensating
from pgolf.core.shards import TrainStream
from pgolf.core.tensorfile import load_tensors, save_tensors, tensor_meta
from pgolf.dataset import Dataset
from pgolf.report.console import Console
from pgolf.stages.model_files import ModelFile

HESSIANS_SCHEMA, CALIBRATION_SCHEMA, COUPLED_SCHEMA = (f"pgolf.hessians/{version}" for version in (1, 2, 3))
"""Version 1 had the inputs' moments alone, under the weights' names, version 2 no couplings. The least that is enough
is written.
"""


@dataclass(frozen=True)
class Depth:
    """What a calibration holds beside the moments of inputs: those of gradients by row, and between rows."""

    gradients: bool = False
    couplings: bool = False

    @classmethod
    def of(cls, quantizers: Iterable[Gptq]) -> "Depth":
        """What these quantizers ask for."""
        some = list(quantizers)
        return cls(any(one.planned for one in some), any(one.couple == "rows" for one in some))

    def __or__(self, other: "Depth") -> "Depth":
        """What is enough for both."""
        return Depth(self.gradients or other.gradients, self.couplings or other.couplings)

    def lacking(self, meta: dict[str, Any]) -> str:
        """What a file lacks of it, empty for nothing."""
        if self.gradients and not meta.get("gradients"):
            return "it has no gradients, which quant.steps and quant.rounding ask for"
        return (
            "it has no couplings, which quant.couple asks for" if self.couplings and not meta.get("couplings") else ""
        )

    def held(self, path: Path) -> bool:
        """Whether there is a calibration file that says it has all of it."""
        try:
            return path.is_file() and not self.lacking(tensor_meta(path)[0])
        except InputError:
            return False


def kept_beside(out: Path) -> Path:
    """Where the calibration of a quantized model is kept unless the user names a file."""
    return out.parent / "hessians.safetensors"


def training_tokens(quantizer: Gptq) -> int:
    """How many training tokens a calibration takes."""
    taken = quantizer.calibration_seqs * quantizer.calibration_seq_len
    return taken if quantizer.calibration_source == "train" else 0


def reads_training(quantizer: Any) -> bool:
    """Whether calibrating for a quantizer takes training tokens, and its seconds therefore count as training."""
    return any(map(training_tokens, compensating(quantizer)))


def training_stream(dataset: Dataset, quantizer: Gptq) -> TrainStream:
    """The training tokens. InputError when there are fewer than calibration takes."""
    shards, wanted = dataset.split("train"), training_tokens(quantizer)
    if (total := sum(map(len, shards))) < wanted:
        raise InputError(
            f"calibration wants {wanted:,} training tokens, there are {total:,}",
            str(dataset.folder),
            "lower quant.calibration_seqs",
        )
    return TrainStream(shards)


def described(model: ModelFile, dataset: Dataset, quantizer: Gptq) -> dict[str, Any]:
    """What a calibration depends on. Where the model makes up its text, that is no data."""
    source = quantizer.calibration_source
    without = {"exported_without": list(model.left)} if model.left else {}
    return without | {
        "checkpoint_sha256": model.sha256,
        "data_sha256": dataset.fingerprint("train") if source == "train" else "",
        "calibration_source": source,
        "calibration_seqs": quantizer.calibration_seqs,
        "calibration_seq_len": quantizer.calibration_seq_len,
    }


def upgrade_hessians(tensors: dict[str, Any], meta: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and metadata of version 1 as version 2 has them."""
    tokens = meta.get("calibration_seqs", 0) * meta.get("calibration_seq_len", 0)
    facts = {"calibration_source": "train", "tokens": tokens, "gradients": False}
    return {f"inputs.{name}": tensor for name, tensor in tensors.items()}, {**meta, **facts}


def read_calibration(path: Path) -> tuple[Calibration, dict[str, Any]]:
    """A calibration file and what it depends on. InputError if it is damaged or empty."""
    tensors, meta, _ = load_tensors(path, COUPLED_SCHEMA, (HESSIANS_SCHEMA, CALIBRATION_SCHEMA))
    counts = ("calibration_seqs", "calibration_seq_len", "tokens")
    if wrong := [name for name in counts if type(meta.get(name, 0)) is not int]:
        raise InputError(f"{wrong[0]} is no whole number", str(path), "collect it anew with --force")
    if meta["schema"] == HESSIANS_SCHEMA:
        tensors, meta = upgrade_hessians(tensors, meta)
    meta = {"couplings": False, **meta}
    found = Calibration(tokens=meta.get("tokens", 0))
    for name, tensor in tensors.items():
        group, _, weight = name.partition(".")
        if group not in found.groups():
            raise InputError(f"unknown tensor {name}", str(path), "the file is damaged")
        found.groups()[group][weight] = tensor
    if not found.inputs or found.tokens < 1:
        raise InputError("the calibration holds no tokens", str(path), "collect it anew with --force")
    return found, meta


def collected_seconds(path: Path) -> float | None:
    """Seconds that it took to collect a calibration file, None where the file does not say, as those of before."""
    seconds = tensor_meta(path)[0].get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else None


def difference(meta: dict[str, Any], wanted: dict[str, Any], depth: Depth) -> str:
    """Why a calibration does not serve; empty if it does."""
    for key, value in wanted.items():
        if (found := meta.get(key)) != value:
            short = [str(one)[:16] if key.endswith("sha256") else str(one) for one in (found, value)]
            return f"its {key} is {short[0]}, wanted is {short[1]}"
    return depth.lacking(meta)


def shared_sums(found: Calibration, world: World) -> Calibration:
    """The calibration of all ranks together, summed in the order of names, which is the same on every rank."""
    for group in found.groups().values():
        for name in sorted(group):
            group[name] = world.sum_(group[name].to(world.device)).cpu()
    found.tokens = int(world.sum_(torch.tensor([found.tokens], device=world.device)).item())
    return found


def collect(
    model: ModelFile, stream: TrainStream, quantizer: Gptq, depth: Depth, world: World, console: Console
) -> Calibration:
    """Run the calibration batches, this rank's share of them, and add up. InputError if a rank would have none."""
    batches = -(-quantizer.calibration_seqs // quantizer.calibration_batch)
    if batches < world.size:
        raise InputError(f"{batches} calibration batches for {world.size} ranks", "quant.calibration_batch", "lower it")
    network = model.build(world.device)
    with console.progress() as line:

        def shown(done: int) -> None:
            line.count("calibration", done, -(-batches // world.size))

        numbered = quantizer.batches(network, stream, world.rank, world.size)
        if depth.gradients:
            return shared_sums(collect_curvature(network, numbered, shown, depth.couplings), world)
        found = shared_sums(Calibration(collect_hessians(network, numbered, shown)), world)
    found.tokens = quantizer.calibration_seqs * quantizer.calibration_seq_len
    return found


def kept_calibration(
    model: ModelFile,
    dataset: Dataset,
    quantizer: Gptq,
    path: Path,
    depth: Depth,
    console: Console,
    strict: bool,
) -> Calibration | None:
    """The calibration in a file; None if there is none or it is stale, damaged (with a warning) or another's. With
    `strict` (the user named the file) one that does not serve is refused; InputError says why.
    """
    if not path.is_file():
        return None
    try:
        found, meta = read_calibration(path)
        if not (reason := difference(meta, described(model, dataset, quantizer), depth)):
            return found
        if strict:
            raise InputError(f"this is not the calibration wanted: {reason}", str(path), "name another, or --force")
    except InputError as error:
        if strict:
            raise
        console.warn(f"the calibration kept is not usable and is collected anew: {error}")
    return None


def calibration(
    model: ModelFile,
    dataset: Dataset,
    quantizer: Gptq,
    path: Path,
    depth: Depth,
    world: World,
    console: Console,
    strict: bool = False,
    force: bool = False,
) -> tuple[Calibration, bool]:
    """The calibration a quantizer needs and whether it came from the file. One that is stale, damaged or another's is
    collected anew and written over, or with `strict` (the user named the file) refused. InputError says why.
    """
    kept = None if force else kept_calibration(model, dataset, quantizer, path, depth, console, strict)
    if kept is not None:
        return kept, True
    wanted, start = described(model, dataset, quantizer), time.monotonic()
    found = collect(model, training_stream(dataset, quantizer), quantizer, depth, world, console)
    if world.leads:
        tensors = {f"{group}.{name}": t for group, sums in found.groups().items() for name, t in sums.items()}
        facts = {"schema": CALIBRATION_SCHEMA, "tokens": found.tokens, "gradients": depth.gradients}
        facts["seconds"] = round(time.monotonic() - start, 3)
        if depth.couplings:
            facts |= {"schema": COUPLED_SCHEMA, "couplings": True}
        save_tensors(path, tensors, facts | wanted)
    return found, False


def calibrate(
    model: ModelFile,
    dataset: Dataset,
    quantizer: Any,
    path: Path,
    world: World,
    console: Console,
    force: bool = False,
) -> dict[str, Any]:
    """Collect everything into a file, gradients included, for any quantizer to come but one with
    couplings: those, which take as much room again, only if this one asks for them. What was done, for people.
    """
    if not (wanting := compensating(quantizer)):
        raise InputError("this quantizer needs no calibration", "quant.method", "set quant.method=gptq")
    start, model = time.monotonic(), model.exported()
    depth = Depth(gradients=True, couplings=Depth.of(wanting).couplings)
    found, fresh = calibration(model, dataset, wanting[0], path, depth, world, console, force=force)
    return {
        "file": str(path),
        "fresh": fresh,
        "tokens": found.tokens,
        "matrices": len(found.inputs),
        "tables": len(found.lookups),
        "seconds": round(time.monotonic() - start, 3),
    }
