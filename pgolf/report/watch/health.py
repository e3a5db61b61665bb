"""Is a run still sound? What is not finite, and whether the loss has run away."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LINES = 10
"""Log lines in a row, after those of the first ten steps, that make a divergence."""


def not_finite(tensors: "Iterable[tuple[str, Tensor]]") -> str:
    """The name of the first tensor with a value that is not finite, "" if there is none. Waits for the device once."""
    import torch

    named = [(name, tensor.detach()) for name, tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not named:
        return ""
    largest = torch._foreach_norm([tensor for _, tensor in named], float("inf"))
    device = named[0][1].device
    bad = torch.stack([value.to(device, torch.float32) for value in largest]).isfinite().logical_not().tolist()
    return next((name for (name, _), flag in zip(named, bad) if flag), "")


def culprit(weights: "Iterable[tuple[str, Tensor]]") -> str:
    """What is wrong with weights, or else with their gradients, in words."""
    weights = list(weights)
    if name := not_finite(weights):
        return f"the weight {name} is not finite"
    if name := not_finite((name, weight.grad) for name, weight in weights if weight.grad is not None):
        return f"the gradient of {name} is not finite, all weights are"
    return "weights and gradients are finite, so it is the loss or an activation"


def group_norms(groups: "dict[str, list[Tensor]]") -> dict[str, float]:
    """The norm of the gradient of each group of parameters. Waits for the device once."""
    import torch

    grads = {group: [weight.grad for weight in some if weight.grad is not None] for group, some in groups.items()}
    norms = [
        torch.stack([norm.float() for norm in torch._foreach_norm(some)]).norm() for some in grads.values() if some
    ]
    values = torch.stack(norms).tolist() if norms else []
    return dict(zip((group for group, some in grads.items() if some), values))


class Divergence:
    """Recognises a run whose loss stays more than `rise` nats above its lowest; 0 never does."""

    def __init__(self, rise: float) -> None:
        self.rise, self.lowest, self.above = rise, float("inf"), 0

    def verdict(self, event: dict[str, Any]) -> str:
        """Take note of a logged step; what is wrong, "" as long as nothing is."""
        self.lowest = min(self.lowest, event["loss"])
        high = event["step"] > 10 and event["loss"] > self.lowest + self.rise
        self.above = self.above + 1 if high else 0
        if not self.rise or self.above < LINES:
            return ""
        rise = f"{event['loss']:.4f}, more than {self.rise:g} above its lowest, {self.lowest:.4f}"
        return f"the loss has diverged: {rise}, and was so at {LINES} log lines in a row"
