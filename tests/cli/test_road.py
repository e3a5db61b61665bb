"""The whole road and each of its commands: files, freshness, requirements, JSON contracts, seeds."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import QUICK, Result, stray_files, tensor_hash, tree

from pgolf.stages.signals import Interrupted

STAGES = ["tokenize", "train", "quantize", "compress", "eval", "ttt", "package"]
FILES = {
    "data": ["manifest.json", "tokenizer.model", "fineweb_train_000000.bin", "fineweb_val_000000.bin"],
    "train": ["checkpoint.safetensors", "manifest.json", "train.log", "events.jsonl", "score.json"],
    "quantize": ["quantized.safetensors", "manifest.json", "hessians.safetensors", "score.json"],
    "compress": ["model.pgz", "manifest.json"],
    "eval": ["score.json", "manifest.json"],
    "ttt": ["score.json", "manifest.json"],
    "submission": ["train_gpt.py", "model.pgz", "submission.json", "README.md", "train_seed1337.log"],
}
SIZES = ("artifact_bytes", "code_bytes", "total_bytes", "cap_bytes", "headroom_bytes")


def again(pgolf: Any, run: Path, corpus: Path, *more: object) -> Result:
    """The command that made the run, once more."""
    return pgolf("run", *QUICK, "--text", corpus, "--out", run, *more)


def stages_of(result: Result) -> dict[str, dict[str, Any]]:
    """Rows of a run's JSON document by stage."""
    return {row["stage"]: row for row in result.good().document["stages"]}


def check_sizes(document: dict[str, Any]) -> None:
    """The five size integers add up."""
    assert all(type(document[name]) is int for name in SIZES)
    assert document["artifact_bytes"] + document["code_bytes"] == document["total_bytes"]
    assert document["cap_bytes"] - document["total_bytes"] == document["headroom_bytes"]


def check_score(score: dict[str, Any]) -> None:
    """The ratios are those of the sums, to the last bit."""
    assert set(score) == {"nats", "tokens", "bytes", "val_loss", "bpb"}
    assert type(score["tokens"]) is int and type(score["bytes"]) is int
    assert score["val_loss"] == score["nats"] / score["tokens"]
    assert score["bpb"] == score["nats"] / (math.log(2) * score["bytes"])
    assert score["bpb"] == pytest.approx(score["nats"] / math.log(2) / score["bytes"], rel=1e-15)


