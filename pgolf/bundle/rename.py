"""Short names in the packed script for what is its own; the readable twin keeps the long ones.

What one function alone knows gets letters anew in every function, so that similar functions become similar text. What
others see (definitions of the module, attributes, arguments given by name) has one short name throughout. Left alone
is whatever may mean something elsewhere: names of libraries and of attributes of their objects, words that stand in
strings, by which parameters, JSON and logs are addressed, and functions around a Triton kernel.
"""

import ast
import builtins
import importlib
import keyword
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache

from pgolf.bundle.graph import children, is_kernel_node, of_library, walk

LIBRARIES = (
    *("argparse", "brotli", "concurrent.futures", "contextlib", "dataclasses", "hashlib", "io", "json", "lzma", "math"),
    *("numpy", "os", "pathlib", "random", "re", "sentencepiece", "signal", "struct", "sys", "time", "torch", "zlib"),
    *("torch.cuda", "torch.distributed", "torch.nn", "torch.nn.functional", "torch.nn.attention.flex_attention"),
    *("torch.optim", "types", "zstandard"),
)
"""Whose objects scripts ask for attributes."""
LETTERS = string.ascii_letters + "_"
POOL = [*LETTERS, *(first + second for first in LETTERS for second in LETTERS + string.digits)]
"""Short names, the shortest first."""
Scope = ast.FunctionDef | ast.ClassDef | ast.Lambda


@cache
def vocabulary() -> frozenset[str]:
    """Names that an attribute of an object of a library may have."""
    found = set(dir(builtins)) | {name for value in vars(builtins).values() for name in dir(value)}
    for name in LIBRARIES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        for value in vars(module).values():
            found.update(dir(value) if issubclass(type(value), type) else ())
    return frozenset(found)


