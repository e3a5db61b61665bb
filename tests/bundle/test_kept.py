"""Programs kept from one command to the next: only whole ones, only of the same code, and never at a price."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pgolf
from pgolf import source
from pgolf.bundle import kept
from pgolf.bundle.kept import Program, kept_program, program_name, programs_folder
from pgolf.bundle.script import build_script, program
from pgolf.config.load import resolve

PROGRAM: Program = ("# read\nx = 'ü'\n", "x='ü'", {"x": "model.gpt"})


class Maker:
    """Makes a program, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Program:
        self.calls += 1
        return PROGRAM


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return programs_folder()


@pytest.fixture
def make() -> Maker:
    return Maker()


def test_a_program_is_made_once(folder: Path, make: Maker) -> None:
    assert [kept_program(recipe, make) for recipe in ("a", "a", "b", "a")] == [PROGRAM] * 4
    assert make.calls == 2
    assert len(list(folder.iterdir())) == 2


def test_a_damaged_one_is_made_again(folder: Path, make: Maker) -> None:
    kept_program("a", make)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    spoilt = [whole[:count] for count in (0, 1, 64, 65, len(whole) - 1)]
    for place in (0, 63, 65, len(whole) // 2, len(whole) - 1):
        spoilt.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for content in spoilt:
        path.write_bytes(content)
        before = make.calls
        assert kept_program("a", make) == PROGRAM
        assert make.calls == before + 1
        assert path.read_bytes() == whole


def test_without_a_place_for_them_programs_are_made(
    folder: Path, make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "caches").write_text("no folder\n")
    assert kept_program("a", make) == PROGRAM
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: Path("~/.cache") / name)
    monkeypatch.chdir(tmp_path)
    assert kept_program("a", make) == PROGRAM
    assert make.calls == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["caches"]


def test_code_that_changed_under_way_is_neither_kept_nor_believed(
    folder: Path, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_program("a", make)
    newest = max(path.stat().st_mtime for path in source.source_files())
    monkeypatch.setattr(pgolf, "STARTED", newest)
    for recipe in ("a", "b"):
        kept_program(recipe, make)
    assert make.calls == 3
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(pgolf, "STARTED", newest + 1)

    def edits() -> Program:
        monkeypatch.setattr(pgolf, "STARTED", newest)
        return make()

    kept_program("b", edits)
    assert len(list(folder.iterdir())) == 1


def test_other_code_makes_other_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "pgolf"
    shutil.copytree(source.ROOT, copy, ignore=shutil.ignore_patterns("__pycache__"))
    model = copy / "core" / "model" / "gpt.py"
    monkeypatch.setattr(kept, "source_sha256", source.source_sha256.__wrapped__)
    names = [program_name("a")]
    monkeypatch.setattr(source, "ROOT", copy)
    assert program_name("a") == names[0]
    with open(model, "a") as file:
        file.write("\n")
    names.append(program_name("a"))
    model.rename(model.with_name("gpt2.py"))
    names.append(program_name("a"))
    monkeypatch.setattr(kept, "version", lambda package: "0" if package == "python-minifier" else "1")
    names += [program_name("a"), program_name("b")]
    assert len(set(names)) == 5


def test_only_the_newest_stay(folder: Path, make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_PROGRAMS", 3)
    for recipe in "abc":
        kept_program(recipe, make)
    for age, path in enumerate(sorted(folder.iterdir())):
        os.utime(path, (1e9 - age, 1e9 - age))
    oldest = sorted(folder.iterdir())[-1]
    left = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    (folder / f".x.json.{int(left.stdout)}.part").write_bytes(b"of a process that is no more")
    kept_program("d", make)
    assert len(list(folder.iterdir())) == 3
    assert not oldest.exists()


def test_a_kept_program_is_the_script_to_the_last_byte(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve("tiny").config
    program.cache_clear()
    first = build_script.__wrapped__(config, "x")
    assert len(list(folder.iterdir())) == 1
    program.cache_clear()
    monkeypatch.setattr("pgolf.bundle.script.make_program", lambda config: pytest.fail("it was kept"))
    assert build_script.__wrapped__(config, "x") == first
