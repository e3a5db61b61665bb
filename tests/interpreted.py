"""Tests of kernels: on a GPU where there is one, and everywhere in Triton's interpreter, which must be asked for before
Triton is imported. So they run in a process of their own, which one test of the file starts.
"""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
INSTALLED = importlib.util.find_spec("triton") is not None


def first_two(version: str) -> tuple[int, ...]:
    """Major and minor number."""
    return tuple(int(part) for part in version.split(".")[:2])


def interpreter_obstacle() -> str:
    """Why Triton's interpreter cannot be started here, or nothing."""
    if INTERPRETED or not INSTALLED:
        return "needs Triton, which pgolf[kernels] installs"
    old = first_two(importlib.metadata.version("triton")) < (3, 6) and first_two(np.__version__) >= (2, 4)
    return "the interpreter of Triton before 3.6 needs numpy before 2.4" if old else ""


not_interpreted = pytest.mark.skipif(INTERPRETED or not INSTALLED, reason="needs Triton, not interpreted")
can_interpret = pytest.mark.skipif(bool(interpreter_obstacle()), reason=interpreter_obstacle() or "it can")
on_gpu = [
    pytest.mark.gpu,
    not_interpreted,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WHERE = [
    pytest.param(CPU, marks=pytest.mark.skipif(not INTERPRETED, reason="run by test_in_the_interpreter"), id="cpu"),
    pytest.param(CUDA, marks=on_gpu, id="cuda"),
]
somewhere = pytest.mark.parametrize("device", WHERE)


def run_interpreted(file: str) -> None:
    """Run the tests of a file in the interpreter; none of them may be left out."""
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", file]
    root, environment = Path(__file__).parents[1], os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=root, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "run by test_in_the_interpreter" not in done.stdout
