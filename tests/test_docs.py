"""The documents say what the program does: generated pages are current, nothing is undocumented, commands work."""

import ast
import dataclasses
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

from pgolf.catalog import CATALOG, load
from pgolf.cli import options
from pgolf.cli.main import app
from pgolf.config.describe import technique_rows
from pgolf.config.load import preset_names, resolve
from pgolf.config.run import RunConfig
from pgolf.config.tree import flatten, to_values
from pgolf.corpus.transforms import TRANSFORMS
from pgolf.report import reference
from pgolf.stages.pipeline import chosen_stages, parse_requirement
from pgolf.sweep import grid

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
SOURCES = sorted((ROOT / "pgolf").rglob("*.py"))
ROOMS = ("pgolf", "docs", "tests", "examples", "benchmarks", "constraints", ".ci")
"""Folders of the checkout that documents name; every path below them must exist."""
NOT_HERE = {"train_gpt.py", "train_gpt_readable.py", "leaky_relu2.py"}
"""Programs that documents name and that are no part of the checkout."""
GROUP: Any = typer.main.get_command(app)
COMMANDS = [words for words in reference.command_paths(GROUP) if words]


def name(path: Path) -> str:
    """A path as test ids show it."""
    return path.relative_to(ROOT).as_posix()


def leaf(words: tuple[str, ...]) -> Any:
    """The command that these words call."""
    command = GROUP
    for word in words:
        command = command.commands[word]
    return command


LEAVES = [words for words in COMMANDS if not hasattr(leaf(words), "commands")]


def shell_lines(page: Path) -> Iterator[str]:
    """Simple commands of a page's shell blocks, comments dropped, `&&` taken apart."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                stop = words.index("&&") if "&&" in words else len(words)
                yield shlex.join(words[:stop])
                words = words[stop + 1 :]


def inline_code(page: Path) -> set[str]:
    """What stands in single backticks outside code blocks."""
    text = re.sub(r"^\s*```.*?^\s*```", "", page.read_text(), flags=re.S | re.M)
    return set(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text))


def all_keys() -> set[str]:
    """Every key that some configuration has."""
    sections = RunConfig.__dataclass_fields__
    return {row.key for section in sections for row in reference.section_rows(RunConfig(), section)}


def listed_rows(section: str) -> list[reference.KeyRow]:
    """Rows of a section but for those of a slot inside one of its own choices, which are listed with the outer one."""
    return [row for row in reference.section_rows(RunConfig(), section) if not row.again]


LINES = [(name(page), line) for page in PAGES for line in shell_lines(page)]


def test_generated_pages_are_current() -> None:
    """If this fails: python -m pgolf.report.reference --write docs."""
    assert reference.stale_pages(DOCS) == []


def test_stale_pages_are_noticed(tmp_path: Path) -> None:
    assert reference.main(["--write", str(tmp_path)]) == 0
    assert reference.main(["--check", str(tmp_path)]) == 0
    page = tmp_path / "configuration.md"
    page.write_text(page.read_text().replace("model.num_layers", "model.layers"))
    assert reference.main(["--check", str(tmp_path)]) == 1
    page.unlink()
    assert reference.stale_pages(tmp_path) == ["configuration.md"]


def test_help_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    before = reference.help_text(("train",))
    for variable, value in {"COLUMNS": "40", "FORCE_COLOR": "1", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(variable, value)
    assert reference.help_text(("train",)) == before
    assert "\x1b" not in before
    assert max(map(len, before.splitlines())) <= reference.HELP_WIDTH


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_command_is_documented(words: tuple[str, ...]) -> None:
    call = " ".join(("pgolf", *words))
    assert any(f"{line} ".startswith(f"{call} ") for page, line in LINES if page == "README.md"), "no example in README"
    assert f"\n## {call}\n" in (DOCS / "commands.md").read_text()
    assert leaf(words).help, "a command without a docstring"
    for parameter in leaf(words).params:
        assert getattr(parameter, "help", None), f"{parameter.name} has no help"


def test_every_key_is_documented() -> None:
    page = (DOCS / "configuration.md").read_text()
    keys = all_keys()
    for preset in ("", *preset_names()):
        assert set(flatten(to_values(resolve(preset).config))) <= keys
    for slot, choices in CATALOG.items():
        for choice in choices:
            for field in dataclasses.fields(load(slot, choice)):
                assert any(key.endswith(f".{field.name}") or f".{field.name}." in key for key in keys), field.name
    listed = {row.key for section in RunConfig.__dataclass_fields__ for row in listed_rows(section)}
    for key in keys:
        _, _, inner = key.removeprefix("quant.").partition(".")
        assert f"\n| `{key}` |" in page or (key not in listed and f"\n| `quant.{inner}` |" in page)
    for section in RunConfig.__dataclass_fields__:
        for row in reference.section_rows(RunConfig(), section):
            assert row.meaning, f"{row.key} has no docstring"


def test_every_technique_is_documented() -> None:
    page, rows = (DOCS / "techniques.md").read_text(), technique_rows()
    assert len(rows) == sum(map(len, CATALOG.values())) + len(TRANSFORMS)
    for row in rows:
        assert row["summary"], f"{row['name']} has no docstring"
        assert f"\n| `{row['name']}` |" in page
    for preset in preset_names():
        assert f"| `{preset}` |" in (DOCS / "configuration.md").read_text()


@pytest.mark.parametrize(("page", "line"), LINES)
def test_command_line_works(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands, options, keys and values of every shell line exist; files that it makes or reads need not."""
    monkeypatch.setattr(options, "is_missing", lambda path: False)
    program, *rest = shlex.split(line)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(rest) <= set(targets)
    elif program == "pip":
        assert all((ROOT / file).is_file() for option, file in zip(rest, rest[1:]) if option == "-c")
    elif program.startswith(".venv/bin/"):
        if "-m" in rest:
            assert find_spec(rest[rest.index("-m") + 1])
        assert all((ROOT / word).exists() for word in rest if word.startswith(ROOMS) and "/" in word)
    elif program == "torchrun":
        assert rest[rest.index("-m") + 1] == "pgolf"
        check_pgolf(rest[rest.index("-m") + 2 :])
    else:
        assert program == "pgolf", f"{page} shows a program this test does not know"
        check_pgolf(rest)


