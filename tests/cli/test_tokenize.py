"""pgolf tokenize end to end: every document once, in its split, with its bytes, however the work is done."""

import hashlib
import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Result, command, run_here
from sentencepiece import SentencePieceProcessor

from pgolf.core.errors import PgolfError
from pgolf.corpus.transforms import get_transform
from pgolf.dataset import open_dataset
from pgolf.report.console import Console
from pgolf.stages.merge import merge

CASE = "tokenize.transform=caseops_v1"
FIRST = ("tokenize.split=first", "tokenize.val_docs=9")
ODD = [
    "",
    "  ",
    "\0 nul\0",
    "Some\u2028lines\r\n\tand TABS ",
    "½ ﬁne ™ École",
    " 日本語 😀 NASA's iPhone ",
    "\ue001 a \ue004B",
]


def texts() -> list[str]:
    """English documents that ship with Python, cut short, with odd ones between them."""
    from pydoc_data.topics import topics

    found = [text for name in sorted(topics)[:48] for text in (topics[name][:1500], topics[name][1500:2500])]
    for index, text in enumerate(ODD):
        found.insert(3 + 9 * index, text)
    return found


TEXTS = texts()
LONG = [text for text in TEXTS if len(text) > 500]


def write(path: Path, documents: list[str]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def sets(*settings: str) -> list[str]:
    """--set for every setting."""
    return [word for setting in settings for word in ("--set", setting)]


def tokenize(
    source: object, out: Path, *settings: str, model: Path | None = None, more: tuple[object, ...] = ()
) -> Result:
    """pgolf tokenize in this process, small shards, JSON."""
    argv: list[object] = [
        "tokenize",
        source,
        "--out",
        out,
        "--quiet",
        "--json",
        *(["--tokenizer", model] if model else []),
    ]
    return run_here(*argv, *sets("tokenize.vocab_size=400", "tokenize.shard_tokens=1000", *settings), *more)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a dataset directory but its manifest and locks."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json" and path.suffix != ".lock"
    }


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest."""
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as JSON lines."""
    return write(tmp_path_factory.mktemp("text") / "docs.jsonl", TEXTS)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    """A dataset with a tokenizer of its own, split by hash."""
    out = tmp_path_factory.mktemp("plain") / "data"
    tokenize(source, out, "tokenize.val_share=0.2").good()
    return out


