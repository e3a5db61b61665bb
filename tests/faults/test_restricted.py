"""The process that unpickles foreign torch files: dicts of tensors come back, all else is refused in bounded memory."""

import io
import json
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import run_here

from pgolf.core.errors import InputError
from pgolf.restricted import MAX_DEPTH, SHAPE, TENSORS, gathered, inflate, main, read_found, read_torch

MARK = pytest.mark.fault(row="F12")


def saved(path: Path, content: Any) -> Path:
    """A torch file."""
    torch.save(content, path)
    return path


@pytest.mark.reads_pt
@MARK
def test_dicts_and_tensors_come_back(tmp_path: Path) -> None:
    content = {"model": {"a": torch.arange(6).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16), "n": 5}, 1: None}
    found = read_torch(saved(tmp_path / "x.pt", content))
    assert set(found) == {"model", "1"} and found["1"] is None and found["model"]["n"] is None
    assert torch.equal(found["model"]["a"], content["model"]["a"]) and found["model"]["b"].dtype == torch.bfloat16


@MARK
def test_an_old_torch_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "x.pt", {"a": torch.ones(2)})
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    run_here("import", path, "--out", tmp_path / "out.safetensors").refused(5, "2.9.1", "torch 2.10", ".safetensors")


def cycle() -> dict[str, Any]:
    """A dict that holds itself."""
    found: dict[str, Any] = {}
    found["model"] = found
    return found


def deep(levels: int) -> Any:
    """Dicts in dicts."""
    return {"x": deep(levels - 1)} if levels else torch.ones(1)


@MARK
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (cycle(), "deeper"),
        (deep(MAX_DEPTH + 2), "deeper"),
        ({"w": torch.ones(1).expand(1 << 40)}, "w is not a plain tensor"),
        ({"w": torch.ones(4, 4).to_sparse()}, "w is not a plain tensor"),
        ({"w": torch.empty(8, device="meta")}, "w is not a plain tensor"),
        ({f"w{index}": torch.zeros(1 << 26)[:] for index in range(9)}, "more than 2,147,483,648 bytes"),
    ],
    ids=["a cycle", "depth", "expanded", "sparse", "meta", "too much"],
)
def test_what_is_no_state_dict_is_refused(content: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        gathered(content)


@MARK
def test_a_stream_that_grows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgolf.restricted.MAX_FOREIGN", 1 << 20)
    assert len(inflate(zlib.compress(bytes(1 << 20)))) == 1 << 20
    for blob in (zlib.compress(bytes((1 << 20) + 1)), zlib.compress(bytes(1 << 26)), zlib.compress(b"x")[:-1], b"no"):
        with pytest.raises(InputError, match="zlib"):
            inflate(blob)


@pytest.mark.reads_pt
@MARK
def test_an_archive_that_grows_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    """A torch file is an archive whose entries may be packed: here 700 MiB of zeros for a tensor of 16 bytes."""
    small, path = io.BytesIO(), tmp_path / "x.pt"
    torch.save({"w": torch.ones(4)}, small)
    with zipfile.ZipFile(small) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for entry in old.infolist():
            with new.open(entry.filename, "w", force_zip64=True) as file:
                storage = entry.filename.endswith("data/0")
                for piece in [bytes(1 << 20)] * 700 if storage else [old.read(entry)]:
                    file.write(piece)
    assert path.stat().st_size < 12 << 20
    found = subprocess.run([sys.executable, "-c", REFUSED, path], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 5 << 20 or not Path("/proc/self/status").exists()


REFUSED = """
import resource, sys
from pathlib import Path
from pgolf.core.errors import InputError
from pgolf.restricted import read_torch
try:
    read_torch(Path(sys.argv[1]))
except InputError:
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""A process without other children, which tells the most KiB that the one that reads took."""


@pytest.mark.reads_pt
@MARK
def test_a_reader_that_dies_is_one_error_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the unpickler had a hole that ends its process."""
    run = subprocess.run

    def dying(command: list[str], **options: Any) -> Any:
        return run([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"], **options)

    monkeypatch.setattr("pgolf.restricted.subprocess.run", dying)
    line = run_here("import", saved(tmp_path / "x.pt", {}), "--out", tmp_path / "out.safetensors").refused(3, "x.pt")
    assert "code -11" in line


def test_what_the_process_leaves(tmp_path: Path) -> None:
    """In this process, so that every line of it is looked at."""
    main(str(saved(tmp_path / "x.pt", {"a": torch.ones(3), "b": {}})), str(tmp_path))
    assert json.loads((tmp_path / SHAPE).read_text()) == {"a": "0", "b": {}}
    assert (tmp_path / TENSORS).is_file() and torch.equal(read_found(tmp_path)["a"], torch.ones(3))
