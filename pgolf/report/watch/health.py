"""Is a run still sound? What is not finite, and whether the loss has run away."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from pgolf.core.dist import World

LASTING = 50
"""Steps in a row, after the first ten, that make a divergence."""
LOOK_STEPS = 25
"""Steps at most until the losses that a GPU has computed are read."""
SOUND = "weights and gradients are finite, so it is the loss or an activation"


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
    return SOUND


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

    def verdict(self, step: int, loss: float) -> str:
        """Take note of a step; what is wrong, "" as long as nothing is."""
        self.lowest = min(self.lowest, loss)
        high = step > 10 and loss > self.lowest + self.rise
        self.above = self.above + 1 if high else 0
        if not self.rise or self.above < LASTING:
            return ""
        rise = f"{loss:.4f}, more than {self.rise:g} above its lowest, {self.lowest:.4f}"
        return f"the loss has diverged: {rise}, and was so at {LASTING} steps in a row"


class Unread:
    """Losses of steps that a GPU has computed and nobody has read, and what was not finite when this rank's first was
    not. `note` never waits for the GPU; the ranks `read` at the same steps.
    """

    def __init__(self, weights: "Iterable[tuple[str, Tensor]]", world: "World") -> None:
        by_type: dict[object, list[tuple[str, Tensor]]] = {}
        for name, weight in weights:
            by_type.setdefault(weight.dtype, []).append((name, weight))
        self.groups = [[weight for _, weight in group] for group in by_type.values()]
        """Weights of one type, for which torch has kernels that take all at once."""
        self.said: list[str] = []
        for group in by_type.values():
            self.said += [f"the weight {name} is not finite" for name, _ in group]
            self.said += [f"the gradient of {name} is not finite, all weights are" for name, _ in group]
        self.world = world
        self.losses: dict[int, Tensor] = {}
        self.first: Tensor | None = None
        self.sound: Tensor | None = None

    def note(self, step: int, loss: "Tensor") -> None:
        """Keep a step's loss, of this rank, and see what is finite as long as all losses were."""
        import torch

        self.losses[step] = loss
        with torch.no_grad():
            sound = self.finite()
            if self.first is None or self.sound is None:
                self.first, self.sound = torch.zeros_like(loss, dtype=torch.int64), sound
            so_far = self.first == 0
            self.sound = torch.where(so_far, sound, self.sound)
            self.first = torch.where(so_far & ~loss.isfinite(), step, self.first)

    def finite(self) -> "Tensor":
        """Whether all values of each weight and gradient are, as bools on the device."""
        import torch

        largest = []
        for group in self.groups:
            grads = [weight if weight.grad is None else weight.grad for weight in group]
            largest.append(torch.stack(torch._foreach_norm([*group, *grads], float("inf"))))
        return torch.cat(largest).isfinite()

    def read(self) -> dict[int, float]:
        """The mean over the ranks of every loss that was noted since, by step."""
        import torch

        losses, self.losses = self.losses, {}
        if not losses:
            return {}
        values = self.world.sum_(torch.stack(list(losses.values())))
        return dict(zip(losses, (values / self.world.size).tolist()))

    def culprit(self, step: int) -> str:
        """What was not finite where the first loss that was not was that of `step`, whichever rank's it was."""
        if self.first is None or self.sound is None:
            return SOUND
        flags = self.world.max_((~self.sound).float() * (self.first == step)).tolist()
        found = sorted(
            (words for words, flag in zip(self.said, flags) if flag), key=lambda words: "gradient of" in words
        )
        return found[0] if found else SOUND
