"""pgolf eval end to end: ranks, interruptions, budgets, comparison, what every target cost, and bad input."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import run_apart, run_here, stray_files

from pgolf.catalog import CATALOG
from pgolf.core.bpb import ByteTable
from pgolf.core.shards import write_shard
from pgolf.stages import evaluate
from pgolf.stages.compare import SLOTS
from pgolf.stages.eval_positions import load_positions

DYING = """
import os, sys
from pgolf.cli.main import main
from pgolf.stages import eval_watch
class Dying(eval_watch.ScoringWatch):
    count = 0
    def advanced(self, ledger):
        self.saved_s = -100.0
        super().advanced(ledger)
        self.count += 1
        if self.count == 4:
            os.kill(os.getpid(), 9)
from pgolf.stages import evaluate
evaluate.ScoringWatch = Dying
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def argv(tiny_run: Path) -> list[object]:
    """The tiny artifact and its data."""
    return [tiny_run / "compress" / "model.pgz", "--data", tiny_run / "data", "--quiet"]


def scored(*argv: object) -> dict[str, Any]:
    """The score document of a command."""
    return run_here("eval", *argv, "--json").good().document


def dataset_of(tiny_run: Path, folder: Path, tokens: list[int] | np.ndarray) -> Path:
    """Published shards with this validation stream."""
    folder.mkdir()
    write_shard(folder / "fineweb_val_000000.bin", np.asarray(tokens, np.uint16))
    shutil.copy(tiny_run / "data" / "tokenizer.model", folder / "tokenizer.model")
    return folder


def val_tokens(tiny_run: Path) -> np.ndarray:
    """The validation stream."""
    return np.fromfile(tiny_run / "data" / "fineweb_val_000000.bin", "<u2", offset=1024)


EVERYTHING = (
    *("eval.slot=adamw", "eval.slot.steps=2", "eval.bias=online", "eval.bias.chunk_tokens=512", "eval.cache=exact"),
    *("eval.mixer=hedge", "eval.mixer.chunk_tokens=700", "eval.tilt=token", "eval.tilt.lowest=3"),
)


@pytest.mark.parametrize(
    "sets",
    [("eval.method=document",), EVERYTHING, ("model.documents=by_document",)],
    ids=["documents", "adjusters", "another use of the weights"],
)
def test_two_ranks_give_the_score_of_one(argv: list[object], tmp_path: Path, sets: tuple[str, ...]) -> None:
    words = [word for text in ("eval.max_tokens=3000", *sets) for word in ("--set", text)]
    one = scored(*argv, *words, "--positions", tmp_path / "one.safetensors")
    files = "--positions", tmp_path / "two.safetensors", "--out", tmp_path / "score.json"
    two = scored(*argv, *words, "--gpus", 2, "--device", "cpu", *files)
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert one["score"] == two["score"]
    assert one["warnings"] == two["warnings"] and len(one["warnings"]) == any("model." in text for text in sets)
    first, second = (load_positions(tmp_path / f"{name}.safetensors").nats for name in ("one", "two"))
    assert first.tobytes() == second.tobytes()
    assert json.loads((tmp_path / "score.json").read_text())["score"] == two["score"]


def test_a_score_of_two_ranks_has_the_warnings_of_one(argv: list[object], tiny_run: Path, tmp_path: Path) -> None:
    data = dataset_of(tiny_run, tmp_path / "shards", val_tokens(tiny_run)[:700])
    window = ("model.window=sliding", "model.window.full_layers=1", "model.window.tokens=8", "eval.rope=yarn")
    words = ["--set", "eval.rope.trained=16", *(word for text in window for word in ("--set", text))]
    line = ["eval", argv[0], "--data", data, "--quiet", "--json", *words]
    one, two = run_here(*line).good(), run_here(*line, "--gpus", 2, "--device", "cpu").good()
    assert sorted(one.document["warnings"]) == sorted(two.document["warnings"])
    for text in ("model.window.kind none -> sliding", "rope -> yarn", "has no manifest"):
        (warning,) = (one for one in two.document["warnings"] if text in one)
        assert two.err.count(warning) == 1
    assert one.document["score"] == two.document["score"]


