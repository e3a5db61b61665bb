"""Which definitions of pgolf.core a script needs: a walk over names, one top-level definition at a time."""

import ast
import builtins
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pgolf
from pgolf.core import errors
from pgolf.core.errors import PgolfError

ERRORS = {name for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, PgolfError)}
CORE = Path(pgolf.__file__).parent / "core"


@dataclass(frozen=True)
class Definition:
    """A top-level statement of a core module: the names it binds, its code without annotations, the names it needs."""

    module: str
    names: tuple[str, ...]
    node: ast.stmt
    needs: frozenset[str]


@dataclass(frozen=True)
class Core:
    """pgolf.core, parsed: definitions by name and in an order that runs, imports of other packages by name."""

    definitions: dict[str, Definition]
    order: tuple[Definition, ...]
    externals: dict[str, ast.stmt]


class Strip(ast.NodeTransformer):
    """Removes what only a reader or a type checker needs: annotations, TYPE_CHECKING blocks, imports inside pgolf; and
    what is pgolf's alone: the advice in errors, which is given in terms of pgolf's commands, the finer checks of
    `assure`, and help. Annotations of a Triton kernel stay: they say which arguments are constants.
    """

    def visit_Call(self, node: ast.Call) -> ast.Call:
        """Drop an error's third argument, and what an option of the command line is for."""
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in ERRORS:
            node.args = node.args[:2]
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("add_argument", "ArgumentParser"):
            node.keywords = [word for word in node.keywords if word.arg not in ("help", "description")]
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | ast.Pass:
        """Drop a finer check."""
        called = node.value.func if isinstance(node.value, ast.Call) else None
        name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
        return ast.Pass() if name.startswith("assure") else self.generic_visit(node)  # type: ignore[return-value]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """Drop the annotations of arguments and result."""
        self.generic_visit(node)
        if is_kernel_node(node):
            return node
        node.returns = None
        arguments = node.args
        for argument in (
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            arguments.vararg,
            arguments.kwarg,
        ):
            if argument is not None:
                argument.annotation = None
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        """A dataclass field keeps a dummy annotation, which is what makes it a field."""
        fields = is_dataclass_node(node)
        kept = [
            ast.AnnAssign(item.target, ast.Constant(0), item.value, 1)
            if fields and isinstance(item, ast.AnnAssign)
            else self.visit(item)
            for item in node.body
        ]
        node.body = [item for item in kept if item is not None] or [ast.Pass()]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt | None:
        """An annotated assignment becomes a plain one; a bare annotation vanishes."""
        return None if node.value is None else ast.Assign([node.target], self.visit(node.value))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt | None:
        """Everything of pgolf ends up in one namespace."""
        return None if (node.module or "").startswith("pgolf.") else node

    def visit_If(self, node: ast.If) -> ast.stmt | None:
        """`if TYPE_CHECKING` never runs."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)  # type: ignore[return-value]


NO_NODES = {
    "ctx",
    "id",
    "attr",
    "kind",
    "type_comment",
    "is_async",
    "simple",
    "level",
    "module",
    "conversion",
    "op",
    "ops",
}
"""Fields of nodes that hold no nodes, or only those that say how others are meant."""


@cache
def inner_fields(kind: Any) -> tuple[str, ...]:
    """Fields of a kind of node in which there may be other nodes."""
    fields: tuple[str, ...] = () if kind is ast.Constant else kind._fields
    return tuple(name for name in fields if name not in NO_NODES)


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes as ast.walk gives them, operators and contexts aside, and faster."""
    waiting = [node]
    for one in waiting:
        kind: Any = type(one)
        for name in inner_fields(kind):
            value = getattr(one, name, None)
            if isinstance(value, list):
                waiting += [item for item in value if isinstance(item, ast.AST)]
            elif isinstance(value, ast.AST):
                waiting.append(value)
        yield one


def copied(node: Any) -> Any:
    """A syntax tree to be changed, with what it means and nothing else. (copy.deepcopy would follow whatever a library
    may have hung on the contexts, which Python shares among all trees.)
    """
    if isinstance(node, list):
        return [copied(item) for item in node]
    if not isinstance(node, ast.AST):
        return node
    return type(node)(**{name: copied(value) for name, value in ast.iter_fields(node)})