@pytest.fixture(scope="module")
def cased(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    """The same with CaseOps, split by order."""
    out = tmp_path_factory.mktemp("cased") / "data"
    tokenize(source, out, CASE, *FIRST).good()
    return out


# Every document once


def stream(folder: Path, stem: str, limit: int) -> list[int]:
    """A row of shards read without pgolf; all but the last are full."""
    found: list[int] = []
    paths = sorted(folder.glob(f"{stem}_??????.bin"))
    for index, path in enumerate(paths):
        assert path.name == f"{stem}_{index:06d}.bin"
        header = np.fromfile(path, "<i4", 256)
        assert header.tolist() == [20240520, 1, header[2], *[0] * 253]
        values = np.fromfile(path, "<u2", offset=1024)
        assert len(values) == header[2] <= limit and (len(values) == limit or index == len(paths) - 1)
        found += values.tolist()
    return found


def expected_rule(index: int, text: str, split: str, value: float) -> str:
    """Where a document belongs."""
    if split == "first":
        return "val" if index < value else "train"
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    return "val" if share < value else "train"


def check(folder: Path, documents: list[str], split: str, value: float, transform: str, limit: int = 1000) -> None:
    """Compare every file of a dataset with what can be worked out from the text and the tokenizer alone."""
    facts = manifest(folder)
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    encode, empty = get_transform(transform).encode, 0
    ids: dict[str, list[int]] = {"train": [], "val": []}
    lists: dict[str, list[tuple[int, int, int]]] = {"train": [], "val": []}
    for index, text in enumerate(documents):
        own = processor.encode(encode(text))
        if not own:
            empty += 1
            continue
        name = expected_rule(index, text, split, value)
        ids[name] += [1, *own]
        digest = hashlib.sha256(text.encode()).digest()
        lists[name].append((int.from_bytes(digest[:8], "big"), len(text.encode()), len(own) + 1))
    assert facts["empty_documents"] == empty
    for name in ("train", "val"):
        assert stream(folder, f"fineweb_{name}", limit) == ids[name]
        found = np.load(folder / f"documents_{name}.npy", allow_pickle=False)
        assert found.tolist() == lists[name]
        entry = facts["splits"][name]
        hashes = b"".join(row[0].to_bytes(8, "little") for row in lists[name])
        assert entry["documents_sha256"] == hashlib.sha256(hashes).hexdigest()
        assert (entry["documents"], entry["tokens"]) == (len(lists[name]), len(ids[name]))
        assert entry["raw_bytes"] == sum(row[1] for row in lists[name])
        listed = [*entry["shards"], *entry.get("sidecars", []), entry["document_list"]]
        for item in listed:
            assert item["sha256"] == hashlib.sha256((folder / item["file"]).read_bytes()).hexdigest()
    sidecars = sorted(path.name for path in folder.glob("*_bytes_*"))
    assert bool(sidecars) == (transform != "none")
    assert not any(name.startswith("fineweb_train") for name in sidecars), "sidecars are for val alone"
    if sidecars:
        charges = stream(folder, "fineweb_val_bytes", limit)
        assert len(charges) == len(ids["val"])
        assert all(charge == 0 for charge, token in zip(charges, ids["val"]) if token == 1)
        assert sum(charges) == facts["splits"]["val"]["charged_bytes"]
    rule, stop = facts["rule"], len(documents)
    assert rule["documents"] == [0, stop]
    if split == "first":
        assert rule["ranges"] == {"val": [0, min(value, stop)], "train": [min(value, stop), stop]}
    else:
        assert rule["val"].endswith(f"below {math.ceil(value * 2**64)}")


def tokens_of(folder: Path) -> list[int]:
    """Tokens of every validation document."""
    found: list[int] = np.load(folder / "documents_val.npy", allow_pickle=False)["tokens"].tolist()
    return found


def test_a_dataset_split_by_hash(plain: Path) -> None:
    check(plain, TEXTS, "hash", 0.2, "none")


def test_a_dataset_split_by_order_with_case_operators(cased: Path) -> None:
    check(cased, TEXTS, "first", 9, "caseops_v1")


@pytest.mark.parametrize("limit", [1, 7, 64])
def test_documents_straddle_shards(tmp_path: Path, cased: Path, limit: int) -> None:
    documents = [text[:80] for text in TEXTS[:20]]
    path = write(tmp_path / "docs.jsonl", documents)
    settings = (CASE, "tokenize.split=first", "tokenize.val_docs=4", f"tokenize.shard_tokens={limit}")
    tokenize(path, tmp_path / "data", *settings, model=cased / "tokenizer.model").good()
    check(tmp_path / "data", documents, "first", 4, "caseops_v1", limit)
    assert len(open_dataset(tmp_path / "data").validation()[1]) > 0


def test_shards_that_come_out_even(tmp_path: Path, plain: Path) -> None:
    path = write(tmp_path / "docs.jsonl", TEXTS[:3])
    model = plain / "tokenizer.model"
    settings = ("tokenize.split=first", "tokenize.val_docs=1")
    tokenize(path, tmp_path / "one", *settings, model=model).good()
    tokens = manifest(tmp_path / "one")["splits"]["val"]["tokens"]
    tokenize(path, tmp_path / "two", *settings, f"tokenize.shard_tokens={tokens}", model=model).good()
    check(tmp_path / "two", TEXTS[:3], "first", 1, "none", tokens)
    assert len(manifest(tmp_path / "two")["splits"]["val"]["shards"]) == 1


def test_training_documents_alone_make_the_tokenizer(tmp_path: Path) -> None:
    """Whatever stands in validation documents, the tokenizer is the same."""
    models = []
    for word in ("first", "second"):
        path = write(tmp_path / f"{word}.jsonl", [f"{word} {word}" * 50, *TEXTS[:40]])
        tokenize(path, tmp_path / word, "tokenize.split=first", "tokenize.val_docs=1").good()
        models.append((tmp_path / word / "tokenizer.model").read_bytes())
    assert models[0] == models[1]


def test_a_tokenizer_is_trained_on_so_many_documents(tmp_path: Path) -> None:
    limited = ("tokenize.split=first", "tokenize.val_docs=1", "tokenize.tokenizer_docs=30")
    for name, count in (("short", 31), ("long", 60)):
        tokenize(write(tmp_path / f"{name}.jsonl", TEXTS[:count]), tmp_path / name, *limited).good()
    tokenize(tmp_path / "long.jsonl", tmp_path / "all", *limited[:2]).good()
    models = [(tmp_path / name / "tokenizer.model").read_bytes() for name in ("short", "long", "all")]
    assert models[0] == models[1] != models[2]


def test_unigram_and_reserved_symbols(tmp_path: Path, source: Path) -> None:
    settings = ("tokenize.model_type=unigram", "tokenize.reserved_symbols=<|a|> <|b|>", CASE)
    path = write(tmp_path / "docs.jsonl", [*TEXTS, "one<|b|>two <|a|> <|a", "THE<|a|>End"])
    tokenize(path, tmp_path / "data", *settings, "tokenize.val_share=0.2").good()
    processor = SentencePieceProcessor(model_file=str(tmp_path / "data" / "tokenizer.model"))
    pieces = ["<pad>", "<s>", "</s>", "<unk>", "\ue001", "\ue002", "\ue003", "\ue004", "<|a|>", "<|b|>", "<0x00>"]
    assert [processor.id_to_piece(index) for index in range(len(pieces))] == pieces
    check(tmp_path / "data", [*TEXTS, "one<|b|>two <|a|> <|a", "THE<|a|>End"], "hash", 0.2, "caseops_v1")
    ids = [token for split in ("train", "val") for token in stream(tmp_path / "data", f"fineweb_{split}", 1000)]
    assert ids.count(8) == 2 and ids.count(9) == 1


# Documents published with a description


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A document file and its description."""
    path = write(tmp_path / "docs_selected.jsonl", TEXTS[:30])
    facts = {"docs_val": 5, "num_docs": 30, "docs_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (tmp_path / "docs_selected.source_manifest.json").write_text(json.dumps(facts))
    return path


def test_published_documents_bring_their_split(tmp_path: Path, published: Path, plain: Path) -> None:
    model = plain / "tokenizer.model"
    document = tokenize(published, tmp_path / "data", "tokenize.split=first", model=model).good().document
    assert document["warnings"] == [] and document["rule"]["val_docs"] == 5
    check(tmp_path / "data", TEXTS[:30], "first", 5, "none")
    given = ("tokenize.split=first", "tokenize.val_docs=6")
    document = tokenize(published, tmp_path / "given", *given, model=model).good().document
    assert document["rule"]["val_docs"] == 6
    assert len(document["warnings"]) == 1 and "5 validation documents, not 6" in document["warnings"][0]
    same = tokenize(published, tmp_path / "same", "tokenize.split=first", "tokenize.val_docs=5", model=model).good()
    assert same.document["warnings"] == []


def test_published_documents_that_are_packed(tmp_path: Path, published: Path, plain: Path) -> None:
    import zstandard

    packed = tmp_path / "docs_selected.jsonl.zst"
    packed.write_bytes(zstandard.compress(published.read_bytes()))
    tokenize(packed, tmp_path / "data", "tokenize.split=first", model=plain / "tokenizer.model").good()
    check(tmp_path / "data", TEXTS[:30], "first", 5, "none")


def test_published_documents_that_are_others(tmp_path: Path, published: Path, plain: Path) -> None:
    model = plain / "tokenizer.model"
    with published.open("a") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")
    tokenize(published, tmp_path / "data", model=model).refused(3, "docs_selected.source_manifest.json", str(published))
    for content, words in (("[1]", ["docs_selected.source_manifest.json"]), ("{", ["JSON"])):
        (tmp_path / "docs_selected.source_manifest.json").write_text(content)
        tokenize(published, tmp_path / "data", model=model).refused(3, *words)
    assert not (tmp_path / "data" / "manifest.json").exists()
    (tmp_path / "docs_selected.source_manifest.json").write_text("{}")
    tokenize(published, tmp_path / "data", model=model).good()


# However the work is done


@pytest.mark.parametrize("name", ["plain", "cased"])
@pytest.mark.parametrize(("workers", "batch", "flight"), [(1, 200, 10), (2, 5000, 20_000), (3, 1 << 20, 1 << 26)])
def test_processes_and_batches_change_nothing(
    tmp_path: Path,
    source: Path,
    request: Any,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    workers: int,
    batch: int,
    flight: int,
) -> None:
    whole = request.getfixturevalue(name)
    monkeypatch.setattr("pgolf.corpus.workers.BATCH_BYTES", batch)
    monkeypatch.setattr("pgolf.corpus.workers.FLIGHT_BYTES", flight)
    settings = ("tokenize.val_share=0.2",) if name == "plain" else (CASE, *FIRST)
    tokenize(source, tmp_path / "data", *settings, f"tokenize.workers={workers}").good()
    assert files(tmp_path / "data") == files(whole)
    assert manifest(tmp_path / "data")["key"] == manifest(whole)["key"], "the key does not depend on it"


def test_by_default_processes_are_as_many_as_cores(
    tmp_path: Path, source: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    from pgolf.stages import tokenize as stage

    tokenized = stage.tokenized

    def counted(work: Any, job: Any, count: int, pool: Any) -> Any:
        seen.append(count)
        return tokenized(work, job, count, pool)

    monkeypatch.setattr(stage, "tokenized", counted)
    monkeypatch.setattr(stage, "available_cores", lambda: 2)
    tokenize(source, tmp_path / "small", "tokenize.val_share=0.2").good()
    monkeypatch.setattr(stage, "PARALLEL_BYTES", 1000)
    tokenize(source, tmp_path / "large", "tokenize.val_share=0.2").good()
    assert seen == [1, 2] and files(tmp_path / "small") == files(tmp_path / "large") == files(plain)


def test_the_same_text_in_other_files(tmp_path: Path, plain: Path) -> None:
    import gzip

    import pyarrow
    import pyarrow.parquet
    import zstandard

    folder = tmp_path / "docs"
    folder.mkdir()
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in TEXTS]
    (folder / "a.jsonl").write_bytes(b"\n\n".join(lines[:20]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"\r\n".join(lines[20:40]) + b"\n"))
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS[40:60]}), folder / "c.parquet")
    (folder / "d.jsonl.zst").write_bytes(zstandard.compress(b"\n".join(lines[60:80])) + zstandard.compress(b"\n"))
    (folder / "e.txt").write_bytes("\n<|next|>\n".join(TEXTS[80:]).encode())
    settings = ("tokenize.val_share=0.2", r"tokenize.document_separator=\n<|next|>\n")
    tokenize(folder, tmp_path / "data", *settings, model=plain / "tokenizer.model").good()
    assert files(tmp_path / "data") == files(plain)


@pytest.mark.parametrize("stdin_format", ["jsonl", "txt"])
def test_standard_input(tmp_path: Path, source: Path, plain: Path, stdin_format: str) -> None:
    out, settings = tmp_path / "data", ["tokenize.val_share=0.2", "tokenize.shard_tokens=1000", "tokenize.workers=2"]
    settings += [r"tokenize.document_separator=\n\n§\n\n"] if stdin_format == "txt" else []
    content = source.read_bytes() if stdin_format == "jsonl" else "\n\n§\n\n".join(TEXTS).encode()
    argv = command(
        "tokenize", "-", "--out", out, "--tokenizer", plain / "tokenizer.model", "--stdin-format", stdin_format
    )
    for _ in range(2):
        done = subprocess.run([*argv, *sets(*settings), "--json"], input=content, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        assert json.loads(done.stdout)["fresh"] is False, "it cannot know that the text is the same"
        assert files(out) == files(plain)


def test_standard_input_that_is_bad(tmp_path: Path, plain: Path, spawn: Callable[..., Result]) -> None:
    argv = command("tokenize", "-", "--out", tmp_path / "data", "--tokenizer", plain / "tokenizer.model", "--quiet")
    done = subprocess.run(argv, input=b'{"text": "one"}\n{"text": 2}\n', capture_output=True, timeout=60)
    assert done.returncode == 3 and b"standard input, line 2" in done.stderr and b"Traceback" not in done.stderr
    assert not (tmp_path / "data" / "manifest.json").exists()
    run_here("tokenize", "-", "--out", tmp_path / "data").refused(2, "--tokenizer", "standard input")
    model = plain / "tokenizer.model"
    run_here("tokenize", "-", "--out", tmp_path / "x", "--tokenizer", model, "--shard", "1/2").refused(2, "--shard")
    run_here("tokenize", "-", "--out", tmp_path / "x", "--stdin-format", "csv").refused(2, "--stdin-format", "csv")


def test_what_is_there_already(tmp_path: Path, source: Path) -> None:
    settings = ("tokenize.val_share=0.2",)
    assert tokenize(source, tmp_path / "data", *settings).good().document["fresh"] is False
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    document = tokenize(source, tmp_path / "data", *settings, "tokenize.workers=2").good().document
    assert document["fresh"] is True
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()} == before
    made = files(tmp_path / "data")
    assert tokenize(source, tmp_path / "data", *settings, more=("--force",)).good().document["fresh"] is False
    assert files(tmp_path / "data") == made
    shard = tmp_path / "data" / "fineweb_train_000001.bin"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\7")
    assert tokenize(source, tmp_path / "data", *settings).good().document["fresh"] is False
    assert files(tmp_path / "data") == made


# Parts of a whole


def make_parts(folder: Path, source: Path, model: Path, count: int, *settings: str) -> list[Path]:
    """The corpus in parts."""
    parts = [folder / f"part{index}" for index in range(1, count + 1)]
    for index, part in enumerate(parts, 1):
        result = tokenize(source, part, *settings, model=model, more=("--shard", f"{index}/{count}"))
        assert result.good().document["fresh"] is False
    return parts


@pytest.mark.parametrize("rule", [("tokenize.val_share=0.2",), FIRST], ids=["hash", "first"])
@pytest.mark.parametrize("name", ["plain", "cased"])
def test_parts_merged_are_the_whole(
    tmp_path: Path, source: Path, request: Any, name: str, rule: tuple[str, ...]
) -> None:
    model = request.getfixturevalue(name) / "tokenizer.model"
    settings = (*rule, *([CASE] if name == "cased" else []))
    tokenize(source, tmp_path / "whole", *settings, model=model).good()
    whole = manifest(tmp_path / "whole")
    for count in (1, 2, 3, 7):
        parts = make_parts(tmp_path / str(count), source, model, count, *settings)
        ranges = [manifest(part)["rule"]["documents"] for part in parts]
        assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])] and ranges[-1][1] == len(TEXTS)
        out = tmp_path / f"merged{count}"
        merged = merge(parts[::-1], out, Console(True))
        assert merged["fresh"] is False and files(out) == files(tmp_path / "whole")
        found = manifest(out)
        assert found["splits"] == whole["splits"] and found["rule"] == whole["rule"]
        same = set(whole) - {"seconds", "argv", "date"}
        assert {key: found[key] for key in same} == {key: whole[key] for key in same} and "part" not in found
        assert merge(parts, out, Console(True))["fresh"] is True
        again = tokenize(source, out, *settings, model=model).good()
        assert again.document["fresh"] is True, "the whole is up to date"
        assert files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize("rule", [("tokenize.val_share=0.5",), ("tokenize.split=first", "tokenize.val_docs=2")])
def test_more_parts_than_documents(tmp_path: Path, plain: Path, rule: tuple[str, ...]) -> None:
    path, model = write(tmp_path / "docs.jsonl", TEXTS[:11]), plain / "tokenizer.model"
    tokenize(path, tmp_path / "whole", *rule, model=model).good()
    parts = make_parts(tmp_path, path, model, 16, *rule)
    merge(parts, tmp_path / "merged", Console(True))
    assert files(tmp_path / "merged") == files(tmp_path / "whole")
    assert manifest(tmp_path / "merged")["rule"] == manifest(tmp_path / "whole")["rule"]


def test_a_part_is_up_to_date_as_a_part_only(tmp_path: Path, source: Path, plain: Path) -> None:
    model, settings = plain / "tokenizer.model", ("tokenize.val_share=0.2",)
    (part,) = make_parts(tmp_path, source, model, 1, *settings)
    again = tokenize(source, part, *settings, model=model, more=("--shard", "1/1")).good()
    assert again.document["fresh"] is True
    assert tokenize(source, part, *settings, model=model).good().document["fresh"] is False
    assert "part" not in manifest(part)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, source: Path, plain: Path) -> Path:
    """Three parts."""
    folder = tmp_path_factory.mktemp("three")
    make_parts(folder, source, plain / "tokenizer.model", 3, "tokenize.val_share=0.2")
    return folder


def refused(folders: list[Path], out: Path, code: int, *words: str) -> None:
    """Merging fails with that exit code and those words, and makes nothing."""
    with pytest.raises(PgolfError) as caught:
        merge(folders, out, Console(True))
    assert caught.value.exit_code == code, caught.value
    for word in words:
        assert word in str(caught.value), caught.value
    assert len(str(caught.value).splitlines()) == 1
    assert out in folders or not (out / "manifest.json").exists()


def test_parts_that_do_not_make_a_whole(tmp_path: Path, three: Path, source: Path, plain: Path) -> None:
    one, two, last = (three / f"part{index}" for index in (1, 2, 3))
    out, model = tmp_path / "out", plain / "tokenizer.model"
    refused([one, last], out, 3, "parts are missing: 2 of 3", "name every part once")
    refused([two], out, 3, "1, 3 of 3")
    refused([one, two, last, two], out, 3, "twice")
    refused([one, two, plain], out, 3, "not a part", str(plain), "--shard")
    refused([one, two, tmp_path / "absent"], out, 3, "absent")
    refused([one, two, last], two, 2, str(two), "--out")
    assert manifest(two)["part"] == {"index": 2, "of": 3}
    for change in ("tokenize.val_share=0.3", "tokenize.shard_tokens=999"):
        other = tmp_path / change
        more = ("--shard", "2/3")
        tokenize(source, other, "tokenize.val_share=0.2", change, model=model, more=more).good()
        refused([one, other, last], out, 3, "another whole", str(other))
    four = tmp_path / "four"
    tokenize(source, four, "tokenize.val_share=0.2", model=model, more=("--shard", "3/4")).good()
    refused([one, two, four], out, 3, "another whole", str(four), "number of parts")


@pytest.mark.parametrize("name", ["fineweb_train_000001.bin", "documents_val.npy", "tokenizer.model", "manifest.json"])
def test_a_damaged_part(tmp_path: Path, three: Path, name: str) -> None:
    parts = [Path(shutil.copytree(three / f"part{index}", tmp_path / str(index))) for index in (1, 2, 3)]
    content = bytearray((parts[1] / name).read_bytes())
    content[len(content) // 2] ^= 255
    (parts[1] / name).write_bytes(bytes(content))
    refused(parts, tmp_path / "out", 3, str(parts[1]))
    (parts[1] / name).unlink()
    refused(parts, tmp_path / "out", 3, str(parts[1]))
    shutil.copy(three / "part2" / name, parts[1])
    assert merge(parts, tmp_path / "out", Console(True))["fresh"] is False


def test_merging_on_the_command_line(tmp_path: Path, three: Path, plain: Path) -> None:
    parts, argv = [three / f"part{index}" for index in (3, 1, 2)], ["--out", tmp_path / "out", "--quiet", "--json"]
    document = run_here("data", "merge", *parts, *argv).good().document
    assert document["fresh"] is False and document["rule"] == manifest(plain)["rule"]
    assert files(tmp_path / "out") == files(plain)
    assert run_here("data", "merge", *parts, *argv).good().document["fresh"] is True
    run_here("data", "merge", *parts[:2], *argv[:-1]).refused(3, "parts are missing: 2 of 3", "name every part once")


def test_parts_that_leave_a_split_empty(tmp_path: Path, source: Path, plain: Path) -> None:
    settings = ("tokenize.split=first", "tokenize.val_docs=1000000")
    parts = make_parts(tmp_path, source, plain / "tokenizer.model", 2, *settings)
    refused(parts, tmp_path / "out", 2, "none to train", "tokenize.val_docs")
    tokenize(source, tmp_path / "whole", *settings, model=plain / "tokenizer.model").refused(2, "none to train")


@pytest.mark.parametrize(
    "shard", ["0/3", "4/3", "1", "1/", "/3", "a/b", "-1/3", "1/0", "1/2/3", "1.0/2", " 1/2", "1/2\n", "²/3"]
)
def test_a_part_that_does_not_exist(tmp_path: Path, source: Path, plain: Path, shard: str) -> None:
    result = tokenize(source, tmp_path / "data", model=plain / "tokenizer.model", more=(f"--shard={shard}",))
    result.refused(2, "--shard", repr(shard), "1/4")
    assert not (tmp_path / "data").exists()


def test_parts_need_a_tokenizer(tmp_path: Path, source: Path) -> None:
    tokenize(source, tmp_path / "data", more=("--shard", "1/2")).refused(2, "--tokenizer")


# Text that is hard to tokenize


def test_odd_documents_are_counted_to_the_byte(tmp_path: Path, plain: Path, cased: Path) -> None:
    documents = [
        "\ue001\ue002\ue003\ue004 \ue004\ue004X",
        "A\ue002BC",
        "\0\0",
        "\0A\0",
        " \n ",
        "",
        "a" * 5000,
        "\ufeffx",
    ]
    path = write(tmp_path / "docs.jsonl", [*documents, *TEXTS[:4]])
    for folder, settings in ((plain, ()), (cased, (CASE,))):
        out = tmp_path / folder.parent.name
        model = folder / "tokenizer.model"
        tokenize(path, out, "tokenize.split=first", "tokenize.val_docs=8", *settings, model=model).good()
        check(out, [*documents, *TEXTS[:4]], "first", 8, "caseops_v1" if settings else "none")
    charges, counts = (np.array(values) for values in (stream(out, "fineweb_val_bytes", 1000), tokens_of(out)))
    sums = dict(zip([0, 1, 6], np.add.reduceat(charges, np.cumsum(counts) - counts)[[0, 1, -2]]))
    assert sums == {index: len(documents[index].encode()) for index in sums}


@pytest.mark.parametrize("blank", [" ", "\n", "\t"])
def test_a_run_of_blanks_that_no_sidecar_can_hold(tmp_path: Path, cased: Path, plain: Path, blank: str) -> None:
    path = write(tmp_path / "docs.jsonl", [LONG[0], "one" + blank * 70_000 + "two", LONG[1]])
    settings = ("tokenize.split=first", "tokenize.val_docs=2")
    result = tokenize(path, tmp_path / "cased", *settings, CASE, model=cased / "tokenizer.model")
    result.refused(3, "blanks", "65,535", "line 2")
    tokenize(path, tmp_path / "plain", *settings, model=plain / "tokenizer.model").good()
    path = write(tmp_path / "docs.jsonl", [LONG[0], "one" + blank * 60_000 + "two" + blank * 70_000, LONG[1]])
    tokenize(path, tmp_path / "cased", *settings, CASE, model=cased / "tokenizer.model").good()
    charges = stream(tmp_path / "cased", "fineweb_val_bytes", 1000)
    assert 60_000 <= max(charges) < 60_010, "all blanks before a token are charged to it"


def test_a_tokenizer_that_does_not_fit_the_transform(tmp_path: Path, source: Path, plain: Path, cased: Path) -> None:
    tokenize(source, tmp_path / "a", model=cased / "tokenizer.model").refused(2, "tokenize.transform=caseops_v1")
    tokenize(source, tmp_path / "b", CASE, model=plain / "tokenizer.model").refused(2, "operators", "caseops_v1")


def test_a_separator_that_is_no_text(tmp_path: Path, plain: Path) -> None:
    path = tmp_path / "docs.txt"
    path.write_text("some text")
    argv: list[Any] = command(
        "tokenize", path, "--out", tmp_path / "data", "--tokenizer", plain / "tokenizer.model", "--quiet"
    )
    argv += ["--set", b"tokenize.document_separator=\xff"]
    done = subprocess.run(argv, capture_output=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert b"tokenize.document_separator" in done.stderr and b"Traceback" not in done.stderr


def test_a_file_name_that_is_no_text(tmp_path: Path, source: Path, plain: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jsonl")
    shutil.copy(source, tmp_path / name)
    settings = ("tokenize.val_share=0.2",)
    tokenize(tmp_path / name, tmp_path / "data", *settings, model=plain / "tokenizer.model").good()
    assert manifest(tmp_path / "data")["source"] == [str(tmp_path / name)]
    again = tokenize(tmp_path / name, tmp_path / "data", *settings, model=plain / "tokenizer.model").good()
    assert again.document["fresh"] is True and files(tmp_path / "data") == files(plain)


# A score with case operators


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, cased: Path) -> Path:
    """A tiny model of the dataset with case operators."""
    out = tmp_path_factory.mktemp("trained")
    tiny = ("train.iterations=2", "train.val_max_tokens=128", "model.vocab_size=400")
    run_here("train", cased, "--out", out, "--preset", "tiny", "--quiet", *sets(*tiny)).good()
    return out / "checkpoint.safetensors"


def test_the_score_counts_the_bytes_of_the_original(cased: Path, trained: Path) -> None:
    document = run_here("eval", trained, "--data", cased, "--quiet", "--json").good().document
    kept = [text for index, text in enumerate(TEXTS) if index < 9 and text.strip()]
    assert document["score"]["bytes"] == sum(len(text.strip().encode()) for text in kept)
    assert document["score"]["tokens"] == manifest(cased)["splits"]["val"]["tokens"] - 1
    assert manifest(cased)["splits"]["val"]["table_bytes"] != document["score"]["bytes"], "a byte table is wrong here"


def test_without_its_sidecars_there_is_no_score(tmp_path: Path, cased: Path, trained: Path) -> None:
    from pgolf.core.shards import write_shard

    data = Path(shutil.copytree(cased, tmp_path / "data"))
    sidecars = sorted(data.glob("fineweb_val_bytes_*.bin"))
    assert len(sidecars) > 1
    content = sidecars[0].read_bytes()
    argv = ["eval", trained, "--data", data, "--quiet"]
    sidecars[0].unlink()
    run_here(*argv).refused(3, sidecars[0].name)
    write_shard(sidecars[0], np.ones(999, np.uint16))
    run_here(*argv).refused(3, sidecars[0].name, "SHA-256")
    (data / "manifest.json").unlink()
    run_here(*argv).refused(3, "sidecars", "999", "1000", str(data))
    sidecars[0].unlink()
    run_here(*argv).refused(3, "sidecars", str(data))
    sidecars[0].write_bytes(content)
    run_here(*argv).good()
