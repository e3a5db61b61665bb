"""Quantizers at equal bytes: what is lost of a trained float model, and how long it takes.

Every method is scaled until an ideal coder, the same for all, needs the bytes of method c at the rate asked for. Two
figures, both in bits per byte on the same validation targets: KL(float || quantized), whose error is small, and the gap
between the two scores with its standard error over windows. A ratio is to c's, which is moved to the very same bytes by
6 dB per bit. Calibration reads the training split alone. With --ttt the gap is also taken between what the two score
while their weights learn, chunk by chunk, from what has been scored.
"""

import argparse
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.ideal_coder import ideal_bytes
from benchmarks.report import parser, show
from pgolf.core.dist import World
from pgolf.core.evals.ledger import evaluate
from pgolf.core.model.config import param_specs
from pgolf.core.model.params import CONTROL, EMBED
from pgolf.core.quant.base import paired_turn, quantize_model
from pgolf.core.quant.corrected import CorrectedTensor, Factors
from pgolf.core.quant.curvature import Calibration
from pgolf.core.quant.gptq import Gptq
from pgolf.core.quant.gptq_lqer import Lqer
from pgolf.core.quant.lqer import low_rank, pack_rows
from pgolf.core.quant.qtensor import QuantizedModel
from pgolf.core.quant.sdclip import Grid, SdClip
from pgolf.core.quant.tuned import tuned_to
from pgolf.core.quant.tuning import CrossEntropyTuning, KlTuning
from pgolf.core.shards import TrainStream
from pgolf.core.ttt.chunk import ChunkTtt
from pgolf.dataset import open_dataset
from pgolf.report.console import Console
from pgolf.stages.calibrate import Depth, calibration, training_tokens
from pgolf.stages.model_files import ModelFile, load_model, ready
from pgolf.stages.quantize import knowing

K, K_EMBED = 12.85, 20.0
"""Clips of PR #1394; all methods scale both together."""


@dataclass(frozen=True)
class Method:
    """A row of the table: settings of the quantizer, and what is done around it."""

    what: str
    settings: dict[str, Any] = field(default_factory=dict)
    compensated: bool = True
    corrected: bool = False
    embedding_rank: int = 0
    after: dict[str, Any] = field(default_factory=dict)
    """Settings of what is done after the solve, where steps are scaled by k."""
    tune: KlTuning | None = None
    sequential: bool = False
    """The quantizer's setting of that name, once steps are scaled without it."""

    @property
    def by_theta(self) -> bool:
        """Whether all steps are scaled by theta, not k."""
        return bool(self.settings)


CURVED: dict[str, Any] = {"steps": "curvature"}
EIGHT: dict[str, Any] = CURVED | {"rounding": "trellis", "states": 8, "couple": "rows"}
BY_KL, BY_LOSS = KlTuning(seqs=8, seq_len=512), CrossEntropyTuning(seqs=8, seq_len=512)
METHODS = {
    "a": Method("round to nearest, SDClip", compensated=False),
    "b": Method("GPTQ, SDClip (PR #1394)"),
    "b1": Method("b, then a sweep over the columns", after={"sweeps": 1}),
    "b4": Method("b, then 4 sweeps", after={"sweeps": 4}),
    "br": Method("b, then scales refitted", after={"refit": True}),
    "b4r": Method("b, then 4 sweeps and scales refitted", after={"sweeps": 4, "refit": True}),
    "c": Method("b with LQER, top 3, rank 4 (PR #1855)", corrected=True),
    "g0": Method("b along an 8-state trellis", {"rounding": "trellis", "states": 8}),
    "d": Method("GPTQ, steps by curvature", CURVED),
    "g": Method("d along an 8-state trellis", CURVED | {"rounding": "trellis", "states": 8}),
    "g64": Method("d with 64 states", CURVED | {"rounding": "trellis", "states": 64}),
    "k": Method("g with coupled rows", EIGHT),
    "k64": Method("k with 64 states", EIGHT | {"states": 64}),
    "ct": Method("c, then tuned by KL", corrected=True, tune=BY_KL),
    "ce": Method("c, then tuned by cross entropy", corrected=True, tune=BY_LOSS),
    "kt": Method("k, then tuned by KL", EIGHT, tune=BY_KL),
    "ke": Method("k, then tuned by cross entropy", EIGHT, tune=BY_LOSS),
    "ds": Method("d in turn", CURVED, sequential=True),
    "ks": Method("k in turn", EIGHT, sequential=True),
    "k64s": Method("k64 in turn", EIGHT | {"states": 64}, sequential=True),
    "h": Method(
        "d with 256 states, rank 4 of the embedding apart",
        CURVED | {"rounding": "trellis", "states": 256},
        embedding_rank=4,
    ),
}


