"""What a whole script shows to be constant, unread or without effect: found by its text alone, and taken out.

All of this rests on the rules of core: code does not look itself up by text, and an attribute is written as one.
Attributes that a library's object may have as well, or whose name stands in a string, are left alone.
"""

import ast
from collections import defaultdict
from dataclasses import replace
from typing import Any

from pgolf.bundle.constant import ConstantCalls, constant_of
from pgolf.bundle.facts import (
    UNKNOWN,
    Facts,
    Part,
    argument,
    dotted,
    fields,
    harmless,
    literal,
    loaded,
    matched,
    same,
    stores,
    value_of,
    without_argument,
)
from pgolf.bundle.fold import COMPARED
from pgolf.bundle.graph import Transformer, copied, is_kernel_node, shape, walk
from pgolf.bundle.inline import inline


class Settle(ConstantCalls):
    """Puts constants for known names where they are read, and drops what this decides or leaves without effect."""

    def __init__(self, known: dict[str, Any], outer: dict[str, Any]) -> None:
        super().__init__({})
        self.known, self.outer = known, outer

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """A local name that is constant; one of the module where it decides something."""
        if isinstance(node.ctx, ast.Load) and node.id in self.known:
            return literal(self.known[node.id])
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        """Two constants, tuples among them."""
        self.generic_visit(node)
        if len(node.ops) == 1:
            left, right = (value_of(side, self.outer) for side in (node.left, node.comparators[0]))
            among = node.comparators[0].elts if isinstance(node.comparators[0], ast.Tuple) else []
            if isinstance(node.ops[0], ast.In) and any(same(left, value_of(item, {})) for item in among):
                return ast.Constant(True)
            if left is not UNKNOWN and right is not UNKNOWN:
                return ast.Constant(COMPARED[type(node.ops[0])](left, right))
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        """What both branches give."""
        found = super().visit_IfExp(node)
        alike = isinstance(found, ast.IfExp) and ast.dump(found.body) == ast.dump(found.orelse)
        return found.body if isinstance(found, ast.IfExp) and alike and harmless(found.test) else found

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        """An element of a tuple that stands there."""
        self.generic_visit(node)
        whole, place = node.value, value_of(node.slice, {})
        if not isinstance(whole, ast.Tuple) or type(place) is not int or not isinstance(node.ctx, ast.Load):
            return node
        plain = not any(isinstance(item, ast.Starred) for item in whole.elts) and all(map(harmless, whole.elts))
        return whole.elts[place] if plain else node

    def visit_Starred(self, node: ast.Starred) -> ast.expr:
        """Left alone but for what is in it."""
        self.generic_visit(node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """Arguments out of a constant tuple are given one by one."""
        found = super().visit_Call(node)
        if isinstance(found, ast.Call):
            found.args = [item for one in found.args for item in spread(one)]
            if dotted(found.func) == "bool" and len(found.args) == 1 and isinstance(found.args[0], ast.Constant):
                return ast.Constant(bool(found.args[0].value))
        return found

    def visit_If(self, node: ast.If) -> ast.If | list[ast.stmt]:
        """Not without a branch that does anything."""
        found = super().visit_If(node)
        if isinstance(found, ast.If) and not found.orelse and all(isinstance(item, ast.Pass) for item in found.body):
            return [] if harmless(found.test) else [ast.Expr(found.test)]
        return found

    def visit_For(self, node: ast.For) -> ast.For | list[ast.stmt]:
        """Not without a body that does anything."""
        found = super().visit_For(node)
        if isinstance(found, list) or found.orelse or not all(isinstance(item, ast.Pass) for item in found.body):
            return found
        return [] if harmless(found.iter) else found

    def block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """What a name holds only to be returned is returned as it is."""
        found = super().block(body)
        if len(found) > 1 and isinstance(found[-1], ast.Return) and isinstance(found[-1].value, ast.Name):
            last, name = found[-2], found[-1].value.id
            if isinstance(last, ast.Assign) and [dotted(one) for one in last.targets] == [name]:
                inner = (
                    node for item in found[:-2] for node in walk(item) if isinstance(node, ast.FunctionDef | ast.Lambda)
                )
                if not any(name in loaded(one) for node in inner for one in walk(node)):
                    return [*found[:-2], ast.Return(last.value)]
        return found

    def visit_Assign(self, node: ast.Assign) -> ast.Assign | ast.Pass:
        """Targets stay as they are; what is set to itself goes."""
        alike = len(node.targets) == 1 and type(node.targets[0]) is type(node.value)
        if alike and ast.unparse(node.targets[0]) == ast.unparse(node.value) and harmless(node.value):
            return ast.Pass()
        node.value = self.visit(node.value)
        node.targets = [self.visit(target) if not isinstance(target, ast.Name) else target for target in node.targets]
        return node


def spread(node: ast.expr) -> list[ast.expr]:
    """An argument, or those that a starred tuple stands for."""
    return node.value.elts if isinstance(node, ast.Starred) and isinstance(node.value, ast.Tuple) else [node]


class Unread(Transformer):
    """Takes out assignments to names and attributes that nothing reads."""

    def __init__(self, names: set[str], attributes: set[str]) -> None:
        self.names, self.attributes = names, attributes

    def unread(self, target: ast.expr) -> bool:
        """Whether nothing reads what is set here. torch reads its own settings."""
        if isinstance(target, ast.Name):
            return target.id in self.names
        if ast.unparse(target).startswith("torch."):
            return False
        return isinstance(target, ast.Attribute) and target.attr in self.attributes and harmless(target.value)

    def visit_Assign(self, node: ast.Assign) -> ast.Assign | ast.Pass | ast.Expr:
        """Drop targets, and the statement if none is left and its value takes nothing to compute."""
        self.generic_visit(node)
        target, value = node.targets[0], node.value
        if len(node.targets) == 1 and isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = matched(target, value)
            kept = [(one, other) for one, other in pairs if not (self.unread(one) and harmless(other))]
            if len(kept) == len(pairs):
                return node
            if len(kept) < 2:
                return ast.Assign([kept[0][0]], kept[0][1]) if kept else ast.Pass()
            ones, others = zip(*kept)
            return ast.Assign([ast.Tuple(list(ones), ast.Store())], ast.Tuple(list(others), ast.Load()))
        simple = harmless(value)  # what a module of torch is given may be registered
        node.targets = [one for one in node.targets if not (self.unread(one) and (simple or isinstance(one, ast.Name)))]
        if not node.targets:
            return ast.Pass() if simple else ast.Expr(value)
        return node


def settle_function(node: ast.FunctionDef, outer: dict[str, Any], after: tuple[Any, ...]) -> tuple[Any, ...]:
    """Constants of one function put in their places, and what nothing reads taken out; its shape before and after."""
    while True:
        found, known = stores(node), dict[str, Any]()
        for _ in range(2):
            for name in found.keys() - known.keys():
                values = [value_of(value, outer | known) for value in found[name]]
                if all(same(value, values[0]) for value in values):
                    known[name] = values[0]
        Settle(known, {name: value for name, value in outer.items() if name not in found}).visit(node)
        read = {inner.id for inner in walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load)}
        read |= {name for inner in walk(node) if isinstance(inner, ast.Nonlocal | ast.Global) for name in inner.names}
        if unread := found.keys() - read:
            Unread(unread, set()).visit(node)
        Settle({}, {}).visit(node)
        before, after = after, shape(node)
        if after == before:
            return after


