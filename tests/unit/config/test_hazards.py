"""Combinations that are known to hurt: each row of the table, there and not there, and what is refused instead."""

import dataclasses
import re

import pytest

from pgolf.config.hazards import HAZARDS, STAGES, hazards
from pgolf.config.load import preset_names, resolve
from pgolf.config.run import RunConfig
from pgolf.config.tree import flatten, to_values
from pgolf.core.errors import ConfigError

LOOP = ["model.loop=layers", "model.loop.start=0", "model.loop.end=0"]
"""A loop over the first of tiny's two layers."""
TERNARY = ["model.precision=ternary", "model.precision.group=32"]
ROUNDED = ["train.qat=straight_through", "train.qat.bits=8", "train.average=ema"]
SGD = ["ttt.method=chunk", "ttt.lr=0.001"]
GROWING = ["train.window_schedule=growing", "train.window_schedule.first=8", "train.window_schedule.last=32"]
WINDOW = ["model.window=sliding", "model.window.full_layers=1"]
BY_DOCUMENT = ["train.loader=documents", "model.documents=by_document"]
GROWN = ["model.position.reference=32", "eval.seq_len=64", "ttt.seq_len=64"]

CASES: dict[str, tuple[list[str], list[str]]] = {
    "model.value_residual, model.loop": ([*LOOP, "model.value_residual=add"], ["model.value_residual=mix"]),
    "model.embed, model.loop": (
        [*LOOP, "model.embed=factored", "model.embed.width=16"],
        ["model.embed=factored", "model.embed.width=16"],
    ),
    "model.smear.bos_id, model.documents.bos_id": (
        ["model.smear=gated", "model.smear.bos_id=-1", "model.documents=by_document"],
        ["model.smear=gated", "model.documents=by_document"],
    ),
    "model.precision, train.average": ([*TERNARY, "train.average=swa"], [*TERNARY]),
    "model.precision, optim.matrix.weight_decay": (
        [*TERNARY, "optim.matrix.weight_decay=0.01"],
        ["optim.matrix.weight_decay=0.01"],
    ),
    "train.qat, train.average": (ROUNDED, ["train.qat=crown_q", "train.average=ema"]),
    "train.qat.bits, quant": (
        [*LOOP, "train.qat=noise", "train.qat.bits=8", "quant.method=gptq"],
        [*LOOP, "train.qat=noise", "train.qat.bits=6", "quant.method=gptq"],
    ),
    "optim.matrix.cautious_decay, quant": (
        ["optim.matrix.cautious_decay=true", "optim.matrix.weight_decay=0.1"],
        ["optim.matrix.cautious_decay=true", "optim.matrix.weight_decay=0.1", "quant.method=float"],
    ),
    "optim.warmdown.min_lr, train.average": (
        ["optim.warmdown=fraction", "optim.warmdown.min_lr=0.1"],
        ["optim.warmdown=fraction", "optim.warmdown.min_lr=0.1", "train.average=ema"],
    ),
    "train.window_schedule.until": (
        [*GROWING, "train.window_schedule.until=1.0"],
        [*GROWING, "train.window_schedule.until=0.9"],
    ),
    "quant.sequential, quant.calibration_seqs, quant.calibration_seq_len": (
        ["quant.method=gptq", "quant.sequential=true"],
        ["quant.method=gptq", "quant.sequential=true", "quant.calibration_seqs=64"],
    ),
    "model.loop, quant": ([*LOOP, "model.loop.end=1"], LOOP),
    "model.position.reference, eval.seq_len, eval.method": (
        [*GROWN, "eval.seq_len=48"],
        [*GROWN, "eval.method=sliding", "eval.stride=16"],
    ),
    "model.position.reference, ttt.seq_len, ttt.method": (
        [*GROWN, "ttt.method=lora", "ttt.chunk_tokens=16"],
        [*GROWN, "model.position.reference=64", "ttt.method=lora", "ttt.chunk_tokens=16", "ttt.seq_len=48"],
    ),
    "model.position.reference, ttt.pack": ([*GROWN, *SGD, "ttt.pack=true"], [*GROWN, *SGD]),
    "model.key_offset, ttt": (
        [*SGD, "model.key_offset=partial"],
        [*SGD, "model.key_offset=partial", "ttt.optimizer=adamw"],
    ),
    "model.loop, ttt.lr": ([*LOOP, *SGD, "ttt.lr=0.01"], [*LOOP, *SGD, "ttt.lr=0.01", "ttt.train_loop=false"]),
    "model.precision, ttt.method": ([*TERNARY, "ttt.method=lora"], [*TERNARY, *SGD]),
}
"""What is set -> settings that are warned of, and near ones that are not."""


def found(*sets: str) -> list[str]:
    """What is set by each warning."""
    texts = [
        re.search(r"\((model|optim|train|quant)([^()]*); ", text) for text in hazards(resolve("tiny", [*sets]).config)
    ]
    assert all(texts)
    return [match[0][1:-2] for match in texts if match]


@pytest.mark.parametrize("case", CASES)
def test_each_is_warned_of_when_it_is_there_and_only_then(case: str) -> None:
    there, near = CASES[case]
    assert found(*there).count(case) == 1
    assert case not in found(*near)


