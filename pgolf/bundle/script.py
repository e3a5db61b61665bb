"""train_gpt.py: the recipe as a value, plus the code it reaches, in one file (spec: submission 7)."""

import ast
import gc
import itertools
import lzma
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

from pgolf.bundle.constant import ConstantCalls, constant_methods, foreign_names
from pgolf.bundle.facts import Part
from pgolf.bundle.fold import Fold, fixed_values
from pgolf.bundle.graph import Core, Definition, Transformer, bound_names, copied, parse_core, reach, walk
from pgolf.bundle.kept import Program, kept_program
from pgolf.bundle.rename import rename
from pgolf.bundle.table import param_table
from pgolf.bundle.tidy import tidy
from pgolf.catalog import name_of
from pgolf.config.run import RunConfig
from pgolf.core.codecs.base import Codec
from pgolf.core.codecs.brotli import Brotli
from pgolf.core.errors import PgolfError, RuleError
from pgolf.core.evals.base import Eager, RopeAsTrained, Unadjusted
from pgolf.core.model.config import attention_names, param_specs
from pgolf.core.model.export import exported
from pgolf.core.model.slots import Absent
from pgolf.core.optim.schedules import Unscaled
from pgolf.core.quant.base import Untuned
from pgolf.core.quant.casts import Float8Cast, Int8Rows, KeepFloats
from pgolf.core.quant.few_values import TernaryCodes
from pgolf.core.quant.forms import GROUPED
from pgolf.core.quant.gptq import Gptq
from pgolf.core.quant.gptq_lqer import Lqer
from pgolf.core.quant.roles import ByRole, compensating
from pgolf.core.quant.tuning import KlTuning
from pgolf.core.train.steady import Steady

MAIN = 'if __name__ == "__main__":\n    os._exit(run_submission(RECIPE, Path(__file__), sys.argv[1:]))\n'
"""Everything is printed and written by then. Taking the interpreter down besides can abort a rank, whose connections'
threads may still ask for it (pytorch issue 38228).
"""


@dataclass(frozen=True)
class Script:
    """The submission script: readable source, minified source, the packed file whose bytes count, and the core module
    of each name in it. No syntax trees, of which a long sweep would keep gigabytes.
    """

    readable: str
    minified: str
    packed: bytes
    modules: dict[str, str]


One = TypeVar("One", bound=Definition)


def recipe_source(config: RunConfig, info: str) -> str:
    """The expression that makes the script's recipe."""
    parts = {name: getattr(config, name) for name in ("model", "optim", "train", "quant", "compress")}
    parts["score"] = getattr(config, config.package.claim)
    return f"Submission({', '.join(f'{name}={value!r}' for name, value in parts.items())}, info={info!r})"


VALUES = """class Values:
    def __init__(self, **values):
        vars(self).update(values)
"""


def constant_class(node: ast.ClassDef, defaults: bool) -> ast.ClassDef:
    """A configuration class as the script needs it, without validation. In the recipe every value is given, so fields
    go; defaults stay, as attributes of the class, where code makes instances of its own.
    """
    body: list[ast.stmt] = []
    for item in node.body:
        if isinstance(item, ast.AnnAssign):
            body += [ast.Assign([item.target], item.value)] if defaults and item.value else []
        elif not (isinstance(item, ast.FunctionDef) and item.name == "__post_init__"):
            body.append(item)
    bases = node.bases or [ast.Name("Values", ast.Load())]
    return ast.ClassDef(node.name, bases, node.keywords, body or [ast.Pass()], [])


def with_bases(core: Core, classes: frozenset[str]) -> frozenset[str]:
    """The classes and all they inherit from."""
    bases = (base for name in classes for base in getattr(core.definitions[name].node, "bases", []))
    more = frozenset(base.id for base in bases if isinstance(base, ast.Name) and base.id in core.definitions)
    return classes if more <= classes else with_bases(core, classes | more)


