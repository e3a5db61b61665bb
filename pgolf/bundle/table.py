"""The parameters of one configuration as a table, in the place of the code that makes them of any."""

import ast
import re
from dataclasses import astuple
from typing import Any

from pgolf.core.model.config import ModelConfig, model_parts, param_specs
from pgolf.core.model.export import exported

Row = tuple[Any, ...]


def merged(blocks: list[list[Row]]) -> list[Row]:
    """Every row once, in an order that the rows of each block have, if there is one."""
    order: list[Row] = []
    for rows in blocks:
        at = 0
        for row in rows:
            if row not in order:
                order.insert(at, row)
            at = order.index(row) + 1
    return order


def layers_text(layers: list[int], count: int) -> str:
    """The layers that have a row, as an expression; empty where all have it."""
    if len(layers) == count:
        return ""
    together = layers == list(range(layers[0], layers[-1] + 1))
    return repr(range(layers[0], layers[-1] + 1) if together else tuple(layers))


def kept_text(config: ModelConfig) -> str | None:
    """The condition on which the table's rows hold for the exported configuration too, empty where that is the same;
    None if it has other rows than some of these.
    """
    less, specs = exported(config), param_specs(config)
    rest = param_specs(less)
    ends = tuple(dict.fromkeys(inside(spec.name) for spec in specs if spec not in rest))
    if tuple(spec for spec in specs if not spec.name.endswith(ends)) != rest:
        return None
    left = sorted(model_parts(config).keys() - model_parts(less).keys())
    return f"if {left[0]!r} in model_parts(config) or not spec[0].endswith({ends!r})" if ends else ""


def inside(name: str) -> str:
    """A parameter's name within its block, with a dot before it, or its whole name outside of blocks."""
    return re.sub(r"^blocks\.\d+", "", name)


def param_table(config: ModelConfig) -> ast.FunctionDef | None:
    """`param_specs` as a function that gives those of this configuration, and of what is exported of it; None if no
    table says it shortly, as where the layers order their parameters differently.
    """
    specs, count = [astuple(spec) for spec in param_specs(config)], config.num_layers
    outside = [spec for spec in specs if not spec[0].startswith("blocks.")]
    blocks = [
        [
            (spec[0].removeprefix(f"blocks.{layer}."), *spec[1:])
            for spec in specs
            if spec[0].startswith(f"blocks.{layer}.")
        ]
        for layer in range(count)
    ]
    order, kept = merged(blocks), kept_text(config)
    again = [[row for row in order if row in block] for block in blocks]
    rows_of_all = [(f"blocks.{layer}.{name}", *rest) for layer, block in enumerate(blocks) for name, *rest in block]
    if kept is None or again != blocks or specs != outside + rows_of_all:
        return None
    where = [layers_text([layer for layer, block in enumerate(blocks) if row in block], count) for row in order]
    some = any(where)
    rows = [f"({text or f'range({count})'}, {row!r})" if some else repr(row) for text, row in zip(where, order)]
    source = f'''def param_specs(config):
    """Every parameter once, in canonical order; positions in this tuple are the name ids of the artifact."""
    specs = {[*outside]!r}
    for layer in range({count}):
        for {"layers, " if some else ""}(name, *rest) in ({", ".join(rows)},):
            {"if layer in layers: " if some else ""}specs.append((f"blocks.{{layer}}.{{name}}", *rest))
    return tuple(ParamSpec(*spec) for spec in specs {kept})
'''
    found = ast.parse(source).body[0]
    assert isinstance(found, ast.FunctionDef)
    return found
