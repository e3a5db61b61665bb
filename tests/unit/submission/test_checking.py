"""Checks of submission folders: what is refused and what a sound one gives; imports found without running anything."""

import base64
import json
import lzma
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgolf.core.errors import InputError
from pgolf.submission.checking import check_submission
from pgolf.submission.document import schema_errors
from pgolf.submission.imports import needed_packages, requirement_lines

LOSS = 1.06108 * math.log(2) * 3.157152
TOTAL = 15_900_000


def folder(path: Path, script: str = "import torch\n", **changes: Any) -> Path:
    """A sound folder of another maker."""
    row = {"val_bpb": 1.06108, "val_loss": LOSS, "artifact_bytes": TOTAL, "train_time_s": 599.5, "eval_time_s": 400.0}
    said: dict[str, Any] = {
        "author": "A",
        "github_id": "a",
        "name": "x",
        "date": "2026-04-27",
        "val_bpb": 1.06108,
        "val_bpb_std": 0.0,
        "val_loss": LOSS,
        "val_tokens": 47851520,
        "seed_results": {str(seed): dict(row) for seed in (1, 2, 3)},
    } | changes
    path.mkdir(exist_ok=True)
    (path / "submission.json").write_text(json.dumps(said))
    (path / "train_gpt.py").write_text(script)
    (path / "README.md").write_text("# x")
    (path / "requirements.txt").write_text("torch==2.9.1\nflash-attn-3  # from an index\nbrotli\n")
    for seed in (1, 2, 3):
        (path / f"train_seed{seed}.log").write_text(
            f"0/9 val_loss: 9 val_bpb: 4.1\nTotal submission size x+brotli: {TOTAL} bytes\n"
            "quantized_ttt val_loss:2.32 val_bpb:1.0611 eval_time:1ms\n"
        )
    return path


def found(path: Path, level: str) -> str:
    """What a check says of a level."""
    return "; ".join(one["what"] for one in check_submission(path)["findings"] if one["level"] == level)


