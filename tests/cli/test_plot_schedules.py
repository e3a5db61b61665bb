"""pgolf config plot-schedules: values as table and JSON, pictures where matplotlib is there."""

import sys
from pathlib import Path

import pytest
from harness import run_here

COMMAND = ("config", "plot-schedules")


def test_values_are_those_of_the_schedules() -> None:
    sets = ("--set", "optim.decay_schedule=taper", "--json")
    document = run_here(*COMMAND, "pr1855", *sets).good().document
    assert document["schema"] == "pgolf.schedules/1" and document["out"] is None
    rows = {row["fraction"]: row for row in document["values"]}
    assert [rows[f]["lr_scale"] for f in (0.0, 0.15, 0.575, 1.0)] == pytest.approx([1, 1, 0.5, 0.1])
    assert [rows[f]["matrix_decay_scale"] for f in (0.7, 0.85, 1.0)] == pytest.approx([1, 0.75, 0.5])
    assert [rows[f]["loop"] for f in (0.0, 0.34, 0.35, 1.0)] == [0, 0, 1, 1]
    assert rows[0.0375]["step"] == 750 and rows[0.0375]["momentum"] == pytest.approx(0.945)
    assert {row["decay_scale"] for row in rows.values()} == {1.0}


def test_the_table_has_eight_fractions() -> None:
    out = run_here(*COMMAND, "baseline_sp1024").good().out
    for words in ("0.15", "0.35", "0.5", "0.7", "0.85", "0.99", "lr_scale", "momentum", "decay_scale", "loop"):
        assert words in out
    assert len([line for line in out.splitlines() if line.strip("|+- \n")]) == 9


@pytest.mark.parametrize(("name", "magic"), [("made/here.png", b"\x89PNG"), ("here.svg", b"<?xml")])
def test_a_picture(tmp_path: Path, name: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    document = run_here(*COMMAND, "leader", "--out", tmp_path / name, "--json").good().document
    assert document["out"] == str(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_other_endings_are_refused(tmp_path: Path) -> None:
    run_here(*COMMAND, "--out", tmp_path / "a.pdf").refused(2, "a.pdf", ".svg", "--out")


def test_without_matplotlib_there_is_a_remedy_and_still_the_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run_here(*COMMAND, "--out", tmp_path / "a.png").refused(5, "pip install 'pgolf[plot]'")
    assert run_here(*COMMAND, "--json").good().document["values"]
    assert not list(tmp_path.iterdir())
