"""A dataset directory (spec: docs/formats.md), or published shards without a manifest."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pgolf.core.bpb import ByteTable, byte_table, is_transformed, load_tokenizer
from pgolf.core.errors import InputError
from pgolf.core.files import check_regular, read_bytes, read_head, read_json, sha256_file
from pgolf.core.shards import (
    HEADER_BYTES,
    SHARD_NAME,
    SIDECAR_NAME,
    list_shards,
    list_sidecars,
    load_sidecars,
    load_split,
)
from pgolf.corpus.tokenizer import MAX_TOKENIZER, read_tokenizer

if TYPE_CHECKING:
    from typing import Literal, overload

    from pgolf.core.shards import TrainShards

DATASET_SCHEMA = "pgolf.dataset/1"
PARTIAL = ".partial"
"""Where pgolf tokenize works inside a dataset directory until all of it is done."""
BOS = 1
DOCUMENTS_NAME = "documents_{split}.npy"
DOCUMENT = np.dtype([("hash", "<u8"), ("bytes", "<u4"), ("tokens", "<u4")])
"""An entry of a document list: the first 64 bits (big-endian) of the SHA-256 of the text, its UTF-8 bytes, and its
tokens with BOS."""


@dataclass
class Dataset:
    """An opened dataset. `shards` are the files of each split in stream order, `sidecars` the byte sidecars of the
    validation shards (for transformed text), `documents` the document lists, `hashes` the SHA-256 of all of them.
    `charged_bytes` is what the validation text is charged in all, where a manifest says so.
    """

    folder: Path
    tokenizer_bytes: bytes
    vocab_size: int
    shards: dict[str, list[Path]]
    sidecars: list[Path] = field(default_factory=list)
    documents: dict[str, Path] = field(default_factory=dict)
    transformed: bool = False
    hashes: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    charged_bytes: int | None = None

    @property
    def tokenizer_sha256(self) -> str:
        """SHA-256 of the tokenizer's model file, in hex."""
        return hashlib.sha256(self.tokenizer_bytes).hexdigest()

    @property
    def tokenizer(self) -> Any:
        """The SentencePiece processor."""
        return load_tokenizer(self.tokenizer_bytes, str(self.folder))

    def byte_table(self) -> ByteTable:
        """What each token is charged where the text was not transformed."""
        return byte_table(self.tokenizer, self.vocab_size)

    def shard_hash(self, path: Path) -> str:
        """The SHA-256 of a shard; InputError if it is not the one in the manifest."""
        digest = sha256_file(path)
        if self.hashes and self.hashes.get(path.name) != digest:
            raise InputError(
                "the shard's SHA-256 is not the one in the manifest",
                str(path),
                "the shard is damaged or was replaced; make the dataset anew",
            )
        return digest

    if TYPE_CHECKING:

        @overload
        def split(self, name: Literal["train"]) -> TrainShards: ...

        @overload
        def split(self, name: str) -> list[np.ndarray]: ...

    def split(self, name: str) -> list[np.ndarray]:
        """The shards of a split, memory-mapped, hashes and id ranges checked. InputError if there are none."""
        if not self.shards.get(name):
            raise InputError(
                f"the dataset has no {name} shards", str(self.folder), f"expected files like fineweb_{name}_000000.bin"
            )
        for path in self.shards[name]:
            if self.hashes:
                self.shard_hash(path)
        return load_split(self.shards[name], self.vocab_size)

    def validation(self) -> tuple[np.ndarray, np.ndarray]:
        """The validation stream, ids (N,) uint16, and the bytes charged to its targets, (N-1,).

        InputError when the text was transformed and its byte sidecars are missing or do not fit, or when the bytes do
        not add up to those of the manifest.
        """
        shards = self.split("val")
        ids = np.concatenate(shards)
        if not self.transformed:
            return ids, self.audited(self.byte_table().charges(ids))
        for path in self.sidecars:
            self.shard_hash(path)
        return ids, self.audited(load_sidecars(self.sidecars, shards, self.folder))

    def audited(self, charges: np.ndarray) -> np.ndarray:
        """The charges (N-1,) of the validation stream. InputError unless their sum is the manifest's, if it has one."""
        total = int(charges.sum(dtype=np.int64))
        if self.charged_bytes not in (None, total):
            raise InputError(
                f"the validation text is charged {total:,} bytes, its manifest says {self.charged_bytes:,}",
                str(self.folder / "manifest.json"),
                "a score would be off by their ratio; look with pgolf data audit, or make the dataset anew",
            )
        return charges

    def verify(self) -> None:
        """InputError unless every file has the SHA-256 of the manifest."""
        for path in (
            *(path for files in self.shards.values() for path in files),
            *self.sidecars,
            *self.documents.values(),
        ):
            self.shard_hash(path)

    def fingerprint(self, *splits: str) -> str:
        """SHA-256 over the tokenizer and the shards of the named splits, with the sidecars of val."""
        digest = hashlib.sha256(self.tokenizer_sha256.encode())
        for name in splits:
            for path in (*self.shards.get(name, []), *(self.sidecars if name == "val" else [])):
                digest.update(f"{name} {path.name} {self.hashes.get(path.name) or self.shard_hash(path)}\n".encode())
        return digest.hexdigest()


