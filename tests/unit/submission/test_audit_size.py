"""What counts in a folder: the script and all it imports, the largest model, and nothing twice."""

import base64
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgolf.core.errors import InputError
from pgolf.core.shards import write_shard
from pgolf.submission.audit_size import folder_size

MODEL = bytes(1000)


def folder_of(path: Path, **files: bytes | str) -> Path:
    """A folder of files; in their names __ stands for a dot and ___ for a slash."""
    for name, content in files.items():
        place = path / name.replace("___", "/").replace("__", ".")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def counted(document: dict[str, Any]) -> dict[str, str]:
    """File -> what it counts as."""
    return {row["file"]: row["counts_as"] for row in document["files"]}


def why(document: dict[str, Any], name: str) -> str:
    """Why a file counts as it does."""
    (found,) = [row["why"] for row in document["files"] if row["file"] == name]
    return str(found)


def test_the_script_and_what_it_imports_is_code(tmp_path: Path) -> None:
    sources = {
        "train_gpt__py": "import first.sub as one, os\nfrom second import thing\n",
        "first__py": "from . import third\n",
        "second___kernel__py": "import fourth\n",
        "second___deep___more__py": "",
        "third__py": "from .fifth import x\n",
        "fourth__py": "import train_gpt, first\n",
        "fifth__py": "x = 1\n",
    }
    aside = {"unused__py": "pass\n", "thing2__py": "", "train_gpt_readable__py": "y = 2\n", "notes__md": "import first"}
    document = folder_size(folder_of(tmp_path, **sources, **aside, model__pgz=MODEL))
    names = [name.replace("___", "/").replace("__", ".") for name in sources]
    assert counted(document) == {
        **dict.fromkeys(names, "code"),
        **dict.fromkeys(("unused.py", "thing2.py", "train_gpt_readable.py", "notes.md"), "-"),
        "model.pgz": "model",
    }
    assert document["code_bytes"] == sum(map(len, sources.values()))
    assert document["artifact_bytes"] == 1000
    assert document["total_bytes"] == document["code_bytes"] + 1000
    assert why(document, "train_gpt.py") == "the script" and "imported" in why(document, "fifth.py")
    assert "counts if" in why(document, "unused.py") and "readable" in why(document, "train_gpt_readable.py")
    assert document["doubts"] == []


def test_a_packed_script_imports_what_is_packed_in_it(tmp_path: Path) -> None:
    source = "import helper\n" + "x = 1\n" * 100 + "".join(f"a{n} = {n * 7919}\n" for n in range(300))
    packed = base64.b85encode(zlib.compress(source.encode())).decode()
    script = f"import base64, zlib\nexec(zlib.decompress(base64.b85decode({packed!r})))\n"
    document = folder_size(folder_of(tmp_path, train_gpt__py=script, helper__py="pass\n", other__py="", m__bin=MODEL))
    assert counted(document) == {"train_gpt.py": "code", "helper.py": "code", "other.py": "-", "m.bin": "model"}


def test_without_a_script_all_code_counts(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, a__py="pass\n", b__py="import c\n", train_gpt_human__py="", model__xz=MODEL)
    document = folder_size(folder)
    assert counted(document) == {"a.py": "code", "b.py": "code", "model.xz": "model", "train_gpt_human.py": "-"}
    assert document["code_bytes"] == 5 + 9 and "no train_gpt.py" in why(document, "a.py")


def test_weights_count_as_they_are_unless_a_compressed_model_is_beside_them(tmp_path: Path) -> None:
    write_shard(tmp_path / "some_val_000000.bin", np.arange(50))
    folder = folder_of(tmp_path, train_gpt__py="pass", final__pt=bytes(3000), tok__model=b"t", tok__vocab=b"t")
    document = folder_size(folder)
    assert counted(document) == {
        "final.pt": "model",
        "some_val_000000.bin": "-",
        "tok.model": "-",
        "tok.vocab": "-",
        "train_gpt.py": "code",
    }
    assert "shard" in why(document, "some_val_000000.bin") and "tokenizer" in why(document, "tok.vocab")
    assert document["artifact_bytes"] == 3000
    document = folder_size(folder_of(folder, model__ptz=MODEL))
    assert counted(document) | {"final.pt": "-", "model.ptz": "model"} == counted(document)
    assert document["artifact_bytes"] == 1000 and document["doubts"] == []


def test_of_several_models_the_largest_counts(tmp_path: Path) -> None:
    files = {"model_seed1__pgz": MODEL, "model_seed2__pgz": bytes(1100)}
    document = folder_size(folder_of(tmp_path, train_gpt__py="pass", **files))
    assert [document[key] for key in ("artifact_bytes", "code_bytes", "total_bytes")] == [1100, 4, 1104]
    assert document["headroom_bytes"] == 16_000_000 - 1104
    assert [doubt.split(",")[0] for doubt in document["doubts"]] == ["2 models"]


def test_code_alone_is_doubted(tmp_path: Path) -> None:
    document = folder_size(folder_of(tmp_path, train_gpt__py="pass", tok__model=b"t"))
    assert document["artifact_bytes"] == 0 and document["doubts"] == ["there is no model in it: only code is counted"]


@pytest.mark.parametrize(("size", "doubted"), [(1000, False), (1001, True), (1048, True), (1049, False)])
def test_a_size_under_the_cap_in_mebibytes_alone_is_doubted(tmp_path: Path, size: int, doubted: bool) -> None:
    document = folder_size(folder_of(tmp_path, train_gpt__py="pass", model__br=bytes(size - 4)), 1000)
    assert document["headroom_bytes"] == 1000 - size
    assert any("decimal" in doubt for doubt in document["doubts"]) == doubted


@pytest.mark.parametrize(
    ("stated", "cap", "doubted"),
    [("1,004", 2000, False), ("900", 2000, False), ("1005", 2000, True), ("1,004", 1003, True)],
)
def test_the_last_size_a_log_states_is_compared(tmp_path: Path, stated: str, cap: int, doubted: bool) -> None:
    log = f"Total submission size int8+zlib: 77,777 bytes\nTotal submission size: {stated} bytes\n"
    document = folder_size(folder_of(tmp_path, train_gpt__py="pass", model__zst=MODEL, train__log=log), cap)
    assert any("train.log states" in doubt for doubt in document["doubts"]) == doubted


def test_one_file_is_judged_alone_and_an_empty_folder_refused(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "full", model__lzma=MODEL, train_gpt__py="pass") / "model.lzma"
    document = folder_size(model)
    assert counted(document) == {"model.lzma": "model"} and document["total_bytes"] == 1000
    (tmp_path / "empty" / "within").mkdir(parents=True)
    with pytest.raises(InputError, match="empty"):
        folder_size(tmp_path / "empty")
