"""What an audit asks of a dataset: bytes, overlap, and whether a training depends on its validation split."""

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pgolf.audit.checks.provenance import check_hidden, check_swap, provenance_finding
from pgolf.audit.verdict import HOLDS, VIOLATED, Finding, case_of, untested
from pgolf.config.load import Resolved, resolve
from pgolf.core.dist import World
from pgolf.core.errors import ConfigError
from pgolf.core.quant.base import Checked
from pgolf.core.shards import open_shard, write_shard
from pgolf.dataset import BOS, Dataset
from pgolf.report.console import Console
from pgolf.report.data_audit import audit as audit_data
from pgolf.report.data_audit import audit_split
from pgolf.report.data_files import open_all
from pgolf.report.data_opened import Findings
from pgolf.report.data_totals import pieces_of
from pgolf.stages.model_files import ModelFile, load_model
from pgolf.stages.quantize import quantize
from pgolf.stages.train import train

STEPS, ROW_TOKENS = 3, 128
"""Steps of a training that is made three times, and tokens of its rows unless the model needs longer ones."""


def bytes_finding(folder: Path, tokenizer: Path | None, console: Console) -> Finding:
    """(f): every validation document decoded, and held against what its tokens are charged."""
    findings = Findings()
    opened = open_all(folder, tokenizer, findings, console)
    if opened.tokenizer is None:
        return untested("f", "there is no tokenizer to decode documents with; name one with --tokenizer")
    pieces = pieces_of(opened.tokenizer)
    decoded = audit_split(opened, "val", pieces, console, findings).decoded
    wrong = decoded.differing + sum(decoded.charged_symbols.values())
    figures = {"documents": decoded.documents, "charged": decoded.charged, "bytes": decoded.bytes}
    if opened.transformed and not opened.sidecars.whole:
        return untested("f", "text was transformed, and its byte sidecars are missing or damaged")
    if not wrong:
        what = f"{decoded.documents:,} documents are charged their {decoded.bytes:,} bytes"
        return Finding(check="f", verdict=HOLDS, what=what, n=decoded.documents, figures=figures)
    case = case_of(
        "f",
        {"kind": "charges", "where": str(folder)},
        f"pgolf data audit {folder}",
        documents=decoded.examples,
        charged_symbols=decoded.charged_symbols,
    )
    what = f"{decoded.differing:,} of {decoded.documents:,} documents are charged other than their bytes"
    return Finding(check="f", verdict=VIOLATED, what=what, n=decoded.documents, figures=figures, counterexample=case)


def decoy(dataset: Dataset, folder: Path, seed: int) -> Dataset:
    """The dataset with its validation documents' tokens permuted, in files of their own."""
    rng, paths = np.random.default_rng(seed), []
    for path in dataset.shards["val"]:
        ids = np.array(open_shard(path))
        inner = np.flatnonzero(ids != BOS)
        ids[inner] = ids[rng.permutation(inner)]
        paths.append(folder / path.name)
        write_shard(paths[-1], ids)
    return dataclasses.replace(dataset, shards=dataset.shards | {"val": paths}, hashes={}, charged_bytes=None)


def small_training(model: ModelFile) -> Resolved:
    """The model's own way of training, cut down to a few steps, in rows that are as short as its windows allow.
    ConfigError if it cannot be.
    """
    own = model.config.train.seq_len
    tokens = min(own, ROW_TOKENS)
    while True:
        try:
            return cut_training(model, tokens)
        except ConfigError:
            if tokens == own:
                raise
            tokens = min(2 * tokens, own)


def cut_training(model: ModelFile, tokens: int) -> Resolved:
    """The same with rows of so many tokens. ConfigError if it cannot be trained so."""
    sets = [
        f"train.iterations={STEPS}",
        f"train.seq_len={tokens}",
        f"train.batch_tokens={2 * tokens}",
        f"train.micro_batch_tokens={2 * tokens}",
        "train.max_wallclock_seconds=0",
        "train.val_max_tokens=256",
        "train.compile=off",
        "train.needs_gpu=false",
    ]
    if hasattr(model.config.quant, "calibration_seqs"):
        sets += ["quant.calibration_seqs=2", f"quant.calibration_seq_len={tokens}"]
    if isinstance(model.config.quant, Checked):
        sets.append("quant.max_gap=0")
    found = resolve(stored=model.stored, sets=sets)
    found.config.check_training()
    return found


def made_of(dataset: Dataset, resolved: Resolved, place: Path) -> str:
    """Train and quantize; the hash of the codes."""
    console = Console(quiet=True)
    train(dataset, place, resolved, World(), console)
    quantized = place / "quantized.safetensors"
    quantize(place / "checkpoint.safetensors", dataset, quantized, resolved, "cpu", console)
    return load_model(quantized).sha256


def provenance(model: ModelFile, dataset: Dataset, tokenizer: Path | None, console: Console) -> Finding:
    """(e): no document in both splits, and a training of a few steps that neither depends on the validation split nor
    opens it.
    """
    data = audit_data(dataset.folder, tokenizer, [], None, 1, console)
    shared = data["overlap"]["documents"]
    faults = [f"{shared:,} documents are in both splits"] * bool(shared)
    try:
        resolved = small_training(model)
    except ConfigError as error:
        return untested("e", f"the model's training cannot be cut down: {error}")
    with TemporaryDirectory() as place:
        folder = Path(place)
        other = decoy(dataset, folder / "decoy", 0)
        console.line("audit: three trainings of a few steps")
        faults += check_swap(
            lambda: made_of(dataset, resolved, folder / "first"), lambda: made_of(other, resolved, folder / "second")
        )
        hidden = tuple(dataset.shards["val"])
        faults += check_hidden(lambda: made_of(other, resolved, folder / "third"), hidden)
    tested = "no shared documents; another validation split gives the same codes; training and quantizing never open it"
    replay = f"pgolf audit run eval --level full --model {model.path} --data {dataset.folder}"
    return provenance_finding(faults, 1, tested, replay)
