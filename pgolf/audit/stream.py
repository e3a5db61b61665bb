"""Short streams to audit on: documents of real or drawn tokens, with phrases that occur twice."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pgolf.core.errors import InputError

PHRASE, PLANTED = 24, 3
"""Tokens of a phrase that is planted twice, and how many phrases are."""


@dataclass(frozen=True)
class Vocabulary:
    """How many ids there are, which begins documents, and which begin a word, are bytes, or are boundaries (control
    and unknown tokens), each (V,) bool.
    """

    size: int
    bos_id: int
    lead: np.ndarray
    byte: np.ndarray
    boundary: np.ndarray

    def kind(self) -> np.ndarray:
        """The class of every id: 0 inside a word, 1 begins one, 2 byte, 3 boundary."""
        return np.select([self.boundary, self.byte, self.lead], [3, 2, 1], 0)


def plain_vocabulary(size: int, bos_id: int = 1) -> Vocabulary:
    """Without a tokenizer: the lowest ids are boundaries, the next bytes, every other of the rest begins a word."""
    ids = np.arange(size)
    boundary = (ids < min(4, size // 4)) | (ids == bos_id)
    byte = ~boundary & (ids < size // 4)
    return Vocabulary(size, bos_id, ~boundary & ~byte & (ids % 2 == 0), byte, boundary)


def tokenizer_vocabulary(tokenizer: Any, size: int, bos_id: int) -> Vocabulary:
    """The classes of a SentencePiece model's ids."""
    known = range(min(size, tokenizer.vocab_size()))
    lead, byte, boundary = np.zeros(size, bool), np.zeros(size, bool), np.ones(size, bool)
    for index in known:
        byte[index] = tokenizer.is_byte(index)
        boundary[index] = tokenizer.is_control(index) or tokenizer.is_unknown(index) or tokenizer.is_unused(index)
        lead[index] = tokenizer.id_to_piece(index).startswith("\u2581")
    boundary[bos_id] = True
    return Vocabulary(size, bos_id, lead, byte, boundary)


@dataclass(frozen=True)
class Stream:
    """Tokens (N,) int64 from a BOS on, where documents begin, and where planted phrases stand: rows of two starts."""

    tokens: np.ndarray
    begins: np.ndarray
    planted: np.ndarray

    @property
    def targets(self) -> int:
        """Number of targets; target i is token i + 1."""
        return len(self.tokens) - 1

    def document_of(self, targets: np.ndarray) -> np.ndarray:
        """The document of each target's token."""
        return np.searchsorted(self.begins, targets + 1, "right") - 1

    def edited(self, position: int, token: int) -> np.ndarray:
        """The tokens with another one at `position`."""
        tokens = self.tokens.copy()
        tokens[position] = token
        return tokens


def lengths_of(total: int, window: int, rng: np.random.Generator) -> list[int]:
    """Lengths of documents that sum to about `total`: one of a few tokens, one longer than three windows where there
    is room, and 20 to 60 altogether if they are long enough to hold a phrase.
    """
    long = min(3 * window + int(rng.integers(5, 40)), total // 3)
    rest = max(total - long - 5, 2 * PHRASE)
    count = int(np.clip(rest // (2 * PHRASE), 2, rng.integers(20, 60)))
    shares = rng.dirichlet(np.full(count, 2.0)) * rest
    lengths = [int(rng.integers(3, 6)), long, *np.maximum(shares.astype(int), 4).tolist()]
    return [lengths[index] for index in rng.permutation(len(lengths))]


def plant(tokens: np.ndarray, begins: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Copy phrases of this stream to later places of it, in the interior of documents; rows (from, to)."""
    stops = np.append(begins[1:], len(tokens))
    rooms = [(a + 1, b - PHRASE) for a, b in zip(begins, stops) if b - PHRASE > a + 1]
    free = [place for low, high in rooms for place in range(low, high, PHRASE)]
    rows: list[tuple[int, int]] = []
    for _ in range(PLANTED):
        if len(free) < 2:
            break
        first, second = sorted(int(place) for place in rng.choice(free, 2, replace=False))
        tokens[second : second + PHRASE] = tokens[first : first + PHRASE]
        rows.append((first, second))
        free = [place for place in free if place not in (first, second)]
    return np.array(rows, np.int64).reshape(-1, 2)


def assemble(lengths: list[int], source: Any, bos_id: int, rng: np.random.Generator) -> Stream:
    """Documents of these lengths, BOS included, their content from `source(count)`."""
    parts = [np.concatenate([[bos_id], source(length - 1)]).astype(np.int64) for length in lengths]
    begins = np.concatenate([[0], np.cumsum([len(part) for part in parts])[:-1]])
    tokens = np.concatenate(parts)
    planted = plant(tokens, begins, rng)
    return Stream(tokens, begins, planted)


def drawn_stream(vocabulary: Vocabulary, total: int, window: int, seed: int) -> Stream:
    """A stream of drawn tokens: a Markov chain, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    choice = np.flatnonzero(np.arange(vocabulary.size) != vocabulary.bos_id)
    follow = rng.choice(choice, (vocabulary.size, 4))

    def source(count: int) -> np.ndarray:
        found = [int(rng.choice(choice))]
        while len(found) < count:
            found.append(int(follow[found[-1], rng.integers(4)]) if rng.random() < 0.7 else int(rng.choice(choice)))
        return np.array(found[:count], np.int64)

    return assemble(lengths_of(total, window, rng), source, vocabulary.bos_id, rng)


def text_stream(tokens: np.ndarray, bos_id: int, total: int, window: int, seed: int) -> Stream:
    """A stream of pieces of a real one (N,), each from within a document of it. InputError if none is long enough."""
    rng = np.random.default_rng(seed)
    plain = np.flatnonzero(tokens != bos_id)
    if len(plain) < PHRASE:
        raise InputError("the validation stream is too short to audit on", "validation split", "give more text")
    text = tokens[plain].astype(np.int64)

    def source(count: int) -> np.ndarray:
        start = int(rng.integers(max(len(text) - count, 0) + 1))
        return np.resize(text[start : start + count], count)

    return assemble(lengths_of(total, window, rng), source, bos_id, rng)