def val_tokens(run: Path) -> int:
    """Ids in the validation shards, counted from the files."""
    return sum((path.stat().st_size - 1024) // 2 for path in (run / "data").glob("fineweb_val_*.bin"))


def test_a_run_leaves_every_promised_file(tiny_run: Path) -> None:
    missing = [
        f"{folder}/{name}"
        for folder, names in FILES.items()
        for name in names
        if not (tiny_run / folder / name).is_file()
    ]
    assert missing == []
    assert stray_files(tiny_run) == []


def test_json_is_one_versioned_document(pgolf: Any, copy_run: Path, corpus: Path) -> None:
    result = again(pgolf, copy_run, corpus, "--json")
    document = result.good().document
    assert document["schema"] == "pgolf.run/1"
    assert [row["stage"] for row in document["stages"]] == STAGES
    assert all(set(row) == {"stage", "seconds", "fresh", "file", "bytes", "figures"} for row in document["stages"])
    assert "error" not in document


def test_an_unchanged_rerun_does_nothing_and_says_so(pgolf: Any, copy_run: Path, corpus: Path) -> None:
    before = tree(copy_run)
    result = pgolf("run", "--preset", "tiny", "--text", corpus, "--out", copy_run).good()
    assert tree(copy_run) == before
    assert result.err.count("unchanged, nothing to do") == len(STAGES)
    assert result.out.count("up to date") == len(STAGES)


def test_changed_bits_never_train_again_and_reuse_hessians(pgolf: Any, copy_run: Path, corpus: Path) -> None:
    before = tree(copy_run)
    rows = stages_of(again(pgolf, copy_run, corpus, "--set", "quant.bits=5", "--json"))
    after = tree(copy_run)
    assert [name for name in STAGES if rows[name]["fresh"]] == ["tokenize", "train"]
    assert rows["quantize"]["figures"]["hessians_cached"] is True
    kept = [name for name in before if name.startswith(("data/", "train/"))]
    assert kept and all(before[name] == after[name] for name in kept)
    assert before["quantize/hessians.safetensors"] == after["quantize/hessians.safetensors"]
    assert before["quantize/quantized.safetensors"] != after["quantize/quantized.safetensors"]
    assert after["submission/model.pgz"][1] == after["compress/model.pgz"][1] != before["compress/model.pgz"][1]
    first = json.loads((copy_run / "compress" / "manifest.json").read_text())["outputs"]["model.pgz"]
    assert first["resolved"]["quant"]["bits"] == 5


def test_changed_evaluation_reruns_only_what_depends_on_it(pgolf: Any, copy_run: Path, corpus: Path) -> None:
    rows = stages_of(again(pgolf, copy_run, corpus, "--set", "eval.stride=64", "--json"))
    assert [name for name in STAGES[:3] if rows[name]["fresh"]] == STAGES[:3]
    assert not rows["eval"]["fresh"] and not rows["package"]["fresh"]


def test_from_runs_the_stage_again_and_until_stops(pgolf: Any, copy_run: Path, corpus: Path) -> None:
    before = tree(copy_run)
    rows = stages_of(again(pgolf, copy_run, corpus, "--from", "quantize", "--until", "compress", "--json"))
    assert list(rows) == ["quantize", "compress"] and not rows["quantize"]["fresh"]
    after = tree(copy_run)
    assert before["train/checkpoint.safetensors"] == after["train/checkpoint.safetensors"]
    assert before["quantize/quantized.safetensors"][0] < after["quantize/quantized.safetensors"][0]
    assert before["eval/score.json"] == after["eval/score.json"]


def test_until_tokenize_makes_only_the_dataset(pgolf: Any, tmp_path: Path, corpus: Path) -> None:
    again(pgolf, tmp_path / "run", corpus, "--until", "tokenize").good()
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == ["data"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--from", "quantise"], ["quantise", "quantize"]),
        (["--until", "zip"], ["zip", "compress"]),
        (["--from", "eval", "--until", "train"], ["eval", "train"]),
        (["--data", "x", "--text", "y"], ["--data", "--text"]),
    ],
)
def test_wrong_stage_ranges_are_usage_errors(pgolf: Any, tmp_path: Path, options: list[str], words: list[str]) -> None:
    pgolf("run", *QUICK, "--out", tmp_path / "run", *options).refused(2, *words)


def test_a_requirement_that_holds_changes_nothing(pgolf: Any, copy_run: Path, corpus: Path) -> None:
    options = ["--require", "train.bpb<=99", "--require", "package.total_bytes<16000000", "--require", "eval.bpb>0"]
    again(pgolf, copy_run, corpus, *options).good()


def test_a_requirement_that_fails_ends_the_run_after_its_stage(pgolf: Any, tmp_path: Path, corpus: Path) -> None:
    run = tmp_path / "run"
    result = again(pgolf, run, corpus, "--require", "train.bpb<=0.5")
    result.refused(4, "train.bpb", "0.5")
    assert (run / "train" / "checkpoint.safetensors").is_file() and (run / "train" / "score.json").is_file()
    assert not (run / "quantize").exists()
    kept = tree(run)
    rows = stages_of(again(pgolf, run, corpus, "--until", "train", "--json"))
    assert rows["tokenize"]["fresh"] and rows["train"]["fresh"] and tree(run) == kept


@pytest.mark.parametrize("text", ["train.bpb", "bpb<=1", "train.bpb=1", "walk.bpb<=1", "train.bpb<=one", "train.bpb<="])
def test_a_malformed_requirement_is_a_usage_error(pgolf: Any, tmp_path: Path, text: str) -> None:
    pgolf("run", *QUICK, "--out", tmp_path / "run", "--require", text).refused(2, "--require")
    assert not (tmp_path / "run" / "data").exists()


