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

from pgolf.core.errors import ConfigError, InputError, StorageError
from pgolf.core.files import GrowingFile, move_file, read_json, remove_dir, sha256_file, write_bytes, write_json
from pgolf.core.shards import HEADER_BYTES, SHARD_NAME, SIDECAR_NAME, list_shards, shard_header
from pgolf.dataset import DOCUMENT, DOCUMENTS_NAME, PARTIAL, open_documents

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
        """`shards` are finished, `entries` are in the open one."""
        self.folder, self.stem, self.limit = folder, stem, limit
        self.shards, self.entries = shards, entries
        self.file: GrowingFile | None = None
        if entries:
            self.file = reopened(folder / self.name, self.growing, HEADER_BYTES + 2 * entries)

    @property
    def name(self) -> str:
        """File name of the open shard."""
        return shard_name(self.stem, len(self.shards))

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

    def sync(self) -> None:
        """Make everything durable."""
        if self.file is not None:
            self.file.sync()

    def state(self) -> dict[str, Any]:
        """How far it is."""
        return {"shards": list(self.shards), "entries": self.entries}


def shard_name(stem: str, index: int) -> str:
    """File name of a shard."""
    return f"{stem}_{index:06d}.bin"


def reopened(published: Path, growing: Path, keep_bytes: int) -> GrowingFile:
    """A file as it was when it had so many bytes, also if it was published since."""
    if published.is_file():
        move_file(published, growing)
    return GrowingFile(growing, keep_bytes)


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
        if count:
            return reopened(self.documents_path, growing, len(header) + count * DOCUMENT.itemsize)
        file = GrowingFile(growing)
        file.append(header)
        return file

    def add(self, entries: np.ndarray, ids: np.ndarray, charges: np.ndarray | None, totals: dict[str, int]) -> bool:
        """Documents with their ids and charges; returns whether a shard became full."""
        self.documents.append(entries.data)
        for key, value in totals.items():
            self.totals[key] += value
        return self.extend(ids, charges)

    def extend(self, ids: np.ndarray, charges: np.ndarray | None) -> bool:
        """Ids with their charges of documents whose entries come later; returns whether a shard became full."""
        full = self.streams[0].add(ids)
        if len(self.streams) > 1:
            full |= self.streams[1].add(charges)  # type: ignore[arg-type]
        return full

    def sync(self) -> None:
        """Make everything durable."""
        self.documents.sync()
        for stream in self.streams:
            stream.sync()

    def state(self) -> dict[str, Any]:
        """How far it is."""
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
    digest, entries = hashlib.sha256(), open_documents(path)
    for start in range(0, len(entries), 1 << 20):
        digest.update(np.ascontiguousarray(entries["hash"][start : start + (1 << 20)]).data)
    return digest.hexdigest()


class DatasetWriter:
    """Both splits of a dataset, and the note of how far they are. `next_document` is the index to go on with."""

    def __init__(self, out: Path, key: str, shard_tokens: int, sidecars: bool, first: int, resume: bool = True) -> None:
        """Go on with what is there for `key`, or start over with document `first`. `resumed` says which."""
        self.out, self.folder, self.key, self.limit = out, out / PARTIAL, key, shard_tokens
        state = self.earlier_state(first, sidecars) if resume else {}
        self.resumed = bool(state)
        if not state:
            remove_dir(self.folder)
        self.tokenizer_sha256 = str(state.get("tokenizer_sha256", ""))
        self.empty = int(state.get("empty", 0))
        known = state.get("splits", {})
        self.splits = {
            split: SplitWriter(self.folder, split, shard_tokens, sidecars and split == "val", known.get(split, {}))
            for split in SPLITS
        }
        self.mark(int(state.get("next_document", first)))

    def earlier_state(self, first: int, sidecars: bool) -> dict[str, Any]:
        """What an interrupted run with the same key noted, if its files are still as it left them."""
        path = self.folder / "progress.json"
        if not path.is_file():
            return {}
        try:
            state = read_json(path)
            if (state["schema"], state["key"]) != (PROGRESS_SCHEMA, self.key):
                return {}
            documents = sum(self.intact(split, state["splits"][split], sidecars and split == "val") for split in SPLITS)
            good = (
                state["next_document"] == first + documents + state["empty"]
                and sha256_file(self.folder / "tokenizer.model") == state["tokenizer_sha256"]
            )
        except (InputError, KeyError, TypeError, ValueError, AttributeError):
            return {}
        return state if good else {}

    def intact(self, split: str, known: dict[str, Any], sidecars: bool) -> int:
        """The number of documents noted for a split. ValueError unless its files hold them, or another error of a note
        that is not one.
        """
        header, totals = len(documents_header(0)), known["totals"]
        sizes = [(DOCUMENTS_NAME.format(split=split), ".growing", header + totals["documents"] * DOCUMENT.itemsize)]
        for stem in (f"fineweb_{split}", f"fineweb_{split}_bytes")[: 1 + sidecars]:
            shards, entries = known[stem]["shards"], known[stem]["entries"]
            if not 0 <= entries < self.limit or len(shards) * self.limit + entries != totals["tokens"]:
                raise ValueError(f"{stem} has lost tokens")
            for index, shard in enumerate(shards):
                path = self.folder / shard_name(stem, index)
                if (path.name, self.limit, sha256_file(path)) != (shard["file"], shard["tokens"], shard["sha256"]):
                    raise ValueError(f"{path.name} is not as it was written")
            sizes += [(shard_name(stem, len(shards)), ".bin.growing", HEADER_BYTES + 2 * entries)] if entries else []
        for name, suffix, size in sizes:
            published = self.folder / name
            path = published if published.is_file() else published.with_suffix(suffix)
            if not path.is_file() or path.stat().st_size < size:
                raise ValueError(f"{path.name} is cut off")
        return int(totals["documents"])

    def put_tokenizer(self, content: bytes) -> None:
        """Write the tokenizer."""
        write_bytes(self.folder / "tokenizer.model", content)
        self.tokenizer_sha256 = hashlib.sha256(content).hexdigest()

    def mark(self, next_document: int) -> None:
        """Everything before this document has been added: the next note will say so, wherever work stands by then."""
        self.next_document = next_document
        splits = {name: split.state() for name, split in self.splits.items()}
        self.marked = {"next_document": next_document, "empty": self.empty, "splits": splits}

    def note(self) -> None:
        """Make everything durable and note how far it was at the last mark."""
        for split in self.splits.values():
            split.sync()
        identity = {"schema": PROGRESS_SCHEMA, "key": self.key, "tokenizer_sha256": self.tokenizer_sha256}
        write_json(self.folder / "progress.json", identity | self.marked)

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


def check_place(out: Path) -> None:
    """ConfigError if there are shards that no manifest accounts for: making a dataset there would remove them."""
    ours = (out / "manifest.json").is_file() or (out / PARTIAL).is_dir()
    strangers = [] if ours else [path.name for split in SPLITS for path in list_shards(out, split)]
    if strangers:
        fix = "choose another --out, or give them up with --force"
        raise ConfigError(f"{strangers[0]} lies there without a manifest", str(out), fix)
