"""The encoder: word by word or at once, its ids are SentencePiece's own and every byte of a text is charged once."""

import json
import struct
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import spm_models
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from pgolf.core.bpb import byte_table
from pgolf.core.errors import InputError
from pgolf.corpus import encoder as encoder_module
from pgolf.corpus.encoder import CACHED_WORD_CHARS, Encoder, packed_charges
from pgolf.corpus.transforms import get_transform

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "data_caseops.json").read_text())
OPERATORS = "\ue001\ue002\ue003\ue004"
KINDS = {
    "bpe": {},
    "dummy_prefix": {"add_dummy_prefix": True},
    "unigram": {"model_type": "unigram"},
    "crossing": {"split_by_whitespace": False, "vocab_size": 700},
    "nfkc": {"normalization_rule_name": "nfkc"},
    "casefold": {"normalization_rule_name": "nmt_nfkc_cf"},
    "reserved": {"user_defined_symbols": ("<|end|>", "ing th")},
    "line_ends": {"user_defined_symbols": ("\r\n", "a\nthe")},
}
BY_WORD = {"bpe", "dummy_prefix", "casefold"}
"""Kinds that must go word by word; the others may only where that changes nothing."""
NONE, CASEOPS = get_transform("none"), get_transform("caseops_v1")

SPACES = " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2000\u2003\u200a\u2028\u2029\u202f\u205f\u3000"
INVISIBLE = "\0\x01\x08\x1b\x7f\x80\u00ad\u200b\u200c\u200d\u200e\u2060\ufeff\ufffd\ufffe\U000e0001"
ODD = (
    "\u2581\ufb01\u2122\u2026\u00bd\uff21\u00b4\u00a8\u037a\u1fbd\u0301\u0308\u0327\u05b0\u093c\u3099\uac00\u1100\u1161"
)
words = st.sampled_from(
    [
        "the",
        "a",
        "Python",
        "NASA",
        "iPhone",
        "print(x)",
        "1234",
        "don't",
        "<s>",
        "<0x41>",
        "<unk>",
        "\u4e2d\u6587",
        "e\u0301",
    ]
)
characters = st.one_of(
    st.sampled_from(SPACES + "    "),
    st.sampled_from(INVISIBLE + ODD + OPERATORS),
    st.sampled_from("abTHE19_.-<>|"),
    st.characters(exclude_categories=["Cs"]),
)
tame = st.sampled_from("abcdeTHE19._ \n\t \xe9\u4e2d\U0001f600\u200b\xa0")
pieces = st.one_of(words, characters, st.sampled_from(["  ", "\n\n", " \u2581", "\u200b "]))
texts = st.one_of(
    st.lists(pieces, max_size=40).map("".join),
    st.lists(words, max_size=30).map(" ".join),
    st.text(st.sampled_from("ab \n\xa0\u0301\u2581"), max_size=30),
    st.builds(
        lambda unit, count, tail: unit * count + tail, words, st.integers(0, 200), st.text(characters, max_size=5)
    ),
)


@cache
def encoder(kind, transform="none"):
    """The encoder of a small tokenizer; under a transform the tokenizer has its operators."""
    options = dict(KINDS[kind])
    if transform != "none":
        options["user_defined_symbols"] = (*OPERATORS, *options.get("user_defined_symbols", ()))
    return Encoder(spm_models.model(**options), get_transform(transform), kind)


def whole_text(kind, transform="none"):
    """The same encoder with its words switched off."""
    made = Encoder.__new__(Encoder)
    made.__dict__.update(encoder(kind, transform).__dict__)
    made.by_word = False
    return made


def unpacked(parts):
    """uint16 values of packed pieces."""
    content = b"".join(parts)
    return list(struct.unpack(f"<{len(content) // 2}H", content))


def normalised_length(tokenizer, text, dummy_prefix=False):
    """UTF-8 bytes of what the normaliser leaves, without the space it puts before a text."""
    normal = tokenizer.normalize(text).replace("\u2581", " ")
    if dummy_prefix and normal:
        assert normal[0] == " "
        normal = normal[1:]
    return len(normal.encode())


