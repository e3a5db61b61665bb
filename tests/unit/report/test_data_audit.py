"""data_audit against independent counts, on streams made by hand and on datasets damaged on purpose."""

import json
import shutil
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import spm_models

from pgolf.core.bpb import byte_table, load_tokenizer
from pgolf.core.errors import InputError, RuleError
from pgolf.core.shards import open_shard, write_shard
from pgolf.corpus.transforms import get_transform
from pgolf.dataset import BOS, DOCUMENT
from pgolf.report.console import Console
from pgolf.report.data_audit import audit, verdict_error
from pgolf.report.data_totals import count, judge_claim, pieces_of

SPACE = "\u2581"
OPERATORS = ("\ue001", "\ue002", "\ue003", "\ue004")
REGRESSION = {"The quick brown FOX.": 26, "The NASA Launch of iPhone": 37}
"""Text -> what the known-bad sidecar charges it (spec: data 6.3)."""
TEXTS = (
    "Two  blanks, a na\u00efve caf\u00e9, and NASA's iPhone \u4e2d\u6587 \U0001f600",
    *REGRESSION,
    *spm_models.sentences()[:60],
)
caseops = get_transform("caseops_v1")


def run(folder, *text, tokenizer=None, claimed=None, expected=50_000):
    """The audit's document."""
    return audit(folder, tokenizer, [*text], claimed, expected, Console(quiet=True))


def found(document, *levels):
    """Checks with findings of these levels, as a set."""
    return {finding["check"] for finding in document["findings"] if finding["level"] in (levels or ("corrupt",))}


def of(document, check):
    """The findings of a check."""
    return [finding for finding in document["findings"] if finding["check"] == check]


def wrong_totals(document):
    """Mistake -> bytes."""
    return {mistake["name"]: mistake["bytes"] for mistake in document["mistakes"]}


def stream(processor, texts):
    """BOS and ids of every text."""
    return [index for text in texts for index in (BOS, *processor.encode(text))]


def published(folder, model, **rows):
    """Shards without a manifest: a list of streams per val, train, or val_bytes."""
    folder.mkdir(exist_ok=True)
    (folder / "t.model").write_bytes(model)
    for kind, shards in rows.items():
        for number, ids in enumerate(shards):
            write_shard(folder / f"fineweb_{kind}_{number:06d}.bin", np.array(ids, np.uint16))
    return folder


@pytest.fixture(scope="module")
def model():
    """A tokenizer of plain text."""
    return spm_models.model()


@pytest.fixture(scope="module")
def caseops_model():
    """A tokenizer of transformed text."""
    return spm_models.model(user_defined_symbols=OPERATORS)


@pytest.fixture(scope="module")
def made(tmp_path_factory, model):
    """A dataset of plain text in shards of 200 tokens."""
    return spm_models.dataset(tmp_path_factory.mktemp("plain"), TEXTS, model, "tokenize.shard_tokens=200")


@pytest.fixture(scope="module")
def made_caseops(tmp_path_factory, caseops_model):
    """A dataset of transformed text."""
    folder = tmp_path_factory.mktemp("caseops")
    return spm_models.dataset(folder, TEXTS, caseops_model, "tokenize.transform=caseops_v1", "tokenize.shard_tokens=60")


@pytest.fixture
def copy(made, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "data"))


@pytest.fixture
def copy_caseops(made_caseops, tmp_path):
    """A copy of the transformed one."""
    return Path(shutil.copytree(made_caseops, tmp_path / "caseops"))


# Clean data


def test_a_clean_dataset_passes(made):
    before = {path.name: path.read_bytes() for path in made.iterdir() if path.is_file()}
    document = run(made, made.parent / "docs.jsonl")
    assert document["verdict"] == "passed" and verdict_error(document) is None
    assert found(document, "corrupt", "violation", "warning") == set()
    manifest = json.loads((made / "manifest.json").read_text())
    for name, split in document["splits"].items():
        recorded = manifest["splits"][name]
        totals = {key: entry["bytes"] for key, entry in split["totals"].items()}
        assert totals["raw"] == recorded["raw_bytes"] and totals["normalised"] == recorded["normalised_bytes"]
        assert totals["table"] == totals["decoded"] == recorded["charged_bytes"]
        assert (split["tokens"], split["documents"]) == (recorded["tokens"], recorded["documents"])
        assert split["true"] == "table"
    text = document["text"]
    assert text["documents"] == len(TEXTS) and text["unmatched"] == 0
    assert text["matched"] == {name: split["documents"] for name, split in document["splits"].items()}
    assert text["totals_differ"] >= 1 and text["totals_differ_examples"][0]["document"] == 0
    assert before == {path.name: path.read_bytes() for path in made.iterdir() if path.is_file()}
    json.dumps(document, allow_nan=False)


