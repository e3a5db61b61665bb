"""One cell: the stages it goes through, in a process of its own.

A task is what `plan` wrote down; a result has the state, figures and seconds of a row. Errors become results, so that
one cell never ends the others.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgolf.accounting import bpb_of
from pgolf.config.load import resolve
from pgolf.config.tree import flatten
from pgolf.core.errors import PgolfError
from pgolf.core.files import read_json, write_json
from pgolf.dataset import Dataset, open_dataset
from pgolf.report.console import Console
from pgolf.stages.manifest import guarded, notes_of, provenance

TURN_S = 24 * 3600
"""How long a cell waits for a file that another cell is making."""
Result = dict[str, Any]


def run_cell(task: dict[str, Any]) -> Result:
    """Compute a cell; never raises but for signals."""
    import torch

    console, started = Console(quiet=True), time.monotonic()
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    try:
        with guarded(Path(task["folder"]) / "turn", wait_s=TURN_S):
            figures, seconds = CELLS[task["sweep"]](task, console)
    except PgolfError as error:
        return failed(error.exit_code, type(error).__name__, error.what, error.where, error.fix)
    except ModuleNotFoundError as error:
        return failed(5, "SetupError", f"the package {error.name} is missing", "import", f"pip install {error.name}")
    except OSError as error:
        return failed(
            6, "StorageError", f"the system refuses: {(error.strerror or str(error)).lower()}", task["folder"]
        )
    except Exception as error:
        traceback.print_exc()
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return failed(1, "PgolfError", f"a bug in pgolf: {first}", task["folder"], "the log has the traceback")
    return {
        "state": "done",
        "figures": figures,
        "seconds": seconds | {"cell": round(time.monotonic() - started, 3)},
        "notes": console.warnings,
        "threads": torch.get_num_threads(),
        "made_by": {key: value for key, value in provenance(task["device"]).items() if key != "argv"},
    }


def failed(code: int, kind: str, what: str, where: str = "", fix: str = "") -> Result:
    """The result of a cell that came to nothing."""
    return {"state": "failed", "error": {"code": code, "kind": kind, "what": what, "where": where, "fix": fix}}


def source(task: dict[str, Any], vocab_size: int) -> Dataset:
    """The dataset that the sweep was given."""
    tokenizer = Path(task["tokenizer"]) if task["tokenizer"] else None
    return open_dataset(Path(task["data"]), tokenizer, vocab_size)


def scored_dataset(task: dict[str, Any], vocab_size: int) -> Dataset:
    """The dataset whose validation split is to be scored."""
    return open_dataset(Path(task["held_out"])) if task["held_out"] else source(task, vocab_size)


def train_cell(task: dict[str, Any], console: Console) -> tuple[Result, dict[str, float]]:
    """A training run, or the rest of one."""
    from pgolf.core.dist import join_world
    from pgolf.stages.train import check_gpu, train

    resolved = resolve(stored=task["config"])
    dataset = source(task, resolved.config.model.vocab_size)
    check_gpu(resolved.config, task["device"])
    entry = train(dataset, Path(task["folder"]), resolved, join_world(task["device"]), console)
    console.warnings += notes_of(entry["figures"])
    kept = ("bpb", "val_loss", "val_tokens", "steps", "stopped_by", "parameters")
    figures = {name: entry["figures"][name] for name in kept}
    return figures, {"train": entry["seconds"]["train"]}


def quantize_cell(task: dict[str, Any], console: Console) -> tuple[Result, dict[str, float]]:
    """A checkpoint quantized, compressed, and its artifact scored as read back from disk."""
    from pgolf.stages.compress import compress
    from pgolf.stages.evaluate import score_model
    from pgolf.stages.model_files import load_model

    folder, resolved = Path(task["folder"]), resolve(stored=task["config"])
    quantized = quantize_once(task, console)
    compressed = compress(Path(task["quantized"]), folder / "model.pgz", resolved, console)
    document = score_model(
        load_model(folder / "model.pgz"),
        scored_dataset(task, resolved.config.model.vocab_size),
        "eval",
        resolve(stored=task["score"]),
        task["device"],
        console,
        folder / "score.json",
    )
    figures = (
        size_figures(compressed) | {"entropy_bits": quantized["figures"]["entropy_bits"]} | score_figures(document)
    )
    entries = {"quantize": quantized["seconds"], "compress": compressed["seconds"], "eval": document["seconds"]}
    return figures, {stage: seconds["total"] for stage, seconds in entries.items()}


def quantize_once(task: dict[str, Any], console: Console) -> dict[str, Any]:
    """The manifest entry of the quantized model. What cells have in common, calibration included, is made by the first
    of them while the others wait; a calibration that an earlier sweep kept, with less in it, is made anew.
    """
    from pgolf.stages.calibrate import Depth
    from pgolf.stages.quantize import quantize

    resolved, out = resolve(stored=task["config"]), Path(task["quantized"])
    cache = Path(task["hessians"]) if "hessians" in task else None
    depth = Depth(**task["depth"]) if "depth" in task else Depth()

    def make() -> dict[str, Any]:
        dataset = source(task, resolved.config.model.vocab_size)
        return quantize(Path(task["model"]), dataset, out, resolved, task["device"], console, kept=cache, shared=depth)

    with guarded(out.with_suffix(".turn"), wait_s=TURN_S):
        if cache is not None:
            with guarded(cache.with_suffix(".turn"), wait_s=TURN_S):
                if not depth.held(cache):
                    return make()
        return make()


def compress_cell(task: dict[str, Any], console: Console) -> tuple[Result, dict[str, float]]:
    """A quantized model compressed. Codecs lose nothing, so there is nothing to score."""
    from pgolf.stages.compress import compress

    out = Path(task["folder"]) / "model.pgz"
    entry = compress(Path(task["model"]), out, resolve(stored=task["config"]), console)
    return size_figures(entry), {"compress": entry["seconds"]["total"]}


def score_cell(task: dict[str, Any], console: Console) -> tuple[Result, dict[str, float]]:
    """A model scored by eval or ttt."""
    from pgolf.stages.evaluate import score_model
    from pgolf.stages.inputs import rescored
    from pgolf.stages.model_files import load_model

    stage = task["sweep"]
    sets = [f"{key}={value}" for name in ("model", stage) for key, value in flatten(task["score"][name], name).items()]
    model, resolved = rescored(load_model(Path(task["model"])), "", sets, console)
    dataset = scored_dataset(task, model.config.model.vocab_size)
    out = Path(task["folder"]) / "score.json"
    document = score_model(model, dataset, stage, resolved, task["device"], console, out)
    return score_figures(document), {stage: document["seconds"]["score"]}


def size_figures(entry: dict[str, Any]) -> Result:
    """The bytes of a manifest entry of compress."""
    return {name: value for name, value in entry["figures"].items() if name.endswith("_bytes")}


def score_figures(document: dict[str, Any]) -> Result:
    """The score of a score document."""
    score = document["score"]
    figures = {name: score[name] for name in ("val_loss", "tokens", "bytes")}
    return {"bpb": bpb_of(score)} | figures | {"method": document["method"]["name"]}


CELLS: dict[str, Callable[[dict[str, Any], Console], tuple[Result, dict[str, float]]]] = {
    "train": train_cell,
    "quantize": quantize_cell,
    "compress": compress_cell,
    "eval": score_cell,
    "ttt": score_cell,
}


def end_with_parent() -> None:
    """Wait until the other end of standard input closes, which it does when the sweep is gone in whatever way; then end
    this process as SIGTERM does, which lets training write its checkpoint.
    """
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def main(task_file: str, result_file: str) -> None:
    """A process that computes one cell."""
    from pgolf.stages.signals import Interrupted, install

    install()
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        write_json(Path(result_file), run_cell(read_json(Path(task_file))))
    except Interrupted as interruption:
        sys.exit(128 + interruption.number)
