"""Small SentencePiece models of every kind, trained on Python's own documentation in well under a second each, and
datasets made with them.
"""

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

SENTENCES = 600
PLAIN: dict[str, Any] = {
    "model_type": "bpe",
    "vocab_size": 480,
    "byte_fallback": True,
    "split_digits": True,
    "character_coverage": 0.999,
    "normalization_rule_name": "nmt_nfkc",
    "add_dummy_prefix": False,
    "hard_vocab_limit": False,
    "pad_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "unk_id": 3,
    "num_threads": 1,
    "minloglevel": 2,
}
"""The challenge's options with a small vocabulary."""


@cache
def sentences() -> tuple[str, ...]:
    """A few hundred English lines, among them a few with characters that not every vocabulary holds."""
    from pydoc_data.topics import topics

    lines = [line.strip() for name in sorted(topics) for line in topics[name].splitlines() if line.strip()]
    return (*lines[:SENTENCES], "na\u00efve caf\u00e9, 12\u00a0\u20ac; \u4e2d\u6587 \U0001f600")


@cache
def trained(options: tuple[tuple[str, Any], ...]) -> bytes:
    """A model of `PLAIN` with other options."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in options}
    SentencePieceTrainer.train(sentence_iterator=iter(sentences()), model_writer=model, **{**PLAIN, **given})
    return model.getvalue()


def model(**options: Any) -> bytes:
    """The model file of `PLAIN` with other options; lists as tuples."""
    return trained(tuple(sorted(options.items())))


def edited(content: bytes, change: Callable[[Any], None]) -> bytes:
    """A model file after `change` has been at its message. Needs protobuf."""
    from sentencepiece import sentencepiece_model_pb2

    message = sentencepiece_model_pb2.ModelProto()
    message.ParseFromString(content)
    change(message)
    return bytes(message.SerializeToString())


def dataset(folder: Path, texts: tuple[str, ...], content: bytes, *sets: str) -> Path:
    """A dataset of these documents and that tokenizer, by the stage itself; the first five are for validation."""
    from pgolf.config.load import resolve
    from pgolf.report.console import Console
    from pgolf.stages.tokenize import tokenize

    docs, model_file, out = folder / "docs.jsonl", folder / "some.model", folder / "data"
    docs.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model_file.write_bytes(content)
    options = ["tokenize.split=first", "tokenize.val_docs=5", *sets]
    tokenize([docs], out, resolve("", options), model_file, Console(quiet=True))
    return out
