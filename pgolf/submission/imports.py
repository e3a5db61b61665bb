"""What a script imports and whom it calls, found without running it, be it packed (spec: submission 7, 8, 9)."""

import ast
import base64
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, packages_distributions, version

from pgolf.core.errors import InputError

LEAST = 256
"""A shorter literal holds no program."""
MAX_SOURCE = 16 << 20
"""A packed program may be this large, in bytes."""
# fmt: off
NETWORK = frozenset((
    "socket", "ssl", "urllib", "urllib2", "urllib3", "requests", "http", "ftplib", "smtplib", "telnetlib", "xmlrpc",
    "aiohttp", "httpx", "websocket", "websockets", "paramiko", "huggingface_hub", "datasets", "wandb", "gdown",
    "boto3", "gcsfs", "s3fs",
))
# fmt: on
"""Modules that reach for a network."""
# fmt: off
FETCHERS = frozenset((
    "pip", "pip3", "uv", "conda", "apt", "apt-get", "curl", "wget", "git", "aria2c", "huggingface-cli", "hf",
))
# fmt: on
"""Programs that do."""
# fmt: off
RUNNERS = frozenset((
    "system", "popen", "run", "call", "check_call", "check_output", "Popen", "execv", "execvp", "execlp", "spawnv",
))
# fmt: on
"""Functions that start programs."""
LATE = frozenset(["ImportError", "ModuleNotFoundError", "Exception", "BaseException"])


@dataclass
class Found:
    """Top-level packages outside the standard library by what becomes of the program without them: it fails, or it
    goes another way; modules and programs for a network, with their lines.
    """

    needed: set[str] = field(default_factory=set)
    optional: set[str] = field(default_factory=set)
    network: list[str] = field(default_factory=list)


def decoders() -> Iterator[Callable[[bytes], bytes]]:
    """Ways to make bytes of a packed literal, and to unpack these; each is bounded."""

    def xz(data: bytes) -> bytes:
        return lzma.LZMADecompressor(memlimit=1 << 28).decompress(data, MAX_SOURCE)

    def raw(data: bytes) -> bytes:
        chain = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 24}]
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=chain).decompress(data, MAX_SOURCE)

    def deflate(data: bytes) -> bytes:
        return zlib.decompressobj().decompress(data, MAX_SOURCE)

    def unbrotli(data: bytes) -> bytes:
        import brotli

        found = brotli.Decompressor().process(data, output_buffer_limit=MAX_SOURCE)
        if len(found) > MAX_SOURCE:
            raise ValueError("too large")
        return bytes(found)

    yield from (xz, raw, deflate, unbrotli)


def unpacked(literal: str | bytes) -> ast.Module | None:
    """The program inside a literal: text or bytes in base85, base64 or Latin-1 of LZMA, zlib or brotli."""
    try:
        data = literal if isinstance(literal, bytes) else literal.encode("latin-1")
    except UnicodeEncodeError:
        return None
    for decode in (bytes, base64.b85decode, base64.a85decode, lambda text: base64.b64decode(text, validate=True)):
        try:
            packed = decode(data)
        except ValueError:
            continue
        for unpack in decoders():
            try:
                return ast.parse(unpack(packed))
            except Exception:  # whatever a decoder makes of what is not its own
                continue
    return None


def programs(raw: bytes, where: str) -> list[ast.Module]:
    """A script's own program, and that packed inside it. InputError if the file is no Python."""
    try:
        found = [ast.parse(raw)]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"not a Python program: {(error.args or ['nested too deeply'])[0]}", where) from None
    for tree in found:
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and len(node.value) >= LEAST:
                inner = unpacked(node.value)
                if inner is not None and len(found) < 8:
                    found.append(inner)
    return found


def needed_packages(source: str | bytes, where: str, local: frozenset[str] = frozenset()) -> Found:
    """What a program, packed or not, takes from outside; `local` are modules beside it."""
    found = Found()
    for tree in programs(source.encode() if isinstance(source, str) else source, where):
        try:
            Imports(found, local, probes(tree)).visit(tree)
        except RecursionError:
            raise InputError("the program is nested too deeply to be read", where) from None
    found.optional -= found.needed
    return found


def may_fail(node: ast.Try) -> bool:
    """Whether it catches that an import fails."""
    kinds = [one.type or ast.Name("Exception", ast.Load()) for one in node.handlers]
    return bool(LATE & {name.id for kind in kinds for name in ast.walk(kind) if isinstance(name, ast.Name)})


def probes(tree: ast.Module) -> frozenset[str]:
    """Functions that the program calls where an import may fail."""
    tries = (node for node in ast.walk(tree) if isinstance(node, ast.Try) and may_fail(node))
    calls = (inner for node in tries for item in node.body for inner in ast.walk(item) if isinstance(inner, ast.Call))
    return frozenset(call.func.id for call in calls if isinstance(call.func, ast.Name))


class Imports(ast.NodeVisitor):
    """Collects what a program takes; `guarded` where an import may fail, as in a function that is called as a probe."""

    def __init__(self, found: Found, local: frozenset[str], probes: frozenset[str]) -> None:
        self.found, self.local, self.probes, self.guarded = found, local, probes, False

    def add(self, names: Iterable[str], line: int) -> None:
        """Packages imported in a line."""
        for name in {name.split(".")[0] for name in names}:
            if name in NETWORK:
                self.found.network.append(f"line {line} imports {name}")
            if name not in sys.stdlib_module_names and name not in self.local:
                (self.found.optional if self.guarded else self.found.needed).add(name)

    def visit_Import(self, node: ast.Import) -> None:
        """import a.b, c."""
        self.add((alias.name for alias in node.names), node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """from a.b import c; one with dots is of files beside it."""
        if not node.level:
            self.add([node.module or ""], node.lineno)

    def visit_Call(self, node: ast.Call) -> None:
        """A program that is started."""
        if said := fetches(node):
            self.found.network.append(f"line {node.lineno} runs {said}")
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """A function, which may be a probe."""
        before, self.guarded = self.guarded, self.guarded or node.name in self.probes
        self.generic_visit(node)
        self.guarded = before

    def visit_Try(self, node: ast.Try) -> None:
        """Imports that may fail; what takes their place then may not."""
        before, self.guarded = self.guarded, self.guarded or may_fail(node)
        for item in node.body:
            self.visit(item)
        self.guarded = before
        for other in (*node.handlers, *node.orelse, *node.finalbody):
            self.visit(other)


def fetches(call: ast.Call) -> str:
    """The program that a call starts to reach a network, if it is one."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in RUNNERS:
        return ""
    words = [word for node in ast.walk(call) if isinstance(node, ast.Constant) and isinstance(node.value, str)
             for word in node.value.split()]  # fmt: skip
    return next((word for word in words if word.rpartition("/")[2] in FETCHERS), "")


def requirement_lines(found: Found) -> list[str]:
    """Lines of requirements.txt: what is needed with the versions installed here, what is optional as comments."""
    owners = packages_distributions()
    lines = []
    for name in sorted(found.needed):
        distribution = owners.get(name, [name])[0]
        try:
            lines.append(f"{distribution}=={version(distribution).partition('+')[0]}")
        except PackageNotFoundError:
            lines.append(distribution)
    return lines + [f"# {name}: used where it is installed" for name in sorted(found.optional)]
