"""What counts of the training text are worth to the exact cache, and what they take of an artifact.

The model is scored by sliding windows with a cache that starts from nothing, then with one that starts from n-grams of
the training split (`model.counts`), as if the model had been trained with that part. Gains are in bits per byte over
the former, with standard errors over documents; bytes are those of the table under the codec.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import parser, show
from benchmarks.test_time_training import per_byte
from pgolf.core.codecs.brotli import Brotli
from pgolf.core.evals.document import document_begins
from pgolf.core.evals.exact_cache import ExactCache
from pgolf.core.evals.ledger import evaluate
from pgolf.core.evals.sliding import SlidingEval
from pgolf.core.model.gpt import GPT
from pgolf.core.model.parts.ngram_counts import NgramCounts
from pgolf.dataset import BOS, open_dataset
from pgolf.stages.model_files import load_model


def rows_of(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """A row per table, and what was scored."""
    model = load_model(options.checkpoint)
    config = model.config.model
    dataset = open_dataset(options.data, options.tokenizer, config.vocab_size)
    tokens, charges = dataset.validation()
    tokens, charges = tokens[: options.targets + 1], charges[: options.targets]
    begins = document_begins(tokens, BOS)[:-1]
    sizes = np.add.reduceat(charges.astype(np.float64), begins)

    def nats(network: GPT, share: float) -> np.ndarray:
        cache = ExactCache(stored_share=share)
        method = SlidingEval(seq_len=options.seq_len, stride=options.stride, cache=cache)
        ledger = evaluate(network.eval(), tokens, charges, method)[1]
        return np.add.reduceat(ledger.losses.astype(np.float64), begins)

    cold = nats(model.build(torch.device("cpu")), 0.0)
    rows = []
    for order in options.orders:
        for entries in options.entries:
            part = NgramCounts(order=order, entries=entries, tokens=options.train_tokens)
            network = GPT(replace(config, counts=part))
            network.load_state_dict(model.weights, strict=False)
            part.collect(network, dataset.split("train"))
            raw = network.get_parameter("ngram_counts").detach().numpy().tobytes()
            for share in options.shares:
                gain, error = per_byte(cold - nats(network, share), sizes)
                row = {"order": order, "entries": len(part.stored(network)), "bytes": len(Brotli().encode(raw, ()))}
                rows.append(row | {"share": share, "gain": gain, "se": error})
                print(rows[-1], file=sys.stderr, flush=True)
    what = f"{len(charges):,} targets in {len(begins)} documents, {int(charges.sum()):,} bytes"
    bpb = cold.sum() / np.log(2) / sizes.sum()
    return rows, [f"{options.checkpoint.name}: {what}; {bpb:.5f} BPB with a cache that starts from nothing"]


def main() -> None:
    """Score and print."""
    options = parser(__doc__)
    options.add_argument("--checkpoint", type=Path, required=True, help="a model file")
    options.add_argument("--data", type=Path, required=True, help="a dataset, or published shards")
    options.add_argument("--tokenizer", type=Path, help="SentencePiece model, for published shards")
    options.add_argument("--targets", type=int, default=16384, help="validation targets to score")
    options.add_argument("--train-tokens", type=int, default=1 << 20, help="training tokens to count")
    options.add_argument("--seq-len", type=int, default=512, help="tokens per window")
    options.add_argument("--stride", type=int, default=128, help="targets per window")
    options.add_argument("--orders", type=int, nargs="+", default=[4, 6], help="orders of the n-grams")
    options.add_argument("--entries", type=int, nargs="+", default=[4096, 65536], help="n-grams kept at most")
    options.add_argument("--shares", type=float, nargs="+", default=[0.1], help="what a stored occurrence counts for")
    found = options.parse_args()
    torch.set_num_threads(1)
    rows, remarks = rows_of(found)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(found).items()}
    show("stored_counts", argparse.Namespace(**settings), rows, remarks)


if __name__ == "__main__":
    main()
