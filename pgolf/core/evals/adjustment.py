"""What an adjuster knows of one stream. Loaded without torch.

Shapes: B windows, T time, S scored positions of one window, V vocabulary.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from pgolf.core.evals.adjusted import AdjustedLedger


class Adjustment:
    """What an adjuster knows of a stream so far. The methods change nothing until they are overridden."""

    tunes = False
    """Whether it takes time to adapt to each window, which a budget may end, and hidden states of all its context."""

    def __init__(self, ledger: "AdjustedLedger") -> None:
        self.ledger = ledger

    def due(self, position: int) -> bool:
        """Whether it wants to learn before the target at `position` is scored, with all before that committed."""
        return False

    def learn(self, position: int) -> None:
        """Learn from the targets before `position`; on all ranks at once."""

    def logits(self, windows: "np.ndarray", hidden_BTC: "Tensor", ids_BT: "Tensor") -> "dict[int, Tensor]":
        """Logits (S,V) of the scored positions, for those rows of the batch that are not to have the model's own. Only
        one that `tunes` may look at hidden states, of whole windows. `ids_BT` end with the first scored position, zeros
        after that.
        """
        return {}

    def apply(self, position: int, logp_SV: "Tensor") -> "Tensor":
        """Logarithms of another distribution for the targets position .. position + S - 1."""
        return logp_SV

    def settled(self, position: int, targets_S: "Tensor") -> None:
        """What came, once its distribution is final."""