def test_clean_transformed_text_passes(made_caseops):
    document = run(made_caseops, made_caseops.parent / "docs.jsonl")
    assert document["verdict"] == "passed" and found(document, "warning") == set(), document["findings"]
    val = document["splits"]["val"]
    raw = sum(len(text.encode()) for text in TEXTS[:5])
    assert val["true"] == "sidecar" and val["totals"]["sidecar"]["bytes"] == val["totals"]["raw"]["bytes"] == raw
    assert val["totals"]["table"]["bytes"] > raw
    assert document["text"]["sidecar_wrong"] == 0


def test_without_a_manifest_the_same_totals_come_out(made, tmp_path):
    shards = [path for path in made.iterdir() if path.suffix == ".bin"]
    for path in (*shards, made / "tokenizer.model"):
        shutil.copy(path, tmp_path)
    bare, full = run(tmp_path), run(made)
    assert bare["verdict"] == "passed" and of(bare, "no-manifest")
    for name in ("val", "train"):
        for total in ("table", "decoded"):
            assert bare["splits"][name]["totals"][total] == full["splits"][name]["totals"][total]
    assert bare["mistakes"] == full["mistakes"]


def test_an_old_dataset_without_lists_passes(request):
    golden = Path(request.config.rootpath) / "tests" / "golden" / "formats_v1" / "data"
    document = run(golden)
    assert document["verdict"] == "passed", document["findings"]


def test_totals_at_the_challenges_lengths(model, tmp_path):
    processor = load_tokenizer(model, "test")
    ids = np.array(stream(processor, spm_models.sentences()), np.int64)
    charges = byte_table(processor, 480).charges(ids)
    document = run(published(tmp_path, model, val=[ids[:5000], ids[5000:]]))
    whole = run(published(tmp_path, model, val=[ids[:1500], ids[1500:4096]]))["splits"]["val"]["truncated"]
    assert whole["1024"]["tokens"] == 3072 and whole["2048"] == {"tokens": 2048, "bytes": int(charges[:2048].sum())}
    for length in (1024, 2048):
        usable = (len(ids) - 1) // length * length
        cut = document["splits"]["val"]["truncated"][str(length)]
        assert cut == {"tokens": usable, "bytes": int(charges[:usable].sum())}


# Mistakes


def slow_mistakes(processor, ids):
    """Every wrong table, one token after the other, each by its own description."""
    sums = dict.fromkeys(("true", "double-space", "byte-as-three", "space-as-bytes", "mark-as-three"), 0)
    sums |= {"inner-mark-as-three": 0, "space-after-bos": 0}
    for before, target in pairwise(ids):
        if processor.is_control(target) or processor.is_unknown(target) or processor.is_unused(target):
            continue
        piece = processor.id_to_piece(target)
        after_boundary = processor.is_control(before) or processor.is_unknown(before) or processor.is_unused(before)
        if processor.is_byte(target):
            for name in sums:
                sums[name] += 3 if name == "byte-as-three" else 1
            continue
        lead = piece[0] == SPACE
        rest = piece[1:] if lead else piece
        size, space = len(rest.replace(SPACE, " ").encode()), int(lead and not after_boundary)
        sums["true"] += size + space
        sums["byte-as-three"] += size + space
        sums["double-space"] += len(piece.replace(SPACE, " ").encode()) + space
        sums["space-as-bytes"] += size + 2 * rest.count(SPACE) + 3 * space
        sums["mark-as-three"] += len(piece.encode())
        sums["inner-mark-as-three"] += len(rest.encode()) + space
        sums["space-after-bos"] += size + lead
    return sums


def test_every_mistake_has_the_number_it_would_give(model, rng, tmp_path):
    model = spm_models.edited(model, lambda message: setattr(message.pieces[400], "piece", f"{SPACE}a{SPACE}b"))
    processor = load_tokenizer(model, "test")
    random = rng.integers(0, 480, 4000).tolist()
    ids = [*stream(processor, TEXTS), BOS, *(index for index in random if index != 1), BOS, 400, 300, 2, 400, 3, 401]
    document = run(published(tmp_path, model, val=[ids[:1500], ids[1500:]]))
    slow = slow_mistakes(processor, ids)
    assert document["splits"]["val"]["totals"]["table"]["bytes"] == slow.pop("true")
    assert wrong_totals(document) == slow
    assert len(set(slow.values())) == len(slow), "every mistake must be told from the others"


