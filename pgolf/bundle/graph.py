"""Which definitions of pgolf.core a script needs: a walk over names, one top-level definition at a time."""

import ast
import builtins
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pgolf
from pgolf.core import errors
from pgolf.core.errors import PgolfError

ERRORS = {name for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, PgolfError)}
CORE = Path(pgolf.__file__).parent / "core"


@dataclass(frozen=True, eq=False)
class Definition:
    """A top-level statement of a core module: the names it binds, and its code without annotations. What that shows is
    found once, so that whoever changes the code makes another definition of it.
    """

    module: str
    names: tuple[str, ...]
    node: ast.stmt

    @cached_property
    def kinds(self) -> dict[type, list[Any]]:
        """The nodes of the statement, by kind."""
        found: dict[type, list[Any]] = defaultdict(list)
        for node in walk(self.node):
            found[type(node)].append(node)
        return found

    @cached_property
    def used(self) -> frozenset[str]:
        """Names anywhere in it."""
        return frozenset(name.id for name in self.kinds[ast.Name])

    @cached_property
    def needs(self) -> frozenset[str]:
        """Names it needs of others."""
        return self.used.difference(self.names)

    @cached_property
    def attributes(self) -> Counter[str]:
        """How often it asks something for an attribute, by its name; a method that asks its ancestor's aside."""
        found = Counter(node.attr for node in self.kinds[ast.Attribute])
        above = [node for node in self.kinds[ast.Attribute] if of_ancestor(node)]
        for function in self.kinds[ast.FunctionDef]:
            own = [node for node in above if node.attr == function.name]
            found[function.name] -= sum(node in own for node in walk(function)) if own else 0
        return found

    @cached_property
    def own(self) -> dict[ast.stmt, int]:
        """How often each method of a class asks for its own name."""
        methods = [item for item in getattr(self.node, "body", ()) if isinstance(item, ast.FunctionDef)]
        return {item: Definition("", (), item).attributes[item.name] for item in methods}

    @cached_property
    def shape(self) -> tuple[Any, ...]:
        """All of it, to be compared."""
        return shape(self.node)

    @cached_property
    def source(self) -> str:
        """Its code as it follows other statements."""
        whole = ast.fix_missing_locations(ast.Module([ast.Pass(), self.node], []))
        return ast.unparse(whole).removeprefix("pass")


@dataclass(frozen=True)
class Core:
    """pgolf.core, parsed: definitions by name and in an order that runs, imports of other packages by name."""

    definitions: dict[str, Definition]
    order: tuple[Definition, ...]
    externals: dict[str, ast.stmt]


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


def walk(node: ast.AST) -> list[ast.AST]:
    """Nodes as ast.walk gives them, operators and contexts aside, and faster."""
    found = [node]
    for one in found:
        found += children(one)
    return found


def children(node: ast.AST) -> list[ast.AST]:
    """The nodes right inside a node, as walk gives them."""
    found: list[ast.AST] = []
    kind: Any = type(node)
    for name in inner_fields(kind):
        value = getattr(node, name, None)
        if isinstance(value, list):
            found += [item for item in value if isinstance(item, ast.AST)]
        elif isinstance(value, ast.AST):
            found.append(value)
    return found


@cache
def handler(transformer: Any, kind: Any) -> Any:
    """The method of a transformer for a kind of node."""
    return getattr(transformer, f"visit_{kind.__name__}", transformer.generic_visit)


class Transformer(ast.NodeTransformer):
    """As Python's own, operators and contexts aside, and faster."""

    def visit(self, node: ast.AST) -> Any:
        """What comes in the place of a node: another, several statements or elements, or nothing."""
        own: Any = type(self)
        kind: Any = type(node)
        return handler(own, kind)(self, node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Visit what is inside a node."""
        kind: Any = type(node)
        for name in inner_fields(kind):
            value = getattr(node, name, None)
            if isinstance(value, list):
                made: list[Any] = []
                for item in value:
                    found = self.visit(item) if isinstance(item, ast.AST) else item
                    if isinstance(found, list):
                        made += found
                    elif found is not None or item is None:
                        made.append(found)
                value[:] = made
            elif isinstance(value, ast.AST):
                found = self.visit(value)
                if found is None:
                    delattr(node, name)
                elif found is not value:
                    setattr(node, name, found)
        return node


class Strip(Transformer):
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


def shape(node: ast.AST) -> tuple[Any, ...]:
    """What a syntax tree means, to be compared, as ast.dump gives it, and faster."""
    found: list[Any] = []
    waiting: list[Any] = [node]
    while waiting:
        one = waiting.pop()
        if isinstance(one, ast.AST):
            found.append(type(one))
            waiting += [getattr(one, name, None) for name in one._fields]
        elif isinstance(one, list):
            found.append(len(one))
            waiting += one
        else:
            found.append(repr(one))
    return tuple(found)


def of_ancestor(node: ast.Attribute) -> bool:
    """Whether it is an attribute of `super()`."""
    call = node.value
    if not isinstance(call, ast.Call) or call.args or call.keywords:
        return False
    return isinstance(call.func, ast.Name) and call.func.id == "super"


def copied(node: Any) -> Any:
    """A syntax tree to be changed, with what it means and nothing else. (copy.deepcopy would follow whatever a library
    may have hung on the contexts, which Python shares among all trees.)
    """
    if isinstance(node, list):
        return [copied(item) for item in node]
    if not isinstance(node, ast.AST):
        return node
    held = vars(node)
    return type(node)(**{name: copied(held[name]) for name in node._fields if name in held})


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
            definition = Definition(module, names, stripped)
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
