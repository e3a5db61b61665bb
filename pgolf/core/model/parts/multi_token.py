"""Heads that predict later tokens, in training only."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import HEAD, ParamSpec
from pgolf.core.model.slots import LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TokenHeads(Part):
    """Heads of their own predict the tokens after the next one; their mean loss is added with a weight. They are zero
    at the start and dropped at export. Effect: +0.0094 on a fork of PR #1493, whose one output was to predict both
    tokens. Source: arXiv:2404.19737, PR #1019.
    """

    extra_tokens: int = 2
    """How many tokens beyond the next (upstream: mtp_num_heads)."""
    weight: float = 0.2
    """Factor on the mean of their losses (upstream: mtp_loss_weight)."""

    def __post_init__(self) -> None:
        if self.extra_tokens < 1 or self.weight <= 0:
            raise ConfigError("extra_tokens must be at least 1 and weight positive", "extra_tokens")

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """mtp_heads.k.weight (V,C)."""
        size, fill = (shape.vocab_size, shape.model_dim), ("fill", 0.0)
        names = [f"mtp_heads.{k}.weight" for k in range(self.extra_tokens)] if shape.layer < 0 else []
        return tuple(ParamSpec(name, size, fill, HEAD, HEAD) for name in names)

    def leaves(self, parts: dict[str, Any]) -> bool:
        """Always: nothing but training reads the heads."""
        return True

    def extra_loss(
        self, root: Any, hidden_BTC: "Tensor", logits_BTV: "Tensor", targets_BT: "Tensor"
    ) -> "Tensor | float":
        """Nats; position t of head k is scored on the target k + 1 places later."""
        from torch.nn.functional import cross_entropy

        total: Tensor | float = 0.0
        for k in range(self.extra_tokens):
            node = root.mtp_heads.get_submodule(str(k))
            logits = root.config.logit_softcap.apply(node.linear(hidden_BTC[:, : -(k + 1)])).float()
            total = total + cross_entropy(logits.flatten(0, 1), targets_BT[:, k + 1 :].flatten())
        return self.weight / self.extra_tokens * total
