"""The submission folder: script, artifacts, tokenizer, logs, metadata, README; proved before it takes its name."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgolf.accounting import Size, size_on_disk
from pgolf.bundle.script import Script, build_script
from pgolf.config.run import RunConfig
from pgolf.config.tree import to_values
from pgolf.core.errors import InputError, PgolfError, RuleError
from pgolf.core.files import make_dir, read_bytes, sha256_file, storage_error, write_bytes, write_json
from pgolf.dataset import Dataset
from pgolf.stages.model_files import MAX_ARTIFACT, artifact_info
from pgolf.submission.document import schema_errors, submission_document
from pgolf.submission.entries import Entry
from pgolf.submission.imports import needed_packages, requirement_lines
from pgolf.submission.log_lines import seed_log
from pgolf.submission.proof import prove_score, prove_training
from pgolf.submission.readme import readme
from pgolf.submission.remedies import remedies


def artifact_name(entry: Entry, entries: list[Entry]) -> str:
    """model.pgz, or one file per seed."""
    return "model.pgz" if len(entries) == 1 else f"model_seed{entry.seed}.pgz"


def folder_name(records: Path, config: RunConfig, title: str, date: str, bpb: float) -> Path:
    """Where a folder of records has a submission: RECORDS/track_TRACK/DATE_Title_BPB, in ASCII without spaces."""
    words = re.findall(r"[A-Za-z0-9.]+", title) or ["pgolf"]
    name = "_".join(word[:1].upper() + word[1:] for word in words)[:80]
    return records / f"track_{config.package.track}" / f"{date}_{name}_{bpb:.4f}"


def check_size(entries: list[Entry], script: Script, cap: int) -> Size:
    """The largest artifact with the script. RuleError with the excess and remedies when that is over the cap."""
    size = size_on_disk((entry.artifact for entry in entries), len(script.packed), cap)
    if size.headroom_bytes < 0:
        raise RuleError(
            f"the submission has {size.total_bytes:,} bytes (artifact {size.artifact_bytes:,}, "
            f"code {size.code_bytes:,}), {-size.headroom_bytes:,} over the cap of {cap:,}",
            str(entries[0].artifact),
            remedies(max((entry.artifact for entry in entries), key=lambda path: path.stat().st_size), size),
        )
    return size


def proofs_of(part: Path, entries: list[Entry], config: RunConfig, dataset: Dataset) -> dict[str, Any]:
    """Seed -> how the script alone scores its artifact; `training`: that it trains as pgolf does, or why that was not
    tried.
    """
    if not config.package.prove:
        return {}
    found: dict[str, Any] = {
        str(entry.seed): prove_score(part, entry, artifact_name(entry, entries), dataset) for entry in entries
    }
    if not config.package.prove_steps:
        found["training"] = "package.prove_steps is 0"
    elif not dataset.shards["train"]:
        found["training"] = "the dataset has no training shards"
    else:
        found["training"] = prove_training(config, dataset, str(entries[0].score["device"]))
    return found


def build_folder(
    entries: list[Entry],
    config: RunConfig,
    title: str,
    dataset: Dataset,
    out: Path,
    force: bool,
    seal: Callable[[Path, dict[str, Any]], None],
) -> dict[str, Any]:
    """Write the whole folder beside its final place, prove it, `seal` it with its manifest, then move it there; returns
    submission.json.

    InputError when `out` exists and `force` is not set; RuleError over the cap or when a proof fails.
    """
    if out.exists() and not force:
        raise InputError("the folder exists already", str(out), "choose another --out, or replace it with --force")
    script = build_script(config, artifact_info(config, dataset.tokenizer_sha256).decode())
    size = check_size(entries, script, config.package.cap_bytes)
    make_dir(out.parent)
    part = out.parent / f".{out.name}.{os.getpid()}.part"
    requirements = "".join(f"{line}\n" for line in requirement_lines(needed_packages(script.packed, "train_gpt.py")))
    try:
        make_dir(part)
        write_bytes(part / "train_gpt.py", script.packed)
        write_bytes(part / "train_gpt_readable.py", script.readable.encode())
        write_bytes(part / "tokenizer.model", dataset.tokenizer_bytes)
        write_bytes(part / "requirements.txt", requirements.encode())
        for entry in entries:
            write_bytes(part / artifact_name(entry, entries), read_bytes(entry.artifact, MAX_ARTIFACT))
            write_bytes(
                part / f"train_seed{entry.seed}.log",
                seed_log(entry, size, config, sha256_file(part / "train_gpt.py")),
            )
        written = [part / artifact_name(entry, entries) for entry in entries]
        if size_on_disk(written, (part / "train_gpt.py").stat().st_size, size.cap_bytes) != size:
            raise PgolfError("the files of the folder have other sizes than were counted", "package")
        proofs = proofs_of(part, entries, config, dataset)
        write_json(part / "config.json", to_values(config))
        document = submission_document(entries, size, config, title, proofs) | {"files": list_files(part)}
        if wrong := schema_errors(document):
            raise PgolfError(f"submission.json is not as its schema has it: {wrong[0]}", "package")
        write_json(part / "submission.json", document)
        page = readme(document, entries, config, artifact_name(entries[0], entries), requirements)
        write_bytes(part / "README.md", page.encode())
        seal(part, document)
        replace_dir(part, out)
    except OSError as error:
        raise storage_error(error, out, "writing") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return document


def list_files(folder: Path) -> dict[str, Any]:
    """Bytes and SHA-256 of every file so far."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in sorted(folder.iterdir())}


def replace_dir(new: Path, final: Path) -> None:
    """Move a finished directory to its place; an old one steps aside first and is removed last."""
    old = final.parent / f".{final.name}.{os.getpid()}.old"
    if final.exists():
        os.replace(final, old)
    os.replace(new, final)
    shutil.rmtree(old, ignore_errors=True)