def with_constants(
    core: Core, definition: Definition, configured: frozenset[str], made: frozenset[str] = frozenset()
) -> Definition:
    """The definition, simplified if it is a class of the recipe or inherits from one. Code makes instances of the
    classes in `made`.
    """
    node = definition.node
    if not isinstance(node, ast.ClassDef) or not configured & with_bases(core, frozenset({node.name})):
        return definition
    return replace(definition, node=constant_class(node, node.name not in configured - made))


def with_values(definition: Definition, values: dict[str, dict[str, Any]]) -> Definition:
    """The definition without branches that the recipe never takes. The core's own trees stay as they are."""
    node = definition.node
    if not isinstance(node, ast.ClassDef) or not values.get(node.name):
        return definition
    return replace(definition, node=Fold(values[node.name]).visit(copied(node)))


def made_classes(core: Core, roots: Iterable[str]) -> frozenset[str]:
    """The classes of which the code itself makes instances."""
    calls = (call for definition in reach(core, roots) for call in definition.kinds[ast.Call])
    called = frozenset(call.func.id for call in calls if isinstance(call.func, ast.Name))
    return frozenset(name for name in called & core.definitions.keys() if is_class(core.definitions[name]))


def fixed_fields(core: Core, tail: list[Definition], made: frozenset[str]) -> dict[str, dict[str, Any]]:
    """Class -> field -> value of what the recipe fixes."""
    bases = {
        name: tuple(with_bases(core, frozenset({name})) - {name})
        for name, definition in core.definitions.items()
        if is_class(definition)
    }
    return fixed_values(ast.Module([definition.node for definition in tail], []), bases, made)


def is_class(definition: Definition) -> bool:
    """Whether it defines a class."""
    return isinstance(definition.node, ast.ClassDef)


def without_entries(core: Core, table: str, kept: set[Any]) -> Core:
    """The core with only these keys in a table of functions, for those the recipe can never ask for."""
    old = core.definitions[table]
    assert isinstance(old.node, ast.Assign) and isinstance(old.node.value, ast.Dict)
    entries = [
        (key, value)
        for key, value in zip(old.node.value.keys, old.node.value.values)
        if isinstance(key, ast.Constant) and key.value in kept
    ]
    pruned = ast.Dict([key for key, _ in entries], [value for _, value in entries])
    changed = {old: replace(old, node=ast.Assign(old.node.targets, pruned))}
    for definition in core.order if not entries else ():
        if table in definition.needs:
            changed[definition] = replace(definition, node=WithoutRounds(table).visit(copied(definition.node)))
    return exchanged(core, changed)


def exchanged(core: Core, changed: dict[Definition, Definition]) -> Core:
    """The core with other definitions in the places of some."""
    definitions = {name: changed.get(definition, definition) for name, definition in core.definitions.items()}
    order = tuple(changed.get(definition, definition) for definition in core.order)
    return Core(definitions, order, core.externals)


def without_field(core: Core, name: str, field: str) -> Core:
    """The core with a class that lacks a field."""
    old = core.definitions[name]
    assert isinstance(old.node, ast.ClassDef)
    body = [item for item in old.node.body if not isinstance(item, ast.AnnAssign) or ast.unparse(item.target) != field]
    new = ast.ClassDef(name, old.node.bases, old.node.keywords, body, old.node.decorator_list)
    return exchanged(core, {old: replace(old, node=new)})


class WithoutRounds(Transformer):
    """Takes out loops over the values of a table that is empty."""

    def __init__(self, table: str) -> None:
        self.table = table

    def visit_For(self, node: ast.For) -> ast.For | None:
        """Drop the loop, be it inside another."""
        self.generic_visit(node)
        source = node.iter.func if isinstance(node.iter, ast.Call) else None
        values = isinstance(source, ast.Attribute) and isinstance(source.value, ast.Name) and source.value.id
        return None if values == self.table else node


