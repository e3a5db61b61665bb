"""Folding keeps what a program does: a class with branches, before and after, on every combination of its fields."""

import ast
import itertools
import warnings

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgolf.bundle.constant import ConstantCalls, constant_methods, foreign_names
from pgolf.bundle.fold import Fold, fixed_values
from pgolf.bundle.script import latin1_literal

SOURCE = """
class Sample:
    def __init__(self, mode, count, flag):
        self.mode, self.count, self.flag = mode, count, flag

    def branches(self, x):
        if self.mode == "a":
            x += 1
        elif self.mode in ("b", "c") and x > self.count:
            x += 2
            if not self.flag:
                return -x
        else:
            x += 3
        for step in range(3):
            if self.flag and self.count:
                x *= 2
        return x

    def values(self, x):
        y = self.count or x
        z = (self.flag or self.mode == "c") and x
        w = x if self.count > 1 else y if self.flag else [self.mode, self.count]
        return y, z, w, 1 if self.count is None or x else 2, [i for i in range(x) if i != self.count]

    def early(self, x):
        if self.flag:
            return x
        x += self.count
        return x + 1
"""


@pytest.mark.parametrize("fields", itertools.product(("a", "b", "d"), (0, 1, 3), (False, True)))
def test_folded_code_does_the_same(fields: tuple[str, int, bool]) -> None:
    values = dict(zip(("mode", "count", "flag"), fields))
    tree = ast.parse(SOURCE)
    plain: dict[str, type] = {}
    folded: dict[str, type] = {}
    exec(compile(tree, "plain", "exec"), plain)
    smaller = ast.fix_missing_locations(Fold(values).visit(ast.parse(SOURCE)))
    exec(compile(smaller, "folded", "exec"), folded)
    for name, x in itertools.product(("branches", "values", "early"), range(5)):
        assert getattr(folded["Sample"](*fields), name)(x) == getattr(plain["Sample"](*fields), name)(x)
    text = ast.unparse(smaller)
    assert "self.mode ==" not in text and "if self.flag" not in text
    assert len(text) < len(ast.unparse(tree))


def test_only_what_one_instance_decides_is_fixed() -> None:
    recipe = ast.parse("Run(model=One(width=4, kind='x', inner=Two(n=1)), a=Three(n=1), b=Three(n=2), c=Child(z=0))")
    bases = {"One": (), "Two": ("Part",), "Three": ("Part",), "Child": ("Base",), "Base": (), "Part": (), "Run": ()}
    found = fixed_values(recipe, bases, frozenset())
    assert found["One"] == {"width": 4, "kind": "x"} and found["Base"] == found["Child"] == {"z": 0}
    assert found["Two"] == {"n": 1} and not {"Three", "Part"} & set(found)
    assert "Child" not in fixed_values(recipe, bases, frozenset({"Child"}))
    assert "Base" not in fixed_values(recipe, bases, frozenset({"Child"}))


def test_what_is_made_elsewhere_is_not_fixed() -> None:
    from pgolf.bundle.script import emit
    from pgolf.config.load import resolve

    source, _ = emit(resolve("tiny", ["eval=plain", "eval.max_tokens=77"]).config, "{}")
    assert "class PlainEval" in source and " 77 " not in source.replace("max_tokens=77", "")


def test_calls_of_methods_that_are_constant_everywhere_become_their_value() -> None:
    source = """
class Plain:
    def extra(self, x):
        return ()
    def note(self):
        "Nothing."
    def mixed(self):
        return 1
    def read(self):
        return 2
class Other:
    def extra(self, x):
        "Nothing either."
        return ()
    def mixed(self):
        return self.value
def work(one, log):
    one.note()
    for item in one.extra(3):
        log(item)
    while one:
        one.note()
    kept = tuple(y for y in one.extra(2)), [y for x in one.extra(1) for y in x], one.mixed(), one.read()
    return kept
"""
    tree = ast.parse(source)
    literals = constant_methods(ast.walk(tree), frozenset({"read"}))
    assert set(literals) == {"extra", "note"}
    folded = ConstantCalls(literals).visit(tree)
    body = ast.unparse(ast.fix_missing_locations(folded)).split("def work(one, log):")[1]
    assert body.split("\n")[1:] == [
        "    while one:",
        "        pass",
        "    kept = ((), [], one.mixed(), one.read())",
        "    return kept",
    ]


def test_attributes_that_hold_something_else_are_no_constant_methods() -> None:
    tree = ast.parse("class A:\n    def log(self):\n        return 0\nclass B:\n    log: int\n")
    assert constant_methods(ast.walk(tree), frozenset()) == {}
    assert {"parts", "append", "view", "named_parameters"} <= foreign_names()


@given(st.binary(max_size=200))
@example(b'""""')
@example(b"\x001")
@example(b'\r\n\\"')
def test_a_literal_stands_for_its_bytes(data: bytes) -> None:
    source = b"#coding:latin-1\nx=" + latin1_literal(data) + b"\n"
    found: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(source, "literal", "exec"), found)
    assert found["x"].encode("latin-1") == data
