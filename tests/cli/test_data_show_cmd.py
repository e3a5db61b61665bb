"""pgolf data show on a terminal, without colors, in a pipe, and as JSON."""

import json
import os
import pty
import re
import select
import subprocess
from pathlib import Path

import numpy as np
import pytest
import spm_models
from harness import command, run_here

from pgolf.core.bpb import load_tokenizer
from pgolf.core.shards import write_shard
from pgolf.report.data_show import data_show

HOSTILE = "[bold]Bold[/bold] \\[/nope] [/] \x1b[31mred\x1b[0m \x07 \u202e | end"
TEXTS = (HOSTILE, "The second one.", *spm_models.sentences()[:40])
SHOWN = ("--documents", "2", "--tokens", "400")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose first document is hostile."""
    return spm_models.dataset(tmp_path_factory.mktemp("plain"), TEXTS, spm_models.model())


@pytest.fixture(scope="module")
def tokens() -> list[str]:
    """The pieces of that document as they are shown."""
    return [str(piece) for piece in load_tokenizer(spm_models.model(), "test").encode(HOSTILE, out_type=str)]


def test_what_it_says(plain: Path) -> None:
    out = run_here("data", "show", plain).good().out
    for words in (
        "vocabulary of 480",
        "transform: none",
        "the first 5 of the corpus are for validation",
        "|documents ",
        "taken from",
        "manifest",
        "bytes per token",
        "median",
        "unigram entropy",
        "ids occur in no split",
        "longest in train: document ",
        "shortest in val: document ",
        "in train | ",
        "val document 2",
    ):
        assert words in out, words
    assert "val document 3" not in out


def test_markup_in_a_table(tmp_path: Path) -> None:
    pieces = ("\\[/nope]", "[bold]", "\\\\[red]x")
    model = spm_models.model(user_defined_symbols=pieces)
    folder = spm_models.dataset(tmp_path, ("".join(pieces) * 99, *TEXTS), model)
    table = run_here("data", "show", folder).good().out
    for piece in pieces:
        assert f"| {piece} " in table


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [(["--split", "test"], 2, "--split"), (["--tokenizer", "nothing.model"], 3, "nothing.model")],
)
def test_wrong_options(plain: Path, options: list[str], code: int, word: str) -> None:
    run_here("data", "show", plain, *options).refused(code, word)


def test_no_dataset_at_all(tmp_path: Path) -> None:
    run_here("data", "show", tmp_path).refused(3, "no dataset")


def test_shards_that_hold_less(tmp_path: Path) -> None:
    (tmp_path / "t.model").write_bytes(spm_models.model())
    write_shard(tmp_path / "fineweb_train_000000.bin", np.array([300, 301, 302], np.uint16))
    result = run_here("data", "show", tmp_path).good()
    assert "3 tokens before the first BOS belong to no document" in result.out
    assert "no manifest" in result.err


def test_json_is_the_document(plain: Path) -> None:
    result = run_here("data", "show", plain, "--json", *SHOWN).good()
    assert result.document == json.loads(json.dumps(data_show(plain, documents=2, tokens=400)))
    assert result.document["schema"] == "pgolf.data-show/1"
    assert result.err == ""


def test_plain_output_has_bars_and_acts_on_nothing(plain: Path, tokens: list[str]) -> None:
    result = run_here("data", "show", plain, *SHOWN).good()
    assert "\x1b" not in result.out
    assert "\u202e" not in result.out
    assert "|".join(tokens) in result.out.replace("\n", "")
    assert "<0xE2>|<0x80>|<0xAE>" in "|".join(tokens)
    assert "[bold]Bold[/bold] \\[/nope] [/] " in result.out
    assert len(max(result.out.splitlines(), key=len)) <= 160


def in_terminal(*argv: object, columns: int = 100, **environ: str) -> str:
    """What a command writes to a terminal of that many columns."""
    ours, theirs = pty.openpty()
    env = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    env |= {"TERM": "xterm-256color", "COLUMNS": str(columns), **environ}
    process = subprocess.Popen(command(*argv), stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    chunks = []
    while select.select([ours], [], [], 60)[0]:
        try:
            chunk = os.read(ours, 65536)
        except OSError:
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(ours)
    assert process.wait(60) == 0
    return b"".join(chunks).decode().replace("\r\n", "\n")


def without_styles(text: str) -> str:
    """Text without SGR sequences."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_terminal_gets_backgrounds_and_no_bars(plain: Path, tokens: list[str]) -> None:
    out = in_terminal("data", "show", plain, *SHOWN)
    assert "48;5;152m" in out
    assert "48;5;223m" in out
    bare = without_styles(out)
    assert "\x1b" not in bare
    assert "".join(tokens) in bare.replace("\n", "")


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_color_a_terminal_gets_bars(plain: Path, tokens: list[str], environ: dict[str, str]) -> None:
    out = in_terminal("data", "show", plain, *SHOWN, **environ)
    assert "48;5" not in out
    assert "|".join(tokens) in without_styles(out).replace("\n", "")


@pytest.mark.parametrize("columns", [20, 40, 70])
def test_a_narrow_terminal_is_enough(plain: Path, tokens: list[str], columns: int) -> None:
    out = without_styles(in_terminal("data", "show", plain, *SHOWN, columns=columns))
    body = out[out.index("val document 0") :].splitlines()[1:]
    lines = [line for line in body if line and not line.startswith("val document")]
    assert max(map(len, lines)) <= columns
    assert "".join(tokens) in "".join(lines)


def test_published_shards(shared: Path) -> None:
    result = run_here("data", "show", shared / "data" / "fineweb", "--json", "--documents", "2").good()
    val, train = result.document["splits"]["val"], result.document["splits"]["train"]
    assert (val["documents"], val["tokens"], val["charged_bytes"]) == (902, 1_040_298, 2_504_867)
    assert (train["shards"], train["tokens"]) == (2, 1_426_071)
    assert "".join(piece["piece"] for piece in result.document["shown"][0]["pieces"]).startswith(
        "Insurance\u2581Company"
    )
    assert 3.4 < train["vocabulary"]["unigram_bpb"] < 3.7
