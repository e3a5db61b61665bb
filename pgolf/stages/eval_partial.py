"""The ledger of an evaluation on disk, so that one that was killed goes on where it was."""

from pathlib import Path

import numpy as np
import torch

from pgolf.core.errors import PgolfError
from pgolf.core.tensorfile import load_tensors, save_tensors

LEDGER_SCHEMA = "pgolf.ledger/1"


class PartialLedger:
    """A file with the losses committed so far. It counts only for the very same evaluation: `key` is made of hashes of
    model, data, method, machine, formats and pgolf's own source.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def load(self, targets: int) -> tuple[np.ndarray, dict[str, float], int | None] | None:
        """Losses (T,), NaN where not scored, seconds by phase, and after how many targets adaptation ended, if it did;
        None if there are none for this evaluation.
        """
        if not self.path.is_file():
            return None
        try:
            tensors, meta, _ = load_tensors(self.path, LEDGER_SCHEMA)
        except PgolfError:
            return None
        losses = tensors.get("losses")
        if meta.get("key") != self.key or losses is None or losses.shape != (targets,):
            return None
        return (
            losses.numpy(),
            {str(name): float(value) for name, value in meta["seconds"].items()},
            meta.get("stopped_at"),
        )

    def save(self, losses: np.ndarray, seconds: dict[str, float], stopped_at: int | None) -> None:
        """Write what is known."""
        meta = {"schema": LEDGER_SCHEMA, "key": self.key, "seconds": seconds, "stopped_at": stopped_at}
        save_tensors(self.path, {"losses": torch.from_numpy(losses)}, meta)

    def remove(self) -> None:
        """It has served."""
        self.path.unlink(missing_ok=True)
