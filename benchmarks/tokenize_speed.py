"""MB/s of `pgolf tokenize` beside SentencePiece's own encode of the same text on the same cores, in the same run.

The command runs as a process of its own and is measured whole, start and all: it reads and unpacks the source, encodes,
charges every token its bytes, compares the sum with each document, splits, hashes, and writes shards with a manifest.
The rival only encodes a list of strings that is already in memory, with as many threads.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import parser, seconds_of, show, spread
from pgolf.config.run import TokenizeConfig
from pgolf.core.bpb import load_tokenizer
from pgolf.corpus.sources import Reading, documents, python_documents
from pgolf.corpus.tokenizer import train_tokenizer


def sample(source: Path | None, megabytes: float) -> list[str]:
    """The first documents of a source (Python's documentation without one) that make up so many MB."""
    texts: list[str] = []
    missing = megabytes * 1e6
    for text in documents([source], Reading()) if source else python_documents():
        if missing <= 0:
            break
        texts.append(text)
        missing -= len(text.encode())
    return texts


def command(source: Path, model: Path, out: Path, workers: int, *more: str) -> list[str]:
    """The command line that makes a dataset anew."""
    stage = [sys.executable, "-m", "pgolf", "tokenize", str(source), "--out", str(out), "--tokenizer", str(model)]
    return [*stage, "--set", f"tokenize.workers={workers}", "--force", "--quiet", "--json", *more]


def run(words: list[str]) -> None:
    """A command, its result thrown away; CalledProcessError if it fails."""
    subprocess.run(words, check=True, capture_output=True)


def measure(options: argparse.Namespace, texts: list[str], folder: Path) -> dict[str, list[float]]:
    """Seconds of each round; all take turns."""
    model, source = folder / "tokenizer.model", folder / "text.jsonl"
    given = options.tokenizer.read_bytes() if options.tokenizer else None
    model.write_bytes(given or train_tokenizer(texts, options.vocab_size, TokenizeConfig()))
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    processor: Any = load_tokenizer(model.read_bytes(), str(model))
    jobs = {
        f"SentencePiece encode, {options.cores} threads": lambda: processor.encode(texts, num_threads=options.cores),
        "pgolf tokenize, 1 process": lambda: run(command(source, model, folder / "one", 1)),
        f"pgolf tokenize, {options.cores} processes": lambda: run(
            command(source, model, folder / "many", options.cores)
        ),
    }
    if options.caseops_tokenizer:
        words = command(
            source, options.caseops_tokenizer, folder / "case", options.cores, "--set", "tokenize.transform=caseops_v1"
        )
        jobs[f"pgolf tokenize with CaseOps and sidecars, {options.cores} processes"] = lambda: run(words)
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(options.rounds):
        for name, job in jobs.items():
            seconds[name].append(seconds_of(job))
    return seconds


def main() -> None:
    """Measure and print MB/s and the ratio to SentencePiece's speed."""
    arguments = parser(__doc__)
    arguments.add_argument("--source", type=Path, help="text to use, as for pgolf tokenize; Python's documentation")
    arguments.add_argument("--megabytes", type=float, default=4.0)
    arguments.add_argument("--vocab-size", type=int, default=1024)
    arguments.add_argument("--tokenizer", type=Path, help="use this model instead of training one on the text")
    arguments.add_argument("--caseops-tokenizer", type=Path, help="measure CaseOps too, with this model")
    arguments.add_argument("--cores", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    texts = sample(options.source, options.megabytes)
    size = sum(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(options, texts, Path(folder))
    rival = min(next(iter(seconds.values())))
    rows = [
        {
            "what": name,
            **spread(values),
            "mb_per_s": round(size / 1e6 / min(values), 3),
            "over_encode": round(rival / min(values), 3),
        }
        for name, values in seconds.items()
    ]
    for key in ("source", "tokenizer", "caseops_tokenizer"):
        setattr(options, key, str(getattr(options, key) or ""))
    remarks = [
        f"{len(texts):,} documents, {size:,} bytes",
        "over_encode: times SentencePiece's speed",
    ]
    show("tokenize_speed", options, rows, remarks)


if __name__ == "__main__":
    main()
