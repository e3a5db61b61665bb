"""Bad input and bad surroundings: one clear line, the right exit code, nothing half-written, nothing lost."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import QUICK, command, flip, run_here, stray_files, tree

from pgolf.core.errors import SetupError
from pgolf.report.train_log import TrainLog
from pgolf.stages.memory import enough_memory

CHECKPOINT, QUANTIZED, ARTIFACT = "train/checkpoint.safetensors", "quantize/quantized.safetensors", "compress/model.pgz"
MODELS = (CHECKPOINT, QUANTIZED, ARTIFACT)
TRAIN = ["--preset", "tiny", "--quiet", "--set", "train.iterations=3", "--set", "train.val_max_tokens=256"]


def evaluate(run: Path, model: Path) -> Any:
    """A short eval."""
    return run_here("eval", model, "--data", run / "data", "--quiet", "--set", "eval.max_tokens=64")


# Damaged files


@pytest.mark.parametrize("name", MODELS)
def test_a_missing_model(tiny_run: Path, name: str) -> None:
    path = tiny_run / "elsewhere" / name
    evaluate(tiny_run, path).refused(3, "no such file", str(path))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.fault(row="F7")
def test_a_truncated_model(copy_run: Path, name: str) -> None:
    path = copy_run / name
    whole = path.read_bytes()
    for size in (0, 1, 7, 8, 15, 16, 40, 1000, len(whole) // 2, len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        evaluate(copy_run, path).refused(3, path.name)
    path.write_bytes(whole + b"\0")
    evaluate(copy_run, path).refused(3, path.name)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.fault(row="F8")
def test_no_flipped_bit_goes_unnoticed(copy_run: Path, name: str) -> None:
    from pgolf.core.errors import InputError
    from pgolf.stages.model_files import load_model

    draw, path = random.Random(7), copy_run / name
    whole = path.read_bytes()
    places = [*range(120), *(draw.randrange(len(whole)) for _ in range(60)), len(whole) - 1]
    for place in places:
        flip(path, place, draw.randrange(8))
        with pytest.raises(InputError):
            load_model(path)
        path.write_bytes(whole)
    load_model(path)
    for place in (3, 200, len(whole) // 2):
        flip(path, place)
        evaluate(copy_run, path).refused(3, path.name)
        path.write_bytes(whole)


@pytest.mark.parametrize("name", [CHECKPOINT, QUANTIZED])
@pytest.mark.fault(row="F11")
def test_a_newer_format_says_so(copy_run: Path, name: str) -> None:
    from safetensors.torch import load

    from pgolf.core.tensorfile import save_tensors, tensor_meta

    path = copy_run / name
    meta, _ = tensor_meta(path)
    kind = meta["schema"].partition("/")[0]
    save_tensors(path, load(path.read_bytes()), meta | {"schema": f"{kind}/99"})
    evaluate(copy_run, path).refused(3, "version 99", kind)


@pytest.mark.fault(row="F11")
def test_a_newer_artifact_says_so(copy_run: Path) -> None:
    import struct
    import zlib

    path = copy_run / ARTIFACT
    blob = bytearray(path.read_bytes())
    blob[4] = 9
    header = struct.unpack_from("<I", blob, 8)[0]
    struct.pack_into("<I", blob, 12, zlib.crc32(blob[16 : 16 + header], zlib.crc32(blob[:12])))
    path.write_bytes(blob)
    evaluate(copy_run, path).refused(3, "version 9")


@pytest.mark.parametrize("name", ["manifest.json", "fineweb_val_000000.bin", "compress"])
def test_a_file_of_another_kind_is_no_model(tiny_run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors").write_bytes((tiny_run / "data" / "tokenizer.model").read_bytes())
    evaluate(tiny_run, tmp_path / "model.safetensors").refused(3)
    if name != "compress":
        evaluate(tiny_run, tiny_run / "data" / name).refused(3)


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["quantize", ARTIFACT, "--data", "data"], "artifact"),
        (["quantize", QUANTIZED, "--data", "data"], "quantized"),
        (["compress", CHECKPOINT], "checkpoint"),
        (["compress", ARTIFACT], "artifact"),
        (["package-submission", QUANTIZED], ""),
    ],
)
def test_a_stage_refuses_another_stages_file(tiny_run: Path, tmp_path: Path, argv: list[str], word: str) -> None:
    paths = [argv[0], *(item if item.startswith("--") else tiny_run / item for item in argv[1:])]
    run_here(*paths, "--out", tmp_path / "out", "--quiet").refused(3, word)
    assert not (tmp_path / "out").exists()


# Datasets


def damage_shard(run: Path, kind: str) -> Path:
    """Damage the validation shard in one way; returns it."""
    path = run / "data" / "fineweb_val_000000.bin"
    blob = bytearray(path.read_bytes())
    header = np.frombuffer(bytes(blob[:1024]), dtype="<i4").copy()
    if kind == "missing":
        path.unlink()
        return path
    if kind == "truncated":
        blob = blob[:-1]
    elif kind == "cut in the header":
        blob = blob[:600]
    elif kind == "empty":
        blob = bytearray()
    elif kind == "no ids":
        blob = blob[:1024]
    elif kind == "flipped":
        blob[3000] ^= 1
    else:
        changes = {"magic": (0, 1), "version": (1, 2), "count": (2, header[2] + 1), "negative count": (2, -1)}
        index, value = changes[kind]
        header[index] = value
        blob[:1024] = header.tobytes()
    path.write_bytes(blob)
    return path


SHARD_FAULTS = [
    *("missing", "truncated", "cut in the header", "empty", "no ids", "flipped"),
    *("magic", "version", "count", "negative count"),
]


@pytest.mark.parametrize("kind", SHARD_FAULTS)
@pytest.mark.fault(row="F16")
def test_a_damaged_shard_with_a_manifest(copy_run: Path, kind: str) -> None:
    path = damage_shard(copy_run, kind)
    evaluate(copy_run, copy_run / ARTIFACT).refused(3, path.name)


@pytest.mark.parametrize("kind", [kind for kind in SHARD_FAULTS if kind != "flipped"])
@pytest.mark.fault(row="F16")
def test_a_damaged_shard_without_a_manifest(copy_run: Path, kind: str) -> None:
    (copy_run / "data" / "manifest.json").unlink()
    path = damage_shard(copy_run, kind)
    evaluate(copy_run, copy_run / ARTIFACT).refused(3, *([] if kind == "missing" else [path.name]))


@pytest.mark.fault(row="F16")
def test_a_big_endian_shard_is_recognised(copy_run: Path) -> None:
    (copy_run / "data" / "manifest.json").unlink()
    path = copy_run / "data" / "fineweb_val_000000.bin"
    header = np.fromfile(path, dtype="<i4", count=256)
    ids = np.fromfile(path, dtype="<u2", offset=1024)
    path.write_bytes(header.astype(">i4").tobytes() + ids.astype(">u2").tobytes())
    evaluate(copy_run, copy_run / ARTIFACT).refused(3, "big-endian", path.name)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b'{"schema": "pgolf.dataset/1"}',
        b'{"schema": "pgolf.dataset/99"}',
        b'{"schema": "pgolf.dataset/1", "schema": "pgolf.dataset/1"}',
        b"[" * 100_000,
    ],
)
@pytest.mark.fault(row="F10")
def test_a_damaged_manifest(copy_run: Path, content: bytes) -> None:
    (copy_run / "data" / "manifest.json").write_bytes(content)
    evaluate(copy_run, copy_run / ARTIFACT).refused(3, "manifest")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", "many"),
        ("vocab_size", None),
        ("vocab_size", -5),
        ("vocab_size", 10**9),
        ("vocab_size", 1 << 62),
        ("vocab_size", 65537),
        ("splits", {}),
        ("splits", []),
        ("tokenizer", "x"),
        ("adopted_from", 5),
    ],
)
@pytest.mark.fault(row="F10")
def test_a_manifest_with_wrong_values(copy_run: Path, key: str, value: Any) -> None:
    path = copy_run / "data" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    evaluate(copy_run, copy_run / ARTIFACT).refused(3)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "fineweb_val_000000.bin/..", "a\0b", "x.bin"])
@pytest.mark.fault(row="F22")
def test_a_manifest_cannot_lead_out_of_its_folder(copy_run: Path, name: str) -> None:
    path = copy_run / "data" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["splits"]["val"]["shards"][0]["file"] = name
    path.write_text(json.dumps(manifest))
    evaluate(copy_run, copy_run / ARTIFACT).refused(3, "manifest.json")


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(1000)])
@pytest.mark.fault(row="F13")
def test_a_damaged_tokenizer(copy_run: Path, content: bytes) -> None:
    (copy_run / "data" / "tokenizer.model").write_bytes(content)
    evaluate(copy_run, copy_run / ARTIFACT).refused(3, "tokenizer")
    (copy_run / "data" / "manifest.json").unlink()
    argv = ["eval", copy_run / ARTIFACT, "--data", copy_run / "data", "--quiet"]
    run_here(*argv).refused(3)


def test_a_missing_tokenizer(copy_run: Path) -> None:
    (copy_run / "data" / "tokenizer.model").unlink()
    evaluate(copy_run, copy_run / ARTIFACT).refused(3, "tokenizer.model")


@pytest.fixture(scope="module")
def other_data(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same text under another tokenizer of the same vocabulary size."""
    folder = tmp_path_factory.mktemp("other") / "data"
    argv = ["tokenize", corpus, "--preset", "tiny", "--set", "tokenize.val_share=0.5", "--out", folder, "--quiet"]
    run_here(*argv).good()
    return folder