def coded_kinds(quantizer: Any) -> set[Any]:
    """The forms that a quantizer's codes may have."""
    if isinstance(quantizer, ByRole):
        return set().union(*(coded_kinds(one) for one in quantizer.quantizers().values()))
    if isinstance(quantizer, KeepFloats):
        return {Float8Cast: {6}, Int8Rows: {1}}.get(type(quantizer), set())
    if isinstance(quantizer, TernaryCodes):
        return {quantizer.group}
    if not isinstance(quantizer, Gptq) or not quantizer.planned:
        return {1}
    gates = {1} if getattr(quantizer, "gates", "float") != "float" else set()
    return gates | {5 if quantizer.rounding == "trellis" else 4}


def without_members(definition: One, mentioned: Counter[str], quoted: set[Any]) -> One:
    """The definition without methods that nothing but themselves mentions, and without values that nothing does, be it
    in quotes; torch itself calls `forward`, Python the dunder methods.
    """
    node = definition.node
    if not isinstance(node, ast.ClassDef):
        return definition

    def is_used(item: ast.stmt) -> bool:
        if isinstance(item, ast.FunctionDef):
            own = item.name.startswith("__") or item.name == "forward"
            return own or mentioned[item.name] > definition.own[item]
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
            name = item.targets[0].id
            return name in mentioned or name in quoted or name.startswith("__")
        return True

    body = [item for item in node.body if is_used(item)]
    if len(body) == len(node.body):
        return definition
    kept = ast.ClassDef(node.name, node.bases, node.keywords, body or [ast.Pass()], node.decorator_list)
    return replace(definition, node=kept)


class IdlePlaces(Transformer):
    """Takes out of loops over parts what calls only places where no part of the recipe does anything."""

    def __init__(self, idle: frozenset[str]) -> None:
        self.idle = idle

    def visit_For(self, node: ast.For) -> ast.For | None:
        """Drop statements, and the loop if none is left."""
        if not isinstance(node.target, ast.Name):
            return node
        kept = [item for item in node.body if not self.is_idle(item, node.target.id)]
        if len(kept) == len(node.body):
            return node
        return ast.For(node.target, node.iter, kept, node.orelse) if kept else None

    def is_idle(self, node: ast.stmt, part: str) -> bool:
        """Whether all it asks of the part is idle."""
        asked = {
            inner.attr
            for inner in walk(node)
            if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == part
        }
        return bool(asked) and asked <= self.idle


def idle_places(chosen: Sequence[Definition]) -> frozenset[str]:
    """Methods of `Part` that no other class among the definitions has."""
    classes = {d.node.name: methods(d.node) for d in chosen if isinstance(d.node, ast.ClassDef)}
    places = classes.pop("Part", frozenset())
    return places - frozenset().union(*classes.values())


def methods(node: ast.ClassDef) -> frozenset[str]:
    """Names of a class's own methods."""
    return frozenset(item.name for item in node.body if isinstance(item, ast.FunctionDef))


def without_idle(definition: One, idle: frozenset[str]) -> One:
    """The definition without loops that would do nothing. The core's own trees stay as they are."""
    if idle.isdisjoint(definition.attributes):
        return definition
    found = replace(definition, node=IdlePlaces(idle).visit(copied(definition.node)))
    return definition if found.shape == definition.shape else found


def without_calls(definition: One, literals: dict[str, ast.expr]) -> One:
    """The definition with these calls folded. The core's own trees stay as they are."""
    asked = (call.func for call in definition.kinds[ast.Call])
    if not any(isinstance(func, ast.Attribute) and func.attr in literals for func in asked):
        return definition
    return replace(definition, node=ConstantCalls(literals).visit(copied(definition.node)))


def lessened(chosen: list[One], tail: list[One], quoted: set[Any]) -> list[One]:
    """The definitions without methods, values and loops that all of them, and what follows, show to do nothing."""
    mentioned, idle = mentions([*tail, *chosen]), idle_places(chosen)
    nodes = (node for d in chosen for kind in (ast.ClassDef, ast.Attribute) for node in d.kinds[kind])
    literals = constant_methods(nodes, foreign_names())
    return [without_calls(without_idle(without_members(d, mentioned, quoted), idle), literals) for d in chosen]


