"""Combinations that are known to hurt, on the command line: who warns of them, how often, and where that is kept."""

import json
from pathlib import Path
from typing import Any

import pytest
from harness import run_here

AVERAGED = "an average of weights that act as two or three values"
LOOPED = "the error of rounding comes back"
ADAPTED = "adapters beside weights that act as two or three values"
SETS = [
    *("model.precision=ternary", "model.precision.group=32", "train.average=ema"),
    *("model.loop=layers", "model.loop.start=0", "model.loop.end=1", "model.loop.enable_at=0", "train.iterations=2"),
    *("quant.method=sdclip", "ttt.method=lora", "ttt.rank=2", "quant.max_gap=0"),
]


def words(sets: list[str]) -> list[str]:
    """Settings as the command line has them."""
    return [word for text in sets for word in ("--set", text)]


def test_every_stage_warns_of_its_own_once_and_keeps_it(tiny_run: Path, tmp_path: Path) -> None:
    data, out = tiny_run / "data", tmp_path / "run"
    argv = ["train", data, "--out", out, "--preset", "tiny", *words(SETS)]
    planned = run_here(*argv, "--dry-run", "--json").good()
    trained = run_here(*argv, "--json").good()
    for result in (planned, trained):
        assert [text.startswith(AVERAGED) for text in result.document["warnings"]] == [True]
        assert result.err.count(AVERAGED) == 1 and "warning: " in result.err
    figures = json.loads((out / "manifest.json").read_text())["outputs"]["checkpoint.safetensors"]["figures"]
    assert figures["warnings"] == trained.document["warnings"]
    model = out / "checkpoint.safetensors"
    made = run_here("quantize", model, "--data", data, "--out", out / "q.safetensors", "--json").good()
    assert [text.startswith(LOOPED) for text in made.document["warnings"]] == [True]
    assert made.err.count(LOOPED) == 1 and AVERAGED not in made.err
    short = words(["ttt.max_tokens=64", "eval.max_tokens=64"])
    learned = run_here("ttt", model, "--data", data, *short, "--json").good()
    assert [text.startswith(ADAPTED) for text in learned.document["warnings"]] == [True]
    assert run_here("eval", model, "--data", data, *short, "--json").good().document["warnings"] == []


def test_a_run_says_it_first_and_once(tiny_run: Path, corpus: Path, tmp_path: Path) -> None:
    argv = ["run", "--preset", "tiny", "--text", corpus, "--out", tmp_path / "run", *words(SETS)]
    planned = run_here(*argv, "--dry-run", "--json").good().document["warnings"]
    assert [any(text.startswith(start) for text in planned) for start in (AVERAGED, LOOPED, ADAPTED)] == [True] * 3
    result = run_here(*argv, "--until", "train").good()
    assert result.err.count(AVERAGED) == 1 and LOOPED not in result.err
    assert result.err.index(AVERAGED) < result.err.index("tokenize:")


def test_ranks_do_not_say_again_what_was_said(spawn: Any, tiny_run: Path, tmp_path: Path) -> None:
    argv = ["run", "--preset", "tiny", "--data", tiny_run / "data", "--out", tmp_path / "run", *words(SETS)]
    ranks = ["--until", "train", "--gpus", 2, "--device", "cpu", "--set", "train.micro_batch_tokens=512", "--json"]
    result = spawn(*argv, *ranks).good()
    assert [text.startswith(AVERAGED) for text in result.document["warnings"]] == [True]
    assert result.err.count(AVERAGED) == 1


def test_config_show_tells_them(tmp_path: Path) -> None:
    result = run_here("config", "show", "model.loop", "--preset", "tiny", *words(SETS), "--json").good()
    assert len(result.document["warnings"]) == 3 == result.err.count("warning: ")
    assert run_here("config", "show", "--preset", "tiny", "--json").good().document["warnings"] == []


def test_a_window_larger_than_the_row_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    argv = ["train", tmp_path / "empty", "--out", tmp_path / "run", "--preset", "pr1512_tiny"]
    line = run_here(*argv, "--set", "model.window.tokens=100000").refused(2, "model.window.tokens", "100,000")
    assert "train.seq_len" in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("assignment", "where"),
    [("train.qat=noise", "train.qat"), ("optim.lr_scale=by_role optim.lr_scale.head=2", "optim.lr_scale.head")],
)
def test_what_touches_nothing_is_refused_before_anything_is_done(
    tiny_run: Path, tmp_path: Path, corpus: Path, assignment: str, where: str
) -> None:
    sets, out = ["--preset", "tiny", *words(assignment.split())], tmp_path / "out"
    (tmp_path / "empty").mkdir()
    for argv in (
        ["train", tmp_path / "empty", "--out", out],
        ["run", "--text", corpus, "--out", out, "--dry-run"],
        ["sweep", "train", tiny_run / "data", "--out", out, "--dry-run"],
    ):
        run_here(*argv, *sets).refused(2, "touches nothing in this model", where)
    assert not out.exists()


def test_a_score_of_other_rotary_frequencies_may_be_packaged(copy_run: Path, tmp_path: Path) -> None:
    rope = words(["eval.rope=ntk", "eval.rope.trained=16", "package.prove=false"])
    artifact = copy_run / "compress" / "model.pgz"
    argv = ["eval", artifact, "--data", copy_run / "data", "--out", copy_run / "eval" / "score.json", *rope[:4]]
    run_here(*argv, "--quiet").good()
    result = run_here("package-submission", artifact, "--out", tmp_path / "folder", *rope).good()
    assert "scoring anew" not in result.err
