"""What the whole script shows to be constant, unread or without effect, and short names: the meaning stays."""

import ast
import warnings

import pytest

from pgolf.bundle.rename import rename
from pgolf.bundle.script import minify, squeeze
from pgolf.bundle.table import param_table
from pgolf.config.load import preset_names, resolve
from pgolf.core.model.config import model_parts, param_specs
from pgolf.core.model.export import exported
from pgolf.core.model.params import ParamSpec

PROGRAM = """
import math
from dataclasses import dataclass, field


@dataclass
class Flow:
    ids: 0
    stretch_marks: 0
    memory: 0 = field(default_factory=dict)


class Worker:
    kind = "steady"

    def __init__(self, rate):
        self.rate = rate
        self.never = 3
        self.made = [rate]

    @property
    def doubled(self):
        return 2 * self.rate

    def combine(self, flow, window, unread):
        if flow.stretch_marks is not None or window:
            return math.nan
        shifted = [one + window for one in flow.ids]
        total = sum(shifted) * self.doubled
        return total

    def said(self, weight):
        return f"{self.kind} {weight}"


def outer(number, scale=1.5):
    weight = number
    looping, length = False, 0

    def inner(step):
        nonlocal weight
        weight += step
        return weight

    mode = (looping, length)
    if mode != (False, 0):
        inner(1000)
    return inner(2) * scale


def options(**given):
    return sorted(given.items())


def named(dim, weight):
    return dim - weight


RECIPE = Worker(7)
results = [
    RECIPE.combine(Flow([1, 2, 3], None), 0, "nothing"),
    outer(5),
    RECIPE.said(weight=4),
    options(number=1, weight=2),
    named(weight=1, dim=3),
    named(**{"weight": 1, "dim": 5}),
    getattr(RECIPE, "rate"),
    [len(RECIPE.made), math.floor(outer(number=2.5))],
]
"""
"""A program with something of everything that is folded, dropped, moved or renamed."""


def outcome(source: str) -> str:
    """What the program computes."""
    names: dict[str, object] = {"__name__": "program"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(source, "program", "exec"), names)
    (results,) = (value for name, value in names.items() if isinstance(value, list) and len(value) == 8)
    return repr(results)


@pytest.mark.parametrize("change", [squeeze, rename, minify, lambda source: rename(rename(source))])
def test_a_changed_program_computes_the_same(change):
    assert outcome(change(PROGRAM)) == outcome(PROGRAM)


def test_what_is_constant_or_unread_goes():
    text = squeeze(PROGRAM)
    for word in ("stretch_marks", "never", "unread", "window", "looping", "1000", "math.nan", "shifted + 0"):
        assert word in PROGRAM + "shifted + 0" and word not in text, word
    assert "2 * self.rate" in text and "doubled" not in text, "a property that is asked once takes its place"
    assert "rate = 7" not in text and "weight += step" in text
    assert "return sum(" in text, "what a name holds only to be returned is returned as it is"


def test_names_that_mean_something_elsewhere_stay():
    text = rename(PROGRAM)
    assert "math.floor" in text and "number=1" in text and "'weight': 1" in text
    for word in ("combine", "outer", "inner", "looping", "doubled", "Worker"):
        assert word not in text, word
    assert ".rate" in text, "its name stands in a string"


def test_letters_begin_anew_in_every_function():
    text = rename(
        "def first(alpha, beta):\n    return alpha - beta\ndef second(gamma, delta):\n    return gamma - delta\n"
    )
    bodies = [ast.unparse(node.args) + ast.unparse(node.body[0]) for node in ast.parse(text).body]  # type: ignore[attr-defined]
    assert bodies == ["a, breturn a - b"] * 2


def test_letters_never_hide_a_name_that_stays():
    source = "def f(a, first, second):\n    return a - first * second\nx = f\n"
    text = rename(source + "print(x(1, first=2, second=3), (lambda a: a)(a=4))\n")
    function = ast.parse(text).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert len({one.arg for one in function.args.args}) == 3


def test_attributes_of_modules_that_torch_registers_stay():
    source = (
        "class Net(nn.Module):\n    def __init__(self):\n        self.hidden_part = nn.Linear(2, 2)\nRECIPE = Net()\n"
    )
    assert "self.hidden_part = nn.Linear(2, 2)" in squeeze("from torch import nn\n" + source)


def test_an_impure_argument_is_not_moved_behind_a_call():
    source = (
        "def twice(value):\n    return note('before') + value\ndef note(text):\n    log.append(text)\n    return 0\n"
    )
    source += "log = []\nRECIPE = [twice(note('argument'))]\n"
    names: dict[str, list[str]] = {}
    exec(squeeze(source), names)
    assert names["log"] == ["argument", "before"]


@pytest.mark.parametrize("preset", preset_names())
def test_the_table_has_the_parameters_of_the_configuration(preset):
    config = resolve(preset).config.model
    table = param_table(config)
    assert table is not None
    names = {"ParamSpec": ParamSpec}
    exec(ast.unparse(table), names)
    assert names["param_specs"](config) == param_specs(config)  # type: ignore[operator]
    assert param_table(resolve(preset, ["model.matrix_init=orthogonal"]).config.model) is not None


@pytest.mark.parametrize(
    "parts", [("multi_token=mtp_heads",), ("head_mix=learned",), ("multi_token=mtp_heads", "head_mix=learned")]
)
def test_the_table_has_what_is_exported_of_the_configuration_too(parts):
    config = resolve("leader", [f"model.{part}" for part in parts]).config.model
    table = param_table(config)
    assert table is not None
    names = {"ParamSpec": ParamSpec, "model_parts": model_parts}
    exec(ast.unparse(table), names)
    for one in (config, exported(config)):
        assert names["param_specs"](one) == param_specs(one)  # type: ignore[operator]
    assert param_specs(exported(config)) != param_specs(config)