def mentions(definitions: Sequence[Definition]) -> Counter[str]:
    """How often the definitions ask something for an attribute, by its name."""
    found = Counter[str]()
    for definition in definitions:
        found.update(definition.attributes)
    return found


def quotes(definitions: Sequence[Definition]) -> set[Any]:
    """Constants in the definitions, among them names in quotes."""
    return {node.value for definition in definitions for node in definition.kinds[ast.Constant]}


def idle_fields(tail: Sequence[Definition], chosen: Sequence[Definition]) -> frozenset[str]:
    """Fields of the recipe, numbers and words and absent parts, that no definition reads, be it by a name in quotes. An
    absent part is skipped wherever parts are gone through.
    """
    words = [word for part in tail for call in part.kinds[ast.Call] for word in call.keywords if word.arg]
    plain = {str(word.arg) for word in words if is_plain(word.value)}
    kept = {word.arg for word in words if not is_plain(word.value)}
    return frozenset(plain - kept - quotes(chosen) - set(mentions(chosen)))


def is_plain(value: ast.expr) -> bool:
    """Whether a value of the recipe does nothing by itself."""
    names = [idle.__name__ for idle in (Absent, Steady, Unscaled, Unadjusted, RopeAsTrained, Eager, Untuned)]
    absent = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in names
    return absent or isinstance(value, ast.Constant)


def without_arguments(recipe: One, idle: frozenset[str]) -> One:
    """The recipe without these fields."""
    for call in recipe.kinds[ast.Call]:
        call.keywords = [word for word in call.keywords if word.arg not in idle]
    return replace(recipe)


def used_by(definitions: Iterable[Definition]) -> frozenset[str]:
    """Names anywhere in the definitions."""
    return frozenset().union(*(definition.used for definition in definitions))


def reached(chosen: list[One], tail: list[One]) -> list[One]:
    """Those of the definitions that what follows them still reaches."""
    kept = reach(Core({name: d for d in chosen for name in d.names}, tuple(chosen), {}), used_by(tail))
    return [definition for definition in chosen if definition in kept]


def needed(core: Core, tail: list[Definition], configured: frozenset[str]) -> list[Definition]:
    """Definitions that `tree` reaches. Configuration classes are simplified, and what the watch does not hear, places
    where no part acts and methods that nothing mentions dropped, until nothing more falls away.
    """
    slim = exchanged(core, {d: with_constants(core, d, configured) for d in core.order})
    made = made_classes(slim, used_by(tail))
    values = fixed_fields(core, tail, made)
    constants = {d: with_constants(core, d, configured, with_bases(core, made)) for d in core.order}
    slim = exchanged(core, {old: with_values(new, values) for old, new in constants.items()})
    chosen, before = reach(slim, used_by(tail)), list[Definition]()
    while chosen != before:
        before, chosen = chosen, reached(lessened(chosen, tail, quotes(chosen)), tail)
    return chosen


