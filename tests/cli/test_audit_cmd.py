"""pgolf audit end to end on the tiny run and on a program that is not pgolf."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import run_here

from pgolf.audit.bench import Level
from pgolf.audit.engine import examine
from pgolf.audit.subject import InProcess
from pgolf.core.shards import write_shard

QUICK = ("--targets", 240, "--quiet", "--json")
SCORER = Path(__file__).parents[2] / "examples" / "bigram_scorer.py"


@pytest.fixture(scope="module")
def audited(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one audit."""
    out = tmp_path_factory.mktemp("audit")
    model, data = tiny_run / "compress" / "model.pgz", tiny_run / "data"
    document = run_here("audit", "run", "eval", "--model", model, "--data", data, "--out", out, *QUICK).good().document
    assert document["verdict"] == "passed" and document["untested"] == []
    assert {one["property"] for one in document["findings"] if one["verdict"] == "NOT-VIOLATED"} >= set("0abcdfghi")
    return out


def test_a_score_names_its_audit(audited: Path, tiny_run: Path, tmp_path: Path) -> None:
    model, data, out = tiny_run / "compress" / "model.pgz", tiny_run / "data", tmp_path / "score.json"
    argv = ("eval", model, "--data", data, "--out", out, "--quiet", "--json")
    assert run_here(*argv).good().document["audit"] == "unaudited"
    named = run_here(*argv, "--audit", audited).good().document
    report = json.loads((audited / "audit.json").read_text())
    assert named["audit"]["id"] == report["id"] and not named["fresh"] and named["audit"]["same_weights"]
    again = run_here(*argv).good().document
    assert again["fresh"] and again["audit"] == named["audit"] == json.loads(out.read_text())["audit"]


def test_an_audit_of_another_method_is_refused(audited: Path, tiny_run: Path) -> None:
    model, data = tiny_run / "compress" / "model.pgz", tiny_run / "data"
    argv = ("eval", model, "--data", data, "--quiet", "--audit", audited)
    run_here(*argv, "--set", "eval.stride=16").refused(3, "another method", "stride")
    run_here(*argv, "--method", "all").refused(2, "one method")
    run_here("ttt", *argv[1:]).refused(3, "not about ttt")


@pytest.mark.fault(row="F30")
def test_a_violated_score_cannot_be_packaged(audited: Path, copy_run: Path, tmp_path: Path) -> None:
    model, score = copy_run / "compress" / "model.pgz", copy_run / "eval" / "score.json"
    report = json.loads((audited / "audit.json").read_text())
    audit = {key: report[key] for key in ("id", "level", "untested")} | {"verdict": "violated", "violated": ["a"]}
    score.write_text(json.dumps(json.loads(score.read_text()) | {"audit": audit}))
    argv = ("package-submission", model, "--out", tmp_path / "folder", "--quiet")
    run_here(*argv).refused(4, "proved a rule broken", "a")
    assert not (tmp_path / "folder").exists()


def test_the_folder_says_what_was_tested(audited: Path, copy_run: Path, tmp_path: Path) -> None:
    model, data, out = copy_run / "compress" / "model.pgz", copy_run / "data", copy_run / "eval" / "score.json"
    run_here("eval", model, "--data", data, "--out", out, "--quiet", "--audit", audited).good()
    folder = tmp_path / "folder"
    run_here("package-submission", model, "--out", folder, "--quiet").good()
    said = next(line for line in (folder / "README.md").read_text().splitlines() if "Legality audit" in line)
    assert "level quick" in said and "a (NOT-VIOLATED (n=" in said
    assert run_here("audit", "submission", folder, "--json").good().document["verdict"] == "passed"


def test_an_adaptive_method(tiny_run: Path) -> None:
    model, data = tiny_run / "compress" / "model.pgz", tiny_run / "data"
    sets = ("--set", "ttt.lr=0.05", "--set", "ttt.epochs=1")
    document = run_here("audit", "run", "ttt", "--model", model, "--data", data, *sets, *QUICK).good().document
    looks = next(one["figures"] for one in document["findings"] if one["property"] == "c")
    assert document["verdict"] == "passed" and looks["reveals"] > 1
    assert document["subject"]["reduced"]["chunk_tokens"][1] < 240


def test_training_never_opens_the_validation_split(tiny_run: Path) -> None:
    from pgolf.audit.dataset import provenance
    from pgolf.dataset import open_dataset
    from pgolf.report.console import Console
    from pgolf.stages.model_files import load_model

    model = load_model(tiny_run / "compress" / "model.pgz")
    dataset = open_dataset(tiny_run / "data", None, 512)
    finding = provenance(model, dataset, None, Console(quiet=True))
    assert finding.verdict == "NOT-VIOLATED", finding.what


def test_a_training_with_long_windows_is_cut_down_too(tiny_run: Path, tmp_path: Path) -> None:
    from pgolf.audit.dataset import provenance, small_training
    from pgolf.dataset import open_dataset
    from pgolf.report.console import Console
    from pgolf.stages.model_files import load_model

    sets = ("train.iterations=1", "train.seq_len=256", "train.batch_tokens=512", "train.micro_batch_tokens=512")
    window = ("model.window=sliding", "model.window.full_layers=1", "model.window.tokens=130")
    words = [word for text in (*sets, *window) for word in ("--set", text)]
    run_here("train", tiny_run / "data", "--out", tmp_path, "--preset", "tiny", "--quiet", *words).good()
    model = load_model(tmp_path / "checkpoint.safetensors")
    assert small_training(model).config.train.seq_len == 256
    finding = provenance(model, open_dataset(tiny_run / "data", None, 512), None, Console(quiet=True))
    assert finding.verdict == "NOT-VIOLATED", finding.what