def test_a_sound_folder(tmp_path: Path) -> None:
    checked = check_submission(folder(tmp_path / "2026-04-27_X"))
    assert checked["verdict"] == "passed", checked
    assert "unaudited" in found(tmp_path / "2026-04-27_X", "warning")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"val_bpb": 1.05}, "not the mean"),
        ({"val_loss": 2.0}, "bytes per token"),
        ({"val_tokens": 56_000_000}, "like no known mistake|double space"),
        ({"seed_results": {"1": {"val_bpb": 1.06108, "artifact_bytes": 16_000_001}}}, "over the cap"),
        ({"seed_results": {"1": {"val_bpb": 1.06108, "train_time_s": 601.15}}}, "601.15, over 600"),
        ({"seed_results": {"1": {"val_bpb": 1.05}}, "val_bpb": 1.05, "val_loss": None}, "the log ends with val_bpb"),
        ({"audit": {"verdict": "violated", "id": "1", "violated": ["a"]}}, "proved a rule broken"),
        ({"val_bpb": None}, "missing"),
        ({"author": 3}, "author: 3 is not of type"),
        ({"date": "April"}, "date: 'April' does not match"),
        ({"seed_results": {"1": {"val_loss": 1.0}}}, "seed_results.1: 'val_bpb' is a required property"),
        ({"files": {"../x": {"bytes": 1, "sha256": "0" * 64}}}, "lists ../x, which is not in the folder"),
        ({"files": {"README.md": {"bytes": 1, "sha256": "0" * 64}}}, "README.md is not the file"),
    ],
)
def test_an_unsound_folder(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    place = folder(tmp_path, **changes)
    said = found(place, "violation")
    assert check_submission(place)["verdict"] == "violated" and any(word in said for word in words.split("|")), said


def test_files_that_are_missing_linked_or_of_another_day(tmp_path: Path) -> None:
    place = folder(tmp_path / "2026-04-26_X")
    (place / "README.md").unlink()
    (place / "data.bin").symlink_to("/etc/hostname")
    (place / "train_seed2.log").unlink()
    (place / "train_seed9.log").write_text("val_bpb:1.0")
    assert "no README.md" in found(place, "violation") and "data.bin is a link" in found(place, "violation")
    said = found(place, "warning")
    assert "of 2026-04-26" in said and "seed 2 has no log" in said and "without results: 9" in said


def test_the_spread_of_seeds(tmp_path: Path) -> None:
    rows = {str(seed): {"val_bpb": 1.0611 + 0.0002 * seed} for seed in (1, 2, 3)}
    place = folder(tmp_path, seed_results=rows, val_bpb=1.0615, val_bpb_std=0.0002, val_loss=None)
    assert "val_bpb_std" not in found(place, "warning")
    place = folder(tmp_path, seed_results=rows, val_bpb=1.0615, val_bpb_std=0.000163299, val_loss=None)
    assert "that of a population" in found(place, "warning")
    place = folder(tmp_path, seed_results=rows, val_bpb=1.0615, val_bpb_std=0.0009, val_loss=None)
    assert "not 0.000200" in found(place, "warning")


def test_imports_and_the_network(tmp_path: Path) -> None:
    script = "import torch, brotli, einops\nimport requests\nfrom flash_attn_interface import flash_attn_func\n"
    said = found(folder(tmp_path, script), "violation")
    assert "imports einops" in said and "line 2 imports requests" in said
    assert "imports brotli" not in said and "flash_attn" not in said
    (tmp_path / "einops.py").write_text("x = 1\n")
    assert "imports einops" not in found(tmp_path, "violation")
    assert "not a Python program" in found(folder(tmp_path, "def :"), "violation")


RAW = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
SECRET = "import os, zzz\nimport socket\nos.system('pip install zzz')\n" + "# filling\n" * 40 + "x = 'abcdefgh' * 7\n"


def scrambled(text: str) -> str:
    """The program with lines that do not compress, so that its packed form is long."""
    import random

    draw = random.Random(3)
    return text + "".join(f"v{number} = {draw.random()!r}\n" for number in range(60))


def packed_by_brotli(data: bytes) -> str:
    """In base64."""
    import brotli

    return base64.b64encode(brotli.compress(data)).decode()


PACKERS: dict[str, Callable[[bytes], str]] = {
    "xz": lambda data: f"exec(lzma.decompress(base64.b85decode({base64.b85encode(lzma.compress(data))!r})))",
    "zlib": lambda data: f"exec(__import__('zlib').decompress({zlib.compress(data)!r}))",
    "raw": lambda data: f"exec(f({base64.b85encode(lzma.compress(data, lzma.FORMAT_RAW, filters=RAW)).decode()!r}))",
    "brotli": lambda data: f"exec(brotli.decompress(base64.b64decode({packed_by_brotli(data)!r})))",
}


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_what_a_packed_script_imports(pack: Callable[[bytes], str]) -> None:
    seen = needed_packages(pack(scrambled(SECRET).encode()), "train_gpt.py")
    assert "zzz" in seen.needed
    assert any("socket" in line for line in seen.network) and any("pip" in line for line in seen.network)


def test_optional_imports_are_no_requirements() -> None:
    source = """
import torch
try:
    import flash_attn
except ImportError:
    flash_attn = None

def package():
    import flash_attn_interface
    return flash_attn_interface

def choose():
    try:
        package()
    except ImportError as error:
        return str(error)
    try:
        import needed_always
    except ValueError:
        pass
"""
    seen = needed_packages(source, "x")
    assert seen.needed == {"torch", "needed_always"} and seen.optional == {"flash_attn", "flash_attn_interface"}
    lines = requirement_lines(seen)
    assert any(line.startswith("torch==2.") for line in lines) and "needed_always" in lines
    assert "# flash_attn: used where it is installed" in lines


def test_a_program_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="not a Python program"):
        needed_packages("def :", "x.py")
    for deep in ("(" * 5000 + ")" * 5000, "x = " + "+".join(["y"] * 20_000), "-" * 100_000 + "1"):
        with pytest.raises(InputError, match=r"not a Python program|nested too deeply"):
            needed_packages(deep, "x.py")
    assert needed_packages("x = '" + "é" * 300 + "'", "x").needed == set()


def test_what_pgolf_writes_needs_more_than_others_do() -> None:
    least = {"author": "a", "name": "b", "date": "2026-04-27", "val_bpb": 1.1}
    assert schema_errors(least) == []
    ours = schema_errors(least | {"schema": "pgolf.submission/2"})
    assert any("'compliance' is a required property" in line for line in ours)
    assert schema_errors([]) and schema_errors(least | {"val_bpb": -1})
