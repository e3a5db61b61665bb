"""The submission folder: script, artifacts, tokenizer, logs, metadata, README; proved before it takes its name."""

import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.accounting import Size, size_on_disk
from pgolf.audit.report import spoken
from pgolf.bundle.script import Script, build_script
from pgolf.catalog import name_of
from pgolf.config.run import RunConfig
from pgolf.config.tree import flatten, to_values
from pgolf.core.errors import InputError, RuleError
from pgolf.core.files import make_dir, parse_json, sha256_file, storage_error, write_bytes, write_json
from pgolf.core.shards import list_shards, list_sidecars
from pgolf.dataset import Dataset
from pgolf.stages.manifest import package_versions
from pgolf.stages.model_files import artifact_info

SUBMISSION_SCHEMA = "pgolf.submission/1"


@dataclass(frozen=True)
class Entry:
    """One seed's artifact with its score document, training figures and training log."""

    artifact: Path
    seed: int
    score: dict[str, Any]
    train: dict[str, Any]
    log: Path | None


def artifact_name(entry: Entry, entries: list[Entry]) -> str:
    """model.pgz, or one file per seed."""
    return "model.pgz" if len(entries) == 1 else f"model_seed{entry.seed}.pgz"


def check_size(entries: list[Entry], script: Script, cap: int) -> Size:
    """The largest artifact with the script. RuleError with the excess and remedies when that is over the cap."""
    size = size_on_disk((entry.artifact for entry in entries), len(script.packed), cap)
    if size.headroom_bytes < 0:
        raise RuleError(
            f"the submission has {size.total_bytes:,} bytes (artifact {size.artifact_bytes:,}, "
            f"code {size.code_bytes:,}), {-size.headroom_bytes:,} over the cap of {cap:,}",
            str(entries[0].artifact),
            "quantize with a lower quant.bits or a larger quant.k, or compress with compress.method=brotli",
        )
    return size


def command(script: str, entry_name: str, data: str) -> list[str]:
    """How the script scores an artifact."""
    return [script, "--artifact", entry_name, "--tokenizer", "tokenizer.model", "--data", data]


def prove(folder: Path, entry: Entry, name: str, dataset: Dataset) -> dict[str, Any]:
    """Score one artifact with the script alone: an empty directory, an isolated interpreter, no pgolf.

    RuleError unless the sums equal the claimed score: bit for bit on a CPU, 1e-5 nats per token on a GPU.
    """
    claimed, device = entry.score["score"], str(entry.score["device"])
    with tempfile.TemporaryDirectory(prefix="pgolf-proof-") as place:
        room = Path(place)
        for file in ("train_gpt.py", "tokenizer.model", name):
            shutil.copy(folder / file, room / file)
        make_dir(room / "data")
        source = dataset.shards["val"][0].parent
        for path in (*list_shards(source, "val"), *list_sidecars(source)):
            os.symlink(path.resolve(), room / "data" / path.name)
        argv = [sys.executable, "-I", *command("train_gpt.py", name, "data"), "--device", device.split(":")[0]]
        run = subprocess.run(argv, cwd=room, capture_output=True, text=True)
    if run.returncode:
        reason = (run.stderr.strip() or run.stdout.strip() or "no message").splitlines()[-1]
        raise RuleError(f"the script fails alone in an empty directory: {reason}", "proof", "please report this")
    found = parse_json(run.stdout.strip().splitlines()[-1], "output of the script")["score"]
    slack = 1e-5 * claimed["tokens"] if device.startswith("cuda") else 0.0
    if abs(found["nats"] - claimed["nats"]) > slack or (found["tokens"], found["bytes"]) != (
        claimed["tokens"],
        claimed["bytes"],
    ):
        raise RuleError(
            f"the script scores {found['bpb']!r} BPB, the claim is {claimed['bpb']!r}",
            "proof",
            "score the artifact again on this machine and package anew",
        )
    return {"bpb": found["bpb"], "identical": found == claimed, "isolated": True}


def submission_document(
    entries: list[Entry], size: Size, config: RunConfig, title: str, proofs: dict[str, Any]
) -> dict[str, Any]:
    """submission.json: the challenge's fields, and exact sizes."""
    scores = [entry.score["score"] for entry in entries]
    losses, bpbs = [score["val_loss"] for score in scores], [score["bpb"] for score in scores]
    spread = len(entries) > 1
    options = config.package
    sizes = [entry.artifact.stat().st_size + size.code_bytes for entry in entries]
    return {
        "schema": SUBMISSION_SCHEMA,
        "author": options.author,
        "github_id": options.github_id,
        "name": title,
        "blurb": options.blurb,
        "date": str(entries[0].score.get("date", ""))[:10],
        "track": options.track,
        "val_loss": statistics.fmean(losses),
        "val_bpb": statistics.fmean(bpbs),
        "val_loss_std": statistics.stdev(losses) if spread else None,
        "val_bpb_std": statistics.stdev(bpbs) if spread else None,
        "bytes_per_token": scores[0]["bytes"] / scores[0]["tokens"],
        "seeds": [entry.seed for entry in entries],
        "seed_results": {
            str(entry.seed): {
                "val_bpb": entry.score["score"]["bpb"],
                "val_loss": entry.score["score"]["val_loss"],
                "artifact_bytes": entry.artifact.stat().st_size + size.code_bytes,
                "steps": entry.train.get("steps"),
                "train_time_s": entry.train.get("train_seconds"),
                "eval_time_s": entry.score["seconds"]["score"],
            }
            for entry in entries
        },
        "bytes_total": size.total_bytes,
        "bytes_code": size.code_bytes,
        "bytes_model_max": size.artifact_bytes,
        "artifact_bytes_mean": math.ceil(statistics.fmean(sizes)),
        "artifact_bytes_max": max(sizes),
        **size.document(),
        "scored_by": entries[0].score["method"],
        "audit": entries[0].score.get("audit", "unaudited"),
        "proof": proofs,
        "versions": package_versions(),
        "hardware": entries[0].score.get("hardware"),
    }


