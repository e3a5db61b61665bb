"""Programs under audit: what goes wrong ends in a clear verdict."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pgolf.audit.bench import Level
from pgolf.audit.engine import examine
from pgolf.audit.program import Program, check_command, read_losses
from pgolf.audit.stream import drawn_stream, plain_vocabulary
from pgolf.audit.verdict import HOLDS, STATISTICAL, UNTESTED, VIOLATED, Finding
from pgolf.core.errors import ConfigError, InputError

LEVEL = Level(name="test", targets=80, flips=1, flips_total=6, sweeps=2, values=6)
READ = "import sys, random, time; t = open(sys.argv[1], 'rb').read()[1024:]; n = len(t) // 2 - 1\n"
WRITE = "open(sys.argv[2], 'w').write('\\n'.join(map(str, x)))"


def found(tmp_path: Path, body: str, timeout: float = 30.0) -> dict[str, Finding]:
    """The findings on a program with this body, which makes x of t, the bytes of the tokens, and n targets."""
    path = tmp_path / "scorer.py"
    path.write_text(READ + body + "\n" + WRITE)
    command = (sys.executable, "-S", str(path), "{tokens}", "{scores}")
    program = Program(command, plain_vocabulary(8), tmp_path, timeout, jobs=2)
    stream = drawn_stream(plain_vocabulary(8), LEVEL.targets, 32, 0)
    return {finding.check: finding for finding in examine(program, stream, LEVEL, 0, "0abcd")}


def test_a_flat_scorer_passes(tmp_path: Path) -> None:
    findings = found(tmp_path, "x = [2.0794415416798357] * n")
    assert all(findings[name].verdict == HOLDS for name in "0abcd")


def test_a_scorer_that_sees_the_last_token_is_convicted(tmp_path: Path) -> None:
    findings = found(tmp_path, "x = [2.5 + 0.01 * t[-2]] * n")
    assert findings["a"].verdict == VIOLATED
    case = findings["a"].counterexample
    assert case is not None and case["subject"]["kind"] == "program"


def test_losses_that_sum_to_more_than_one(tmp_path: Path) -> None:
    findings = found(tmp_path, "x = [1.0] * n")
    assert findings["a"].verdict == HOLDS and findings["b"].verdict == VIOLATED and findings["c"].verdict == UNTESTED


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise SystemExit('no model')", "ended with code 1: no model"),
        ("x = [1.0] * (n - 3)", "3 targets were never scored"),
        ("x = [float('nan')] * n", "not finite"),
        ("x = [1.0] * (n + 2)", "scores for"),
        ("x = ['many'] * n", "no numbers"),
        ("x = ['1' * 90] * n", "too many"),
        ("x = [-0.5] * n", "negative"),
    ],
)
def test_bad_scores_are_a_verdict(tmp_path: Path, body: str, words: str) -> None:
    finding = found(tmp_path, body)["d"]
    assert finding.verdict == VIOLATED and words in finding.what, finding.what


def test_a_program_that_hangs_is_stopped(tmp_path: Path) -> None:
    findings = found(tmp_path, "time.sleep(60)", timeout=1.0)
    assert "had not ended after 1 s" in findings["d"].what and findings["a"].verdict == UNTESTED


def test_a_program_that_fails_on_an_edit_alone(tmp_path: Path) -> None:
    """No verdict on flips, where the stream itself can be scored."""
    body = "import os\ncount = len(os.listdir('.'))\nopen(f'run{count}', 'w').close()\nassert count < 8\nx = [9.0] * n"
    findings = found(tmp_path, body)
    assert findings["a"].verdict == UNTESTED and "edited stream" in findings["a"].what


def test_random_scores_are_statistical(tmp_path: Path) -> None:
    findings = found(tmp_path, "x = [3.0 + 1e-7 * random.random() for _ in range(n)]")
    assert findings["0"].verdict == STATISTICAL and findings["a"].verdict == HOLDS


def test_the_command_is_checked() -> None:
    with pytest.raises(ConfigError, match="scores"):
        check_command(["python", "{tokens}"])
    with pytest.raises(ConfigError, match="cannot be run"):
        check_command(["no-such-program-here", "{tokens}", "{scores}"])


def test_scores_as_an_array(tmp_path: Path) -> None:
    np.save(tmp_path / "scores.npy", np.arange(4, dtype=np.float32))
    assert read_losses(tmp_path / "scores.npy", 4).tolist() == [0, 1, 2, 3]
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="no numbers"):
        read_losses(tmp_path / "objects.npy", 4)


def test_a_file_does_not_make_us_run_a_program(tmp_path: Path) -> None:
    from pgolf.audit.again import play

    case = found(tmp_path, "x = [2.5 + 0.01 * t[-2]] * n")["a"].counterexample
    with pytest.raises(ConfigError, match=r"scorer\.py"):
        play(case, "test")
    assert play(case, "test", run_programs=True)["violated"]


def test_a_program_that_says_much_and_leaves_children(tmp_path: Path) -> None:
    """Its last line is what counts, and nothing it started goes on."""
    body = """
import subprocess
subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(1.5); open('late', 'w').close()"])
sys.stderr.write("noise\\n" * 200000 + "the end\\n")
raise SystemExit(3)"""
    assert found(tmp_path, body.replace("\\\\", "\\"))["d"].what.endswith("ended with code 3: the end")
    time.sleep(2.5)
    assert not (tmp_path / "late").exists()