def check_pgolf(words: list[str]) -> None:
    """Parse a command line of pgolf without running it."""
    call = next(call for call in sorted(LEAVES, key=len, reverse=True) if tuple(words[: len(call)]) == call)
    given = leaf(call).make_context("pgolf", words[len(call) :]).params
    target = given.get("target", "")
    preset = given.get("preset") or (target if target in preset_names() else "")
    if call[0] == "sweep":  # the models of the examples are of this preset
        preset = preset or "tiny"
    for choice in grid.choices(given.get("axes") or [], None, given.get("seeds") or ""):
        resolve(preset, [*(given.get("sets") or []), *(f"{key}={value}" for key, value in choice.items())])
    for requirement in given.get("require") or []:
        parse_requirement(requirement)
    chosen_stages(given.get("first") or "", given.get("last") or "")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_prose_exist(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for text in inline_code(page):
        program, *words = text.split()
        if program == "make" and words:
            assert words[0] in targets, f"{name(page)}: {text}"
        elif program == "pgolf" and words and not words[0].isupper():
            call = max((call for call in COMMANDS if tuple(words[: len(call)]) == call), key=len, default=())
            assert call, f"{name(page)}: {text}"
            known = {option for parameter in leaf(call).params for option in parameter.opts} | {"--help"}
            assert {word for word in words if word.startswith("-")} <= known, f"{name(page)}: {text}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_exist(page: Path) -> None:
    files = [path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    for text in inline_code(page):
        if re.fullmatch(rf"({'|'.join(map(re.escape, ROOMS))})/[\w./-]*", text):
            assert (ROOT / text).exists(), f"{name(page)} names {text}"
        elif re.fullmatch(r"[\w./-]+\.py", text) and text not in NOT_HERE:
            assert any(f"/{file}".endswith(f"/{text}") for file in files), f"{name(page)} names {text}"
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{name(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_keys_exist(page: Path) -> None:
    keys = all_keys()
    sections = "|".join(RunConfig.__dataclass_fields__)
    for text in inline_code(page):
        key = text.removeprefix("--set ").partition("=")[0]
        if re.fullmatch(rf"({sections})\.[a-z_0-9.]+", key) and not key.endswith((".pgz", ".log", ".py")):
            assert any(f"{known}.".startswith(f"{key}.") for known in keys), f"{name(page)} names the key {key}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if tree.body:
        assert ast.get_docstring(tree), f"{name(path)} has no docstring"
    without = [
        f"{where}:{node.lineno} {node.name}"
        for where, node in definitions(tree, name(path))
        if not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert without == []


def definitions(tree: ast.Module | ast.ClassDef, where: str) -> Iterator[tuple[str, Any]]:
    """Functions and classes at the top, and what stands directly in those classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield where, node
        if isinstance(node, ast.ClassDef):
            yield from definitions(node, where)


def test_dockerfile_copies_what_exists_and_is_not_ignored() -> None:
    text = (ROOT / "Dockerfile").read_text()
    let_in = {
        line.lstrip("!").rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = {word for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for word in line.split()}
    assert copied
    for word in copied:
        assert (ROOT / word).exists()
        assert word.split("/")[0] in let_in
    assert set(re.findall(r"^FROM \S+ AS (\w+)$", text, re.M)) == {"cpu", "cuda"}
    for line in re.findall(r"pgolf:\w+ ((?:run|doctor)\b.*)$", text, re.M):
        check_pgolf(shlex.split(line))
