"""Text transforms: what was rewritten comes back to the character, every byte is charged once, bad input is refused."""

import itertools
import json
from pathlib import Path
from string import ascii_letters, ascii_lowercase, ascii_uppercase

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgolf.core.errors import ConfigError, InputError
from pgolf.corpus.transforms import (
    MARKED,
    PUBLISHED_NAMES,
    TRANSFORMS,
    CaseOps,
    decode_stepwise,
    get_transform,
    unmarked,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "data_caseops.json").read_text())
T, A, C, E = OPERATORS = "\ue001\ue002\ue003\ue004"
caseops = CaseOps()

ODD = "\0\n \u0301\u200d\xe9\xc9\xdf\u0130\u0131\u01c4\u01c5\u01c6\u212a\uff21\ufb01\ue000\ue005\ud800\udc00\U0001f600"
words = st.text(st.sampled_from("aaBBzZ"), max_size=6)
characters = st.one_of(
    st.sampled_from(ascii_letters),
    st.sampled_from("aBcD019'_-" + OPERATORS),
    st.sampled_from(ODD),
    st.characters(),
    st.characters(categories=["Cs", "Co", "Lt", "Mn", "Lu"]),
)
texts = st.one_of(
    st.text(characters),
    st.text(st.characters()),
    st.lists(st.one_of(words, characters)).map("".join),
)
soups = st.text(st.sampled_from("abYZ1 \xc9" + OPERATORS * 2), max_size=12)


def ops(notation):
    """`<T>open<C>a` -> the operators themselves."""
    for letter, operator in zip("TACE", OPERATORS, strict=True):
        notation = notation.replace(f"<{letter}>", operator)
    return notation


def utf8(text):
    """UTF-8 length, lone surrogates included."""
    return len(text.encode("utf-8", "surrogatepass"))


def decoded(decode, text):
    """What `decode` gives, None where it refuses."""
    try:
        return decode(text)
    except InputError:
        return None


def slow_encode(text):
    """The rules of the specification, a character and a word at a time."""
    out, at = "", 0
    while at < len(text):
        if text[at] in OPERATORS:
            out += E + text[at]
        elif text[at] not in ascii_letters:
            out += text[at]
        else:
            end = at
            while end < len(text) and text[end] in ascii_letters:
                end += 1
            word = text[at:end]
            if all(letter in ascii_lowercase for letter in word):
                out += word
            elif len(word) > 1 and all(letter in ascii_uppercase for letter in word):
                out += A + word.lower()
            elif word[0] in ascii_uppercase and all(letter in ascii_lowercase for letter in word[1:]):
                out += T + word.lower()
            else:
                out += T * (word[0] in ascii_uppercase) + word[0].lower()
                out += "".join(C * (letter in ascii_uppercase) + letter.lower() for letter in word[1:])
            at = end - 1
        at += 1
    return out


def slow_char_bytes(text):
    """Charges read off from left to right."""
    charges, escaped = [], False
    for char in text:
        operator = char in OPERATORS and not escaped
        charges.append(0 if operator else utf8(char))
        escaped = operator and char == E
    return charges


# Published vectors


@pytest.mark.parametrize("case", GOLDEN["encode"], ids=lambda case: ascii(case["text"])[:24])
def test_published_encodings(case):
    encoded = caseops.encode(case["text"])
    assert encoded == case["encoded"]
    assert caseops.decode(encoded) == decode_stepwise(encoded) == case["text"]
    assert caseops.char_bytes(encoded).sum() == case["utf8_len"] == utf8(case["text"])


@pytest.mark.parametrize("case", GOLDEN["encode"], ids=lambda case: ascii(case["text"])[:24])
def test_published_charges(case):
    charges, at = caseops.char_bytes(case["encoded"]), 0
    for token, surface, charge in zip(case["ids"], case["surfaces"], case["bytes"], strict=True):
        start = case["encoded"].index(surface, at)
        assert not case["encoded"][at:start].strip(), "only blanks may lie between two tokens"
        at = start + len(surface)
        assert charges[start:at].sum() == charge
        if surface and surface in OPERATORS and charge == 0:
            assert token == 4 + caseops.operators.index(surface)


@pytest.mark.parametrize("case", GOLDEN["decode"], ids=lambda case: ascii(case["encoded"]))
def test_published_decodings(case):
    assert ("decoded" in case) != ("error" in case)
    for decode in (caseops.decode, decode_stepwise):
        assert decoded(decode, case["encoded"]) == case.get("decoded")


# The rules