@pytest.mark.parametrize(
    "sets",
    [("method=lora",), ("method=phased", "phases=2", "prefix_docs=2", "base.chunk_tokens=128", "base.train_seqs=2")],
    ids=["lora", "phased"],
)
def test_test_time_training_on_two_ranks_gives_the_score_of_one(
    argv: list[object], tmp_path: Path, sets: tuple[str, ...]
) -> None:
    small = ("seq_len=64", "rank=4", "batch_seqs=2", "max_tokens=8000")
    words = [word for text in (*small, *sets) for word in ("--set", f"ttt.{text}")]
    nats, documents = [], []
    for name, more in (("one", []), ("two", ["--gpus", 2, "--device", "cpu"])):
        file = tmp_path / f"{name}.safetensors"
        documents.append(run_here("ttt", *argv, *words, *more, "--positions", file, "--json").good().document)
        nats.append(load_positions(file).nats)
    np.testing.assert_allclose(nats[1], nats[0], rtol=0, atol=1e-5)
    assert [one["world_size"] for one in documents] == [1, 2]
    assert documents[0]["learned"] == documents[1]["learned"]
    assert documents[0]["learned"]["adapter_steps"] > 0
    assert (documents[0]["learned"]["phases"] == 2) == ("method=phased" in sets)
    assert all(one["clock"]["adaptation_stopped_at"] is None and one["clock"]["budget_s"] == 600 for one in documents)


def test_test_time_training_that_learns_nothing_says_so(argv: list[object]) -> None:
    words = [*argv, "--json", "--set", "ttt.max_tokens=900"]
    found = run_here("ttt", *words, "--set", "ttt.chunk_tokens=100000").good().document
    assert found["learned"] == {"weight_steps": 0, "phases": 0, "adapter_steps": 0}
    assert any("nothing was learned" in text and "ttt.chunk_tokens" in text for text in found["warnings"])
    sets = ("method=phased", "seq_len=64", "rank=4")
    found = run_here("ttt", *words, *(word for one in sets for word in ("--set", f"ttt.{one}"))).good().document
    assert found["learned"]["adapter_steps"] > 0 == found["learned"]["phases"]
    assert any("learned in 0 of 3 phases" in text for text in found["warnings"])


