"""A Hugging Face hub on localhost: a few small published datasets, a log of requests, and faults on demand."""

import contextlib
import hashlib
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

COMMIT = "c0ffee" + 34 * "0"
CASEOPS = "fineweb10B_sp8192_lossless_caps_caseops_v1_reserved"
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "rain", "falls", "on", "hills")


@cache
def tokenizer(operators: bool = False) -> bytes:
    """A small SentencePiece model; with CaseOps' operators if asked."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=320,
        byte_fallback=True,
        add_dummy_prefix=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        user_defined_symbols=["\ue001", "\ue002", "\ue003", "\ue004"] if operators else [],
        minloglevel=2,
    )
    return model.getvalue()


@cache
def shard(seed: int, count: int = 500, operators: bool = False) -> bytes:
    """A token shard: documents of a dozen seeded words each."""
    rng, processor = np.random.default_rng(seed), SentencePieceProcessor(model_proto=tokenizer(operators))
    ids: list[int] = []
    while len(ids) < count:
        ids += [1, *processor.encode(" ".join(rng.choice(WORDS, 12)))]
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, count
    return header.tobytes() + np.array(ids[:count], "<u2").tobytes()


def sha256(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def git_id(content: bytes) -> str:
    """The object id that git gives a file."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@dataclass
class Request:
    """One line of the server's log."""

    method: str
    path: str
    range: str
    authorization: str


@dataclass
class Fault:
    """How the server goes wrong at a path, `times` times (-1: always) after `skip` good answers."""

    kind: str
    times: int = 1
    skip: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    at: int = 0
    body: bytes = b""


@dataclass
class FakeHub:
    """Repositories as path -> content, and how to misbehave."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commit: str = COMMIT
    log: list[Request] = field(default_factory=list)
    faults: dict[str, Fault] = field(default_factory=dict)
    lists: bool = True
    ranges: bool = True
    etags: bool = True
    url: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    def publish(
        self,
        repo: str,
        dataset: str,
        model: str,
        train: int = 3,
        val: int = 1,
        sidecars: bool = False,
        seed: int = 0,
    ) -> None:
        """Add a dataset to a repository, with its tokenizer and its part of the manifest."""
        files = self.repos.setdefault(repo, {"README.md": b"# data"})
        folder = f"datasets/{dataset}"
        names = [f"fineweb_train_{index:06d}" for index in range(train)] + [f"fineweb_val_{i:06d}" for i in range(val)]
        names += [f"fineweb_val_bytes_{index:06d}" for index in range(val)] if sidecars else []
        for index, name in enumerate(names):
            files[f"datasets/{folder}/{name}.bin"] = shard(seed + index, operators=sidecars)
        files[f"datasets/tokenizers/{model}.model"] = tokenizer(sidecars)
        files[f"datasets/tokenizers/{model}.vocab"] = b"piece\t0\n"
        entry = {
            "name": dataset,
            "tokenizer_name": model,
            "path": folder,
            "train_glob": f"{folder}/fineweb_train_*.bin",
            "val_glob": f"{folder}/fineweb_val_*.bin",
            "stats": {"files_train": train, "files_val": val, "files_total": train + val},
        }
        if sidecars:
            entry["val_bytes_glob"] = f"{folder}/fineweb_val_bytes_*.bin"
        paths = {"model_path": f"tokenizers/{model}.model", "vocab_path": f"tokenizers/{model}.vocab"}
        manifest = self.manifest(repo) if "datasets/manifest.json" in files else {"datasets": [], "tokenizers": []}
        manifest["datasets"].append(entry)
        manifest["tokenizers"].append({"name": model, "kind": "sentencepiece_bpe", **paths})
        self.put_manifest(repo, manifest)

    def manifest(self, repo: str) -> Any:
        """The manifest of a repository."""
        return json.loads(self.repos[repo]["datasets/manifest.json"])

    def put_manifest(self, repo: str, manifest: Any) -> None:
        """Replace it."""
        self.repos[repo]["datasets/manifest.json"] = json.dumps({"version": "10B", **manifest}).encode()

    def change(self, repo: str, action: Callable[[Any], object]) -> None:
        """Change the first dataset's entry of the manifest."""
        manifest = self.manifest(repo)
        action(manifest["datasets"][0])
        self.put_manifest(repo, manifest)

    def fetched(self, word: str = "", method: str = "GET") -> list[Request]:
        """Requests of a method whose path contains a word."""
        return [line for line in self.log if line.method == method and word in line.path]

    def fault(self, path: str) -> Fault | None:
        """The fault that is due at a path now."""
        for word, fault in self.faults.items():
            if word in path and fault.times:
                if fault.skip:
                    fault.skip -= 1
                    return None
                fault.times -= 1
                return fault
        return None

    def tag(self, path: str, content: bytes) -> tuple[str, bool]:
        """A file's hash as the hub tells it, and whether that is a SHA-256."""
        large = path.endswith((".bin", ".model"))
        return sha256(content) if large else git_id(content), large

    def info(self, repo: str) -> dict[str, Any]:
        """The repository's description."""
        siblings = []
        for path, content in self.repos[repo].items() if self.lists else ():
            tag, large = self.tag(path, content)
            lfs = {"lfs": {"size": len(content), "sha256": tag, "pointerSize": 130}} if large else {}
            siblings.append({"rfilename": path, "size": len(content), "blobId": git_id(content), **lfs})
        return {"id": repo, "sha": self.commit, "siblings": siblings}


