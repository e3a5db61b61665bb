"""What a sweep varies: `--set key=v1,v2`, a TOML list of cells and `--seeds`, multiplied out. Loaded without torch."""

import itertools
import math
import tomllib
from pathlib import Path
from typing import Any

from pgolf.config.tree import flatten, parse_set
from pgolf.core.errors import ConfigError
from pgolf.core.files import read_bytes

MAX_CELLS = 10_000
"""A larger grid is taken for a slip."""
SEED = "train.seed"
OPENING, CLOSING, QUOTES = "([{", ")]}", "'\""

Choice = dict[str, str]
"""Dotted key -> value as text, of one cell."""


def split_values(text: str) -> list[str]:
    """Values between commas; a comma within brackets or quotes does not separate. Quotes around a whole value are
    taken off. ConfigError for a bracket or quote that is not closed, and for nothing between two commas.
    """
    values, current, depth, quote = [], "", 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in QUOTES:
            quote = char
        elif char in OPENING + CLOSING:
            depth += 1 if char in OPENING else -1
        elif char == "," and not depth:
            values.append(current)
            current = ""
            continue
        current += char
        if depth < 0:
            break
    if depth or quote:
        raise ConfigError(f"{text!r} has a bracket or quote without its partner", "--set", "quote values with commas")
    found = [value.strip() for value in (*values, current)]
    if len(found) > 1 and "" in found:
        raise ConfigError(f"{text!r} has an empty value among several", "--set", 'write "" for an empty text')
    return list(map(unquoted, found))


def unquoted(value: str) -> str:
    """A value without the quotes around the whole of it."""
    whole = len(value) > 1 and value[0] in QUOTES and value.find(value[0], 1) == len(value) - 1
    return value[1:-1] if whole else value


def parse_axis(assignment: str) -> tuple[str, list[str]]:
    """`key=v1,v2` as key and values. ConfigError if it is not of that form."""
    parse_set(assignment)
    key, _, text = assignment.partition("=")
    return key.strip(), split_values(text)


def as_text(value: Any, where: str) -> str:
    """A TOML value as --set would have it. ConfigError for one that no key takes."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | str):
        return str(value)
    raise ConfigError(
        f"{value!r} is not a number, text or true/false", where, "a cell holds dotted keys with one value"
    )


def read_list(path: Path) -> list[Choice]:
    """The cells of a TOML file: a list of tables `[[cell]]` of dotted keys. ConfigError if it is anything else."""
    try:
        document = tomllib.loads(read_bytes(path, 16 << 20).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"not valid TOML: {error}", str(path)) from None
    cells = document.get("cell")
    if set(document) != {"cell"} or not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise ConfigError("a grid is a list of tables [[cell]] and nothing else", str(path))
    found = [{key: as_text(value, f"{path}, {key}") for key, value in flatten(cell).items()} for cell in cells]
    if not all(found):
        raise ConfigError("a cell is empty", str(path), "give it a key, or leave it out")
    return found


def read_seeds(text: str) -> list[str]:
    """`1,2,3` as seeds. ConfigError for anything but different whole numbers, because a repeat is no second sample."""
    seeds = split_values(text)
    if not all(seed.isdecimal() for seed in seeds):
        raise ConfigError(f"{text!r} is not a list of whole numbers", "--seeds", "for example --seeds 1,2,3")
    if len(set(map(int, seeds))) < len(seeds):
        raise ConfigError(f"{text} names a seed twice, and the same seed is no second sample", "--seeds")
    return seeds


def choices(axes: list[str], listed: Path | None = None, seeds: str = "") -> list[Choice]:
    """Every cell of a grid: each of the list with every combination of the axes and every seed, the seed changing
    fastest. An axis with one value holds for all. ConfigError for a key that is given twice.
    """
    cells = read_list(listed) if listed else [{}]
    parsed = [parse_axis(axis) for axis in axes]
    if seeds:
        parsed.append((SEED, read_seeds(seeds)))
    keys = [key for key, _ in parsed]
    in_list = {key for cell in cells for key in cell}
    if twice := [key for key in keys if keys.count(key) > 1 or key in in_list]:
        raise ConfigError(f"{twice[0]} is given twice", "sweep", "give all its values in one place")
    count = len(cells) * math.prod(len(values) for _, values in parsed)
    if count > MAX_CELLS:
        raise ConfigError(f"the grid has {count:,} cells, more than {MAX_CELLS:,}", "sweep", "give fewer values")
    products = [dict(zip(keys, values)) for values in itertools.product(*(values for _, values in parsed))]
    return [cell | product for cell in cells for product in products]
