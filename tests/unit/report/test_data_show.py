"""What data_show counts, against counts made one token after the other; and text that tries to act on a terminal."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import spm_models
from hypothesis import example, given
from hypothesis import strategies as st

from pgolf.core.bpb import byte_table, load_tokenizer
from pgolf.core.errors import InputError
from pgolf.core.shards import write_shard
from pgolf.dataset import BOS
from pgolf.report import data_show as module
from pgolf.report.data_show import Tally, data_show, entropy_bits, visible

OPERATORS = ("\ue001", "\ue002", "\ue003", "\ue004")
HOSTILE = "[bold]Bold[/bold] \\[/nope] [/] \x1b[31mred\x1b[0m \x07 \u202e | end"
TEXTS = (
    "The first one, with two  blanks.",
    HOSTILE,
    "NASA launched an iPhone \u4e2d\u6587 \U0001f600",
    *spm_models.sentences()[:60],
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A dataset of plain text in shards of 100 tokens."""
    return spm_models.dataset(tmp_path_factory.mktemp("plain"), TEXTS, spm_models.model(), "tokenize.shard_tokens=100")


@pytest.fixture(scope="module")
def caseops(tmp_path_factory):
    """A dataset of transformed text."""
    model = spm_models.model(user_defined_symbols=OPERATORS)
    folder = tmp_path_factory.mktemp("caseops")
    return spm_models.dataset(folder, TEXTS, model, "tokenize.transform=caseops_v1")


def published(folder, model, **splits):
    """Shards without a manifest: a list of streams per split."""
    folder.mkdir(exist_ok=True)
    (folder / "t.model").write_bytes(model)
    for split, shards in splits.items():
        for number, ids in enumerate(shards):
            write_shard(folder / f"fineweb_{split}_{number:06d}.bin", np.array(ids, np.uint16))
    return folder


def stream(model, texts):
    """BOS and ids of every text."""
    processor = load_tokenizer(model, "test")
    return [index for text in texts for index in (BOS, *processor.encode(text))]


def slow_figures(model, ids):
    """Everything about a stream of plain text, counted one token after the other."""
    processor = load_tokenizer(model, "test")
    counts = Counter(ids)
    documents = [[]]
    for index in ids:
        if index == BOS:
            documents.append([])
        documents[-1].append(index)
    whole = [document for document in documents if document and document[0] == BOS]
    entropy = sum(-count / len(ids) * math.log2(count / len(ids)) for count in counts.values())
    decoded = sum(len(processor.decode(document[1:]).encode()) for document in whole)
    return {
        "documents": len(whole),
        "tokens": len(ids),
        "bytes": decoded,
        "lengths": [len(document) for document in whole],
        "used": len(counts),
        "in_bytes": sum(count for index, count in counts.items() if processor.is_byte(index)),
        "entropy": entropy,
        "most": sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:10],
    }


