"""Real input from ../shared: published weights score as published, published shards and tokenizers fit together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

TARGETS = 32_768
SCORING = ["--set", f"eval.max_tokens={TARGETS}", "--set", "eval.seq_len=1024", "--set", "eval.method=plain", "--quiet"]


@pytest.mark.reads_pt
@pytest.mark.parametrize(
    ("name", "kind", "parameters", "bpb"),
    [
        ("pg_3L_d128_fp32.pt", "checkpoint", 476_812, 2.7124),
        ("pg_3L_d128.int8.ptz", "quantized", 476_812, 2.7128),
        pytest.param("pg_7L_d384.int8.ptz", "quantized", None, 2.045, marks=pytest.mark.slow),
    ],
)
def test_published_weights_score_as_published(
    pgolf: Any, shared: Path, tmp_path: Path, name: str, kind: str, parameters: int | None, bpb: float
) -> None:
    out = tmp_path / "imported.safetensors"
    document = pgolf("import", shared / "data" / "weights" / name, "--out", out, "--json").good().document
    assert document["schema"] == "pgolf.import/1" and document["kind"] == kind
    assert parameters in (None, document["parameters"])
    result = pgolf("eval", out, "--data", shared / "data" / "fineweb", *SCORING, "--json").good()
    assert "warning:" in result.err and "no manifest" in result.err
    score = result.document["score"]
    assert score["tokens"] == TARGETS and result.document["partial"] is True
    assert score.get("bpb", score.get("bpb_partial")) == pytest.approx(bpb, abs=1e-4 if bpb != 2.045 else 5e-4)
    assert score["bytes"] / score["tokens"] == pytest.approx(2.492, abs=1e-3)


@pytest.mark.parametrize(
    ("tokens", "counted", "nats", "bpb"),
    [
        (2048, 5456, 3.126923, 1.693352),  # computed in float64 with numpy alone, from the formulas
        pytest.param(65536, 159_910, 3.22264, 1.90542, marks=pytest.mark.slow),  # as published with the weights
    ],
)
def test_a_records_weights_score_by_their_own_metadata(
    pgolf: Any, shared: Path, tmp_path: Path, tokens: int, counted: int, nats: float, bpb: float
) -> None:
    path, out = shared / "data" / "weights" / "testbed_6L_d256_pr1394.safetensors", tmp_path / "imported.safetensors"
    document = pgolf("import", path, "--out", out, "--json").good().document
    assert document["parameters"] == 4_595_224 and document["unread"] == []
    assert document["guessed"] == ["model.position.reference=0"]
    sets = ("eval.method=plain", "eval.seq_len=512", f"eval.max_tokens={tokens}")
    argv = ["eval", out, "--data", shared / "data" / "fineweb", *(item for text in sets for item in ("--set", text))]
    argv += ["--tokenizer", shared / "data" / "tokenizers" / "fineweb_1024_bpe.model", "--json"]
    score = pgolf(*argv).good().document["score"]
    assert (score["tokens"], score["bytes"]) == (tokens, counted)
    assert score["val_loss"] == pytest.approx(nats, abs=5e-6)
    assert score.get("bpb", score.get("bpb_partial")) == pytest.approx(bpb, abs=5e-6)


@pytest.mark.reads_pt
def test_import_says_what_it_guesses(pgolf: Any, shared: Path, tmp_path: Path) -> None:
    path, out = shared / "data" / "weights" / "pg_3L_d128_fp32.pt", tmp_path / "c.safetensors"
    lines = pgolf("import", path, "--out", out).good().out.splitlines()
    assert lines[1].startswith("guessed") and "model.mlp.kind=relu2" in lines[1] and len(lines) == 2
    sets = ("--set", "model.position.dims=16", "--set", "model.logit_softcap.cap=20")
    assert "position.dims" not in pgolf("import", path, "--out", out, *sets, "--dry-run").good().out


@pytest.mark.reads_pt
def test_quantizing_the_float_weights_gives_the_int8_score(pgolf: Any, shared: Path, tmp_path: Path) -> None:
    data, out = shared / "data" / "fineweb", tmp_path / "q.safetensors"
    pgolf("import", shared / "data" / "weights" / "pg_3L_d128_fp32.pt", "--out", tmp_path / "c.safetensors").good()
    argv = [
        "quantize",
        tmp_path / "c.safetensors",
        "--data",
        data,
        "--out",
        out,
        "--set",
        "quant=row_quantile",
        "--quiet",
    ]
    pgolf(*argv).good()
    score = pgolf("eval", out, "--data", data, *SCORING, "--json").good().document["score"]
    assert score.get("bpb", score.get("bpb_partial")) == pytest.approx(2.7128, abs=1e-4)


@pytest.mark.reads_pt
@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("pg_loop_d256_noloop.int8.ptz", ""),
        ("pg_ternary_d256.ternary.ptz", ""),
        ("pg_6blk_d512_6bit.int8.ptz", "repeat"),
    ],
)
def test_other_architectures_are_refused(pgolf: Any, shared: Path, tmp_path: Path, name: str, word: str) -> None:
    path = shared / "data" / "weights" / name
    line = pgolf("import", path, "--out", tmp_path / "out.safetensors").refused(3, name)
    assert word in line
    assert not (tmp_path / "out.safetensors").exists()


def test_adopting_published_shards_warns_and_copies_none(pgolf: Any, shared: Path, tmp_path: Path) -> None:
    argv = ["run", "--preset", "demo", "--data", shared / "data" / "fineweb", "--out", tmp_path / "run", "--quiet"]
    argv += ["--tokenizer", shared / "data" / "tokenizers" / "fineweb_1024_bpe.model"]
    document = pgolf(*argv, "--until", "tokenize", "--json").good().document
    assert any("no manifest" in text for text in document["warnings"])
    figures = document["stages"][0]["figures"]
    assert (figures["val_tokens"], figures["val_documents"]) == (1_040_298, 902)
    assert (figures["train_tokens"], figures["train_documents"]) == (1_048_576 + 377_495, 971 + 352)
    assert sorted(path.name for path in (tmp_path / "run" / "data").iterdir() if path.suffix != ".lock") == [
        "manifest.json", "tokenizer.model",
    ]  # fmt: skip


def test_the_text_becomes_the_published_shard(pgolf: Any, shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "fineweb" / "docs_val.jsonl.zst"
    argv = ["tokenize", source, "--out", tmp_path / "data", "--quiet", "--json"]
    argv += ["--tokenizer", shared / "data" / "tokenizers" / "fineweb_1024_bpe.model"]
    argv += ["--set", "tokenize.split=first", "--set", "tokenize.val_docs=901"]
    document = pgolf(*argv).good().document
    val = document["splits"]["val"]
    assert (val["documents"], document["splits"]["train"]["documents"]) == (901, 1)
    made = np.fromfile(tmp_path / "data" / "fineweb_val_000000.bin", dtype="<u2", offset=1024)
    published = np.fromfile(shared / "data" / "fineweb" / "fineweb_val_000000.bin", dtype="<u2", offset=1024)
    cut = int(np.flatnonzero(published == 1)[901])
    assert len(made) == cut == val["tokens"] and np.array_equal(made, published[:cut])
    assert val["charged_bytes"] == val["raw_bytes"] == val["normalised_bytes"]


def test_newlines_count_as_the_normaliser_makes_them(pgolf: Any, shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "fineweb" / "docs_raw_newlines.jsonl.zst"
    argv = ["tokenize", source, "--out", tmp_path / "data", "--quiet", "--json"]
    argv += ["--tokenizer", shared / "data" / "tokenizers" / "fineweb_8192_bpe.model"]
    splits = pgolf(*argv).good().document["splits"]
    assert sum(split["raw_bytes"] for split in splits.values()) == 1_489_515
    assert all(split["charged_bytes"] == split["normalised_bytes"] < split["raw_bytes"] for split in splits.values())


@pytest.mark.reads_pt
def test_tokenizers_that_do_not_match_are_refused(pgolf: Any, shared: Path, tmp_path: Path) -> None:
    tokenizers, fineweb = shared / "data" / "tokenizers", shared / "data" / "fineweb"
    pgolf("import", shared / "data" / "weights" / "pg_3L_d128_fp32.pt", "--out", tmp_path / "c.safetensors").good()
    argv = ["eval", tmp_path / "c.safetensors", *SCORING, "--data"]
    pgolf(*argv, fineweb, "--tokenizer", tokenizers / "fineweb_4096_bpe.model").refused(3, "tokenizer")
    pgolf(*argv, fineweb / "sp4096", "--tokenizer", tokenizers / "fineweb_1024_bpe.model").refused(3)


def test_a_tokenizer_of_the_same_size_but_other_merges_is_refused(pgolf: Any, shared: Path, tmp_path: Path) -> None:
    tokenizers = shared / "data" / "tokenizers"
    source, data = shared / "data" / "fineweb" / "docs_raw_newlines.jsonl.zst", tmp_path / "data"
    argv = ["tokenize", source, "--out", data, "--tokenizer", tokenizers / "fineweb_8192_bpe.model", "--quiet"]
    pgolf(*argv).good()
    other = tokenizers / "fineweb_8192_bpe_ternary_record.model"
    train = ["train", data, "--preset", "tiny", "--set", "model.vocab_size=8192", "--out", tmp_path / "t", "--quiet"]
    pgolf(*train, "--tokenizer", other).refused(3, "tokenizer")
    (data / "manifest.json").unlink()
    pgolf(*train, "--tokenizer", other).refused(3, "tokenizer")
