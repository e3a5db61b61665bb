"""pgolf data audit as a command: exit codes, what is printed where, and real shards from ../shared."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import flip, run_here, tree

from pgolf.core.shards import open_shard


def audit(*argv: object) -> Any:
    """The command, quiet."""
    return run_here("data", "audit", *argv, "--quiet")


def checks(document: dict[str, Any], level: str) -> set[str]:
    """Names of the findings of a level."""
    return {finding["check"] for finding in document["findings"] if finding["level"] == level}


@pytest.fixture
def data(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of a dataset that pgolf made."""
    return Path(shutil.copytree(tiny_run / "data", tmp_path / "data"))


def test_a_clean_dataset(tiny_run: Path, corpus: Path, tmp_path: Path) -> None:
    before = tree(tiny_run / "data")
    out = tmp_path / "report.json"
    result = audit(tiny_run / "data", "--text", corpus, "--out", out).good()
    last = result.out.rstrip().splitlines()[-1]
    assert last.startswith("passed: 0 corrupt, 0 violation, 0 warning") and not result.err
    for words in (
        "Totals",
        "* table bytes",
        "decoded bytes",
        "table at 1024",
        "double-space",
        "issue #1719",
        "text: 79",
    ):
        assert words in result.out, words
    document = json.loads(out.read_text())
    assert document["schema"] == "pgolf.data-audit/1" and document["verdict"] == "passed"
    printed = audit(tiny_run / "data", "--text", corpus, "--json").good().document
    assert printed == document
    assert tree(tiny_run / "data") == before


def test_progress_goes_to_standard_error(tiny_run: Path) -> None:
    result = run_here("data", "audit", tiny_run / "data", "--json").good()
    assert result.document["verdict"] == "passed" and "audit: val:" in result.err


def test_corrupt_wins_over_violated(data: Path, tmp_path: Path) -> None:
    result = audit(data, "--claimed-bytes", 12345)
    line = result.refused(4, "claimed-bytes", "12,345")
    assert "nearest" in line and result.out.rstrip().splitlines()[-1].startswith("violated: 0 corrupt, 1 violation")
    flip(data / "fineweb_val_000000.bin", 2000)
    result = audit(data, "--claimed-bytes", 12345, "--json", "--out", tmp_path / "report.json")
    result.refused(3, "shard-hash")
    assert result.document["verdict"] == "corrupt" == json.loads((tmp_path / "report.json").read_text())["verdict"]
    assert {"claimed-bytes"} <= checks(result.document, "violation")


def test_a_claim_that_is_true(tiny_run: Path) -> None:
    document = audit(tiny_run / "data", "--json").good().document
    size = document["splits"]["val"]["totals"]["table"]["bytes"]
    assert audit(tiny_run / "data", "--claimed-bytes", size, "--json").good().document["claim"]["kind"] == "true"
    double = next(row["bytes"] for row in document["mistakes"] if row["name"] == "double-space")
    audit(tiny_run / "data", "--claimed-bytes", double).refused(4, "leading space", "#1719")


