"""Tokenizers that others got wrong: each gives the right number of bytes or is refused, never a wrong total."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spm_models
from harness import Result, run_here, stray_files
from spm_models import edited, model, sentences

from pgolf.core.bpb import byte_table, load_tokenizer
from pgolf.core.errors import InputError
from pgolf.corpus.tokenizer import MAX_TOKENIZER, read_tokenizer
from pgolf.dataset import BOS, open_dataset

OPERATORS = ("\ue001", "\ue002", "\ue003", "\ue004")
SPACE = "\u2581"
NASTY = (
    "plain words, nothing else",
    "  two  spaces   before and behind  ",
    "lines\n\nand\ttabs\r\nand a\u00a0no-break\u3000space",
    "\u200bzero\u200bwidth\u200b \u200b",
    "\u4e2d\u6587 \U0001f600 caf\u00e9 cafe\u0301 \ufb01ne \u2122 \u2026 \u00bd \uff21",
    "a literal \u2581 mark",
    "controls \0 \x01 \x1b[31m \x7f end",
    "MiXeD Case ONE iPhone \u0130stanbul stra\u00dfe",
    "12345 + 67.89 = 0",
)
ENGLISH = tuple(f"{one} {two}" for one, two in zip(sentences()[:200:2], sentences()[1:200:2]))


def tokenized(folder: Path, tokenizer: bytes, texts: tuple[str, ...] = NASTY, *options: str) -> Result:
    """`pgolf tokenize` over some documents with a model file; the first two are for validation."""
    (folder / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "some.model").write_bytes(tokenizer)
    sets = ("--set", "tokenize.split=first", "--set", "tokenize.val_docs=2", *options)
    return run_here(
        "tokenize",
        folder / "docs.jsonl",
        "--out",
        folder / "out",
        "--tokenizer",
        folder / "some.model",
        "--quiet",
        *sets,
    )


def refused(folder: Path, result: Result, code: int, *words: str) -> None:
    """One clear line, and no dataset."""
    result.refused(code, *words)
    assert not (folder / "out" / "manifest.json").exists()
    assert not stray_files(folder)
    assert not list((folder / "out").glob("*.bin"))


def documents(folder: Path) -> list[list[int]]:
    """The ids of every document of a dataset, without BOS."""
    dataset = open_dataset(folder / "out")
    found: list[list[int]] = []
    for split in ("val", "train"):
        for shard in dataset.split(split):
            for value in shard.tolist():
                if value == BOS:
                    found.append([])
                else:
                    found[-1].append(value)
    return found


def totals(folder: Path) -> dict[str, int]:
    """Sums over both splits of a manifest."""
    splits = json.loads((folder / "out" / "manifest.json").read_text())["splits"].values()
    keys = ("raw_bytes", "normalised_bytes", "table_bytes", "charged_bytes")
    return {key: sum(split[key] for split in splits) for key in keys}


def normalised(content: bytes, text: str) -> int:
    """UTF-8 bytes that the normaliser leaves of a text, a space put before or behind it not counted."""
    processor = load_tokenizer(content, "test")
    normal = processor.normalize(text).replace(SPACE, " ")
    extra = normal and processor.normalize("a") != "a"
    return len(normal.encode()) - bool(extra)


def drop(piece: str, content: bytes) -> bytes:
    """A model without one of its pieces."""

    def change(message: Any) -> None:
        kept = [entry for entry in message.pieces if entry.piece != piece]
        assert len(kept) == len(message.pieces) - 1
        del message.pieces[:]
        message.pieces.extend(kept)

    return edited(content, change)


@pytest.fixture(autouse=True, scope="module")
def protobuf() -> None:
    """Editing models needs the message classes."""
    pytest.importorskip("google.protobuf")


# Spaces


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_no_bare_space_piece_as_in_issue_897(tmp_path: Path, kind: str) -> None:
    content = drop(SPACE, model(model_type=kind))
    processor = load_tokenizer(content, "test")
    fallback = processor.encode("\u2603 \u2603", out_type=str)
    assert fallback[3:6] == ["<0xE2>", "<0x96>", "<0x81>"], "the mistake: a space would be charged three bytes"
    refused(tmp_path, tokenized(tmp_path, content), 3, "no bare space piece", "#897")


def test_a_vocabulary_chosen_by_hand_without_the_bare_space_piece(tmp_path: Path) -> None:
    def choose(message: Any) -> None:
        kinds = message.ModelProto.SentencePiece if hasattr(message, "ModelProto") else type(message.pieces[0])
        special = [piece for piece in message.pieces if piece.type != kinds.NORMAL]
        whole = [piece for piece in message.pieces if piece.type == kinds.NORMAL and piece.piece != SPACE]
        chosen = sorted(whole, key=lambda piece: (-len(piece.piece), piece.piece))[:150]
        kept = [type(piece).FromString(piece.SerializeToString()) for piece in (*special, *chosen)]
        del message.pieces[:]
        message.pieces.extend(kept)

    content = edited(model(model_type="unigram", vocab_size=600), choose)
    refused(tmp_path, tokenized(tmp_path, content), 3, "no bare space piece", "#897")


def twice_charged(processor: Any, ids: list[int]) -> int:
    """The mistake of issue #1719: the space in the length of the piece and again for the mark."""
    pieces = [processor.id_to_piece(index) for index in ids]
    lengths = [1 if processor.is_byte(i) else len(p.replace(SPACE, " ").encode()) for i, p in zip(ids, pieces)]
    return sum(lengths) + sum(piece.startswith(SPACE) for piece in pieces)


