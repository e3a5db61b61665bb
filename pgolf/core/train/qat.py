"""Quantization-aware training: the matrices of the blocks act as if they were rounded (spec: training 5).

A kind is configuration, and a part of the model while it acts. Masters stay floats, and are what is averaged,
validated and exported.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import ATTN, MLP, ParamSpec
from pgolf.core.model.slots import Part
from pgolf.core.train.steady import Steady

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-10
"""The smallest clip, which keeps rows of zeros from dividing by zero."""


@dataclass(frozen=True, kw_only=True)
class StraightThrough(Steady, Part):
    """Late in a run every row is rounded to the grid it will have, and gradients pass straight through. Effect: useless
    or harmful together with an EMA: PR #1493 ended 0.009 to 0.019 worse. Source: PR #315 (late), PR #1512 (banks).
    """

    fusible = False
    floor = 1.0
    bits: int = 6
    """Code width of the export: codes lie in ±(2^(bits-1) - 1)."""
    k: float = 0.0
    """Clip in standard deviations of the row, as quant.k has it; 0 clips at the row's largest value, for
    straight_through and soft_round at least 1 (upstream's floor).
    """
    below: float = 0.15
    """Multiplier of the learning rates under which it begins (upstream: late_qat_threshold)."""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ConfigError(f"bits must be 2 to 8, not {self.bits}", "bits")
        if self.k < 0:
            raise ConfigError(f"k must not be negative, not {self.k}", "k")
        if not 0 < self.below <= 1:
            raise ConfigError(f"below must lie in (0, 1], not {self.below}", "below")

    def enlist(self, extras: list[Any], device: Any, token_bytes: Any) -> None:
        """It is what acts."""
        extras.append(self)

    def extra_parts(self, fraction: float, lr_scale: float) -> tuple[Part, ...]:
        """Itself, once the learning rates are low."""
        return (self,) if lr_scale < self.below else ()

    def chosen(self, spec: ParamSpec, passes: int) -> bool:
        """Every matrix of the blocks."""
        return spec.role in (ATTN, MLP)

    def cover(self, model: Any) -> None:
        """Those chosen."""
        model.treat(self, self.chosen)

    def steps(self, weight_RC: "Tensor") -> "Tensor":
        """Distance between neighbouring values of each row, (R,1), without a gradient."""
        rows, least = weight_RC.detach(), TINY if self.k else self.floor
        clip = self.k * rows.std(1, keepdim=True) if self.k else rows.abs().amax(1, keepdim=True)
        return clip.clamp_min(least) / (2 ** (self.bits - 1) - 1)

    def weights(self, weight: "Tensor", role: str) -> "Tensor":
        """Rounded forward, the identity backward."""
        steps, limit = self.steps(weight), 2 ** (self.bits - 1) - 1
        return weight + ((weight / steps).round().clamp(-limit, limit) * steps - weight).detach()


@dataclass(frozen=True, kw_only=True)
class SoftRound(StraightThrough):
    """As straight_through, by a slope in place of the jump, from 1 (almost the identity) to 16 (almost a jump) while
    the learning rates go to zero; its own gradient is taken. Unproven (a fork of PR #638).
    """

    below: float = 0.5
    """Multiplier of the learning rates under which it begins."""

    def enlist(self, extras: list[Any], device: Any, token_bytes: Any) -> None:
        """With a slope that changes without another graph."""
        import torch

        extras.append(SoftRounding(self, torch.ones((), device=device)))


class SoftRounding(Part):
    """SoftRound in a run, at the slope of the moment, a float32 scalar."""

    def __init__(self, kind: SoftRound, slope: "Tensor") -> None:
        self.kind, self.slope = kind, slope

    def extra_parts(self, fraction: float, lr_scale: float) -> tuple[Part, ...]:
        """Itself, once the learning rates are low; the slope follows them."""
        if lr_scale >= self.kind.below:
            return ()
        self.slope.fill_(16 - 15 * lr_scale / self.kind.below)
        return (self,)

    def cover(self, model: Any) -> None:
        """As its kind does."""
        model.treat(self, self.kind.chosen)

    def weights(self, weight: "Tensor", role: str) -> "Tensor":
        """k + 1/2 + tanh(a (r - k - 1/2)) / (2 tanh(a / 2)) steps for r steps between k and k + 1."""
        steps = self.kind.steps(weight)
        ratio = weight / steps
        middle = ratio.detach().floor() + 0.5
        return steps * (middle + ((ratio - middle) * self.slope).tanh() / (2 * (self.slope / 2).tanh()))


@dataclass(frozen=True, kw_only=True)
class Noise(StraightThrough):
    """Layers that run more than once are used with noise as wide as a step of the export, drawn anew in every pass,
    from the first step on. Effect: the loss through quantization of a model of looped layers fell from 0.37 to 0.002
    (int8). Source: PR #363.
    """

    floor = TINY
    bits: int = 8
    """Code width of the export."""
    below: float = 1.0
    """Multiplier of the learning rates under which it begins; 1 is from the start."""

    def extra_parts(self, fraction: float, lr_scale: float) -> tuple[Part, ...]:
        """Itself."""
        return (self,) if lr_scale < self.below or self.below == 1 else ()

    def chosen(self, spec: ParamSpec, passes: int) -> bool:
        """Matrices of layers with several passes."""
        return passes > 1 and super().chosen(spec, passes)

    def weights(self, weight: "Tensor", role: str) -> "Tensor":
        """Off by up to half a step."""
        from torch import rand_like

        return weight + self.steps(weight) * (rand_like(weight) - 0.5)


@dataclass(frozen=True, kw_only=True)
class CrownQ(StraightThrough):
    """While the learning rates fall, `weight` times the sum of w^2 D^2 / 12 is added to the loss, D the step of w's
    row: rows that will be coarse shrink. Effect: 1.1186 in a fork, against no figure without. Source: CROWN-Q, a fork.
    """

    floor = TINY
    bits: int = 5
    """Code width whose step counts (upstream: clip / 15, which is 5 bits)."""
    below: float = 1.0
    """Multiplier of the learning rates under which it begins."""
    weight: float = 0.01
    """Factor on the sum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weight > 0:
            raise ConfigError(f"weight must be above 0, not {self.weight}", "weight")

    def weights(self, weight: "Tensor", role: str) -> "Tensor":
        """As they are."""
        return weight

    def extra_loss(
        self, root: Any, hidden_BTC: "Tensor", logits_BTV: "Tensor", targets_BT: "Tensor"
    ) -> "Tensor | float":
        """The sum over all covered matrices, steps without a gradient."""
        squares = [(node.weight * self.steps(node.weight)).square().sum() for node in root.covered]
        return self.weight / 12 * sum(squares)