@pytest.mark.parametrize(
    ("text", "notation"),
    [
        ("A", "<T>a"),
        ("I am", "<T>i am"),
        ("AB", "<A>ab"),
        ("ABc", "<T>a<C>bc"),
        ("aB", "a<C>b"),
        ("iPhone", "i<C>phone"),
        ("OpenAI", "<T>open<C>a<C>i"),
        ("NASA's", "<A>nasa's"),
        ("USA2U", "<A>usa2<T>u"),
        ("A1B", "<T>a1<T>b"),
        ("\xc9cole", "\xc9cole"),
        ("\xc9COLE", "\xc9<A>cole"),
        ("E\u0301COLE", "<T>e\u0301<A>cole"),
        ("HTMLParser", "<T>h<C>t<C>m<C>l<C>parser"),
        (T + "Y", "<E><T><T>y"),
        (E + E + "AB", "<E><E><E><E><A>ab"),
        ("\u212aELVIN", "\u212a<A>elvin"),
        ("\ue000A\ue005", "\ue000<T>a\ue005"),
    ],
)
def test_worked_cases(text, notation):
    assert caseops.encode(text) == ops(notation)
    assert caseops.decode(ops(notation)) == text


@pytest.mark.parametrize(("text", "size"), [("The quick brown FOX.", 20), ("The NASA Launch of iPhone", 25)])
def test_operators_are_not_charged_with_the_text_that_follows(text, size):
    assert caseops.char_bytes(caseops.encode(text)).sum() == size


@pytest.mark.parametrize(
    ("notation", "text"),
    [
        ("<C>a", "A"),
        ("<C>ab<C>c", "AbC"),
        ("<A>a", "A"),
        ("<A>ab<C>cd", "ABCD"),
        ("<A>a<C>b c", "AB c"),
        ("<T>aBc", "ABc"),
        ("<A>aB", "AB"),
        ("AB", "AB"),
        ("<T><C>ab", "Ab"),
        ("<A><C>ab", "AB"),
        ("<E>ab", "ab"),
        ("<E>A<C>b", "AB"),
        ("<A>ab<E>cd", "ABcD"),
        ("<A>ab<E>-cd", "AB-cd"),
        ("<E>-<T>a", "-A"),
        ("<C><E>ab", "aB"),
        ("<C><E><T>ab", "\ue001Ab"),
        ("a<C><E><E>b", "a\ue004B"),
    ],
)
def test_other_legal_forms(notation, text):
    assert caseops.decode(ops(notation)) == decode_stepwise(ops(notation)) == text


@pytest.mark.parametrize(
    ("notation", "what", "offset"),
    [
        ("ab<T>c", "TITLE stands inside a word", 2),
        ("ab<A>c", "ALLCAPS stands inside a word", 2),
        ("<E>a<T>b", "TITLE stands inside a word", 2),
        ("<T><A>a", "ALLCAPS stands after an operator", 1),
        ("<C><T>a", "TITLE stands after an operator", 1),
        ("<C><E>-<A>a", "ALLCAPS stands after an operator", 3),
        ("a<C><C>b", "a second CAPNEXT", 2),
        ("<C><E>-<C>b", "a second CAPNEXT", 3),
        ("a <T>1", "TITLE waits for an ASCII letter and meets another character", 3),
        ("<A>\xc9a", "ALLCAPS waits for an ASCII letter and meets another character", 1),
        ("a<C>\u0301", "CAPNEXT waits for an ASCII letter and meets another character", 2),
        ("<T><E>a", "TITLE is followed by ESC", 1),
        ("<A><E><E>a", "ALLCAPS is followed by ESC", 1),
        ("ab<E>", "ends while ESC waits", 3),
        ("ab <T>", "ends while TITLE waits", 4),
        ("<A>", "ends while ALLCAPS waits", 1),
        ("ab<C>", "ends while CAPNEXT waits", 3),
        ("<E><E><E>", "ends while ESC waits", 3),
        ("<C><E>a", "ends while CAPNEXT waits", 3),
    ],
)
def test_illegal_forms_are_named(notation, what, offset):
    with pytest.raises(InputError, match=rf"{what}.*\(character {offset} of the transformed text\)") as caught:
        caseops.decode(ops(notation))
    assert caught.value.exit_code == 3
    assert caught.value.fix


@pytest.mark.parametrize(
    ("notation", "charges"),
    [
        ("", []),
        ("<T>a\xe9\u4e2d\U0001f600", [0, 1, 2, 3, 4]),
        ("<E>", [0]),
        ("a<E><T>b", [1, 0, 3, 1]),
        ("<E><E><T>b", [0, 3, 0, 1]),
        ("<E><E><E><E> <E><A><A>b", [0, 3, 0, 3, 1, 0, 3, 0, 1]),
        ("<E>a", [0, 1]),
        ("\ue000\ue005\ud800\udc00\x7f\x80\u07ff\u0800\uffff\U00010000", [3, 3, 3, 3, 1, 2, 2, 3, 3, 4]),
    ],
)
def test_charges(notation, charges):
    counted = caseops.char_bytes(ops(notation))
    assert counted.dtype == np.int64
    assert counted.tolist() == charges


# Properties


