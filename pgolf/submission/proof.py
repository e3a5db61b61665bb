"""Proofs of a submission's script, made before the folder takes its name: alone in an empty directory, under an
isolated interpreter and, where the machine allows it, without a network, it scores and trains as pgolf does.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pgolf.audit.program import ALONE, can_isolate
from pgolf.bundle.script import build_script
from pgolf.config.load import resolve
from pgolf.config.run import RunConfig
from pgolf.config.tree import flatten, to_values
from pgolf.core.errors import RuleError
from pgolf.core.files import make_dir, parse_json, read_bytes, sha256_file, write_bytes
from pgolf.core.shards import list_shards, list_sidecars
from pgolf.dataset import Dataset
from pgolf.report.console import Console
from pgolf.stages.model_files import MAX_ARTIFACT, artifact_info
from pgolf.submission.entries import Entry
from pgolf.submission.log_lines import MAX_LOG

SLACK_NATS = 1e-5
"""How far scores on a GPU may differ, per token; on a CPU they are equal bit for bit."""
SLACK_LOSS = 1e-3
"""How far logged losses of a training on a GPU may differ, a share; on a CPU the artifacts are equal bit for bit."""
STEP = re.compile(r"^(\d+)/\d+ train_loss: (\S+)", re.MULTILINE)
SMALL = ("calibration_seqs", "calibration_batch")
"""Keys of quantizers that are small in the short training."""


def command(script: str, artifact: str, data: str) -> list[str]:
    """How the script scores an artifact."""
    return [script, "--artifact", artifact, "--tokenizer", "tokenizer.model", "--data", data]


@contextmanager
def empty_room(files: dict[str, bytes], dataset: Dataset, splits: Sequence[str]) -> Iterator[Path]:
    """A directory with these files and the dataset's shards, and nothing else; it goes afterwards."""
    with tempfile.TemporaryDirectory(prefix="pgolf-proof-") as place:
        room = Path(place)
        for name, content in files.items():
            write_bytes(room / name, content)
        make_dir(room / "data")
        source = dataset.shards["val"][0].parent
        shards = [path for split in splits for path in list_shards(source, split)]
        for path in (*shards, *list_sidecars(source)):
            os.symlink(path.resolve(), room / "data" / path.name)
        yield room


def run_alone(room: Path, argv: list[str], device: str) -> str:
    """What the script prints. RuleError with the last thing it said if it fails."""
    line = [*(ALONE if can_isolate() else ()), sys.executable, "-I", *argv, "--device", device.split(":")[0]]
    run = subprocess.run(line, cwd=room, capture_output=True, text=True, errors="replace")
    if run.returncode:
        reason = (run.stderr.strip() or run.stdout.strip() or "no message").splitlines()[-1]
        raise RuleError(f"the script fails alone in an empty directory: {reason}", "proof", "please report this")
    return run.stdout


def last_document(text: str) -> dict[str, Any]:
    """The JSON document that a script prints last."""
    return dict(parse_json(text.strip().splitlines()[-1], "output of the script"))


def prove_score(folder: Path, entry: Entry, name: str, dataset: Dataset) -> dict[str, Any]:
    """Score one artifact with the script of the folder alone.

    RuleError unless the sums equal the claimed score: bit for bit on a CPU, 1e-5 nats per token on a GPU.
    """
    claimed, device = entry.score["score"], str(entry.score["device"])
    files = {file: read_bytes(folder / file, MAX_ARTIFACT) for file in ("train_gpt.py", "tokenizer.model", name)}
    with empty_room(files, dataset, ("val",)) as room:
        found = last_document(run_alone(room, command("train_gpt.py", name, "data"), device))["score"]
    slack = SLACK_NATS * claimed["tokens"] if device.startswith("cuda") else 0.0
    if abs(found["nats"] - claimed["nats"]) > slack or (found["tokens"], found["bytes"]) != (
        claimed["tokens"],
        claimed["bytes"],
    ):
        raise RuleError(
            f"the script scores {found['bpb']!r} BPB, the claim is {claimed['bpb']!r}",
            "proof",
            "score the artifact again on this machine and package anew",
        )
    return {"bpb": found["bpb"], "identical": found == claimed, "isolated": True, "network": not can_isolate()}


