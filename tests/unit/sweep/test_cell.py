"""A cell never raises: whatever goes wrong becomes a result with the exit code that the command line would end with."""

import errno
from pathlib import Path
from typing import Any

import pytest

from pgolf.core.errors import InputError
from pgolf.stages.signals import Interrupted
from pgolf.sweep import cell


@pytest.mark.parametrize(
    ("error", "code", "kind", "words"),
    [
        (InputError("it is torn", "a file"), 3, "InputError", "it is torn"),
        (ModuleNotFoundError("no brotli", name="brotli"), 5, "SetupError", "package brotli is missing"),
        (OSError(errno.ENOSPC, "No space left on device"), 6, "StorageError", "no space left"),
        (ZeroDivisionError("by nothing"), 1, "PgolfError", "a bug in pgolf: by nothing"),
        (AssertionError(), 1, "PgolfError", "a bug in pgolf: AssertionError"),
    ],
)
def test_an_error_becomes_a_result(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    kind: str,
    words: str,
) -> None:
    def broken(task: dict[str, Any], console: object) -> Any:
        raise error

    monkeypatch.setitem(cell.CELLS, "compress", broken)
    result = cell.run_cell({"sweep": "compress", "folder": str(tmp_path), "threads": 0, "device": "cpu"})
    assert result["state"] == "failed"
    assert (result["error"]["code"], result["error"]["kind"]) == (code, kind)
    assert words in result["error"]["what"]
    assert ("Traceback" in capsys.readouterr().err) is (code == 1), "the log has the traceback of a bug, and only that"


def test_a_signal_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(task: dict[str, Any], console: object) -> Any:
        raise Interrupted(15)

    monkeypatch.setitem(cell.CELLS, "compress", ended)
    with pytest.raises(Interrupted):
        cell.run_cell({"sweep": "compress", "folder": str(tmp_path), "threads": 0, "device": "cpu"})