def test_overlap_made_by_another_split_of_the_same_text(data: Path, corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    argv = ["tokenize", corpus, "--out", other, "--tokenizer", data / "tokenizer.model", "--quiet"]
    run_here(*argv, "--set", "tokenize.split=first", "--set", "tokenize.val_docs=30").good()
    for path in data.glob("fineweb_train_*"):
        path.unlink()
    for path in other.glob("fineweb_train_*"):
        shutil.copy(path, data)
    (data / "manifest.json").unlink()
    (data / "documents_train.npy").unlink()
    result = audit(data, "--json")
    result.refused(4, "overlap", "#2127")
    ours, theirs = (np.asarray(open_shard(path / "fineweb_val_000000.bin")) for path in (data, other))
    texts = [set(map(bytes, np.split(ids, np.flatnonzero(ids == 1)[1:]))) for ids in (ours, theirs)]
    assert result.document["overlap"]["documents"] == len(texts[0] - texts[1]) > 0


def test_file_names_do_not_act_on_the_terminal(data: Path) -> None:
    (data / "fineweb_val_\x1b[31m[red].bin").write_bytes(b"x")
    result = audit(data).good()
    assert "\x1b" not in result.out and "\\x1b[31m[red]" in result.out


def test_what_it_refuses(tmp_path: Path, tiny_run: Path) -> None:
    audit(tmp_path / "nowhere").refused(3, "no such directory")
    audit(tmp_path).refused(3, "no dataset")
    audit(tiny_run / "data", "--tokenizer", tmp_path / "no.model").refused(3, "no such file")
    audit(tiny_run / "data", "--text", tmp_path / "no.jsonl").refused(3, "no such file")
    assert audit(tiny_run / "data", "--claimed-bytes", 0).code == 2


# Real data


def test_real_shards(shared: Path) -> None:
    result = audit(shared / "data" / "fineweb", "--json").good()
    document = result.document
    assert checks(document, "corrupt") == checks(document, "violation") == set()
    assert checks(document, "warning") == {"shard-repeat"}
    train, val = (document["splits"][name] for name in ("train", "val"))
    repeat = {"document": 970, "cut_in": "fineweb_train_000000.bin", "begins_again_in": "fineweb_train_000001.bin"}
    assert train["repeats"] == [repeat | {"tokens": 1449}]
    assert (train["documents"], val["documents"]) == (971 + 352, 902)
    assert not document["canonical"]["canonical"] and document["tokenizer"]["vocab_size"] == 1024
    assert val["totals"]["table"]["bytes"] == val["totals"]["decoded"]["bytes"] == 2_504_867
    with np.load(shared / "oracles" / "data_shard_bytes.npz") as oracle:
        for length in (1024, 2048):
            cut = val["truncated"][str(length)]
            assert cut["tokens"] == oracle[f"usable_tokens_L{length}"]
            assert cut["bytes"] == oracle[f"usable_bytes_L{length}"]
    document = audit(shared / "data" / "fineweb", "--claimed-bytes", 2_922_061, "--json").document
    assert document["claim"]["equals"] == ["double-space"]


def test_real_text_is_the_real_shards(shared: Path) -> None:
    fineweb = shared / "data" / "fineweb"
    texts = ["--text", fineweb / "docs_val.jsonl.zst", "--text", fineweb / "docs_train.jsonl.zst"]
    document = audit(fineweb, *texts, "--json").good().document
    text = document["text"]
    assert text["documents"] == 902 + 1322 and text["unmatched"] == text["totals_differ"] == 0
    assert text["matched"]["val"] == 902 and text["without_text"] == {"val": 0, "train": 0}
    assert text["matched"]["train"] + len(text["cut"]) == 1322


def test_an_adopted_dataset(shared: Path, tmp_path: Path) -> None:
    argv = ["run", "--preset", "demo", "--data", shared / "data" / "fineweb", "--out", tmp_path / "run", "--quiet"]
    argv += ["--tokenizer", shared / "data" / "tokenizers" / "fineweb_1024_bpe.model"]
    run_here(*argv, "--until", "tokenize").good()
    document = audit(tmp_path / "run" / "data", "--json").good().document
    assert document["manifest"] and document["adopted_from"] == str(shared / "data" / "fineweb")


def test_real_raw_text_transformed(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "fineweb" / "docs_raw_newlines.jsonl.zst"
    model = shared / "data" / "tokenizers" / "fineweb_8192_bpe_lossless_caps_caseops_v1_reserved.model"
    argv = ["tokenize", source, "--out", tmp_path / "data", "--tokenizer", model, "--quiet"]
    run_here(*argv, "--set", "tokenize.transform=caseops_v1").good()
    document = audit(tmp_path / "data", "--text", source, "--json").good().document
    val = document["splits"]["val"]
    assert val["true"] == "sidecar" and val["totals"]["table"]["ratio"] == pytest.approx(1.087, abs=0.01)
    assert document["text"]["matched"] == {name: document["splits"][name]["documents"] for name in ("val", "train")}
    assert val["totals"]["decoded"]["bytes"] == val["totals"]["normalised"]["bytes"]
