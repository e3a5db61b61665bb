"""pgolf package-submission, bundle and report from the command line, on the tiny run."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from harness import QUICK, run_here

from pgolf.config.load import resolve
from pgolf.core.tensorfile import tensor_meta
from pgolf.stages.package import told_of
from pgolf.submission.document import schema_errors
from pgolf.submission.entries import Entry, commands

PACKAGE = ("package-submission", "--quiet", "--set", "package.prove=false")


def said(folder: Path) -> dict[str, Any]:
    """submission.json of a folder."""
    found: dict[str, Any] = json.loads((folder / "submission.json").read_text())
    return found


def test_the_folder_has_what_reviewers_expect(tiny_run: Path) -> None:
    folder = tiny_run / "submission"
    document = said(folder)
    assert schema_errors(document) == []
    assert document["proof"]["training"]["steps"] == 3 and document["proof"]["training"]["identical"] is True
    score = json.loads((tiny_run / "train" / "score.json").read_text())["score"]
    assert document["pre_quant_val_bpb"] == score["bpb"]
    conditions = document["compliance"]
    assert conditions["artifact_under_16mb"] and conditions["no_slot"] and not conditions["three_seeds"]
    assert not conditions["challenge_hardware"] and document["comparison"] is None
    assert document["attribution"]["model.mlp relu2"] == "naive baseline"
    log = (folder / "train_seed1337.log").read_text()
    for pattern in (
        r"^20/20 train_loss: \d+\.\d{4} train_time: \d+\.\dm tok/s: \d+",
        r"^diagnostic pre-quantization val_loss:\d+\.\d{8} val_bpb:\d+\.\d{8} eval_time:\d+ms$",
        r"^Serialized model quantized\+\w+: \d+ bytes$",
        r"^Total submission size quantized\+\w+: " + str(document["bytes_total"]) + " bytes$",
        r"^  \w+ \(int8\): tok_emb.weight$",
        r"^quantized_sliding_window val_loss:\d+\.\d{8} val_bpb:" + f"{document['val_bpb']:.8f}",
    ):
        assert re.search(pattern, log, re.M), pattern
    needed = (folder / "requirements.txt").read_text()
    assert re.search(r"^brotli==", needed, re.M) and "torch==" in needed and "# triton: used where" in needed
    page = (folder / "README.md").read_text()
    assert "The results were made by:" in page and "| `three_seeds` | no |" in page and "naive baseline" in page


def test_a_folder_of_records_is_named_by_date_title_and_score(tiny_run: Path, copy_run: Path, tmp_path: Path) -> None:
    argv = (*PACKAGE, copy_run, "--out", f"{tmp_path}/records/", "--name", "caseOps & gates, again!", "--json")
    document = run_here(*argv).good().document
    place = Path(document["out"])
    assert place.parent == tmp_path / "records" / "track_10min_16mb"
    assert place.name == f"{document['date']}_CaseOps_Gates_Again_{document['val_bpb']:.4f}"
    assert said(place)["name"] == "caseOps & gates, again!"


def test_what_is_missing_is_told(copy_run: Path, tmp_path: Path) -> None:
    (copy_run / "train" / "train.log").unlink()
    result = run_here(*PACKAGE, copy_run, "--out", tmp_path / "a").good()
    for words in ("no training log", "unaudited", "needs 3 seeds"):
        assert words in result.err
    run_here(*PACKAGE, copy_run, "--out", tmp_path / "b", "--author", "a\nb").refused(2, "control characters")
    run_here(*PACKAGE, copy_run, "--out", tmp_path / "c", "--set", "package.against=#0").refused(2, "#0", "such as")
    run_here(*PACKAGE, tmp_path, "--out", tmp_path / "d").refused(3, "compress/model.pgz")
    run_here(*PACKAGE).refused(2, "RUN... and --out are missing")


def test_an_artifact_of_another_checkpoint_is_refused(pgolf: Any, copy_run: Path, corpus: Path, tmp_path: Path) -> None:
    argv = ("train", copy_run / "data", "--out", copy_run / "train", "--preset", "tiny", "--seed", "7", "--quiet")
    pgolf(*argv, "--fresh").good()
    run_here(*PACKAGE, copy_run, "--out", tmp_path / "a").refused(3, "not made from the trained model", "again")
    artifact = copy_run / "compress" / "model.pgz"
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"x")
    assert run_here(*PACKAGE, copy_run, "--out", tmp_path / "b").code == 3
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_what_an_artifact_was_made_from_is_told_whatever_its_name(copy_run: Path, tmp_path: Path) -> None:
    """One folder with two quantized models, as the README's examples leave it: the second has the first's calibration,
    whose seconds count as training all the same.
    """
    run, given = tmp_path / "flat", ("--data", copy_run / "data", "--quiet")
    shutil.copytree(copy_run / "train", run)
    checkpoint = run / "checkpoint.safetensors"
    run_here("quantize", checkpoint, "--out", run / "quantized.safetensors", *given).good()
    run_here("quantize", checkpoint, "--out", run / "q5.safetensors", "--set", "quant.bits=5", *given).good()
    run_here("compress", run / "q5.safetensors", "--out", run / "model.pgz", "--quiet").good()
    run_here("eval", run / "model.pgz", "--out", run / "score.json", *given).good()
    manifest = json.loads((run / "manifest.json").read_text())
    made = manifest["outputs"]
    words = {"quantized.safetensors": "q6", "q5.safetensors": "q5"}
    for name, entry in made.items():
        entry["argv"] = [words.get(name, entry["stage"])]
    (run / "manifest.json").write_text(json.dumps(manifest))
    run_here(*PACKAGE, run / "model.pgz", "--out", tmp_path / "a").good()
    trained = made["checkpoint.safetensors"]["figures"]["train_seconds"]
    spent = tensor_meta(run / "hessians.safetensors")[0]["seconds"]
    assert made["q5.safetensors"]["figures"]["hessians_cached"]
    assert 0 < spent <= made["quantized.safetensors"]["figures"]["calibration_seconds"]
    assert said(tmp_path / "a")["train_time_s_max"] == pytest.approx(trained + spent)
    log = (tmp_path / "a" / "train_seed1337.log").read_text()
    assert "(int5): blocks.0.attn.c_q.weight" in log and "(int6)" not in log and "collected Hessians" in log
    assert commands(run, run / "model.pgz") == tuple(f"pgolf {name}" for name in ("train", "q5", "compress", "eval"))
    page = run_here("report", run, "--out", tmp_path / "report.html").good().out
    assert "Quantization" in page
    argv = ("train", copy_run / "data", "--out", run, "--preset", "tiny", "--seed", "7", "--quiet", "--fresh")
    run_here(*argv).good()
    run_here(*PACKAGE, run / "model.pgz", "--out", tmp_path / "b").refused(3, "not made from the trained model")


def test_what_came_later_is_packaged_too(copy_run: Path, tmp_path: Path) -> None:
    """A score of the float model, as an audit of the score would, makes a folder that is there already out of date."""
    argv = (*PACKAGE, copy_run, "--out", tmp_path / "a", "--json")
    for score in (*copy_run.glob("train/score*.json"), *copy_run.glob("quantize/score*.json")):
        score.unlink()
    assert run_here(*argv).good().document["pre_quant_val_bpb"] is None
    assert run_here(*argv).good().document["fresh"] is True
    assert run_here(*argv, "--force").good().document["fresh"] is False
    place, out = copy_run / "train", copy_run / "train" / "score.json"
    run_here("eval", place / "checkpoint.safetensors", "--data", copy_run / "data", "--out", out, "--quiet").good()
    run_here(*argv).refused(3, "the folder exists already")
    assert run_here(*argv, "--force").good().document["pre_quant_val_bpb"] > 0
    score = json.loads((copy_run / "eval" / "score.json").read_text())
    told = [
        told_of([Entry(copy_run / "compress" / "model.pgz", 1337, score | facts)], resolve("tiny").config)
        for facts in ({}, {"audit": {"id": "0" * 16, "violated": []}})
    ]
    assert told[0] != told[1]


def test_from_package_packages_again(copy_run: Path) -> None:
    argv = ("run", "--out", copy_run, "--set", "package.prove=false", "--json", "--quiet", "--from", "package")
    for _ in range(2):
        (stage,) = run_here(*argv).good().document["stages"]
        assert stage["stage"] == "package" and stage["fresh"] is False


def test_over_the_cap_the_sweep_is_asked(pgolf: Any, copy_run: Path, tmp_path: Path) -> None:
    pgolf(
        "sweep", "quantize", copy_run / "train" / "checkpoint.safetensors", "--data", copy_run / "data", "--quiet",
        "--out", copy_run / "sweep", "--set", "quant.bits=4,5", "--tokens", 500, "--jobs", 1,
    ).good()  # fmt: skip
    table = [json.loads(line) for line in (copy_run / "sweep" / "results.jsonl").read_text().splitlines()]
    sizes = sorted(row["figures"]["total_bytes"] for row in table)
    cap = sizes[0] + 500
    line = run_here(*PACKAGE, copy_run, "--out", tmp_path / "a", "--set", f"package.cap_bytes={cap}").refused(4)
    assert "results.jsonl these fit: quant.bits=4 (" in line and f"{sizes[0]:,} bytes" in line


def test_a_check_finds_what_was_changed(copy_run: Path, tmp_path: Path) -> None:
    folder = copy_run / "submission"
    found = run_here("package-submission", "--check", folder, "--json").good().document
    assert found["verdict"] == "passed" and found["schema"] == "pgolf.submission-audit/2"
    assert run_here("audit", "submission", folder, "--json").good().document == found
    argv = ("package-submission", "--check", folder, "--run", "--data", copy_run / "data", "--json")
    ran = run_here(*argv).good().document
    assert "the script scores" in ran["findings"][-1]["what"] and ran["findings"][-1]["level"] == "note"
    document = said(folder)
    document["seed_results"]["1337"]["val_bpb"] -= 0.01
    document["val_bpb"] -= 0.01
    (folder / "submission.json").write_text(json.dumps(document))
    text = run_here("package-submission", "--check", folder).refused(4, "does not hold")
    assert text
    ran = run_here(*argv).document
    assert any("the claim is" in one["what"] and one["level"] == "violation" for one in ran["findings"])
    run_here("package-submission", "--check", folder, "--run").refused(2, "--data")
    run_here("package-submission", "--check", tmp_path).refused(3, "submission.json")
    run_here("package-submission", "--check", folder, "--out", tmp_path / "x").refused(2, "--check")
    run_here("package-submission", copy_run, "--out", tmp_path / "x", "--run").refused(2, "--check")


def test_a_folder_of_another_maker_is_not_run(copy_run: Path) -> None:
    folder = copy_run / "submission"
    (folder / "submission.json").write_text(json.dumps(said(folder) | {"schema": "other"}))
    argv = ("package-submission", "--check", folder, "--run", "--data", copy_run / "data")
    run_here(*argv).refused(2, "only a folder that pgolf has made")


def test_bundle_writes_the_script_and_says_where_its_bytes_are(tiny_run: Path, tmp_path: Path) -> None:
    found = run_here("bundle", "--preset", "tiny", "--out", tmp_path / "a b", "--explain", "--json").good().document
    script = (tmp_path / "a b" / "train_gpt.py").read_bytes()
    assert found["bytes"]["packed"] == len(script) and found["imports"] == ["brotli", "numpy", "sentencepiece", "torch"]
    pieces = {piece["name"]: piece for piece in found["pieces"]}
    assert pieces["GPT"]["module"] == "pgolf.core.model.gpt" and pieces["GPT"]["bytes"] > 300
    total = sum(piece["characters"] for piece in found["pieces"])
    assert abs(total / found["bytes"]["minified"] - 1) < 0.03
    readable = (tmp_path / "a b" / "train_gpt_readable.py").read_text()
    assert len(readable) == found["bytes"]["readable"] and "class GPT" in readable
    assert "definitions" in run_here("bundle", "--preset", "tiny", "--explain").good().out


class Page(HTMLParser):
    """Collects what a page would load, and its headings."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.words: dict[str, list[str]] = {"h2": [], "h3": []}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href", "data") and value[:1] != "#"]
        if tag not in ("meta", "path", "rect", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("path", "rect", "circle")

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "rect", "circle"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.words:
            self.words[self.open[-1]].append(data)


def test_the_report_of_a_run_is_whole_and_loads_nothing(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    found = run_here("report", tiny_run, "--out", out, "--json").good().document
    text = out.read_text()
    page = Page()
    page.feed(text)
    assert page.loaded == [] and page.open == [] and "<script" not in text and "url(" not in text
    assert page.words["h2"] == found["sections"]
    for title in ("Pipeline", "Training", "Evaluation", "Quantization by tensor", "Audit", "Provenance"):
        assert title in found["sections"]
    bpb = json.loads((tiny_run / "eval" / "score.json").read_text())["score"]["bpb"]
    assert f"{bpb:.6f}" in text and "blocks.0.mlp.fc.weight" in text and "validation BPB" in text
    assert "Tokenize" in text and "prefers-color-scheme: dark" in text


def test_the_report_of_less_than_a_run(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    assert len(run_here("report", tiny_run / "compress" / "model.pgz", "--out", out, "--json").good().document) == 5
    trained = run_here("report", tiny_run / "train", "--out", out, "--json").good().document
    assert "Training" in trained["sections"] and "Pipeline" in trained["sections"]
    empty = tmp_path / "empty"
    empty.mkdir()
    run_here("report", empty, "--out", out).refused(3, "nothing of a run")
    run_here("report", tmp_path / "absent", "--out", out).refused(3, "no such file")
    copy = shutil.copytree(tiny_run, tmp_path / "evil")
    path = copy / "train" / "manifest.json"
    path.write_text(path.read_text().replace("pgolf", "<script>alert(1)</script>"))
    pgolf("report", copy, "--out", out)
    assert "<script>" not in out.read_text()


@pytest.mark.parametrize(
    ("setting", "code", "words"),
    [
        ("eval.max_tokens=100", 4, ("covers only", "eval.max_tokens=0")),
        ("eval.num_loops=1", 2, ("eval.num_loops", "as it was trained")),
    ],
)
def test_what_cannot_be_claimed_is_refused_before_training(
    tiny_run: Path, tmp_path: Path, setting: str, code: int, words: tuple[str, ...]
) -> None:
    argv = ("run", "--preset", "tiny", "--data", tiny_run / "data", "--out", tmp_path, "--quiet", "--set", setting)
    run_here(*argv, "--until", "package").refused(code, *words)
    assert not (tmp_path / "train").exists()


@pytest.mark.slow
def test_a_whole_run_can_be_packaged_again(pgolf: Any, corpus: Path, tmp_path: Path) -> None:
    pgolf("run", *QUICK, "--text", corpus, "--out", tmp_path / "a run").good()
    pgolf("package-submission", tmp_path / "a run", "--out", tmp_path / "my folder", "--quiet").good()
    assert run_here("package-submission", "--check", tmp_path / "my folder").good()
