"""Shards from elsewhere: a manifest with their hashes, sizes and tokenizer, and no copy of them."""

from pathlib import Path
from typing import Any

import numpy as np

from pgolf.core.files import make_dir, write_bytes, write_json
from pgolf.corpus.writer import SPLITS
from pgolf.dataset import BOS, DATASET_SCHEMA, Dataset, adopt, open_dataset
from pgolf.report.console import Console
from pgolf.stages.manifest import guarded, provenance, stage_key
from pgolf.stages.tokenize import fresh_manifest, show_totals


def adopt_dataset(folder: Path, out: Path, tokenizer: Path | None, vocab_size: int, console: Console) -> dict[str, Any]:
    """Take shards from elsewhere into a run: the manifest and the tokenizer lie in `out`, the shards stay."""
    with guarded(out / "manifest.json"):
        dataset = open_dataset(folder, tokenizer, vocab_size)
        for warning in dataset.warnings:
            console.warn(warning)
        place = str(folder.resolve())
        key = stage_key("tokenize", {"adopted_from": place}, {"shards": dataset.fingerprint(*SPLITS)})
        if manifest := fresh_manifest(out, key):
            return manifest | {"fresh": True}
        make_dir(out)
        write_bytes(out / "tokenizer.model", dataset.tokenizer_bytes)
        where = {"adopted_from": str(dataset.shards["val"][0].parent.resolve()) if dataset.shards["val"] else place}
        manifest = describe(dataset, key, where)
        write_json(out / "manifest.json", manifest)
        show_totals(manifest["splits"], console)
    return manifest | {"fresh": False}


def adopt_fetched(folder: Path, published: dict[str, str], console: Console) -> None:
    """Make a folder of published shards, with their tokenizer, a dataset: its manifest says where they come from."""
    with guarded(folder / "manifest.json"):
        dataset = adopt(folder, folder / "tokenizer.model", 0)
        key = stage_key("tokenize", {"published": published}, {"shards": dataset.fingerprint(*SPLITS)})
        if fresh_manifest(folder, key):
            return
        manifest = describe(dataset, key, {"published": published})
        write_json(folder / "manifest.json", manifest)
        show_totals(manifest["splits"], console)


def describe(dataset: Dataset, key: str, origin: dict[str, Any]) -> dict[str, Any]:
    """The manifest of shards that were not made here."""
    return {
        "schema": DATASET_SCHEMA,
        "key": key,
        **origin,
        "vocab_size": dataset.vocab_size,
        "tokenizer": {"file": "tokenizer.model", "sha256": dataset.tokenizer_sha256, "trained_here": False},
        "transform": "caseops_v1" if dataset.transformed else "none",
        "splits": {name: split_entry(dataset, name) for name in SPLITS},
        **provenance(),
    }


def split_entry(dataset: Dataset, name: str) -> dict[str, Any]:
    """Files with their hashes, tokens, documents; and the bytes of val, which the score is divided by."""
    if not dataset.shards[name]:
        return {"shards": [], "tokens": 0, "documents": 0}
    ids = dataset.split(name)

    def files(paths: list[Path]) -> list[dict[str, Any]]:
        return [
            {"file": path.name, "tokens": len(part), "sha256": dataset.shard_hash(path)}
            for path, part in zip(paths, ids)
        ]

    entry: dict[str, Any] = {
        "shards": files(dataset.shards[name]),
        "tokens": sum(len(part) for part in ids),
        "documents": sum(int((np.asarray(part) == BOS).sum()) for part in ids),
    }
    if name == "val":
        entry["charged_bytes"] = int(dataset.validation()[1].sum(dtype=np.int64))
        if dataset.transformed:
            entry["sidecars"] = files(dataset.sidecars)
    return entry