@dataclass
class Coded:
    """A model as a method left it; `bits` are of a weight's code alone, `whole_bits` of all that is stored."""

    model: QuantizedModel
    weights: dict[str, Tensor]
    bytes: float
    bits: float
    whole_bits: float
    seconds: float
    scale: float


def code(
    method: Method, scale: float, model: ModelFile, found: Calibration, turn: dict[str, Any] | None = None
) -> Coded:
    """Quantize a model by a method at a scale of its steps; `turn` has what quantizes in turn."""
    start, config, weights = time.perf_counter(), model.config.model, dict(model.weights)
    specs, factors = param_specs(config), dict[str, Factors]()
    if method.embedding_rank:
        for spec in specs:
            if spec.role == EMBED and min(spec.shape) > 4 * method.embedding_rank:
                factors[spec.name] = pack_rows(*low_rank(weights[spec.name], method.embedding_rank), bits=8)
                weights[spec.name] = weights[spec.name] - factors[spec.name].product()
    if method.by_theta:
        quantizer: Any = Gptq(k=K, embed=Grid(bits=8, k=K_EMBED), theta=scale, **method.settings)
    else:
        grids: dict[str, Any] = {name: Grid(bits=8, k=scale * K_EMBED) for name in ("embed", "head")}
        kind = Lqer if method.corrected else Gptq if method.compensated else SdClip
        quantizer = kind(k=scale * K, **grids, **method.after)
    changed = dataclasses.replace(model, weights=weights)
    known = knowing(quantizer, changed, found)(quantizer) if method.compensated else {}
    result = quantize_model(config, weights, quantizer, {**known, **(turn or {})})
    seconds = time.perf_counter() - start
    final = result.weights()
    for name, one in factors.items():
        final[name] = final[name] + one.product()
    tensors = dict(result.tensors)
    for name, tensor in tensors.items():
        if isinstance(tensor, CorrectedTensor):
            tensors[name], factors[name] = tensor.base, tensor.factors
    size, bits = ideal_bytes(specs, tensors, factors)
    weights_count = sum(spec.numel for spec in specs if spec.role != CONTROL)
    return Coded(result, final, size, bits, 8 * size / weights_count, seconds, scale)


def scaled_to(wanted: float, figure: str, make: Callable[[float], Coded]) -> Coded:
    """The result whose figure (in bits per weight, falling by one for each doubling of the steps) is the one wanted,
    within a thousandth, or the nearest of six tries.
    """
    best, scale = None, 1.0
    for _ in range(6):
        made = make(scale)
        if best is None or abs(getattr(made, figure) - wanted) < abs(getattr(best, figure) - wanted):
            best = made
        if abs(getattr(best, figure) - wanted) < 1e-3:
            break
        scale = made.scale * 2 ** (getattr(made, figure) - wanted)
    assert best is not None
    return best


def tuned(coded: Coded, tuning: KlTuning, model: ModelFile, stream: TrainStream) -> Coded:
    """The same after tuning, which moves what is stored as floats and so leaves the bytes as they are."""
    start = time.perf_counter()
    batches = tuning.batches(stream)
    result = tuned_to(tuning, coded.model, model.build(torch.device("cpu")), batches, lambda done: None)
    seconds = coded.seconds + time.perf_counter() - start
    return dataclasses.replace(coded, model=result, weights=result.weights(), seconds=seconds)


