"""What every target cost, in a file for analysis (`--positions`, `pgolf plot`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.core.tensorfile import load_tensors, save_tensors, tensor_meta
from pgolf.dataset import BOS

POSITIONS_SCHEMA = "pgolf.positions/1"


@dataclass(frozen=True)
class Positions:
    """Losses (T,) in nats and bytes charged (T,) of the scored targets, the targets (D,) with which documents begin
    (the first of each, after its BOS), and what was scored how.
    """

    nats: np.ndarray
    bytes: np.ndarray
    documents: np.ndarray
    facts: dict[str, Any]

    def spans(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Targets, nats and bytes of every document, (D,) each; what comes before the first belongs to none."""
        if not len(self.documents):
            return (np.empty(0),) * 3
        lengths = np.diff(np.append(self.documents, len(self.nats)))
        sums = [np.add.reduceat(x.astype(np.float64), self.documents) for x in (self.nats, self.bytes)]
        return lengths, sums[0], sums[1]


def document_starts(tokens: np.ndarray) -> np.ndarray:
    """The targets (D,) with which documents begin in a stream (N,). Target i is token i + 1, so that is the place of
    BOS; the BOS that ends a document is a target of that document.
    """
    return np.flatnonzero(tokens[:-1] == BOS)


def save_positions(path: Path, found: Positions) -> None:
    """Write them."""
    import torch

    tensors = {
        "nats": torch.from_numpy(found.nats.astype(np.float32)),
        "bytes": torch.from_numpy(found.bytes.astype(np.int32)),
        "documents": torch.from_numpy(found.documents.astype(np.int64)),
    }
    save_tensors(path, tensors, {"schema": POSITIONS_SCHEMA, **found.facts})


def is_positions(path: Path) -> bool:
    """Whether a file says that it is one of these. InputError for a file that is none of pgolf's."""
    return str(tensor_meta(path)[0].get("schema", "")).startswith("pgolf.positions/")


def load_positions(path: Path) -> Positions:
    """Read them. InputError for another file, or one that is damaged."""
    tensors, meta, _ = load_tensors(path, POSITIONS_SCHEMA)
    nats, size, documents = (tensors[name].numpy() for name in ("nats", "bytes", "documents"))
    return Positions(nats, size, documents, {name: value for name, value in meta.items() if name != "schema"})
