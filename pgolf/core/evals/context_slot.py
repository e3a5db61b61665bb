"""SLOT on context alone: something small is tuned to each window's context, which is not scored with it (spec:
evaluation 8).

One delta per window. Tuned on a batch of windows together it would know targets of one from the context of another.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.evals.adjustment import Adjustment
from pgolf.core.evals.base import Adjuster

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from pgolf.core.evals.adjusted import AdjustedLedger


@dataclass(frozen=True, kw_only=True)
class SlotAdamW(Adjuster):
    """A vector added to every final hidden state of a window, tuned by AdamW to the context, from zero, for each window
    anew. Effect: -0.009 (PR #1306), -0.013 with one vector per batch, which leaks (PR #1333). Source: PR #1128, #1306.
    """

    crosses = False
    steps: int = 16
    """Steps per window."""
    lr: float = 0.008
    """First learning rate; a cosine brings it to a tenth."""
    weight_decay: float = 1e-8
    """Decay of the vector."""
    context_tokens: int = 0
    """Tune to the last so many targets of the context; 0 is all of it."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.context_tokens < 0:
            raise ConfigError("steps must be at least 1, context_tokens not negative", "steps")
        if self.lr < 0 or self.weight_decay < 0:
            raise ConfigError("lr and weight_decay must not be negative", "lr")

    def begin(self, ledger: "AdjustedLedger") -> "Slotting":
        """Nothing is kept from window to window."""
        return Slotting(ledger, self)

    def tuned(
        self, ledger: "AdjustedLedger", hidden_BMC: "Tensor", known_BM: "Tensor", scored_BSC: "Tensor"
    ) -> "Tensor":
        """Logits (B,S,V) of the scored positions from their hidden states, those of the context and its targets."""
        import torch
        import torch.nn.functional as F

        delta = torch.zeros_like(hidden_BMC[:, :1], dtype=torch.float32, requires_grad=True)
        optimizer = torch.optim.AdamW([delta], lr=self.lr, weight_decay=self.weight_decay)
        for step in range(self.steps):
            rate = 0.5 * (1 + math.cos(math.pi * step / max(self.steps - 1, 1)))
            optimizer.param_groups[0]["lr"] = self.lr * (0.1 + 0.9 * rate)
            logits = ledger.model.head(hidden_BMC + delta.to(hidden_BMC.dtype))
            loss = F.cross_entropy(logits.flatten(0, 1), known_BM.flatten(), reduction="sum") / known_BM.size(1)
            (delta.grad,) = torch.autograd.grad(loss, delta)
            optimizer.step()
        with torch.no_grad():
            return ledger.model.head(scored_BSC + delta.to(scored_BSC.dtype))


@dataclass(frozen=True, kw_only=True)
class SlotLbfgs(Adjuster):
    """A bias on the raw logits of a window, before the soft-cap, tuned by L-BFGS to the end of its context, from zero,
    for each window anew. Effect: -0.088 with a start from the window before (PR #1350, unreviewed). Source: PR #1350.
    """

    crosses = False
    iterations: int = 25
    """Iterations per window."""
    history: int = 20
    """Steps that L-BFGS remembers."""
    limit: float = 5.0
    """The bias is cut to this size."""
    decay: float = 0.03
    """Half of it times the bias squared is added to the mean loss of the context. PR #1350 has none, but starts from
    the window before; from zero and without it, a short context is learned by heart.
    """
    context_tokens: int = 128
    """Tune to the last so many targets of the context; 0 is all of it."""

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.history < 1 or self.context_tokens < 0:
            raise ConfigError("iterations and history must be at least 1, context_tokens not negative", "iterations")
        if self.limit <= 0 or self.decay < 0:
            raise ConfigError("limit must be above 0, decay not negative", "limit")

    def begin(self, ledger: "AdjustedLedger") -> "Slotting":
        """Nothing is kept from window to window."""
        return Slotting(ledger, self)

    def tuned(
        self, ledger: "AdjustedLedger", hidden_BMC: "Tensor", known_BM: "Tensor", scored_BSC: "Tensor"
    ) -> "Tensor":
        """Logits (B,S,V) of the scored positions from their hidden states, those of the context and its targets."""
        import torch
        import torch.nn.functional as F

        cap, found = ledger.model.config.logit_softcap, []
        for hidden, known, scored in zip(hidden_BMC, known_BM, scored_BSC):
            raw = ledger.model.raw(hidden[None])[0].detach().float()
            bias = torch.zeros(raw.size(-1), device=raw.device, requires_grad=True)
            optimizer = torch.optim.LBFGS(
                [bias], max_iter=self.iterations, history_size=self.history, line_search_fn="strong_wolfe"
            )

            def closure(raw: "Tensor" = raw, bias: "Tensor" = bias, known: "Tensor" = known) -> "Tensor":
                loss = F.cross_entropy(cap.apply(raw + bias), known) + 0.5 * self.decay * bias.square().sum()
                (bias.grad,) = torch.autograd.grad(loss, bias)
                return loss

            optimizer.step(closure)
            with torch.no_grad():
                bounded = bias.clamp(-self.limit, self.limit)
                found.append(cap.apply(ledger.model.raw(scored[None])[0].float() + bounded))
        return torch.stack(found)


class Slotting(Adjustment):
    """Windows of a batch, each tuned for itself."""

    tunes = True

    def __init__(self, ledger: "AdjustedLedger", settings: SlotAdamW | SlotLbfgs) -> None:
        super().__init__(ledger)
        self.settings = settings

    def logits(self, windows: "np.ndarray", hidden_BTC: "Tensor", ids_BT: "Tensor") -> "dict[int, Tensor]":
        """Logits (S,V) of windows with context, those of equal shape tuned side by side; while there is time."""
        import numpy as np
        import torch

        found: dict[int, Tensor] = {}
        self.ledger.watch.tuning_begins()
        shapes = {(first, end) for _, first, end in windows.tolist() if first and self.ledger.tuning}
        for first, end in sorted(shapes):
            rows = np.flatnonzero((windows[:, 1] == first) & (windows[:, 2] == end)).tolist()
            start = max(first - self.settings.context_tokens, 0) if self.settings.context_tokens else 0
            # The context's targets are the inputs after it, up to the last but one before the scored part.
            hidden = hidden_BTC[rows]
            with torch.enable_grad():
                tuned = self.settings.tuned(
                    self.ledger,
                    hidden[:, start:first],
                    ids_BT[rows, start + 1 : first + 1],
                    hidden[:, first:end],
                )
            found |= dict(zip(rows, tuned.detach()))
        self.ledger.watch.tuning_ends(self.ledger)
        return found
