"""Functions that only name an expression: the expression takes the place of the call."""

import ast
from collections.abc import Iterator

from pgolf.bundle.facts import Facts, harmless, loaded, stores
from pgolf.bundle.graph import Transformer, children, copied, walk

SHORT = 24
"""Characters of an expression that may stand in several places."""


def result_of(node: ast.FunctionDef) -> ast.expr | None:
    """The expression that is all a function gives, if it opens no scope of its own."""
    body = [item for item in node.body if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))]
    value = body[0].value if len(body) == 1 and isinstance(body[0], ast.Return) else None
    scoped = (ast.Lambda, ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp, ast.NamedExpr, ast.Yield)
    return None if value is None or any(isinstance(inner, scoped) for inner in walk(value)) else value


def events(node: ast.AST, sure: bool = True) -> Iterator[tuple[str, bool]]:
    """Names as they are read and calls as they are made (the empty name), in order, and whether they surely are."""
    if isinstance(node, ast.IfExp):
        yield from events(node.test, sure)
        yield from events(node.body, False)
        yield from events(node.orelse, False)
    elif isinstance(node, ast.BoolOp):
        yield from events(node.values[0], sure)
        for value in node.values[1:]:
            yield from events(value, False)
    else:
        for child in children(node):
            yield from events(child, sure and not (isinstance(node, ast.Compare) and len(node.ops) > 1))
        if isinstance(node, ast.Name):
            yield node.id, sure
        elif isinstance(node, ast.Call):
            yield "", sure


def fits(body: ast.expr, argument: str, value: ast.expr) -> bool:
    """Whether an argument's expression may stand where the argument is read: it is computed once, and before anything
    else is done, or is so simple that neither matters.
    """
    seen = list(events(body))
    uses = sum(name == argument for name, _ in seen)
    if isinstance(value, ast.Name | ast.Constant):
        return True
    if not uses:
        return harmless(value)
    first = next(index for index, (name, _) in enumerate(seen) if name == argument)
    early = not any(name == "" for name, _ in seen[:first])
    return uses == 1 and early and (seen[first][1] or harmless(value))


class Substitute(Transformer):
    """Puts expressions for names."""

    def __init__(self, values: dict[str, ast.expr]) -> None:
        self.values = values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """A name that is read."""
        found: ast.expr = copied(self.values[node.id]) if node.id in self.values else node
        return found


class Inline(Transformer):
    """Puts results in the places of calls, in one function."""

    def __init__(self, results: dict[str, tuple[ast.FunctionDef, ast.expr]], taken: set[str], own: str) -> None:
        self.results, self.taken, self.own = results, taken, own

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """A call of a function that only names an expression."""
        self.generic_visit(node)
        key = next(iter(loaded(node.func)), "")
        if key not in self.results or key.lstrip(".") == self.own:
            return node
        function, result = self.results[key]
        names = [one.arg for one in function.args.args]
        given: list[ast.expr] = [*([node.func.value] if isinstance(node.func, ast.Attribute) else []), *node.args]
        defaults = function.args.defaults
        values = dict(zip(names[len(names) - len(defaults) :], defaults)) | dict(zip(names, given))
        values |= {str(word.arg): word.value for word in node.keywords}
        free = {name for name, _ in events(result) if name} - set(names)
        simple = all(fits(result, name, value) for name, value in values.items())
        several = sum(
            not isinstance(value, ast.Name | ast.Constant) and not harmless(value) for value in values.values()
        )
        if set(values) != set(names) or free & self.taken or not simple or several > 1:
            return node
        found: ast.expr = Substitute(values).visit(copied(result))
        return found

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        """A property that only names an expression."""
        self.generic_visit(node)
        key = "@" + node.attr
        if key not in self.results or not loaded(node) or node.attr == self.own:
            return node
        function, result = self.results[key]
        name = function.args.args[0].arg
        free = {name for name, _ in events(result) if name} - {name}
        if free & self.taken or not (isinstance(node.value, ast.Name) or fits(result, name, node.value)):
            return node
        found: ast.expr = Substitute({name: node.value}).visit(copied(result))
        return found


def inline(facts: Facts) -> set[str]:
    """Put the results of functions that are called once, or short, where they are called. Gives the names."""
    results: dict[str, tuple[ast.FunctionDef, ast.expr]] = {}
    for function, given in facts.functions():
        key = ("." if given else "") + function.name
        result = result_of(function)
        if result is not None and (facts.loads[key] == 1 or len(ast.unparse(result)) <= SHORT):
            results[key] = function, result
    for node in facts.classes:
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and [ast.unparse(one) for one in item.decorator_list] == ["property"]:
                result, uses = result_of(item), facts.loads["." + item.name]
                if facts.alone(item) and result is not None and (uses == 1 or len(ast.unparse(result)) <= SHORT):
                    results["@" + item.name] = item, result
    names = {key.replace("@", ".") for key in results}
    for part in facts.parts:
        for function in () if names.isdisjoint(part.said) else part.functions:
            Inline(results, set(stores(function)), function.name).visit(function)
    return names