@settings(max_examples=500)
@given(texts)
@example("\ue004\ue004A\ue001\ud800B\u01c5")
def test_every_text_comes_back(text):
    encoded = caseops.encode(text)
    assert encoded == slow_encode(text)
    assert caseops.decode(encoded) == decode_stepwise(encoded) == text
    assert caseops.encode(caseops.decode(encoded)) == encoded
    charges = caseops.char_bytes(encoded)
    assert charges.shape == (len(encoded),)
    assert charges.tolist() == slow_char_bytes(encoded)
    assert charges.sum() == utf8(text)


@settings(max_examples=200)
@given(texts)
def test_only_ascii_letters_and_operators_change(text):
    kept = "".join(char for char in text if char not in ascii_letters and char not in OPERATORS)
    assert caseops.encode(kept) == kept
    encoded = caseops.encode(text)
    assert not set(encoded) & set(ascii_uppercase)
    assert "".join(char for char in encoded if char not in ascii_letters and char not in OPERATORS) == kept


@settings(max_examples=200)
@given(st.lists(texts.map(lambda text: text.replace(" ", "")), max_size=6))
def test_words_between_blanks_are_independent(parts):
    assert caseops.encode(" ".join(parts)) == " ".join(map(caseops.encode, parts))


@settings(max_examples=500)
@given(st.one_of(soups, texts))
def test_decode_answers_or_refuses_and_both_ways_agree(text):
    answer = decoded(caseops.decode, text)
    assert answer == decoded(decode_stepwise, text)
    if answer is not None:
        assert caseops.decode(caseops.encode(answer)) == answer
        assert caseops.char_bytes(text).sum() == utf8(answer)


@settings(max_examples=200)
@given(texts)
def test_what_encode_makes_needs_no_steps(text):
    assert MARKED.sub(unmarked, caseops.encode(text)) == text


def test_all_short_strings():
    alphabet = "aB1" + OPERATORS
    short = ["".join(chars) for length in range(6) for chars in itertools.product(alphabet, repeat=length)]
    encoded = [caseops.encode(text) for text in short]
    assert len(set(encoded)) == len(short)
    assert encoded == [slow_encode(text) for text in short]
    assert [caseops.decode(text) for text in encoded] == short
    assert [decoded(caseops.decode, text) for text in short] == [decoded(decode_stepwise, text) for text in short]


def test_every_code_point():
    everything = "".join(map(chr, range(0x110000)))
    changed = {char for char in everything if caseops.encode(char) != char}
    assert changed == {*ascii_uppercase, *OPERATORS}
    assert all(caseops.decode(char) == char for char in everything if char not in OPERATORS)
    assert all(caseops.decode(caseops.encode(char)) == char for char in changed)
    encoded = caseops.encode(everything)
    assert encoded == slow_encode(everything)
    assert caseops.decode(encoded) == everything
    assert caseops.char_bytes(encoded).sum() == utf8(everything)


@pytest.mark.parametrize("unit", ["a", "A", "aA", "Aa", E, "A ", "AA\u0301"])
def test_long_runs_take_one_pass(unit):
    text = unit * 200_000
    encoded = caseops.encode(text)
    assert encoded == slow_encode(text)
    assert caseops.decode(encoded) == text
    assert caseops.char_bytes(encoded).sum() == utf8(text)


# Choice


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_found_by_name(name):
    transform = get_transform(name)
    assert transform.name == name
    assert len(set(transform.operators)) == len(transform.operators)
    text = "A\u4e2d\ud800 \ue001"
    assert transform.decode(transform.encode(text)) == text
    assert transform.char_bytes(transform.encode(text)).sum() == utf8(text)


def test_no_transform_changes_nothing():
    none = get_transform("none")
    assert none.operators == ()
    assert none.encode("Ab" + T) == none.decode("Ab" + T) == "Ab" + T
    assert none.char_bytes("A\xe9" + T).tolist() == [1, 2, 3]


def test_published_names_lead_to_transforms():
    assert get_transform(PUBLISHED_NAMES["lossless_caps_caseops_v1"]).operators == (T, A, C, E)
    assert set(PUBLISHED_NAMES.values()) <= set(TRANSFORMS)


def test_unknown_name_lists_the_known():
    with pytest.raises(ConfigError, match=r"'caseops_v9' is not a known transform.*none or caseops_v1"):
        get_transform("caseops_v9")


# Real text


@pytest.mark.parametrize("name", ["fineweb/docs_val", "fineweb/docs_raw_newlines", "text/digitalgov"])
def test_real_documents_come_back(shared, name):
    count = 0
    with zstandard.open(shared / "data" / f"{name}.jsonl.zst", "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            text = json.loads(line)["text"]
            encoded = caseops.encode(text)
            assert caseops.decode(encoded) == text
            assert caseops.encode(caseops.decode(encoded)) == encoded
            assert caseops.char_bytes(encoded).sum() == utf8(text)
            count += utf8(text)
            if count > 2 << 20:
                break
    assert count > 1 << 19
