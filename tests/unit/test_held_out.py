"""The end of a training split as a dataset of its own: which tokens, and what they are charged."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from pgolf.config.load import resolve
from pgolf.core.errors import InputError
from pgolf.core.shards import write_shard
from pgolf.corpus.sources import expand
from pgolf.dataset import BOS, Dataset, open_dataset
from pgolf.report.console import Console
from pgolf.stages.held_out import find_tail, seen_in_training, tail_charges, write_tail
from pgolf.stages.model_files import ModelFile
from pgolf.stages.tokenize import tokenize

CONSOLE = Console(quiet=True)


def made(folder: Path, transform: str) -> Dataset:
    """A small tokenized dataset."""
    from pydoc_data.topics import topics

    text = folder / "docs.jsonl"
    texts = [" ".join(topics[name][:1500].title().split()) for name in sorted(topics)[:60]]
    documents = [f"The NASA iPhone said HELLO. {part}" for part in texts]
    text.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    sets = ["model.vocab_size=400", f"tokenize.transform={transform}", "tokenize.shard_tokens=9000"]
    expand([text])
    tokenize([text], folder / "data", resolve("tiny", sets), None, CONSOLE)
    return open_dataset(folder / "data")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Text as it is, several shards."""
    return made(tmp_path_factory.mktemp("plain"), "none")


@pytest.fixture(scope="module")
def transformed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Text through CaseOps."""
    return made(tmp_path_factory.mktemp("transformed"), "caseops_v1")


@pytest.mark.parametrize("targets", [500, 3000, 12_000])
def test_the_tail_is_the_last_whole_documents(plain: Dataset, targets: int) -> None:
    stream, tail = np.concatenate(plain.split("train")), find_tail(plain, targets)
    assert len(plain.shards["train"]) > 1
    assert (stream[tail.first :] == tail.ids).all() and tail.ids[0] == BOS
    assert 1 <= len(tail.ids) - 1 <= targets
    starts = np.flatnonzero(stream[: tail.first] == BOS)
    assert len(stream) - starts[-1] - 1 > targets, "one more document would have fitted"
    assert tail.documents == (tail.ids == BOS).sum()


def test_without_a_number_it_is_as_long_as_validation_but_no_tenth(plain: Dataset) -> None:
    total, validation = sum(map(len, plain.split("train"))), len(plain.validation()[0])
    assert len(find_tail(plain, 0).ids) <= min(validation, total // 10 + 1)


def test_a_tail_without_a_document_is_refused(plain: Dataset) -> None:
    with pytest.raises(InputError, match="no document begins"):
        find_tail(plain, 2)
    with pytest.raises(InputError, match="are to be scored"):
        find_tail(plain, 10**9)


@pytest.mark.parametrize("kind", ["plain", "transformed"])
def test_a_tail_becomes_a_dataset(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    dataset: Dataset = request.getfixturevalue(kind)
    tail = find_tail(dataset, 3000)
    write_tail(dataset, tail, tmp_path / "held")
    changed = (tmp_path / "held" / "fineweb_val_000000.bin").stat().st_mtime_ns
    write_tail(dataset, tail, tmp_path / "held")
    assert (tmp_path / "held" / "fineweb_val_000000.bin").stat().st_mtime_ns == changed
    held = open_dataset(tmp_path / "held")
    ids, charges = held.validation()
    assert (ids == tail.ids).all() and held.tokenizer_sha256 == dataset.tokenizer_sha256
    text_bytes = 0
    for document in np.split(ids, np.flatnonzero(ids == BOS))[1:]:
        text = dataset.tokenizer.decode(document[1:].tolist())
        if kind == "transformed":
            from pgolf.corpus.transforms import get_transform

            text = get_transform("caseops_v1").decode(text)
        text_bytes += len(text.encode())
    assert charges.sum() == text_bytes
    with pytest.raises(InputError, match="no train shards"):
        held.split("train")


def test_charges_of_transformed_text_are_those_of_the_sidecars(transformed: Dataset) -> None:
    """Validation documents, whose charges tokenizing wrote down, taken as if they were training documents."""
    ids, charges = transformed.validation()
    swapped = dataclasses.replace(
        transformed, shards={"train": transformed.shards["val"], "val": transformed.shards["train"]}
    )
    tail = find_tail(swapped, len(ids) - 1)
    assert tail.first == 0
    assert (tail_charges(swapped, tail)[1:] == charges).all()


def test_ids_that_no_text_has_are_refused(transformed: Dataset, tmp_path: Path) -> None:
    letters = [transformed.tokenizer.piece_to_id(letter) for letter in "the"]
    assert len(transformed.tokenizer.encode("the")) == 1
    ids = np.array([BOS, *range(300, 350), BOS, *letters], np.uint16)
    write_shard(tmp_path / "fineweb_train_000000.bin", ids)
    odd = dataclasses.replace(transformed, shards={"train": [tmp_path / "fineweb_train_000000.bin"]}, hashes={})
    with pytest.raises(InputError, match="--on-validation"):
        tail_charges(odd, find_tail(odd, 10))


def checkpoint(dataset: Dataset, step: int, *sets: str) -> ModelFile:
    """What a checkpoint's file says of its training."""
    config = resolve("tiny", list(sets)).config
    meta = {"step": step, "data_sha256": dataset.fingerprint("train")}
    return ModelFile(Path("m"), "checkpoint", "", {}, config, "", {}, meta)


def test_what_training_has_read_is_told_as_far_as_files_tell(plain: Dataset) -> None:
    tail = find_tail(plain, 2000)
    last = tail.first // (1024 + 1)
    assert seen_in_training(checkpoint(plain, last), plain, tail) is False
    assert seen_in_training(checkpoint(plain, last + 1), plain, tail) is True
    assert seen_in_training(checkpoint(plain, 1, "train.loader=shuffled"), plain, tail) is True
    for counted, seen in ((tail.first, False), (tail.first + 1, True)):
        counts = "model.counts=ngrams", f"model.counts.tokens={counted}"
        assert seen_in_training(checkpoint(plain, 1, *counts), plain, tail) is seen
    assert seen_in_training(dataclasses.replace(checkpoint(plain, 1), kind="artifact"), plain, tail) is None
    other = checkpoint(plain, 1)
    other.meta["data_sha256"] = "another"
    assert seen_in_training(other, plain, tail) is None
