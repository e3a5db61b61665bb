"""MB/s of `pgolf tokenize` beside SentencePiece's own encode of the same text with the same model and threads.

The command runs inside this process, so no interpreter start is counted. It reads and hashes the source, charges every
token its bytes and compares the sum with the normalised text, splits, and writes shards with a manifest; the rival only
encodes a list of strings that is already in memory.
"""

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import parser, seconds_of, show, spread
from pgolf.cli.main import main as run_command
from pgolf.core.bpb import load_tokenizer
from pgolf.corpus.sources import documents, python_documents
from pgolf.corpus.tokenizer import train_tokenizer


def sample(source: Path | None, megabytes: float) -> list[str]:
    """The first documents of a source (Python's documentation without one) that make up so many MB."""
    texts: list[str] = []
    missing = megabytes * 1e6
    for text in documents([source], "") if source else python_documents():
        if missing <= 0:
            break
        texts.append(text)
        missing -= len(text.encode())
    return texts


def quietly(command: list[str]) -> None:
    """A pgolf command in this process, its result thrown away; SystemExit with its code if it fails."""
    with contextlib.redirect_stdout(io.StringIO()):
        code = run_command(command)
    if code:
        raise SystemExit(code)


def measure(options: argparse.Namespace, texts: list[str], folder: Path) -> dict[str, list[float]]:
    """Seconds of each round; stage and rival take turns."""
    model, source = folder / "tokenizer.model", folder / "text.jsonl"
    model.write_bytes(train_tokenizer(texts, options.vocab_size, 0.999))
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    given = ["tokenize", str(source), "--out", str(folder / "data"), "--tokenizer", str(model)]
    command = [*given, "--set", f"tokenize.threads={options.threads}", "--force", "--quiet", "--json"]
    processor: Any = load_tokenizer(model.read_bytes(), str(model))
    seconds: dict[str, list[float]] = {"pgolf tokenize": [], "SentencePiece encode": []}
    quietly(command)  # imports
    for _ in range(options.rounds):
        seconds["pgolf tokenize"].append(seconds_of(lambda: quietly(command)))
        seconds["SentencePiece encode"].append(
            seconds_of(lambda: processor.encode(texts, num_threads=options.threads or -1))
        )
    return seconds


def main() -> None:
    """Measure and print MB/s and the ratio of the least times."""
    arguments = parser(__doc__)
    arguments.add_argument("--source", type=Path, help="text to use, as for pgolf tokenize; Python's documentation")
    arguments.add_argument("--megabytes", type=float, default=2.0)
    arguments.add_argument("--vocab-size", type=int, default=1024)
    arguments.add_argument("--threads", type=int, default=0, help="0 takes all cores")
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    texts = sample(options.source, options.megabytes)
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(options, texts, Path(folder))
    size, rival = sum(len(text.encode()) for text in texts), min(seconds["SentencePiece encode"])
    rows = [
        {
            "what": name,
            **spread(values),
            "mb_per_s": round(size / 1e6 / min(values), 3),
            "over_encode": round(min(values) / rival, 3),
        }
        for name, values in seconds.items()
    ]
    options.source = str(options.source or "Python's documentation")
    show("tokenize_speed", options, rows, [f"{len(texts):,} documents, {size:,} bytes"])


if __name__ == "__main__":
    main()