def settle_functions(part: Part, outer: dict[str, Any], settled: set[tuple[Any, ...]]) -> Part:
    """The functions of a statement settled, but for those in which there was nothing to do before."""
    changed = False
    for function in part.functions:
        before = shape(function)
        if before not in settled and not has_kernel(function):
            after = settle_function(function, outer, before)
            settled.add(after)
            changed = changed or after != before
    return replace(part) if changed else part


def settle_arguments(facts: Facts) -> set[str]:
    """Arguments that are the same constant in all calls, or that a function does not read: gone. Gives the names of the
    functions.
    """
    found = set[str]()
    for node, given in facts.functions():
        key = ("." if given else "") + node.name
        calls = facts.calls[key]
        defaults: list[ast.expr | None] = [None] * (len(node.args.args) - len(node.args.defaults))
        defaults += node.args.defaults
        for index, one in reversed(list(enumerate(node.args.args))[given:]):
            values = [argument(call, index - given, one.arg, defaults[index]) for call in calls]
            known = [value_of(value, {}) for value in values]
            constant = calls and all(same(value, known[0]) for value in known)
            constant = constant and not any(one.arg in stores(item) for item in node.body)
            read = any(one.arg in loaded(inner) for item in node.body for inner in walk(item))
            if not constant and (read or not all(harmless(value) for value in values)):
                continue
            found.add(key)
            for call in calls:
                without_argument(call, index - given, one.arg)
            del node.args.args[index], defaults[index]
            node.args.defaults = [value for value in defaults if value is not None]
            if read:
                node.body = Settle({one.arg: known[0]}, {}).block(node.body) or [ast.Pass()]
    return found


