"""A method made small, so that a short stream holds several of its windows, chunks and documents."""

import dataclasses
from typing import Any

WINDOWS, CHUNKS, BATCH, DOCUMENTS = 8, 6, 4, 8
"""Windows and chunks of a stream at least, windows per pass and documents of a prefix at most."""
SCALED = ("stride", "overlap", "context_tokens", "trained", "longest")
"""Lengths that keep their ratio to seq_len."""


def reduced(method: Any, targets: int) -> tuple[Any, dict[str, list[int]]]:
    """The method for a stream of so many targets, and what was changed, by key: [before, after]."""
    length = min(method.seq_len, max(targets // WINDOWS, 16))
    changes: dict[str, list[int]] = {}
    return shrunk(method, length, length / method.seq_len, targets, "", changes), changes


def shrunk(part: Any, length: int, ratio: float, targets: int, path: str, changes: dict[str, list[int]]) -> Any:
    """A dataclass with its lengths made smaller, and those of its parts."""
    by_documents = hasattr(part, "rank")
    news: dict[str, Any] = {}
    for name in (field.name for field in dataclasses.fields(part)):
        value = getattr(part, name)
        if dataclasses.is_dataclass(value):
            news[name] = shrunk(value, length, ratio, targets, f"{path}{name}.", changes)
            continue
        chunk = length // 2 if by_documents and not path else max(targets // CHUNKS, length)
        limit = {"seq_len": length, "chunk_tokens": chunk, "batch_seqs": BATCH, "prefix_docs": DOCUMENTS}.get(name)
        new = min(value, limit) if limit is not None else value
        if name in SCALED and value:
            new = max(int(value * ratio), 1)
        if name == "max_tokens" and not path:
            new = 0
        if new != value:
            changes[path + name], news[name] = [value, new], new
    return dataclasses.replace(part, **news)
