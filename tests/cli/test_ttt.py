"""pgolf ttt by every method and preset: what is stored, what presets change, what is refused."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pgolf.accounting import bpb_of
from pgolf.config.load import PRESETS, preset_names, resolve
from pgolf.config.tree import flatten
from pgolf.core.evals.base import Evaluator

RECORDS = sorted(name for name in preset_names() if name.startswith("ttt_"))
SMALL = {
    "chunk": ("seq_len=64", "stride=64", "chunk_tokens=256", "train_seqs=4", "epochs=1"),
    "lora": ("seq_len=64", "chunk_tokens=32", "rank=4", "batch_seqs=8"),
    "phased": ("seq_len=64", "chunk_tokens=32", "rank=4", "phases=2", "prefix_docs=4", "base.chunk_tokens=128"),
}


def sets(*values: str) -> list[str]:
    """Options that set keys of the section."""
    return [word for value in values for word in ("--set", f"ttt.{value}")]


def small(method: str) -> list[str]:
    """Options that make a method fit a tiny stream."""
    return sets(*SMALL[method], *(("base.train_seqs=2",) if method == "phased" else ()))


def test_the_records_presets_are_there() -> None:
    wanted = {"pr549", "pr757", "pr1493", "pr1610", "pr1626", "pr1855"}
    assert {name.removeprefix("ttt_") for name in RECORDS} == wanted


@pytest.mark.parametrize("name", RECORDS)
def test_a_records_preset_sets_test_time_training_and_nothing_else(name: str) -> None:
    layer = tomllib.loads((PRESETS / f"{name}.toml").read_text())
    assert set(layer) <= {"description", "extends", "ttt"}
    over = resolve(name, stored=resolve("leader_tiny").values, stored_name="stored")
    changed = {key for key, origin in over.origins.items() if origin.startswith("preset")}
    assert changed and all(key.startswith("ttt.") for key in changed)
    assert over.config.model == resolve("leader_tiny").config.model
    left = {key for key, origin in over.origins.items() if key.startswith("ttt.") and origin == "stored"}
    evaluator = {f"ttt.{field.name}" for field in dataclasses.fields(Evaluator)} - {"ttt.seq_len"}
    of_scoring = {f"{key}.kind" for key in evaluator} | evaluator
    assert left <= of_scoring | {"ttt.bos_id", "ttt.targets"}


@pytest.mark.parametrize("record", ["pr1493", "pr1855"])
def test_a_records_preset_is_what_the_records_own_preset_has(record: str) -> None:
    assert resolve(record).config.ttt == resolve(f"ttt_{record}").config.ttt


@pytest.mark.parametrize("name", RECORDS)
def test_a_tiny_model_is_scored_with_a_records_settings(pgolf: Any, tiny_run: Path, name: str) -> None:
    method = resolve(name).values["ttt"]["method"]
    argv = ["ttt", tiny_run / "compress" / "model.pgz", "--data", tiny_run / "data", "--preset", name, "--quiet"]
    document = pgolf(*argv, *small(method), "--set", "ttt.max_tokens=1500", "--json").good().document
    still = pgolf("eval", *argv[1:4], "--quiet", "--set", "eval.method=plain", "--json").good().document
    assert (document["stage"], document["method"]["name"]) == ("ttt", method)
    assert document["score"]["tokens"] == min(1500, still["score"]["tokens"])
    assert abs(bpb_of(document["score"]) - bpb_of(still["score"])) < 0.5
    settings, record = flatten(document["method"]), flatten(resolve(name).values["ttt"])
    fitted = {word.partition("=")[0] for word in SMALL[method]} | {"method", "max_tokens", "base.train_seqs"}
    assert {key: value for key, value in record.items() if key not in fitted}.items() <= settings.items()


@pytest.mark.parametrize("method", SMALL)
def test_a_score_is_stored_and_reused_until_a_setting_changes(
    pgolf: Any, tiny_run: Path, tmp_path: Path, method: str
) -> None:
    argv = ["ttt", tiny_run / "compress" / "model.pgz", "--data", tiny_run / "data", "--out", tmp_path / "score.json"]
    argv += ["--quiet", "--json", *sets(f"method={method}", "max_tokens=600"), *small(method)]
    first, second = (pgolf(*argv).good().document for _ in range(2))
    assert (first["fresh"], second["fresh"]) == (False, True)
    assert first["score"] == second["score"]
    faster = pgolf(*argv, "--set", "ttt.lr=0.1").good().document
    assert not faster["fresh"] and faster["score"] != first["score"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (("method=lora", "targets=q,w"), ("ttt.targets", "'w' can have no adapter")),
        (("method=lora", "chunk_tokens=4096"), ("ttt.chunk_tokens",)),
        (("method=phased", "phases=0"), ("ttt.phases",)),
        (("method=phased", "base.chunk_tokens=8"), ("ttt.base.chunk_tokens",)),
        (("method=phased", "base.optimizer.momentum=2"), ("ttt.base.optimizer",)),
        (("adapts=q,w",), ("ttt.adapts",)),
        (("optimizer=lion",), ("ttt.optimizer.kind", "muon")),
        (("adapts=head",), ("nothing of this model adapts",)),
        (("freeze_blocks=9", "adapts=q"), ("nothing of this model adapts",)),
    ],
)
def test_impossible_settings_are_refused(pgolf: Any, tiny_run: Path, values: tuple[str, ...], words: Any) -> None:
    argv = ["ttt", tiny_run / "compress" / "model.pgz", "--data", tiny_run / "data", "--quiet"]
    pgolf(*argv, *sets(*values)).refused(2, *words)


@pytest.mark.parametrize("method", ["lora", "phased"])
def test_a_stream_without_documents_is_refused(pgolf: Any, tiny_run: Path, method: str) -> None:
    argv = ["ttt", tiny_run / "compress" / "model.pgz", "--data", tiny_run / "data", "--quiet"]
    chosen = sets(f"method={method}", "bos_id=0")
    pgolf(*argv, *small(method), *chosen).refused(3, "no document begins", "ttt.bos_id")
