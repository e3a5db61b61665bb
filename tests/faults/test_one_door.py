"""Every write and every read of a foreign file go through pgolf/core/files.py, and nothing but the restricted import
unpickles: what the source calls is looked at, so that a new open() in another module fails here.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOOR = "pgolf/core/files.py"
OWN = "files that pgolf brings with it"
SCRATCH = "a folder of its own, whose files are no results and go away with it"
WRITES = {
    "pgolf/cli/main.py tempfile.mkstemp": "the traceback of a bug, when nothing else may work any more",
    "pgolf/cli/main.py os.fdopen": "the same",
    "pgolf/stages/launch.py tempfile.TemporaryDirectory": SCRATCH,
    "pgolf/layouts/programs.py tempfile.TemporaryDirectory": SCRATCH,
    "pgolf/layouts/programs.py .write_bytes": "there, for lrzip and zpaq to find",
    "pgolf/audit/program.py tempfile.TemporaryDirectory": SCRATCH,
    "pgolf/audit/dataset.py tempfile.TemporaryDirectory": SCRATCH,
    "pgolf/audit/specimens/pipelines.py tempfile.TemporaryDirectory": SCRATCH,
    "pgolf/audit/specimens/pipelines.py np.save": "there; specimens are programs as others write them",
    "pgolf/audit/specimens/conduct.py tempfile.NamedTemporaryFile": "the cheat that this specimen is for",
    "pgolf/submission/proof.py tempfile.TemporaryDirectory": SCRATCH,
    "pgolf/submission/proof.py os.symlink": "there, to the shards",
    "pgolf/submission/folder.py os.replace": "a folder of complete files takes the place of another",
    "pgolf/restricted.py tempfile.TemporaryDirectory": SCRATCH,
}
"""Module and call -> why it may write by itself."""
READS = {
    "pgolf/config/load.py .read_text": OWN,
    "pgolf/config/describe.py .read_text": OWN,
    "pgolf/bundle/graph.py .read_text": OWN,
    "pgolf/source.py .read_bytes": OWN,
    "pgolf/audit/triple.py .read_text": OWN,
    "pgolf/stages/launch.py .read_text": "what the system says of processes that this one belongs with",
    "pgolf/submission/compare.py .read_text": OWN,
    "pgolf/corpus/sources.py .read_bytes": "documentation that Python brings with it",
    "pgolf/core/shards.py np.fromfile": "1024 bytes",
    "pgolf/core/shards.py np.memmap": "nothing is allocated, and the size was checked",
    "pgolf/dataset.py np.load": "nothing is allocated: mapped, without pickle, and with numpy's bound on the header",
    "pgolf/audit/program.py np.load": "from bytes that were bounded, without pickle",
    "pgolf/audit/specimens/pipelines.py np.load": "its own file",
    "pgolf/audit/specimens/conduct.py .read_bytes": "the cheat that this specimen is for",
    "pgolf/layouts/programs.py .read_bytes": "its size was checked",
    "pgolf/restricted.py torch.load": "the restricted import, in a process of its own",
}
"""Module and call -> why it may read by itself."""
EXECUTES = {
    "pgolf/restricted.py torch.load": "weights_only, bounded, in a process of its own",
    "pgolf/bundle/script.py exec": "the stub of the packed script, which unpacks itself",
}
"""Module and call -> why it may."""

MODULES = {"np": "np", "numpy": "np", "os": "os", "shutil": "shutil", "tempfile": "tempfile", "torch": "torch"}
MODULES |= {name: name for name in ("gzip", "lzma", "bz2", "pickle", "marshal", "shelve", "yaml", "joblib", "io")}
MODULES |= {name: name for name in ("zipfile", "tarfile", "runpy", "safetensors", "builtins")}
WRITING = {
    *("np.save", "np.savez", "np.savez_compressed", "np.savetxt", "torch.save", "os.fdopen", "os.open", "os.replace"),
    *("os.rename", "os.renames", "os.link", "os.symlink", "os.truncate", "os.mkfifo", "os.sendfile", "shutil.copy"),
    *("shutil.copy2", "shutil.copyfile", "shutil.copytree", "shutil.copyfileobj", "shutil.move", "shutil.make_archive"),
    *("shutil.unpack_archive", "safetensors.save_file", "open for writing", ".write_text", ".write_bytes", ".touch"),
    *(".tofile", ".symlink_to", ".hardlink_to", ".extractall", ".extract"),
}
READING = {
    *("np.load", "np.fromfile", "np.memmap", "np.loadtxt", "np.genfromtxt", "torch.load", "gzip.open", "lzma.open"),
    *("bz2.open", "safetensors.load_file", "safetensors.safe_open", "open for reading", ".read_text", ".read_bytes"),
    *("zipfile.ZipFile", "tarfile.open", "io.FileIO", "io.open_code"),
}
RUNNING = {
    *("eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "yaml.load"),
    *("shelve.open", "joblib.load", "torch.load", "runpy.run_path", "runpy.run_module", "builtins.eval"),
    "builtins.exec",
}


def imported(tree: ast.AST) -> dict[str, str]:
    """Local names of functions that come from the modules looked at -> module.function."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (root := (node.module or "").partition(".")[0]) in MODULES:
            found |= {alias.asname or alias.name: f"{MODULES[root]}.{alias.name}" for alias in node.names}
    return found