def table_charges(made, found):
    """What the byte table charges a document."""
    table = byte_table(made.tokenizer, made.tokenizer.vocab_size())
    return int(table.charges(np.array([1, *unpacked(found.ids)])).sum())


# Plain text


@pytest.mark.parametrize("kind", KINDS)
def test_which_tokenizers_go_word_by_word(kind):
    made = encoder(kind)
    if kind in BY_WORD:
        assert made.by_word
    if kind in ("unigram", "crossing", "reserved", "line_ends"):
        assert not made.by_word


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150)
@given(text=texts)
@example("")
@example(" ")
@example("\u200b")
@example("a\xa0 b")
@example("a \u0301b")
@example("x\u2581y z")
@example("word \x00 word")
@example("\n\n  lead and trail \t ")
@example("ing thing the <|end|> of ing th")
@example("a\r\nb \r\n c a\nthe")
def test_ids_and_bytes_are_those_of_sentencepiece(kind, text):
    made = encoder(kind)
    tokenizer = made.tokenizer
    found = made.encode(text)
    assert unpacked(found.ids) == tokenizer.encode(text)
    assert found.raw_bytes == len(text.encode())
    assert found.normalised_bytes == normalised_length(tokenizer, text, made.facts.dummy_prefix)
    assert found.charges == [] or not b"".join(found.charges)


@pytest.mark.parametrize("kind", sorted(BY_WORD))
@settings(max_examples=60)
@given(text=texts)
def test_a_cache_that_is_full_or_warm_changes_nothing(kind, text):
    warm, cold = encoder(kind), Encoder(spm_models.model(**KINDS[kind]), NONE)
    cold.words.__class__ = type("Full", (type(cold.words),), {"__setitem__": lambda *_: None})
    first = warm.encode(text)
    assert unpacked(warm.encode(text).ids) == unpacked(first.ids) == unpacked(cold.encode(text).ids)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@settings(max_examples=60)
@given(text=texts)
def test_the_byte_table_charges_the_normalised_text(kind, text):
    made = encoder(kind)
    found = made.encode(text)
    assert table_charges(made, found) == (found.normalised_bytes if found.ids else 0)


@pytest.mark.parametrize(
    "rule",
    ["61 20 62\t7A", "A 41\t7A", "61 62 63 D\t20", "D\t2C"],
    ids=["space_inside", "line_end_first", "return_last", "return_alone"],
)
def test_a_normalisation_rule_over_a_blank_is_noticed(tmp_path, rule):
    (tmp_path / "rules.tsv").write_text(f"9\t20\nA\t20\nD\t20\n{rule}\n")
    options = {"normalization_rule_name": "user_defined", "normalization_rule_tsv": str(tmp_path / "rules.tsv")}
    made = Encoder(spm_models.model(**options), NONE)
    assert not made.by_word
    for text in ("a b a\nb abc\r d\nA \nA a  b abc\r", "b\tb a\r\nb"):
        found = made.encode(text)
        assert unpacked(found.ids) == made.tokenizer.encode(text)
        assert found.normalised_bytes == normalised_length(made.tokenizer, text)


@pytest.mark.parametrize(
    "more",
    [
        b"\x1a\x02\x18\x01",
        b"\x1a\x00",
        b"\x12\x02\x18\x01",
        b"\x12\x05\x1a\x03abc",
        b"\x10\x07",
        b"\x12\x03\xc0\x01\x01",
    ],
    ids=["dummy_prefix", "nothing", "unigram", "wrong_type", "no_message", "suffix"],
)
def test_a_model_file_in_several_parts_is_read_as_sentencepiece_reads_it(more):
    made = Encoder(spm_models.model() + more, NONE)
    for text in ("two words", "  \u2603 a\n b"):
        found = made.encode(text)
        assert unpacked(found.ids) == made.tokenizer.encode(text)
        assert found.normalised_bytes == normalised_length(made.tokenizer, text, made.facts.dummy_prefix)
    assert made.facts.dummy_prefix == (made.tokenizer.normalize("a") != "a")


