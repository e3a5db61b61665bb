"""A ledger that writes down what a method does: what it commits, in which order, and what it looks at.

It enforces less than the ledger of a reported score, so that a violation is seen rather than stopped, and therefore
gives no score.
"""

import sys
import zlib
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from pgolf.core.errors import RuleError
from pgolf.core.evals import adjusted as adjusted_module
from pgolf.core.evals import ledger as ledger_module
from pgolf.core.evals.adjusted import AdjustedLedger
from pgolf.core.evals.ledger import EvalWatch, Ledger
from pgolf.core.model.gpt import GPT

HARNESS = {ledger_module.__name__, adjusted_module.__name__, __name__}
"""Modules that may see the whole stream; all others look through a gate."""


class Enough(Exception):
    """All that was asked for is scored."""


@dataclass
class Trial:
    """What the evaluation of a stream with T targets showed. For each target (T,): its last committed loss (nats, NaN
    if none), how often it was committed, when last (a running number, -1 if never), and in which window and batch.
    `events` are what was looked at: (kind, first token, last token + 1, number of commits before it).
    """

    nll: np.ndarray
    commits: np.ndarray
    rank: np.ndarray
    window: np.ndarray
    batch: np.ndarray
    events: list[tuple[str, int, int, int]] = field(default_factory=list)
    late: list[tuple[int, str]] = field(default_factory=list)
    """Targets committed after something had seen them, with what it was."""
    error: str = ""
    """Why it ended early, if it did."""

    def before(self, target: int) -> np.ndarray:
        """The targets whose scores were final before this one's, (n,)."""
        return np.flatnonzero((self.rank >= 0) & (self.rank < self.rank[target]))


def blank(targets: int) -> Trial:
    """A trial in which nothing has happened."""
    number = np.full(targets, -1, np.int64)
    return Trial(np.full(targets, np.nan, np.float32), number + 1, number, number.copy(), number.copy())


class Gate:
    """The stream as a method sees it: where documents begin is free to know, all else is noted as looked at."""

    def __init__(self, ledger: "Recording", start: int, stop: int) -> None:
        self.ledger, self.start, self.stop = ledger, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice) and key.step in (None, 1):
            first, last, _ = key.indices(len(self))
            return Gate(self.ledger, self.start + first, self.start + max(first, last))
        places = np.arange(self.start, self.stop)[key]
        flat = np.atleast_1d(places)
        if flat.size:
            self.ledger.saw("look", int(flat.min()), int(flat.max()) + 1)
        return self.ledger.stream[places]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.ledger.saw("look", self.start, self.stop)
        return np.array(self.ledger.stream[self.start : self.stop], dtype=dtype)

    def __eq__(self, other: object) -> Any:
        if isinstance(other, int | np.integer) and other == self.ledger.bos_id:
            return self.ledger.stream[self.start : self.stop] == other
        return np.asarray(self) == other

    __hash__ = None  # type: ignore[assignment]


