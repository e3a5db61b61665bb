"""Code for one recipe: fields whose value the recipe fixes become that value, and branches it never takes go."""

import ast
import operator
from collections.abc import Callable
from typing import Any

from pgolf.bundle.graph import Transformer, walk

COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda one, many: one in many,
    ast.NotIn: lambda one, many: one not in many,
}


def fixed_values(recipe: ast.AST, bases: dict[str, tuple[str, ...]], made: frozenset[str]) -> dict[str, dict[str, Any]]:
    """Class -> field -> value, for classes of which the recipe holds one instance, be it of a class that inherits from
    them. `bases` has each class's ancestors; classes in `made` are instantiated elsewhere too.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for call in walk(recipe):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in bases:
            values = {word.arg: word.value.value for word in call.keywords if isinstance(word.value, ast.Constant)}
            for name in (call.func.id, *bases[call.func.id]):
                found.setdefault(name, []).append({str(field): value for field, value in values.items()})
    shared = made | {base for name in made for base in bases.get(name, ())}
    return {name: values[0] for name, values in found.items() if len(values) == 1 and name not in shared}


def truth(node: ast.expr) -> bool | None:
    """Whether an expression is true, None if that is not known."""
    if isinstance(node, ast.Tuple | ast.List) and not node.elts:
        return False
    return bool(node.value) if isinstance(node, ast.Constant) else None


class Fold(Transformer):
    """Puts fixed values in the place of `self.FIELD` where they decide something, and keeps the branch they choose.
    Elsewhere names stay: they are as short and compress better.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.values, self.deciding = values, 0

    def visit(self, node: ast.AST) -> Any:
        """Know whether this is part of a condition."""
        deciding = isinstance(node, ast.Compare | ast.BoolOp | ast.UnaryOp)
        self.deciding += deciding
        found = super().visit(node)
        self.deciding -= deciding
        return found

    def decided(self, test: ast.expr) -> ast.expr:
        """A condition, folded."""
        self.deciding += 1
        found: ast.expr = self.visit(test)
        self.deciding -= 1
        return found

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        """self.FIELD."""
        known = isinstance(node.value, ast.Name) and node.value.id == "self" and node.attr in self.values
        if known and self.deciding:
            return ast.Constant(self.values[node.attr])
        self.generic_visit(node)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        """One comparison of two known values."""
        folded = ast.Compare(self.visit(node.left), node.ops, [self.visit(one) for one in node.comparators])
        sides = [folded.left, *folded.comparators]
        if len(sides) == 2 and all(isinstance(side, ast.Constant) for side in sides):
            left, right = (side.value for side in sides if isinstance(side, ast.Constant))
            return ast.Constant(COMPARED[type(node.ops[0])](left, right))
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        """`not` of something known."""
        operand = self.visit(node.operand)
        known = truth(operand)
        if isinstance(node.op, ast.Not) and known is not None:
            return ast.Constant(not known)
        return ast.UnaryOp(node.op, operand)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        """Operands up to the first that decides, without those that cannot."""
        stops = isinstance(node.op, ast.Or)
        kept: list[ast.expr] = []
        for value in (self.visit(value) for value in node.values):
            kept.append(value)
            if truth(value) is stops:
                break
        kept = [value for value in kept[:-1] if truth(value) is None] + kept[-1:]
        return kept[0] if len(kept) == 1 else ast.BoolOp(node.op, kept)

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        """The branch that is taken."""
        test = self.decided(node.test)
        if (known := truth(test)) is not None:
            taken: ast.expr = self.visit(node.body if known else node.orelse)
            return taken
        return ast.IfExp(test, self.visit(node.body), self.visit(node.orelse))

    def visit_If(self, node: ast.If) -> ast.If | list[ast.stmt]:
        """The branch that is taken."""
        test = self.decided(node.test)
        body, orelse = self.block(node.body), self.block(node.orelse)
        if (known := truth(test)) is not None:
            return (body if known else orelse) or [ast.Pass()]
        return ast.If(test, body or [ast.Pass()], orelse)

    def block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """A row of statements."""
        found: list[ast.stmt] = []
        for item in body:
            made = self.visit(item)
            found += made if isinstance(made, list) else [made]
        return [item for item in found if not isinstance(item, ast.Pass)]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """What follows a return that is always reached goes too."""
        body = self.block(node.body)
        end = next((i for i, item in enumerate(body) if isinstance(item, ast.Return)), len(body) - 1)
        node.body = body[: end + 1] or [ast.Pass()]
        return node