def shortened(config: RunConfig) -> RunConfig:
    """The configuration with a few steps of one row, and little to calibrate with and to score."""
    rows, claim = config.train.seq_len, config.package.claim
    keys = [key for key in flatten(to_values(config.quant)) if key.rpartition(".")[2] in SMALL]
    sets = [
        f"train.iterations={config.package.prove_steps}",
        f"train.batch_tokens={rows}",
        f"train.micro_batch_tokens={rows}",
        "train.max_wallclock_seconds=0",
        "train.reserve_seconds=0",
        "train.warmup_steps=0",
        "train.val_every=0",
        f"train.val_max_tokens={rows}",
        "train.checkpoint_every=0",
        "train.compile=off",
        "quant.max_gap=0",
        f"{claim}.max_tokens={2 * getattr(config, claim).seq_len}",
        *(f"quant.{key}=2" for key in keys),
    ]
    return resolve(stored=to_values(config), stored_name="the submission", sets=sets).config


def prove_training(config: RunConfig, dataset: Dataset, device: str) -> dict[str, Any]:
    """Train, quantize and compress the configuration, shortened to `package.prove_steps` steps of one row, with its
    script alone and with pgolf; what was found equal. RuleError where they differ: on a CPU the artifacts bit for bit,
    on a GPU the losses of the steps.
    """
    short, place = shortened(config), device.split(":")[0]
    script = build_script(short, artifact_info(short, dataset.tokenizer_sha256).decode())
    files = {"train_gpt.py": script.packed, "tokenizer.model": dataset.tokenizer_bytes}
    argv = ["train_gpt.py", "--data", "data", "--tokenizer", "tokenizer.model", "--out", "model.pgz"]
    with empty_room(files, dataset, ("train", "val")) as room:
        text = run_alone(room, argv, device)
        theirs = sha256_file(room / "model.pgz")
    alone = {int(step): float(loss) for step, loss in STEP.findall(text)}
    ours, log = trained_here(short, dataset, place)
    here = {int(step): float(loss) for step, loss in STEP.findall(log)}
    identical = ours == theirs and alone == here
    if alone.keys() != here.keys() or not alone:
        raise RuleError("the script alone trains other steps than pgolf", "proof", "please report this")
    apart = {step: abs(alone[step] / here[step] - 1) for step in here}
    worst = max(apart, key=lambda step: apart[step])
    if not identical and (place == "cpu" or not apart[worst] <= SLACK_LOSS):
        what = f"loss {alone[worst]} instead of {here[worst]} at step {worst}" if apart[worst] else "another artifact"
        raise RuleError(f"the script alone trains otherwise than pgolf: {what}", "proof", "please report this")
    return {"steps": len(here), "identical": identical, "isolated": True, "network": not can_isolate()}


def trained_here(config: RunConfig, dataset: Dataset, device: str) -> tuple[str, str]:
    """SHA-256 of the artifact that pgolf's stages make of a configuration, and the training's log."""
    from pgolf.config.load import Resolved
    from pgolf.core.dist import World, pick_device
    from pgolf.stages.compress import compress
    from pgolf.stages.quantize import quantize
    from pgolf.stages.train import train

    resolved, console = Resolved(config, {}, ""), Console(quiet=True)
    with tempfile.TemporaryDirectory(prefix="pgolf-proof-") as place:
        run = Path(place)
        train(dataset, run, resolved, World(device=pick_device(device, 0)), console)
        quantize(run / "checkpoint.safetensors", dataset, run / "quantized.safetensors", resolved, device, console)
        compress(run / "quantized.safetensors", run / "model.pgz", resolved, console)
        return sha256_file(run / "model.pgz"), read_bytes(run / "train.log", MAX_LOG).decode()
