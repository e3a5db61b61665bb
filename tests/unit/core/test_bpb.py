"""Bits per byte: charges are the challenge's to the byte, and scores are sums that can be split anywhere."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.core.bpb import OPERATOR, ByteTable, Score, byte_table, load_tokenizer, validation_stream
from pgolf.core.errors import InputError
from pgolf.core.shards import open_shard, write_shard

TOKENIZERS = (
    "fineweb_1024_bpe",
    "fineweb_4096_bpe",
    "fineweb_8192_bpe",
    "fineweb_8192_bpe_lossless_caps_caseops_v1_reserved",
    "fineweb_8192_bpe_ternary_record",
    "fineweb_16384_bpe",
)


def read_tokenizer(shared, name):
    """A supplied tokenizer."""
    path = shared / "data" / "tokenizers" / f"{name}.model"
    return load_tokenizer(path.read_bytes(), str(path))


class Pieces:
    """A stand-in tokenizer: pad, BOS, unknown, unused, one byte piece, then the given pieces."""

    special = ("<pad>", "<s>", "<unk>", "<gone>", "<0xE2>")
    unk_id = staticmethod(lambda: 2)

    def __init__(self, *pieces):
        self.pieces = [*self.special, *pieces]

    def vocab_size(self):
        return len(self.pieces)

    def id_to_piece(self, index):
        return self.pieces[index]

    def piece_to_id(self, piece):
        return self.pieces.index(piece) if piece in self.pieces else 2

    def is_control(self, index):
        return index < 2

    def is_unknown(self, index):
        return index == 2

    def is_unused(self, index):
        return index == 3

    def is_byte(self, index):
        return index == 4


# Tables


def test_every_supplied_tokenizer_is_covered(shared):
    assert sorted(path.stem for path in (shared / "data" / "tokenizers").glob("*.model")) == sorted(TOKENIZERS)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_byte_tables_golden(shared, oracle, name):
    data = oracle("data_luts.npz")
    info = json.loads(str(data["meta"]))["info"][name]
    table = byte_table(read_tokenizer(shared, name), info["table"])
    np.testing.assert_array_equal(table.base, data[f"{name}.bytes"])
    np.testing.assert_array_equal(table.lead, data[f"{name}.leading_space"])
    np.testing.assert_array_equal(table.boundary, data[f"{name}.boundary"])
    assert int(table.base.sum()) == info["sum_bytes"]
    assert (table.base[info["space_id"]], table.lead[info["space_id"]]) == (0, True)


def test_the_rules_piece_by_piece():
    table = byte_table(Pieces("\u2581", "\u2581the", "cat", "\u00e9\u2603"), 12)
    assert table.base.tolist() == [0, 0, 0, 0, 1, 0, 3, 3, 5, 0, 0, 0]
    assert table.lead.tolist() == [False] * 5 + [True, True] + [False] * 5
    assert table.boundary.tolist() == [True] * 4 + [False] * 5 + [True] * 3
    assert table.typical.tolist() == [0, 0, 0, 0, 1, 1, 4, 3, 5, 0, 0, 0]


def test_a_model_smaller_than_the_tokenizer_does_not_shrink_the_table():
    assert len(byte_table(Pieces("\u2581", "a"), 3).base) == 7


@pytest.mark.parametrize(
    ("ids", "charges"),
    [
        ([1, 6, 7], [3, 3]),
        ([7, 6, 6], [4, 4]),
        ([2, 5, 5, 8], [0, 1, 5]),
        ([7, 4, 4, 4, 5], [1, 1, 1, 1]),
        ([6, 1, 6, 0, 6, 11, 5], [0, 3, 0, 3, 0, 0]),
        ([6], []),
    ],
)
def test_a_leading_space_is_charged_unless_it_follows_a_boundary(ids, charges):
    table = byte_table(Pieces("\u2581", "\u2581the", "cat", "\u00e9\u2603"), 12)
    assert table.charges(np.array(ids)).tolist() == charges


def test_a_tokenizer_without_a_bare_space_piece_is_refused():
    with pytest.raises(InputError, match=r"no bare space piece.*#897"):
        byte_table(Pieces("\u2581the", "cat"), 16)


def test_a_bare_space_that_is_not_marked_does_not_help():
    with pytest.raises(InputError, match="no bare space piece"):
        byte_table(Pieces(" ", "\u2581the"), 16)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x0a\xff\xff\xff\xff\x0f"])
def test_a_file_that_is_no_tokenizer_is_refused(content):
    with pytest.raises(InputError, match=r"SentencePiece|empty") as caught:
        load_tokenizer(content, "some.model")
    assert "some.model" in str(caught.value)


# Charges of real text


def test_shard_bytes_golden(shared, oracle):
    data = oracle("data_shard_bytes.npz")
    ids = np.asarray(open_shard(shared / "data" / "fineweb" / "fineweb_val_000000.bin"))
    charges = byte_table(read_tokenizer(shared, "fineweb_1024_bpe"), 1024).charges(ids)
    assert len(ids) == data["total_tokens"]
    assert len(charges) == data["scored_tokens"]
    assert charges.dtype == np.int32
    assert int(charges.sum()) == data["total_bytes"]
    np.testing.assert_array_equal(charges[:400], data["first_charges"])
    starts = np.flatnonzero(ids == 1)
    assert len(starts) == data["bos_count"]
    np.testing.assert_array_equal(starts[:50], data["doc_starts"])
    documents = [int(charges[start : stop - 1].sum()) for start, stop in zip(starts[:20], starts[1:21], strict=True)]
    assert documents == data["doc_bytes_first20"].tolist() == data["decoded_utf8_bytes_first20"].tolist()
    for length in (1024, 2048):
        usable = int(data[f"usable_tokens_L{length}"])
        assert usable == len(charges) // length * length
        assert int(charges[:usable].sum()) == data[f"usable_bytes_L{length}"]


@given(st.lists(st.integers(0, 11), min_size=2, max_size=60), st.data())
def test_charges_do_not_depend_on_where_a_stream_is_cut(ids, data):
    table = byte_table(Pieces("\u2581", "\u2581the", "cat", "\u00e9\u2603"), 12)
    cut = data.draw(st.integers(0, len(ids) - 1))
    stream = np.array(ids)
    parts = [table.charges(stream[: cut + 1]), table.charges(stream[cut:])]
    assert np.concatenate(parts).tolist() == table.charges(stream).tolist()


@pytest.mark.parametrize("chunk", [1, 7, 49, 50, 1000])
def test_charges_do_not_depend_on_how_many_are_looked_up_at_once(rng, monkeypatch, chunk):
    table = byte_table(Pieces("\u2581", "\u2581the", "cat", "\u00e9\u2603"), 12)
    ids = rng.integers(0, 12, 50)
    singly = [int(table.charges(ids[place : place + 2])[0]) for place in range(49)]
    monkeypatch.setattr("pgolf.core.bpb.CHARGE_CHUNK", chunk)
    assert table.charges(ids).tolist() == singly


def shards_of(folder, **parts):
    """A folder of shards: the end of a file's name, without its number's zeros, -> its ids or bytes."""
    for name, ids in parts.items():
        kind, _, number = name.rpartition("_")
        write_shard(folder / f"some_{kind}_{int(number):06}.bin", np.array(ids))
    return folder


def test_plain_text_is_charged_by_its_ids_over_all_shards(tmp_path):
    tokenizer = Pieces("\u2581", "\u2581the", "cat")
    folder = shards_of(tmp_path, val_1=[6, 7], val_0=[1, 6], train_0=[5, 5], val_bytes_0=[9, 9], val_bytes_1=[9, 9])
    ids, charges = validation_stream(folder, tokenizer, 9)
    assert (ids.tolist(), charges.tolist()) == ([1, 6, 6, 7], [3, 4, 3])


def test_transformed_text_is_charged_what_its_sidecars_say(tmp_path):
    tokenizer = Pieces("\u2581", "\u2581the", "cat", OPERATOR)
    folder = shards_of(tmp_path, val_0=[1, 6, 8], val_1=[6, 7], val_bytes_0=[9, 3, 0], val_bytes_1=[5, 700])
    ids, charges = validation_stream(folder, tokenizer, 9)
    assert (ids.tolist(), charges.tolist()) == ([1, 6, 8, 6, 7], [3, 0, 5, 700])


@pytest.mark.parametrize(
    "sidecars",
    [{}, {"val_bytes_0": [9, 3, 0]}, {"val_bytes_0": [9, 3, 0], "val_bytes_1": [5]}, {"val_bytes_0": [9, 3, 0, 5, 7]}],
)
def test_transformed_text_without_fitting_sidecars_is_refused(tmp_path, sidecars):
    folder = shards_of(tmp_path, val_0=[1, 6, 8], val_1=[6, 7], train_0=[1, 2], **sidecars)
    with pytest.raises(InputError, match=r"shards of \[3, 2\] ids need byte sidecars as long"):
        validation_stream(folder, Pieces("\u2581", OPERATOR, "a", "b"), 9)


def test_a_folder_without_validation_shards_is_refused(tmp_path):
    for folder in (shards_of(tmp_path, train_0=[1, 2], val_bytes_0=[1, 2]), tmp_path / "none"):
        with pytest.raises(InputError, match="no validation shards"):
            validation_stream(folder, Pieces("\u2581", "a"), 7)


# Score


def test_bits_per_byte_of_known_sums():
    score = Score(nats=1000 * math.log(2), tokens=400, bytes=800)
    assert score.bpb == pytest.approx(1.25, rel=1e-12)
    assert score.val_loss == pytest.approx(2.5 * math.log(2), rel=1e-12)


losses = st.lists(st.tuples(st.floats(0, 20), st.integers(0, 30)), min_size=1, max_size=50)


def score_of(pairs):
    """The score of some (nats, bytes) targets."""
    return Score(sum(nats for nats, _ in pairs), len(pairs), sum(size for _, size in pairs))


@given(losses, st.data())
def test_scores_add_whatever_the_split(pairs, data):
    cut = data.draw(st.integers(0, len(pairs)))
    whole, parts = score_of(pairs), score_of(pairs[:cut]) + score_of(pairs[cut:])
    assert (parts.tokens, parts.bytes) == (whole.tokens, whole.bytes)
    assert parts.nats == pytest.approx(whole.nats, rel=1e-12, abs=1e-12)
    if whole.bytes:
        assert parts.bpb == pytest.approx(whole.bpb, rel=1e-12, abs=1e-12)


def test_a_ratio_of_sums_is_not_a_mean_of_ratios():
    first, second = Score(8.0, 4, 4), Score(1.0, 4, 12)
    assert (first + second).bpb == pytest.approx(9 / (16 * math.log(2)))
    assert (first + second).bpb != pytest.approx((first.bpb + second.bpb) / 2)


def test_tables_keep_charges_exact_beyond_int16():
    table = ByteTable(np.full(3, 40_000), np.ones(3, bool), np.zeros(3, bool))
    assert table.charges(np.array([0, 1, 2])).tolist() == [40_001, 40_001]