def test_a_replay_uses_the_model_as_the_audit_did(tiny_run: Path, tmp_path: Path) -> None:
    """With its passes through the loop, its windows and its rotary frequencies."""
    from pgolf.audit.again import made
    from pgolf.audit.evaluator import Asked, audit_method
    from pgolf.dataset import open_dataset
    from pgolf.report.console import Console
    from pgolf.stages.inputs import rescored
    from pgolf.stages.model_files import load_model

    loop = ("model.loop=layers", "model.loop.start=0", "model.loop.end=1", "train.iterations=1")
    words = [word for text in loop for word in ("--set", text)]
    run_here("train", tiny_run / "data", "--out", tmp_path, "--preset", "tiny", "--quiet", *words).good()
    window = ("model.window=sliding", "model.window.full_layers=1", "model.window.tokens=8")
    sets = ["eval.num_loops=1", "eval.rope=ntk", "eval.rope.trained=16", *window]
    console = Console(quiet=True)
    model, resolved = rescored(load_model(tmp_path / "checkpoint.safetensors"), "", sets, console)
    dataset = open_dataset(tiny_run / "data", None, 512)
    level = Level(name="quick", targets=240, flips=1, flips_total=1, sweeps=1, values=2)
    audited: list[InProcess] = []

    def noted(subject: InProcess, *given: Any, **more: Any) -> Any:
        audited.append(subject)
        return examine(subject, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgolf.audit.evaluator.examine", noted)
        document = audit_method(model, dataset, "eval", resolved.config.eval, Asked(level=level), console)
    again = made(json.loads(json.dumps(document["subject"])), "test", False)
    assert isinstance(again, InProcess)
    assert again.model.config == audited[0].model.config and again.method == audited[0].method
    tokens = dataset.validation()[0][:200].astype(np.int64)
    assert again.run(tokens).nll.tobytes() == audited[0].run(tokens).nll.tobytes()


def test_an_artifact(tiny_run: Path, tmp_path: Path) -> None:
    model = tiny_run / "compress" / "model.pgz"
    document = run_here("audit", "artifact", model, "--json", "--quiet").good().document
    assert [one["property"] for one in document["findings"]] == ["0", "g", "h"]
    run_here("audit", "artifact", tiny_run / "quantize" / "quantized.safetensors", "--quiet").refused(3, "no artifact")


def test_wrong_words(tiny_run: Path) -> None:
    model, data = tiny_run / "compress" / "model.pgz", tiny_run / "data"
    argv = ("--model", model, "--data", data, "--quiet")
    run_here("audit", "run", "score", *argv).refused(2, "no evaluator")
    run_here("audit", "run", "eval", *argv, "--level", "deep").refused(2, "no level")
    run_here("audit", "external", "--quiet", "--", "python", "{tokens}").refused(2, "{scores}")
    run_here("audit", "replay", model).refused(3)


def test_triples() -> None:
    good = ("--loss", "2.32203", "--bpb", "1.06108", "--tokens", 47851520)
    assert run_here("audit", "triple", *good, "--json").good().document["sound"]
    bad = run_here("audit", "triple", "--loss", "2.74135", "--bpb", "1.06108", "--tokens", 47851520, "--json")
    assert bad.code == 4 and not bad.document["sound"]


@pytest.fixture(scope="module")
def few_ids(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset's validation text, for a program that knows 512 ids."""
    folder = tmp_path_factory.mktemp("few")
    tokens = np.fromfile(tiny_run / "data" / "fineweb_val_000000.bin", "<u2", offset=1024)
    write_shard(folder / "fineweb_val_000000.bin", tokens)
    (folder / "tokenizer.model").write_bytes((tiny_run / "data" / "tokenizer.model").read_bytes())
    return folder


def test_a_program_that_is_not_pgolf(few_ids: Path) -> None:
    command = (sys.executable, SCORER, "{tokens}", "{scores}", "512")
    argv = ("audit", "external", "--data", few_ids, "--targets", 120, "--quiet", "--json")
    assert run_here(*argv, "--", *command).good().document["verdict"] == "passed"


def test_its_leaky_version_is_convicted(tmp_path: Path) -> None:
    command = (sys.executable, SCORER, "{tokens}", "{scores}", "16", "--leaky")
    argv = ("audit", "external", "--vocab-size", 16, "--targets", 120, "--quiet", "--json", "--out", tmp_path)
    result = run_here(*argv, "--", *command)
    assert result.code == 4 and result.document["violated"] == ["a", "b"]
    for name in "ab":
        case = tmp_path / f"counterexample-{name}.json"
        run_here("audit", "replay", case).refused(2, "bigram_scorer.py", "--run-programs")
        assert run_here("audit", "replay", case, "--run-programs").code == 4


@pytest.mark.fault(row="F30")
def test_specimens_by_name() -> None:
    document = run_here("audit", "specimens", "--only", "sidecar", "--only", "oversize", "--json").good().document
    assert [row["name"] for row in document["rows"]] == ["missing-sidecar", "prefix-sidecar", "oversize in 2^20 units"]
    assert document["wrong"] == 0
    run_here("audit", "specimens", "--only", "unheard of", "--quiet").refused(2, "no row")
