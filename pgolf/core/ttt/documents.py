"""Documents of a stream, the windows their chunks are scored in, and who is scored beside whom (spec: evaluation 6, 9).

Document d has the targets begins[d] .. begins[d + 1] - 1, so the last target of a document is the token that begins the
next one, and every target of the stream belongs to one document.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def chunk_window(length: int, chunk: int, chunk_tokens: int, seq_len: int) -> tuple[int, int, int]:
    """The window in which a document's chunk is scored, (start, first, end) with start counted from the document's:
    the last `seq_len` inputs or fewer that end with the chunk, whose targets are at positions first .. end - 1.
    """
    stop = min((chunk + 1) * chunk_tokens, length)
    start = max(stop - seq_len, 0)
    return start, chunk * chunk_tokens - start, stop - start


def length_batches(lengths: "np.ndarray", size: int) -> "list[np.ndarray]":
    """Documents by number in batches of about one length: the longest batch first, in each the shortest first."""
    import numpy as np

    order = np.argsort(lengths, kind="stable")
    return [order[first : first + size] for first in range(0, len(order), size)][::-1]


def deal(costs: "list[int]", size: int) -> list[list[int]]:
    """Which of these jobs each of `size` ranks does, in order: one after another, each to the rank that has least."""
    loads, given = [0] * size, [list[int]() for _ in range(size)]
    for job, cost in enumerate(costs):
        rank = loads.index(min(loads))
        loads[rank] += cost
        given[rank].append(job)
    return given