def one_by_one(processor: Any, ids: list[int]) -> int:
    """The mistake of nanochat #693: every id decoded alone, which loses spaces and makes U+FFFD of lone bytes."""
    return sum(len(processor.decode([index]).encode()) for index in ids)


def three_a_byte(processor: Any, ids: list[int]) -> int:
    """The mistake of PR #1143: byte pieces charged as the U+FFFD they decode to."""
    table = byte_table(processor, processor.vocab_size())
    charges = table.charges(np.array([BOS, *ids]))
    return int(charges.sum()) + 2 * sum(processor.is_byte(index) for index in ids)


def test_a_leading_space_is_counted_once(tmp_path: Path) -> None:
    content = model()
    tokenized(tmp_path, content, ENGLISH).good()
    processor, expected = load_tokenizer(content, "test"), sum(normalised(content, text) for text in ENGLISH)
    found = totals(tmp_path)
    assert found["charged_bytes"] == found["table_bytes"] == found["normalised_bytes"] == expected
    wrong = sum(twice_charged(processor, ids) for ids in documents(tmp_path))
    assert 1.1 < wrong / expected < 1.25


def test_ids_decoded_one_by_one_give_another_total(tmp_path: Path) -> None:
    content, texts = model(), (*ENGLISH[:20], "\u4e2d\u6587 \U0001f600 \u2603")
    tokenized(tmp_path, content, texts).good()
    processor, expected = load_tokenizer(content, "test"), sum(normalised(content, text) for text in texts)
    assert totals(tmp_path)["charged_bytes"] == expected
    assert sum(one_by_one(processor, ids) for ids in documents(tmp_path)) != expected
    rare = processor.encode("\u2603\U0001f600")
    assert (one_by_one(processor, rare), len("\u2603\U0001f600".encode())) == (21, 7)


def test_a_byte_piece_is_one_byte(tmp_path: Path) -> None:
    content, texts = (
        model(),
        ("\u4e2d\u6587\U0001f600 \u2603\u2603", "x \u2603", *ENGLISH[:3], "\u2192\u21d2 \U0001f4a9"),
    )
    tokenized(tmp_path, content, texts).good()
    processor, expected = load_tokenizer(content, "test"), sum(normalised(content, text) for text in texts)
    assert totals(tmp_path)["charged_bytes"] == expected
    table = byte_table(processor, processor.vocab_size())
    marks = [index for index in range(processor.vocab_size()) if processor.is_byte(index)]
    assert len(marks) == 256
    assert set(table.base[marks]) == {1}
    assert sum(three_a_byte(processor, ids) for ids in documents(tmp_path)) > 1.04 * expected


