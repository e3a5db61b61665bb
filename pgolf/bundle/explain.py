"""Where a script's bytes are: every definition's characters after minification, and what the packed file would save
without it.
"""

import ast
import lzma
from dataclasses import dataclass
from typing import Any

from pgolf.bundle.script import Script, has_operators, latin1_literal, squeeze

CHAIN: list[dict[str, Any]] = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20, "lc": 3, "lp": 0, "pb": 0}]
"""One setting of the compressor, so that differences are the definitions'."""


@dataclass(frozen=True)
class Piece:
    """A top-level statement of a script: name, core module, characters minified, and the bytes its absence saves."""

    name: str
    module: str
    characters: int
    bytes: int


def coded_bytes(source: str) -> int:
    """Bytes of a minified program in a packed file, by one setting."""
    return len(latin1_literal(lzma.compress(source.encode(), lzma.FORMAT_RAW, filters=CHAIN)))


def name_of_statement(node: ast.stmt) -> str:
    """What a top-level statement defines, or what it is."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0])
    return "the call of the program"


def is_import(node: ast.stmt) -> bool:
    """Whether it imports."""
    return isinstance(node, ast.Import | ast.ImportFrom)


def explain(script: Script) -> list[Piece]:
    """Every statement of the script, the costliest first; imports together. What definitions share with each other is
    in none of their savings, so these do not add up to the packed file. Names are those of the readable script, whose
    statements the minified one has in the same order under shorter names.
    """
    source = script.readable if has_operators(script.readable) else squeeze(script.readable)
    named = [node for node in ast.parse(source).body if not is_import(node)]
    minified = ast.parse(script.minified).body
    texts = [ast.get_source_segment(script.minified, node) or "" for node in minified]
    rest = [index for index, node in enumerate(minified) if not is_import(node)]
    groups = {"imports": [index for index in range(len(minified)) if index not in rest]}
    for node, index in zip(named, rest, strict=True):
        groups.setdefault(name_of_statement(node), []).append(index)
    whole, found = coded_bytes("\n".join(texts)), []
    for name, places in groups.items():
        others = "\n".join(text for index, text in enumerate(texts) if index not in places)
        characters = sum(len(texts[index]) for index in places)
        found.append(Piece(name, script.modules.get(name, "-"), characters, whole - coded_bytes(others)))
    return sorted(found, key=lambda piece: (-piece.bytes, piece.name))
