"""The last line of a run, which says what to try next."""

from pathlib import Path
from typing import Any

import pytest

from pgolf.cli.run_cmd import show_table
from pgolf.config.load import resolve
from pgolf.stages.pipeline import StageReport


@pytest.mark.parametrize(
    ("sets", "wanted"),
    [
        (["quant.bits=6"], "--from quantize --set quant.bits=5 "),
        (["quant.bits=5"], "--from quantize --set quant.bits=4 "),
        (["quant.method=ternary"], ""),
        (["quant.steps=curvature", "quant.bits_per_weight=3"], ""),
    ],
)
def test_what_is_proposed_is_something_else_that_works(
    capsys: pytest.CaptureFixture[str], sets: list[str], wanted: str
) -> None:
    figures: dict[str, Any] = {"artifact_bytes": 1, "code_bytes": 1, "total_bytes": 2, "cap_bytes": 16_000_000}
    report = StageReport("package", 1.0, False, "submission/train_gpt.py", 1, figures)
    show_table(Path("runs/a"), [report], resolve("tiny", sets).config)
    text = capsys.readouterr().out
    assert ("Next: " in text) == bool(wanted) and wanted in text