def emit(config: RunConfig, info: str) -> tuple[str, tuple[Definition, ...]]:
    """Readable source of the script, and the definitions in it."""
    recipe = recipe_source(config, info)
    tail = [Definition("", bound_names(node), node) for node in ast.parse(f"RECIPE = {recipe}\n{MAIN}").body]
    named = used_by(tail)
    attention = {"sdpa", config.train.attention, *attention_names(config.model)}
    core = without_entries(parse_core(), "OTHER_ATTENTION", attention)
    if (table := param_table(config.model)) is not None:
        core = exchanged(core, {core.definitions["param_specs"]: replace(core.definitions["param_specs"], node=table)})
    core = without_entries(core, "INITS", {spec.init[0] for spec in param_specs(config.model)})
    core = without_entries(core, "NETWORKS", {"eager", config.train.kernels})
    core = without_entries(core, "EXPORTED", set() if exported(config.model) == config.model else {"recipe"})
    kinds = coded_kinds(config.quant)
    core = without_entries(core, "FORMS", kinds)
    core = without_entries(core, "SIDE_COUNTS", {"groups"} if kinds & set(GROUPED) else set())
    core = without_entries(core, "ORDERS", {"steps"} if getattr(config.compress, "permute", False) else set())
    lqer = {"lqer"} if isinstance(config.quant, Lqer) else set()
    gates = {"gates"} if getattr(config.quant, "gates", "float") != "float" else set()
    core = without_entries(without_entries(core, "FINISHES", lqer | gates), "CORRECTIONS", lqer)
    core = without_entries(core, "TUNINGS", {"gradient"} if isinstance(config.quant.tune, KlTuning) else set())
    core = without_entries(core, "CALIBRATED", {"gptq"} if compensating(config.quant) else set())
    in_turn = any(one.sequential for one in compensating(config.quant))
    for name in ("TURNS", "FIRST"):
        core = without_entries(core, name, {"sequential"} if in_turn else set())
    polished = any(one.sweeps or one.refit for one in compensating(config.quant))
    core = without_entries(core, "POLISHES", {"descent"} if polished else set())
    searches = {one.search for one in compensating(config.quant)}
    core = without_entries(without_entries(core, "OTHER_SEARCHES", searches), "NEEDS", searches)
    if "triton" not in searches:  # by its name it would seem read where plans have a search
        core = without_field(core, "Gptq", "search")
        tail = [without_arguments(one, frozenset({"search"})) for one in tail]
    configured = with_bases(core, tail[0].used.intersection(core.definitions))
    chosen = needed(core, tail, configured)
    idle = idle_fields(tail, chosen)
    tail = [without_arguments(one, idle) for one in tail]
    chosen = reached(chosen, tail)
    used = named.union(*(definition.needs for definition in chosen))
    imports = [node for name, node in core.externals.items() if name in used and name not in core.definitions]
    head = ast.unparse(ast.Module([*imports, *ast.parse(VALUES).body], []))
    return "".join([head, *(definition.source for definition in (*chosen, *tail)), "\n"]), tuple(chosen)


class Hoisted(Transformer):
    """Takes imports of what every script has out of functions, and documentation away."""

    def __init__(self) -> None:
        self.imports: list[ast.stmt] = []

    def visit_Import(self, node: ast.Import) -> ast.Import | ast.Pass:
        """Keep those of packages that may not be there."""
        if any(
            alias.name.partition(".")[0] not in {"torch", "numpy", *sys.stdlib_module_names} for alias in node.names
        ):
            return node
        self.imports.append(node)
        return ast.Pass()

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | ast.Pass:
        """Drop a literal that is a statement."""
        return ast.Pass() if isinstance(node.value, ast.Constant) else node


def import_lines(nodes: list[ast.stmt], used: frozenset[str]) -> list[ast.stmt]:
    """One statement of modules and one for each module that names are taken from, of what is used."""
    modules: dict[str, ast.alias] = {}
    taken: dict[str, dict[str, ast.alias]] = {}
    for node in nodes:
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
            if (alias.asname or alias.name.partition(".")[0]) in used:
                group = taken.setdefault(str(node.module), {}) if isinstance(node, ast.ImportFrom) else modules
                group[ast.unparse(alias)] = alias
    rows = [ast.ImportFrom(module, list(names.values()), 0) for module, names in taken.items()]
    return [ast.Import(list(modules.values())), *rows] if modules else [*rows]