def test_the_table_is_the_one_of_scoring(model, caseops_model):
    for content in (model, caseops_model):
        processor = load_tokenizer(content, "test")
        table, mine = byte_table(processor, processor.vocab_size()), pieces_of(processor).table
        for name in ("base", "lead", "boundary"):
            np.testing.assert_array_equal(getattr(table, name), getattr(mine, name)[: processor.vocab_size()])
        assert not mine.base[processor.vocab_size() :].any() and mine.boundary[processor.vocab_size() :].all()


@pytest.mark.parametrize("claimed", ["double-space", "byte-as-three", "space-as-bytes"])
def test_a_claim_that_is_a_mistake_is_named(made, claimed):
    document = run(made)
    document = run(made, claimed=wrong_totals(document)[claimed])
    assert document["claim"]["kind"] == "mistake" and claimed in document["claim"]["equals"]
    assert found(document, "violation") == {"claimed-bytes"}
    assert isinstance(verdict_error(document), RuleError)


def test_claims_that_are_true_or_nothing(made):
    table = run(made)["splits"]["val"]["totals"]["table"]["bytes"]
    document = run(made, claimed=table)
    assert document["verdict"] == "passed" and document["claim"]["equals"] == ["table"]
    document = run(made, claimed=round(table * 1.05))
    assert document["claim"]["kind"] == "unknown" and document["claim"]["off"] > 1e-3
    assert document["claim"]["nearest"] and found(document, "violation") == {"claimed-bytes"}


def test_claims_at_the_edge_of_equality():
    truths = {"table": 1_000_000}
    assert judge_claim(1_000_100, truths, [])["kind"] == "true"
    assert judge_claim(1_000_101, truths, [])["kind"] == "unknown"
    assert judge_claim(999_900, truths, [])["kind"] == "true"


