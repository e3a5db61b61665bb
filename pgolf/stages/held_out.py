"""Training documents to choose by: the last ones of the training split, as the validation split of a small dataset.

What a sweep decides by looking at scores must not have looked at validation. The end of the training stream is what a
sequential loader comes to last, so a short run has not seen it; whether it has is told, as far as files can tell.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.core.errors import InputError
from pgolf.core.files import read_json, sha256_file, write_bytes, write_json
from pgolf.core.model.parts.ngram_counts import NgramCounts
from pgolf.core.shards import write_shard
from pgolf.core.train.loaders import SequentialLoader
from pgolf.corpus.encoder import Encoder
from pgolf.corpus.transforms import get_transform
from pgolf.dataset import BOS, DATASET_SCHEMA, Dataset
from pgolf.stages.manifest import guarded, provenance, stage_key
from pgolf.stages.model_files import ModelFile

SHARE = 0.1
"""The most of a training split that is taken for scoring, unless a number of tokens is given."""
ON_VALIDATION = "score the validation split with --on-validation, which the results then say"


@dataclass(frozen=True)
class Tail:
    """The last documents of a training split: ids (N,) from the token `first` of the stream on."""

    ids: np.ndarray
    first: int

    @property
    def documents(self) -> int:
        """Number of documents."""
        return int((self.ids == BOS).sum())


def find_tail(dataset: Dataset, targets: int) -> Tail:
    """The last documents that have at most `targets` targets together; with 0 as many as the validation split, at most
    a tenth of the training split. InputError if no document begins there.
    """
    shards = dataset.split("train")
    total = sum(map(len, shards))
    wanted = targets or min(sum(map(len, dataset.split("val"))) - 1, int(SHARE * total))
    if wanted >= total:
        raise InputError(f"the training split has {total:,} tokens, {wanted:,} are to be scored", str(dataset.folder))
    pieces, missing = [], wanted + 1
    for shard in reversed(shards):
        pieces.append(np.asarray(shard[max(len(shard) - missing, 0) :]))
        missing -= len(pieces[-1])
        if not missing:
            break
    stream = np.concatenate(pieces[::-1])
    starts = np.flatnonzero(stream == BOS)
    if not len(starts) or len(stream) - starts[0] < 2:
        raise InputError(
            f"no document begins in the last {wanted:,} training tokens",
            str(dataset.folder),
            f"give more --tokens, or {ON_VALIDATION}",
        )
    ids = stream[starts[0] :]
    return Tail(ids, total - len(ids))


def seen_in_training(model: ModelFile, dataset: Dataset, tail: Tail) -> bool | None:
    """Whether training may have read documents of the tail, be it to count n-grams; None if the model's file does not
    say.
    """
    step = model.meta.get("step")
    if model.kind != "checkpoint" or not isinstance(step, int) or not step:
        return None
    if model.meta.get("data_sha256") != dataset.fingerprint("train"):
        return None
    train, counts = model.config.train, model.config.model.counts
    read = step * (train.batch_tokens + train.batch_tokens // train.micro_batch_tokens)
    counted = counts.tokens if isinstance(counts, NgramCounts) else 0
    return not isinstance(train.loader, SequentialLoader) or max(read, counted) > tail.first


def transform_name(dataset: Dataset) -> str:
    """How the text was transformed before tokenization."""
    path = dataset.folder / "manifest.json"
    return str(read_json(path).get("transform", "none")) if path.is_file() else "caseops_v1"


def tail_charges(dataset: Dataset, tail: Tail) -> np.ndarray:
    """Bytes that every id of a tail of transformed text is charged, (N,), by decoding and encoding each document. What
    blanks the tokenizer's normaliser has dropped only a sidecar would know, and training shards have none. InputError
    where a document encodes to other ids.
    """
    encoder = Encoder(dataset.tokenizer_bytes, get_transform(transform_name(dataset)), str(dataset.folder))
    charges = np.zeros(len(tail.ids), np.uint16)
    starts = np.flatnonzero(tail.ids == BOS)
    for start, stop in zip(starts, [*starts[1:], len(tail.ids)]):
        ids = tail.ids[start + 1 : stop]
        text = encoder.transform.decode(encoder.tokenizer.decode(ids.tolist()))
        encoded = encoder.encode(text)
        if b"".join(encoded.ids) != ids.astype("<u2").tobytes():
            raise InputError(
                f"the training document at token {tail.first + start:,} encodes to other ids again, so its bytes are "
                "not known",
                str(dataset.folder),
                ON_VALIDATION,
            )
        charges[start + 1 : stop] = np.frombuffer(b"".join(encoded.charges), "<u2")
    return charges


def write_tail(dataset: Dataset, tail: Tail, folder: Path) -> None:
    """Make the dataset whose validation split is the tail, unless it is there already. It has no training split."""
    inputs = {"data": dataset.fingerprint("train"), "tokenizer": dataset.tokenizer_sha256}
    key = stage_key("tokenize", {"tail_from": tail.first}, inputs)
    with guarded(folder / "manifest.json", wait_s=600):
        if (folder / "manifest.json").is_file() and read_json(folder / "manifest.json").get("key") == key:
            return
        shard, sidecar = folder / "fineweb_val_000000.bin", folder / "fineweb_val_bytes_000000.bin"
        entry: dict[str, Any] = {"documents": tail.documents, "tokens": len(tail.ids)}
        if dataset.transformed:
            write_shard(sidecar, tail_charges(dataset, tail))
            entry["sidecars"] = [described(sidecar, len(tail.ids))]
        write_shard(shard, tail.ids)
        write_bytes(folder / "tokenizer.model", dataset.tokenizer_bytes)
        manifest = {
            "schema": DATASET_SCHEMA,
            "key": key,
            "vocab_size": dataset.vocab_size,
            "tokenizer": {"file": "tokenizer.model", "sha256": dataset.tokenizer_sha256, "trained_here": False},
            "splits": {"train": {"shards": []}, "val": {"shards": [described(shard, len(tail.ids))], **entry}},
            "transform": transform_name(dataset) if dataset.transformed else "none",
            "rule": {"split": "end of training", "first_token": tail.first},
            "inputs": inputs,
            **provenance(),
        }
        write_json(folder / "manifest.json", manifest)


def described(path: Path, tokens: int) -> dict[str, Any]:
    """A shard as manifests list it."""
    return {"file": path.name, "tokens": tokens, "sha256": sha256_file(path)}
