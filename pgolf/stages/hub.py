"""The Hugging Face hub: what a repository holds, and its files, resumed where they broke off and checked by their hash.

The hub's library finds repositories and names addresses. The bytes are streamed here, because the library throws a
broken download away, and these files are worth resuming.
"""

import hashlib
import importlib
import io
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socket import SHUT_RDWR
from threading import Event, Lock
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pgolf import __version__
from pgolf.core.errors import ConfigError, InputError, SetupError, StorageError
from pgolf.core.files import GrowingFile, make_dir, move_file, read_bytes, sha256_file, storage_error
from pgolf.core.shards import open_shard
from pgolf.report.console import Console

T = TypeVar("T")
PUBLISHED = {
    "sp1024": ("willdepueoai/parameter-golf", "fineweb10B_sp1024"),
    "sp4096": ("kevclark/parameter-golf", "fineweb10B_sp4096"),
    "sp8192": ("kevclark/parameter-golf", "fineweb10B_sp8192"),
    "caseops": ("romeerp/parameter-golf-caseops-v1", "fineweb10B_sp8192_lossless_caps_caseops_v1_reserved"),
}
"""Name -> default repository, and the dataset's name in the manifest published there."""
MAX_SHARD, MAX_SMALL = 5 << 30, 64 << 20
TIMEOUT_S, MAX_BACKOFF_S, MAX_WAIT_S = 15.0, 30.0, 600.0
HEADERS = {"User-Agent": f"pgolf/{__version__}", "Accept-Encoding": "identity"}
SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class Damaged(Exception):
    """What arrived is not the file; a second download may be."""


class Stopped(Exception):
    """Another download failed or the user interrupted: this one ends where it stands."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What to get and from where; ConfigError if a part of it cannot be meant."""

    name: str
    repo: str = ""
    revision: str = "main"
    root: str = "datasets"
    endpoint: str = "https://huggingface.co"
    train_shards: int | None = None

    def __post_init__(self) -> None:
        if self.name not in PUBLISHED:
            raise ConfigError(f"no published dataset is called {self.name!r}", "NAME", f"choose {', '.join(PUBLISHED)}")
        object.__setattr__(self, "repo", self.repo or PUBLISHED[self.name][0])
        object.__setattr__(self, "root", self.root.strip("/"))
        object.__setattr__(self, "endpoint", self.endpoint.rstrip("/"))
        parts = f"{self.repo}/{self.revision}" + (f"/{self.root}" if self.root else "")
        if self.repo.count("/") != 1 or ".." in parts or "--" in self.repo or not safe_path(parts):
            raise ConfigError(f"not a repository, revision and folder: {parts}", "data get", "--repo is OWNER/NAME")
        if not safe_address(self.endpoint):
            raise ConfigError(f"not an address: {self.endpoint}", "--endpoint", "it begins with https:// or http://")

    @property
    def dataset(self) -> str:
        """The dataset's name in the published manifest, and its folder's name here."""
        return PUBLISHED[self.name][1]

    @property
    def identity(self) -> dict[str, str]:
        """What must not change within a folder."""
        return {"repo": self.repo, "root": self.root, "revision": self.revision}

    def below(self, path: str) -> str:
        """A path of the manifest as a path of the repository."""
        return f"{self.root}/{path}" if self.root else path


@dataclass(frozen=True)
class Item:
    """A file to have: its path in the repository, its place here, its size and hash as far as the hub tells them."""

    path: str
    target: Path
    bytes: int | None
    etag: str


@dataclass
class Snapshot:
    """A repository at one commit: path -> (bytes, hash), and the content of its manifest."""

    commit: str
    listing: dict[str, tuple[int | None, str]]
    manifest: bytes = b""