def defined(body: Iterable[ast.stmt]) -> Iterator[str]:
    """Names that statements of a module or a class define."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield from (name.id for name in walk(target) if isinstance(name, ast.Name))


def bound(node: ast.AST) -> Iterator[str]:
    """Names bound inside a function or another statement, in the order of the text."""
    for inner in children(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            yield inner.id
        elif isinstance(inner, ast.arg):
            yield inner.arg
        elif isinstance(inner, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler) and inner.name:
            yield inner.name
        if not isinstance(inner, ast.ClassDef):
            yield from bound(inner)


def spelled(node: ast.AST) -> list[str]:
    """Names that stand in a node itself."""
    fields = [getattr(node, field, None) for field in ("id", "arg", "attr", "name", "asname", "names")]
    flat = [word for field in fields for word in (field if isinstance(field, list) else [field])]
    return [word for word in flat if isinstance(word, str)]


def untouchable(tree: ast.Module) -> set[str]:
    """Names that stay in every use: imported, built in, special, and those of functions around Triton kernels."""
    found = {*keyword.kwlist, *dir(builtins)}
    for node in walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef):
            inside = list(walk(node))
            if any(isinstance(inner, ast.FunctionDef) and is_kernel_node(inner) for inner in inside):
                found |= {word for inner in inside for word in spelled(inner)}
        found |= {word for word in spelled(node) if word.startswith("__")}
    return found


def quoted_words(tree: ast.AST) -> set[str]:
    """Words in strings that hold nothing but names, errors aside."""
    nodes = walk(tree)
    told = {inner for node in nodes if isinstance(node, ast.Raise) for inner in walk(node)}
    values = (node.value for node in nodes if isinstance(node, ast.Constant) and node not in told)
    texts = (value for value in values if isinstance(value, str) and re.fullmatch(r"[\w.]+", value))
    return {word for text in texts for word in re.findall(r"\w+", text)}


class Names:
    """Which names of a module may change, by what they name."""

    def __init__(self, tree: ast.Module) -> None:
        nodes = list(walk(tree))
        self.quoted, self.fixed = quoted_words(tree), untouchable(tree)
        self.top = set(defined(tree.body)) - self.fixed
        classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
        made = {node.name for node in classes}
        self.tables = {
            name
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
            if all(isinstance(value, ast.Name) and value.id in made for value in node.value.values)
            for name in defined([node])
        }
        self.methods = {item.name for node in classes for item in node.body if isinstance(item, ast.FunctionDef)}
        stored = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
        self.members = stored.union(*(defined(node.body) for node in classes))
        self.linked: dict[str, set[str]] = {"": set()}
        theirs: set[str] = set()
        functions = (node for node in nodes if isinstance(node, ast.FunctionDef) and node.name != "__init__")
        open_functions = {node.name for node in functions if node.args.kwarg}
        for node in nodes:
            if isinstance(node, ast.Call):
                callee = self.called(node.func)
                words = {word.arg for word in node.keywords if word.arg}
                words |= self.quoted if any(word.arg is None for word in node.keywords) else set()
                if callee is not None:
                    self.linked.setdefault(callee, set()).update(words)
                theirs |= set() if callee and callee not in open_functions else words
        words = set().union(*self.linked.values())
        kept = vocabulary() | self.quoted | self.fixed | theirs
        self.given = words - kept
        self.attributes = self.members - kept - words
        self.top -= self.given

    def called(self, node: ast.expr) -> str | None:
        """The name of the function, class or table of classes of the module that is called, empty if any may be meant,
        None if none is: what is called is a library's.
        """
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in self.tables:
            return node.value.id
        if isinstance(node, ast.Name):
            own = node.id in self.top or node.id == "replace"
            return node.id if own else None if hasattr(builtins, node.id) else ""
        if isinstance(node, ast.Attribute) and of_library(node):
            return None
        if not isinstance(node, ast.Attribute) or (node.attr in self.members and node.attr not in self.methods):
            return ""
        return node.attr if node.attr in self.methods else None

    def spoken(self, node: ast.AST, owner: str = "") -> set[str]:
        """Arguments of the functions in a statement that calls may give by name; `owner` is the class around it."""
        found: set[str] = set()
        for inner in walk(node):
            if isinstance(inner, ast.FunctionDef | ast.Lambda):
                callee = inner.name if isinstance(inner, ast.FunctionDef) else ""
                callee = owner if callee == "__init__" else callee
                by_name = self.linked[""] | self.linked.get(callee, set())
                found |= by_name & {one.arg for one in walk(inner.args) if isinstance(one, ast.arg)}
        return found


class Rename:
    """New names for old in one place of the module."""

    def __init__(self, variables: dict[str, str], attributes: dict[str, str], given: dict[str, str]) -> None:
        self.variables, self.attributes, self.given = variables | given, attributes | given, given

    def apply(self, node: ast.AST, member: bool = False) -> None:
        """Change a node and what is in it; `member` says that it stands in the body of a class."""
        names = self.attributes if member else self.variables
        if isinstance(node, ast.Name):
            node.id = names.get(node.id, node.id)
        elif isinstance(node, ast.arg):
            node.arg = self.variables.get(node.arg, node.arg)
        elif isinstance(node, ast.keyword) and node.arg:
            node.arg = self.given.get(node.arg, node.arg)
        elif isinstance(node, ast.Attribute) and not of_library(node):
            node.attr = self.attributes.get(node.attr, node.attr)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler) and node.name:
            node.name = names.get(node.name, node.name)
        elif isinstance(node, ast.Nonlocal | ast.Global):
            node.names = [self.variables.get(name, name) for name in node.names]
        for child in children(node):
            self.apply(child, (isinstance(node, ast.ClassDef) and child in node.body) or is_target(node, child, member))


def is_target(node: ast.AST, child: ast.AST, member: bool) -> bool:
    """Whether a child of a statement in the body of a class is what that statement names."""
    if isinstance(node, ast.Assign):
        return member and child in node.targets
    return member and ((isinstance(node, ast.AnnAssign) and child is node.target) or isinstance(node, ast.Tuple))


def rename(source: str) -> str:
    """The source with short names for what is its own."""
    tree = ast.parse(source)
    names = Names(tree)
    count = Counter(word for node in walk(tree) for word in spelled(node))
    order = [word for word, _ in count.most_common()]
    free = [name for name in POOL if name not in names.fixed | set(keyword.kwlist)]
    letters = [name for name in free if len(name) == 1]
    taken = vocabulary().union(letters, count)
    rest = iter(name for name in free if name not in taken)
    given = {word: next(rest) for word in order if word in names.given}
    top = {word: next(rest) for word in order if word in names.top}
    single = (name for name in letters if name not in vocabulary() and name not in count)
    attributes = {word: next(single, "") or next(rest) for word in order if word in names.attributes}
    more = list(rest)

    def change(node: ast.AST, owner: str = "") -> None:
        kept = names.fixed | names.top | names.spoken(node, owner)
        local = [name for name in dict.fromkeys(bound(node)) if name not in kept]
        variables = (inner for inner in walk(node) if isinstance(inner, ast.Name | ast.arg))
        stay = {word for inner in variables for word in spelled(inner)} - {*local}
        unused = (name for name in letters + more if name not in stay)
        Rename(top | dict(zip(local, unused)), attributes, given).apply(node, bool(owner))

    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                change(item, node.name)
            node.body, body = [], node.body
            Rename(top, attributes, given).apply(node)
            node.body = body
        else:
            change(node)
    return ast.unparse(tree) + "\n"