def is_dataclass_node(node: ast.ClassDef) -> bool:
    """Whether a class is decorated as a dataclass."""
    return any("dataclass" in ast.dump(decorator) for decorator in node.decorator_list)


def is_kernel_node(node: ast.FunctionDef) -> bool:
    """Whether a function is decorated with triton.jit."""
    return any(ast.unparse(decorator) == "triton.jit" for decorator in node.decorator_list)


def bound_names(node: ast.stmt) -> tuple[str, ...]:
    """Names a top-level statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return (node.name,)
    if isinstance(node, ast.Assign):
        return tuple(name.id for target in node.targets for name in walk(target) if isinstance(name, ast.Name))
    return ()


def used_names(node: ast.AST) -> frozenset[str]:
    """Names a statement reads anywhere in it."""
    return frozenset(name.id for name in walk(node) if isinstance(name, ast.Name))


def module_order(trees: dict[str, ast.Module]) -> list[str]:
    """Modules so that each comes after those it imports at its top. PgolfError for a circle."""
    done: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise PgolfError(f"core modules import each other in a circle: {' -> '.join((*path, name))}")
        if name in done:
            return
        for node in trees[name].body:
            if isinstance(node, ast.ImportFrom) and (node.module or "") in trees:
                visit(str(node.module), (*path, name))
        done.append(name)

    for name in sorted(trees):
        visit(name, ())
    return done


@cache
def parse_core() -> Core:
    """Parse and index pgolf.core. PgolfError when two modules define one name or an import alias means two things."""
    trees = {}
    for path in sorted(CORE.rglob("*.py")):
        if path.name != "__init__.py":
            dotted = "pgolf.core." + ".".join(path.relative_to(CORE).with_suffix("").parts)
            trees[dotted] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    definitions: dict[str, Definition] = {}
    order: list[Definition] = []
    externals: dict[str, ast.stmt] = {}
    for module in module_order(trees):
        for node in trees[module].body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                add_external(externals, node, module)
                continue
            stripped = Strip().visit(node)
            if stripped is None or not (names := bound_names(stripped)):
                continue
            definition = Definition(
                module, names, ast.fix_missing_locations(stripped), used_names(stripped) - set(names)
            )
            for name in names:
                if name in definitions or hasattr(builtins, name):
                    raise PgolfError(
                        f"{name} of {module} is defined elsewhere too", "pgolf.core", "top-level names must be unique"
                    )
                definitions[name] = definition
            order.append(definition)
    return Core(definitions, tuple(order), externals)


def add_external(externals: dict[str, ast.stmt], node: ast.Import | ast.ImportFrom, module: str) -> None:
    """Index one import of another package under each name it binds."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pgolf."):
        return
    for alias in node.names:
        name = alias.asname or alias.name.split(".")[0]
        single = ast.ImportFrom(node.module, [alias], 0) if isinstance(node, ast.ImportFrom) else ast.Import([alias])
        if name in externals and ast.dump(externals[name]) != ast.dump(single):
            raise PgolfError(
                f"{name} is imported as two different things", module, "an alias must mean the same everywhere in core"
            )
        externals[name] = single


@cache
def library_names() -> frozenset[str]:
    """Names by which core knows what it imports from other packages, be it inside a function, and nothing else."""
    imported: set[str] = set()
    own: set[str] = set()
    for definition in parse_core().order:
        for node in walk(definition.node):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                own.add(node.id)
            elif isinstance(node, ast.arg):
                own.add(node.arg)
    imported |= parse_core().externals.keys()
    return frozenset(imported - own)


def of_library(node: ast.Attribute) -> bool:
    """Whether an attribute is asked of a module or of a name imported from one."""
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        inner = inner.value
    return isinstance(inner, ast.Name) and inner.id in library_names()


def reach(core: Core, roots: Iterable[str]) -> list[Definition]:
    """The definitions reachable from the roots, in an order that can be executed. PgolfError for an unknown root."""
    found: dict[int, Definition] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        definition = core.definitions.get(name)
        if definition is None or id(definition) in found:
            continue
        found[id(definition)] = definition
        waiting += definition.needs
    return [definition for definition in core.order if id(definition) in found]