@pytest.mark.fault(row="F2")
def test_a_killed_evaluation_goes_on_where_it_was(argv: list[object], tmp_path: Path) -> None:
    words = ["--set", "eval.batch_seqs=8", "--out", tmp_path / "score.json"]
    line = [sys.executable, "-c", DYING, "eval", *map(str, [*argv, *words])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run(line, env=environment, capture_output=True, timeout=120).returncode == -9
    ledger = tmp_path / "score.json.ledger"
    assert ledger.is_file() and not (tmp_path / "score.json").exists()
    saved = ledger.read_bytes()
    found = scored(*argv, *words)
    assert found["clock"]["resumed_at"] == 64 + 31 * 32
    assert found["score"] == scored(*argv, "--set", "eval.batch_seqs=8")["score"]
    assert not ledger.exists() and not stray_files(tmp_path)
    # The ledger of an evaluation by other settings is left alone, and not used.
    ledger.write_bytes(saved)
    other = scored(*argv, "--set", "eval.stride=16", "--out", tmp_path / "score.json")
    assert other["clock"]["resumed_at"] == 0


@pytest.mark.parametrize("change", ["processor", "torch"])
def test_a_killed_evaluation_starts_over_on_another_machine(
    argv: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    words = ["--set", "eval.batch_seqs=8", "--set", "eval.max_tokens=3000", "--out", tmp_path / "score.json"]
    line = [sys.executable, "-c", DYING, "eval", *map(str, [*argv, *words])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run(line, env=environment, capture_output=True, timeout=120).returncode == -9
    assert (tmp_path / "score.json.ledger").is_file()
    if change == "processor":
        monkeypatch.setattr(evaluate, "processor", lambda device: "another")
    else:
        monkeypatch.setattr(torch, "__version__", "another")
    assert scored(*argv, *words)["clock"]["resumed_at"] == 0


def test_a_pass_over_its_budget_is_written_and_fails(argv: list[object], tmp_path: Path) -> None:
    out = tmp_path / "score.json"
    words = [*argv, "--out", out, "--set", "eval.budget_seconds=0.001"]
    line = run_here("eval", *words).refused(4, "by the strict clock, the budget is 0.001 s", "budget_seconds=0")
    assert "--clock core" in line
    document = json.loads(out.read_text())
    assert document["score"]["bpb"] > 0 and document["clock"]["kept"] is False
    assert document["clock"]["strict_s"] > document["clock"]["core_s"] > 0.001
    run_here("eval", *words, "--clock", "core").refused(4, "by the core clock")
    run_here("eval", *argv, "--clock", "wall").refused(2, "no clock", "strict and core")
    unlimited = scored(*argv, "--set", "eval.budget_seconds=0")
    assert unlimited["clock"]["kept"] is True


def test_the_strict_clock_begins_with_the_process(argv: list[object]) -> None:
    document = json.loads(run_apart("eval", *argv, "--json", "--set", "eval.max_tokens=64").good().out)
    clock, seconds = document["clock"], document["seconds"]
    assert clock["strict_s"] > clock["core_s"]
    assert seconds["load"] > 0.2, "importing torch alone takes longer"
    assert seconds["total"] == pytest.approx(clock["strict_s"], abs=0.01)
    assert {"load", "prepare", "score", "total"} == set(seconds)


def test_a_partial_pass_has_no_bpb_and_is_shown_as_partial(argv: list[object]) -> None:
    document = scored(*argv, "--set", "eval.max_tokens=500")
    assert "bpb" not in document["score"] and document["partial"] is True
    sums = document["score"]
    assert sums["bpb_partial"] == sums["nats"] / (math.log(2) * sums["bytes"])
    shown = run_here("eval", *argv, "--set", "eval.max_tokens=500").good().out
    assert "BPB, partial" in shown and "up to 500" in shown


def test_every_method_is_compared(argv: list[object], tiny_run: Path, tmp_path: Path) -> None:
    plan = run_here("eval", *argv, "--method", "all", "--dry-run", "--json").good().document["ways"]
    adjusters = sum(len(CATALOG[slot]) - 1 for slot in SLOTS.values())
    assert len(plan) == len(CATALOG["EvalMethod"]) + adjusters + len(CATALOG["TttMethod"])
    out = tmp_path / "all.json"
    words = [*argv, "--method", "all", "--set", "eval.max_tokens=1500"]
    document = run_here("eval", *words, "--out", out, "--json").good().document
    assert json.loads(out.read_text()) == document
    rows = {row["label"]: row for row in document["rows"]}
    assert list(rows) == plan and rows["plain"]["gain"] == 0.0
    good = {label: row for label, row in rows.items() if "error" not in row}
    assert {"sliding", "document", "sliding + tilt token"} | {f"ttt {name}" for name in CATALOG["TttMethod"]} <= set(
        good
    )
    share = 1500 / (len(val_tokens(tiny_run)) - 1)
    assert document["partial"] is True and document["share"] == share
    for row in good.values():
        assert "bpb" not in row and (row["targets"], row["share"]) == (1500, share)
        assert row["bpb_partial"] == pytest.approx(rows["plain"]["bpb_partial"] - row["gain"], abs=1e-6)
        assert row["seconds"] > 0 and row["clock"]["kept"] and row["clock"]["adaptation_stopped_at"] is None
        assert row["clock"]["strict_s"] > row["clock"]["core_s"]
    assert rows["sliding"]["gain"] > 0 and not rows["sliding"]["adaptive"]
    assert rows["document"]["document_independent"] and rows["sliding + cache exact"]["adaptive"]
    shown = run_here("eval", *words).good().out
    assert "sliding + tilt token" in shown and "BPB, partial" in shown and f"the first {share:.1%}" in shown


def test_a_comparison_is_judged_by_each_methods_budget(
    argv: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pgolf.stages import compare

    def some(resolved: Any, only: Any = ()) -> list[compare.Way]:
        return [way for way in compare.every_way(resolved) if way.label in ("plain", "ttt chunk")]

    monkeypatch.setattr(compare, "planned_ways", some)
    out = tmp_path / "all.json"
    words = [*argv, "--method", "all", "--out", out, "--set", "eval.max_tokens=1500", "--set", "ttt.chunk_tokens=64"]
    tight = [*words, "--set", "eval.budget_seconds=0.0001"]
    line = run_here("eval", *tight).refused(4, "by the strict clock 2 of 2 methods", "plain", "of 0.0001")
    assert "ttt chunk" in line and "--clock core" in line
    rows = json.loads(out.read_text())["rows"]
    assert [row["clock"]["kept"] for row in rows] == [False, False]
    assert rows[0]["clock"]["adaptation_stopped_at"] is None and 0 < rows[1]["clock"]["adaptation_stopped_at"] < 1500
    result = run_here("eval", *tight, "--clock", "core")
    assert "--clock" not in result.refused(4, "by the core clock 2 of 2 methods")
    assert result.out.count("over its budget") == 2 and "no adaptation after" in result.out
    run_here("eval", *words, "--set", "eval.budget_seconds=0").good()
    # What is set for test-time training itself stays.
    own = ["--set", "ttt.budget_seconds=0", "--set", "ttt.max_tokens=400"]
    shown = run_here("eval", *tight, *own)
    shown.refused(4, "1 of 2 methods")
    assert "on 400 targets" in shown.out
    assert json.loads(out.read_text())["rows"][1]["gain"] is None


def test_one_method_by_name(argv: list[object]) -> None:
    assert scored(*argv, "--method", "plain")["method"]["name"] == "plain"
    run_here("eval", *argv, "--method", "magic").refused(2, "magic")
    run_here("eval", *argv, "--method", "all", "--positions", "x.safetensors").refused(2, "name one method")


def test_what_every_target_cost(argv: list[object], tiny_run: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "score.json", tmp_path / "cost.safetensors"
    document = scored(*argv, "--out", out, "--positions", file)
    found = load_positions(file)
    assert float(found.nats.sum(dtype=np.float64)) == document["score"]["nats"]
    assert int(found.bytes.sum()) == document["score"]["bytes"]
    assert found.documents.tolist() == np.flatnonzero(val_tokens(tiny_run)[:-1] == 1).tolist()
    assert scored(*argv, "--out", out, "--positions", file)["fresh"] is True
    file.unlink()
    assert scored(*argv, "--out", out, "--positions", file)["fresh"] is False
    assert load_positions(file).nats.tobytes() == found.nats.tobytes()
    plotted = run_here("plot", file, "--out", tmp_path / "cost.png", "--json").good().document
    (row,) = plotted["files"]
    for over in ("position", "length"):
        assert sum(part["tokens"] for part in row[over]) == len(found.nats) - found.documents[0]
    assert row["position"][0]["low"] == 1 and row["position"][0]["tokens"] == len(found.documents)
    assert (tmp_path / "cost.png").read_bytes()[:4] == b"\x89PNG"
    assert "place in the document" in run_here("plot", file).good().out
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    run_here("plot", file).refused(3, "SHA-256")
    run_here("plot", tiny_run / "train" / "checkpoint.safetensors").refused(3, "not a pgolf.positions")


def test_a_loop_with_more_and_fewer_passes(tiny_run: Path, tmp_path: Path) -> None:
    parts = ["model.skips=none", "model.loop=layers", "model.loop.start=0", "model.loop.end=1", "train.iterations=4"]
    sets = [word for text in [*parts, "model.loop.extra_passes=1"] for word in ("--set", text)]
    data = tiny_run / "data"
    run_here("train", data, "--out", tmp_path / "run", "--preset", "tiny", "--quiet", *sets).good()
    model = tmp_path / "run" / "checkpoint.safetensors"
    words = [model, "--data", data, "--quiet", "--set", "eval.max_tokens=512"]
    found = {passes: scored(*words, "--set", f"eval.num_loops={passes}") for passes in range(4)}
    values = [found[passes]["score"]["bpb_partial"] for passes in range(4)]
    assert values[0] == values[2] and len(set(values)) == 3
    assert found[0]["model"]["overridden"] == found[2]["model"]["overridden"] == []
    assert found[3]["model"]["overridden"] == ["model.loop.extra_passes 1 -> 2"]
    for passes, text in ((1, "model.loop.extra_passes 1 -> 0"), (3, "model.loop.extra_passes 1 -> 2")):
        assert found[passes]["warnings"] == [f"not the model as it was trained: {text}; the score is marked"]
    assert found[0]["warnings"] == found[2]["warnings"] == []
    changed = scored(*words, "--set", "model.loop.extra_passes=2")
    assert changed["score"] == found[3]["score"]


def test_a_loop_is_needed_to_go_through_it(argv: list[object], tiny_run: Path, tmp_path: Path) -> None:
    run_here("eval", *argv, "--set", "eval.num_loops=2").refused(2, "has no loop")
    words = ["package-submission", argv[0], "--out", tmp_path / "out", "--set", "eval.num_loops=2", "--quiet"]
    run_here(*words).refused(2, "as it was trained", "eval.num_loops=0")


# Bad input


def test_bytes_are_those_of_the_manifest(
    argv: list[object], tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every run: charges that were doubled would halve the score."""
    right = json.loads((tiny_run / "data" / "manifest.json").read_text())["splits"]["val"]["charged_bytes"]
    assert scored(*argv)["score"]["bytes"] == right
    data = shutil.copytree(tiny_run / "data", tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    words = ["eval", argv[0], "--data", data, "--quiet"]
    for noted, code in ((right + 1, 3), (0, 3), (None, 0), ("many", 3)):
        manifest["splits"]["val"]["charged_bytes"] = noted
        (data / "manifest.json").write_text(json.dumps(manifest))
        found = run_here(*words)
        if code:
            found.refused(code, "garbles" if noted == "many" else f"is charged {right:,} bytes, its manifest says")
        else:
            found.good()
    charges = ByteTable.charges
    monkeypatch.setattr(ByteTable, "charges", lambda self, ids: 2 * charges(self, ids))
    run_here("eval", *argv).refused(3, f"is charged {2 * right:,} bytes", f"says {right:,}")
    run_here("eval", *argv, "--set", "eval.max_tokens=100").refused(3, "its manifest says")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("slot-scored", "Tuned to the very targets that are scored (PR #1176, #1229, #1240). It breaks: (a) a score"),
        ("hash-backoff", "It breaks: (b) probabilities of all tokens sum to at most 1"),
        ("two-pass", "scores all again"),
        ("prequant-ttt", "It breaks: (e) no validation data before evaluation"),
    ],
)
def test_methods_that_only_the_audit_has_are_refused_with_why(argv: list[object], name: str, why: str) -> None:
    for words in (("--method", name), ("--set", f"eval.method={name}")):
        run_here("eval", *argv, *words).refused(4, f"{name} gets no score", why, "docs/rules.md")
    run_here("ttt", *argv, "--method", name).refused(4, f"{name} gets no score", "(ttt.method)")
    run_here("eval", *argv, "--method", f"{name}x").refused(2, "unknown method")


def test_a_cache_too_large_is_said_before_scoring(argv: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    from pgolf.stages import eval_cost

    monkeypatch.setattr(eval_cost, "available_bytes", lambda: 1000)
    warnings = scored(*argv, "--set", "eval.cache=exact", "--set", "eval.max_tokens=200")["warnings"]
    assert len(warnings) == 1 and "over 200 targets need about" in warnings[0]
    assert scored(*argv, "--set", "eval.max_tokens=200")["warnings"] == []


def test_shards_of_another_tokenizer(argv: list[object], tiny_run: Path, tmp_path: Path, corpus: Path) -> None:
    words = ["--preset", "tiny", "--set", "tokenize.vocab_size=400", "--quiet"]
    run_here("tokenize", corpus, "--out", tmp_path / "data", *words).good()
    run_here("eval", argv[0], "--data", tmp_path / "data", "--quiet").refused(3, "tokenizer is not the one")


def test_windows_longer_than_training_and_than_the_data(argv: list[object], tiny_run: Path, tmp_path: Path) -> None:
    data = dataset_of(tiny_run, tmp_path / "data", val_tokens(tiny_run)[:700])
    words = [argv[0], "--data", data, "--quiet", "--method", "plain"]
    long = scored(*words, "--set", "eval.seq_len=5000")
    assert long["score"]["tokens"] == 699
    assert long["score"]["nats"] == pytest.approx(
        scored(*words, "--set", "eval.seq_len=699")["score"]["nats"], rel=1e-5
    )
    stretched = scored(*words, "--set", "eval.seq_len=699", "--set", "eval.rope=ntk", "--set", "eval.rope.trained=64")
    assert stretched["score"]["nats"] != long["score"]["nats"] and stretched["score"]["tokens"] == 699


@pytest.mark.parametrize(
    ("rope", "mark"),
    [
        (["eval.rope=ntk", "eval.rope.trained=16"], "model.position.reference 0 -> 16"),
        (["eval.rope=yarn", "eval.rope.trained=16"], "model.position.kind rope -> yarn"),
    ],
)
def test_other_rotary_frequencies_are_marked_and_warned_of_once(
    argv: list[object], tiny_run: Path, tmp_path: Path, rope: list[str], mark: str
) -> None:
    sets = [word for text in ["eval.max_tokens=512", *rope] for word in ("--set", text)]
    result = run_here("eval", *argv, *sets, "--out", tmp_path / "score.json", "--json").good()
    (warning,) = result.document["warnings"]
    assert warning == f"not the model as it was trained: {mark}; the score is marked"
    assert result.err.count("not the model as it was trained") == 1
    assert result.document["model"]["overridden"] == [mark]
    assert mark in run_here("eval", *argv, *sets, "--out", tmp_path / "score.json").good().out
    plain = scored(*argv, "--set", "eval.max_tokens=512")
    assert plain["model"]["overridden"] == plain["warnings"] == []
    assert plain["score"]["nats"] != result.document["score"]["nats"]


def test_a_length_whose_rotary_base_is_another_is_warned_of(tiny_run: Path, tmp_path: Path) -> None:
    data, out = tiny_run / "data", tmp_path / "run"
    sets = ["--set", "model.position.reference=32", "--set", "train.iterations=2"]
    run_here("train", data, "--out", out, "--preset", "tiny", "--quiet", *sets).good()
    words = [out / "checkpoint.safetensors", "--data", data, "--quiet", "--set", "eval.max_tokens=512"]
    words += ["--method", "plain"]
    assert scored(*words)["warnings"] == []
    (warning,) = scored(*words, "--set", "eval.seq_len=48")["warnings"]
    assert "rotary base" in warning and "eval.seq_len" in warning


def test_documents_of_every_kind(argv: list[object], tiny_run: Path, tmp_path: Path) -> None:
    text = val_tokens(tiny_run)
    body = text[text != 1]
    whole = text[text.tolist().index(1) :][:200]
    stream = np.concatenate([whole, body[:600], [1], [1], [1, 7], [1], body[600:640]])
    data = dataset_of(tiny_run, tmp_path / "data", stream)
    words = [argv[0], "--data", data, "--quiet", "--method", "document"]
    found = scored(*words)
    assert found["score"]["tokens"] == len(stream) - 1 and found["document_independent"]
    file = tmp_path / "cost.safetensors"
    scored(*words, "--positions", file)
    cost = load_positions(file)
    lengths = np.diff(np.append(cost.documents, len(cost.nats))).tolist()
    assert lengths[-4:] == [1, 1, 2, 40], "an empty document has one target, the BOS that ends it"
    assert max(lengths) > 64 and np.isfinite(cost.nats).all()


@pytest.mark.parametrize("tokens", [[1], [5]])
def test_a_stream_of_one_token(argv: list[object], tiny_run: Path, tmp_path: Path, tokens: list[int]) -> None:
    data = dataset_of(tiny_run, tmp_path / "data", tokens)
    for method in CATALOG["EvalMethod"]:
        run_here("eval", argv[0], "--data", data, "--quiet", "--method", method).refused(3, "fewer than two tokens")


def test_a_budget_too_small_for_a_plain_pass(argv: list[object]) -> None:
    words = [*argv, "--method", "plain", "--set", "eval.batch_seqs=1", "--set", "eval.budget_seconds=0.01"]
    result = run_here("eval", *words, "--json")
    assert result.code == 4 and "the budget is 0.01 s" in result.err
    assert result.document["score"]["bpb"] > 0 and result.document["clock"]["kept"] is False
    assert any("its budget is 0.01 s" in text for text in result.document["warnings"])


def test_test_time_training_scores_on_when_time_is_up(argv: list[object]) -> None:
    words = [*argv, "--json", "--set", "ttt.budget_seconds=0.01"]
    result = run_here("ttt", *words)
    assert result.code == 4
    stopped = result.document["clock"]["adaptation_stopped_at"]
    assert 0 < stopped < result.document["score"]["tokens"]
    assert any("no adaptation after" in text for text in result.document["warnings"])