class Recording:
    """What the ledgers below add to the ones of core."""

    stream: np.ndarray
    trial: Trial
    bos_id: int
    limit: int
    hashes: bool
    number: int
    lots: int
    begun: bool
    entry: int
    loaded: int
    known: np.ndarray

    def prepare(self, tokens: np.ndarray, bos_id: int, limit: int, hashes: bool) -> None:
        """Before the ledger's own beginning."""
        self.stream = np.asarray(tokens, np.int64)
        self.trial, self.bos_id, self.limit, self.hashes = blank(len(tokens) - 1), bos_id, limit, hashes
        self.number, self.lots, self.begun, self.entry, self.loaded = 0, 0, False, 0, 0
        self.known = np.zeros(len(tokens), np.int8)

    @property
    def tokens(self) -> Gate:
        """The stream through the gate, for specimens; the ledgers of a reported score have nothing like it."""
        return Gate(self, 0, len(self.stream))

    @property
    def _tokens(self) -> Any:
        """The stream; for others than the ledgers, through the gate."""
        caller = sys._getframe(1).f_globals.get("__name__")
        return self.stream if caller in HARNESS else self.tokens

    @_tokens.setter
    def _tokens(self, tokens: np.ndarray) -> None:
        """Take the stream."""
        self.stream = tokens

    def saw(self, kind: str, start: int, stop: int) -> None:
        """Note that something has looked at these tokens."""
        self.trial.events.append((kind if self.begun else f"early {kind}", start, stop, self.number))
        if self.begun:
            self.known[start:stop] = 1

    def fingerprint(self) -> int:
        """A checksum of all weights and buffers."""
        total = 0
        for tensor in self.model.state_dict().values():  # type: ignore[attr-defined]
            total = zlib.crc32(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy(), total)
        return total

    def note(self, position: int, losses: np.ndarray) -> None:
        """Note a commit of consecutive targets from `position` on."""
        trial, place = self.trial, slice(position, position + len(losses))
        for target in np.flatnonzero(self.known[position + 1 : position + 1 + len(losses)]):
            trial.late.append((position + int(target), "seen before its score was final"))
        if self.hashes and (now := self.fingerprint()) != self.entry:
            trial.late.append((position, "weights changed while its part of the stream was being scored"))
            self.entry = now
        trial.nll[place], trial.window[place], trial.batch[place] = losses, self.number, self.lots
        trial.commits[place] += 1
        trial.rank[place] = np.arange(len(losses)) + self.number * (1 << 24)
        self.number += 1


def recording(base: type[Ledger]) -> type[Any]:
    """A ledger class with a record."""

    class RecordingLedger(Recording, base):  # type: ignore[valid-type, misc]
        """The ledger under audit."""

        def __init__(self, model: GPT, tokens: np.ndarray, method: Any, watch: EvalWatch, **options: Any) -> None:
            self.prepare(tokens, **options)
            charges = np.ones(len(tokens) - 1, np.int64)
            base.__init__(self, model, tokens, charges, method, watch)

        def score(self, windows: np.ndarray, length: int = 0) -> None:
            """As the ledger scores; what is scored by one call is one part of the stream."""
            self.enter()
            base.score(self, windows, length)

        def score_learnable(self, model: GPT, windows: np.ndarray, length: int, skip: int) -> Tensor:
            """As the ledger scores."""
            self.enter()
            losses: Tensor = base.score_learnable(self, model, windows, length, skip)
            return losses

        def enter(self) -> None:
            """A part of the stream begins to be scored."""
            self.lots += 1
            if self.hashes:
                self.entry = self.fingerprint()
                if self.lots == 1 and self.trial.events and self.entry != self.loaded:
                    self.known[:] = 1

        def commit(self, position: int, losses: np.ndarray) -> None:
            """Take any loss, as often as it comes."""
            place = self.losses[position : position + len(losses)]
            self.done += int(np.isnan(place).sum())
            place[:] = np.nan_to_num(losses, nan=np.inf)
            self.note(position, losses)
            if self.limit and self.done >= self.limit:
                raise Enough

        def exchange(self, start: int, stop: int) -> None:
            """Take over what other ranks have committed."""
            unknown = np.isnan(self.losses[start:stop])
            base.exchange(self, start, stop)
            for target in np.flatnonzero(unknown & ~np.isnan(self.losses[start:stop])) + start:
                self.note(int(target), self.losses[target : target + 1])

        def reveal(self, start: int, stop: int) -> np.ndarray:
            """As the ledger reveals."""
            tokens: np.ndarray = base.reveal(self, start, stop)
            self.saw("reveal", start, stop)
            return tokens

        def total(self) -> NoReturn:
            """There is none."""
            raise RuleError("an evaluation under audit gives no score", "audit", "use pgolf eval or pgolf ttt")

    return RecordingLedger


PlainRecording = recording(Ledger)
AdjustedRecording = recording(AdjustedLedger)