@dataclass
class Hub:
    """The network. Every request goes through `attempt`; `halt` ends all of them, asleep or not."""

    wish: Wish
    console: Console
    tries: int = 5
    sleep: Callable[[float], object] | None = None
    stop: Event = field(default_factory=Event)
    received: int = 0
    requests: int = 0
    lock: Lock = field(default_factory=Lock)
    streams: set[Any] = field(default_factory=set)

    def library(self) -> Any:
        """The hub's library, told to be silent; SetupError if it is not installed."""
        try:
            library = importlib.import_module("huggingface_hub")
        except ModuleNotFoundError:
            raise SetupError("the package huggingface-hub is missing", "data get", "pip install 'pgolf[hub]'") from None
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        return library

    def attempt(self, path: str, action: Callable[[], T]) -> T:
        """Do it, and again after a pause while the fault may pass. InputError if not, StorageError after all tries."""
        errors = self.library().errors
        for attempt in range(1, self.tries + 1):
            if self.stop.is_set():
                raise Stopped
            self.requests += 1
            try:
                return action()
            except errors.HTTPError as error:
                asked, reason = self.judge(error, path)
            except errors.OfflineModeIsEnabled:
                raise StorageError("the hub's library is offline", path, "unset HF_HUB_OFFLINE") from None
            if attempt < self.tries:
                pause = min(2.0 ** (attempt - 1), MAX_BACKOFF_S) if asked is None else min(asked, MAX_WAIT_S)
                self.console.line(f"{path}: {reason}; again in {pause:g} s ({attempt} of {self.tries} tries)")
                (self.sleep or self.stop.wait)(pause)
        fix = "check the network, then repeat the command: it resumes; --endpoint names a mirror"
        tries = "1 try" if self.tries == 1 else f"{self.tries} tries"
        raise StorageError(f"given up after {tries}: {reason}", self.where(path), fix)

    def judge(self, error: Any, path: str) -> tuple[float | None, str]:
        """The pause a passing fault asks for, if it does, and its description; InputError for a lasting one."""
        response = getattr(error, "response", None)
        if response is None:
            return None, str(error).strip().lower() or "the connection broke"
        code, kind = response.status_code, response.headers.get("x-error-code", "")
        if code in (408, 429) or code >= 500:
            return asked_pause(response.headers), f"the server answers {code}"
        if kind == "RevisionNotFound":
            raise InputError("the repository has no such revision", self.where(path), "check --revision")
        if kind == "RepoNotFound" or code in (401, 403):
            raise InputError(f"no public dataset repository ({code})", self.where(path), "check --repo and --endpoint")
        fix = (
            "check --repo, --root and --revision, or take the newest commit with --force; the manifest may promise more"
        )
        raise InputError(f"the hub does not have this file ({code})", self.where(path), fix)

    def where(self, path: str) -> str:
        """Repository, revision and path, for messages."""
        return f"{self.wish.endpoint}, {self.wish.repo}, revision {self.wish.revision}, {path}"

    def snapshot(self) -> Snapshot:
        """The commit the revision stands for, its files, and its manifest."""
        wish, library = self.wish, self.library()
        api = library.HfApi(endpoint=wish.endpoint, token=False, headers={"User-Agent": HEADERS["User-Agent"]})
        options = {"revision": wish.revision, "files_metadata": True, "timeout": TIMEOUT_S}
        try:
            info = self.attempt("repository", lambda: api.dataset_info(wish.repo, **options))
            commit = re.fullmatch(r"[0-9a-f]{40}", info.sha)[0]  # type: ignore[index]
            files = [
                (one.rfilename, one.size, one.lfs.sha256 if one.lfs else one.blob_id) for one in info.siblings or ()
            ]
        except (ValueError, KeyError, TypeError, AttributeError):
            fix = "check --endpoint, and whether a proxy answers in its place"
            raise InputError("what answers is not a hub", self.where("repository"), fix) from None
        snapshot = Snapshot(commit, {name: (size, clean_etag(tag)) for name, size, tag in files if type(size) is int})
        snapshot.manifest = self.read(snapshot, wish.below("manifest.json"))
        return snapshot

    def describe(self, snapshot: Snapshot, path: str) -> tuple[int | None, str]:
        """Size and hash of a file, asked of the file itself where the repository's list does not have it."""
        if path not in snapshot.listing:
            look, address = self.library().get_hf_file_metadata, self.address(snapshot.commit, path)
            found = self.attempt(path, lambda: look(address, token=False, timeout=TIMEOUT_S, headers=HEADERS))
            snapshot.listing[path] = (found.size, clean_etag(found.etag))
        return snapshot.listing[path]

    def address(self, commit: str, path: str) -> str:
        """Where a file is downloaded from."""
        options = {"repo_type": "dataset", "revision": commit, "endpoint": self.wish.endpoint}
        return str(self.library().hf_hub_url(self.wish.repo, path, **options))

    def receive(self, commit: str, path: str, sink: Any, have: int, limit: int) -> None:
        """One GET into `sink`, from byte `have` on if that can be. Damaged for a web page or beyond `limit` bytes."""
        library, address = self.library(), self.address(commit, path)
        headers = HEADERS | ({"Range": f"bytes={have}-"} if have else {})
        with library.get_session().stream("GET", address, headers=headers, timeout=TIMEOUT_S) as response:
            if response.status_code == 416:
                raise Damaged("the server cannot continue the download")
            library.hf_raise_for_status(response)
            if "text/html" in response.headers.get("content-type", ""):
                raise Damaged("a web page came instead of the file; a proxy may be in between")
            if have and response.status_code != 206:
                sink.seek(0)
                sink.truncate()
                have = 0
            with self.stoppable(response):
                for piece in response.iter_bytes():
                    have += len(piece)
                    if have > limit:
                        raise Damaged(f"more than the {limit:,} bytes the file may have")
                    sink.write(piece)
                    with self.lock:
                        self.received += len(piece)

    @contextmanager
    def stoppable(self, response: Any) -> Iterator[None]:
        """Lets `halt` end the reading of an answer, even while it waits for bytes."""
        stream = response.extensions.get("network_stream")
        with self.lock:
            self.streams.add(stream)
        try:
            if self.stop.is_set():
                raise Stopped
            yield
        finally:
            with self.lock:
                self.streams.discard(stream)

    def halt(self) -> None:
        """End every request under way: no pause goes on, no socket gives another byte."""
        self.stop.set()
        with self.lock:
            for stream in self.streams:
                with suppress(OSError, AttributeError):
                    stream.get_extra_info("socket").shutdown(SHUT_RDWR)

    def twice(self, path: str, action: Callable[[], T]) -> T:
        """Do it, and once more from scratch if what arrives is damaged; then InputError."""
        try:
            return action()
        except Damaged as error:
            self.console.line(f"{path}: {error}; once more from the beginning")
        try:
            return action()
        except Damaged as error:
            fix = "the download was discarded; try later, or another --endpoint or --revision"
            raise InputError(f"{error} (twice)", self.where(path), fix) from None

    def read(self, snapshot: Snapshot, path: str) -> bytes:
        """A small file into memory, checked."""
        size, etag = self.describe(snapshot, path)
        if (size or 0) > MAX_SMALL:
            raise InputError(f"{size:,} bytes are too many for such a file", self.where(path), "check --repo")

        def once() -> bytes:
            sink = io.BytesIO()
            self.receive(snapshot.commit, path, sink, 0, size or MAX_SMALL)
            if etag and content_hash(sink.getvalue(), etag) != etag:
                raise Damaged("the content does not have the hash that the hub announces")
            return sink.getvalue()

        return self.twice(path, lambda: self.attempt(path, once))

    def download(self, commit: str, item: Item, staging: Path) -> None:
        """A file to its place, by way of a part in `staging` that a later call continues."""
        part = staging / f"{item.target.name}.{item.etag[:16] or 'unchecked'}"

        def grow() -> None:
            have = part.stat().st_size if part.exists() and item.etag else 0
            if item.bytes is None or have != item.bytes:
                growing = GrowingFile(part, have)
                try:
                    self.receive(commit, item.path, growing.file, have, item.bytes or MAX_SHARD)
                finally:
                    growing.sync()
                    growing.close()

        def once() -> None:
            try:
                self.attempt(item.path, grow)
                examine(part, item)
            except Damaged:
                part.unlink(missing_ok=True)
                raise

        try:
            self.twice(item.path, once)
            make_dir(item.target.parent)
            move_file(part, item.target)
        except OSError as error:
            raise storage_error(error, item.target, "writing") from None

    def close(self) -> None:
        """Let go of connections, if any were made."""
        if self.requests:
            self.library().close_session()