def test_an_unknown_figure_is_a_usage_error_that_names_those_there_are(
    pgolf: Any, copy_run: Path, corpus: Path
) -> None:
    again(pgolf, copy_run, corpus, "--require", "train.bppb<=1").refused(2, "bppb", "bpb", "val_loss")


def test_a_requirement_on_a_stage_that_is_not_run_is_refused(pgolf: Any, copy_run: Path, corpus: Path) -> None:
    again(pgolf, copy_run, corpus, "--until", "train", "--require", "eval.bpb<=0.1").refused(2, "eval.bpb")


def commands(run: Path, corpus: Path, out: Path) -> dict[str, list[object]]:
    """Every command that writes, on the files of a finished run, into `out`."""
    data, artifact = run / "data", run / "compress" / "model.pgz"
    return {
        "run": ["run", "--preset", "tiny", "--text", corpus, "--out", out / "run"],
        "tokenize": ["tokenize", corpus, "--preset", "tiny", "--out", out / "data"],
        "train": ["train", data, "--preset", "tiny", "--out", out / "train"],
        "quantize": [
            "quantize",
            run / "train" / "checkpoint.safetensors",
            "--data",
            data,
            "--out",
            out / "q.safetensors",
        ],
        "compress": ["compress", run / "quantize" / "quantized.safetensors", "--out", out / "model.pgz"],
        "eval": ["eval", artifact, "--data", data, "--out", out / "score.json"],
        "ttt": ["ttt", artifact, "--data", data, "--out", out / "score.json"],
        "package-submission": ["package-submission", artifact, "--out", out / "submission"],
    }


@pytest.mark.parametrize("name", list(commands(Path(), Path(), Path())))
def test_dry_run_writes_nothing(pgolf: Any, copy_run: Path, corpus: Path, tmp_path: Path, name: str) -> None:
    out, before = tmp_path / "new", tree(copy_run)
    argv = commands(copy_run, corpus, out)[name]
    document = pgolf(*argv, "--dry-run", "--json").good().document
    assert document["schema"] == "pgolf.plan/1"
    assert "would" in pgolf(*argv, "--dry-run").good().out
    assert not out.exists(), sorted(out.rglob("*"))
    assert tree(copy_run) == before


@pytest.mark.reads_pt
def test_dry_run_of_import_writes_nothing(pgolf: Any, tmp_path: Path) -> None:
    source = tmp_path / "foreign.pt"
    make_foreign(source)
    document = (
        pgolf("import", source, "--out", tmp_path / "new" / "a.safetensors", "--dry-run", "--json").good().document
    )
    assert document["schema"] == "pgolf.plan/1"
    assert not (tmp_path / "new").exists()


def make_foreign(path: Path) -> None:
    """A small state dict in torch's format."""
    import torch

    from pgolf.core.model.config import ModelConfig
    from pgolf.core.model.gpt import GPT

    config = ModelConfig(vocab_size=512, num_layers=2, model_dim=64, num_heads=2, num_kv_heads=1)
    torch.save(GPT(config, 0).state_dict(), path)


EVERYWHERE = {"--seed": "7", "--device": "cpu", "--preset": "tiny", "--set": "train.iterations=3"}


@pytest.mark.parametrize("option", [*EVERYWHERE, "--json", "--quiet", "--dry-run"])
@pytest.mark.parametrize("name", list(commands(Path(), Path(), Path())))
def test_every_stage_command_knows_the_common_options(name: str, option: str) -> None:
    import typer

    from pgolf.cli.main import app

    known = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    assert option in {spelling for parameter in known.params for spelling in parameter.opts}


