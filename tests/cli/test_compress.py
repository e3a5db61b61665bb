"""compress by methods that no script carries, size of any folder, inspect and report of an artifact."""

import json
import shutil
import stat
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

PROGRAM = f"""#!{sys.executable}
import pathlib, sys, zlib
if "-d" in sys.argv:
    pathlib.Path("back").write_bytes(zlib.decompress(pathlib.Path("coded.zpaq").read_bytes()))
else:
    pathlib.Path("coded.zpaq").write_bytes(zlib.compress(pathlib.Path("raw").read_bytes()))
"""


@pytest.fixture
def lrzip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of ours under that name."""
    path = tmp_path / "bin" / "lrzip"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(path.parent))


def compressed(pgolf: Any, run: Path, out: Path, *sets: str) -> dict[str, Any]:
    """The document of pgolf compress."""
    words = [word for text in sets for word in ("--set", text)]
    found: dict[str, Any] = (
        pgolf("compress", run / "quantize" / "quantized.safetensors", "--out", out, "--quiet", "--json", *words)
        .good()
        .document
    )
    return found


def test_the_per_group_pipeline_stays_at_home(pgolf: Any, tiny_run: Path, tmp_path: Path, lrzip: None) -> None:
    artifact, back = tmp_path / "per" / "model.pgz", tmp_path / "back.safetensors"
    source = tiny_run / "quantize" / "quantized.safetensors"
    words = ["compress", source, "--out", artifact, "--json", "--set", "compress.method=pergroup"]
    result = pgolf(*words).good()
    assert result.document["method"] == "pergroup"
    assert result.document["artifact_bytes"] == artifact.stat().st_size
    assert "no script carries compress.method=pergroup" in result.err
    pgolf("eval", artifact, "--data", tiny_run / "data", "--quiet").refused(5, "lrzip", "--run-programs")
    pgolf("import", artifact, "--out", back, "--quiet").refused(5, "lrzip", "--run-programs")
    assert not back.exists()
    found = pgolf("import", artifact, "--out", back, "--run-programs", "--json").good().document
    quantized = json.loads(pgolf("inspect", tiny_run / "quantize" / "quantized.safetensors", "--json").out)
    assert found["sha256"] and found["parameters"] == quantized["parameters"]
    tensors = json.loads(pgolf("inspect", back, "--json").out)["tensors"]
    told = {row["tensor"]: row for row in quantized["tensors"]}
    assert {row["tensor"]: row for row in tensors} == {
        row["tensor"]: {key: told[row["tensor"]][key] for key in row} for row in tensors
    }
    assert len(told) == len(tensors)
    line = pgolf("package-submission", artifact, "--out", tmp_path / "sub", "--data", tiny_run / "data", "--quiet")
    line.refused(5, "lrzip")


def test_a_method_that_no_script_carries_cannot_be_packaged(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    artifact = run / "compress" / "model.pgz"
    compressed(pgolf, run, artifact, "compress.method=packed")
    words = ["package-submission", artifact, "--out", tmp_path / "sub", "--data", run / "data", "--quiet"]
    pgolf(*words).refused(4, "no script carries compress.method=packed", "rans")
    assert not (tmp_path / "sub").exists()


def test_a_missing_program_ends_with_5(pgolf: Any, tiny_run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    source, out = tiny_run / "quantize" / "quantized.safetensors", tmp_path / "m.pgz"
    words = ["compress", source, "--out", out, "--quiet", "--set", "compress.method=lrzip"]
    pgolf(*words).refused(5, "the program lrzip is not installed", "compress.method=rans")
    assert not out.exists()


def test_permuted_artifacts_score_alike(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    plain, sorted_ = tmp_path / "a" / "model.pgz", tmp_path / "b" / "model.pgz"
    first = compressed(pgolf, tiny_run, plain, "compress.method=rans")
    second = compressed(pgolf, tiny_run, sorted_, "compress.method=rans", "compress.permute=true")
    assert second["artifact_bytes"] <= first["artifact_bytes"]
    scores = [
        pgolf("eval", path, "--data", tiny_run / "data", "--quiet", "--json").good().document["score"]["bpb"]
        for path in (plain, sorted_)
    ]
    assert abs(scores[0] - scores[1]) < 1e-5


def test_inspect_goes_by_content_not_by_name(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    """Every command writes to whatever name it is given, so inspect reads it under that."""
    for place, kind in (
        ("train/checkpoint.safetensors", "checkpoint"),
        ("quantize/quantized.safetensors", "quantized"),
        ("compress/model.pgz", "artifact"),
    ):
        renamed = Path(shutil.copy(tiny_run / place, tmp_path / f"{kind}.x"))
        assert pgolf("inspect", renamed, "--json").good().document["kind"] == kind
    kept = Path(shutil.copy(tiny_run / "quantize" / "hessians.safetensors", tmp_path / "kept"))
    assert pgolf("inspect", kept, "--json").good().document["kind"] == "pgolf.hessians/2"
    (tmp_path / "a.txt").write_text("{}" * 9)
    pgolf("inspect", tmp_path / "a.txt").refused(3, ".txt is nothing pgolf writes")
    pgolf("inspect", tiny_run).refused(3, "the folder itself has neither manifest.json nor token shards", "pgolf plot")


def test_inspect_and_report_tell_where_the_bytes_are(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    artifact, out = tiny_run / "compress" / "model.pgz", tmp_path / "report.html"
    document = pgolf("inspect", artifact, "--json").good().document
    sections = document["sections"]
    header = 16 + 14 * len(sections)
    assert sum(row["stored_bytes"] for row in sections) + header == document["bytes"] == artifact.stat().st_size
    for row in sections:
        assert row["share_percent"] == pytest.approx(100 * row["stored_bytes"] / document["bytes"])
    codes = next(row for row in sections if row["section"] == "codes of mlp")
    assert codes["bits_per_value"] == pytest.approx(8 * codes["stored_bytes"] / codes["raw_bytes"])
    assert codes["method"] == "brotli"
    found = pgolf("report", tiny_run, "--out", out, "--json").good().document
    assert f"The artifact's {document['bytes']:,} bytes" in found["sections"]
    html = out.read_text()
    assert "<svg" in html and "codes of mlp" in html and f"{codes['stored_bytes']:,}" in html
    assert "tok_emb" in html and "http" not in html


def folder(tmp_path: Path, **files: int | str) -> Path:
    """A folder of files with so many bytes, or with that text."""
    place = tmp_path / "theirs"
    place.mkdir(parents=True)
    for name, content in files.items():
        path = place / name.replace("__", ".")
        path.write_bytes(content.encode() if isinstance(content, str) else bytes(content))
    return place


def test_size_says_what_counts_in_any_folder(pgolf: Any, tmp_path: Path) -> None:
    script = "import aside\nfrom deeper import x\nimport torch\n"
    place = folder(
        tmp_path,
        train_gpt__py=script,
        aside__py="import more\n",
        more__py="x = 1\n",
        prepare__py="import aside\n",
        train_gpt_human__py="y = 2\n",
        seed1__ptz=500,
        seed2__ptz=700,
        final__pt=9000,
        fineweb__model=99,
        README__md="hi",
    )
    (place / "deeper").mkdir()
    (place / "deeper" / "part.py").write_text("z = 3\n")
    (place / "train.log").write_text("Total submission size int8+zlib: 16,000,001 bytes\n")
    (place / "fineweb_val_000000.bin").write_bytes((20240520).to_bytes(4, "little") + bytes(2000))
    document = pgolf("size", place, "--json").good().document
    counts = {row["file"]: row["counts_as"] for row in document["files"]}
    code = {name for name, kind in counts.items() if kind == "code"}
    assert code == {"train_gpt.py", "aside.py", "more.py", "deeper/part.py"}
    assert {name for name, kind in counts.items() if kind == "model"} == {"seed1.ptz", "seed2.ptz"}
    assert document["artifact_bytes"] == 700
    assert document["code_bytes"] == sum((place / name).stat().st_size for name in code)
    assert all(row["why"] for row in document["files"])
    text = " ".join(document["doubts"])
    assert "2 models" in text and "train.log states 16,000,001 bytes" in text
    assert "counts if an evaluation runs it" in pgolf("size", place).good().out


@pytest.mark.parametrize(("spare", "code"), [(1, 0), (0, 0), (-1, 4)])
@pytest.mark.fault(row="F23")
def test_the_cap_is_exact_and_decimal(pgolf: Any, tmp_path: Path, spare: int, code: int) -> None:
    place = folder(tmp_path, train_gpt__py="x = 1\n", model__ptz=16_000_000 - 6 - spare)
    result = pgolf("size", place, "--json")
    assert result.code == code and result.document["headroom_bytes"] == spare
    assert result.document["total_bytes"] == sum(path.stat().st_size for path in place.iterdir())
    assert any("MiB, but the cap is decimal" in text for text in result.document["doubts"]) == (spare < 0)
    assert pgolf("size", place, "--set", "package.cap_bytes=17000000").code == 0


def test_a_packed_script_is_looked_into(pgolf: Any, tiny_run: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(tiny_run / "submission", tmp_path / "sub"))
    (place / "brotli.py").write_text("x = 1\n")
    rows = {row["file"]: row for row in pgolf("size", place, "--json").good().document["files"]}
    assert rows["brotli.py"]["counts_as"] == "code" and rows["train_gpt_readable.py"]["counts_as"] == "-"


def test_without_a_script_all_code_counts(pgolf: Any, tmp_path: Path) -> None:
    place = folder(tmp_path, run__py="x = 1\n", other__py="yy = 2\n")
    document = pgolf("size", place, "--json").good().document
    assert document["code_bytes"] == 13 and any("no model" in text for text in document["doubts"])
    assert not any("no script" in text for text in document["doubts"])
    alone = pgolf("size", folder(tmp_path / "alone", model__ptz=700) / "model.ptz")
    assert "Note: there is no script in it: only the model is counted" in alone.good().out
    with zipfile.ZipFile(tmp_path / "train_gpt.py", "w") as file:
        file.writestr("__main__.py", "import other\n")
    single = pgolf("size", tmp_path / "train_gpt.py", "--json").good().document
    assert single["code_bytes"] == (tmp_path / "train_gpt.py").stat().st_size
