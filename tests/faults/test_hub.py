"""pgolf data get against a hub on localhost: what arrives is whole and checked, whatever the network does."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import command, run_apart, run_here, stray_files, tree

from benchmarks.faults.hub_server import CASEOPS, COMMIT, FakeHub, Fault, serve, sha256, shard, three_repos
from pgolf.core.errors import ConfigError, InputError, LockedError, PgolfError, SetupError, StorageError
from pgolf.report.console import Console
from pgolf.stages import hub as module
from pgolf.stages.fetch import fetch, preview
from pgolf.stages.hub import Wish
from pgolf.stages.manifest import guarded

SP1024, FOLDER = "willdepueoai/parameter-golf", Path("datasets/fineweb10B_sp1024")
VAL, TRAIN1 = "fineweb_val_000000.bin", "fineweb_train_000001.bin"
ALL = {"sp1024": FOLDER.name, "sp4096": "fineweb10B_sp4096", "sp8192": "fineweb10B_sp8192", "caseops": CASEOPS}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """The published repositories, served."""
    with serve(three_repos()) as running:
        yield running


@pytest.fixture
def get(hub: FakeHub, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """fetch() into tmp_path/data, without pauses; `slept` collects the pauses it would have made."""

    def run(name: str = "sp1024", slept: list[float] | None = None, **options: Any) -> dict[str, Any]:
        wish = {key: options.pop(key) for key in tuple(options) if key in Wish.__dataclass_fields__}
        pauses: list[float] = [] if slept is None else slept
        asked = Wish(name=name, **{"endpoint": hub.url, **wish})
        options = {"console": Console(quiet=True), "sleep": pauses.append, "workers": 2, **options}
        return fetch(asked, tmp_path / "data", **options)

    return run


def published(hub: FakeHub, name: str) -> dict[str, bytes]:
    """What a dataset's folder must hold of what the hub has: file name -> content."""
    repo, dataset = module.PUBLISHED[name]
    head = f"datasets/datasets/{dataset}/"
    return {path.removeprefix(head): content for path, content in hub.repos[repo].items() if path.startswith(head)}


def shards_in(folder: Path) -> dict[str, bytes]:
    """The .bin files of a folder."""
    return {path.name: path.read_bytes() for path in folder.glob("*.bin")}


def refused(error: pytest.ExceptionInfo[PgolfError], code: int, *words: str) -> None:
    """The exit code and the words of an error."""
    assert error.value.exit_code == code
    for word in words:
        assert word in str(error.value)


# All is well