def squeeze(source: str) -> str:
    """The source without what a look at all of it shows to be constant, unread or without effect. What follows the
    recipe stays.
    """
    hoisted = Hoisted()
    body: list[ast.stmt] = hoisted.visit(ast.parse(source)).body
    imports = [*hoisted.imports, *(node for node in body if isinstance(node, ast.ImportFrom))]
    rest = [node for node in body if not isinstance(node, ast.Pass | ast.ImportFrom)]
    start = next((at for at, node in enumerate(rest) if "RECIPE" in bound_names(node)), len(rest))
    parts = [Part("", bound_names(node), node) for node in rest]
    chosen, tail, settled = parts[:start], parts[start:], set[tuple[Any, ...]]()
    before: list[tuple[Any, ...]] = []
    while (now := [part.shape for part in (*chosen, *tail)]) != before:
        before = now
        chosen = lessened(chosen, tail, quotes([*chosen, *tail]))
        made = tidy([*chosen, *tail], settled)
        chosen, tail = made[: len(chosen)], made[len(chosen) :]
        tail = [*(without_arguments(recipe, idle_fields(tail, chosen)) for recipe in tail[:1]), *tail[1:]]
        chosen = reached(chosen, tail)
    used = used_by(tail).union(*(definition.needs for definition in chosen))
    whole = [*import_lines(imports, used), *(definition.node for definition in (*chosen, *tail))]
    return ast.unparse(ast.fix_missing_locations(ast.Module(whole, [])))


def has_operators(source: str) -> bool:
    """Whether a script defines operators of torch, which calls what belongs to them by the names of arguments, so that
    such a script keeps all of its names.
    """
    return "custom_op" in source


def minify(source: str) -> str:
    """Shorter source with the same meaning."""
    import python_minifier

    whole = has_operators(source)
    return str(
        python_minifier.minify(
            source if whole else rename(squeeze(source)),
            remove_annotations=False,
            combine_imports=True,
            rename_locals=False,
            rename_globals=False,
            hoist_literals=False,
            # takes its time to find nothing in what has been squeezed
            remove_literal_statements=whole,
            remove_object_base=False,
            convert_posargs_to_args=False,
        )
    )


def latin1_literal(data: bytes) -> bytes:
    """A Python string literal in a Latin-1 source file that stands for these bytes, escaping as few as can be."""
    out = bytearray()
    for index, byte in enumerate(data):
        if byte == 0:
            digit = index + 1 < len(data) and 48 <= data[index + 1] <= 55
            out += b"\\x00" if digit else b"\\0"
        elif byte == 34 and (index + 1 == len(data) or out.endswith(b'""')):
            out += b'\\"'
        else:
            out += {13: b"\\r", 92: b"\\\\"}.get(byte, bytes([byte]))
    return b'"""' + bytes(out) + b'"""'


def raw_lzma(source: bytes) -> bytes:
    """The smallest raw LZMA2 stream, over the settings that matter to source code."""
    streams = []
    for bits, finder, length in itertools.product((1, 2, 3), (lzma.MF_BT2, lzma.MF_BT4), (32, 40, 48, 64, 96)):
        chain = {"lc": bits, "lp": 0, "pb": 0, "dict_size": 1 << 20, "mf": finder, "nice_len": length, "depth": 1000}
        streams.append(lzma.compress(source, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2} | chain]))
    return min(streams, key=lambda coded: len(latin1_literal(coded)))


def pack(minified: str, codec: Codec) -> bytes:
    """The counted file: the compressed source in a Latin-1 literal and a stub that runs it with readable tracebacks.
    Brotli where the script cannot do without it anyway, since its artifact is; LZMA of the standard library elsewhere.
    """
    source = minified.encode()
    if isinstance(codec, Brotli):
        head, coded = b"import brotli,linecache as l\ns=brotli.decompress(", codec.encode(source)
        tail = b'.encode("latin-1")).decode()\n'
    else:
        head, coded = b"import lzma,linecache as l\ns=lzma.decompress(", raw_lzma(source)
        tail = b'.encode("latin-1"),3,None,[{"id":33}]).decode()\n'
    run = b'l.cache["pgolf"]=len(s),None,s.splitlines(1),"pgolf"\nexec(compile(s,"pgolf","exec"))\n'
    return b"#coding:latin-1\n" + head + latin1_literal(coded) + tail + run


