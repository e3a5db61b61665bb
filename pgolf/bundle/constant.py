"""Calls of methods that give the same constant whatever the object, as those of techniques a recipe leaves out do."""

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from pgolf.bundle.fold import Fold, truth
from pgolf.bundle.graph import copied, walk

EMPTY = (ast.Tuple, ast.List)
"""Literals that may stand for nothing to go through."""


@cache
def foreign_names() -> frozenset[str]:
    """Attributes of the objects of others that the core handles: calling one of these may mean theirs."""
    import numpy as np
    import torch

    types: tuple[Any, ...] = (torch.Tensor, torch.nn.Module, torch.optim.AdamW, np.ndarray, np.random.Generator)
    types += (str, bytes, int, float, dict, list, set, tuple, Path)
    return frozenset(name for kind in types for name in dir(kind))


def constant_of(node: ast.FunctionDef) -> ast.expr | None:
    """The literal that is all a function gives, None if it does more."""
    body = [item for item in node.body if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))]
    if node.decorator_list or len(body) > 1 or (body and not isinstance(body[0], ast.Return | ast.Pass)):
        return None
    value = body[0].value if body and isinstance(body[0], ast.Return) else None
    value = value or ast.Constant(None)
    plain = all(isinstance(inner, ast.Constant | ast.Tuple | ast.List | ast.Dict | ast.Load) for inner in walk(value))
    return value if plain else None


def constant_methods(nodes: Iterable[ast.AST], foreign: frozenset[str]) -> dict[str, ast.expr]:
    """Name -> literal, of methods that are the same constant in every class that has them, and no attribute besides,
    among all nodes of a program.
    """
    found: dict[str, list[ast.expr | None]] = {}
    assigned: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef):
                    found.setdefault(item.name, []).append(constant_of(item))
                elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    assigned.add(item.target.id)
                elif isinstance(item, ast.Assign):
                    assigned |= {target.id for target in item.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            assigned.add(node.attr)
    return {
        name: values[0]
        for name, values in found.items()
        if values[0] is not None
        and len({value and ast.dump(value) for value in values}) == 1
        and name not in assigned | foreign
        and not name.startswith("__")
    }


def is_empty(node: ast.expr) -> bool:
    """Whether an expression is a literal without elements."""
    return isinstance(node, EMPTY) and not node.elts


def never(turns: ast.comprehension) -> bool:
    """Whether a loop of a comprehension goes through nothing, or takes nothing of it."""
    return is_empty(turns.iter) or any(truth(test) is False for test in turns.ifs)


class ConstantCalls(Fold):
    """Puts the literals in the place of the calls, and drops what then does nothing."""

    def __init__(self, literals: dict[str, ast.expr]) -> None:
        super().__init__({})
        self.literals = literals

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """A call of one of the methods, or a collection of nothing."""
        if isinstance(node.func, ast.Attribute) and node.func.attr in self.literals:
            literal: ast.expr = copied(self.literals[node.func.attr])
            return literal
        self.generic_visit(node)
        turns = node.args[0].generators if node.args and isinstance(node.args[0], ast.GeneratorExp) else []
        collects = isinstance(node.func, ast.Name) and node.func.id == "tuple"
        return ast.Tuple([], ast.Load()) if collects and any(map(never, turns)) else node

    def visit_ListComp(self, node: ast.ListComp) -> ast.expr:
        """An empty list where one of the loops has nothing to go through."""
        self.generic_visit(node)
        return ast.List([], ast.Load()) if any(map(never, node.generators)) else node

    def visit_For(self, node: ast.For) -> ast.For | list[ast.stmt]:
        """A loop over nothing goes."""
        node.iter = self.visit(node.iter)
        node.body = self.block(node.body) or [ast.Pass()]
        return [] if is_empty(node.iter) and not node.orelse else node

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | list[ast.stmt]:
        """A statement that has become a literal goes; documentation stays."""
        called = isinstance(node.value, ast.Call)
        node.value = self.visit(node.value)
        return [] if called and isinstance(node.value, ast.Constant | ast.Tuple | ast.List | ast.Dict) else node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Blocks are never left empty."""
        super().generic_visit(node)
        if isinstance(node, ast.stmt) and getattr(node, "body", None) == []:
            node.body = [ast.Pass()]  # type: ignore[attr-defined]
        return node
