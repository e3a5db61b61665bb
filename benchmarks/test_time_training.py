"""What test-time training gains on real text: a trained model scored by every method on the same validation targets.

Gains are in bits per byte over plain windows, and over the same windows without learning, with standard errors over
documents, each paired with itself. Streams are shorter here than those of the records, and so are chunks, of 8
sequences, and phases, which end after a quarter, half and three quarters of the documents. Rates that no record has are
called own; they are to be chosen with --train, which scores the last documents of the training split.
"""

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import parser, show
from pgolf.config.load import resolve
from pgolf.core.evals.document import document_begins
from pgolf.core.evals.ledger import evaluate
from pgolf.dataset import BOS, open_dataset
from pgolf.stages.held_out import find_tail
from pgolf.stages.model_files import load_model


@dataclass(frozen=True)
class Row:
    """A method: what it is called, its section and settings, the row without learning it is compared with, and whether
    a document's score depends on that document alone.
    """

    what: str
    section: str
    settings: str
    rival: str = "plain"
    alone: bool = False


STILL = "method=lora rank=1 alpha=1 targets=q lr=0 batch_seqs=16"
LORA = "method=lora rank=80 alpha=144 beta2=0.99 batch_seqs=16"
PHASED = "method=phased rank=80 alpha=144 beta2=0.99 batch_seqs=16 phases=3 prefix_docs={prefix}"
BASE = "base.chunk_tokens={chunk} base.train_seqs=8"
CHUNK = "method=chunk stride={stride} chunk_tokens={chunk} train_seqs=8"
ROWS = {
    "plain": Row("plain", "eval", "method=plain"),
    "sliding": Row("sliding", "eval", "method=sliding stride={stride}"),
    "chunk": Row("chunk, SGD 0.005 (PR #1493)", "ttt", CHUNK, "sliding"),
    "layers": Row(
        "chunk, SGD 0.002 by layer (PR #995)",
        "ttt",
        f"{CHUNK} lr=0.002 optimizer.momentum=0.95 epochs=4 input_rate=0.5 output_rate=3",
        "sliding",
    ),
    "adamw": Row(
        "chunk, AdamW 1e-4 (PR #761)", "ttt", f"{CHUNK} optimizer=adamw lr=1e-4 epochs=4 freeze_blocks=2", "sliding"
    ),
    "muon": Row("chunk, Muon 1e-3 (own rate)", "ttt", f"{CHUNK} optimizer=muon lr=1e-3", "sliding"),
    "documents": Row("documents apart", "ttt", STILL, alone=True),
    "lora": Row("lora 1e-4 (PR #1855, cold)", "ttt", f"{LORA} lr=1e-4", "documents", alone=True),
    "lora_own": Row("lora 1e-3 (own rate)", "ttt", f"{LORA} lr=1e-3", "documents", alone=True),
    "phased": Row("phased, lora 1e-4 (PR #1855, cold)", "ttt", f"{PHASED} {BASE} lr=1e-4", "documents"),
    "phased_own": Row("phased, lora 1e-3 (own rate)", "ttt", f"{PHASED} {BASE} lr=1e-3", "documents"),
}


def method_of(row: Row, options: argparse.Namespace, documents: int) -> Any:
    """The method of a row, made as the command line would make it."""
    fills = {"stride": options.stride, "chunk": 8 * options.seq_len, "prefix": documents * 3 // 4}
    words = row.settings.format(**fills).split()
    sets = [f"{row.section}.{word}" for word in (*words, f"seq_len={options.seq_len}")]
    return getattr(resolve("", sets).config, row.section)


def per_byte(nats: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Nats saved in documents (D,) of these bytes (D,), in bits per byte, and the standard error of that ratio: of what
    documents save beyond their share of bytes.
    """
    bits = nats / math.log(2)
    gain = bits.sum() / sizes.sum()
    error = (bits - gain * sizes).std(ddof=1) * len(sizes) ** 0.5 / sizes.sum()
    return round(float(gain), 5), round(float(error), 5)


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """A row per method, and what was scored."""
    model = load_model(options.checkpoint)
    dataset = open_dataset(options.data, options.tokenizer, model.config.model.vocab_size)
    if options.train:
        ids = find_tail(dataset, options.targets).ids
        charges = dataset.byte_table().charges(ids)
    else:
        ids, charges = (part[: options.targets + 1 - shift] for shift, part in enumerate(dataset.validation()))
    begins = document_begins(ids, BOS)
    sizes = np.add.reduceat(charges.astype(np.float64), begins[:-1])
    names = options.only.split(",") if options.only else [*ROWS]
    names = list(dict.fromkeys(["plain", *(ROWS[name].rival for name in names), *names]))
    losses: dict[str, np.ndarray] = {}
    rows = []
    for name in names:
        network, row = model.build(torch.device("cpu")), ROWS[name]
        start = time.perf_counter()
        score, ledger = evaluate(network, ids, charges, method_of(row, options, len(begins) - 1))
        spent = time.perf_counter() - start
        losses[name] = np.add.reduceat(ledger.losses.astype(np.float64), begins[:-1])
        found: dict[str, Any] = {"method": row.what, "BPB": f"{score.bpb:.5f}"}
        for column, other in (("gain", "plain"), ("by learning", row.rival)):
            found[column], found[f"± {column}"] = per_byte(losses[other] - losses[name], sizes)
        label = "fixed" if row.rival == "plain" else "adaptive"
        print(f"{row.what}: {score.bpb:.5f} BPB, {spent:.0f} s", file=sys.stderr, flush=True)
        rows.append(found | {"seconds": round(spent, 1), "label": label, "each document alone": row.alone})
    what = f"{len(ids) - 1:,} targets, {int(charges.sum()):,} bytes, {len(begins) - 1} documents"
    return rows, [f"{options.checkpoint.name}: {what}, one thread"]


def main() -> None:
    """Command line."""
    options = parser(__doc__)
    options.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint of pgolf's")
    options.add_argument("--data", type=Path, required=True, help="a dataset, or published shards")
    options.add_argument("--tokenizer", type=Path, help="SentencePiece model, for published shards")
    options.add_argument("--targets", type=int, default=131072, help="targets to score")
    options.add_argument("--seq-len", type=int, default=512, help="tokens the model sees at once")
    options.add_argument("--stride", type=int, default=64, help="targets per sliding window")
    options.add_argument("--only", default="", help=f"rows, of {','.join(ROWS)}; what they are compared with is added")
    options.add_argument("--train", action="store_true", help="score the last training documents, to choose settings")
    found = options.parse_args()
    torch.set_num_threads(1)
    rows, remarks = measure(found)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(found).items()}
    show("test_time_training", argparse.Namespace(**settings), rows, remarks)


if __name__ == "__main__":
    main()