@torch.no_grad()
def losses(
    model: ModelFile, coded: dict[str, Coded], ids: Tensor, charges: Tensor, seq_len: int
) -> tuple[dict[str, tuple[float, float, float]], float]:
    """KL, gap and standard error of the gap of each, and the float model's score, in bits per byte; float logits are
    made once, window by window.
    """
    device = torch.device("cpu")
    exact = model.build(device)
    others = {name: ready(model.config, one.weights, device) for name, one in coded.items()}
    unit = math.log(2) * float(charges.sum())
    kl = dict.fromkeys(coded, 0.0)
    gaps: dict[str, list[Tensor]] = {name: [] for name in coded}
    total, step = 0.0, 8 * seq_len
    for start in range(0, len(ids) - 1, step):
        x, y = (ids[start + shift : start + shift + step].view(-1, seq_len) for shift in (0, 1))
        wanted = exact.head(exact.hidden(x)).log_softmax(-1)
        shares, nll = wanted.exp(), -wanted.gather(2, y[..., None])[..., 0]
        total += float(nll.double().sum())
        for name, other in others.items():
            found = other.head(other.hidden(x)).log_softmax(-1)
            kl[name] += float((shares * (wanted - found)).sum(-1).double().sum()) / unit
            gaps[name].append((-found.gather(2, y[..., None])[..., 0] - nll).double().sum(1) / unit)
    result = {}
    for name, parts in gaps.items():
        windows = torch.cat(parts)
        result[name] = (kl[name], float(windows.sum()), float(windows.std() * len(windows) ** 0.5))
    return result, total / unit


def learning(
    model: ModelFile, weights: dict[str, Tensor], tokens: np.ndarray, charges: np.ndarray, seq_len: int
) -> Tensor:
    """Nats of every window of a stream (N,) while all weights learn by SGD (rate 0.005, three epochs, PR #1493) from
    each chunk of eight windows once it is scored.
    """
    method = ChunkTtt(seq_len=seq_len, stride=seq_len, chunk_tokens=8 * seq_len, train_seqs=8)
    _, ledger = evaluate(ready(model.config, weights, torch.device("cpu")), tokens, charges, method)
    return torch.from_numpy(ledger.losses).double().view(-1, seq_len).sum(1)


def learned_gaps(
    model: ModelFile, coded: dict[str, Coded], tokens: np.ndarray, charges: np.ndarray, seq_len: int
) -> dict[str, tuple[float, float]]:
    """Gap and its standard error of each, in bits per byte, both models learning."""
    unit = math.log(2) * float(charges.sum())
    exact = learning(model, model.weights, tokens, charges, seq_len)
    found = {}
    for name, one in coded.items():
        windows = (learning(model, one.weights, tokens, charges, seq_len) - exact) / unit
        found[name] = float(windows.sum()), float(windows.std() * len(windows) ** 0.5)
    return found


