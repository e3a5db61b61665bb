"""(a) A score depends on earlier tokens only: change a token, and no score that was final before it may move."""

import time
from typing import Any

import numpy as np

from pgolf.audit.bench import Bench
from pgolf.audit.stream import PHRASE
from pgolf.audit.verdict import HOLDS, VIOLATED, Finding

KINDS = ("same class", "space", "boundary", "byte", "likely", "unlikely")
"""What a token is replaced by, in turn."""
ON_RANKS = 20
"""Flips on two ranks, where flips are many."""


def strata(bench: Bench) -> dict[str, np.ndarray]:
    """Targets to flip, by where they stand."""
    base, stream = bench.base, bench.stream
    targets = np.flatnonzero((base.rank >= 0) & (stream.tokens[1:] != bench.subject.vocabulary.bos_id))
    order = targets[np.argsort(base.rank[targets], kind="stable")]
    window, batch = base.window[order], base.batch[order]
    ends, begins = np.append(window[1:] != window[:-1], True), np.insert(window[1:] != window[:-1], 0, True)
    looked = {number for kind, _, _, number in base.events if not kind.startswith("early")}
    second: list[int] = [target for _, to in stream.planted.tolist() for target in range(to - 1, to + PHRASE - 1)]
    found = {
        "within a window": order[~ends & ~begins],
        "last of a window": order[ends],
        "first of a window": order[begins],
        "first of a batch": order[np.insert(batch[1:] != batch[:-1], 0, True)],
        "first after learning": order[np.isin(window, list(looked)) & begins],
        "first of a document": order[np.isin(order, stream.begins)],
        "second copy of a phrase": np.intersect1d(order, np.array(second, np.int64)),
        "last of the stream": order[order == targets.max(initial=-1)],
    }
    return {name: places for name, places in found.items() if len(places)}


def replacement(bench: Bench, position: int, kind: str, rng: np.random.Generator) -> int:
    """Another token than the one at `position`, never BOS."""
    vocabulary, tokens = bench.subject.vocabulary, bench.stream.tokens
    old, classes = int(tokens[position]), vocabulary.kind()
    ids = np.arange(vocabulary.size)
    allowed = (ids != old) & (ids != vocabulary.bos_id)
    if kind in ("likely", "unlikely"):
        order = bench.subject.likely(tokens, position)
        order = order[allowed[order]]
        return int(order[0] if kind == "likely" else order[-1])
    wanted = {
        "same class": classes == classes[old],
        "space": classes == (0 if classes[old] == 1 else 1),
        "boundary": classes == 3,
        "byte": classes == 2,
    }[kind]
    choice = np.flatnonzero(allowed & wanted)
    return int(rng.choice(choice if len(choice) else np.flatnonzero(allowed)))


def relation(bench: Bench, moved: np.ndarray, target: int) -> dict[str, int]:
    """How many of these targets stand how to the one that was flipped."""
    base = bench.base
    documents = bench.stream.document_of(moved) == bench.stream.document_of(np.array([target]))[0]
    window, batch = base.window[moved] == base.window[target], base.batch[moved] == base.batch[target]
    return {
        "same window": int(window.sum()),
        "same batch, other window": int((batch & ~window).sum()),
        "other batch, same document": int((~batch & documents).sum()),
        "other batch and document": int((~batch & ~documents).sum()),
    }


def places_of(bench: Bench, rng: np.random.Generator) -> list[tuple[str, int]]:
    """The targets to flip, with their strata, in any order: as many of each as the level says."""
    found = strata(bench)
    quota = bench.level.flips
    if bench.level.flips_total:
        quota = max(min(quota, -(-bench.level.flips_total // len(found))), 1)
    draws = {name: rng.choice(places, quota, replace=len(places) < quota) for name, places in found.items()}
    places = [(name, int(target)) for name, chosen in draws.items() for target in chosen]
    return [places[index] for index in rng.permutation(len(places))]


class Flips:
    """What flips have shown so far."""

    def __init__(self) -> None:
        self.done: set[tuple[str, int, int]] = set()
        self.counts: dict[str, list[int]] = {}
        self.spread: dict[str, int] = {}
        self.largest, self.distance = 0.0, 0
        self.nearest: dict[str, Any] | None = None

    def take(self, bench: Bench, stratum: str, target: int, rng: np.random.Generator) -> None:
        """Change the token of a target, and compare the scores that were final before its own."""
        base, position = bench.base, target + 1
        token = replacement(bench, position, KINDS[len(self.done) % len(KINDS)], rng)
        if (stratum, position, token) in self.done:
            return
        self.done.add((stratum, position, token))
        before = base.before(target)
        trial = bench.run(bench.stream.edited(position, token), before)
        moved = bench.moved(trial, before)
        counts = self.counts.setdefault(stratum, [0, 0])
        counts[0] += 1
        if not len(moved):
            return
        counts[1] += 1
        self.largest = max(self.largest, float(np.abs(base.nll[moved] - trial.nll[moved]).max()))
        for key, value in relation(bench, moved, target).items():
            self.spread[key] = self.spread.get(key, 0) + value
        place = int(moved[np.abs(moved - target).argmin()])
        if self.nearest is None or abs(place - target) < self.distance:
            self.distance = abs(place - target)
            edit = {"position": position, "from": int(bench.stream.tokens[position]), "to": token}
            losses = [base.nll[place], trial.nll[place]]
            self.nearest = bench.case("a", edit=edit, target=place, nll=losses, tolerance=bench.tolerance)

    def finding(self) -> Finding:
        """The verdict."""
        flips, hits = (sum(column) for column in zip(*self.counts.values())) if self.counts else (0, 0)
        figures = {
            "flips": {name: {"n": count, "moved": hit} for name, (count, hit) in self.counts.items()},
            "moved_targets": self.spread,
            "largest_nats": self.largest,
        }
        if self.nearest is None:
            what = f"{flips:,} flips moved no earlier score"
            return Finding(check="a", verdict=HOLDS, what=what, n=flips, figures=figures)
        what = f"{hits:,} of {flips:,} flips moved scores that were final before, by up to {self.largest:.3g} nats"
        return Finding(check="a", verdict=VIOLATED, what=what, n=flips, figures=figures, counterexample=self.nearest)


def check_causality(bench: Bench) -> Finding:
    """Flip one token at a time, on one rank and some on two; the counterexample is the nearest score that moved."""
    rng, flips, began = bench.rng(1), Flips(), time.monotonic()
    ranks = bench.subject.variants().get("2 ranks")
    if ranks is not None and not bench.level.flips_total:
        two = Bench(ranks, bench.stream, bench.level, bench.seed, ranks.run(bench.stream.tokens), bench.noise)
        for _, target in places_of(two, rng)[:ON_RANKS]:
            flips.take(two, "on 2 ranks", target, rng)
    for index, (name, target) in enumerate(places_of(bench, rng)):
        if not bench.in_time(began, index):
            break
        flips.take(bench, name, target, rng)
    return flips.finding()