def test_the_published_totals_and_the_mistakes(shared: Path) -> None:
    from pgolf.core.shards import open_shard

    processor = load_tokenizer((shared / "data/tokenizers/fineweb_1024_bpe.model").read_bytes(), "1024")
    ids = np.asarray(open_shard(shared / "data/fineweb/fineweb_val_000000.bin"))[:100_001]
    table = byte_table(processor, 1024)
    right = int(table.charges(ids).sum())
    stop = int(np.flatnonzero(ids == BOS)[-1])
    parts = np.split(ids[:stop], np.flatnonzero(ids[:stop] == BOS)[1:])
    decoded = sum(len(processor.decode(part[1:].tolist()).encode()) for part in parts)
    assert int(table.charges(ids[:stop]).sum()) == decoded
    assert 1.15 < twice_charged(processor, ids.tolist()) / right < 1.2


# Unknown characters


@pytest.mark.parametrize("kind", ["bpe", "unigram", "char"])
def test_without_byte_fallback_unknown_characters_are_refused(tmp_path: Path, kind: str) -> None:
    content = model(model_type=kind, byte_fallback=False)
    texts = (*ENGLISH[:3], "snow \u2603 man", *ENGLISH[3:6])
    refused(tmp_path, tokenized(tmp_path, content, texts), 3, "document 3", "docs.jsonl, line 4", "byte fallback")


def test_without_byte_fallback_known_text_is_fine(tmp_path: Path) -> None:
    content = model(byte_fallback=False)
    tokenized(tmp_path, content, ENGLISH[:20]).good()
    assert totals(tmp_path)["charged_bytes"] == sum(normalised(content, text) for text in ENGLISH[:20])


def test_unknown_characters_of_transformed_text_are_refused(tmp_path: Path) -> None:
    content = model(byte_fallback=False, user_defined_symbols=OPERATORS)
    texts = ("plain text", "more", "Snow \u2603 Man")
    result = tokenized(tmp_path, content, texts, "--set", "tokenize.transform=caseops_v1")
    refused(tmp_path, result, 3, "document 2", "docs.jsonl, line 3", "byte fallback")


def test_an_incomplete_set_of_byte_pieces_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, tokenized(tmp_path, drop("<0xE2>", model())), 3, "SentencePiece")


# Every other way to set up a tokenizer

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "whitespace_as_suffix": {"treat_whitespace_as_suffix": True},
    "suffix_and_dummy": {"treat_whitespace_as_suffix": True, "add_dummy_prefix": True},
    "dummy_prefix": {"add_dummy_prefix": True},
    "extra_whitespaces": {"remove_extra_whitespaces": False},
    "extra_and_dummy": {"remove_extra_whitespaces": False, "add_dummy_prefix": True},
    "identity": {"normalization_rule_name": "identity"},
    "nfkc": {"normalization_rule_name": "nfkc"},
    "casefold": {"normalization_rule_name": "nmt_nfkc_cf"},
    "unigram": {"model_type": "unigram"},
    "unigram_dummy": {"model_type": "unigram", "add_dummy_prefix": True},
    "word": {"model_type": "word"},
    "char": {"model_type": "char"},
    "crossing": {"split_by_whitespace": False, "vocab_size": 800},
    "whitespace_only": {"allow_whitespace_only_pieces": True, "remove_extra_whitespaces": False},
    "symbols": {"user_defined_symbols": ("<|x|>", "ing the", "\n")},
    "control": {"control_symbols": ("<|x|>",)},
}


def check_bytes(folder: Path, content: bytes, texts: tuple[str, ...], result: Result) -> bool:
    """Right to the byte and the id, or refused in one line; says which."""
    if result.code:
        refused(folder, result, 3)
        return False
    processor = load_tokenizer(content, "test")
    kept = [text for text in texts if processor.encode(text)]
    assert documents(folder) == [processor.encode(text) for text in kept]
    found, expected = totals(folder), sum(normalised(content, text) for text in kept)
    assert found["charged_bytes"] == found["normalised_bytes"] == found["table_bytes"] == expected
    assert found["raw_bytes"] == sum(len(text.encode()) for text in kept)
    return True


