"""Tables on terminals of all widths."""

import io

import pytest

from pgolf.cli.output import table


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [1, 20, 40, 60, 200])
@pytest.mark.fault(row="F28")
def test_figures_are_never_broken(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """A figure cut in two reads as another; words go on in the next line."""
    stream = Terminal()
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", stream)
    figures = ["2,573,875", "1.92752", "0.0020 ± 0.0001", "18.4"]
    table(
        "",
        ["cell", "bytes", "BPB", "loss", "seconds", "what"],
        [["16e06a31596d", *figures, "words " * 9]],
        (1, 2, 3, 4),
    )
    lines = stream.getvalue().splitlines()
    for word in " ".join(figures).split():
        assert any(word in line.split() for line in lines), stream.getvalue()
    assert columns < 200 or len([line for line in lines if line.strip()]) == 3