def check_figures(entry, slow, vocab_size):
    """A split of the document against an independent count."""
    assert (entry["documents"], entry["tokens"]) == (slow["documents"], slow["tokens"])
    assert entry["charged_bytes"] == slow["bytes"]
    assert entry["bytes_per_token"] == pytest.approx(slow["bytes"] / slow["tokens"])
    lengths = sorted(slow["lengths"])
    assert entry["tokens_per_document"] == {
        "median": (lengths[(len(lengths) - 1) // 2] + lengths[len(lengths) // 2]) / 2,
        "mean": pytest.approx(sum(lengths) / len(lengths)),
        "max": lengths[-1],
        "min": lengths[0],
    }
    assert entry["longest"]["index"] == slow["lengths"].index(lengths[-1])
    assert entry["shortest"]["index"] == slow["lengths"].index(lengths[0])
    use = entry["vocabulary"]
    assert (use["used_ids"], use["unused_ids"]) == (slow["used"], vocab_size - slow["used"])
    assert use["byte_tokens"] == slow["in_bytes"]
    assert use["byte_share"] == pytest.approx(slow["in_bytes"] / slow["tokens"])
    assert use["entropy_bits"] == pytest.approx(slow["entropy"])
    assert use["unigram_bpb"] == pytest.approx(slow["entropy"] * slow["tokens"] / slow["bytes"])
    assert [(one["id"], one["count"]) for one in use["most_frequent"]] == slow["most"]
    assert all(one["share"] == pytest.approx(one["count"] / slow["tokens"]) for one in use["most_frequent"])


# Figures


@pytest.mark.parametrize("chunk", [7, 64, 1 << 22])
def test_figures_of_published_shards(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    model = spm_models.model()
    train, val = stream(model, TEXTS[4:]), stream(model, TEXTS[:4])
    cuts = [0, 1, 90, 91, 200, len(train)]
    folder = published(tmp_path / "x", model, train=[train[a:b] for a, b in zip(cuts, cuts[1:])], val=[val])
    document = data_show(folder)
    check_figures(document["splits"]["train"], slow_figures(model, train), 480)
    check_figures(document["splits"]["val"], slow_figures(model, val), 480)
    assert document["never_used_ids"] == 480 - len({*train, *val})
    assert document["splits"]["train"]["charged_from"] == "byte table"
    assert document["splits"]["train"]["lengths_from"] == "positions of BOS"
    assert document["splits"]["train"]["raw_bytes"] is None
    assert document["splits"]["train"]["shards"] == 5
    assert "no manifest" in document["warnings"][0]


@pytest.mark.parametrize("chunk", [7, 1 << 22])
def test_figures_of_a_dataset(plain, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    model, document = spm_models.model(), data_show(plain)
    manifest = json.loads((plain / "manifest.json").read_text())
    for name, texts in (("train", TEXTS[5:]), ("val", TEXTS[:5])):
        entry = document["splits"][name]
        check_figures(entry, slow_figures(model, stream(model, texts)), 480)
        assert entry["raw_bytes"] == sum(len(text.encode()) for text in texts)
        assert entry["normalised_bytes"] == manifest["splits"][name]["normalised_bytes"]
        assert (entry["charged_from"], entry["lengths_from"]) == ("manifest", "document list")
        longest = texts[entry["longest"]["index"]]
        assert entry["longest"]["bytes"] == len(longest.encode())
        normal = load_tokenizer(model, "test").normalize(longest).replace("\u2581", " ")
        assert entry["longest"]["text"] == visible(normal)[:60]
    assert document["rule_words"] == (
        f"of documents 0 to {len(TEXTS) - 1}, the first 5 of the corpus are for validation"
    )


def test_the_byte_table_agrees_with_the_manifest(plain, tmp_path):
    for path in plain.glob("*.bin"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    bare = data_show(tmp_path, plain / "tokenizer.model")
    noted = data_show(plain)
    for name in ("train", "val"):
        assert bare["splits"][name]["charged_from"] == "byte table"
        for key in ("charged_bytes", "documents", "tokens", "tokens_per_document", "vocabulary"):
            assert bare["splits"][name][key] == noted["splits"][name][key]


SPACED = np.flatnonzero(byte_table(load_tokenizer(spm_models.model(), "test"), 480).lead).tolist()
some_id = st.one_of(st.integers(0, 3), st.sampled_from(SPACED), st.integers(0, 479))


@given(st.lists(some_id, min_size=1, max_size=80), st.integers(1, 90))
@example([2, 3, SPACED[0], 1, SPACED[0]], 1)
@example([SPACED[0], SPACED[1], 3, SPACED[0]], 3)
def test_the_tally_charges_what_the_table_charges(ids, size):
    table = byte_table(load_tokenizer(spm_models.model(), "test"), 480)
    values, tally = np.array(ids, np.uint16), Tally(table, True)
    for at in range(0, len(values), size):
        tally.add(values[at : at + size])
    assert tally.charged_bytes == table.charges(values).sum()
    assert tally.counts[:480].tolist() == np.bincount(values, minlength=480).tolist()
    assert np.concatenate(tally.starts).tolist() == [at for at, index in enumerate(ids) if index == BOS]


def test_entropy_of_known_distributions():
    assert entropy_bits(np.array([5, 5, 0, 5, 5])) == pytest.approx(2)
    assert entropy_bits(np.array([0, 9])) == 0
    assert math.copysign(1, entropy_bits(np.array([0, 9]))) == 1


def test_transformed_text(caseops, tmp_path):
    document = data_show(caseops, documents=3, tokens=500)
    val = document["splits"]["val"]
    assert document["transform"] == "caseops_v1"
    assert val["charged_bytes"] == val["raw_bytes"] == sum(len(text.encode()) for text in TEXTS[:5])
    assert "<T>" in {piece["piece"] for shown in document["shown"] for piece in shown["pieces"]}
    nasa = document["shown"][2]["pieces"]
    assert [piece["piece"] for piece in nasa if piece["kind"] == "operator"] == ["<A>", "<C>"]
    for path in (*caseops.glob("*.bin"), caseops / "tokenizer.model"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    bare = data_show(tmp_path)
    assert bare["transform"] == "caseops_v1"
    assert bare["splits"]["val"]["charged_bytes"] == val["charged_bytes"]
    assert bare["splits"]["val"]["charged_from"] == "byte sidecars"
    assert bare["splits"]["train"]["charged_bytes"] is bare["splits"]["train"]["bytes_per_token"] is None
    assert bare["splits"]["train"]["vocabulary"]["unigram_bpb"] is None
    assert bare["splits"]["val"]["longest"]["bytes"] is None
    assert bare["splits"]["val"]["longest"]["text"] == val["longest"]["text"]
    sidecar = next(tmp_path.glob("*_val_bytes_*.bin"))
    write_shard(sidecar, np.zeros(3, np.uint16))
    with pytest.raises(InputError, match="not as long as the shards"):
        data_show(tmp_path)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (None, "not recorded: the shards come as they are"),
        (
            {"split": "hash", "val_share": 0.05, "documents": [0, 1200]},
            "of documents 0 to 1,199, those whose SHA-256 lies in the lowest 5 %",
        ),
        ({"split": "first", "val_docs": 50_000, "documents": [9, 99]}, "of documents 9 to 98, the first 50,000 of"),
        ({"split": "first", "documents": ["a", "b"]}, "recorded, but not in a way known here"),
    ],
)
def test_split_rules_in_words(rule, words):
    assert module.rule_words(rule).startswith(words)


def test_shown_documents_are_the_documents(plain):
    processor = load_tokenizer(spm_models.model(), "test")
    document = data_show(plain, documents=100, tokens=9, shown_split="train")
    assert len(document["shown"]) == len(TEXTS) - 5
    for number, shown in enumerate(document["shown"]):
        ids = processor.encode(TEXTS[5 + number])
        assert shown["index"] == number
        assert shown["tokens"] == len(ids) + 1
        assert [piece["id"] for piece in shown["pieces"]] == ids[:9]


def test_train_is_shown_where_there_is_no_val(tmp_path):
    model = spm_models.model()
    folder = published(tmp_path / "x", model, train=[stream(model, TEXTS[4:9])])
    assert data_show(folder)["shown_split"] == "train"
    assert list(data_show(folder)["splits"]) == ["train"]
    with pytest.raises(InputError, match=r"no val shards.*it has train"):
        data_show(folder, shown_split="val")


def test_a_stream_that_begins_in_a_document_or_has_none(tmp_path):
    model = spm_models.model()
    ids = stream(model, TEXTS[4:9])
    entry = data_show(published(tmp_path / "x", model, train=[ids[3:]]))["splits"]["train"]
    assert entry["documents"] == 4
    assert entry["tokens_before_first_document"] == ids.index(BOS, 1) - 3
    headless = published(tmp_path / "y", model, train=[ids[1:7]])
    document = data_show(headless)
    assert document["splits"]["train"]["documents"] == len(document["shown"]) == 0
    assert document["splits"]["train"]["tokens_per_document"] is None
    assert document["splits"]["train"]["tokens_before_first_document"] == 6


# Damage


@pytest.mark.parametrize("damage", ["short", "junk", "wrong"])
def test_a_document_list_that_does_not_fit(tmp_path, damage):
    folder = spm_models.dataset(tmp_path, TEXTS, spm_models.model())
    path = folder / "documents_train.npy"
    entries = np.load(path)
    if damage == "junk":
        path.write_bytes(b"\x93NUMPY\x01\0junk")
    else:
        np.save(path, entries[1:] if damage == "short" else np.arange(9))
    with pytest.raises(InputError, match=r"document list.*documents_train\.npy"):
        data_show(folder)


def test_an_id_beyond_the_vocabulary(tmp_path):
    folder = spm_models.dataset(tmp_path, TEXTS, spm_models.model())
    write_shard(folder / "fineweb_val_000000.bin", np.array([1, 480] + [5] * 400, np.uint16))
    (folder / "documents_val.npy").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["splits"]["val"]["document_list"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="token id 480 is beyond the vocabulary of 480"):
        data_show(folder)


# What is shown


@given(st.text())
def test_nothing_hidden_is_left_visible(text):
    shown = visible(text, "caseops_v1")
    assert shown.isprintable()
    assert not set(shown) & set(OPERATORS)
    if text.isprintable():
        assert visible(text) == text


def test_pieces_that_would_act_on_a_terminal(tmp_path):
    symbols = ("\x1b[31m", "\n", "[/nope]", "\u202e")
    model = spm_models.model(normalization_rule_name="identity", user_defined_symbols=symbols)
    ids = [BOS, *load_tokenizer(model, "test").encode("a".join(("", *symbols)))]
    document = data_show(published(tmp_path / "x", model, val=[ids]))
    shown = [piece["piece"] for piece in document["shown"][0]["pieces"]]
    assert shown == ["a", "\\x1b[31m", "a", "\\n", "a", "[/nope]", "a", "\\u202e"]
    assert document["splits"]["val"]["longest"]["text"] == "a\\x1b[31ma a[/nope]a\\u202e"


# Real data


def test_the_size_in_a_folder_name_finds_the_tokenizer(shared):
    document = data_show(shared / "data" / "fineweb" / "sp4096")
    assert document["vocab_size"] == 4096