def test_every_row_has_its_case_and_names_keys_that_there_are() -> None:
    known = [", ".join(row.keys).replace("STAGE", stage) for row in HAZARDS for stage in row.stages]
    assert sorted(known) == sorted(CASES)
    keys = {word for there, near in CASES.values() for word in flatten(resolve("tiny", there).values)}
    for row in HAZARDS:
        assert set(row.stages) <= set(STAGES) and row.effect and row.source
        for key in row.keys:
            own = key.replace("STAGE", row.stages[0])
            assert any(word == own or word.startswith(f"{own}.") for word in keys), own


@pytest.mark.parametrize(
    ("sets", "case"),
    [
        ([*TERNARY, "train.average=ema"], "model.precision, train.average"),
        (["train.qat=soft_round", "train.average=emas"], "train.qat, train.average"),
        ([*GROWN, "eval.method=document", "eval.seq_len=48"], "model.position.reference, eval.seq_len, eval.method"),
        (["model.key_offset=partial", "ttt.method=phased"], "model.key_offset, ttt"),
    ],
)
def test_relatives_are_warned_of_too(sets: list[str], case: str) -> None:
    assert case in found(*sets)


@pytest.mark.parametrize(
    "sets",
    [
        [*LOOP, "train.qat=noise", "train.qat.bits=6", "train.average=ema"],
        [*LOOP, *SGD, "ttt.lr=0.005"],
        [*LOOP, "ttt.method=chunk", "ttt.lr=1.0", "ttt.epochs=0"],
        [*LOOP, *SGD, "ttt.lr=0.1", "ttt.looped_rate=0"],
        [*LOOP, "model.loop.end=1", "train.qat=noise", "train.qat.bits=6"],
        ["train.seq_len=64", "eval.seq_len=32", "ttt.seq_len=32"],
        [*GROWN, "eval.method=document"],
        ["quant.method=by_role", "quant.attn.method=ternary", "quant.mlp.method=float", "train.average=ema"],
    ],
)
def test_what_went_well_is_not_warned_of(sets: list[str]) -> None:
    assert found(*sets) == []


@pytest.mark.parametrize("name", preset_names())
def test_presets_have_none_but_the_key_offset_that_learns(name: str) -> None:
    """PR #1512 itself had no test-time training; a preset's ttt section is there for whoever wants to try."""
    config = resolve(name).config
    assert hazards(config, STAGES[:-1]) == []
    texts = hazards(config, STAGES[-1:])
    assert len(texts) == name.startswith("pr1512") and all("key offset" in text for text in texts)


def test_the_defaults_have_none() -> None:
    assert hazards(RunConfig()) == []


def test_only_the_stages_asked_for_and_what_can_be_known() -> None:
    config = resolve("tiny", [*GROWN, "eval.seq_len=48", *TERNARY, "train.average=ema"]).config
    assert [len(hazards(config, (stage,))) for stage in STAGES] == [1, 0, 1, 0]
    assert hazards(config, ("eval",), trained=False) == []
    assert len(hazards(config)) == 2 and hazards(dataclasses.replace(RunConfig(), train=config.train)) == []


# Refused


@pytest.mark.parametrize(
    ("sets", "where", "words"),
    [
        ([*WINDOW, "model.window.tokens=65"], "model.window.tokens", ("the 64", "train.seq_len")),
        (["model.window=pattern", "model.window.tokens=65"], "model.window.tokens", ("the 64", "train.seq_len")),
        (
            [*WINDOW, "model.window.tokens=33", "model.documents=by_document", "model.documents.max_tokens=32"],
            "model.window.tokens",
            ("the 32", "model.documents.max_tokens"),
        ),
        (
            [*WINDOW, "model.window.tokens=1025", *BY_DOCUMENT, "model.documents.max_tokens=0"],
            "model.window.tokens",
            ("train.micro_batch_tokens",),
        ),
        (["train.window_schedule=growing"], "train.window_schedule.first", ("the 64", "train.seq_len")),
        (
            ["train.window_schedule=growing", "train.window_schedule.first=16", "train.window_schedule.last=128"],
            "train.window_schedule.last",
            ("128 tokens", "the 64"),
        ),
        (
            [*BY_DOCUMENT, "model.position.reference=64"],
            "model.position.reference",
            ("rotary base", "train.loader"),
        ),
    ],
)
def test_lengths_that_do_not_go_together_are_refused(sets: list[str], where: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        resolve("tiny", ["train.micro_batch_tokens=1024", "train.batch_tokens=1024", *sets])
    assert error.value.where == where
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "sets",
    [
        [*WINDOW, "model.window.tokens=64"],
        [*WINDOW, "model.window.tokens=64", "eval.seq_len=16", "eval.stride=8"],
        [*WINDOW, "model.window.tokens=200", *BY_DOCUMENT, "model.documents.max_tokens=200"],
        [*BY_DOCUMENT, "model.position.reference=1024"],
        ["train.loader=shuffled", "model.position.reference=32"],
    ],
)
def test_lengths_that_do_are_not(sets: list[str]) -> None:
    resolve("tiny", ["train.micro_batch_tokens=1024", "train.batch_tokens=1024", *sets])


def test_files_that_were_made_so_stay_readable() -> None:
    stored = to_values(resolve("tiny", [*WINDOW, "model.window.tokens=64", *LOOP]).config)
    stored["model"]["window"]["tokens"] = 5000
    assert resolve(stored=stored).config.attended_tokens == 64
    with pytest.raises(ConfigError, match="larger"):
        resolve(stored=stored).config.check_training()
    artifact = {key: stored[key] for key in ("model", "eval", "ttt")}
    assert resolve(stored=artifact).config.model.window == resolve(stored=stored).config.model.window
