"""How parameters begin."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pgolf.core.model.parts.tied_embed import overtone


def uniform(weight: Tensor, gain: float, generator: torch.Generator) -> None:
    """Within gain / sqrt(columns) of zero."""
    bound = gain / weight.size(1) ** 0.5
    weight.uniform_(-bound, bound, generator=generator)


INITS: dict[str, Callable[[Tensor, float, torch.Generator], object]] = {
    "fill": lambda weight, x, generator: weight.fill_(x),
    "rows": lambda weight, x, generator: weight.zero_()[0].fill_(x),
    "normal": lambda weight, x, generator: weight.normal_(0.0, x, generator=generator),
    "overtone": overtone,
    "split": lambda weight, x, generator: (weight[0].fill_(x), weight[1].fill_(1 - x)),
    "eye": lambda weight, x, generator: nn.init.eye_(weight),
    "orthogonal": lambda weight, x, generator: nn.init.orthogonal_(weight, x, generator=generator),
    "linear": uniform,
}
"""How the float32 CPU tensor of a parameter begins, by the rule and the number in its spec."""