def test_recorded_totals_of_a_mistake_are_a_violation(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["val"]["charged_bytes"] = wrong_totals(run(copy))["double-space"]
    manifest["splits"]["train"]["documents"] += 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    document = run(copy)
    assert document["verdict"] == "violated" and len(of(document, "recorded-totals")) == 2
    assert any("issue" in row["what"] or "leading space" in row["what"] for row in of(document, "recorded-totals"))


def test_a_tokenizer_without_a_bare_space_piece(model, tmp_path):
    bare = next(i for i in range(480) if load_tokenizer(model, "test").id_to_piece(i) == SPACE)
    model = spm_models.edited(model, lambda message: setattr(message.pieces[bare], "piece", "\u4e00"))
    ids = stream(load_tokenizer(model, "test"), TEXTS)
    document = run(published(tmp_path, model, val=[ids]))
    assert "bare-space" in found(document, "violation")


# Sidecars


def good_and_bad_charges(processor, text):
    """Charges of a document, BOS included: right, and by the known-bad algorithm. That one decodes every prefix of the
    transformed text and takes differences of lengths; a prefix that ends in an operator does not decode, so the slice
    itself is charged, and the length it is compared with stays behind.
    """
    coded = caseops.encode(text)
    mapping = processor.encode_as_offset_mapping(coded)
    good, bad, done = [0], [0], 0
    for start, end in mapping["offsets"]:
        good.append(int(caseops.char_bytes(coded)[start:end].sum()))
        try:
            size = len(caseops.decode(coded[:end]).encode())
        except InputError:
            bad.append(len(coded[start:end].encode()))
        else:
            bad.append(size - done)
            done = size
    return [BOS, *mapping["ids"]], good, bad


def sidecar_dataset(folder, model, texts, bad):
    """Published shards with sidecars of either kind."""
    processor = load_tokenizer(model, "test")
    rows = [good_and_bad_charges(processor, text) for text in texts]
    ids = [index for row in rows for index in row[0]]
    return published(folder, model, val=[ids], val_bytes=[[size for row in rows for size in row[2 if bad else 1]]])


@pytest.mark.parametrize(("text", "charged"), REGRESSION.items())
def test_the_known_bad_sidecar_is_caught(caseops_model, tmp_path, text, charged):
    assert sum(good_and_bad_charges(load_tokenizer(caseops_model, "test"), text)[2]) == charged
    document = run(sidecar_dataset(tmp_path / "bad", caseops_model, [text], bad=True))
    assert document["verdict"] == "violated"
    assert found(document, "violation") == {"sidecar-total", "sidecar-operator"}
    assert "decoded prefixes" in of(document, "sidecar-total")[0]["what"]
    assert document["splits"]["val"]["true"] == "decoded"
    claim = run(tmp_path / "bad", claimed=charged)["claim"]
    assert (claim["kind"], "prefix-sidecar" in claim["equals"]) == ("mistake", True)
    document = run(sidecar_dataset(tmp_path / "good", caseops_model, [text], bad=False))
    assert document["verdict"] == "passed"
    assert document["splits"]["val"]["totals"]["sidecar"]["bytes"] == len(text.encode())
    assert wrong_totals(document)["prefix-sidecar"] == charged


def test_what_transformed_text_gives_without_sidecars(caseops_model, tmp_path):
    texts = [*TEXTS, "escaped \ue002 and \ue004\ue004 and \ue001A"]
    document = run(sidecar_dataset(tmp_path, caseops_model, texts, bad=False))
    assert document["verdict"] == "passed", document["findings"]
    processor = load_tokenizer(caseops_model, "test")
    ids, _, bad = zip(*(good_and_bad_charges(processor, text) for text in texts))
    flat = np.array([index for row in ids for index in row])
    wrong = wrong_totals(document)
    assert wrong["table-for-transformed"] == slow_mistakes(processor, flat.tolist())["true"]
    assert wrong["prefix-sidecar"] == sum(map(sum, bad))
    both = [*flat, *open_shard(tmp_path / "fineweb_val_bytes_000000.bin")]
    assert wrong["sidecar-as-tokens"] == slow_mistakes(processor, [int(index) for index in both])["true"]


def test_transformed_text_needs_its_sidecars(copy_caseops):
    names = sorted(path.name for path in copy_caseops.glob("*_bytes_*"))
    assert len(names) > 1
    (copy_caseops / names[0]).unlink()
    ids = np.asarray(open_shard(copy_caseops / names[-1]))
    write_shard(copy_caseops / names[-1], ids[:-1])
    document = run(copy_caseops)
    assert document["verdict"] == "corrupt"
    assert {"shard-missing", "shard-hash", "shard-length", "sidecar-length"} <= found(document)
    (copy_caseops / "manifest.json").unlink()
    assert {"sidecar-missing", "sidecar-length"} <= found(run(copy_caseops))


def test_a_missing_shard_does_not_shift_the_sidecars(made_caseops, copy_caseops):
    sorted(copy_caseops.glob("fineweb_val_0*"))[0].unlink()
    document = run(copy_caseops, made_caseops.parent / "docs.jsonl")
    assert found(document) == {"shard-missing", "first-bos"} and document["text"]["sidecar_wrong"] == 0


def test_a_sidecar_that_charges_what_stands_for_nothing(copy_caseops):
    path = sorted(copy_caseops.glob("*_bytes_*"))[0]
    charges, ids = np.array(open_shard(path)), np.asarray(open_shard(copy_caseops / path.name.replace("bytes_", "")))
    charges[0] = 1
    charges[np.flatnonzero(ids == 4)[0]] = 3
    write_shard(path, charges)
    (copy_caseops / "manifest.json").unlink()
    assert {"sidecar-bos", "sidecar-operator"} <= found(run(copy_caseops), "violation")


def test_a_sidecar_off_by_one_is_seen_against_the_text(made_caseops, copy_caseops):
    path = sorted(copy_caseops.glob("*_bytes_*"))[0]
    charges = np.array(open_shard(path))
    where = np.flatnonzero(charges > 1)[:2]
    charges[where[0]] += 1
    charges[where[1]] -= 1
    write_shard(path, charges)
    (copy_caseops / "manifest.json").unlink()
    assert run(copy_caseops)["verdict"] == "passed"
    document = run(copy_caseops, made_caseops.parent / "docs.jsonl")
    assert found(document, "violation") == {"sidecar-text"}
    assert document["text"]["sidecar_wrong"] == 1


def test_sidecars_taken_for_tokens(caseops_model, tmp_path):
    folder = sidecar_dataset(tmp_path, caseops_model, TEXTS, bad=False)
    assert run(folder)["verdict"] == "passed"
    (folder / "fineweb_val_bytes_000000.bin").rename(folder / "fineweb_val_000001.bin")
    assert {"sidecar-as-tokens", "sidecar-missing"} <= found(run(folder))


# Damaged files


@pytest.mark.fault(row="F16")
def test_all_bad_shards_in_one_run(copy):
    names = sorted(path.name for path in copy.glob("fineweb_train_*.bin"))
    assert len(names) >= 7
    paths = [copy / name for name in names]
    paths[0].write_bytes(paths[0].read_bytes()[:-2])
    paths[1].write_bytes(b"\1" + paths[1].read_bytes()[1:])
    paths[2].unlink()
    paths[3].write_bytes(b"")
    paths[4].write_bytes(paths[4].read_bytes() + b"\0")
    ids = np.array(open_shard(paths[5]))
    ids[7] = 60_000
    write_shard(paths[5], ids)
    (copy / "fineweb_val_extra_000000.bin").write_bytes(b"what is this")
    (copy / "documents_train.npy").write_bytes(b"\x93NUMPY garbage")
    document = run(copy)
    assert document["verdict"] == "corrupt" and isinstance(verdict_error(document), InputError)
    wheres = {Path(row["where"]).name for row in document["findings"] if row["level"] == "corrupt"}
    assert {*names[:6], "documents_train.npy"} <= wheres and not wheres & set(names[6:])
    assert {"shard-format", "shard-missing", "shard-hash", "id-range", "document-list"} <= found(document)
    assert "unknown-files" in found(document, "warning")


@pytest.mark.parametrize(
    ("change", "check", "level"),
    [
        (lambda ids: ids[ids != BOS], "no-bos", "corrupt"),
        (lambda ids: ids[1:], "first-bos", "corrupt"),
        (lambda ids: np.insert(ids, np.flatnonzero(ids == BOS)[1:], 2), "eos-appended", "warning"),
        (lambda ids: np.insert(ids, 5, 2), "control-ids", "warning"),
        (lambda ids: np.insert(ids, 5, 3), "unknown-ids", "warning"),
        (lambda ids: np.insert(ids, 5, 0), "control-ids", "warning"),
        (lambda ids: np.insert(ids, 0, BOS), "empty-documents", "warning"),
        (lambda ids: np.insert(ids, 9, 480), "id-range", "corrupt"),
    ],
)
def test_streams_that_are_not_right(model, tmp_path, change, check, level):
    ids = np.array(stream(load_tokenizer(model, "test"), TEXTS))
    assert check not in found(run(published(tmp_path, model, val=[ids])), level)
    assert check in found(run(published(tmp_path, model, val=[change(ids)])), level)


def test_bytes_that_are_no_text(model, tmp_path):
    processor = load_tokenizer(model, "test")
    half = processor.piece_to_id("<0xE4>")
    good, cut = stream(processor, TEXTS[:3]), [*stream(processor, ["cut here"]), half]
    assert run(published(tmp_path, model, val=[[*good, *cut]]))["verdict"] == "passed"
    document = run(published(tmp_path, model, val=[[*good, *cut, *good]]))
    assert found(document, "violation") == {"decoded-bytes"}
    example = document["splits"]["val"]["decoded_differ_examples"][0]
    assert example["document"] == 3 and example["decoded_bytes"] == example["charged_bytes"] + 2


def test_gaps_and_short_shards(model, tmp_path):
    ids = stream(load_tokenizer(model, "test"), TEXTS)
    published(tmp_path, model, train=[ids[:500], ids[500:700], ids[700:1200], ids[1200:1300]])
    document = run(tmp_path)
    assert [Path(row["where"]).name for row in of(document, "shard-size")] == ["fineweb_train_000001.bin"]
    (tmp_path / "fineweb_train_000001.bin").unlink()
    document = run(tmp_path)
    assert not of(document, "shard-size") and "fineweb_train_000001.bin" in of(document, "shard-gap")[0]["what"]


def test_another_tokenizer(made, model, tmp_path):
    other = tmp_path / "other.model"
    other.write_bytes(spm_models.model(model_type="unigram"))
    assert "tokenizer-hash" in found(run(made, tokenizer=other))
    processor = load_tokenizer(model, "test")
    document = run(published(tmp_path / "bare", model, val=[stream(processor, TEXTS)]), tokenizer=other)
    assert found(document) == {"tokenizer-mismatch"}


def test_a_wrong_document_list(copy):
    entries = np.load(copy / "documents_val.npy")
    entries["bytes"][0] += 1
    entries["tokens"][1] += 1
    np.save(copy / "documents_val.npy", entries)
    document = run(copy)
    assert "recorded-totals" in found(document, "violation")
    assert len(of(document, "document-list")) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": "pgolf.dataset/9"}', b"\xff\xfe", b"[" * 9000])
def test_a_manifest_of_garbage(copy, content):
    (copy / "manifest.json").write_bytes(content)
    document = run(copy)
    assert document["verdict"] == "corrupt" and found(document) == {"manifest"}
    assert document["splits"]["val"]["totals"]["table"]["bytes"] > 0


def damaged_manifests(manifest):
    """A valid manifest with one value after the other replaced."""

    def places(value, path=()):
        yield path
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, child in children:
            yield from places(child, (*path, key))

    for path in list(places(manifest))[1:]:
        for value in (None, -1, "../../etc/passwd", [], {"file": 3}):
            copied = json.loads(json.dumps(manifest))
            parent = copied
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = value
            yield path, copied


def test_no_value_of_a_manifest_breaks_the_audit(made, tmp_path, monkeypatch):
    monkeypatch.setattr("pgolf.report.data_files.read_tokenizer", lambda path: path.read_bytes())  # no trial process
    manifest = json.loads((made / "manifest.json").read_text())
    wanted = ("schema", "tokenizer", "splits", "transform", "vocab_size", "adopted_from", "rule", "resolved")
    small = {key: manifest[key] for key in wanted if key in manifest} | {"adopted_from": str(made)}
    small["resolved"] = {"tokenize": {"text_field": "text", "document_separator": ""}}
    for split in small["splits"].values():
        split["shards"] = split["shards"][:2]
    for name in ("tokenizer.model", "documents_val.npy", "documents_train.npy"):
        shutil.copy(made / name, tmp_path)
    for path, copied in damaged_manifests(small):
        (tmp_path / "manifest.json").write_text(json.dumps(copied))
        document = run(tmp_path)
        assert document["verdict"] in ("corrupt", "violated"), path
        json.dumps(document, allow_nan=False)


def test_garbage_in_every_file(made, rng, tmp_path):
    for seed in range(12):
        folder = tmp_path / str(seed)
        folder.mkdir()
        for path in made.iterdir():
            if path.is_file() and path.stat().st_size:
                content = bytearray(path.read_bytes())
                if rng.random() < 0.5 and path.name != "tokenizer.model":
                    for place in rng.integers(0, len(content), 20):
                        content[place] = rng.integers(0, 256)
                    content = content[: rng.integers(0, len(content) + 1)] if rng.random() < 0.5 else content
                (folder / path.name).write_bytes(content)
        document = run(folder)
        assert document["verdict"] == "corrupt"


def test_no_dataset_at_all(tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        run(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no dataset"):
        run(tmp_path)


def test_no_tokenizer_still_checks_the_files(made, tmp_path):
    for path in made.glob("*.bin"):
        shutil.copy(path, tmp_path)
    document = run(tmp_path)
    assert found(document) == {"tokenizer"} and document["overlap"]["documents"] == 0
    assert document["splits"]["val"]["documents"] == 5 and document["mistakes"] == []


# Documents twice


@pytest.fixture(scope="module")
def long_documents(model):
    """Documents of some 300 ids each, all different."""
    processor, lines = load_tokenizer(model, "test"), spm_models.sentences()
    return [stream(processor, [" ".join(lines[index * 12 : index * 12 + 12])]) for index in range(20)]


def test_overlap_of_every_kind(model, long_documents, tmp_path):
    docs = long_documents
    assert min(map(len, docs)) > 160
    cut, edited = docs[1][:150], [*docs[2][:140], 300, 301, 302]
    val = [docs[0], docs[1], docs[2], docs[3], docs[4], docs[4]]
    train = [*docs[10:13], docs[0], cut, edited, docs[3][:60], docs[13], docs[13], docs[5]]
    flat = list(chain(*train))
    published(tmp_path, model, val=[list(chain(*val))], train=[flat[:1000], flat[1000:2000], flat[2000:]])
    document = run(tmp_path)
    overlap = document["overlap"]
    assert (overlap["documents"], overlap["by_tokens"], overlap["openings"]) == (1, 1, 2)
    start = sum(map(len, train[:3]))
    shard = f"fineweb_train_{start // 1000:06d}.bin"
    assert overlap["examples"] == [
        {"val_document": 0, "val_shard": "fineweb_val_000000.bin", "train_document": 3, "train_shard": shard}
    ]
    assert [row["val_document"] for row in overlap["opening_examples"]] == [1, 2]
    assert [row["train_document"] for row in overlap["opening_examples"]] == [4, 5]
    assert found(document, "violation") == {"overlap"} and "overlap-openings" in found(document, "warning")
    assert document["splits"]["val"]["duplicates"] == document["splits"]["train"]["duplicates"] == 1


def test_overlap_of_texts_that_became_other_tokens(copy):
    val, train = np.load(copy / "documents_val.npy"), np.load(copy / "documents_train.npy")
    assert val.dtype == DOCUMENT
    train["hash"][[3, 5]] = val["hash"][[1, 4]]
    np.save(copy / "documents_train.npy", train)
    document = run(copy)
    assert (document["overlap"]["by_text"], document["overlap"]["by_tokens"]) == (2, 0)
    assert [row["val_document"] for row in document["overlap"]["examples"]] == [1, 4]
    assert [row["train_document"] for row in document["overlap"]["examples"]] == [3, 5]
    assert "overlap" in found(document, "violation")


def test_a_document_cut_at_a_shards_end_that_begins_again(model, long_documents, tmp_path):
    docs = long_documents
    first, second = docs[0] + docs[1] + docs[2][:100], docs[2] + docs[3]
    first, second = (first, second) if len(first) >= len(second) else (docs[4] + first, second)
    document = run(published(tmp_path, model, train=[first, second], val=[docs[9]]))
    repeat = document["splits"]["train"]["repeats"][0]
    assert repeat["tokens"] == 100
    assert (repeat["cut_in"], repeat["begins_again_in"]) == ("fineweb_train_000000.bin", "fineweb_train_000001.bin")
    assert found(document, "warning") == {"shard-repeat"} and document["verdict"] == "passed"
    whole = run(published(tmp_path, model, train=[docs[0] + docs[1] + docs[4], docs[2] + docs[3]], val=[docs[9]]))
    assert whole["splits"]["train"]["repeats"] == []
    equal = run(published(tmp_path, model, train=[docs[0] + docs[1] + docs[2], docs[2] + docs[3]], val=[docs[9]]))
    assert equal["splits"]["train"]["repeats"] == [] and equal["splits"]["train"]["duplicates"] == 1


@pytest.mark.parametrize(("tokens", "same"), [(128, True), (127, False)])
def test_how_long_an_opening_is(model, long_documents, tmp_path, tokens, same):
    first = long_documents[0][:160]
    second = [*first[: tokens + 1], *((index + 1) % 400 + 10 for index in first[tokens + 1 :])]
    document = run(published(tmp_path, model, val=[first], train=[second]))
    assert document["overlap"]["openings"] == same
    short = run(published(tmp_path, model, val=[first[:128]], train=[[*first[:128], 300]]))
    assert short["overlap"]["openings"] == 0


# Text


def write_texts(path, texts):
    """A .jsonl file."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_text_of_validation_alone_or_in_another_order(made, tmp_path):
    document = run(made, write_texts(tmp_path / "val.jsonl", TEXTS[:5]))
    assert document["verdict"] == "passed" and document["text"]["matched"] == {"val": 5, "train": 0}
    document = run(made, write_texts(tmp_path / "mixed.jsonl", TEXTS[::-1]))
    assert document["verdict"] == "passed"
    assert document["text"]["without_text"] == {"val": 0, "train": 0} and document["text"]["unmatched"] == 0
    document = run(made, write_texts(tmp_path / "part.jsonl", TEXTS[:3]))
    assert document["verdict"] == "passed" and of(document, "text-partial")


def test_text_that_is_another(made, tmp_path):
    changed = [text.replace("a", "e") if index == 2 else text for index, text in enumerate(TEXTS)]
    document = run(made, write_texts(tmp_path / "changed.jsonl", changed))
    assert found(document, "violation") == {"text-tokens"}
    assert document["text"]["unmatched_examples"][0]["text"] == 2
    assert "line 3" in document["text"]["unmatched_examples"][0]["where"]
    document = run(made, write_texts(tmp_path / "other.jsonl", ["nothing", "of this"]))
    assert found(document, "violation") == {"text-tokens"}
    document = run(made, write_texts(tmp_path / "more.jsonl", [*TEXTS, "one more"]))
    assert document["verdict"] == "passed" and found(document, "warning") == {"text-unmatched"}


def test_text_that_cannot_be_read(made, tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text(json.dumps({"text": TEXTS[0]}) + "\n{nonsense\n")
    document = run(made, path)
    assert found(document) == {"text"} and "line 2" in of(document, "text")[0]["where"]


def test_the_last_document_may_be_cut(model, tmp_path):
    ids = stream(load_tokenizer(model, "test"), TEXTS[:8])
    last = int(np.flatnonzero(np.array(ids) == BOS)[-1])
    folder = published(tmp_path / "cut", model, val=[ids[: last + (len(ids) - last) * 3 // 4]])
    document = run(folder, write_texts(tmp_path / "docs.jsonl", TEXTS[:8]))
    assert document["verdict"] == "passed" and of(document, "text-cut")
    assert document["text"]["cut"][0]["document"] == 7 and document["text"]["matched"]["val"] == 7


def test_a_document_in_both_splits_is_matched_in_both(model, tmp_path):
    processor = load_tokenizer(model, "test")
    folder = published(tmp_path, model, val=[stream(processor, TEXTS[:3])], train=[stream(processor, TEXTS[2:5])])
    document = run(folder, write_texts(tmp_path / "docs.jsonl", [*TEXTS[:3], *TEXTS[2:5]]))
    assert document["text"]["matched"] == {"val": 3, "train": 3}
    assert document["overlap"]["documents"] == 1


# Where it comes from


def test_signs_of_the_rebuild_script(model, tmp_path, monkeypatch):
    ids = stream(load_tokenizer(model, "test"), TEXTS)
    folder = published(tmp_path, model, val=[[BOS, 300] * 10_000], train=[ids[:500], ids[500:1000], ids[1000:1100]])
    monkeypatch.setattr("pgolf.report.data_checks.REBUILD_SHARD", 500)
    document = run(folder)
    assert {"val-documents"} <= found(document, "warning") and "#2127" in of(document, "val-documents")[0]["what"]
    assert of(document, "rebuild-shards")
    assert not of(run(folder, expected=10_000), "val-documents")


def test_the_canonical_size(model, tmp_path, monkeypatch):
    folder = published(tmp_path, model, val=[stream(load_tokenizer(model, "test"), TEXTS)])
    document = run(folder)
    size = document["splits"]["val"]["totals"]["table"]["bytes"]
    assert document["canonical"]["canonical"] is False and document["canonical"]["off_bytes"] == size - 151_078_000
    for off, expected in ((9_999, True), (10_000, False), (-9_999, True)):
        monkeypatch.setattr("pgolf.report.data_totals.CANONICAL_BYTES", size - off)
        assert run(folder)["canonical"]["canonical"] is expected


def test_shards_that_were_fetched(made, tmp_path):
    from pgolf.core.files import sha256_file

    folder = tmp_path / "datasets" / "fineweb10B_sp480"
    shutil.copytree(made, folder, ignore=shutil.ignore_patterns("manifest.json", "documents_*", "*.model"))
    (tmp_path / "tokenizers").mkdir()
    shutil.copy(made / "tokenizer.model", tmp_path / "tokenizers" / "fineweb_480_bpe.model")
    files = {path.name: {"sha256": sha256_file(path)} for path in folder.glob("*.bin")}
    files["fineweb_480_bpe.model"] = {"sha256": sha256_file(made / "tokenizer.model")}
    record = {"schema": "pgolf.fetched/1", "files": files}
    (folder / "fetched.json").write_text(json.dumps(record))
    document = run(folder)
    assert document["verdict"] == "passed" and not of(document, "no-manifest")
    (folder / "fineweb_train_000002.bin").unlink()
    path = folder / "fineweb_train_000001.bin"
    ids = np.array(open_shard(path))
    ids[3] += 1
    write_shard(path, ids)
    assert {"shard-missing", "shard-hash"} <= found(run(folder))


def test_counts_do_not_depend_on_shards(model, rng):
    from pgolf.report.data_opened import Row

    ids = rng.integers(0, 480, 5000).astype(np.uint16)
    pieces = pieces_of(load_tokenizer(model, "test"))
    whole = count([Row([], [ids])], pieces)
    for cuts in ([1], [4999], [1000, 1001, 3000]):
        parts = count([Row([], np.split(ids, cuts))], pieces)
        for name in ("ids", "after_boundary", "starts"):
            np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
        assert (whole.empty, whole.eos_before_bos) == (parts.empty, parts.eos_before_bos)
    assert whole.table_bytes(pieces) == byte_table(load_tokenizer(model, "test"), 480).charges(ids).sum()