@pytest.mark.parametrize("name", KINDS)
def test_totals_are_right_or_the_tokenizer_is_refused(tmp_path: Path, name: str) -> None:
    content = model(**KINDS[name])
    outcomes = []
    for number, texts in enumerate((ENGLISH[:30], NASTY, (*NASTY[:2], *NASTY[5:6]), (*NASTY[2:5], *NASTY[6:]))):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcomes.append(check_bytes(folder, content, texts, tokenized(folder, content, texts)))
    if name in ("plain", "dummy_prefix", "nfkc", "casefold", "unigram", "unigram_dummy", "char", "crossing"):
        assert outcomes == [True] * 4
    if name == "word":
        assert not any(outcomes)


# Ids


@pytest.mark.parametrize("ids", [{"bos_id": 0, "pad_id": 1}, {"bos_id": 2, "eos_id": 1}, {"bos_id": -1, "eos_id": 1}])
def test_bos_must_be_id_1(tmp_path: Path, ids: dict[str, int]) -> None:
    refused(tmp_path, tokenized(tmp_path, model(**ids)), 3, "BOS", "1", "bos_id")


@pytest.mark.fault(row="F15")
def test_more_ids_than_a_shard_can_hold(tmp_path: Path) -> None:
    def grow(message: Any) -> None:
        for index in range(65_536 - len(message.pieces)):
            message.pieces.add(piece=f"piece{index}", score=-1000.0 - index)

    content = edited(model(), grow)
    assert load_tokenizer(content, "test").vocab_size() == 65_536
    refused(tmp_path, tokenized(tmp_path, content), 3, "65,536 ids", "65,535")


@pytest.mark.fault(row="F15")
def test_as_many_ids_as_a_shard_can_hold(tmp_path: Path) -> None:
    def grow(message: Any) -> None:
        for index in range(65_535 - len(message.pieces)):
            message.pieces.add(piece=f"piece{index}", score=-1000.0 - index)

    tokenized(tmp_path, edited(model(), grow), ENGLISH[:3]).good()


# Transforms


def test_a_tokenizer_with_operators_needs_the_transform(tmp_path: Path) -> None:
    result = tokenized(tmp_path, model(user_defined_symbols=OPERATORS))
    refused(tmp_path, result, 2, "operators", "set tokenize.transform=caseops_v1")


@pytest.mark.parametrize("symbols", [(), OPERATORS[:3], OPERATORS[1:]])
def test_the_transform_needs_a_tokenizer_with_operators(tmp_path: Path, symbols: tuple[str, ...]) -> None:
    content = model(user_defined_symbols=symbols) if symbols else model()
    result = tokenized(tmp_path, content, NASTY, "--set", "tokenize.transform=caseops_v1")
    refused(tmp_path, result, 2, "does not have the operators of caseops_v1", "let pgolf train it")


@pytest.mark.parametrize("options", [{}, {"add_dummy_prefix": True}, {"model_type": "unigram"}], ids=str)
def test_transformed_text_is_charged_its_own_bytes(tmp_path: Path, options: dict[str, Any]) -> None:
    content = model(user_defined_symbols=OPERATORS, **options)
    texts = (*NASTY, *(text.title() for text in ENGLISH[:30]))
    tokenized(tmp_path, content, texts, "--set", "tokenize.transform=caseops_v1").good()
    found = totals(tmp_path)
    blanks = sum(len(text.encode()) - len(text.strip(" \n\t\r\u200b\u3000\xa0").encode()) for text in texts)
    assert found["raw_bytes"] == sum(len(text.encode()) for text in texts)
    assert found["charged_bytes"] == found["raw_bytes"] - blanks
    assert found["table_bytes"] > 1.02 * found["charged_bytes"], "what the mistake of PR #2071 would count"


# Damaged files

CHILD = """
import sys
from pathlib import Path
from pgolf.config.run import TokenizeConfig
from pgolf.core.errors import InputError
from pgolf.corpus.sources import Record
from pgolf.corpus.tokenizer import read_tokenizer
from pgolf.corpus.workers import Batch, Job, Tokenizing
from pgolf.stages.tokenize import check_tokenizer

texts = sys.stdin.read().split("\\x1e")
records = [Record(text, False, "test", number) for number, text in enumerate(texts)]
for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path.name, end=" ", flush=True)
    try:
        content = read_tokenizer(path)
        check_tokenizer(content, TokenizeConfig(), str(path))
        tokens = Tokenizing(Job(content, "none", "text"))(Batch(0, records, 1))
        assert (tokens.charged_bytes == tokens.normalised_bytes)[tokens.tokens > 0].all()
        print("works", flush=True)
    except InputError as error:
        assert "\\n" not in str(error), str(error)
        print("refused", flush=True)
"""
"""What pgolf tokenize does with a model file, for many of them. Only a process of its own can be seen to survive."""


