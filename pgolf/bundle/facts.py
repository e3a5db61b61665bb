"""What can be said of a script's definitions from their text: what is set, read and called, with what."""

import ast
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from pgolf.bundle.graph import Definition, is_dataclass_node, is_kernel_node, of_library, walk
from pgolf.bundle.rename import bound, quoted_words, vocabulary

UNKNOWN = object()
"""The value of what is not the same always."""
HARMLESS = {"len", "sum", "max", "min", "int", "float", "bool", "abs", "str", "tuple", "list", "dict", "set", "sorted"}
HARMLESS |= {"torch.cat", "torch.zeros_like"}
"""Functions that do nothing but give a value."""
QUIET: tuple[type[ast.AST], ...] = (
    *(ast.Name, ast.Constant, ast.Attribute, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.IfExp, ast.Tuple),
    *(ast.List, ast.Dict, ast.Subscript, ast.Slice, ast.Starred, ast.JoinedStr, ast.FormattedValue, ast.Lambda),
    *(ast.GeneratorExp, ast.ListComp, ast.comprehension, ast.arguments, ast.arg, ast.keyword),
    *(ast.expr_context, ast.operator, ast.cmpop, ast.boolop, ast.unaryop),
)
"""What expressions that do nothing but give a value are made of, calls aside."""


def value_of(node: ast.expr | None, known: dict[str, Any]) -> Any:
    """The value of an expression of constants and known names, UNKNOWN of any other."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id, UNKNOWN)
    if isinstance(node, ast.Tuple):
        values = [value_of(item, known) for item in node.elts]
        return UNKNOWN if UNKNOWN in values else tuple(values)
    return UNKNOWN


def literal(value: Any) -> ast.expr:
    """The expression of a constant."""
    return ast.Tuple([literal(item) for item in value], ast.Load()) if isinstance(value, tuple) else ast.Constant(value)


def same(one: Any, other: Any) -> bool:
    """Whether two values are one and the same constant; 1, 1.0 and True are three."""
    return one is not UNKNOWN and repr(one) == repr(other)


def harmless(node: ast.expr | None) -> bool:
    """Whether computing an expression does nothing but give its value."""
    for inner in walk(node) if node else ():
        if isinstance(inner, ast.Call):
            if dotted(inner.func) not in HARMLESS:
                return False
        elif not isinstance(inner, QUIET):
            return False
    return True


def dotted(node: ast.expr) -> str:
    """A name, or an attribute of a name; empty for anything else."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def matched(target: ast.Tuple, value: ast.Tuple) -> list[tuple[ast.expr, ast.expr]]:
    """What is set to what by one assignment to several; nothing where that is not known before it happens."""
    starred = any(isinstance(item, ast.Starred) for item in (*target.elts, *value.elts))
    return [] if starred or len(target.elts) != len(value.elts) else list(zip(target.elts, value.elts))


def stores(function: ast.AST) -> dict[str, list[Any]]:
    """Name -> the expressions it is set to anywhere in a function, None where that is no plain assignment."""
    found: dict[str, list[Any]] = defaultdict(list)
    plain: set[int] = set()

    def pair(target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            found[target.id].append(value)
            plain.add(id(target))
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, other in matched(target, value):
                pair(one, other)

    for node in walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pair(target, node.value)
    for node in walk(function):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load) and id(node) not in plain:
            found[node.id].append(None)
        elif isinstance(node, ast.arg):
            found[node.arg].append(None)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler) and node.name:
            found[node.name].append(None)
        elif isinstance(node, ast.Nonlocal | ast.Global):
            for name in node.names:
                found[name].append(None)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name.split(".")[0]].append(None)
    return found


@dataclass(frozen=True, eq=False)
class Part(Definition):
    """A statement of a script, and what can be said of it alone."""

    @cached_property
    def functions(self) -> list[ast.FunctionDef]:
        """The function that it is, or the methods of a class."""
        return list(functions_in([self.node]))

    @cached_property
    def said(self) -> set[str]:
        """What it reads, and what it sets or defines that others may read."""
        classes = {node.name for node in self.kinds[ast.ClassDef]}
        own = [*(node.name for node in self.functions), *(name for name, _ in self.stored)]
        return classes.union(self.loads, self.names, ("." + name for name in own))

    @cached_property
    def calls(self) -> list[tuple[str, ast.Call]]:
        """What is called, and the calls."""
        return [(called(call.func), call) for call in self.kinds[ast.Call]]

    @cached_property
    def loads(self) -> list[str]:
        """What is read, as often as it is."""
        return [word for node in (*self.kinds[ast.Name], *self.kinds[ast.Attribute]) for word in loaded(node)]

    @cached_property
    def words(self) -> list[tuple[str, Any]]:
        """Arguments given by name, and their values."""
        words = (word for call in self.kinds[ast.Call] for word in call.keywords)
        return [(word.arg or "", value_of(word.value, {})) for word in words]

    @cached_property
    def variables(self) -> set[str]:
        """Names bound inside functions."""
        return {name for function in self.functions for name in bound(function)}

    @cached_property
    def quoted(self) -> set[str]:
        """Words in strings that hold nothing but names."""
        return quoted_words(self.node)

    @cached_property
    def stored(self) -> list[tuple[str, Any]]:
        """Attributes that are set, and the values they are given."""
        found, plain = [], set[ast.expr]()
        for node in self.kinds[ast.Assign]:
            for target, value in pairs(node):
                if isinstance(target, ast.Attribute):
                    found.append((target.attr, value_of(value, {})))
                    plain.add(target)
        others = (node for node in self.kinds[ast.Attribute] if not isinstance(node.ctx, ast.Load))
        return found + [(node.attr, UNKNOWN) for node in others if node not in plain]

    @cached_property
    def held(self) -> set[str]:
        """Names that are set in classes, as attributes and by name."""
        found = {name for node in self.kinds[ast.ClassDef] for name in assigned(node)}
        return found.union(name for name, _ in (*self.words, *self.stored))

    @cached_property
    def outer(self) -> dict[str, Any]:
        """Names of the module that are constant."""
        node = self.node
        value = value_of(node.value, {}) if isinstance(node, ast.Assign) else UNKNOWN
        targets = node.targets if isinstance(node, ast.Assign) and value is not UNKNOWN else []
        return {target.id: value for target in targets if isinstance(target, ast.Name)}


