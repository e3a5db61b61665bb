"""Grids: what is written on a command line or in a TOML list, and the cells that come of it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.core.errors import ConfigError
from pgolf.sweep.grid import choices, parse_axis, split_values

PLAIN = st.text(
    st.characters(codec="ascii", exclude_characters=",'\"()[]{}", exclude_categories=("C",)), min_size=1
).map(str.strip)
VALUES = st.lists(PLAIN.filter(bool), min_size=1, max_size=5)
KEYS = st.lists(st.from_regex(r"[a-z]{1,4}(\.[a-z]{1,4}){0,2}", fullmatch=True), unique=True, max_size=4)


@given(VALUES)
def test_values_come_apart_at_commas_and_only_there(values: list[str]) -> None:
    assert split_values(",".join(values)) == values
    assert split_values(" , ".join(values)) == values


@given(VALUES, VALUES)
def test_a_quoted_value_keeps_its_commas(left: list[str], right: list[str]) -> None:
    quoted = ",".join(f"'{value}'" for value in (",".join(left), ",".join(right)))
    assert split_values(quoted) == [",".join(left), ",".join(right)]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ('"9,10","8,9"', ["9,10", "8,9"]),
        ('say "a,b",c', ['say "a,b"', "c"]),
        ("f(a,{b,c}),d", ["f(a,{b,c})", "d"]),
        ("", [""]),
        ("it = 'x'", ["it = 'x'"]),
        ('"a"b"c"', ['"a"b"c"']),
    ],
)
def test_brackets_and_quotes(text: str, values: list[str]) -> None:
    assert split_values(text) == values


@pytest.mark.parametrize("text", ["[1,2", "1]", "'a,b", "(1,2]x]"])
def test_what_is_not_closed_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="without its partner"):
        split_values(text)


@pytest.mark.parametrize("axis", ["quant.bits=4,,5", "quant.bits=4,", "bits", "=4", "a b=3"])
def test_an_axis_of_another_form_is_refused(axis: str) -> None:
    with pytest.raises(ConfigError):
        parse_axis(axis)


def test_one_empty_value_is_a_value() -> None:
    assert parse_axis("package.name=") == ("package.name", [""])
    assert parse_axis('a.b="",x') == ("a.b", ["", "x"])


@given(KEYS, st.data())
def test_a_grid_has_every_combination_once(keys: list[str], data: st.DataObject) -> None:
    axes = {key: data.draw(st.lists(PLAIN.filter(bool), min_size=1, max_size=3, unique=True)) for key in keys}
    cells = choices([f"{key}={','.join(values)}" for key, values in axes.items()])
    expected = 1
    for values in axes.values():
        expected *= len(values)
    assert len(cells) == expected == len({tuple(cell.items()) for cell in cells})
    for cell in cells:
        assert list(cell) == list(axes)
        assert all(cell[key] in axes[key] for key in axes)


def test_a_list_goes_with_every_combination_and_the_seed_changes_fastest(tmp_path: Path) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text("[[cell]]\nquant.bits = 4\nquant.k = 9.5\n[[cell]]\nquant = { bits = 5 }\nmodel.tied = true\n")
    cells = choices(["compress.method=zlib,brotli"], grid, "7,8")
    assert len(cells) == 8
    first = {"quant.bits": "4", "quant.k": "9.5", "compress.method": "zlib", "train.seed": "7"}
    assert cells[0] == first
    assert [cell["train.seed"] for cell in cells] == ["7", "8"] * 4
    assert cells[4]["quant.bits"] == "5" and cells[4]["model.tied"] == "true"


@pytest.mark.parametrize(
    "text",
    [
        "bits = 4",
        "[[cell]]",
        "cell = 3",
        "cell = [3]",
        "[[cell]]\na.b = [1, 2]",
        "[[cell]]\na = 1\n[other]\nb = 2",
        "[[",
    ],
)
def test_a_file_that_is_no_list_of_cells_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "grid.toml").write_text(text)
    with pytest.raises(ConfigError):
        choices([], tmp_path / "grid.toml")


@pytest.mark.parametrize("seeds", ["1,2,1", "1,01", "1,x", "1.5", "-1", "1,"])
def test_seeds_are_different_whole_numbers(seeds: str) -> None:
    with pytest.raises(ConfigError, match=r"seed|whole|empty"):
        choices([], None, seeds)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text("[[cell]]\nquant.bits = 4\n")
    for arguments in (["a.b=1", "a.b=2,3"], None, ""), (["quant.bits=5"], tmp_path / "grid.toml", ""):
        with pytest.raises(ConfigError, match="given twice"):
            choices(*arguments)
    with pytest.raises(ConfigError, match="given twice"):
        choices(["train.seed=1,2"], None, "3")


def test_a_grid_beyond_reason_is_refused_before_it_is_made() -> None:
    axes = [f"a.b{key}={','.join(map(str, range(100)))}" for key in range(8)]
    with pytest.raises(ConfigError, match="10,000,000,000,000,000 cells"):
        choices(axes)
