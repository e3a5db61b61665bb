"""Warm-ups, schedules, and what a program reaches for while it scores."""

import copy
import socket
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.audit.specimens.base import Specimen, train


class WarmUpOnVal(Specimen):
    """Takes steps on validation tokens before the clock starts, then puts the weights back."""

    caught, source = "i", "PR #1530"

    def warm_up(self, ledger: Any) -> None:
        """Train, restore."""
        kept = copy.deepcopy(ledger.model.state_dict())
        train(ledger, np.asarray(ledger.tokens))
        ledger.model.load_state_dict(kept)


class WarmUpKept(Specimen):
    """Takes steps on validation tokens before the clock starts, and keeps them."""

    caught, source = "abci", "our own"

    def warm_up(self, ledger: Any) -> None:
        """Train."""
        train(ledger, np.asarray(ledger.tokens))


class ContentSchedule(Specimen):
    """Scores the windows in an order that their tokens decide; their contexts hold targets that come later in it."""

    caught, source = "acd", "our own"

    def run(self, ledger: Any) -> None:
        """The largest sums first."""
        windows, tokens = self.windows(ledger), np.asarray(ledger.tokens)
        sums = [int(tokens[begin + first + 1 : begin + end + 1].sum()) for begin, first, end in windows.tolist()]
        for index in np.argsort(sums, kind="stable").tolist():
            ledger.score(windows[index : index + 1])


class Unsteady(Specimen):
    """Adds noise that no seed decides: nothing is proved, but nothing is exact either."""

    caught, source = "", "racing queues"

    def distort(self, ledger: Any, position: int, logp_SV: Tensor, ids_T: Tensor) -> Tensor:
        """Noise of 1e-6 nats, normalised."""
        noise = torch.from_numpy(np.random.default_rng().normal(size=tuple(logp_SV.shape)) * 1e-6).float()
        return (logp_SV + noise).log_softmax(-1)


class PhonesHome(Specimen):
    """Opens a socket while it scores."""

    caught, source = "h", "our own"

    def run(self, ledger: Any) -> None:
        """Try, give up, score."""
        try:
            with socket.socket() as line:
                line.settimeout(0.01)
                line.connect(("127.0.0.1", 9))
        except OSError:
            pass
        super().run(ledger)


class ReadsOtherFile(Specimen):
    """Reads a file that is not part of the artifact."""

    caught, source = "g", "our own"

    def run(self, ledger: Any) -> None:
        """Leave a file, read it, score."""
        with NamedTemporaryFile() as file:
            Path(file.name).read_bytes()
        super().run(ledger)