def manifest_dataset(folder: Path, manifest: Any) -> Dataset:
    """A dataset described by its manifest; every name in it is checked before it becomes a path."""
    where = str(folder / "manifest.json")
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != DATASET_SCHEMA:
        raise InputError(
            f"schema {schema!r}, expected {DATASET_SCHEMA!r}",
            where,
            "this is no dataset manifest, or a newer pgolf wrote it",
        )
    try:
        source = Path(manifest["adopted_from"]) if manifest.get("adopted_from") else folder
        tokenizer_sha = str(manifest["tokenizer"]["sha256"])
        entries = {split: list(manifest["splits"][split]["shards"]) for split in ("train", "val")}
        names = {split: [str(entry["file"]) for entry in shards] for split, shards in entries.items()}
        sidecars = list(manifest["splits"]["val"].get("sidecars", []))
        entries["sidecars"] = sidecars
        lists = {split: part["document_list"] for split, part in manifest["splits"].items() if "document_list" in part}
        entries["lists"] = list(lists.values())
        hashes = {str(entry["file"]): str(entry["sha256"]) for files in entries.values() for entry in files}
        transformed = str(manifest.get("transform", "none")) != "none"
        sidecar_names = [str(entry["file"]) for entry in sidecars]
        vocab_size = int(manifest["vocab_size"])
        charged = manifest["splits"]["val"].get("charged_bytes")
        charged = None if charged is None else int(charged)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the manifest lacks or garbles {error}", where, "make the dataset anew") from None
    if not 1 <= vocab_size <= 1 << 16:
        raise InputError(f"a vocabulary of {vocab_size:,} ids is none that shards have", where, "make the dataset anew")
    for split, files in names.items():
        if any(not (match := SHARD_NAME.match(name)) or match[1] != split for name in files):
            raise InputError(f"a {split} shard has a name that no shard may have", where, "make the dataset anew")
    if not all(map(SIDECAR_NAME.match, sidecar_names)):
        raise InputError("a byte sidecar has a name that none may have", where, "make the dataset anew")
    tokenizer = read_bytes(folder / "tokenizer.model", MAX_TOKENIZER)
    if hashlib.sha256(tokenizer).hexdigest() != tokenizer_sha:
        raise InputError(
            "tokenizer.model is not the tokenizer that made the shards", str(folder), "restore it or tokenize anew"
        )
    paths = {split: [source / name for name in files] for split, files in names.items()}
    documents = {split: folder / DOCUMENTS_NAME.format(split=split) for split in lists}
    sidecar_paths = [source / name for name in sidecar_names]
    for path in (*(path for files in paths.values() for path in files), *sidecar_paths, *documents.values()):
        if not path.is_file():
            raise InputError("a file of the manifest is missing", str(path), "restore it or make the dataset anew")
    return Dataset(
        folder,
        tokenizer,
        vocab_size,
        paths,
        sidecar_paths,
        documents,
        transformed,
        hashes,
        charged_bytes=charged,
    )


def open_documents(path: Path) -> np.ndarray:
    """Memory-map a document list, (D,) of `DOCUMENT`. InputError if the file is not one."""
    try:
        entries: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError("no such file", str(path), "restore it or make the dataset anew") from None
    except Exception as error:  # numpy reads the header as Python source, which can fail in many ways
        reason = str(error).splitlines()[0] if str(error) else "empty"
        raise InputError(f"not a document list: {reason}", str(path), "make the dataset anew") from None
    if entries.dtype != DOCUMENT or entries.ndim != 1:
        raise InputError(
            f"not a document list: an array {entries.dtype} of {entries.ndim} dimensions",
            str(path),
            "make the dataset anew",
        )
    return entries


