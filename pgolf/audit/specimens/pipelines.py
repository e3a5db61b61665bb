"""Ways from a dataset to weights, one honest and one that trains on validation text; and a split that overlaps."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pgolf.audit.checks.provenance import check_hidden, check_overlap, check_swap
from pgolf.audit.specimens.base import train
from pgolf.audit.specimens.model import VOCABULARY, small_model
from pgolf.audit.stream import drawn_stream, plain_vocabulary
from pgolf.report.data_overlap import hash_ids

SHARD = "{split}.npy"
DOCUMENTS, HELD_OUT, EXPORTED = 60, 50, 10
"""Documents; how many of them validation has; how many the wrong export keeps out of training."""


class Text:
    """What `train` needs of a ledger: a model and the length of its sequences."""

    def __init__(self, seed: int) -> None:
        self.model, self.method = small_model(seed), self
        self.seq_len = 32


def weights_of(folder: Path, splits: tuple[str, ...], seed: int) -> str:
    """Train on these splits in turn; the SHA-256 of the weights."""
    text = Text(seed)
    for split in splits:
        train(text, np.load(folder / SHARD.format(split=split)))
    state = text.model.state_dict()
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state.values())).hexdigest()


def honest(folder: Path, seed: int) -> str:
    """Trains on training text."""
    return weights_of(folder, ("train",), seed)


def prequant_ttt(folder: Path, seed: int) -> str:
    """Trains on training text, then on validation text, before it would quantize (cluster of PR #1485)."""
    return weights_of(folder, ("train", "val"), seed)


def swap_faults(make: Callable[[Path, int], str], seed: int) -> list[str]:
    """What the swap and the sandbox say of one of them."""
    with TemporaryDirectory() as place:
        folders = [Path(place) / name for name in ("first", "second")]
        for index, folder in enumerate(folders):
            folder.mkdir()
            for split, salt in (("train", 0), ("val", index + 1)):
                stream = drawn_stream(plain_vocabulary(VOCABULARY), 200, 32, 1000 * seed + salt)
                np.save(folder / SHARD.format(split=split), stream.tokens)
        hidden = (folders[0] / SHARD.format(split="val"),)
        faults = check_swap(lambda: make(folders[0], seed), lambda: make(folders[1], seed))
        return faults + check_hidden(lambda: make(folders[0], seed), hidden)


def export_faults(kept_out: int, seed: int) -> list[str]:
    """Overlap of a split whose training documents begin after so many (10,000 instead of 50,000 in issue #2127)."""
    rng = np.random.default_rng(seed)
    hashes = [hash_ids(rng.integers(4, VOCABULARY, 40).astype(np.uint16)) for _ in range(DOCUMENTS)]
    return check_overlap(set(hashes[:HELD_OUT]), set(hashes[kept_out:]))