def attribute_values(facts: Facts) -> dict[str, list[Any]]:
    """Attribute -> every value it is given anywhere, UNKNOWN among them where that cannot be told."""
    found: dict[str, list[Any]] = defaultdict(list)
    for part in facts.parts:
        for name, value in (*part.words, *part.stored):
            found[name].append(value)
    for node in facts.classes:
        seen = facts.all_seen(node.name) and not node.bases
        for index, item in enumerate(fields(node)):
            if isinstance(item.target, ast.Name):
                name, calls = item.target.id, facts.calls[node.name]
                given = [value_of(argument(call, index, name, item.value), {}) for call in calls]
                found[name] += given if seen else [UNKNOWN]
        for member in node.body:
            if isinstance(member, ast.Assign):
                for name, values in stores(ast.Module([member], [])).items():
                    found[name] += [value_of(value, {}) if value is not None else UNKNOWN for value in values]
            elif isinstance(member, ast.FunctionDef | ast.ClassDef):
                found[member.name].append(UNKNOWN)
    return found


class Attributes(Transformer):
    """Puts constants in the places of attributes that have one value only."""

    def __init__(self, known: dict[str, Any]) -> None:
        self.known = known

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        """The value, if asking for it does nothing else."""
        self.generic_visit(node)
        asked = loaded(node) and node.attr in self.known and harmless(node.value)
        return literal(self.known[node.attr]) if asked else node


def settle_attributes(facts: Facts) -> list[Part]:
    """Attributes that have one value only become it; what nothing reads is no longer kept."""
    values = attribute_values(facts)
    known = {
        name: given[0]
        for name, given in values.items()
        if not facts.foreign(name) and facts.loads["." + name] and all(same(value, given[0]) for value in given)
    }
    unread = {name for name in values if not facts.foreign(name) and not facts.loads["." + name] and name not in known}
    names = {"." + name for name in known.keys() | unread}
    for part in facts.parts:
        if not names.isdisjoint(part.said):
            Attributes(known).visit(part.node)
            Unread(set(), unread).visit(part.node)
    for node in facts.classes:
        if not facts.all_seen(node.name) or node.bases:
            continue
        for item in reversed(fields(node)):
            if isinstance(item.target, ast.Name) and item.target.id in unread:
                index, name = fields(node).index(item), item.target.id
                given = [argument(call, index, name, None) for call in facts.calls[node.name]]
                if all(harmless(value) for value in given):
                    node.body = [other for other in node.body if other is not item] or [ast.Pass()]
                    names.add(node.name)
                    for call in facts.calls[node.name]:
                        without_argument(call, index, name)
    return renewed(facts.parts, names)


class OneEntry(Transformer):
    """Asks tables that hold the same under every key for nothing."""

    def __init__(self, tables: dict[str, ast.expr], results: dict[str, ast.expr]) -> None:
        self.tables, self.results = tables, results

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        """The entry."""
        self.generic_visit(node)
        name = node.value.id if isinstance(node.value, ast.Name) and isinstance(node.ctx, ast.Load) else ""
        return copied(self.tables[name]) if name in self.tables and harmless(node.slice) else node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """What a function gives that gives a constant."""
        self.generic_visit(node)
        idle = all(harmless(one) for one in (*node.args, *(word.value for word in node.keywords)))
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        return copied(self.results[name]) if name in self.results and idle else node


def settle_tables(parts: list[Part], variables: set[str]) -> list[Part]:
    """Tables with one entry, and functions with one result."""
    tables: dict[str, ast.expr] = {}
    results: dict[str, ast.expr] = {}
    for node in (part.node for part in parts):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and isinstance(node.targets[0], ast.Name):
            entries = {ast.dump(value) for value in node.value.values}
            if len(entries) == 1 and isinstance(node.value.values[0], ast.Name):
                tables[node.targets[0].id] = node.value.values[0]
        elif isinstance(node, ast.FunctionDef) and node.name not in variables:
            result = constant_of(node)
            results |= {} if result is None else {node.name: result}
    names = {*tables, *results}
    for part in parts:
        if not names.isdisjoint(part.said):
            OneEntry(tables, results).visit(part.node)
    return renewed(parts, names)


def renewed(parts: list[Part], names: set[str]) -> list[Part]:
    """The statements, looked at anew where they say any of these names and so may have changed."""
    return [part if names.isdisjoint(part.said) else replace(part) for part in parts]


def tidy(parts: list[Part], settled: set[tuple[Any, ...]]) -> list[Part]:
    """The statements of a script, changed and one for one, without some of what is constant, unread or without effect
    in it; done again until nothing changes, without all. `settled` remembers functions with nothing to do in them.
    """
    facts = Facts(parts)
    parts = [settle_functions(part, facts.outer, settled) for part in parts]
    parts = settle_attributes(Facts(settle_tables(parts, facts.variables)))
    facts = Facts(parts)
    return renewed(parts, settle_arguments(facts) | inline(facts))


def has_kernel(node: ast.FunctionDef) -> bool:
    """Whether a Triton kernel is defined inside."""
    return any(isinstance(inner, ast.FunctionDef) and is_kernel_node(inner) for inner in walk(node))
