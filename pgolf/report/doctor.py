"""What the machine offers, found without importing torch where that can be avoided."""

import importlib.util
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pgolf.core.files import free_bytes

REQUIRED = (
    "torch",
    "numpy",
    "sentencepiece",
    "brotli",
    "zstandard",
    "safetensors",
    "rich",
    "typer",
    "filelock",
    "python-minifier",
)
OPTIONAL = ("triton", "flash-attn", "huggingface-hub", "pyarrow", "constriction")
MODULES = {"python-minifier": "python_minifier", "flash-attn": "flash_attn", "huggingface-hub": "huggingface_hub"}


def check_package(name: str, required: bool) -> dict[str, Any]:
    """One package."""
    present = importlib.util.find_spec(MODULES.get(name, name)) is not None
    try:
        found = version(name) if present else "not installed"
    except PackageNotFoundError:
        found = "installed, version unknown"
    return {
        "name": name,
        "required": required,
        "ok": present,
        "found": found,
        "fix": "" if present else f"pip install {name}",
    }


def check_gpu() -> dict[str, Any]:
    """The GPU torch sees."""
    try:
        import torch
    except ImportError:
        return {"name": "GPU", "required": False, "ok": False, "found": "torch is missing", "fix": ""}
    if not torch.cuda.is_available():
        build = torch.version.cuda
        found = f"none; torch {torch.__version__} is built {'for CUDA ' + build if build else 'for CPUs'}"
        return {
            "name": "GPU",
            "required": False,
            "ok": False,
            "found": found,
            "fix": "everything runs on the CPU, slowly",
        }
    names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    return {
        "name": "GPU",
        "required": False,
        "ok": True,
        "found": f"{torch.cuda.device_count()} x {', '.join(sorted(names))}",
        "fix": "",
    }


def check_import() -> dict[str, Any]:
    """Whether foreign .pt files may be read: torch's restricted reader had a hole before 2.10."""
    try:
        found = version("torch")
    except PackageNotFoundError:
        found = "0.0"
    safe = tuple(int(part) for part in found.split(".")[:2]) >= (2, 10)
    fix = "" if safe else "needs torch 2.10; import .safetensors instead"
    return {"name": "import of .pt files", "required": False, "ok": safe, "found": f"torch {found}", "fix": fix}


def examine() -> list[dict[str, Any]]:
    """Every check: name, required, ok, what was found, how to mend it."""
    rows = [check_package(name, True) for name in REQUIRED]
    rows += [check_package(name, False) for name in OPTIONAL]
    rows.append(check_gpu())
    rows.append(check_import())
    compiler = shutil.which("g++") or shutil.which("clang++") or ""
    rows.append(
        {
            "name": "C++ compiler",
            "required": False,
            "ok": bool(compiler),
            "found": compiler or "none",
            "fix": "" if compiler else "needed for train.compile=on on a CPU",
        }
    )
    for tool in ("lrzip", "zpaq"):
        path = shutil.which(tool) or ""
        rows.append(
            {
                "name": tool,
                "required": False,
                "ok": bool(path),
                "found": path or "none",
                "fix": "" if path else "optional, for comparisons only",
            }
        )
    free = free_bytes(Path.cwd())
    rows.append(
        {
            "name": "free disk here",
            "required": True,
            "ok": free > 1 << 30,
            "found": f"{free / 1e9:.1f} GB",
            "fix": "" if free > 1 << 30 else "free at least 1 GB",
        }
    )
    return rows
