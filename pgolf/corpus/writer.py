"""The files of a dataset while it is made: shards that grow on disk, and a note of how far all of them are.

Everything happens in a folder of its own (`.partial`), so that an older dataset stays whole until the new one is.
`progress.json` names a document and the length of every open file at that document; whatever was written beyond it is
cut off when work goes on. Published shards are moved to their place only when all is done, the manifest last.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.core.errors import InputError, StorageError
from pgolf.core.files import GrowingFile, move_file, read_json, remove_dir, sha256_file, write_json
from pgolf.core.shards import HEADER_BYTES, SHARD_NAME, SIDECAR_NAME, open_shard, shard_header
from pgolf.dataset import DOCUMENT, DOCUMENTS_NAME, PARTIAL

PROGRESS_SCHEMA = "pgolf.tokenize-progress/1"
TOTALS = ("documents", "tokens", "raw_bytes", "normalised_bytes", "table_bytes", "charged_bytes")
SPLITS = ("train", "val")


def documents_header(count: int) -> bytes:
    """The .npy header of `count` document entries; its length does not depend on `count`."""
    header = io.BytesIO()
    description = np.lib.format.dtype_to_descr(DOCUMENT)
    np.lib.format.write_array_header_1_0(header, {"descr": description, "fortran_order": False, "shape": (count,)})
    return header.getvalue()


class Stream:
    """A row of shards of at most `limit` entries that grow one after the other: ids, or the bytes charged to them."""

    def __init__(self, folder: Path, stem: str, limit: int, shards: list[dict[str, Any]], entries: int) -> None:
        """`shards` are finished, `entries` are in the open one. InputError if the files on disk are not as noted."""
        self.folder, self.stem, self.limit = folder, stem, limit
        self.shards, self.entries = shards, entries
        self.file: GrowingFile | None = None
        for shard in shards:
            if sha256_file(folder / shard["file"]) != shard["sha256"]:
                raise InputError("a finished shard is not as it was written", str(folder / shard["file"]))
        if entries:
            published = folder / self.name
            if published.is_file():
                move_file(published, self.growing)
            self.file = GrowingFile(self.growing, HEADER_BYTES + 2 * entries)

    @property
    def name(self) -> str:
        """File name of the open shard."""
        return f"{self.stem}_{len(self.shards):06d}.bin"

    @property
    def growing(self) -> Path:
        """Where the open shard grows."""
        return self.folder / f"{self.name}.growing"

    def add(self, values: np.ndarray) -> bool:
        """Append uint16 values; returns whether a shard became full."""
        full = False
        while len(values):
            if self.file is None:
                self.file = GrowingFile(self.growing)
                self.file.append(bytes(HEADER_BYTES))
            part, values = np.split(values, [self.limit - self.entries])
            self.file.append(np.ascontiguousarray(part, "<u2").data)
            self.entries += len(part)
            if self.entries == self.limit:
                self.finish()
                full = True
        return full

    def finish(self) -> None:
        """Publish the open shard, if there is one."""
        if self.file is not None:
            path = self.folder / self.name
            self.file.publish(path, shard_header(self.entries))
            self.shards.append({"file": path.name, "tokens": self.entries, "sha256": sha256_file(path)})
            self.file, self.entries = None, 0

    def state(self) -> dict[str, Any]:
        """How far it is, everything on disk."""
        if self.file is not None:
            self.file.sync()
        return {"shards": list(self.shards), "entries": self.entries}


class SplitWriter:
    """One split: its shards, its sidecars if it has them, and an entry per document."""

    def __init__(self, folder: Path, split: str, limit: int, sidecars: bool, state: dict[str, Any]) -> None:
        self.folder, self.split = folder, split

        def stream(stem: str) -> Stream:
            known = state.get(stem, {"shards": [], "entries": 0})
            return Stream(folder, stem, limit, known["shards"], known["entries"])

        self.streams = [stream(f"fineweb_{split}")]
        if sidecars:
            self.streams.append(stream(f"fineweb_{split}_bytes"))
        self.totals: dict[str, int] = state.get("totals", dict.fromkeys(TOTALS, 0))
        self.documents_path = folder / DOCUMENTS_NAME.format(split=split)
        self.documents = self.open_documents(self.totals["documents"])

    def open_documents(self, count: int) -> GrowingFile:
        """The file of document entries, with the first `count` of them."""
        growing, header = self.documents_path.with_suffix(".growing"), documents_header(0)
        if self.documents_path.is_file() and count:
            move_file(self.documents_path, growing)
        file = GrowingFile(growing, len(header) + count * DOCUMENT.itemsize if count else 0)
        if not count:
            file.append(header)
        return file

    def add(self, entries: np.ndarray, ids: np.ndarray, charges: np.ndarray | None, totals: dict[str, int]) -> bool:
        """Documents with their ids and charges; returns whether a shard became full."""
        self.documents.append(entries.data)
        for key, value in totals.items():
            self.totals[key] += value
        full = self.streams[0].add(ids)
        if len(self.streams) > 1:
            full |= self.streams[1].add(charges)  # type: ignore[arg-type]
        return full

    def state(self) -> dict[str, Any]:
        """How far it is, everything on disk."""
        self.documents.sync()
        return {"totals": dict(self.totals), **{stream.stem: stream.state() for stream in self.streams}}

    def finish(self) -> dict[str, Any]:
        """Publish what is open and return the manifest's entry of this split."""
        for stream in self.streams:
            stream.finish()
        count = self.totals["documents"]
        self.documents.publish(self.documents_path, documents_header(count))
        entry: dict[str, Any] = {"shards": self.streams[0].shards, **self.totals}
        if len(self.streams) > 1:
            entry["sidecars"] = self.streams[1].shards
        name = self.documents_path.name
        entry["document_list"] = {"file": name, "documents": count, "sha256": sha256_file(self.documents_path)}
        entry["documents_sha256"] = hashes_sha256(self.documents_path)
        return entry