@pytest.mark.fault(row="F14")
def test_a_tokenizer_that_does_not_belong_to_the_shards(copy_run: Path, other_data: Path) -> None:
    argv = ["eval", copy_run / ARTIFACT, "--data", copy_run / "data", "--quiet"]
    run_here(*argv, "--tokenizer", other_data / "tokenizer.model").refused(3, "tokenizer")
    shutil.copy(other_data / "tokenizer.model", copy_run / "data" / "tokenizer.model")
    run_here(*argv).refused(3, "tokenizer")
    (copy_run / "data" / "manifest.json").unlink()
    run_here(*argv).refused(3, "tokenizer")


@pytest.mark.fault(row="F14")
def test_data_of_another_tokenizer_than_the_models(tiny_run: Path, other_data: Path, tmp_path: Path) -> None:
    for name in MODELS:
        run_here("eval", tiny_run / name, "--data", other_data, "--quiet").refused(3, "tokenizer")
    argv = ["quantize", tiny_run / CHECKPOINT, "--data", other_data, "--out", tmp_path / "q.safetensors"]
    run_here(*argv, "--quiet").refused(3, "tokenizer")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.fault(row="F15")
def test_an_id_beyond_the_vocabulary(copy_run: Path, tmp_path: Path, split: str, manifest: bool) -> None:
    import hashlib

    from pgolf.core.shards import write_shard

    path = copy_run / "data" / f"fineweb_{split}_000000.bin"
    ids = np.fromfile(path, dtype="<u2", offset=1024)
    ids[-3] = 512
    write_shard(path, ids)
    description = copy_run / "data" / "manifest.json"
    if manifest:
        content = json.loads(description.read_text())
        content["splits"][split]["shards"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        description.write_text(json.dumps(content))
    else:
        description.unlink()
    argv = ["train", copy_run / "data", "--out", tmp_path / "t", *TRAIN]
    run_here(*argv).refused(3, "512", path.name)
    assert not (tmp_path / "t" / "checkpoint.safetensors").exists()


def test_an_empty_dataset_directory(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run_here("eval", tiny_run / ARTIFACT, "--data", tmp_path / "empty").refused(3, str(tmp_path / "empty"))
    run_here("eval", tiny_run / ARTIFACT, "--data", tmp_path / "absent").refused(3, str(tmp_path / "absent"))
    run_here("eval", tiny_run / ARTIFACT, "--data", tiny_run / ARTIFACT).refused(3, "model.pgz")


def test_shards_that_changed_after_adoption(tiny_run: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(tiny_run / "data", tmp_path / "shards"))
    (shards / "manifest.json").unlink()
    argv = ["run", *QUICK, "--data", shards, "--out", tmp_path / "run"]
    run_here(*argv, "--until", "tokenize").good()
    flip(shards / "fineweb_val_000000.bin", 5001)
    run_here("eval", tiny_run / ARTIFACT, "--data", tmp_path / "run" / "data", "--quiet").refused(3, "fineweb_val")


# Weights


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.fault(row="F17")
def test_weights_that_are_not_finite(copy_run: Path, tmp_path: Path, value: float) -> None:
    from safetensors.torch import load

    from pgolf.core.tensorfile import save_tensors, tensor_meta

    path = copy_run / CHECKPOINT
    meta, _ = tensor_meta(path)
    tensors = load(path.read_bytes())
    tensors["blocks.1.attn.c_q.weight"][3, 5] = value
    save_tensors(path, tensors, meta)
    argv = ["quantize", path, "--data", copy_run / "data", "--out", tmp_path / "q.safetensors", "--quiet"]
    run_here(*argv).refused(3, "blocks.1.attn.c_q.weight", "[3, 5]", str(value))
    assert not (tmp_path / "q.safetensors").exists()
    result = run_here("eval", path, "--data", copy_run / "data", "--quiet")
    assert result.code in (3, 4) and "Traceback" not in result.err


@pytest.mark.fault(row="F17")
def test_rows_of_zeros_and_outliers_are_no_fault(copy_run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load

    from pgolf.core.tensorfile import save_tensors, tensor_meta

    path = copy_run / CHECKPOINT
    meta, _ = tensor_meta(path)
    tensors = load(path.read_bytes())
    weight = tensors["blocks.0.mlp.fc.weight"]
    weight[0], weight[1], weight[2], weight[3, 0] = 0.0, 0.25, 1e-40, 5e4
    save_tensors(path, tensors, meta)
    for method in ("gptq", "sdclip", "row_quantile"):
        out = tmp_path / method / "q.safetensors"
        argv = ["quantize", path, "--data", copy_run / "data", "--out", out, "--quiet", "--set", f"quant={method}"]
        run_here(*argv).good()
        run_here("compress", out, "--out", tmp_path / method / "model.pgz", "--quiet").good()
        evaluate(copy_run, tmp_path / method / "model.pgz").good()


@pytest.mark.fault(row="F18")
def test_a_loss_that_is_not_finite_ends_training(tiny_run: Path, tmp_path: Path) -> None:
    from pgolf.stages.model_files import load_checkpoint

    out = tmp_path / "train"
    argv = [
        "train",
        tiny_run / "data",
        "--out",
        out,
        "--preset",
        "tiny",
        "--quiet",
        "--set",
        "train.checkpoint_every=1",
    ]
    hot = ["--set", "optim.token_lr=1e18", "--set", "optim.matrix.lr=1e18", "--set", "optim.scalar_lr=1e18"]
    line = run_here(*argv, *hot).refused(4, "loss", "step")
    assert "nan" in line or "inf" in line
    kept = sorted(path for path in (out / "ckpt").iterdir() if ".resume" not in path.name)
    assert kept and not (out / "checkpoint.safetensors").exists()
    for path in kept:
        load_checkpoint(path)
    assert "step" in (out / "events.jsonl").read_text()


# Configuration


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.iteration=5", ["train.iteration", "did you mean"]),
        ("trian.iterations=5", ["trian", "train"]),
        ("quant.bit=5", ["quant.bit", "bits"]),
        ("eval.method=slidding", ["slidding", "sliding"]),
        ("model.mlp.kind=relu", ["relu", "relu2"]),
        ("train.iterations=many", ["train.iterations", "many", "int"]),
        ("train.iterations=1e3", ["train.iterations", "1e3"]),
        ("train.iterations=0", ["train.iterations", "0"]),
        ("train.seq_len=-4", ["train.seq_len"]),
        ("optim.matrix.nesterov=perhaps", ["optim.matrix.nesterov"]),
        ("optim.token_lr=nan", ["optim.token_lr", "nan"]),
        ("quant.bits=9", ["quant", "9"]),
        ("quant.bits=1", ["quant", "1"]),
        ("tokenize.val_share=1.5", ["tokenize.val_share", "1.5"]),
        ("tokenize.transform=caps", ["tokenize.transform", "caps"]),
        ("tokenize.vocab_size=70000", ["tokenize.vocab_size", "65,535"]),
        ("eval.stride=0", ["eval", "stride"]),
        ("eval.stride=9999", ["eval.stride", "9999"]),
        ("package.cap_bytes=0", ["package.cap_bytes"]),
        ("train.micro_batch_tokens=100", ["train.micro_batch_tokens", "100"]),
        ("train.batch_tokens=1500", ["train.batch_tokens", "1500"]),
        ("model.num_heads=3", ["model"]),
        ("train.loader=documents", ["train.loader", "model.documents"]),
        ("train.window_schedule=growing", ["train.window_schedule.first", "train.seq_len"]),
        ("model.window=pattern", ["model.window.tokens", "train.seq_len"]),
        ("train=5", ["train"]),
        ("train.iterations", ["dotted.key=value"]),
        ("=5", ["dotted.key=value"]),
        ("compress.quality=12", ["compress"]),
    ],
)
@pytest.mark.fault(row="F29")
def test_a_wrong_setting_is_a_usage_error(setting: str, words: list[str], tmp_path: Path) -> None:
    run_here("config", "show", "--preset", "tiny", "--set", setting).refused(2, *words)
    run_here("run", "--preset", "tiny", "--set", setting, "--out", tmp_path / "run").refused(2, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train\niterations = 5", ["line 1"]),
        ("[train]\niterations = 5\niterations = 6", ["mine.toml"]),
        ("[train]\niteration = 5", ["train.iteration", "iterations"]),
        ("[train]\niterations = '5'", ["train.iterations", "'5'"]),
        ("[train]\niterations = 5.5", ["train.iterations", "5.5"]),
        ("[train]\niterations = true", ["train.iterations"]),
        ("[train]\nseed = 2026-01-01", ["train.seed"]),
        ("train = 5", ["train"]),
        ("train = [1]", ["train"]),
        ("extends = 'nothing'", ["nothing"]),
        ("extends = 5", []),
        ("[quant]\nmethod = 'gtpq'", ["gtpq", "gptq"]),
        ("[quant]\nmethod = 5", []),
    ],
)
@pytest.mark.fault(row="F29")
def test_a_wrong_file_of_settings_is_a_usage_error(text: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    run_here("config", "show", "--preset", path).refused(2, *words)


@pytest.mark.fault(row="F29")
def test_files_of_settings_that_extend_each_other(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.toml").write_text(f"extends = '{tmp_path / other}.toml'")
    run_here("config", "show", "--preset", tmp_path / "a.toml").refused(2, "circle")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe[train]")
    run_here("config", "show", "--preset", tmp_path / "bytes.toml").refused(2, "bytes.toml")
    run_here("config", "show", "--preset", "tinny").refused(2, "tinny", "tiny")


# Text


def tokenize(path: Path, out: Path, *more: object) -> Any:
    """Tokenize with settings for very little text."""
    settings = ["tokenize.vocab_size=300", "tokenize.split=first", "tokenize.val_docs=2"]
    sets = [word for setting in settings for word in ("--set", setting)]
    return run_here("tokenize", path, "--out", out, "--quiet", *sets, *more)


def documents(path: Path, texts: list[str]) -> Path:
    """A .jsonl file."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


PLAIN = [f"the {word} of the house is {word} and the sea is blue, said number {n}" for n in range(9)
         for word in ("door", "wall", "roof")]  # fmt: skip


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_invalid_utf8_is_named_with_its_offset(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text.{suffix}"
    path.write_bytes(b'{"text": "abc\xff"}\n' if suffix == "jsonl" else b"fine text\n" + b"abc\xff")
    tokenize(path, tmp_path / "data").refused(3, "UTF-8", "byte 13", path.name)
    assert not (tmp_path / "data" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", ["JSON", "line 7"]),
        ("[1]", ["text", "line 7"]),
        ('{"txt": "a"}', ["text", "line 7"]),
        ('{"text": 5}', ["text", "line 7"]),
        ('{"text": "a\\ud800b"}', []),
    ],
)
def test_a_bad_line_of_json_is_named(tmp_path: Path, line: str, words: list[str]) -> None:
    path = tmp_path / "text.jsonl"
    documents(path, PLAIN[:6])
    path.write_text(path.read_text() + line + "\n")
    tokenize(path, tmp_path / "data").refused(3, *words)
    assert not (tmp_path / "data" / "manifest.json").exists()


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("content", [b"", b"not packed at all, but long enough to be looked at"])
def test_a_damaged_archive(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(content)
    result = tokenize(path, tmp_path / "data")
    assert result.code in ((2, 3) if content == b"" else (3,)), result
    result.refused(result.code)


def test_archives_cut_off(tmp_path: Path) -> None:
    import gzip

    import zstandard

    whole = documents(tmp_path / "a.jsonl", PLAIN).read_bytes()
    for suffix, packed in ((".gz", gzip.compress(whole)), (".zst", zstandard.compress(whole))):
        path = tmp_path / f"cut.jsonl{suffix}"
        path.write_bytes(packed[:-20])
        tokenize(path, tmp_path / "data").refused(3, path.name)


def test_empty_documents_are_left_out_and_counted(tmp_path: Path) -> None:
    path = documents(tmp_path / "text.jsonl", ["", *PLAIN, "", "   \n "])
    document = tokenize(path, tmp_path / "data", "--json").good().document
    counts = {name: split["documents"] for name, split in document["splits"].items()}
    assert document["empty_documents"] >= 2
    assert sum(counts.values()) + document["empty_documents"] == len(PLAIN) + 3


def test_nul_bytes_are_charged_like_other_text(tmp_path: Path) -> None:
    path = documents(tmp_path / "text.jsonl", [f"a\0b \0 {text}" for text in PLAIN])
    result = tokenize(path, tmp_path / "data", "--json")
    if result.code == 0:
        for split in result.document["splits"].values():
            assert split["charged_bytes"] == split["normalised_bytes"]
    else:
        result.refused(3)


@pytest.mark.parametrize("texts", [[], [""], ["", " "], ["one document only, which cannot be split in two"]])
def test_too_little_text(tmp_path: Path, texts: list[str]) -> None:
    path = documents(tmp_path / "text.jsonl", texts)
    result = tokenize(path, tmp_path / "data")
    assert result.code in (2, 3)
    result.refused(result.code)
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_a_vocabulary_too_large_for_the_text(tmp_path: Path) -> None:
    path = documents(tmp_path / "text.jsonl", PLAIN)
    argv = ["--set", "tokenize.vocab_size=30000"]
    result = tokenize(path, tmp_path / "data", *argv)
    if result.code == 0:
        manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
        assert manifest["vocab_size"] < 30000, "a softer limit is fine, a wrong number is not"
    else:
        result.refused(2, "30000", "tokenize.vocab_size")


def test_a_vocabulary_smaller_than_its_bytes(tmp_path: Path) -> None:
    path = documents(tmp_path / "text.jsonl", PLAIN)
    tokenize(path, tmp_path / "data", "--set", "tokenize.vocab_size=100").refused(2, "tokenize.vocab_size")


@pytest.mark.parametrize("source", ["absent.txt", "picture.png", "empty folder"])
def test_sources_that_are_no_text(tmp_path: Path, source: str) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "empty folder").mkdir()
    tokenize(tmp_path / source, tmp_path / "data").refused(3, source)


def test_a_dataset_smaller_than_a_batch(tmp_path: Path) -> None:
    path = documents(tmp_path / "text.jsonl", PLAIN)
    tokenize(path, tmp_path / "data").good()
    argv = ["train", tmp_path / "data", "--out", tmp_path / "t", *TRAIN, "--set", "train.batch_tokens=131072"]
    run_here(*argv).refused(3, "131,073", "train.batch_tokens")


def test_a_model_with_fewer_ids_than_the_tokenizer(tiny_run: Path, tmp_path: Path) -> None:
    argv = ["train", tiny_run / "data", "--out", tmp_path / "t", *TRAIN, "--set", "model.vocab_size=256"]
    run_here(*argv).refused(2, "model.vocab_size", "512")


def test_quantization_aware_training_that_is_about_no_matrix(tiny_run: Path, tmp_path: Path) -> None:
    argv = ["train", tiny_run / "data", "--out", tmp_path / "t", *TRAIN, "--set", "train.qat=noise"]
    run_here(*argv).refused(2, "train.qat", "no layer runs more than once")
    assert not (tmp_path / "t" / "checkpoint.safetensors").exists(), "found out only after training"


@pytest.mark.fault(row="F19")
def test_calibration_that_wants_more_text_than_there_is(corpus: Path, tmp_path: Path) -> None:
    argv = ["run", *QUICK, "--text", corpus, "--out", tmp_path / "run", "--set", "quant.calibration_seqs=1000000"]
    result = run_here(*argv)
    assert result.code in (2, 3)
    result.refused(result.code, "quant.calibration_seqs")
    assert not (tmp_path / "run" / "train" / "checkpoint.safetensors").exists(), "found out only after training"


# Foreign models


class Marker:
    """Unpickles into a call that writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.reads_pt
@pytest.mark.parametrize("suffix", [".pt", ".ptz", ".safetensors", ".pth"])
@pytest.mark.parametrize("torch_file", [True, False])
@pytest.mark.fault(row="F12")
def test_a_malicious_pickle_is_never_run(tmp_path: Path, suffix: str, torch_file: bool) -> None:
    import io
    import pickle
    import zlib

    import torch

    marker, path = tmp_path / "marker", tmp_path / f"model{suffix}"
    buffer = io.BytesIO()
    if torch_file:
        torch.save({"tok_emb.weight": Marker(marker)}, buffer)
    else:
        pickle.dump(Marker(marker), buffer)
    path.write_bytes(zlib.compress(buffer.getvalue()) if suffix == ".ptz" else buffer.getvalue())
    run_here("import", path, "--out", tmp_path / "out.safetensors").refused(3)
    if suffix == ".pt":
        run_here("import", path, "--out", tmp_path / "out.safetensors", "--dry-run").refused(3)
    run_here("inspect", path).refused(3)
    assert not marker.exists() and not (tmp_path / "out.safetensors").exists()


def state_dict() -> dict[str, Any]:
    """Weights of a small baseline."""
    from pgolf.core.model.config import ModelConfig
    from pgolf.core.model.gpt import GPT

    config = ModelConfig(vocab_size=512, num_layers=2, model_dim=64, num_heads=2, num_kv_heads=1)
    return dict(GPT(config, 0).state_dict())


def change(state: dict[str, Any], kind: str) -> Any:
    """A state dict that is wrong in one way."""
    import torch

    changes: dict[str, Any] = {
        "a list": [torch.zeros(3)],
        "a number": 5,
        "empty": {},
        "numbers as names": {1: torch.zeros(3)},
        "a missing tensor": {key: value for key, value in state.items() if key != "blocks.1.mlp.proj.weight"},
        "an unknown tensor": state | {"blocks.0.smear.weight": torch.zeros(3)},
        "a scalar for heads": state | {"blocks.0.attn.q_gain": torch.tensor(1.5)},
        "a vector for the embedding": state | {"tok_emb.weight": torch.zeros(512)},
        "another shape": state | {"blocks.1.attn.c_v.weight": torch.zeros(5, 64)},
        "no rows": state | {"tok_emb.weight": torch.zeros(0, 0)},
        "a gap in the layers": {key.replace("blocks.1.", "blocks.7."): value for key, value in state.items()},
        "an int8 archive without scales": {"quantized": {"tok_emb.weight": torch.zeros(512, 64, dtype=torch.int8)}},
        "scales of another kind": {"quantized": state, "scales": {1: 2}, "passthrough": {}},
    }
    return changes[kind]


STATE_FAULTS = [
    *("a list", "a number", "empty", "numbers as names", "a missing tensor", "an unknown tensor", "a scalar for heads"),
    *("a vector for the embedding", "another shape", "no rows", "a gap in the layers"),
    *("an int8 archive without scales", "scales of another kind"),
]


@pytest.mark.reads_pt
@pytest.mark.parametrize("kind", STATE_FAULTS)
def test_a_foreign_model_that_does_not_fit(tmp_path: Path, kind: str) -> None:
    import torch
    from safetensors.torch import save_file

    state = change(state_dict(), kind)
    if isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values()) and 1 not in state:
        path = tmp_path / "foreign.safetensors"  # a torch file takes a process, which takes its time
        save_file({name: value.clone() for name, value in state.items()}, path)
    else:
        path = tmp_path / "foreign.pt"
        torch.save(state, path)
    run_here("import", path, "--out", tmp_path / "out.safetensors").refused(3)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.reads_pt
@pytest.mark.parametrize("suffix", [".pt", ".ptz", ".safetensors"])
@pytest.mark.fault(row="F12")
def test_a_damaged_foreign_file(tmp_path: Path, suffix: str) -> None:
    import io
    import zlib

    import torch
    from safetensors.torch import save

    buffer = io.BytesIO()
    torch.save(state_dict(), buffer)
    whole = {".pt": buffer.getvalue(), ".ptz": zlib.compress(buffer.getvalue()), ".safetensors": save(state_dict())}
    path = tmp_path / f"foreign{suffix}"
    for content in (b"", b"x" * 100, whole[suffix][:-500], whole[suffix][:5000]):
        path.write_bytes(content)
        run_here("import", path, "--out", tmp_path / "out.safetensors").refused(3, path.name)
    path.unlink()
    run_here("import", path, "--out", tmp_path / "out.safetensors").refused(3, path.name)


@pytest.mark.reads_pt
def test_dry_import_checks_as_a_real_one_does(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "foreign.pt"
    torch.save(change(state_dict(), "an unknown tensor"), path)
    run_here("import", path, "--out", tmp_path / "out.safetensors", "--dry-run").refused(3, "blocks.0.smear.weight")


# Disk and directories


def outputs(run: Path, out: Path) -> dict[str, list[object]]:
    """Commands that write `out`."""
    data = run / "data"
    return {
        "tokenize": ["tokenize", run / "text.jsonl", "--preset", "tiny", "--out", out],
        "train": ["train", data, "--out", out, *TRAIN],
        "quantize": ["quantize", run / CHECKPOINT, "--data", data, "--out", out],
        "compress": ["compress", run / QUANTIZED, "--out", out],
        "eval": ["eval", run / ARTIFACT, "--data", data, "--out", out],
        "ttt": ["ttt", run / ARTIFACT, "--data", data, "--out", out],
        "package-submission": ["package-submission", run / ARTIFACT, "--out", out],
        "run": ["run", *QUICK, "--text", run / "text.jsonl", "--out", out],
    }


NAMES = list(outputs(Path(), Path()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.fault(row="F24")
def test_a_path_below_a_file_cannot_be_written(copy_run: Path, corpus: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(corpus, copy_run / "text.jsonl")
    (tmp_path / "file").write_text("mine")
    run_here(*outputs(copy_run, tmp_path / "file" / "out")[name], "--quiet").refused(6, "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["tokenize", "train", "run"])
@pytest.mark.fault(row="F24")
def test_a_file_where_a_directory_belongs(copy_run: Path, corpus: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(corpus, copy_run / "text.jsonl")
    (tmp_path / "out").write_text("mine")
    run_here(*outputs(copy_run, tmp_path / "out")[name], "--quiet").refused(6, "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("name", ["quantize", "compress", "eval", "ttt"])
@pytest.mark.fault(row="F24")
def test_a_directory_where_a_file_belongs(copy_run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    run_here(*outputs(copy_run, tmp_path / "out")[name], "--quiet").refused(6, "out")
    assert list((tmp_path / "out").iterdir()) == [] and stray_files(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
@pytest.mark.fault(row="F24")
def test_a_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    run_here("run", *QUICK, "--out", tmp_path / "run").refused(6, os.strerror(number).lower(), str(tmp_path))
    assert not (tmp_path / "run" / "data").exists()


@pytest.mark.fault(row="F5")
def test_too_little_disk_ends_a_run_before_its_first_step(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgolf.stages.pipeline.free_bytes", lambda path: 1000)
    run_here("run", *QUICK, "--text", corpus, "--out", tmp_path / "run").refused(6, "1,000", "free")
    assert not (tmp_path / "run" / "data").exists()


@pytest.mark.parametrize("argv", [["config", "show"], ["config", "show", "--json"], ["--help"], ["techniques"]])
@pytest.mark.fault(row="F5")
def test_a_full_standard_output(argv: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command(*argv), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr and "bug" not in done.stderr and "Errno" not in done.stderr, done.stderr


# Locks


def endless(run: Path, out: Path) -> list[str]:
    """A training that does not end by itself."""
    settings = ["train.iterations=1000000", "train.val_every=0", "train.checkpoint_every=5"]
    return command(
        "train", run / "data", "--out", out, "--preset", "tiny", *(w for s in settings for w in ("--set", s))
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a file is there."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.fault(row="F20")
def test_a_second_writer_is_turned_away_and_a_dead_ones_lock_is_free(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "train"
    line = endless(tiny_run, out)
    process = subprocess.Popen(line, stderr=subprocess.DEVNULL, text=True)
    try:
        wait_for(out / "ckpt" / "step_00000005.safetensors", process)
        run_here(*line[3:], "--quiet").refused(7, f"process {process.pid}", "--out")
        run_here(*line[3:], "--quiet", "--fresh").refused(7, f"process {process.pid}")
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    argv = [*line[3:], "--set", "train.max_wallclock_seconds=0.2", "--fresh", "--quiet"]
    run_here(*argv).good()


@pytest.mark.fault(row="F20")
def test_a_second_run_with_other_settings_leaves_the_first_alone(corpus: Path, tmp_path: Path, tiny_run: Path) -> None:
    out = tmp_path / "run"
    settings = ["train.iterations=1000000", "train.val_every=0", "train.checkpoint_every=5"]
    sets = [word for setting in settings for word in ("--set", setting)]
    argv = ["run", *QUICK, "--text", corpus, "--out", out, *sets]
    process = subprocess.Popen(command(*argv), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, text=True)
    try:
        wait_for(out / "train" / "ckpt" / "step_00000005.safetensors", process)
        before = {name: found for name, found in tree(out).items() if name.startswith("data/")}
        result = run_here(*argv, "--set", "tokenize.val_share=0.3")
        after = {name: found for name, found in tree(out).items() if name.startswith("data/")}
    finally:
        process.kill()
        process.wait()
    assert before == after, "the data of the first run was replaced under it"
    result.refused(7, str(process.pid))


# Surroundings


@pytest.mark.fault(row="F27")
def test_no_gpu(tiny_run: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    for argv in (
        ["train", tiny_run / "data", "--out", tmp_path / "t", *TRAIN],
        ["eval", tiny_run / ARTIFACT, "--data", tiny_run / "data"],
        ["run", *QUICK, "--out", tmp_path / "run"],
    ):
        run_here(*argv, "--device", "cuda").refused(5, "CUDA", "--device cpu")
    assert not (tmp_path / "run" / "data").exists()


@pytest.mark.parametrize("device", ["banana", "cuda:x", "cpu:one", "mps", ""])
@pytest.mark.fault(row="F27")
def test_a_device_that_does_not_exist(tiny_run: Path, device: str) -> None:
    result = run_here("eval", tiny_run / ARTIFACT, "--data", tiny_run / "data", "--device", device, "--quiet")
    assert result.code in (2, 5), result
    result.refused(result.code, "--device")


@pytest.mark.fault(row="F27")
def test_compile_without_a_compiler(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil as tools

    monkeypatch.setattr(tools, "which", lambda name, **rest: None)
    argv = ["train", tiny_run / "data", "--out", tmp_path / "t", *TRAIN, "--set", "train.compile=on"]
    run_here(*argv).refused(5, "compiler", "train.compile")
    run_here("run", *QUICK, "--out", tmp_path / "run", "--set", "train.compile=on").refused(5, "train.compile")
    assert not (tmp_path / "run" / "data").exists() and not (tmp_path / "t" / "checkpoint.safetensors").exists()
    document = run_here(*argv[:-1], "train.compile=auto", "--json").good().document
    assert document["compiled"] is False


@pytest.mark.fault(row="F27")
def test_attention_that_is_not_possible(tiny_run: Path, tmp_path: Path) -> None:
    argv = ["train", tiny_run / "data", "--out", tmp_path / "t", *TRAIN, "--device", "cpu", "--set"]
    for name in ("flex", "fa2", "fa3"):
        run_here(*argv, f"train.attention={name}").refused(5, name, "CUDA", "set train.attention=auto")
    run_here(*argv, "train.attention=fa4").refused(2, "train.attention", "fa3")
    line = ["run", *QUICK, "--out", tmp_path / "run", "--device", "cpu", "--set", "train.attention=fa3"]
    run_here(*line).refused(5, "train.attention")
    assert not (tmp_path / "run" / "data").exists() and not (tmp_path / "t" / "checkpoint.safetensors").exists()
    document = run_here(*argv, "train.attention=reference", "--json").good().document
    assert document["attention"] == "reference"
    assert "attention:reference (reference: as configured)" in (tmp_path / "t" / "train.log").read_text()


@pytest.mark.fault(row="F27")
def test_a_search_that_is_not_possible(tiny_run: Path, tmp_path: Path) -> None:
    model, out, more = tiny_run / "train" / "checkpoint.safetensors", tmp_path / "q", ["--device", "cpu", "--set"]
    argv = ["quantize", model, "--data", tiny_run / "data", "--out", out, *more, "quant.search=triton", "--set"]
    run_here(*argv, "quant.rounding=trellis").refused(5, "triton", "quant.search", "set quant.search=torch")
    run_here(*argv, "quant.rounding=nearest").refused(2, "search", "set rounding=trellis")
    run_here(*argv, "quant.rounding=trellis", "--set", "quant.couple=rows").refused(2, "coupled", "couple=none")
    line = ["run", *QUICK, "--out", tmp_path / "run", *more, "quant.search=triton", "--set", "quant.rounding=trellis"]
    run_here(*line).refused(5, "quant.search")
    assert not out.exists() and not (tmp_path / "run" / "data").exists()


@pytest.mark.fault(row="F27")
def test_kernels_that_are_not_possible(tiny_run: Path, tmp_path: Path) -> None:
    argv = ["train", tiny_run / "data", "--out", tmp_path / "t", *TRAIN, "--device", "cpu", "--set"]
    run_here(*argv, "train.kernels=triton").refused(5, "train.kernels", "set train.kernels=auto")
    run_here(*argv, "train.kernels=triton", "--set", "model.mlp=swiglu").refused(5, "model.mlp=SwiGlu")
    run_here(*argv, "train.kernels=liger").refused(2, "train.kernels", "triton")
    line = ["run", *QUICK, "--out", tmp_path / "run", "--device", "cpu", "--set", "train.kernels=triton"]
    run_here(*line).refused(5, "train.kernels")
    assert not (tmp_path / "run" / "data").exists() and not (tmp_path / "t" / "checkpoint.safetensors").exists()
    document = run_here(*argv, "train.kernels=eager", "--json").good().document
    assert document["kernels"] == "eager"
    assert "kernels:eager (eager: as configured)" in (tmp_path / "t" / "train.log").read_text()


@pytest.mark.parametrize(("codec", "missing"), [("brotli", "brotli"), ("zstd", "zstandard")])
@pytest.mark.fault(row="F27")
def test_a_missing_codec_is_found_before_training(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, codec: str, missing: str
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    argv = ["run", *QUICK, "--text", corpus, "--out", tmp_path / "run", "--set", f"compress={codec}"]
    run_here(*argv).refused(5, missing, "pip install")
    run_here(*argv, "--dry-run").refused(5, missing)
    assert not (tmp_path / "run" / "data").exists()


@pytest.mark.parametrize(("codec", "missing"), [("brotli", "brotli"), ("zstd", "zstandard")])
@pytest.mark.fault(row="F27")
def test_a_missing_codec_in_compress(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, missing: str
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    monkeypatch.setitem(sys.modules, missing, None)
    argv = ["compress", tiny_run / QUANTIZED, "--out", tmp_path / "model.pgz", "--set", f"compress={codec}", "--quiet"]
    run_here(*argv).refused(5, missing)
    assert not (tmp_path / "model.pgz").exists()


def test_a_run_checks_tokenizer_and_shards_first(tiny_run: Path, tmp_path: Path) -> None:
    run_here("run", *QUICK, "--out", tmp_path / "run", "--tokenizer", tmp_path / "no.model").refused(5, "no.model")
    run_here("run", *QUICK, "--out", tmp_path / "run", "--text", tmp_path / "no.txt").refused(3, "no.txt")
    shards = Path(shutil.copytree(tiny_run / "data", tmp_path / "shards"))
    (shards / "manifest.json").unlink()
    (shards / "fineweb_val_000000.bin").unlink()
    run_here("run", *QUICK, "--out", tmp_path / "run", "--data", shards).refused(5, "val")
    assert not (tmp_path / "run" / "data").exists()


@pytest.mark.parametrize("argv", ["config show", "size baseline_sp1024", "size baseline_sp1024 --json", "--help"])
@pytest.mark.fault(row="F28")
def test_a_reader_that_leaves_early(argv: str) -> None:
    line = f'"{sys.executable}" -m pgolf {argv} | head -1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0", done.stdout


@pytest.mark.fault(row="F28")
def test_a_closed_standard_output() -> None:
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m pgolf config show >&-'], capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr and "bug" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"TERM": "dumb"},
        {"NO_COLOR": "1"},
        {"COLUMNS": "20"},
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
    ids=lambda environment: " ".join(f"{key}={value}" for key, value in environment.items()),
)
@pytest.mark.fault(row="F28")
def test_plain_terminals_and_other_locales(tiny_run: Path, environment: dict[str, str]) -> None:
    """Started so, one process after another would say what these commands say in one."""
    commands: tuple[list[object], ...] = (
        ["--help"],
        ["run", "--help"],
        ["size", "tiny"],
        ["config", "show", "--explain"],
        ["techniques"],
        ["inspect", tiny_run / ARTIFACT],
        ["eval", tiny_run / ARTIFACT, "--data", tiny_run / "data", "--set", "eval.max_tokens=64"],
    )
    begin = "import sys; from pgolf.cli.main import main, prepare_streams; prepare_streams()"
    source = f"{begin}\nprint([main(argv) for argv in {[[*map(str, argv)] for argv in commands]}], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", source], env={**os.environ, **environment}, capture_output=True, timeout=120
    )
    assert done.stderr.splitlines()[-1] == str([0] * len(commands)).encode(), done.stderr
    assert b"\x1b" not in done.stdout + done.stderr, done.stdout


@pytest.mark.parametrize("columns", [20, 80])
@pytest.mark.parametrize("terminal", ["xterm-256color", "dumb"])
@pytest.mark.fault(row="F28")
def test_the_live_line_on_a_terminal(tiny_run: Path, tmp_path: Path, columns: int, terminal: str) -> None:
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    argv = command(
        "train", tiny_run / "data", "--out", tmp_path / "t", "--preset", "tiny", "--set", "train.val_every=0"
    )
    process = subprocess.Popen(argv, stderr=slave, stdout=slave, stdin=slave, env=environment | {"TERM": terminal})
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert process.wait(timeout=60) == 0, shown
    assert b"Traceback" not in shown
    assert (b"\x1b[" in shown) == (terminal != "dumb")


def test_damaged_scores_and_manifests_beside_an_artifact(copy_run: Path, tmp_path: Path) -> None:
    artifact = copy_run / ARTIFACT
    whole = json.loads((copy_run / "eval" / "score.json").read_text())
    garbled = json.dumps(whole | {"score": whole["score"] | {"bpb": "low"}})
    for number, content in enumerate(
        ('{"schema": "pgolf.score/1"}', "[]", '{"schema": "pgolf.score/2", "model": 5}', garbled)
    ):
        (copy_run / "eval" / "score.json").write_text(content)
        argv = ["package-submission", artifact, "--out", tmp_path / str(number), "--data", copy_run / "data", "--quiet"]
        result = run_here(*argv)
        assert result.code in (0, 3), (content, result.err, result.crash)
    manifest = copy_run / "compress" / "manifest.json"
    for content in ("[]", '{"schema": "pgolf.manifest/1", "outputs": {"model.pgz": 5}}'):
        manifest.write_text(content)
        argv = ["package-submission", artifact, "--out", tmp_path / "out", "--data", copy_run / "data", "--quiet"]
        run_here(*argv).refused(3, "manifest")


@pytest.mark.fault(row="F27")
def test_memory_that_runs_out_names_what_to_lower(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 1")

    monkeypatch.setattr("pgolf.stages.train.fit", fail)
    argv = ["train", tiny_run / "data", "--out", tmp_path / "train", "--preset", "tiny"]
    run_here(*argv, "--quiet").refused(5, "out of memory: 2.50 GiB", "lower train.micro_batch_tokens")


@pytest.mark.parametrize("ask", [lambda: torch.empty(1 << 50), lambda: bytearray(1 << 60)], ids=["torch", "python"])
@pytest.mark.fault(row="F27")
def test_memory_refused_by_the_system_is_no_bug(ask: Callable[[], Any]) -> None:
    with pytest.raises(SetupError, match=r"out of memory.*lower eval\.batch_seqs"), enough_memory("eval.batch_seqs"):
        ask()
    with pytest.raises(RuntimeError, match="shapes"), enough_memory("eval.batch_seqs"):
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize("how", ["replaced", "cut", "gone"])
def test_a_shard_that_changes_under_way_ends_the_run_with_its_checkpoint(
    copy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    (shard,) = (copy_run / "data").glob("*_train_000000.bin")
    seen = TrainLog.event

    def event(log: TrainLog, told: dict[str, Any]) -> None:
        seen(log, told)
        if told["step"] == 9 and how == "replaced":
            (tmp_path / "other").write_bytes(shard.read_bytes())
            (tmp_path / "other").replace(shard)
        elif told["step"] == 9 and how == "cut":
            os.truncate(shard, 2048)
        elif told["step"] == 9 and shard.exists():
            shard.unlink()

    monkeypatch.setattr(TrainLog, "event", event)
    out = tmp_path / "train"
    argv = ["train", copy_run / "data", "--out", out, "--preset", "tiny", "--set", "train.checkpoint_every=8"]
    words = "is gone" if how == "gone" else "changed while it was read"
    run_here(*argv, "--set", "train.prefetch=0", "--quiet").refused(3, words, shard.name, "the last checkpoint is kept")
    assert (out / "ckpt" / "step_00000008.safetensors").is_file() and not (out / "checkpoint.safetensors").exists()
