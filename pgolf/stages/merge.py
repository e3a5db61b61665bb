"""Putting together the parts of a corpus that several jobs have tokenized (`pgolf tokenize --shard i/n`)."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.core.errors import ConfigError, InputError
from pgolf.core.files import make_dir, read_json, write_bytes, write_json
from pgolf.core.shards import open_shard
from pgolf.corpus.writer import SPLITS, TOTALS, DatasetWriter, SplitWriter, check_place, commit
from pgolf.dataset import Dataset, open_dataset, open_documents
from pgolf.report.console import Console
from pgolf.stages.manifest import guarded, provenance
from pgolf.stages.tokenize import check_splits, fresh_manifest, show_totals

CHUNK = 1 << 20
PART_ONLY = ("part", "key", "splits", "rule", "empty_documents", "seconds")


def read_parts(folders: list[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """The parts with their manifests, in order. InputError unless they are all parts, and all of them, of one whole."""
    parts = []
    for folder in folders:
        manifest = read_json(folder / "manifest.json")
        if not isinstance(manifest, dict) or not isinstance(manifest.get("part"), dict):
            raise InputError(
                "this is not a part of a dataset", str(folder), "make parts with pgolf tokenize --shard i/n"
            )
        parts.append((folder, manifest))
    first, of = parts[0][1], parts[0][1]["part"]["of"]
    for folder, manifest in parts:
        if (manifest["whole_key"], manifest["part"]["of"]) != (first["whole_key"], of):
            fix = f"it differs from {folders[0]} in number of parts, text, tokenizer or settings"
            raise InputError("the part belongs to another whole", str(folder), fix)
    parts.sort(key=lambda part: int(part[1]["part"]["index"]))
    found = [int(manifest["part"]["index"]) for _, manifest in parts]
    if found != list(range(1, of + 1)):
        missing = sorted(set(range(1, of + 1)) - set(found))
        what = f"parts are missing: {', '.join(map(str, missing))} of {of}" if missing else "a part is there twice"
        raise InputError(what, "pgolf data merge", "name every part once")
    return parts


def copy_split(dataset: Dataset, entry: dict[str, Any], split: str, writer: SplitWriter) -> None:
    """Append one split of a part."""
    documents = open_documents(dataset.documents[split])
    for start in range(0, len(documents), CHUNK):
        part = np.ascontiguousarray(documents[start : start + CHUNK])
        writer.add(part, np.empty(0, np.uint16), np.empty(0, np.uint16), {})
    for stream, paths in zip(writer.streams, (dataset.shards[split], dataset.sidecars)):
        for path in paths:
            values = open_shard(path)
            for start in range(0, len(values), CHUNK):
                stream.add(np.asarray(values[start : start + CHUNK]))
    for key in TOTALS:
        writer.totals[key] += int(entry[key])


def merged_rule(rules: list[dict[str, Any]]) -> dict[str, Any]:
    """The split rule of the whole."""
    start, stop = rules[0]["documents"][0], rules[-1]["documents"][1]
    rule = rules[0] | {"documents": [start, stop]}
    if "ranges" in rule:
        border = start + sum(part["ranges"]["val"][1] - part["ranges"]["val"][0] for part in rules)
        rule["ranges"] = {"val": [start, border], "train": [border, stop]}
    return rule


def merge(folders: list[Path], out: Path, console: Console) -> dict[str, Any]:
    """Make the dataset that one job would have made; returns its manifest, with "fresh" set if it was there already.

    InputError for parts that are damaged, missing, or do not belong together.
    """
    parts = read_parts(folders)
    first = parts[0][1]
    if out.resolve() in {folder.resolve() for folder in folders}:
        raise ConfigError("the result cannot stand where one of its parts is", str(out), "choose another --out")
    check_place(out)
    with guarded(out / "manifest.json"):
        if manifest := fresh_manifest(out, first["whole_key"]):
            return manifest | {"fresh": True}
        make_dir(out)
        sidecars = "sidecars" in first["splits"]["val"]
        writer = DatasetWriter(out, first["whole_key"], int(first["shard_tokens"]), sidecars, 0, resume=False)
        with closing(writer), console.progress() as line:
            for done, (folder, manifest) in enumerate(parts):
                line.count("merge", done, len(parts))
                dataset = open_dataset(folder)
                dataset.verify()
                for split in SPLITS:
                    copy_split(dataset, manifest["splits"][split], split, writer.splits[split])
            counts = {split: part.totals["documents"] for split, part in writer.splits.items()}
            check_splits(counts, first["rule"]["split"])
            splits = writer.finish()
        write_bytes(writer.folder / "tokenizer.model", dataset.tokenizer_bytes)
        manifest = {key: value for key, value in first.items() if key not in PART_ONLY} | {
            "key": first["whole_key"],
            "rule": merged_rule([manifest["rule"] for _, manifest in parts]),
            "splits": splits,
            "empty_documents": sum(int(manifest["empty_documents"]) for _, manifest in parts),
            "merged_from": [str(folder) for folder, _ in parts],
            **provenance(),
        }
        write_json(writer.folder / "manifest.json", manifest)
        commit(out)
        show_totals(manifest["splits"], console)
    return manifest | {"fresh": False}