@pytest.mark.parametrize("name", ALL)
def test_every_file_arrives_in_its_place(
    name: str, hub: FakeHub, get: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    document = get(name)
    folder = tmp_path / "data" / "datasets" / ALL[name]
    repo = module.PUBLISHED[name][0]
    assert shards_in(folder) == published(hub, name)
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    model = Path(document["tokenizer"])
    assert model.parent == tmp_path / "data" / "tokenizers"
    assert model.read_bytes() == hub.repos[repo][f"datasets/tokenizers/{model.name}"]
    assert model.with_suffix(".vocab").is_file()
    assert (folder / "tokenizer.model").read_bytes() == model.read_bytes()
    assert (folder / "published_manifest.json").read_bytes() == hub.repos[repo]["datasets/manifest.json"]
    assert not (tmp_path / "data" / "manifest.json").exists()
    assert not (folder / ".fetch").exists() and not stray_files(tmp_path)
    record = json.loads((folder / "fetched.json").read_text())
    assert record["schema"] == "pgolf.fetched/1"
    assert (record["repo"], record["root"], record["revision"], record["commit"]) == (repo, "datasets", "main", COMMIT)
    assert {key: entry["sha256"] for key, entry in record["files"].items() if key.endswith(".bin")} == {
        key: sha256(content) for key, content in published(hub, name).items()
    }
    assert document["downloaded"] == len(document["files"]) == len(record["files"])
    assert document["downloaded_bytes"] >= sum(row["bytes"] for row in document["files"])
    assert all(not line.authorization for line in hub.log)


def test_sidecars_come_for_every_val_shard(get: Any, tmp_path: Path) -> None:
    get("caseops", train_shards=1)
    assert sorted(shards_in(tmp_path / "data" / "datasets" / CASEOPS)) == [
        "fineweb_train_000000.bin",
        VAL,
        "fineweb_val_000001.bin",
        "fineweb_val_bytes_000000.bin",
        "fineweb_val_bytes_000001.bin",
    ]


def test_all_val_and_the_first_train_shards(get: Any, tmp_path: Path) -> None:
    assert get(train_shards=2)["train_shards"] == 2
    assert sorted(shards_in(tmp_path / "data" / FOLDER)) == ["fineweb_train_000000.bin", TRAIN1, VAL]


def test_more_train_shards_later_fetch_only_the_new_ones(hub: FakeHub, get: Any, tmp_path: Path) -> None:
    get(train_shards=1)
    before = tree(tmp_path / "data" / FOLDER)
    hub.log.clear()
    document = get(train_shards=3)
    assert {Path(line.path).name for line in hub.log} == {TRAIN1, "fineweb_train_000002.bin"}
    assert (document["downloaded"], document["reused"]) == (2, 4)
    after = tree(tmp_path / "data" / FOLDER)
    assert {name: after[name] for name in before if name != "fetched.json"} == {
        name: entry for name, entry in before.items() if name != "fetched.json"
    }
    files = json.loads((tmp_path / "data" / FOLDER / "fetched.json").read_text())["files"]
    assert len(files) == 6


def test_a_complete_dataset_needs_no_network(tmp_path: Path) -> None:
    with serve(three_repos()) as running:
        wish = Wish(name="sp1024", endpoint=running.url)
        fetch(wish, tmp_path, Console(quiet=True))
    document = fetch(wish, tmp_path, Console(quiet=True), tries=1)
    assert (document["network"], document["downloaded"], document["reused"]) == (False, 0, 6)
    assert document["downloaded_bytes"] == 0
    (tmp_path / FOLDER / "tokenizer.model").unlink()
    fetch(wish, tmp_path, Console(quiet=True), tries=1)
    assert (tmp_path / FOLDER / "tokenizer.model").is_file()
    (tmp_path / FOLDER / VAL).unlink()
    with pytest.raises(StorageError):
        fetch(wish, tmp_path, Console(quiet=True), tries=1)


def test_a_file_damaged_here_is_fetched_again(hub: FakeHub, get: Any, tmp_path: Path) -> None:
    get()
    path = tmp_path / "data" / FOLDER / VAL
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    hub.log.clear()
    assert get()["downloaded"] == 1
    assert path.read_bytes() == whole
    assert {Path(line.path).name for line in hub.log} == {VAL}


def test_a_kept_manifest_that_was_changed_is_fetched_again(hub: FakeHub, get: Any, tmp_path: Path) -> None:
    get()
    path = tmp_path / "data" / FOLDER / "published_manifest.json"
    for change in (lambda: path.write_text("{}"), path.unlink):
        change()
        assert get()["downloaded"] == 0
        assert path.read_bytes() == hub.repos[SP1024]["datasets/manifest.json"]


def test_a_folder_stays_at_its_commit_until_force(hub: FakeHub, get: Any, tmp_path: Path) -> None:
    get(train_shards=3)
    hub.commit = "d00d" + 36 * "0"
    path = f"datasets/{FOLDER}/{VAL}"
    hub.repos[SP1024][path] = shard(77)
    assert get()["commit"] == COMMIT
    assert get(force=True, train_shards=2)["commit"] == hub.commit
    assert (tmp_path / "data" / FOLDER / VAL).read_bytes() == hub.repos[SP1024][path]
    assert not (tmp_path / "data" / FOLDER / "fineweb_train_000002.bin").exists()


def test_finish_gets_the_folder_when_all_is_there(get: Any, tmp_path: Path) -> None:
    seen = []
    get(finish=lambda folder, published: seen.append((folder, len(shards_in(folder)))))
    assert seen == [(tmp_path / "data" / FOLDER, 4)]


def test_shards_may_begin_at_one(hub: FakeHub, get: Any, tmp_path: Path) -> None:
    files = hub.repos[SP1024]
    files[f"datasets/{FOLDER}/fineweb_train_000003.bin"] = files.pop(f"datasets/{FOLDER}/fineweb_train_000000.bin")
    get(train_shards=1)
    assert TRAIN1 in shards_in(tmp_path / "data" / FOLDER)


def test_a_hub_that_lists_nothing(hub: FakeHub, get: Any, tmp_path: Path) -> None:
    hub.lists = False
    document = get()
    assert shards_in(tmp_path / "data" / FOLDER) == published(hub, "sp1024")
    assert any("does not list" in line for line in document["warnings"])
    hub.log.clear()
    assert not get()["network"] and not hub.log


def test_a_hub_without_hashes_is_said_aloud(hub: FakeHub, get: Any, tmp_path: Path) -> None:
    hub.lists = hub.etags = False
    document = get()
    assert any("no hash" in line for line in document["warnings"])
    assert shards_in(tmp_path / "data" / FOLDER) == published(hub, "sp1024")
    assert not get()["network"]


# The network fails


@pytest.mark.fault(row="F26")
def test_a_reset_is_resumed_by_range(hub: FakeHub, get: Any, tmp_path: Path) -> None:
    hub.faults[f"/cdn/{SP1024}//datasets/{FOLDER}/{TRAIN1}"] = Fault("reset", at=1500)
    slept: list[float] = []
    document = get(slept=slept)
    assert shards_in(tmp_path / "data" / FOLDER) == published(hub, "sp1024")
    assert [line.range for line in hub.fetched(f"cdn/{SP1024}//datasets/{FOLDER}/{TRAIN1}")] == ["", "bytes=1500-"]
    assert slept == [1.0]
    assert document["downloaded_bytes"] < sum(row["bytes"] for row in document["files"]) + 3000


@pytest.mark.fault(row="F26")
def test_an_interrupted_get_resumes_in_the_next_one(hub: FakeHub, get: Any, tmp_path: Path) -> None:
    hub.faults[f"/cdn/{SP1024}//datasets/{FOLDER}/{TRAIN1}"] = Fault("reset", times=-1, at=1200)
    with pytest.raises(StorageError):
        get(tries=1, workers=1)
    assert not (tmp_path / "data" / FOLDER / TRAIN1).exists()
    hub.faults.clear()
    hub.log.clear()
    get()
    assert [line.range for line in hub.fetched(f"cdn/{SP1024}//datasets/{FOLDER}/{TRAIN1}")] == ["bytes=1200-"]
    assert not hub.fetched("/api/") and not hub.fetched(VAL)
    assert shards_in(tmp_path / "data" / FOLDER) == published(hub, "sp1024")


@pytest.mark.fault(row="F26")
def test_a_server_without_ranges_starts_again(hub: FakeHub, get: Any, tmp_path: Path) -> None:
    hub.ranges = False
    hub.faults[f"/cdn/{SP1024}//datasets/{FOLDER}/{TRAIN1}"] = Fault("reset", at=1500)
    get()
    assert shards_in(tmp_path / "data" / FOLDER) == published(hub, "sp1024")
    assert [line.range for line in hub.fetched(f"cdn/{SP1024}//datasets/{FOLDER}/{TRAIN1}")] == ["", "bytes=1500-"]


@pytest.mark.parametrize("place", ["/api/", "manifest.json", f"/resolve/{COMMIT}/datasets/{FOLDER}/{VAL}", "/cdn/"])
@pytest.mark.fault(row="F26")
def test_too_many_requests(place: str, hub: FakeHub, get: Any, tmp_path: Path) -> None:
    hub.faults[place] = Fault("status", status=429, headers={"Retry-After": "7"})
    slept: list[float] = []
    get(slept=slept)
    assert slept == [7.0]
    assert shards_in(tmp_path / "data" / FOLDER) == published(hub, "sp1024")


@pytest.mark.parametrize(
    ("headers", "pause"),
    [({"RateLimit": '"api";r=0;t=42'}, 42.0), ({"Retry-After": "9999"}, 600.0), ({"Retry-After": "soon"}, 1.0)],
)
@pytest.mark.fault(row="F26")
def test_how_long_to_wait(headers: dict[str, str], pause: float, hub: FakeHub, get: Any) -> None:
    hub.faults["/api/"] = Fault("status", status=429, headers=headers)
    slept: list[float] = []
    get(slept=slept)
    assert slept == [pause]


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
@pytest.mark.fault(row="F26")
def test_server_errors_pass(status: int, hub: FakeHub, get: Any, tmp_path: Path) -> None:
    hub.faults[VAL] = Fault("status", times=3, status=status)
    slept: list[float] = []
    get(slept=slept)
    assert slept == [1.0, 2.0, 4.0]
    assert shards_in(tmp_path / "data" / FOLDER) == published(hub, "sp1024")


@pytest.mark.parametrize("kind", ["status", "silence"])
@pytest.mark.parametrize("place", ["/api/", VAL])
@pytest.mark.fault(row="F26")
def test_tries_come_to_an_end(kind: str, place: str, hub: FakeHub, get: Any, tmp_path: Path) -> None:
    hub.faults[place] = Fault(kind, times=-1, status=503)
    with pytest.raises(StorageError) as error:
        get(tries=4)
    refused(error, 6, "4 tries", SP1024, "--endpoint")
    assert len(hub.fetched(place)) == 4
    assert not (tmp_path / "data" / FOLDER / VAL).exists()


@pytest.mark.fault(row="F26")
def test_a_server_that_says_nothing_times_out(hub: FakeHub, get: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.1)
    release = threading.Event()
    monkeypatch.setattr(FakeHub, "info", lambda self, repo: release.wait(5) and {})
    with pytest.raises(StorageError) as error:
        get(tries=2)
    release.set()
    refused(error, 6, "2 tries", "timed out")


@pytest.mark.fault(row="F26")
def test_no_network_at_all(get: Any, tmp_path: Path) -> None:
    slept: list[float] = []
    with pytest.raises(StorageError) as error:
        get(endpoint="http://127.0.0.1:9", tries=3, slept=slept)
    refused(error, 6, "3 tries", "http://127.0.0.1:9", "check the network")
    assert slept == [1.0, 2.0]
    assert not (tmp_path / "data").exists()


# What arrives is wrong


@pytest.mark.parametrize(
    ("body", "headers", "word"),
    [
        (shard(99), {}, "hash"),
        (shard(0, 400), {}, "bytes arrived of the"),
        (b"", {}, "bytes arrived of the"),
        (shard(0, 4000), {}, "more than"),
        (b"<html>log in</html>", {"Content-Type": "text/html; charset=utf-8"}, "a web page"),
    ],
)
@pytest.mark.fault(row="F26")
def test_wrong_content_is_fetched_once_more(
    body: bytes, headers: dict[str, str], word: str, hub: FakeHub, get: Any, tmp_path: Path
) -> None:
    hub.faults[f"/cdn/{SP1024}//datasets/{FOLDER}/{VAL}"] = Fault("body", times=1, body=body, headers=headers)
    get()
    assert shards_in(tmp_path / "data" / FOLDER) == published(hub, "sp1024")
    shutil.rmtree(tmp_path / "data")
    hub.faults[f"/cdn/{SP1024}//datasets/{FOLDER}/{VAL}"] = Fault("body", times=-1, body=body, headers=headers)
    hub.log.clear()
    with pytest.raises(InputError) as error:
        get()
    refused(error, 3, word, "twice", VAL, SP1024)
    assert len(hub.fetched(f"/cdn/{SP1024}//datasets/{FOLDER}/{VAL}")) == 2
    assert not (tmp_path / "data" / FOLDER / VAL).exists()
    assert not list((tmp_path / "data" / FOLDER / ".fetch").glob(f"{VAL}*"))


@pytest.mark.fault(row="F26")
def test_a_partial_download_of_other_content_is_noticed(hub: FakeHub, get: Any, tmp_path: Path) -> None:
    content = hub.repos[SP1024][f"datasets/{FOLDER}/{VAL}"]
    part = tmp_path / "data" / FOLDER / ".fetch" / f"{VAL}.{sha256(content)[:16]}"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    get()
    assert shards_in(tmp_path / "data" / FOLDER) == published(hub, "sp1024")
    assert [line.range for line in hub.fetched(f"cdn/{SP1024}//datasets/{FOLDER}/{VAL}")] == ["bytes=1000-", ""]


def test_a_published_file_that_is_no_shard(hub: FakeHub, get: Any, tmp_path: Path) -> None:
    hub.repos[SP1024][f"datasets/{FOLDER}/{VAL}"] = b"not a shard, but whole" * 100
    with pytest.raises(InputError) as error:
        get()
    refused(error, 3, "not a shard", VAL)
    assert not (tmp_path / "data" / FOLDER / VAL).exists()


def test_a_small_file_is_checked_by_its_git_id(hub: FakeHub, get: Any, tmp_path: Path) -> None:
    hub.faults[f"/resolve/{COMMIT}/datasets/tokenizers/fineweb_1024_bpe.vocab"] = Fault(
        "body", times=-1, body=b"piece\t1\n"
    )
    with pytest.raises(InputError) as error:
        get()
    refused(error, 3, "hash", ".vocab")
    assert not list((tmp_path / "data").rglob("*.vocab"))


# What is asked for is not there


def test_a_missing_repository(get: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        get(repo="nobody/nothing")
    refused(error, 3, "nobody/nothing", "--repo")
    assert not (tmp_path / "data").exists()


def test_a_missing_revision(get: Any) -> None:
    with pytest.raises(InputError) as error:
        get(revision="v9")
    refused(error, 3, "no such revision", "v9", SP1024)


def test_a_manifest_with_the_wrong_hash(hub: FakeHub, get: Any) -> None:
    other = hub.repos[SP1024]["datasets/manifest.json"].replace(b"10B", b"99B")
    hub.faults["/datasets/manifest.json"] = Fault("body", times=-1, body=other)
    with pytest.raises(InputError) as error:
        get()
    refused(error, 3, "hash", "manifest.json")


def test_a_missing_manifest(get: Any) -> None:
    with pytest.raises(InputError) as error:
        get(root="elsewhere")
    refused(error, 3, "elsewhere/manifest.json", "--root")


def test_a_shard_that_is_promised_and_missing(hub: FakeHub, get: Any) -> None:
    del hub.repos[SP1024][f"datasets/{FOLDER}/{TRAIN1}"]
    with pytest.raises(InputError) as error:
        get()
    refused(error, 3, TRAIN1, SP1024, "revision main", "promise")


@pytest.mark.fault(row="F26")
def test_a_file_that_vanishes_after_the_list(hub: FakeHub, get: Any) -> None:
    hub.faults[f"/resolve/{COMMIT}/datasets/{FOLDER}/{VAL}"] = Fault("status", times=-1, status=404)
    with pytest.raises(InputError) as error:
        get()
    refused(error, 3, VAL, "404")
    assert len(hub.fetched(f"/resolve/{COMMIT}/datasets/{FOLDER}/{VAL}")) == 1


def test_a_dataset_that_is_not_in_the_manifest(get: Any) -> None:
    with pytest.raises(InputError) as error:
        get("sp1024", repo="kevclark/parameter-golf")
    refused(error, 3, "fineweb10B_sp1024", "fineweb10B_sp4096", "fineweb10B_sp8192")


def test_more_train_shards_than_there_are(get: Any) -> None:
    with pytest.raises(ConfigError) as error:
        get(train_shards=4)
    refused(error, 2, "4 train shards", "3 are published")


HOSTILE = [
    lambda entry: entry.update(path="../x"),
    lambda entry: entry.update(path="/etc"),
    lambda entry: entry.update(path="datasets/../../x"),
    lambda entry: entry.update(path=5),
    lambda entry: entry.update(train_glob="datasets/fineweb10B_sp1024/../../fineweb_train_*.bin"),
    lambda entry: entry.update(train_glob="*"),
    lambda entry: entry.update(val_glob=None),
    lambda entry: entry.update(val_bytes_glob="../fineweb_val_bytes_*.bin"),
    lambda entry: entry["stats"].update(files_train=10**9),
    lambda entry: entry["stats"].update(files_train=-1),
    lambda entry: entry["stats"].update(files_train=True),
    lambda entry: entry.update(tokenizer_name="nobody"),
]


@pytest.mark.parametrize("change", HOSTILE)
@pytest.mark.fault(row="F22")
def test_a_hostile_manifest(change: Any, hub: FakeHub, get: Any, tmp_path: Path) -> None:
    hub.change(SP1024, change)
    with pytest.raises(InputError) as error:
        get()
    refused(error, 3, "manifest")
    assert not (tmp_path / "data").exists()
    assert not hub.fetched(".bin")


@pytest.mark.parametrize(
    ("key", "value"), [("model_path", "../x.model"), ("model_path", "/x.model"), ("vocab_path", 3)]
)
@pytest.mark.fault(row="F22")
def test_hostile_tokenizer_paths(key: str, value: Any, hub: FakeHub, get: Any, tmp_path: Path) -> None:
    manifest = hub.manifest(SP1024)
    manifest["tokenizers"][0][key] = value
    hub.put_manifest(SP1024, manifest)
    with pytest.raises(InputError) as error:
        get()
    refused(error, 3, key)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"datasets": 3}', b'{"datasets": [3]}', b'{"a": NaN}'])
def test_a_manifest_that_is_none(text: bytes, hub: FakeHub, get: Any) -> None:
    hub.repos[SP1024]["datasets/manifest.json"] = text
    with pytest.raises(InputError):
        get()


@pytest.mark.parametrize("text", [b"<html></html>", b"[]", b"{}", b'{"id": "x", "sha": "../x", "siblings": []}'])
@pytest.mark.fault(row="F26")
def test_something_else_answers(text: bytes, hub: FakeHub, get: Any) -> None:
    hub.faults["/api/"] = Fault("body", times=-1, body=text)
    with pytest.raises(InputError) as error:
        get()
    refused(error, 3, "not a hub", "--endpoint")


# What is there already


def test_another_repository_in_the_same_folder(hub: FakeHub, get: Any, tmp_path: Path) -> None:
    get()
    hub.publish("me/fork", FOLDER.name, "fineweb_1024_bpe", train=2, seed=500)
    before = tree(tmp_path / "data")
    with pytest.raises(ConfigError) as error:
        get(repo="me/fork")
    refused(error, 2, "me/fork", SP1024, "--force")
    assert tree(tmp_path / "data") == before
    with pytest.raises(ConfigError):
        get(revision=COMMIT)
    get(repo="me/fork", force=True)
    assert "fineweb_train_000001.bin" in shards_in(tmp_path / "data" / FOLDER)
    assert (tmp_path / "data" / FOLDER / VAL).read_bytes() == hub.repos["me/fork"][f"datasets/{FOLDER}/{VAL}"]


def test_files_of_unknown_origin(hub: FakeHub, get: Any, tmp_path: Path) -> None:
    folder = tmp_path / "data" / FOLDER
    folder.mkdir(parents=True)
    (folder / TRAIN1).write_bytes(published(hub, "sp1024")[TRAIN1])
    (folder / VAL).write_bytes(b"mine")
    with pytest.raises(ConfigError) as error:
        get()
    refused(error, 2, VAL, "--force")
    assert (folder / VAL).read_bytes() == b"mine"
    document = get(force=True)
    assert document["reused"] == 1 and not hub.fetched(TRAIN1)
    assert shards_in(folder) == published(hub, "sp1024")


@pytest.mark.parametrize("text", ["{", "[]", "{}x", '{"schema": "pgolf.fetched/2"}', '{"schema": "pgolf.fetched/1"}'])
def test_a_damaged_record(text: str, get: Any, tmp_path: Path) -> None:
    get()
    (tmp_path / "data" / FOLDER / "fetched.json").write_text(text)
    with pytest.raises(InputError) as error:
        get()
    refused(error, 3, "fetched.json")
    assert get(force=True)["reused"] == 6


@pytest.mark.fault(row="F20")
def test_two_at_once(get: Any, tmp_path: Path) -> None:
    with guarded(tmp_path / "data" / FOLDER / "fetched.json"), pytest.raises(LockedError):
        get()


# This machine


@pytest.mark.fault(row="F5")
def test_a_full_disk_is_told_before(get: Any, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgolf.stages.fetch.free_bytes", lambda path: 5000)
    with pytest.raises(StorageError) as error:
        get()
    refused(error, 6, "5,000 are free", "--train-shards")
    assert not hub.fetched(".bin")


@pytest.mark.fault(row="F5")
def test_a_full_disk_in_the_middle(get: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pgolf.core.files.os.fsync", full)
    with pytest.raises(StorageError) as error:
        get(workers=1)
    refused(error, 6, "no space left")
    assert not shards_in(tmp_path / "data" / FOLDER)
    monkeypatch.undo()
    get()


@pytest.mark.fault(row="F27")
def test_the_library_is_missing(get: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SetupError) as error:
        get()
    refused(error, 5, "pip install 'pgolf[hub]'")


def test_an_interruption_keeps_what_is_complete(hub: FakeHub, get: Any, tmp_path: Path) -> None:
    from pgolf.stages.signals import Interrupted

    class Impatient(Console):
        def line(self, text: str) -> None:
            if text == f"data get: {VAL}":
                raise Interrupted(2)

    with pytest.raises(Interrupted):
        get(console=Impatient(quiet=True), workers=1)
    files = json.loads((tmp_path / "data" / FOLDER / "fetched.json").read_text())["files"]
    assert not (tmp_path / "data" / FOLDER / "fineweb_train_000002.bin").exists()
    assert not (tmp_path / "data" / FOLDER / ".fetched.json.owner").exists()
    hub.log.clear()
    document = get()
    assert not hub.fetched("tokenizers") and document["reused"] >= len(files)
    assert shards_in(tmp_path / "data" / FOLDER) == published(hub, "sp1024")


@pytest.mark.fault(row="F3")
def test_ctrl_c_while_the_server_stalls(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults[f"/cdn/{SP1024}//datasets/{FOLDER}/{TRAIN1}"] = Fault("stall", at=1500)
    line = command("data", "get", "sp1024", "--dest", tmp_path, "--endpoint", hub.url, "--workers", 2)
    process = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    part = tmp_path / FOLDER / ".fetch"
    deadline = time.monotonic() + 60
    while not (tmp_path / FOLDER / "fineweb_train_000002.bin").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said.decode()
    assert time.monotonic() - started < module.TIMEOUT_S / 2
    assert b"Traceback" not in said
    assert [path.stat().st_size for path in part.iterdir()] == [1500]
    run_here("data", "get", "sp1024", "--dest", tmp_path, "--endpoint", hub.url, "--quiet").good()
    assert hub.fetched(f"/cdn/{SP1024}//datasets/{FOLDER}/{TRAIN1}")[-1].range == "bytes=1500-"
    assert shards_in(tmp_path / FOLDER) == published(hub, "sp1024")


# The command


def test_the_command(hub: FakeHub, tmp_path: Path) -> None:
    line = ("data", "get", "caseops", "--train-shards", 1, "--dest", tmp_path, "--endpoint", hub.url)
    document = run_here(*line, "--json").good().document
    assert document["schema"] == "pgolf.data-get/1"
    assert (document["name"], document["dataset"], document["commit"]) == ("caseops", CASEOPS, COMMIT)
    assert document["dir"] == str(tmp_path / "datasets" / CASEOPS)
    assert (document["train_shards"], document["downloaded"], document["reused"]) == (1, 7, 0)
    assert all(Path(row["file"]).stat().st_size == row["bytes"] for row in document["files"])
    assert document["network"] and document["seconds"] >= 0 and document["warnings"] == []
    again = run_here(*line).good()
    assert "unchanged" in again.out and "network was not used" in again.err
    assert run_here(*line, "--quiet").good().err == ""


def test_dry_run_writes_nothing(hub: FakeHub, tmp_path: Path) -> None:
    line = ("data", "get", "sp1024", "--dest", tmp_path / "new", "--endpoint", hub.url, "--dry-run")
    document = run_here(*line, "--json").good().document
    sizes = {row["file"].rpartition("/")[2]: row["bytes"] for row in document["files"]}
    files = published(hub, "sp1024")
    assert {name: sizes[name] for name in files} == {name: len(content) for name, content in files.items()}
    assert document["schema"] == "pgolf.plan/1" and document["command"] == "data get"
    assert document["total_bytes"] == document["download_bytes"] == sum(sizes.values())
    assert not (tmp_path / "new").exists() and not hub.fetched(".bin")
    said = run_here(*line).good().out
    assert VAL in said and f"would download {sum(sizes.values()):,}" in said
    assert run_apart(*line[:-1], "--train-shards", 1, "--quiet").good().err == ""
    assert run_here(*line, "--json").good().document["download_bytes"] == 2 * len(shard(0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["sp2048"], ["sp2048", "caseops"]),
        (["sp1024", "--repo", "x"], ["OWNER/NAME"]),
        (["sp1024", "--repo", "../x"], ["OWNER/NAME"]),
        (["sp1024", "--revision", "../../x"], ["revision"]),
        (["sp1024", "--root", "../x"], ["folder"]),
        (["sp1024", "--endpoint", "ftp://x"], ["--endpoint"]),
        (["sp1024", "--endpoint", "http://x:99999"], ["--endpoint"]),
        (["sp1024", "--endpoint", "http://[x"], ["--endpoint"]),
        (["sp1024", "--endpoint", "http://me:secret@x"], ["--endpoint"]),
    ],
)
def test_bad_options(options: list[str], words: list[str], tmp_path: Path) -> None:
    run_here("data", "get", *options, "--dest", tmp_path).refused(2, *words)


def test_a_failure_through_the_command(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults["/api/"] = Fault("status", times=-1, status=503)
    line = ("data", "get", "sp1024", "--dest", tmp_path, "--endpoint", hub.url, "--quiet", "--retries", 1)
    run_here(*line).refused(6, "1 try", SP1024)
    hub.faults.clear()
    run_here(*line, "--repo", "nobody/nothing").refused(3, "nobody/nothing")


def test_a_preview_after_a_get_is_offline(hub: FakeHub, get: Any, tmp_path: Path) -> None:
    get()
    hub.log.clear()
    document = preview(Wish(name="sp1024", endpoint=hub.url), tmp_path / "data", Console(quiet=True))
    assert document["download_bytes"] == 0 and not hub.log