def readme(document: dict[str, Any], entries: list[Entry], config: RunConfig) -> str:
    """README.md of the folder."""
    name = artifact_name(entries[0], entries)
    size = Size(document["artifact_bytes"], document["code_bytes"], document["cap_bytes"])
    rows = "".join(
        f"| {seed} | {result['val_bpb']:.8f} | {result['val_loss']:.8f} | {result['artifact_bytes']:,} "
        f"| {result['steps']} | {result['train_time_s']} |\n"
        for seed, result in document["seed_results"].items()
    )
    settings = "".join(f"| `{key}` | `{value}` |\n" for key, value in sorted(flatten(to_values(config.recipe)).items()))
    remarks = "".join(f"\nSeed {entry.seed}: {note}.\n" for entry in entries for note in entry.train.get("notes", []))
    proof = (
        "equal bit for bit"
        if all(p.get("identical") for p in document["proof"].values()) and document["proof"]
        else "not proved in this folder"
    )
    return f"""# {document["name"]}: {document["val_bpb"]:.4f} BPB

{document["blurb"]}

| seed | val_bpb | val_loss (nats per token) | bytes (code + model) | steps | training seconds |
| --- | --- | --- | --- | --- | --- |
{rows}{remarks}
Size: {size.line()}.

## Run it

Train, quantize, compress and score, with the challenge's data in `./data`:

    torchrun --standalone --nproc_per_node=8 train_gpt.py

Score the artifact of this folder; `DATA` is a directory with the validation shards:

    python -I {" ".join(command("train_gpt.py", name, "DATA"))}

`train_gpt.py` is packed; `train_gpt_readable.py` is the same program to read, and is not counted.

## Checks

- Script alone in an empty directory under `python -I`: score {proof}.
- Legality audit: {spoken(document["audit"])}.
- Every target was scored exactly once; the validation split gives {document["bytes_per_token"]:.6f} bytes per token.

## Configuration

| key | value |
| --- | --- |
{settings}"""


def requirements(config: RunConfig) -> str:
    """What the script imports beyond the standard library, with the versions it was proved with."""
    versions = package_versions()
    needed = ["torch", "numpy", "sentencepiece"]
    needed += {"brotli": ["brotli"], "zstd": ["zstandard"]}.get(name_of("Codec", type(config.compress)), [])
    return "".join(f"{name}=={versions[name].partition('+')[0]}\n" for name in needed)


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

    InputError when `out` exists and `force` is not set; RuleError over the cap or when the proof fails.
    """
    if out.exists() and not force:
        raise InputError("the folder exists already", str(out), "choose another --out, or replace it with --force")
    tokenizer_sha = dataset.tokenizer_sha256
    script = build_script(config, artifact_info(config, tokenizer_sha).decode())
    size = check_size(entries, script, config.package.cap_bytes)
    make_dir(out.parent)
    part = out.parent / f".{out.name}.{os.getpid()}.part"
    try:
        make_dir(part)
        write_bytes(part / "train_gpt.py", script.packed)
        write_bytes(part / "train_gpt_readable.py", script.readable.encode())
        write_bytes(part / "tokenizer.model", dataset.tokenizer_bytes)
        write_bytes(part / "requirements.txt", requirements(config).encode())
        proofs = {}
        for entry in entries:
            name = artifact_name(entry, entries)
            write_bytes(part / name, entry.artifact.read_bytes())
            write_bytes(part / f"train_seed{entry.seed}.log", seed_log(entry, size))
            if config.package.prove:
                proofs[str(entry.seed)] = prove(part, entry, name, dataset)
        write_json(part / "config.json", to_values(config))
        document = submission_document(entries, size, config, title, proofs) | {"files": list_files(part)}
        write_json(part / "submission.json", document)
        write_bytes(part / "README.md", readme(document, entries, config).encode())
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


def seed_log(entry: Entry, size: Size) -> bytes:
    """The training log with the lines that reviewers grep for after it."""
    text = entry.log.read_text(encoding="utf-8") if entry.log else "no training log was found beside the artifact\n"
    score, artifact = entry.score["score"], entry.artifact.stat().st_size
    total = artifact + size.code_bytes
    name = entry.score["method"]["name"]
    lines = [
        f"Serialized model: {artifact} bytes",
        f"Code size: {size.code_bytes} bytes",
        f"Total submission size: {total} bytes",
        f"artifact: code={size.code_bytes} model={artifact} total={total} cap={size.cap_bytes} "
        f"margin={size.cap_bytes - total:+d}",
        f"sha256 model={entry.score['model']['sha256']}",
        f"val_tokens: {score['tokens']}",
        f"bytes_per_token:{score['bytes'] / score['tokens']:.6f}",
        f"quantized_{name} val_loss:{score['val_loss']:.8f} val_bpb:{score['bpb']:.8f} "
        f"eval_time:{1000 * entry.score['seconds']['score']:.0f}ms",
    ]
    return (text + "\n".join(lines) + "\n").encode()


def replace_dir(new: Path, final: Path) -> None:
    """Move a finished directory to its place; an old one steps aside first and is removed last."""
    old = final.parent / f".{final.name}.{os.getpid()}.old"
    if final.exists():
        os.replace(final, old)
    os.replace(new, final)
    shutil.rmtree(old, ignore_errors=True)
