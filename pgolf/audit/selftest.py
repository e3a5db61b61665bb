"""The specimen matrix as a table: which check caught what, over some seeds."""

from concurrent.futures import ProcessPoolExecutor
from typing import Any

from pgolf.core.errors import ConfigError
from pgolf.report.console import Console

COLUMNS = tuple("0abcdefghij")


def tried(name: str, seed: int) -> tuple[str, int, str, bool]:
    """One row on one seed, in a process of its own: what caught it, and whether that is right."""
    import torch

    from pgolf.audit.specimens.matrix import cases, judged

    torch.set_num_threads(1)
    case = next(case for case in cases() if case.name == name)
    got, right = judged(case, seed)
    return name, seed, got, right


def self_test(seeds: int, only: list[str], jobs: int, console: Console) -> dict[str, Any]:
    """Every row on every seed; a row is wrong if it is so on any."""
    from pgolf.audit.specimens.matrix import cases

    rows = [case for case in cases() if not only or any(text in case.name for text in only)]
    if not rows:
        raise ConfigError(f"no row has {' or '.join(only)} in its name", "--only", "see pgolf audit specimens")
    work = [(case.name, seed) for seed in range(seeds) for case in rows]
    found: dict[str, dict[int, tuple[str, bool]]] = {case.name: {} for case in rows}
    with console.progress() as line:
        if jobs == 1:
            results = (tried(*one) for one in work)
            pool = None
        else:
            pool = ProcessPoolExecutor(jobs)
            results = pool.map(tried, *zip(*work))  # type: ignore[assignment]
        try:
            for done, (name, seed, got, right) in enumerate(results, 1):
                found[name][seed] = got, right
                line.count("audit: specimens", done, len(work))
                if not right:
                    console.line(f"audit: {name}, seed {seed}: caught by {got or 'nothing'}")
        finally:
            if pool is not None:
                pool.shutdown(cancel_futures=True)
    shown = []
    for case in rows:
        by_seed = found[case.name]
        wrong = sorted(seed for seed, (_, right) in by_seed.items() if not right)
        counts = {letter: sum(letter in got for got, _ in by_seed.values()) for letter in COLUMNS}
        shown.append(
            {
                "name": case.name,
                "what": case.what,
                "source": case.source,
                "expected": case.caught,
                "too_small": case.perhaps,
                "caught": counts,
                "cells": [cell(letter, case.caught, case.perhaps, counts[letter], seeds) for letter in COLUMNS],
                "wrong_seeds": wrong,
                "verdict": "wrong" if wrong else "ok",
            }
        )
    wrong_rows = sum(bool(row["wrong_seeds"]) for row in shown)
    return {"schema": "pgolf.specimens/1", "seeds": seeds, "wrong": wrong_rows, "rows": shown}


def cell(letter: str, caught: str, perhaps: str, count: int, seeds: int) -> str:
    """X caught on every seed, ~ too small to count on, . not at all, else how often."""
    if letter in perhaps:
        return "~"
    return "X" if count == seeds else "." if not count else f"{count}/{seeds}"