def test_very_long_words_and_runs_of_blanks():
    made = encoder("bpe")
    for text in (
        "ab" * 40_000,
        "the " * 20_000,
        "a" + " " * 70_000 + "b",
        "x" * (CACHED_WORD_CHARS + 1) + " y",
        "\xe9" * 70_000,
    ):
        found = made.encode(text)
        assert unpacked(found.ids) == made.tokenizer.encode(text)
        assert found.normalised_bytes == normalised_length(made.tokenizer, text)


def test_the_tokenizers_of_the_challenge(shared):
    for path in sorted((shared / "data" / "tokenizers").glob("*.model")):
        content = path.read_bytes()
        made, other = Encoder(content, NONE, path.name), SentencePieceProcessor(model_proto=content)
        assert made.by_word, path.name
        for text in (
            "The quick brown fox.",
            "  a\u200bb \n c\x00d ",
            "\ufb01ne \u2122 \u4e2d\u6587 caf\xe9\u0301",
            "A \u2581B",
        ):
            assert unpacked(made.encode(text).ids) == other.encode(text), path.name


# Transformed text


@pytest.mark.parametrize("kind", ["bpe", "dummy_prefix", "unigram", "casefold"])
@settings(max_examples=150)
@given(text=texts)
@example("")
@example(" \n ")
@example("The quick brown FOX.")
@example("The NASA Launch of iPhone")
@example("A\u200b \u200b B")
@example("\u200bA \xa0 B\u200b")
@example("\ue001 \ue004\ue004A\ue001")
@example("ABC\u2581DEF Ab")
@example("x  \u0301  y")
@example("a \x00 \x01 b")
def test_word_by_word_is_the_whole_text(kind, text):
    made, whole = encoder(kind, "caseops_v1"), whole_text(kind, "caseops_v1")
    found, plain = made.encode(text), whole.encode(text)
    assert unpacked(found.ids) == unpacked(plain.ids) == made.tokenizer.encode(CASEOPS.encode(text))
    assert unpacked(found.charges) == unpacked(plain.charges)
    assert found.stripped_bytes == plain.stripped_bytes
    assert found.normalised_bytes == plain.normalised_bytes
    assert sum(unpacked(found.charges)) + found.stripped_bytes == found.raw_bytes == len(text.encode())


@pytest.mark.parametrize("case", GOLDEN["encode"], ids=lambda case: ascii(case["text"])[:24])
def test_published_ids_and_charges(shared, case):
    made = published(shared)
    for by_word in (True, False):
        made.by_word = by_word
        found = made.encode(case["text"])
        assert unpacked(found.ids) == case["ids"]
        assert unpacked(found.charges) == case["bytes"]
        assert case["bytes_total"] + found.stripped_bytes == case["utf8_len"] == found.raw_bytes
    made.by_word = True


@cache
def published(shared):
    """The encoder of the published CaseOps tokenizer."""
    path = shared / "data" / "tokenizers" / "fineweb_8192_bpe_lossless_caps_caseops_v1_reserved.model"
    return Encoder(path.read_bytes(), CASEOPS, str(path))


@settings(max_examples=100)
@given(text=texts)
def test_published_tokenizer_word_by_word(shared, text):
    made = published(shared)
    assert made.by_word
    found = made.encode(text)
    assert unpacked(found.ids) == made.tokenizer.encode(CASEOPS.encode(text))
    assert sum(unpacked(found.charges)) + found.stripped_bytes == len(text.encode())


def test_operators_are_charged_nothing_unless_they_are_text():
    made = encoder("bpe", "caseops_v1")
    found = made.encode("The NASA iPhone says \ue001")
    title, caps, nxt, esc = (made.tokenizer.piece_to_id(operator) for operator in OPERATORS)
    charged = [pair for pair in zip(unpacked(found.ids), unpacked(found.charges)) if pair[0] in (title, caps, nxt, esc)]
    assert charged == [(title, 0), (caps, 0), (nxt, 0), (esc, 0), (title, 3)]


