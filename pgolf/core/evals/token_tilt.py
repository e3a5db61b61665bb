"""Hints from phrases that came before: the n-gram tilt (spec: evaluation 7.2)."""

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
class TokenTilt(Adjuster):
    """Raises the token that followed the same tokens most often so far: p(v) e^(beta [v = hint]) / Z. A hint comes from
    the highest order that knows the context well enough, and never looks at the token to come. Effect: -0.0001 to
    -0.003. Source: PR #1514 (token expert), #1437.
    """

    strength: float = 2.0
    """Beta of a hint that never failed; others by their share (upstream: 2.0, or 1.5 with threshold_scale 0.75)."""
    lowest: int = 8
    """Lowest order n: the n - 1 tokens before."""
    highest: int = 16
    """Highest order."""
    step: int = 2
    """From one order to the next."""
    threshold_scale: float = 1.0
    """Factor on the shares from which a hint is taken: 0.7 for orders up to 10, 0.6 up to 13, 0.5 above."""

    def __post_init__(self) -> None:
        if self.strength < 0 or self.threshold_scale < 0:
            raise ConfigError("strength and threshold_scale must not be negative", "strength")
        if not 2 <= self.lowest <= self.highest or self.step < 1:
            raise ConfigError("orders need 2 <= lowest <= highest, and a step of at least 1", "lowest")

    def hints(self, tokens: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
        """For the targets of a stream (N,): the hinted token or -1, (N-1,) int64, and its share of what followed,
        float32.
        """
        from pgolf.core.evals.token_hints import expert_hints

        return expert_hints(tokens, self.lowest, self.highest, self.step, self.threshold_scale)

    def begin(self, ledger: "AdjustedLedger") -> "Tilting":
        """All hints, in one pass."""
        return Tilting(ledger, self)


class Tilting(Adjustment):
    """The hints of one stream."""

    def __init__(self, ledger: "AdjustedLedger", tilt: TokenTilt) -> None:
        super().__init__(ledger)
        self.hint, share = ledger.causal(tilt.hints)
        self.beta = tilt.strength * share

    def apply(self, position: int, logp_SV: "Tensor") -> "Tensor":
        """Raise the hints."""
        import numpy as np
        import torch

        hint = self.hint[position : position + len(logp_SV)]
        rows = np.flatnonzero(hint >= 0)
        if len(rows):
            place = torch.from_numpy(rows).to(logp_SV.device)
            column = torch.from_numpy(hint[rows]).to(logp_SV.device)
            beta = torch.from_numpy(self.beta[position + rows]).to(logp_SV.device)
            norm = torch.log1p(logp_SV[place, column].exp() * torch.expm1(beta))
            logp_SV[place, column] += beta
            logp_SV[place] -= norm[:, None]
        return logp_SV