def measure(options: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """All rows of the table and a remark per checkpoint."""
    rows, remarks, console = [], [], Console(True)
    for path in options.checkpoint:
        model = load_model(path)
        dataset = open_dataset(options.data, options.tokenizer, model.config.model.vocab_size)
        stream, charges = (torch.from_numpy(part[options.skip :].astype("int64")) for part in dataset.validation())
        targets = min(options.targets, len(charges)) // options.seq_len * options.seq_len
        settings = Gptq(calibration_seqs=options.calibration_seqs, calibration_seq_len=options.seq_len)
        kept = path.parent / options.calibration if options.calibration else folder / f"{path.stem}.safetensors"
        start = time.perf_counter()
        found, cached = calibration(
            model, dataset, settings, kept, Depth(gradients=True, couplings=True), World(), console
        )
        spent = time.perf_counter() - start
        weights = sum(spec.numel for spec in param_specs(model.config.model) if spec.role != CONTROL)
        for rate in options.rates:

            def make(name: str, model: ModelFile = model, found: Calibration = found) -> Callable[[float], Coded]:
                return lambda scale: code(METHODS[name], scale, model, found)

            base = scaled_to(rate, "bits", make("c"))
            coded = {
                name: base if name == "c" else scaled_to(base.whole_bits, "whole_bits", make(name))
                for name in options.methods
            }
            for name, one in coded.items():
                if (tuning := METHODS[name].tune) is not None:
                    rest = TrainStream(dataset.split("train"), training_tokens(settings))
                    coded[name] = tuned(one, tuning, model, rest)
                if METHODS[name].sequential:
                    again = dataclasses.replace(settings, sequential=True)
                    network = model.build(torch.device("cpu"))
                    turn = paired_turn(again, network, TrainStream(dataset.split("train")))
                    coded[name] = code(METHODS[name], one.scale, model, found, turn)
            figures, score = losses(
                model, {**coded, "c": base}, stream[: targets + 1], charges[:targets], options.seq_len
            )
            after = {}
            if count := min(options.ttt, len(charges)) // options.seq_len * options.seq_len:
                both = {**coded, "c": base}
                scored, bytes_of = stream[: count + 1].numpy(), charges[:count].numpy()
                after = learned_gaps(model, both, scored, bytes_of, options.seq_len)
            for name, one in coded.items():
                moved = 4.0 ** (base.whole_bits - one.whole_bits)
                kl, gap, error = figures[name]
                rows.append(
                    {
                        "model": path.stem,
                        "bits": rate,
                        "method": name,
                        "what": METHODS[name].what,
                        "bytes": round(one.bytes),
                        "b/w": round(one.bits, 3),
                        "KL": round(kl, 5),
                        "ratio": round(kl / (figures["c"][0] * moved), 3),
                        "gap": round(gap, 5),
                        "se": round(error, 5),
                        "gap ratio": round(gap / (figures["c"][1] * moved), 2),
                        "s": round(one.seconds, 1),
                    }
                )
                if after:
                    (gap, error), known = after[name], after["c"][0] * moved
                    rows[-1] |= {
                        "ttt gap": round(gap, 5),
                        "ttt se": round(error, 5),
                        "ttt ratio": round(gap / known, 2),
                    }
        how = "read" if cached else f"collected in {spent:.0f} s"
        remarks.append(
            f"{path.stem}: {weights:,} weights, float {score:.5f} BPB on {targets:,} targets; "
            f"{found.tokens:,} calibration tokens {how}"
        )
    return rows, remarks


def main() -> None:
    """Measure and print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--checkpoint", type=Path, nargs="+", required=True, help="float checkpoints")
    arguments.add_argument("--data", type=Path, required=True, help="dataset directory or shards")
    arguments.add_argument("--tokenizer", type=Path, help="SentencePiece model of shards without a manifest")
    arguments.add_argument(
        "--rates",
        type=lambda text: [float(word) for word in text.split(",")],
        default=[3.4, 2.5],
        help="bits per weight of method c's codes, separated by commas",
    )
    arguments.add_argument(
        "--methods", type=lambda text: text.split(","), default=list(METHODS), help=", ".join(METHODS)
    )
    arguments.add_argument("--targets", type=int, default=262_144, help="validation targets")
    arguments.add_argument("--ttt", type=int, default=0, help="targets of the gap while both models learn; 0: none")
    arguments.add_argument("--skip", type=int, default=0, help="validation targets to leave out first")
    arguments.add_argument("--seq-len", type=int, default=512, help="tokens of a window, of calibration too")
    arguments.add_argument("--calibration-seqs", type=int, default=256, help="training sequences")
    arguments.add_argument("--calibration", default="", metavar="NAME", help="keep calibrations under this name")
    options = arguments.parse_args()
    if unknown := set(options.methods) - set(METHODS):
        arguments.error(f"unknown methods {', '.join(sorted(unknown))}; known are {', '.join(METHODS)}")
    with tempfile.TemporaryDirectory() as folder:
        rows, remarks = measure(options, Path(folder))
    options.checkpoint = [path.name for path in options.checkpoint]
    options.data, options.tokenizer = options.data.name, options.tokenizer and options.tokenizer.name
    show("quantization", options, rows, remarks)


if __name__ == "__main__":
    main()
