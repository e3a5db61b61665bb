"""A cell of `pgolf sweep quantize` on a preset's full shapes: seconds and memory of requantizing.

Weights and second moments are those of `benchmarks.budget`, written to files first. Every cell is a process of its own,
as in a sweep, that reads them, solves, writes the quantized model and compresses it; it neither calibrates nor scores.
The mark is 90 s and 4 GB for GPTQ on two cores.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.budget import made_up
from benchmarks.quantizer_speed import WAYS as ALONE
from benchmarks.report import parser, show
from pgolf.config.load import Resolved, resolve
from pgolf.core.model.config import param_specs
from pgolf.core.quant.base import IN_TURN
from pgolf.core.quant.sequential import held_batches
from pgolf.core.tensorfile import save_tensors
from pgolf.report.console import Console
from pgolf.stages.calibrate import CALIBRATION_SCHEMA, read_calibration
from pgolf.stages.coding import quantized_model
from pgolf.stages.model_files import artifact_info, load_model, save_checkpoint, save_quantized
from pgolf.stages.packing import encoded
from pgolf.stages.quantize import TimedTurn, knowing

WAYS = {**ALONE, "in turn": {"steps": "curvature", "sequential": "true"}}
"""How GPTQ rounds; in turn it also runs the model on random tokens, as many as a calibration has."""
CHECKPOINT, CALIBRATION, QUANTIZED = "checkpoint.safetensors", "hessians.safetensors", "quantized.safetensors"


def settled(options: argparse.Namespace, way: str) -> Resolved:
    """The preset with GPTQ in one of its ways."""
    quantizer = [f"quant.{key}={value}" for key, value in WAYS[way].items()]
    return resolve(options.preset, ["quant.method=gptq", *quantizer, f"compress.method={options.codec}", *options.set])


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """Write a checkpoint and what a calibration of it might have found."""
    resolved = settled(options, "gptq")
    weights, found = made_up(resolved.config)
    save_checkpoint(folder / CHECKPOINT, weights, {"config": resolved.values, "tokenizer_sha256": ""})
    tensors = {
        f"{group}.{name}": tensor.clone() for group, sums in found.groups().items() for name, tensor in sums.items()
    }
    save_tensors(folder / CALIBRATION, tensors, {"schema": CALIBRATION_SCHEMA, "tokens": 1, "gradients": True})


def cell(options: argparse.Namespace, folder: Path, way: str, answer: Connection) -> None:
    """One cell; sends the seconds of its parts, its peak of memory and the artifact's bytes."""
    torch.set_num_threads(options.threads)
    marks, config = [time.perf_counter()], settled(options, way).config
    model = load_model(folder / CHECKPOINT).exported()
    found, _ = read_calibration(folder / CALIBRATION)
    marks.append(time.perf_counter())
    quantizer: Any = config.quant
    known = dict(knowing(quantizer, model, found)(quantizer))
    if quantizer.sequential:
        shape = quantizer.calibration_seqs, quantizer.calibration_seq_len
        ids_BT = torch.randint(config.model.vocab_size, shape, generator=torch.Generator().manual_seed(0))
        batches = held_batches(enumerate(torch.split(ids_BT, quantizer.calibration_batch)))
        known[IN_TURN] = TimedTurn(model.build(torch.device("cpu")), batches, Console(True))
    made = quantized_model(model.config.model, model.weights, quantizer, known)
    marks.append(time.perf_counter())
    save_quantized(folder / QUANTIZED, made, {"config": model.stored})
    blob, _ = encoded(made, config.compress, artifact_info(config, ""))
    marks.append(time.perf_counter())
    spent = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    answer.send((spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, len(blob)))


def alone(action: Any, *arguments: Any) -> None:
    """Run in a new process, whose memory is its own. SystemExit if it fails."""
    process = multiprocessing.get_context("spawn").Process(target=action, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{action.__name__} failed with exit code {process.exitcode}")


def main() -> None:
    """Measure and print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--preset", default="leader")
    arguments.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), help="how GPTQ rounds")
    arguments.add_argument("--codec", default="rans", help="what artifacts are compressed with")
    arguments.add_argument("--threads", type=int, default=2, help="threads of a cell")
    arguments.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="other settings; repeatable")
    options, rows = arguments.parse_args(), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone(prepare, options, folder)
        for way in options.ways:
            answer, told = multiprocessing.get_context("spawn").Pipe(duplex=False)
            alone(cell, options, folder, way, told)
            (read, solved, written), peak, size = answer.recv()
            rows.append(
                {
                    "way": way,
                    "read_s": round(read, 1),
                    "solve_s": round(solved, 1),
                    "write_s": round(written, 1),
                    "cell_s": round(read + solved + written, 1),
                    "over_gptq": round((read + solved + written) / rows[0]["cell_s"], 2) if rows else 1.0,
                    "peak_MB": round(peak / 1e6),
                    "artifact_bytes": size,
                }
            )
        held = [f"{path.name} {path.stat().st_size / 1e6:,.0f} MB" for path in sorted(folder.iterdir())]
    weights = sum(spec.numel for spec in param_specs(settled(options, "gptq").config.model))
    show("sweep_cell", options, rows, [f"{weights:,} parameters, {options.threads} threads; files: {', '.join(held)}"])


if __name__ == "__main__":
    main()