class Handler(BaseHTTPRequestHandler):
    """Answers /api/datasets/... and /datasets/.../resolve/..., large files by way of a redirect to /cdn."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *words: Any) -> None:
        """Nothing on the terminal."""

    def answer(self, status: int, body: bytes = b"", **headers: object) -> None:
        """A whole answer."""
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, kind: str, status: int = 404) -> None:
        """What the hub says of things that are not there."""
        self.answer(status, b"{}", X_Error_Code=kind)

    def do_HEAD(self) -> None:
        """As GET, without the body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Log the request, go wrong if it is time for that, else answer."""
        parts = urlsplit(unquote(self.path))
        hub, path = self.hub, parts.path
        authorization = self.headers.get("Authorization", "")
        hub.log.append(Request(self.command, path, self.headers.get("Range", ""), authorization))
        fault = hub.fault(f"{self.command} {path}")
        if fault and fault.kind == "status":
            self.answer(fault.status, b"busy", **fault.headers)
        elif fault and fault.kind == "body":
            self.answer(200, fault.body, **{"Content_Type": "application/octet-stream", **fault.headers})
        elif fault and fault.kind == "silence":
            self.close_connection = True
        elif path.startswith("/api/datasets/"):
            self.repository(path.removeprefix("/api/datasets/"), parse_qs(parts.query))
        elif path.startswith("/cdn/"):
            repo, _, file = path.removeprefix("/cdn/").partition("//")
            self.content(hub.repos[repo][file], fault)
        else:
            self.file(path, fault)

    def repository(self, path: str, query: dict[str, list[str]]) -> None:
        """A repository's commit and files; sizes and hashes only when blobs are asked for, as the hub does."""
        repo, _, revision = path.partition("/revision/")
        if repo not in self.hub.repos:
            self.missing("RepoNotFound", 401)
        elif revision not in ("main", self.hub.commit):
            self.missing("RevisionNotFound")
        else:
            info = self.hub.info(repo)
            if "blobs" not in query:
                info["siblings"] = [{"rfilename": one["rfilename"]} for one in info["siblings"]]
            told = {"Content_Type": "application/json", "X_HF_Warning": "auth; requests without a token are limited"}
            self.answer(200, json.dumps(info).encode(), **told)

    def file(self, path: str, fault: Fault | None) -> None:
        """A file of a repository at a revision."""
        repo, _, rest = path.removeprefix("/datasets/").partition("/resolve/")
        file = rest.partition("/")[2]
        content = self.hub.repos.get(repo, {}).get(file)
        if content is None:
            self.missing("EntryNotFound")
            return
        tag, large = self.hub.tag(file, content)
        headers = {"X_Repo_Commit": self.hub.commit, "ETag": f'"{tag}"' if self.hub.etags else '"weird-1"'}
        if large:
            linked = {"X_Linked_Size": len(content), "X_Linked_Etag": headers["ETag"]}
            self.answer(302, b"", Location=f"{self.hub.url}/cdn/{repo}//{file}", **headers, **linked)
        else:
            self.content(content, fault, **headers)

    def content(self, content: bytes, fault: Fault | None, **headers: object) -> None:
        """Bytes, from the middle if asked; a fault breaks them off at a place, or lets the client wait there."""
        start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if self.hub.ranges else 0
        if start >= len(content):
            self.answer(416)
            return
        extra: dict[str, object] = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        status = 206 if start else 200
        if fault and fault.kind in ("reset", "stall"):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : fault.at])
            self.close_connection = True
            if fault.kind == "stall":
                self.wfile.flush()
                self.hub.released.wait(60)
            return
        self.answer(status, content[start:], **headers, **(extra if start else {}))


class Server(ThreadingHTTPServer):
    """Silent about clients that leave."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up."""


@contextlib.contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Run the hub until the block ends; its address is in `hub.url`."""
    server = Server(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def three_repos() -> FakeHub:
    """The published repositories in small."""
    hub = FakeHub()
    hub.publish("willdepueoai/parameter-golf", "fineweb10B_sp1024", "fineweb_1024_bpe", seed=0)
    hub.publish("kevclark/parameter-golf", "fineweb10B_sp4096", "fineweb_4096_bpe", seed=100)
    hub.publish("kevclark/parameter-golf", "fineweb10B_sp8192", "fineweb_8192_bpe", seed=200)
    hub.publish("romeerp/parameter-golf-caseops-v1", CASEOPS, "fineweb_8192_caseops", val=2, sidecars=True, seed=300)
    return hub


def main() -> None:
    """Serve the published repositories: print the address, and end when standard input does."""
    with serve(three_repos()) as hub:
        print(hub.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
