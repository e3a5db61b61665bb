"""Adapters per document over weights that learn between groups of documents (spec: evaluation 9.3)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.evals.document import document_begins
from pgolf.core.ttt.documents import length_batches
from pgolf.core.ttt.lora import LoraTtt
from pgolf.core.ttt.weights import WeightTraining

if TYPE_CHECKING:
    import numpy as np

    from pgolf.core.dist import World
    from pgolf.core.evals.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class PhasedTtt(LoraTtt):
    """As lora, and when the first documents of the queue have been scored, the weights themselves learn from them, once
    in each phase; adapters then begin anew. Where phases end is a matter of counting, not of time. Effect: -0.0006 for
    one phase, -0.0008 for three (PR #1610, #1626). Source: PR #1610, #1626, #1855.
    """

    phases: int = 3
    """How often the weights learn."""
    prefix_docs: int = 2000
    """Documents that are scored before the last phase ends; phase j of m ends after prefix_docs * j / m. Phases that no
    document would follow are left out.
    """
    order: str = "stream"
    """The queue of documents: stream, or longest, the longest batch first, as in the records: what a document is scored
    with then depends on documents that come after it in the stream.
    """
    base: WeightTraining = WeightTraining(lr=0.001, epochs=1)
    """How the weights learn from all documents scored so far, in a text that is cut into chunks, the last left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.phases <= self.prefix_docs:
            raise ConfigError(
                f"phases must lie between 1 and prefix_docs {self.prefix_docs}, not {self.phases}", "phases"
            )
        if self.order not in ("stream", "longest"):
            raise ConfigError(f"{self.order!r} is neither stream nor longest", "order")
        if self.base.chunk_tokens < self.seq_len:
            raise ConfigError(f"{self.base.chunk_tokens} must be at least seq_len {self.seq_len}", "base.chunk_tokens")

    def alone(self) -> bool:
        """The weights know the documents of earlier phases."""
        return False

    def run(self, ledger: "Ledger") -> None:
        """Alternate groups of documents and learning from all that is behind."""
        import numpy as np

        begins = document_begins(ledger.layout(), self.bos_id)
        count, done = len(begins) - 1, 0
        longest = self.order == "longest"
        queue = np.concatenate(length_batches(np.diff(begins), self.batch_seqs)) if longest else np.arange(count)
        ends = [self.prefix_docs * phase // self.phases for phase in range(1, self.phases + 1)]
        ends = [*(end for end in ends if end < count), count]
        ledger.watch.expects(self.work(np.diff(begins)[queue], ends, ledger.watch.world))
        for end in ends:
            self.score_documents(ledger, begins, queue[done:end])
            if end < count and ledger.watch.adapting(ledger):
                steps = self.learn(ledger, begins, queue[:end])
                ledger.watch.learned(steps)
                ledger.watch.worked(self.lesson(np.diff(begins)[queue[:end]], ledger.watch.world))
            done = end

    def work(self, lengths: "np.ndarray", ends: list[int], world: "World") -> int:
        """Inputs of all passes of a rank over a queue of documents so long, of which groups have these ends."""
        scored = sum(self.share(lengths[done:end], world)[1] for done, end in zip([0, *ends], ends))
        return scored + sum(self.lesson(lengths[:end], world) for end in ends[:-1])

    def lesson(self, lengths: "np.ndarray", world: "World") -> int:
        """A rank's share of the inputs of a phase that learns from documents so long, without the last chunk."""
        chunks = max(int(lengths.sum()) - 2, 0) // self.base.chunk_tokens
        return chunks * self.base.chunk_tokens * self.base.epochs // world.size

    def learn(self, ledger: "Ledger", begins: "np.ndarray", documents: "np.ndarray") -> int:
        """The weights learn from documents one after another; the number of steps. That a document begins with BOS
        needs no revealing.
        """
        import numpy as np

        texts: list[Any] = []
        for start, stop in zip(begins[documents], begins[documents + 1]):
            texts += [[self.bos_id], ledger.reveal(start + 1, stop)] if start else [ledger.reveal(0, stop)]
        return self.base.learn_text(ledger.model, ledger.watch.world, np.concatenate(texts), self.seq_len)
