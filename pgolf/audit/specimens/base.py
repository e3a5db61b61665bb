"""What specimens share: methods that break a rule, for the audit to catch. None can be chosen to score a model: they
are in no catalog, the ledger they run on gives no score, and ledgers that do are refused to them.
"""

from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.audit.trace import PlainRecording
from pgolf.audit.verdict import broken
from pgolf.core.errors import RuleError
from pgolf.core.evals.sliding import sliding_windows
from pgolf.core.model.gpt import GPT


class Specimen:
    """A method that scores sliding windows; each subclass breaks one rule. `caught` are the letters of the checks that
    convict it, `perhaps` those whose effect may be too small to see.
    """

    caught = ""
    perhaps = ""
    source = ""
    seq_len, stride, batch_seqs, max_tokens = 32, 16, 4, 0

    @classmethod
    def fault(cls) -> str:
        """What it does and, in the audit's words, what that breaks."""
        what = (cls.__doc__ or "").strip()
        return f"{what} It breaks: {broken(cls.caught)}" if cls.caught else what

    def adjusters(self) -> NoReturn:
        """Asked by evaluations that give a score, of which the audit's ledger is none: RuleError."""
        raise RuleError(f"a specimen of the audit gets no score. {self.fault()}", type(self).__name__)

    def arrange(self, model: GPT) -> None:
        """Nothing changes."""

    def windows(self, ledger: Any) -> np.ndarray:
        """The windows of a sliding pass."""
        return sliding_windows(ledger.targets, self.seq_len, self.stride)

    def run(self, ledger: Any) -> None:
        """One pass."""
        ledger.score(self.windows(ledger))

    def hidden(self, hidden_TC: Tensor) -> Tensor:
        """The final hidden states of a window."""
        return hidden_TC

    def distort(self, ledger: Any, position: int, logp_SV: Tensor, ids_T: Tensor) -> Tensor:
        """What is given out as the logarithm of a distribution for the targets position .. position + S - 1, whose
        inputs are the last S of `ids_T`.
        """
        return logp_SV


class SpecimenRecording(PlainRecording):  # type: ignore[misc]
    """The ledger of specimens: it takes what they call a distribution as it is."""

    def inputs(self, windows: np.ndarray) -> Tensor:
        """What the model is fed for windows of seq_len inputs, (n,seq_len) int64."""
        places = windows[:, :1] + np.arange(self.method.seq_len)
        return torch.from_numpy(self.stream[places.clip(max=len(self.stream) - 1)])

    def nll(self, windows: np.ndarray, ids_BT: Tensor, targets_BT: Tensor, start: int) -> Tensor:
        """Losses of a batch of windows from position `start` on, (B, T - start) float32."""
        hidden = self.model.hidden(ids_BT)
        losses = torch.zeros(len(windows), ids_BT.size(1) - start)
        for row, (begin, first, end) in enumerate(windows.tolist()):
            changed = self.method.hidden(hidden[row])
            logp = F.log_softmax(self.model.head(changed[None, first:end])[0], -1)
            logp = self.method.distort(self, begin + first, logp, ids_BT[row, :end])
            losses[row, first - start : end - start] = F.nll_loss(logp, targets_BT[row, first:end], reduction="none")
        return losses


def tuned_delta(ledger: Any, hidden_BTC: Tensor, targets_BT: Tensor, steps: int = 4, lr: float = 0.3) -> Tensor:
    """A vector (C,) added to hidden states that lowers the loss of these targets."""
    delta = torch.zeros(hidden_BTC.size(-1), requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            logits = ledger.model.head(hidden_BTC.detach() + delta)
            (delta.grad,) = torch.autograd.grad(F.cross_entropy(logits.flatten(0, 1), targets_BT.flatten()), delta)
            optimizer.step()
    return delta.detach()


def train(ledger: Any, tokens: np.ndarray, steps: int = 2, lr: float = 0.5) -> None:
    """A few steps of gradient descent on a text (N,), all of it at once."""
    length = ledger.method.seq_len
    rows = torch.from_numpy(np.asarray(tokens)[: (len(tokens) - 1) // length * length + 1]).unfold(
        0, length + 1, length
    )
    weights = list(ledger.model.parameters())
    with torch.enable_grad():
        for _ in range(steps):
            loss = ledger.model(rows[:, :-1], rows[:, 1:])
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients):
                    if gradient is not None:
                        weight.sub_(lr * gradient)


def counted_pairs(tokens: np.ndarray, size: int) -> np.ndarray:
    """How often each token followed each, (V,V)."""
    table = np.zeros((size, size), np.float32)
    np.add.at(table, (tokens[:-1], tokens[1:]), 1)
    return table


def share_of_pairs(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The share of what followed each of these tokens, (S,V); uniform where nothing did."""
    rows = table[ids]
    total = rows.sum(1, keepdims=True)
    found: np.ndarray = np.where(total > 0, rows / np.maximum(total, 1), 1 / table.shape[1])
    return found


def blended(logp_SV: Tensor, other: np.ndarray, weight: float) -> Tensor:
    """The logarithm of a mixture with other shares (S,V)."""
    return ((1 - weight) * logp_SV.exp() + weight * torch.from_numpy(other).float()).log()