def hashes_sha256(path: Path) -> str:
    """SHA-256 over the 64-bit document hashes of a list, in order: the same for every tokenizer."""
    digest, entries = hashlib.sha256(), np.load(path, mmap_mode="r", allow_pickle=False)
    for start in range(0, len(entries), 1 << 20):
        digest.update(np.ascontiguousarray(entries["hash"][start : start + (1 << 20)]).data)
    return digest.hexdigest()


class DatasetWriter:
    """Both splits of a dataset, and the note of how far they are. `next_document` is the index to go on with."""

    def __init__(self, out: Path, key: str, shard_tokens: int, sidecars: bool, first: int, resume: bool = True) -> None:
        """Go on with what is there for `key`, or start over. `resumed` says which."""
        self.out, self.folder, self.key = out, out / PARTIAL, key
        state = self.earlier_state() if resume else {}
        self.resumed = bool(state)
        if not state:
            remove_dir(self.folder)
        self.next_document, self.empty = int(state.get("next_document", first)), int(state.get("empty", 0))
        known = state.get("splits", {})
        self.splits = {
            split: SplitWriter(self.folder, split, shard_tokens, sidecars and split == "val", known.get(split, {}))
            for split in SPLITS
        }

    def earlier_state(self) -> dict[str, Any]:
        """What an interrupted run with the same key noted, if its files are still as it left them."""
        path = self.folder / "progress.json"
        if not path.is_file():
            return {}
        try:
            state = read_json(path)
            good = isinstance(state, dict) and state.get("schema") == PROGRESS_SCHEMA and state.get("key") == self.key
            for split, known in state["splits"].items() if good else ():
                for stem in (f"fineweb_{split}", f"fineweb_{split}_bytes"):
                    for shard in known.get(stem, {}).get("shards", ()):
                        good = good and len(open_shard(self.folder / shard["file"])) == shard["tokens"]
        except (InputError, KeyError, TypeError, AttributeError):
            return {}
        return state if good else {}

    def note(self) -> None:
        """Make everything durable and note how far it is."""
        splits = {name: split.state() for name, split in self.splits.items()}
        write_json(
            self.folder / "progress.json",
            {
                "schema": PROGRESS_SCHEMA,
                "key": self.key,
                "next_document": self.next_document,
                "empty": self.empty,
                "splits": splits,
            },
        )

    def close(self) -> None:
        """Close every open file; what is on disk stays."""
        for split in self.splits.values():
            for file in (split.documents, *(stream.file for stream in split.streams)):
                if file is not None:
                    file.close()

    def finish(self) -> dict[str, Any]:
        """Publish every open file; returns the manifest's entries of the splits."""
        return {name: split.finish() for name, split in self.splits.items()}


def commit(out: Path) -> dict[str, Any]:
    """Move a finished dataset out of its working folder, the manifest last; can be repeated after an interruption."""
    folder = out / PARTIAL
    manifest: dict[str, Any] = read_json(folder / "manifest.json")
    names = ["tokenizer.model"]
    for split in manifest["splits"].values():
        names += [split["document_list"]["file"]]
        names += [shard["file"] for shard in (*split["shards"], *split.get("sidecars", ()))]
    try:
        (out / "manifest.json").unlink(missing_ok=True)
        for path in out.iterdir():
            if path.name not in names and (SHARD_NAME.match(path.name) or SIDECAR_NAME.match(path.name)):
                path.unlink()
    except OSError as error:
        raise StorageError(f"removing the old dataset failed: {error.strerror}", str(out)) from None
    for name in names:
        if (folder / name).is_file():
            move_file(folder / name, out / name)
    move_file(folder / "manifest.json", out / "manifest.json")
    remove_dir(folder)
    return manifest


def unfinished_commit(out: Path, key: str) -> bool:
    """Whether a dataset with this key is complete but not yet in its place."""
    try:
        return bool(read_json(out / PARTIAL / "manifest.json").get("key") == key)
    except (InputError, AttributeError):
        return False
