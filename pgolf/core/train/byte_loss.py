"""Losses that count some targets more than others."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.slots import Part
from pgolf.core.train.steady import Steady

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ByteWeighted(Steady):
    """The mean loss of a batch weighs each target by a power of its bytes; a token without bytes of its own weighs as
    one byte. (Bits per byte weigh every token alike, so a power of 0 is their gradient.)
    """

    fusible = False
    power: float = 0.5
    """Exponent of the bytes; 1 weighs bytes alike."""

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise ConfigError(f"power must be above 0, not {self.power}", "power")

    def token_table(self, tokenizer: Any, vocab_size: int) -> Any:
        """Every id's bytes with its leading space, (V,) int64."""
        from pgolf.core.bpb import byte_table

        return byte_table(tokenizer, vocab_size).typical

    def enlist(self, extras: list[Any], device: Any, token_bytes: Any) -> None:
        """With the weight of every id on the device."""
        from torch import from_numpy

        if token_bytes is None:
            raise ConfigError("the bytes of tokens are not known here", "train.loss")
        extras.append(WeightedLoss(from_numpy(token_bytes).clamp_min(1).float().pow(self.power).to(device)))


class WeightedLoss(Part):
    """Puts a weighted mean in the place of the mean loss; `weights_V` has a float32 weight for every id."""

    def __init__(self, weights_V: "Tensor") -> None:
        self.weights_V = weights_V

    def extra_parts(self, fraction: float, lr_scale: float) -> tuple[Part, ...]:
        """Itself, always."""
        return (self,)

    def extra_loss(
        self, root: Any, hidden_BTC: "Tensor", logits_BTV: "Tensor", targets_BT: "Tensor"
    ) -> "Tensor | float":
        """The weighted mean minus the plain one, nats."""
        from torch.nn.functional import cross_entropy

        targets = targets_BT.flatten()
        losses = cross_entropy(logits_BTV.flatten(0, 1), targets, reduction="none")
        weights = self.weights_V[targets]
        return (losses * weights).sum() / weights.sum() - losses.mean()