def safe_path(text: Any) -> bool:
    """Whether a text is a relative path of harmless names."""
    return isinstance(text, str) and len(text) < 512 and all(SEGMENT.fullmatch(part) for part in text.split("/"))


def safe_address(text: str) -> bool:
    """Whether a text is the address of a web server, without user, query or fragment."""
    try:
        port = urlsplit(text).port or 443
    except ValueError:
        return False
    return port > 0 and bool(re.fullmatch(r"https?://[!-~]+", text)) and not re.search(r"[?#@\\]", text)


def clean_etag(etag: Any) -> str:
    """A SHA-256 or a git object id, else nothing: other tags say nothing about the content."""
    return etag if isinstance(etag, str) and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag) else ""


def content_hash(content: bytes, etag: str) -> str:
    """The hash of the kind that `etag` has: SHA-256 of the content, or git's SHA-1 of it as a blob."""
    if len(etag) == 40:
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return hashlib.sha256(content).hexdigest()


def file_hash(path: Path, etag: str) -> str:
    """As `content_hash`, of a file; only small files have the ids of git."""
    return content_hash(read_bytes(path, MAX_SMALL), etag) if len(etag) == 40 else sha256_file(path)


def asked_pause(headers: Any) -> float | None:
    """Seconds that Retry-After, or else the hub's RateLimit header, asks for."""
    if (after := headers.get("retry-after", "").strip()).isdigit():
        return float(after)
    limit = re.search(r";\s*r=0\s*;\s*t=(\d+)", headers.get("ratelimit", ""))
    return float(limit[1]) if limit else None


def examine(part: Path, item: Item) -> None:
    """Check length, hash and shard header of a download; Damaged says which is wrong."""
    size = part.stat().st_size
    if item.bytes is not None and size != item.bytes:
        raise Damaged(f"{size:,} bytes arrived of the {item.bytes:,} that the hub announces")
    if item.etag and file_hash(part, item.etag) != item.etag:
        raise Damaged("the file does not have the hash that the hub announces")
    if item.target.suffix == ".bin":
        try:
            open_shard(part)
        except InputError as error:
            raise Damaged(f"not a shard: {error.what}") from None