def mutations(count: int) -> list[bytes]:
    """Damaged copies of small models: bytes replaced, cut off, doubled or removed, most of them where pieces are."""
    draw = random.Random(20240520)
    whole = [model(normalization_rule_name="identity"), model(), model(model_type="unigram")]
    damaged = []
    for number in range(count):
        content = bytearray(whole[number % 3])
        kind, at = number % 8, draw.randrange(min(len(content), 7000))
        if kind < 4:
            for _ in range(1 << kind):
                place = draw.randrange(7000 if draw.random() < 0.7 else len(content)) % len(content)
                content[place] = draw.randrange(256)
        elif kind == 4:
            del content[draw.randrange(len(content)) :]
        elif kind == 5:
            del content[at : at + draw.randrange(1, 40)]
        elif kind == 6:
            content[at:at] = content[at // 2 : at // 2 + draw.randrange(1, 200)]
        else:
            content[-draw.randrange(1, 120)] ^= 1 << draw.randrange(8)
        damaged.append(bytes(content))
    return damaged


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.fault(row="F13")
def test_damaged_models_never_end_the_process(tmp_path: Path, count: int) -> None:
    for number, content in enumerate(mutations(count)):
        (tmp_path / f"{number:04d}.model").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        input="\x1e".join((*NASTY, *ENGLISH[:10], "".join(map(chr, range(1, 0xD800, 7))))),
        capture_output=True,
        text=True,
        timeout=count * 5,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-3000:]
    answers = [line.split()[-1] for line in done.stdout.splitlines()]
    assert len(answers) == count
    assert set(answers) == {"works", "refused"}, "the damage was too little or too much to test anything"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty"]),
        (b"plain text, no model at all\n" * 40, ["SentencePiece model"]),
        (b"\n", ["SentencePiece model"]),
        (b"\x0a\xff\xff\xff\xff\x0f", ["SentencePiece model"]),
        (bytes(1000), ["SentencePiece model"]),
    ],
    ids=["empty", "text", "newline", "length", "zeros"],
)
@pytest.mark.fault(row="F13")
def test_what_is_no_model_at_all(tmp_path: Path, content: bytes, words: list[str]) -> None:
    refused(tmp_path, tokenized(tmp_path, content), 3, "some.model", *words)


@pytest.mark.fault(row="F13")
def test_a_file_too_large_for_a_model(tmp_path: Path) -> None:
    path = tmp_path / "large.model"
    with open(path, "wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(InputError, match=r"large\.model") as caught:
        read_tokenizer(path)
    assert f"{MAX_TOKENIZER:,}" in str(caught.value)


def test_a_directory_or_nothing_instead_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "docs.txt").write_text("text")
    (tmp_path / "folder.model").mkdir()
    for name, code in (("folder.model", 6), ("missing.model", 3)):
        path = tmp_path / name
        run_here("tokenize", tmp_path / "docs.txt", "--out", tmp_path / "out", "--tokenizer", path, "--quiet").refused(
            code, name
        )


def test_the_models_of_these_tests_are_what_they_say() -> None:
    plain = load_tokenizer(spm_models.model(), "plain")
    assert plain.encode("The  cat", out_type=str)[0].startswith("T")
    assert load_tokenizer(model(add_dummy_prefix=True), "dummy").normalize("The") == f"{SPACE}The"
    assert load_tokenizer(model(treat_whitespace_as_suffix=True), "suffix").encode("a the b", out_type=str)[0] != "a"
    assert load_tokenizer(model(normalization_rule_name="identity"), "same").normalize("\ufb01") == "\ufb01"
    assert load_tokenizer(model(normalization_rule_name="nmt_nfkc_cf"), "fold").normalize("THE") == "the"