def unpack(packed: bytes) -> str:
    """The source inside a packed script, found without running it. PgolfError if it is not of that form."""
    tree = ast.parse(packed)
    for node in walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > 256:
            coded = node.value.encode("latin-1")
            if b"import brotli" in packed[:64]:
                import brotli

                return str(brotli.decompress(coded), "utf-8")
            return lzma.decompress(coded, lzma.FORMAT_RAW, None, [{"id": lzma.FILTER_LZMA2}]).decode()
    raise PgolfError("the packed script holds no source")


def counted(config: RunConfig) -> RunConfig:
    """The configuration whose script is counted beside an artifact: itself, or with brotli where no script can carry
    the method of compress.
    """
    return config if ships(config) else replace(config, compress=Brotli())


def ships(config: RunConfig) -> bool:
    """Whether the method of compress is of the core, which is all that a script carries."""
    return type(config.compress).__module__.startswith("pgolf.core.")


@contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's search for circles of objects, which goes through all the trees again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


INFO = '{"what the artifact says": "of itself"}'
"""Stands for it in a program; like it no word of the code, and written with the same quotes."""


def written(value: float) -> str:
    """A number as minified code has it."""
    import python_minifier

    return str(python_minifier.minify(f"x={value!r}")).removeprefix("x=")


def stand_for(value: float, place: int) -> float:
    """A number that no code has, written from the point on where the value is, to stand for it in a program."""
    return 0.7320508075688772 + place / 256 if written(value).startswith(".") else 1.4142135623730951 + place


def with_stands(part: Any, stands: dict[float, float]) -> Any:
    """A quantizer, or a part of one, with numbers that stand for its factors on steps, and for equal ones the same. A
    solver tries one factor after another, and a program shows which are equal, and which the default, but is otherwise
    the same for all.
    """
    found = dict[str, Any]()
    for field in fields(part):
        value = getattr(part, field.name)
        if field.name == "theta" and value != field.default:
            found[field.name] = stands.setdefault(value, stand_for(value, len(stands)))
        elif is_dataclass(value):
            found[field.name] = with_stands(value, stands)
    return replace(part, **found)


def replaced(source: str, texts: dict[str, str]) -> str:
    """The source with each text in the place of what stands for it."""
    return re.sub("|".join(map(re.escape, texts)), lambda match: texts[match[0]], source)


@uncollected()
def make_program(config: RunConfig) -> Program:
    """Readable and minified source of a configuration's script with INFO in it, and the core module of each name."""
    readable, definitions = emit(config, INFO)
    modules = {name: definition.module for definition in definitions for name in definition.names}
    return readable, minify(readable), modules


@lru_cache(maxsize=256)
def program(config: RunConfig) -> Program:
    """What `make_program` makes of a configuration, or has made before."""
    return kept_program(recipe_source(config, INFO), lambda: make_program(config))


@lru_cache(maxsize=256)
def build_script(config: RunConfig, info: str = "") -> Script:
    """The script of a configuration; `info` is what the artifact it makes says of itself. RuleError when no script can
    carry its method of compress; PgolfError if packing it and unpacking it again gives another program.
    """
    if not ships(config):
        raise RuleError(
            f"no script carries compress.method={name_of('Codec', type(config.compress))}: it is there to compare "
            "with, and a program like lrzip or zpaq cannot be assumed where a submission runs",
            "package",
            "compress with compress.method=rans or brotli",
        )
    stands = dict[float, float]()
    readable, minified, modules = program(replace(config, quant=with_stands(config.quant, stands)))
    said = {repr(INFO): repr(info)}
    readable = replaced(readable, said | {repr(stand): repr(value) for value, stand in stands.items()})
    minified = replaced(minified, said | {written(stand): written(value) for value, stand in stands.items()})
    packed = pack(minified, config.compress)
    if unpack(packed) != minified:
        raise PgolfError("the packed script does not unpack to what was packed", "bundle", "please report this")
    return Script(readable, minified, packed, modules)
