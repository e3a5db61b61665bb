"""Every document by itself (spec: evaluation 6)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError, InputError
from pgolf.core.evals.sliding import SlidingEval, sliding_windows

if TYPE_CHECKING:
    import numpy as np

    from pgolf.core.evals.ledger import Ledger

BUCKET = 128
"""Short documents are padded to a multiple of so many tokens."""


def document_begins(tokens: "np.ndarray", bos_id: int) -> "np.ndarray":
    """Where the documents of a stream (N,) begin that have a target, then N - 1, the number of targets. What is before
    the first BOS counts as a document. InputError if no document begins at all.
    """
    import numpy as np

    targets = len(tokens) - 1
    begins = np.flatnonzero(tokens[:targets] == bos_id)
    if not len(begins):
        raise InputError(
            f"no document begins in the validation stream: token {bos_id} does not occur in it",
            "validation split",
            "set ttt.bos_id (eval.bos_id) to the token that begins documents, or choose a method that asks for none",
        )
    return np.concatenate([[0] if begins[0] else [], begins, [targets]]).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class DocumentEval(SlidingEval):
    """Sliding windows within each document, from its first token to the one that begins the next; nothing crosses from
    one to another. Effect: isolation -0.0110, with strides -0.034 (PR #77). Source: PR #77, #1530.
    """

    bos_id: int = 1
    """Token that begins a document."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bos_id < 0:
            raise ConfigError(f"bos_id must not be negative, not {self.bos_id}", "bos_id")

    def alone(self) -> bool:
        """No window crosses."""
        return True

    def windows(self, tokens: "np.ndarray") -> "np.ndarray":
        """Rows (start, first, end) that cover the targets of a stream (N,) once, in order."""
        import numpy as np

        bounds, pieces = document_begins(tokens, self.bos_id).tolist(), []
        for start, stop in zip(bounds, bounds[1:]):
            rows = sliding_windows(stop - start, self.seq_len, self.stride)
            rows[:, 0] += start
            pieces.append(rows)
        return np.concatenate(pieces)

    def run(self, ledger: "Ledger") -> None:
        """Score windows of about the same length together; all at one length and in stream order where adjusters read
        the stream, the model's frequencies depend on how long a row is, or one shape was compiled.
        """
        windows = self.windows(ledger.layout())
        stretches = bool(getattr(ledger.model.config.position, "reference", 0))
        padded = -(-windows[:, 2] // BUCKET) * BUCKET
        if self.compiler.fixes_length() or self.adjusters() or stretches:
            padded[:] = self.seq_len
        padded = padded.clip(max=self.seq_len)
        ledger.watch.expects(int(padded.sum()))
        for length in sorted(set(padded.tolist()), reverse=True):
            ledger.score(windows[padded == length], length)