def test_single_commands_make_what_run_makes(pgolf: Any, tiny_run: Path, corpus: Path, tmp_path: Path) -> None:
    data, train, folder = tmp_path / "data", tmp_path / "train", tmp_path / "submission"
    quantized, artifact = tmp_path / "q" / "quantized.safetensors", tmp_path / "c" / "model.pgz"
    score, ttt = tmp_path / "c" / "score.json", tmp_path / "t" / "score.json"
    road: list[list[object]] = [
        ["tokenize", corpus, "--preset", "tiny", "--out", data],
        ["train", data, "--preset", "tiny", "--out", train],
        ["quantize", train / "checkpoint.safetensors", "--data", data, "--out", quantized],
        ["compress", quantized, "--out", artifact],
        ["eval", artifact, "--data", data, "--out", score],
        ["ttt", artifact, "--data", data, "--out", ttt],
        ["package-submission", artifact, "--out", folder],
    ]
    schemas = [pgolf(*argv, "--quiet", "--json").good().document["schema"] for argv in road]
    names = ["tokenize", "train", "quantize", "compress", "score", "score", "submission"]
    assert schemas == [f"pgolf.{name}/{2 if name in ('score', 'submission') else 1}" for name in names]
    assert tensor_hash(train / "checkpoint.safetensors") == tensor_hash(tiny_run / "train" / "checkpoint.safetensors")
    assert tensor_hash(quantized) == tensor_hash(tiny_run / "quantize" / "quantized.safetensors")
    assert artifact.read_bytes() == (tiny_run / "compress" / "model.pgz").read_bytes()
    for path, stage in ((score, "eval"), (ttt, "ttt")):
        assert (
            json.loads(path.read_text())["score"] == json.loads((tiny_run / stage / "score.json").read_text())["score"]
        )
    assert (folder / "train_gpt.py").read_bytes() == (tiny_run / "submission" / "train_gpt.py").read_bytes()
    for argv in road:
        again_ = pgolf(*argv, "--quiet", "--json").good().document
        assert again_["fresh"] is True, argv