class Facts:
    """What the definitions of a script are called with and read for."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts
        self.quoted = set[str]().union(*(part.quoted for part in parts))
        self.classes: list[ast.ClassDef] = [node for part in parts for node in part.kinds[ast.ClassDef]]
        self.calls: dict[str, list[ast.Call]] = defaultdict(list)
        for name, call in chain.from_iterable(part.calls for part in parts):
            self.calls[name].append(call)
        self.loads = Counter(chain.from_iterable(part.loads for part in parts))
        self.variables = set[str]().union(*(part.variables for part in parts))
        self.outer = {name: value for part in parts for name, value in part.outer.items()}
        self.held = set[str]().union(*(part.held for part in parts))
        self.members = Counter(
            item.name for node in self.classes for item in node.body if isinstance(item, ast.FunctionDef)
        )

    def foreign(self, name: str) -> bool:
        """Whether an attribute of this name may be a library's, or be asked for by text."""
        return name in self.quoted or name in vocabulary()

    def alone(self, method: ast.FunctionDef) -> bool:
        """Whether a method's name stands for nothing else, wherever it is asked for."""
        return self.members[method.name] == 1 and method.name not in self.held and not self.foreign(method.name)

    def functions(self) -> Iterator[tuple[ast.FunctionDef, int]]:
        """Functions whose every use is a call seen here, and how many arguments come by themselves."""
        own = [(part.node, 0) for part in self.parts if isinstance(part.node, ast.FunctionDef)]
        own += [
            (item, 1)
            for node in self.classes
            for item in node.body
            if isinstance(item, ast.FunctionDef) and self.alone(item)
        ]
        for node, given in own:
            arguments = node.args
            plain = not (arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.posonlyargs)
            plain = plain and not node.decorator_list
            key = ("." if given else "") + node.name
            if plain and not is_kernel_node(node) and self.all_seen(key):
                yield node, given

    def all_seen(self, key: str) -> bool:
        """Whether a function or class is only ever called, under its name, with arguments that can be told apart."""
        once = key not in self.variables and self.loads[key] == len(self.calls[key])
        return once and not any(
            any(isinstance(one, ast.Starred) for one in call.args) or any(word.arg is None for word in call.keywords)
            for call in self.calls[key]
        )


def loaded(node: ast.AST) -> list[str]:
    """What a node reads: a name, or an attribute behind a dot."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        return [node.id]
    if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load) or of_library(node):
        return []
    return ["." + node.attr]


def called(node: ast.expr) -> str:
    """The name of what is called, an attribute's behind a dot."""
    return next(iter(loaded(node)), "")


def argument(call: ast.Call, index: int, name: str, default: ast.expr | None) -> ast.expr | None:
    """What a call gives for an argument."""
    if index < len(call.args):
        return call.args[index]
    return next((word.value for word in call.keywords if word.arg == name), default)


def without_argument(call: ast.Call, index: int, name: str) -> None:
    """Give it no longer."""
    call.args = [item for at, item in enumerate(call.args) if at != index]
    call.keywords = [word for word in call.keywords if word.arg != name]


def assigned(node: ast.ClassDef) -> Iterator[str]:
    """Names that statements of a class set."""
    for item in node.body:
        if isinstance(item, ast.AnnAssign | ast.Assign):
            yield from (inner.id for inner in walk(item) if isinstance(inner, ast.Name))


def fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    """Fields of a dataclass that stands alone."""
    return [item for item in node.body if isinstance(item, ast.AnnAssign)] if is_dataclass_node(node) else []


def pairs(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Targets with what each is set to; nothing of what is taken apart at run time."""
    for target in node.targets:
        if not isinstance(target, ast.Tuple):
            yield target, node.value
        elif isinstance(node.value, ast.Tuple):
            yield from matched(target, node.value)


def functions_in(nodes: Iterable[ast.AST]) -> Iterator[ast.FunctionDef]:
    """Functions of a module and methods of its classes."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from functions_in(node.body)
