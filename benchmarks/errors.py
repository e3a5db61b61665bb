"""docs/errors.md: every error of pgolf, as the user sees it where the tests provoke it.

`python -m pytest --errors FILE ...` notes them, this makes the page of FILE: one line for each place in the source that
makes an error, with its exit code; folders are cut to `…`. The share of places that were seen is told; the others stand
as the source has them.
"""

import ast
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import parser, show
from pgolf.core import errors

ROOT = Path(__file__).resolve().parents[1]
KINDS = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.PgolfError)
}
HEADINGS = {
    2: "Usage and configuration",
    3: "Input",
    4: "Limits and rules",
    5: "What the machine lacks",
    6: "Disk, permission, network",
    7: "Locks",
}
INTRODUCTION = """# Errors

Every error that the tests provoke, as the user sees it after `error:`: what is wrong, (where), and how to mend it.
Made by `python -m benchmarks.errors` of what `python -m pytest --errors FILE` notes; folders are cut to `…`. Seen are
{seen} of the {total} places in the source that make an error; what tests provoke in other processes, on a GPU or on a
second machine is not noted, and stands at the end as the source has it.
"""
REST = """
## As the source has them

Errors that were not noted, with … for what differs from case to case. Places that only pass on another error's text, or
choose among several, are left out.

| exit code | what, where, how to mend it |
| --- | --- |
"""
HEAD = "| what, where, how to mend it |\n| --- |\n"


@dataclass(frozen=True)
class Site:
    """A place that makes an error: `pattern` is what its text may be, `shape` how it reads with … for what differs, as
    far as the source says.
    """

    module: str
    first: int
    last: int
    code: int
    pattern: str
    shape: str = ""


def sites() -> list[Site]:
    """Every place in pgolf that makes an error."""
    found = []
    for path in sorted((ROOT / "pgolf").rglob("*.py")):
        if "specimens" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if isinstance(node, ast.Call) and name in KINDS and name != "PgolfError" and node.args:
                module = path.relative_to(ROOT).as_posix()
                code = KINDS[name].exit_code
                lines = node.lineno, node.end_lineno or node.lineno
                found.append(Site(module, *lines, code, pattern(node.args[0]), shape(node.args)))
    return found


def pattern(node: ast.expr) -> str:
    """A regular expression for the texts of an expression; empty where it says nothing."""
    if isinstance(node, ast.Constant):
        return re.escape(str(node.value))
    if isinstance(node, ast.JoinedStr):
        return "".join(re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".*" for part in node.values)
    if isinstance(node, ast.IfExp):
        parts = [pattern(node.body), pattern(node.orelse)]
        return f"(?:{'|'.join(parts)})" if all(parts) else ""
    return ""


def words(node: ast.expr) -> str:
    """A text with … in the places of expressions; … alone where the source does not say."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return "…"


def shape(given: list[ast.expr]) -> str:
    """An error as `str` gives it, of its arguments; empty where they do not say what is wrong."""
    what, where, fix = [*(words(one) for one in given), "", ""][:3]
    if sum(map(str.isalpha, what)) < 3:
        return ""
    return f"{what} ({where})" * bool(where) + what * (not where) + f". {fix}" * bool(fix)


def plain(text: str) -> str:
    """A text without folders and process numbers, as a cell of a table."""
    text = re.sub(r"(?<![\w.:/])/(?:[^\s/:;,()'\"|]+/)+", "…/", text)
    text = re.sub(r"process \d+ on \S+ since \S+", "process 4242 on host since 2026-01-01T00:00:00+00:00", text)
    text = re.sub(r"127\.0\.0\.1:\d+", "localhost", text)
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("`", "'")[:400]


def seen(lines: list[dict[str, Any]], places: list[Site]) -> dict[Site, str]:
    """Place -> the shortest text that it made."""
    found: dict[Site, str] = {}
    for line in lines:
        for site in places:
            here = (
                site.module == line["module"] and site.first <= line["line"] <= site.last and site.code == line["code"]
            )
            if here and re.match(site.pattern, line["text"], re.S):
                text = plain(line["text"])
                if site not in found or (len(text), text) < (len(found[site]), found[site]):
                    found[site] = text
    return found


def page(texts: dict[Site, str], places: list[Site]) -> str:
    """The page."""
    text = INTRODUCTION.format(seen=len(texts), total=len(places))
    for code, heading in HEADINGS.items():
        lines = sorted({text for site, text in texts.items() if site.code == code})
        text += f"\n## Exit code {code}: {heading}\n\n{HEAD}" + "".join(f"| {line} |\n" for line in lines)
    rest = sorted({(site.code, plain(site.shape)) for site in places if site not in texts and site.shape})
    return text + REST + "".join(f"| {code} | {line} |\n" for code, line in rest)


def main() -> int:
    """Read what was seen, write the page."""
    arguments = parser(__doc__)
    arguments.add_argument("--seen", type=Path, required=True, metavar="FILE")
    arguments.add_argument("--write", type=Path, metavar="PAGE")
    options = arguments.parse_args()
    places = sites()
    texts = seen([json.loads(line) for line in options.seen.read_text(encoding="utf-8").splitlines()], places)
    if options.write:
        options.write.write_text(page(texts, places), encoding="utf-8")
    rows = [
        {
            "exit code": code,
            "places": sum(site.code == code for site in places),
            "seen": sum(site.code == code for site in texts),
        }
        for code in HEADINGS
    ]
    options.seen, options.write = str(options.seen), str(options.write)
    show("errors", options, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