def test_seeds_decide_the_weights(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    hashes = []
    for index, seed in enumerate(("1337", "1337", "1338")):
        out = tmp_path / str(index)
        options = ["--set", "train.iterations=3", "--set", "train.val_every=0", "--seed", seed, "--quiet"]
        pgolf("train", tiny_run / "data", "--out", out, "--preset", "tiny", *options).good()
        hashes.append(tensor_hash(out / "checkpoint.safetensors"))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("stage", ["eval", "ttt"])
def test_score_documents(pgolf: Any, tiny_run: Path, stage: str) -> None:
    model = tiny_run / "compress" / "model.pgz"
    document = pgolf(stage, model, "--data", tiny_run / "data", "--quiet", "--json").good().document
    assert document["schema"] == "pgolf.score/2" and document["stage"] == stage and document["partial"] is False
    check_score(document["score"])
    assert document["score"]["tokens"] == val_tokens(tiny_run) - 1
    assert document["score"] == json.loads((tiny_run / stage / "score.json").read_text())["score"]
    assert document["method"]["name"] == {"eval": "sliding", "ttt": "chunk"}[stage]
    assert (document["method"]["seq_len"], document["method"]["stride"]) == (64, 32)
    manifest = json.loads((tiny_run / "data" / "manifest.json").read_text())
    assert document["tokenizer_sha256"] == manifest["tokenizer"]["sha256"]
    assert len(document["data"]["sha256"]) == 64 and len(document["model"]["sha256"]) == 64
    assert {"load", "score"} <= set(document["seconds"])


def test_every_kind_of_model_scores(pgolf: Any, tiny_run: Path) -> None:
    found = {}
    for path in ("train/checkpoint.safetensors", "quantize/quantized.safetensors", "compress/model.pgz"):
        document = pgolf("eval", tiny_run / path, "--data", tiny_run / "data", "--quiet", "--json").good().document
        found[document["model"]["kind"]] = document["score"]
    assert found["quantized"] == found["artifact"]
    assert 0 < abs(found["checkpoint"]["bpb"] - found["quantized"]["bpb"]) < 0.05


def test_a_partial_score_says_so(pgolf: Any, tiny_run: Path) -> None:
    argv = ["eval", tiny_run / "compress" / "model.pgz", "--data", tiny_run / "data", "--set", "eval.max_tokens=1000"]
    document = pgolf(*argv, "--json", "--quiet").good().document
    assert document["partial"] is True and document["score"]["tokens"] == 1000
    assert document["share"] == pytest.approx(1000 / (val_tokens(tiny_run) - 1))
    assert "partial" in pgolf(*argv, "--quiet").good().out


def test_bytes_charged_are_the_bytes_of_the_text(tiny_run: Path) -> None:
    manifest = json.loads((tiny_run / "data" / "manifest.json").read_text())
    score = json.loads((tiny_run / "eval" / "score.json").read_text())["score"]
    for split in manifest["splits"].values():
        assert split["charged_bytes"] == split["normalised_bytes"] > 0
    assert score["bytes"] == manifest["splits"]["val"]["charged_bytes"]
    assert manifest["splits"]["val"]["tokens"] == val_tokens(tiny_run)


def test_size_documents(pgolf: Any, tiny_run: Path) -> None:
    quantized = tiny_run / "quantize" / "quantized.safetensors"
    row = json.loads((tiny_run / "compress" / "manifest.json").read_text())["outputs"]["model.pgz"]
    check_sizes(row["figures"])
    assert row["figures"]["artifact_bytes"] == (tiny_run / "compress" / "model.pgz").stat().st_size
    folder = tiny_run / "submission"
    submission = json.loads((folder / "submission.json").read_text())
    check_sizes(submission)
    assert {name: submission[name] for name in SIZES} == {name: row["figures"][name] for name in SIZES}
    on_disk = sum((folder / name).stat().st_size for name in ("train_gpt.py", "model.pgz"))
    assert submission["total_bytes"] == on_disk
    document = pgolf("size", folder, "--json").good().document
    check_sizes(document)
    assert document["total_bytes"] == on_disk and document["predicted"] is False
    assert pgolf("size", quantized, "--json").good().document["artifact_bytes"] == quantized.stat().st_size


def test_every_document_has_a_versioned_schema(pgolf: Any, tiny_run: Path) -> None:
    looks: list[list[object]] = [
        ["size", "demo"],
        ["inspect", tiny_run / "compress" / "model.pgz"],
        ["inspect", tiny_run / "train" / "checkpoint.safetensors"],
        ["inspect", tiny_run / "quantize" / "quantized.safetensors"],
        ["inspect", tiny_run / "data"],
        ["inspect", tiny_run / "data" / "fineweb_val_000000.bin"],
        ["inspect", tiny_run / "eval" / "score.json"],
        ["config", "show"],
        ["config", "diff", "demo", "tiny"],
        ["techniques"],
        ["doctor"],
    ]
    for argv in looks:
        name, slash, version = pgolf(*argv, "--json").good().document["schema"].partition("/")
        assert name.startswith("pgolf.") and slash and version.isdigit(), argv


def test_errors_with_json_are_one_document(pgolf: Any, tmp_path: Path) -> None:
    result = pgolf("eval", tmp_path / "absent.pgz", "--data", tmp_path, "--json")
    assert result.code == 3
    error = result.document
    assert error["schema"] == "pgolf.error/1" and error["error"]["code"] == 3
    assert "absent.pgz" in error["error"]["where"]


@pytest.mark.parametrize("argv", [["eval", "."], ["size", "tiny", "--nope"], ["quantise"], ["size"]])
def test_a_wrong_command_line_is_one_document_too(pgolf: Any, argv: list[str]) -> None:
    plain = pgolf(*argv)
    assert plain.code == 2 and not plain.out
    error = pgolf(*argv, "--json").document["error"]
    assert error["code"] == 2 and error["kind"] == "UsageError" and error["what"]


@pytest.mark.parametrize(
    ("raised", "code", "kind"),
    [
        (RuntimeError("so"), 1, "RuntimeError"),
        (Interrupted(2), 130, "Interrupted"),
        (Interrupted(15), 143, "Interrupted"),
    ],
)
def test_bugs_and_interrupts_are_one_document_too(
    pgolf: Any, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, kind: str
) -> None:
    def fail(config: object) -> None:
        raise raised

    monkeypatch.setattr("pgolf.sizing.predict", fail)
    result = pgolf("size", "tiny", "--json")
    error = result.document["error"]
    assert (result.code, error["code"]) == (code, code)
    assert error["kind"] == kind and error["what"]
    if code == 1:
        assert "Traceback" in result.crash and "a bug in pgolf: so" in error["what"] and error["where"]
    assert not pgolf("size", "tiny").out


def test_size_over_the_cap_is_one_document_and_exit_code_4(pgolf: Any) -> None:
    result = pgolf("size", "demo", "--set", "package.cap_bytes=1000", "--json")
    assert result.code == 4
    assert result.document["headroom_bytes"] < 0


def test_a_usage_error_with_json_is_one_document(pgolf: Any) -> None:
    result = pgolf("config", "show", "--preset", "dmeo", "--json")
    assert result.code == 2 and "demo" in result.document["error"]["fix"]


def test_presets_go_together_in_one_word(pgolf: Any) -> None:
    document = pgolf("config", "show", "quant", "--preset", "leader_tiny,quant_trellis", "--json").good().document
    assert document["config"]["quant"]["states"] == 64 and document["config"]["model"]["loop"]["kind"] == "layers"
    for second in (["--preset", "tiny"], ["--preset=tiny"]):
        line = pgolf("config", "show", "--preset", "leader_tiny", *second).refused(2, "--preset", "given twice")
        assert "--preset leader,quant_trellis" in line


def test_the_final_table_says_what_the_issue_asks(pgolf: Any, copy_run: Path, corpus: Path) -> None:
    text = pgolf("run", "--preset", "tiny", "--text", corpus, "--out", copy_run).good().out
    for words in (
        "BPB",
        "float model",
        "quantized model",
        "sliding",
        "test-time training",
        "16,000,000",
        "Next: pgolf",
    ):
        assert words in text, words
    assert "--set quant.bits=5 " in text, "another width than the run's own 6"
    assert str(copy_run / "submission") in text
    for stage, name in (("eval", "eval"), ("ttt", "ttt"), ("train", "train"), ("quantize", "quantize")):
        bpb = json.loads((copy_run / stage / "score.json").read_text())["score"]["bpb"]
        assert f"{bpb:.4f}" in text, name


def test_a_damaged_submission_is_not_called_unchanged(pgolf: Any, copy_run: Path, corpus: Path) -> None:
    good = (copy_run / "submission" / "train_gpt.py").read_bytes()
    (copy_run / "submission" / "model.pgz").write_bytes(b"PGA1 damaged")
    (copy_run / "submission" / "train_gpt.py").unlink()
    again(pgolf, copy_run, corpus).good()
    assert (copy_run / "submission" / "train_gpt.py").read_bytes() == good
    assert (copy_run / "submission" / "model.pgz").read_bytes() == (copy_run / "compress" / "model.pgz").read_bytes()


@pytest.mark.parametrize("name", ["quantize/quantized.safetensors", "compress/model.pgz", "eval/score.json"])
def test_a_lost_or_changed_output_is_made_anew(pgolf: Any, copy_run: Path, corpus: Path, name: str) -> None:
    path = copy_run / name
    before = tree(copy_run)
    path.write_bytes(path.read_bytes()[:-1])
    again(pgolf, copy_run, corpus).good()
    after = tree(copy_run)
    assert after["compress/model.pgz"][1] == before["compress/model.pgz"][1]
    assert after["train/checkpoint.safetensors"] == before["train/checkpoint.safetensors"]
    assert after[name][0] != before[name][0]


def test_spaces_and_umlauts_in_paths(pgolf: Any, tmp_path: Path, corpus: Path) -> None:
    text = tmp_path / "my texts ü"
    text.mkdir()
    shutil.copy(corpus, text / "some topics.jsonl")
    run = tmp_path / "a run, größer"
    options = ["--set", "train.iterations=2", "--set", "ttt.epochs=0"]
    rows = stages_of(pgolf("run", *QUICK, "--text", text, "--out", run, *options, "--json"))
    assert list(rows) == STAGES


def test_published_shards_run_all_the_way(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for name in ("tokenizer.model", "fineweb_train_000000.bin", "fineweb_val_000000.bin"):
        shutil.copy(tiny_run / "data" / name, shards / name)
    run = tmp_path / "run"
    argv = ["run", *QUICK, "--data", shards, "--out", run, "--set", "train.iterations=2", "--json"]
    document = pgolf(*argv).good().document
    assert any("no manifest" in text for text in document["warnings"])
    assert sorted(path.name for path in shards.iterdir()) == [
        "fineweb_train_000000.bin",
        "fineweb_val_000000.bin",
        "tokenizer.model",
    ]
    assert all(row["fresh"] for row in stages_of(pgolf(*argv)).values())


def test_text_files_are_cut_at_the_separator(pgolf: Any, tmp_path: Path) -> None:
    text = tmp_path / "all.txt"
    text.write_text("\n---\n".join(f"document number {i} speaks of the sea and of {i * i} ships" for i in range(200)))
    argv = ["tokenize", text, "--out", tmp_path / "data", "--set", "tokenize.vocab_size=300", "--json", "--quiet"]
    argv += ["--set", r"tokenize.document_separator=\n---\n", "--set", "tokenize.split=first", "--set"]
    document = pgolf(*argv, "tokenize.val_docs=20").good().document
    splits = document["splits"]
    assert (splits["train"]["documents"], splits["val"]["documents"]) == (180, 20)
    ids = np.fromfile(tmp_path / "data" / "fineweb_val_000000.bin", dtype="<u2", offset=1024)
    assert int((ids == 1).sum()) == 20 and ids[0] == 1


def test_a_score_of_changed_weights_use_is_marked(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    parts = ["model.window=sliding", "model.window.tokens=8", "model.window.full_layers=1", "model.skips=gated"]
    loop = ["model.loop=layers", "model.loop.start=0", "model.loop.end=1", "model.loop.extra_passes=2"]
    sets = [word for text in [*parts, *loop, "train.iterations=4", "train.qat=noise"] for word in ("--set", text)]
    out, data = tmp_path / "run", tiny_run / "data"
    pgolf("train", data, "--out", out, *QUICK, *sets).good()
    command = ("eval", out / "checkpoint.safetensors", "--data", data, "--set", "eval.max_tokens=512", "--json")
    plain = pgolf(*command).good().document
    assert plain["model"]["overridden"] == [] and not [text for text in plain["warnings"] if "trained" in text]
    for change, mark in (
        ("model.window.tokens=64", "model.window.tokens 8 -> 64"),
        ("model.window=none", "model.window.kind sliding -> none"),
        ("model.loop.extra_passes=1", "model.loop.extra_passes 2 -> 1"),
        ("model.position.reference=32", "model.position.reference 0 -> 32"),
    ):
        other = pgolf(*command, "--set", change).good().document
        assert mark in other["model"]["overridden"]
        assert any("not the model as it was trained" in text for text in other["warnings"])
        assert other["score"]["bpb_partial"] != plain["score"]["bpb_partial"]
    pgolf(*command[:-1], "--set", "model.loop.extra_passes=3").refused(2, "skip_weights")
    pgolf(*command[:-1], "--set", "model.qk_gain.init=2").refused(2, "cannot be changed")
    quantize = ("quantize", out / "checkpoint.safetensors", "--data", data, "--out", tmp_path / "q.safetensors")
    pgolf(*quantize, "--set", "model.window.tokens=64").refused(2, "cannot be changed")
    kept = tmp_path / "score.json"
    pgolf(*command, "--out", kept).good()
    pgolf(*command, "--out", kept, "--set", "model.window=none").good()
    assert "model.window.kind sliding -> none" in json.loads(kept.read_text())["model"]["overridden"]
    figures = json.loads((out / "manifest.json").read_text())["outputs"]["checkpoint.safetensors"]["figures"]
    assert figures["parts"]["window sliding"] == "1 layers"
    assert figures["parts"]["qat noise"] == "12 matrices"
    log = (out / "train.log").read_text()
    assert "part window sliding: 1 layers" in log and "part qat noise: 12 matrices" in log
