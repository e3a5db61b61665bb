"""The two commands' set-up: no CUDA packages where there is no GPU, and a CUDA torch that is there is left alone."""

import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FAKE_TORCH = "2.9.1+cu128"


def test_no_cuda_packages_came_along() -> None:
    """An environment made by make setup on a machine without a GPU holds no nvidia package and the pinned torch."""
    if Path(sys.prefix) != ROOT / ".venv" or not (ROOT / ".venv" / ".ready").exists():
        pytest.skip("not running in the environment that make setup makes")
    import torch

    if torch.version.cuda:
        pytest.skip("this environment was built around a CUDA torch")
    names = {str(dist.metadata["Name"]).lower() for dist in distributions()}
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-"))]
    constraints = (ROOT / "constraints" / "cpu.txt").read_text().splitlines()
    pinned = [line for line in constraints if line.startswith("torch==")]
    assert pinned == [f"torch=={torch.__version__.partition('+')[0]}"]


def fake_cuda_interpreter(folder: Path) -> Path:
    """A virtual environment whose torch says it is a CUDA build."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    (site / "torch").mkdir()
    code = f"__version__ = {FAKE_TORCH!r}\n\n\nclass version:\n    cuda = '12.8'\n"
    (site / "torch" / "__init__.py").write_text(code)
    info = site / f"torch-{FAKE_TORCH}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {FAKE_TORCH}\n")
    (info / "INSTALLER").write_text("pip\n")
    (info / "RECORD").write_text("torch/__init__.py,,\n")
    return python


@pytest.mark.slow
def test_a_cuda_torch_stays_as_it_is(tmp_path: Path) -> None:
    """Set-up around an interpreter with a CUDA torch resolves every other package and leaves torch out."""
    python = fake_cuda_interpreter(tmp_path / "base")
    target = tmp_path / "venv"
    command = [str(ROOT / ".ci" / "setup"), str(python), str(target), "--dry-run", "-v"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if "No matching distribution found for setuptools" in run.stderr:
        pytest.skip("no package index can be reached from here")
    assert run.returncode == 0, run.stderr
    assert f"keeping the CUDA torch of {python}: {FAKE_TORCH}" in run.stdout
    wanted = next(line for line in run.stdout.splitlines() if line.startswith("Would install"))
    assert "safetensors-" in wanted
    assert "torch-" not in wanted
    assert "nvidia-" not in wanted
    where = "import torch; print(torch.__version__, torch.__file__)"
    states = [
        subprocess.run([str(interpreter), "-c", where], capture_output=True, text=True, check=True).stdout
        for interpreter in (python, target / "bin" / "python")
    ]
    assert states[0] == states[1] == f"{FAKE_TORCH} {state_path(python)}\n"


def state_path(python: Path) -> Path:
    """Where the fake torch lies."""
    tag = f"python{sysconfig.get_python_version()}"
    return python.parent.parent / "lib" / tag / "site-packages" / "torch" / "__init__.py"