def mode_of(call: ast.Call, place: int) -> str:
    """The mode that a call of open() states; one that is no literal counts as writing."""
    given = [keyword.value for keyword in call.keywords if keyword.arg == "mode"] or call.args[place : place + 1]
    if not given:
        return "r"
    return str(given[0].value) if isinstance(given[0], ast.Constant) else "w"


def harmless(target: ast.expr | None) -> bool:
    """Whether a path is the null device, or the kernel's own."""
    text = ast.unparse(target) if target is not None else ""
    return "os.devnull" in text or re.match(r"(Path\()?f?['\"]/proc/", text) is not None


def calls(source: str) -> Iterator[str]:
    """What a module calls that opens files or runs code, as in the tables above."""
    tree = ast.parse(source)
    names = imported(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name):
            if function.id == "open":
                if not harmless(node.args[0] if node.args else None):
                    yield "open for writing" if set(mode_of(node, 1)) & set("wax+") else "open for reading"
            else:
                yield names.get(function.id, function.id)
        elif isinstance(function, ast.Attribute):
            root = function.value
            if isinstance(root, ast.Name) and root.id in MODULES:
                if not (function.attr == "open" and harmless(node.args[0] if node.args else None)):
                    yield f"{MODULES[root.id]}.{function.attr}"
            elif function.attr == "open" and not harmless(root) and not isinstance(root, ast.Attribute):
                yield "open for writing" if set(mode_of(node, 0)) & set("wax+") else "open for reading"
            elif not harmless(root):
                yield f".{function.attr}"


def sources() -> dict[str, str]:
    """Every module of pgolf but the one that owns the calls."""
    paths = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "pgolf").rglob("*.py"))}
    return {name: path.read_text() for name, path in paths.items() if name != DOOR}


def found(wanted: set[str], prefix: str = "-") -> set[str]:
    """Module and call, of every call that is wanted or begins with the prefix."""
    return {
        f"{name} {call}"
        for name, source in sources().items()
        for call in calls(source)
        if call in wanted or call.startswith(prefix)
    }


def test_one_module_writes() -> None:
    assert found(WRITING, "tempfile.") - {"pgolf/audit/sandbox.py tempfile.gettempdir"} == set(WRITES)


def test_one_module_reads_what_is_foreign() -> None:
    assert found(READING) == set(READS)


def test_nothing_unpickles_or_runs_what_it_reads() -> None:
    """A call in a text, as of the packed script's stub, is no call; `bundle/script.py` is looked at for its text."""
    stub = {"pgolf/bundle/script.py exec"} if "exec(" in sources()["pgolf/bundle/script.py"] else set()
    assert found(RUNNING) | stub == set(EXECUTES)


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("open(path, 'wb')", "open for writing"),
        ("open(path, mode='a')", "open for writing"),
        ("open(path, how)", "open for writing"),
        ("open(path, 'r+b')", "open for writing"),
        ("path.open('x')", "open for writing"),
        ("(folder / name).open('w')", "open for writing"),
        ("(folder / name).write_text('x')", ".write_text"),
        ("np.save(path, values)", "np.save"),
        ("import numpy\nnumpy.save(path, values)", "np.save"),
        ("from shutil import copy as put\nput(a, b)", "shutil.copy"),
        ("from safetensors.torch import save_file\nsave_file(tensors, path)", "safetensors.save_file"),
        ("os.open(path, os.O_WRONLY)", "os.open"),
        ("with tempfile.NamedTemporaryFile() as f: pass", "tempfile.NamedTemporaryFile"),
        ("open(path)", "open for reading"),
        ("Path(name).read_bytes()", ".read_bytes"),
        ("path.open()", "open for reading"),
        ("pickle.loads(content)", "pickle.loads"),
        ("eval(text)", "eval"),
        ("torch.load(path)", "torch.load"),
    ],
)
def test_every_way_to_open_is_seen(line: str, call: str) -> None:
    assert call in list(calls(line)) and call in WRITING | READING | RUNNING | {"tempfile.NamedTemporaryFile"}


def test_devices_and_the_kernels_files_are_no_files() -> None:
    for line in ("open(os.devnull, 'w')", "Path(os.devnull).open('w')", "open(f'/proc/{pid}/comm')"):
        assert not {"open for writing", "open for reading"} & set(calls(line))
    assert ".read_text" not in list(calls("Path('/proc/self/stat').read_text()"))
