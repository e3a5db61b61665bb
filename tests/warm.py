"""Processes that begin with torch loaded, which takes one that begins with nothing two seconds: they are forked from
one that has loaded it and done nothing else. For tests that need many processes, and not what a start is.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from typing import Any

LIMIT_S = 120
APART = get_context("forkserver")
APART.set_forkserver_preload(["torch", "numpy"])  # and not more, which would hide what a script forgets to import


@cache
def isolated_path() -> list[str]:
    """Where `python -I` looks for modules."""
    line = [sys.executable, "-I", "-c", "import json, sys; print(json.dumps(sys.path))"]
    found: list[str] = json.loads(subprocess.run(line, capture_output=True, check=True).stdout)
    return found


def redirected(folder: str, cwd: str, path: list[str], environment: dict[str, str], code: str, argv: list[str]) -> None:
    """Become `python -I -c code argv...` with both streams in files."""
    sys.path[:] = path
    for number, name in ((1, "stdout"), (2, "stderr")):
        place = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(place, number)
        os.close(place)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *argv]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def run_warm(code: str, argv: list[str], cwd: Path, environment: dict[str, str]) -> CompletedProcess[str]:
    """Run a program like `python -I -c code argv...`, but that torch and numpy are loaded."""
    with TemporaryDirectory() as folder:
        process = APART.Process(target=redirected, args=(folder, str(cwd), isolated_path(), environment, code, argv))
        process.start()
        process.join(LIMIT_S)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{argv} took more than {LIMIT_S} s")
        out, err = (Path(folder, name).read_text(errors="replace") for name in ("stdout", "stderr"))
    return CompletedProcess(argv, process.exitcode, out, err)


def run_ranks(work: Callable[..., Any], ranks: int, *given: Any) -> None:
    """Run `work(rank, *given)` in so many processes at once. RuntimeError if one of them fails."""
    from torch import multiprocessing

    multiprocessing.start_processes(work, given, nprocs=ranks, start_method="forkserver")  # type: ignore[no-untyped-call]
