"""Test-time training of low-rank adapters, each document with its own (spec: evaluation 9.2)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.evals.base import Evaluator
from pgolf.core.evals.document import document_begins
from pgolf.core.ttt.documents import chunk_window, deal, length_batches

if TYPE_CHECKING:
    import numpy as np

    from pgolf.core.dist import World
    from pgolf.core.evals.ledger import Ledger
    from pgolf.core.model.gpt import GPT
    from pgolf.core.ttt.adapters import Adapters


@dataclass(frozen=True, kw_only=True)
class LoraTtt(Evaluator):
    """Scores each document by itself, chunk by chunk, and takes a step of its adapters on each chunk that is scored; a
    batch has documents of about one length. Effect: -0.008 to -0.013 over windows without overlap (PR #1530, #1610,
    #1855). Source: PR #77, #1530, #1610.
    """

    learns = True
    chunk_tokens: int = 48
    """Targets per chunk, and per step."""
    rank: int = 80
    """Rank of the adapters."""
    alpha: float = 144.0
    """What they add is multiplied by alpha / rank."""
    targets: str = "lm_head,q,k,v,o,mlp"
    """What has an adapter beside it, separated by commas: lm_head, q, k, v, o (from attention's input to its output),
    mlp (from its input to its output); one for each time a layer runs.
    """
    lr: float = 1e-4
    """Rate of AdamW."""
    beta1: float = 0.0
    """Decay of the mean gradient."""
    beta2: float = 0.999
    """Decay of the mean square."""
    eps: float = 1e-10
    """Added to the root of the mean square."""
    weight_decay: float = 0.5
    """Decoupled: p <- p (1 - lr wd)."""
    warm_start: bool = False
    """Begin with the matrices A that the batch before has left (PR #1787). Scores of a document then depend on others,
    on batch_seqs and on the number of ranks.
    """
    bos_id: int = 1
    """Token that begins a document."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.chunk_tokens <= self.seq_len:
            raise ConfigError(
                f"chunk_tokens {self.chunk_tokens} must lie between 1 and seq_len {self.seq_len}", "chunk_tokens"
            )
        if self.rank < 1:
            raise ConfigError(f"rank must be at least 1, not {self.rank}", "rank")
        for key in ("lr", "weight_decay", "bos_id"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key} must not be negative, not {getattr(self, key)}", key)
        for key in ("alpha", "eps"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"{key} must be above 0, not {getattr(self, key)}", key)
        for key in ("beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"{key} must lie in [0, 1), not {getattr(self, key)}", key)
        keys = ("slot", "temperature", "bias", "cache", "mixer", "tilt")
        if ordered := [key for key in keys if getattr(self, key).learns]:
            raise ConfigError(
                f"{' and '.join(ordered)} would know of tokens in the stream's order, but documents with adapters are "
                "scored side by side, the longest first: some of those tokens are not scored yet",
                ordered[0],
                f"set ttt.{ordered[0]}=none, or use ttt.method=chunk, which scores in order",
            )
        if self.compiler.fixes_length():
            raise ConfigError("adapters change the model that would be compiled", "compiler", "set ttt.compiler=none")
        known = ("lm_head", "q", "k", "v", "o", "mlp")
        if strange := {*self.targets.split(",")} - {*known}:
            raise ConfigError(
                f"{', '.join(sorted(strange))!r} can have no adapter", "targets", f"choose of {', '.join(known)}"
            )

    def alone(self) -> bool:
        """Adapters begin anew."""
        return not self.warm_start

    def run(self, ledger: "Ledger") -> None:
        """All documents; none knows of another."""
        import numpy as np

        begins = document_begins(ledger.layout(), self.bos_id)
        ledger.watch.expects(self.share(np.diff(begins), ledger.watch.world)[1])
        self.score_documents(ledger, begins, np.arange(len(begins) - 1))

    def score_documents(self, ledger: "Ledger", begins: "np.ndarray", documents: "np.ndarray") -> None:
        """Score some documents by number, each rank its share of the batches; then every rank knows all losses."""
        from pgolf.core.ttt.adapters import AdaptedGPT, Adapters

        model, world = ledger.model, ledger.watch.world
        starts, stops = begins[documents], begins[documents + 1]
        lengths = stops - starts
        rows = min(self.batch_seqs, len(documents))
        adapters = Adapters(model, self.targets.split(","), self.rank, self.alpha / self.rank, rows)
        adapted = AdaptedGPT(model, adapters)
        model.requires_grad_(False)
        for batch in self.share(lengths, world)[0]:
            self.score_batch(ledger, adapted, adapters, starts[batch], lengths[batch])
        model.requires_grad_(True)
        if world.size > 1:
            ledger.exchange(int(starts.min()), int(stops.max()))

    def share(self, lengths: "np.ndarray", world: "World") -> "tuple[list[np.ndarray], int]":
        """The batches of documents so long that a rank scores, and the inputs of their windows in all."""
        batches = length_batches(lengths, self.batch_seqs)
        costs = [sum(sum(self.widths(length)) for length in lengths[batch].tolist()) for batch in batches]
        mine = deal(costs, world.size)[world.rank]
        return [batches[index] for index in mine], sum(costs[index] for index in mine)

    def widths(self, length: int) -> list[int]:
        """Inputs of each chunk's window in a document so long. Shorter documents beside it are padded to that, so that
        what is scored beside a document changes nothing. Products of a few rows are summed in another order; of 32 not.
        """
        step = self.chunk_tokens
        return [min(max(stop, 32), self.seq_len) for stop in range(step, length + step, step)]

    def score_batch(
        self, ledger: "Ledger", model: "GPT", adapters: "Adapters", begins: "np.ndarray", lengths: "np.ndarray"
    ) -> None:
        """Documents side by side, the shortest first: score a chunk of each that has one, then step from those losses
        wherever another chunk follows. Other ranks are elsewhere meanwhile, so each asks for itself if there is time.
        """
        import numpy as np
        import torch

        adapters.reset(self.warm_start)
        optimizer = torch.optim.AdamW(
            adapters.weights,
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
        )
        chunks = -(-lengths // self.chunk_tokens)
        for chunk, width in enumerate(self.widths(int(lengths[-1]))):
            first = int((chunks <= chunk).sum())
            windows = np.array(
                [chunk_window(int(length), chunk, self.chunk_tokens, self.seq_len) for length in lengths[first:]]
            )
            counts, follows = windows[:, 2] - windows[:, 1], chunks[first:] > chunk + 1
            windows[:, 0] += begins[first:]
            adapters.active = len(windows)
            with torch.set_grad_enabled(bool(follows.any())):
                losses = ledger.score_learnable(model, windows, width, max(width - max(self.chunk_tokens, 32), 0))
            if follows.any() and ledger.watch.adapting(ledger, alone=True):
                shares = torch.from_numpy(follows / counts).to(losses)
                (losses.sum(1) * shares).sum().backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                ledger.watch.adapted()
