"""data get: a published dataset by name, complete and checked; resumed, extended, or found to be there already."""

import hashlib
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgolf.core.errors import ConfigError, InputError, StorageError
from pgolf.core.files import (
    free_bytes,
    make_dir,
    parse_json,
    read_bytes,
    read_json,
    remove_dir,
    sha256_file,
    write_bytes,
    write_json,
)
from pgolf.core.shards import SHARD_NAME
from pgolf.report.console import Console
from pgolf.stages.hub import MAX_SMALL, Hub, Item, Snapshot, Wish, clean_etag, file_hash, safe_path
from pgolf.stages.manifest import guarded

FETCHED_SCHEMA, GET_SCHEMA = "pgolf.fetched/1", "pgolf.data-get/1"
RECORD, MANIFEST, STAGING = "fetched.json", "published_manifest.json", ".fetch"
DEFAULT_TRAIN_SHARDS, MAX_SHARDS = 80, 10_000


def intact(item: Item, recorded: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a file that is in its place and whole, or None. Hashes all of it."""
    known = item.etag or str(recorded.get("sha256", ""))
    if not known or not item.target.is_file() or item.bytes not in (None, item.target.stat().st_size):
        return None
    return record_of(item) if file_hash(item.target, known) == known else None


def record_of(item: Item) -> dict[str, Any]:
    """What the record keeps of a file."""
    digest = item.etag if len(item.etag) == 64 else sha256_file(item.target)
    return {"path": item.path, "bytes": item.target.stat().st_size, "sha256": digest}


def pick(entries: Any, name: Any, kind: str, where: str) -> dict[str, Any]:
    """The entry of this name in a list of the manifest; InputError names those that are there."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"the published manifest has no list of {kind}s", where, "check --root")
    for entry in entries:
        if entry.get("name") == name:
            return dict(entry)
    names = ", ".join(repr(entry.get("name"))[:80] for entry in entries[:50]) or "none"
    raise InputError(f"the published manifest has no {kind} {name!r}", where, f"it has {names}; see --repo and --root")


def field_path(entry: dict[str, Any], key: str, where: str, suffix: str = "") -> str:
    """A path of the manifest, once it is known to be harmless."""
    value = entry.get(key)
    if not safe_path(value) or not str(value).endswith(suffix):
        raise InputError(f"impossible {key} in the published manifest: {str(value)[:200]!r}", where, "do not use it")
    return str(value)


def shard_names(entry: dict[str, Any], split: str, listed: Iterable[str], where: str) -> list[str]:
    """Names of a split's shards in order: those in the repository's list, else numbered from the statistics."""
    glob = entry.get(f"{split}_glob")
    stem = str(glob).removeprefix(f"{entry['path']}/").removesuffix("*.bin")
    count = entry["stats"].get(f"files_{split}") if isinstance(entry.get("stats"), dict) else None
    sound = count is None or (type(count) is int and 0 <= count <= MAX_SHARDS)
    if not re.fullmatch(rf"[A-Za-z0-9]+_{split}_", stem) or not str(glob).endswith("*.bin") or not sound:
        raise InputError(f"impossible {split}_glob or files_{split} in the published manifest", where, "do not use it")
    names = sorted(name for name in listed if re.fullmatch(rf"{stem}\d{{6}}\.bin", name))
    if not names and count is None:
        raise InputError(f"no {split} shards, and the published manifest does not count them", where, "check --repo")
    return names if len(names) >= (count or 0) else [f"{stem}{index:06d}.bin" for index in range(count or 0)]


def choose_train(names: list[str], wish: Wish, where: str) -> list[str]:
    """The first shards asked for; ConfigError if fewer are published than were asked for by number."""
    if wish.train_shards is not None and wish.train_shards > len(names):
        fix = f"--train-shards {len(names)} takes all"
        raise ConfigError(f"{wish.train_shards} train shards asked for, {len(names)} are published", where, fix)
    return names[: DEFAULT_TRAIN_SHARDS if wish.train_shards is None else wish.train_shards]


def plan(hub: Hub, snapshot: Snapshot, dest: Path) -> list[Item]:
    """Every file to have: the tokenizer's model and vocabulary, all of val, its byte sidecars, the first of train."""
    wish = hub.wish
    where = hub.where(wish.below("manifest.json"))
    document = parse_json(snapshot.manifest, where)
    document = document if isinstance(document, dict) else {}
    entry = pick(document.get("datasets"), wish.dataset, "dataset", where)
    tokenizer = pick(document.get("tokenizers"), entry.get("tokenizer_name"), "tokenizer", where)
    base = wish.below(field_path(entry, "path", where))
    listed = [path.rpartition("/")[2] for path in snapshot.listing if path.rpartition("/")[0] == base]
    shards = shard_names(entry, "val", listed, where)
    if entry.get("val_bytes_glob") is not None:
        numbers = [name[-10:] for name in shards]
        stem = shard_names({**entry, "stats": {"files_val_bytes": 1}}, "val_bytes", (), where)[0][:-10]
        shards = [*shards, *(stem + number for number in numbers)]
    shards += choose_train(shard_names(entry, "train", listed, where), wish, where)
    wanted = [(wish.below(field_path(tokenizer, "model_path", where, ".model")), dest / "tokenizers")]
    if tokenizer.get("vocab_path") is not None:
        wanted.append((wish.below(field_path(tokenizer, "vocab_path", where, ".vocab")), dest / "tokenizers"))
    wanted += [(f"{base}/{name}", dest / "datasets" / wish.dataset) for name in shards]
    if not listed:
        hub.console.warn("the hub does not list the dataset's files; they are numbered from the manifest's statistics")
    return [Item(path, home / path.rpartition("/")[2], *hub.describe(snapshot, path)) for path, home in wanted]


def read_record(folder: Path, wish: Wish, force: bool) -> dict[str, Any]:
    """What an earlier get left, or nothing. ConfigError if it came from elsewhere, unless `force`."""
    path = folder / RECORD
    try:
        record = read_json(path, MAX_SMALL) if path.is_file() else {}
        if record and record["schema"] != FETCHED_SCHEMA:
            raise InputError(f"schema {record['schema']!r}, expected {FETCHED_SCHEMA!r}", str(path), "see --force")
        listing = {str(name): (size, clean_etag(etag)) for name, (size, etag) in record.get("listing", {}).items()}
        files = {str(name): dict(entry) for name, entry in record.get("files", {}).items()}
        old = {key: str(record[key]) for key in wish.identity} if record else wish.identity
        record = record and {**record, "listing": listing, "files": files, "commit": str(record["commit"])}
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        if force:
            return {}
        if isinstance(error, InputError):
            raise
        raise InputError("the record of the last download is damaged", str(path), "--force makes it anew") from None
    if old != wish.identity and not force:
        before, now = (f"{i['repo']} ({i['root']}, revision {i['revision']})" for i in (old, wish.identity))
        fix = "choose another --dest, or replace it with --force"
        raise ConfigError(f"this folder holds files of {before}, not of {now}", str(folder), fix)
    return dict(record)


@dataclass
class Job:
    """One get: what is asked, what is known from before, and what there is to have."""

    hub: Hub
    dest: Path
    force: bool = False
    record: dict[str, Any] = field(default_factory=dict)
    snapshot: Snapshot = field(default_factory=lambda: Snapshot("", {}))
    items: list[Item] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The dataset's folder."""
        return self.dest / "datasets" / self.hub.wish.dataset

    def prepare(self) -> None:
        """Decide on the files: by the record of an earlier get if there is one, so that its commit stays; else ask."""
        self.record = read_record(self.folder, self.hub.wish, self.force)
        if self.record and not self.force:
            self.snapshot = Snapshot(self.record["commit"], self.record["listing"])
            kept = self.folder / MANIFEST
            content = read_bytes(kept, MAX_SMALL) if kept.is_file() else b""
            if hashlib.sha256(content).hexdigest() != self.record.get("manifest_sha256"):
                content = self.hub.read(self.snapshot, self.hub.wish.below("manifest.json"))
            self.snapshot.manifest = content
        else:
            self.snapshot = self.hub.snapshot()
        self.items = plan(self.hub, self.snapshot, self.dest)

    def run(self, workers: int) -> int:
        """Have all files; returns how many were there already."""
        recorded = self.record.get("files", {})
        trusted = recorded if self.record.get("commit") == self.snapshot.commit else {}
        with ThreadPoolExecutor(workers) as pool:
            look = pool.map(lambda item: intact(item, trusted.get(item.target.name, {})), self.items)
            found = {item.target.name: entry for item, entry in zip(self.items, look) if entry}
        missing = [item for item in self.items if item.target.name not in found]
        self.check_place(missing, recorded)
        if recorded and not trusted:
            self.drop_stale(recorded)
        kept = self.folder / MANIFEST
        if not kept.is_file() or read_bytes(kept, MAX_SMALL) != self.snapshot.manifest:
            write_bytes(kept, self.snapshot.manifest)
        files = recorded | found
        self.note(files)
        if missing:
            self.obtain(missing, files, workers)
        return len(found)

    def check_place(self, missing: list[Item], recorded: dict[str, Any]) -> None:
        """Nobody else's file is in the way, and the disk has room."""
        for item in missing:
            if not self.force and item.target.name not in recorded and item.target.exists():
                fix = "choose another --dest, or replace it with --force"
                raise ConfigError("a file is in the way that is not the published one", str(item.target), fix)
        parts = self.folder / STAGING
        have = sum(path.stat().st_size for path in parts.iterdir()) if parts.is_dir() else 0
        need, free = sum(item.bytes or 0 for item in missing) - have, free_bytes(self.folder)
        if need > free:
            fix = "free some space, ask for fewer --train-shards, or name another --dest"
            raise StorageError(f"{need:,} bytes to download, {free:,} are free", str(self.dest), fix)

    def drop_stale(self, recorded: dict[str, Any]) -> None:
        """Forget and remove shards of another commit that are not wanted now: two versions never mix."""
        (self.folder / "manifest.json").unlink(missing_ok=True)
        for name in set(recorded) - {item.target.name for item in self.items}:
            del recorded[name]
            if SHARD_NAME.match(name.replace("_val_bytes_", "_val_")):
                (self.folder / name).unlink(missing_ok=True)

    def note(self, files: dict[str, Any]) -> None:
        """Write the record, so that an interrupted get goes on from here."""
        wish = self.hub.wish
        near = {wish.below("manifest.json"), *(item.path for item in self.items)}
        folders = {path.rpartition("/")[0] for path in near}
        listing = {p: list(v) for p, v in self.snapshot.listing.items() if p.rpartition("/")[0] in folders}
        document = {
            "schema": FETCHED_SCHEMA,
            "dataset": wish.dataset,
            **wish.identity,
            "commit": self.snapshot.commit,
            "endpoint": wish.endpoint,
            "manifest_sha256": hashlib.sha256(self.snapshot.manifest).hexdigest(),
            "files": dict(sorted(files.items())),
            "listing": dict(sorted(listing.items())),
        }
        write_json(self.folder / RECORD, document)

    def obtain(self, missing: list[Item], files: dict[str, Any], workers: int) -> None:
        """Download side by side; each file is recorded when it is in its place."""
        hub, staging = self.hub, self.folder / STAGING
        make_dir(staging)
        size = sum(item.bytes or 0 for item in missing)
        source = f"{hub.wish.repo} at {self.snapshot.commit[:12]}"
        hub.console.line(f"data get: {len(missing)} files, {size:,} bytes from {source}")
        for item in missing:
            if not item.etag:
                hub.console.warn(f"{item.path}: the hub gives no hash, so only length and header can be checked")
        with ThreadPoolExecutor(workers) as pool, hub.console.progress() as line:
            jobs = {pool.submit(hub.download, self.snapshot.commit, item, staging): item for item in missing}
            try:
                while jobs:
                    done, _ = wait(jobs, timeout=0.5, return_when=FIRST_COMPLETED)
                    for job in done:
                        job.result()
                        item = jobs.pop(job)
                        files[item.target.name] = record_of(item)
                        hub.console.line(f"data get: {item.target.name}")
                    if done:
                        self.note(files)
                    line.show(f"data get: {hub.received:,} of {size:,} bytes, {len(jobs)} files to go")
            except BaseException:
                hub.halt()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        remove_dir(staging)

    @property
    def published(self) -> dict[str, str]:
        """Where the files come from."""
        return {"dataset": self.hub.wish.dataset, **self.hub.wish.identity, "commit": self.snapshot.commit}

    def place_tokenizer(self) -> None:
        """A copy of the tokenizer's model beside the shards, under the name that a dataset has it."""
        content, copy = read_bytes(self.items[0].target, MAX_SMALL), self.folder / "tokenizer.model"
        if not copy.is_file() or read_bytes(copy, MAX_SMALL) != content:
            write_bytes(copy, content)

    def document(self, schema: str) -> dict[str, Any]:
        """What the plan and the result have in common. A file counts as present by its length alone."""
        wish, rows = self.hub.wish, []
        for item in self.items:
            present = item.target.is_file() and item.target.stat().st_size == item.bytes
            rows.append({"file": str(item.target), "path": item.path, "bytes": item.bytes, "present": present})
        return {
            "schema": schema,
            "name": wish.name,
            "dataset": wish.dataset,
            "dir": str(self.folder),
            "tokenizer": str(self.items[0].target),
            **wish.identity,
            "commit": self.snapshot.commit,
            "endpoint": wish.endpoint,
            "train_shards": sum("_train_" in item.target.name for item in self.items),
            "files": rows,
        }


def preview(wish: Wish, dest: Path, console: Console, tries: int = 5, force: bool = False) -> dict[str, Any]:
    """The files `fetch` would have, with their sizes. Writes nothing."""
    job = Job(Hub(wish, console, tries), dest, force)
    try:
        job.prepare()
    finally:
        job.hub.close()
    document = job.document("pgolf.plan/1")
    sizes = [(row["bytes"] or 0, row["present"]) for row in document["files"]]
    sums = {
        "total_bytes": sum(size for size, _ in sizes),
        "download_bytes": sum(size for size, have in sizes if not have),
    }
    return document | {"command": "data get", **sums}


def fetch(
    wish: Wish,
    dest: Path,
    console: Console,
    workers: int = 8,
    tries: int = 5,
    force: bool = False,
    finish: Callable[[Path, dict[str, str]], None] | None = None,
    sleep: Callable[[float], object] | None = None,
) -> dict[str, Any]:
    """Have a published dataset below `dest`, complete and checked, and say what was done for it.

    What is there already is hashed and kept; if that is everything, the network is not touched. `finish` is called at
    the end with the dataset's folder and where it comes from. `sleep` replaces the pauses between tries.
    """
    started = time.monotonic()
    job = Job(Hub(wish, console, tries, sleep), dest, force)
    try:
        job.prepare()
        with guarded(job.folder / RECORD):
            reused = job.run(workers)
            job.place_tokenizer()
            if finish:
                finish(job.folder, job.published)
    finally:
        job.hub.close()
    if not job.hub.requests:
        console.line("data get: every file is there and has its recorded hash; the network was not used")
    return job.document(GET_SCHEMA) | {
        "downloaded": len(job.items) - reused,
        "downloaded_bytes": job.hub.received,
        "reused": reused,
        "network": job.hub.requests > 0,
        "seconds": round(time.monotonic() - started, 3),
        "warnings": console.warnings,
    }
