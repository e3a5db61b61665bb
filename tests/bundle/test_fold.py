"""Folding keeps what a program does: a class with branches, before and after, on every combination of its fields."""

import ast
import itertools

import pytest

from pgolf.bundle.fold import Fold, fixed_values

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