def find_tokenizer(folder: Path, vocab_size: int) -> Path:
    """The tokenizer of published shards: beside them, or where the challenge keeps tokenizers; else InputError."""
    beside = sorted(folder.glob("*.model"))
    if len(beside) == 1:
        return beside[0]
    for place in (folder.parent, folder.parent.parent):
        path = place / "tokenizers" / f"fineweb_{vocab_size}_bpe.model"
        if path.is_file():
            return path
    wanted = f"with model.vocab_size={vocab_size} it would be ../tokenizers/fineweb_{vocab_size}_bpe.model"
    raise InputError("no tokenizer found for these shards", str(folder), f"name it with --tokenizer; {wanted}")


def round_trips(tokenizer: Any, ids: np.ndarray) -> bool:
    """Whether decoding and encoding again gives back the first complete documents of a stream."""
    starts = np.flatnonzero(ids[:200_000] == BOS)
    pairs = list(zip(starts, starts[1:]))[:8]
    documents = [ids[start + 1 : stop].tolist() for start, stop in pairs] or [ids[1:2000].tolist()]
    same = sum(tokenizer.encode(tokenizer.decode(document)) == document for document in documents)
    return bool(same * 2 >= len(documents))


def check_unused(path: Path) -> None:
    """InputError unless the words of a shard's header that have no meaning are zero, which is all that can be said of
    them where no manifest has the shard's hash.
    """
    if any(read_head(path, HEADER_BYTES)[12:]):
        raise InputError(
            "the header has something in words that have no meaning", str(path), "the shard is damaged; fetch it again"
        )


def adopt(folder: Path, tokenizer: Path | None, vocab_size: int) -> Dataset:
    """Published shards without a manifest: checked for structure, ids and a sample round trip; leaves a warning."""
    if (folder / PARTIAL).is_dir():
        raise InputError(
            "this dataset was not finished", str(folder), "run the same pgolf tokenize again; it goes on where it was"
        )
    shards = {split: list_shards(folder, split) for split in ("train", "val")}
    if not folder.is_dir() or not any(shards.values()):
        raise InputError(
            "no dataset: neither manifest.json nor token shards", str(folder), "make one with pgolf tokenize"
        )
    for path in (*shards["train"], *shards["val"]):
        check_regular(path)
    content = read_tokenizer(tokenizer or find_tokenizer(folder, vocab_size))
    processor = load_tokenizer(content, str(tokenizer or folder))
    transformed = is_transformed(processor)
    sidecars = list_sidecars(folder) if transformed else []
    dataset = Dataset(folder, content, processor.vocab_size(), shards, sidecars, transformed=transformed)
    for split in shards:
        if shards[split]:
            sample = load_split(shards[split], dataset.vocab_size)[0]
            for path in (*shards[split], *(sidecars if split == "val" else [])):
                check_unused(path)
            if not round_trips(processor, np.asarray(sample)):
                raise InputError(
                    "the tokenizer does not belong to these shards: decoded documents encode to other ids",
                    str(folder),
                    "name the right one with --tokenizer",
                )
    known = {path.name for path in (*shards["train"], *shards["val"], *sidecars)}
    strange = sorted(path.name for path in folder.glob("*.bin") if path.name not in known)
    dataset.warnings.append(
        f"{folder} has no manifest: shards were checked for structure, zeros where the header has no meaning, id range "
        "and a sample round trip only"
    )
    if strange:
        dataset.warnings.append(
            f"{folder}: files that do not belong to these shards were left out: {', '.join(strange)}"
        )
    return dataset


def open_dataset(folder: Path, tokenizer: Path | None = None, vocab_size: int = 1024) -> Dataset:
    """Open a dataset directory. InputError if it is damaged or the tokenizer is not its own.

    `vocab_size` only helps to find the tokenizer of shards that come without a manifest.
    """
    if not (folder / "manifest.json").is_file():
        return adopt(folder, tokenizer, vocab_size)
    dataset = manifest_dataset(folder, read_json(folder / "manifest.json"))
    if tokenizer is not None and sha256_file(tokenizer) != dataset.tokenizer_sha256:
        raise InputError("the tokenizer is not the dataset's own", str(tokenizer), "leave out --tokenizer")
    return dataset