def test_a_charge_beyond_the_sidecar_is_refused():
    with pytest.raises(InputError, match=r"70,002 blanks does not fit"):
        encoder("bpe", "caseops_v1").encode("a" + " " * 70_001 + "b")
    assert packed_charges(np.array([65535])) == b"\xff\xff"


# Long documents


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 64 characters, long words of 16."""
    monkeypatch.setattr(encoder_module, "PART_CHARS", 64)
    monkeypatch.setattr(encoder_module, "LONG_WORD_CHARS", 16)


def shorter_words(text):
    """The text with a blank after every 12 characters without one."""
    out, run = [], 0
    for char in text:
        out.append(char)
        run = 0 if char in " \t\n\r" else run + 1
        if run == 12:
            out.append(" ")
            run = 0
    return "".join(out)


long_texts = st.lists(pieces, min_size=20, max_size=200).map("".join)


@pytest.mark.parametrize("kind", ["bpe", "dummy_prefix", "unigram"])
@settings(max_examples=80)
@given(text=long_texts)
def test_parts_of_a_long_document_meet_without_a_seam(kind, text):
    text = shorter_words(text)
    made = encoder(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_module, "PART_CHARS", 64)
        patch.setattr(encoder_module, "LONG_WORD_CHARS", 16)
        found = made.encode(text)
        if len(text) > 64:
            assert len(list(made.parts([text]))) > 1
    assert unpacked(found.ids) == made.tokenizer.encode(text)
    assert found.raw_bytes == len(text.encode())
    assert found.normalised_bytes == normalised_length(made.tokenizer, text, made.facts.dummy_prefix)


@pytest.mark.parametrize("kind", ["bpe", "dummy_prefix", "unigram"])
@settings(max_examples=80)
@given(text=long_texts)
def test_parts_of_transformed_text_keep_their_charges(kind, text):
    text = shorter_words(text)
    made = encoder(kind, "caseops_v1")
    plain = whole_text(kind, "caseops_v1").encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_module, "PART_CHARS", 64)
        patch.setattr(encoder_module, "LONG_WORD_CHARS", 16)
        found = made.encode(text)
    assert unpacked(found.ids) == unpacked(plain.ids) == made.tokenizer.encode(CASEOPS.encode(text))
    assert unpacked(found.charges) == unpacked(plain.charges)
    assert (found.stripped_bytes, found.raw_bytes) == (plain.stripped_bytes, plain.raw_bytes)


def without_blanks(parts):
    """Parts run together, a number after each, so that there is a place to cut."""
    return "".join(f"{part}12" for part in parts).translate(dict.fromkeys(map(ord, " \n\t\r")))


endless = st.lists(st.one_of(words, st.text(tame, max_size=9)), min_size=20, max_size=80).map(without_blanks)


@pytest.mark.parametrize("kind", ["bpe", "dummy_prefix", "unigram"])
@settings(max_examples=60)
@given(text=endless)
@example("x" * 40 + "11" + "the" * 6 + "NASA1Python12" + "the" * 30)
@example("1" * 60 + "\xa0" + "12" * 60)
def test_endless_words_keep_their_text_and_bytes(kind, text):
    made, case = encoder(kind), encoder(kind, "caseops_v1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_module, "PART_CHARS", 64)
        patch.setattr(encoder_module, "LONG_WORD_CHARS", 32)
        found, transformed = made.encode(text), case.encode(text)
    normal = made.tokenizer.normalize(text).replace("\u2581", " ").removeprefix(" ")
    assert made.tokenizer.decode(unpacked(found.ids)).removeprefix(" ") == normal
    assert found.raw_bytes == len(text.encode())
    assert found.normalised_bytes == normalised_length(made.tokenizer, text, made.facts.dummy_prefix)
    assert table_charges(made, found) == found.normalised_bytes
    assert sum(unpacked(transformed.charges)) + transformed.stripped_bytes == len(text.encode())
    coded = case.tokenizer.normalize(CASEOPS.encode(text)).replace("\u2581", " ")
    assert case.tokenizer.decode(unpacked(transformed.ids)).strip() == coded.strip()


@pytest.mark.parametrize(
    "unit", ["a", "Aa", "A", "-", "\xe9", "\u3042", "\u2581", "a\xa0", "e\u0301", "\u200b", "\U0001f600"]
)
def test_endless_words_without_a_seam_add_up(small_parts, unit):
    text = unit * 300
    for kind in ("bpe", "unigram"):
        made, case = encoder(kind), encoder(kind, "caseops_v1")
        found, transformed = made.encode(text), case.encode(text)
        assert table_charges(made, found) == found.normalised_bytes
        assert found.raw_bytes == transformed.raw_bytes == len(text.encode())
        assert sum(unpacked(transformed.charges)) + transformed.stripped_bytes == len(text.encode())
        coded = case.tokenizer.decode(unpacked(transformed.ids))
        assert CASEOPS.decode(coded).strip() == case.tokenizer.normalize(text).replace("\u2581", " ").strip()


@pytest.mark.parametrize("transform", ["none", "caseops_v1"])
@pytest.mark.parametrize("kind", ["bpe", "unigram", "crossing", "nfkc", "reserved", "line_ends"])
@settings(max_examples=80)
@given(text=endless)
@example("".join(f"the{char}" for char in "ab.<-|_\xe9\u0301\u3099\u1161\uac00\U0001f600\u200b\xa0\u2581\ufb01" * 8))
@example("the<|end|>thing<|end|>12ingthe" * 9)
@example("ABzqxjkvQZwxFOOzqBARBAZqzxj" * 9 + "ABC")
def test_a_joint_changes_nothing(kind, transform, text):
    made = encoder(kind, transform)
    plain = whole_text(kind, transform).encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_module, "PART_CHARS", 24)
        patch.setattr(encoder_module, "LONG_WORD_CHARS", 20)
        found = made.encode(text)
    assert unpacked(found.ids) == unpacked(plain.ids) == made.tokenizer.encode(made.transform.encode(text))
    assert unpacked(found.charges) == unpacked(plain.charges)
    assert (found.raw_bytes, found.normalised_bytes) == (plain.raw_bytes, plain.normalised_bytes)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "crossing"])
def test_there_are_joints(small_parts, kind):
    made = encoder(kind)
    assert len(list(made.parts(["the<Python|12" * 40]))) > 3


@settings(max_examples=60)
@given(text=long_texts, size=st.integers(1, 50))
def test_pieces_of_a_document_do_not_matter(text, size):
    made, pieces = encoder("bpe"), [text[start : start + size] for start in range(0, len(text), size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_module, "PART_CHARS", 64)
        patch.setattr(encoder_module, "LONG_WORD_CHARS", 16)
        assert list(made.parts(pieces)) == list(made.parts([text]))


@pytest.mark.parametrize(("transform", "limit"), [("none", 1 << 20), ("caseops_v1", 1 << 18)])
def test_a_run_without_a_place_to_cut_is_refused(transform, limit):
    made = encoder("bpe", transform)
    with pytest.raises(InputError, match=f"a run of {limit:,} characters has no place to cut it.*put blanks"):
        made.encode("some text " + "\u200b" * (limit + 200_000))


def test_a_document_beyond_the_real_limits():
    made = encoder("bpe")
    parts = ["alpha beta ", "x" * (encoder_module.LONG_WORD_CHARS + 9), " \n gamma caf\xe9 "]
    text = "".join(parts * 18)
    assert len(text) > encoder_module.PART_CHARS
    found = made.encode(text)
    assert len(list(made.parts([text]))) > 2
    assert unpacked(found.ids) == made.tokenizer.encode(text)
    assert found.raw_bytes == len(text.encode())
    assert found.normalised_bytes == normalised_length(made.tokenizer, text) == table_charges(made, found)
