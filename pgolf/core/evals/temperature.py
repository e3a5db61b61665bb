"""Sharper or flatter distributions (spec: model 6, Temperature)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.evals.adjustment import Adjustment
from pgolf.core.evals.base import Adjuster

if TYPE_CHECKING:
    from torch import Tensor

    from pgolf.core.evals.adjusted import AdjustedLedger


@dataclass(frozen=True, kw_only=True)
class FixedTemperature(Adjuster):
    """softmax(logits / value). To be chosen on training documents, as `pgolf sweep eval` does; chosen by the score it
    would be an answer of the validation text's. Source: PR #640.
    """

    learns = crosses = False
    value: float = 0.9
    """Below 1 the likely becomes likelier. PR #640 tried 0.9, 0.95, 1, 1.05 and 1.1, and took 0.9."""

    def __post_init__(self) -> None:
        if not self.value > 0:
            raise ConfigError(f"value must be above 0, not {self.value}", "value")

    def begin(self, ledger: "AdjustedLedger") -> "Tempered":
        """Nothing is kept."""
        return Tempered(ledger, self.value)


class Tempered(Adjustment):
    """The logarithms over the temperature, normalised anew."""

    def __init__(self, ledger: "AdjustedLedger", value: float) -> None:
        super().__init__(ledger)
        self.value = value

    def apply(self, position: int, logp_SV: "Tensor") -> "Tensor":
        """What the model's logits over the temperature would give."""
        return (logp_SV / self.value).log_softmax(-1)
