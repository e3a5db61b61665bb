"""Commands that only look answer at once: they import neither torch nor, for sizes and settings, numpy."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROBE = """
import json, sys
from pgolf.cli.main import main
code = main(sys.argv[1:])
sys.stdout.flush()
names = ("torch", "numpy", "sentencepiece", "safetensors", "scipy", "pydantic", "matplotlib")
heavy = [name for name in names if name in sys.modules]
print(json.dumps({"code": code, "heavy": heavy}), file=sys.stderr)
"""
LOOKS = {
    "help": ["--help"],
    "help of run": ["run", "--help"],
    "help of package-submission": ["package-submission", "--help"],
    "help of sweep train": ["sweep", "train", "--help"],
    "a table that is not there": ["sweep", "show", "none.jsonl"],
    "version": ["--version"],
    "size": ["size", "baseline_sp1024", "--json"],
    "show": ["config", "show"],
    "show with a preset": ["config", "show", "quant", "--preset", "demo", "--set", "quant.bits=5", "--explain"],
    "diff": ["config", "diff", "demo", "tiny"],
    "schedules": ["config", "plot-schedules", "leader", "--json"],
    "techniques": ["techniques"],
    "a wrong key": ["config", "show", "--set", "quant.bit=5"],
}


def probe(argv: list[str]) -> tuple[str, dict[str, object]]:
    """Standard output of a command and which heavy modules it left behind."""
    done = subprocess.run([sys.executable, "-c", PROBE, *argv], capture_output=True, text=True, timeout=60)
    return done.stdout, json.loads(done.stderr.strip().splitlines()[-1])


@pytest.mark.parametrize("name", list(LOOKS))
def test_looking_imports_nothing_heavy(name: str) -> None:
    _, found = probe(LOOKS[name])
    codes = {"a wrong key": 2, "a table that is not there": 3}
    assert found == {"code": codes.get(name, 0), "heavy": []}


NOTHING_THERE = [
    *(f"{command} none" for command in ("inspect", "audit artifact", "audit submission")),
    *(f"{command} none --out new" for command in ("compress", "train", "import", "package-submission")),
    *(f"{command} none --data . --out new" for command in ("quantize", "eval", "ttt")),
    *(f"sweep {stage} none --data . --out new" for stage in ("quantize", "eval", "ttt")),
    *(f"sweep {stage} none --out new" for stage in ("train", "compress")),
    "audit run eval --model none --data .",
    *(f"{command} . --data none --out new" for command in ("quantize", "eval")),
]
"""Commands that would read what is not there."""


def test_a_path_that_names_nothing_is_told_at_once(tmp_path: Path) -> None:
    probe = "import sys\nfrom pgolf.cli.main import main\n"
    probe += "print(*(main(line.split()) for line in sys.argv[1:]), 'torch' in sys.modules)"
    line = [sys.executable, "-c", probe, *NOTHING_THERE]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout == f"{'3 ' * len(NOTHING_THERE)}False\n"
    assert done.stderr == "error: no such file or directory (none). check the path\n" * len(NOTHING_THERE)
    assert not list(tmp_path.iterdir())


def test_the_baseline_has_its_parameters_and_its_published_size() -> None:
    out, found = probe(["size", "baseline_sp1024", "--json"])
    document = json.loads(out)
    assert found["heavy"] == []
    assert document["schema"] == "pgolf.size/1" and document["predicted"] is True
    assert document["parameters"] == 17_059_912
    assert sum(tensor["parameters"] for tensor in document["tensors"]) == 17_059_912
    total = 15_863_489
    low, high = (document[f"artifact_bytes_{end}"] + document["code_bytes"] for end in ("low", "high"))
    assert low <= total <= high
    assert high - low < 0.15 * total, "an interval this wide says nothing"
    assert document["cap_bytes"] == 16_000_000


def seconds(argv: list[str]) -> float:
    """Best of seven starts."""
    found = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run([sys.executable, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        found.append(time.perf_counter() - start)
    return min(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["help", "size", "show"])
def test_looking_takes_150_ms(name: str) -> None:
    assert seconds(["-m", "pgolf", *LOOKS[name]]) < 0.150
