"""Steps that use up a budget of bytes, and no role's bytes better spent on another (spec: quantization 9.2).

A role's steps are worth what a byte less of its codes costs. At the best steps that is the same for all roles: reverse
water-filling. It is measured: each role is quantized with steps a fifth coarser and a fifth finer, and the model judged
on training tokens. The cost grows with the square of the steps, so a role whose bytes are worth e^x times the others'
gets steps e^(x/2) times finer. Then one factor on all steps is found, by compressing, at which the submission fits.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgolf.config.run import RunConfig
from pgolf.core.errors import ConfigError, RuleError
from pgolf.core.model.config import param_specs
from pgolf.core.model.export import exported
from pgolf.core.model.params import ATTN, EMBED, HEAD, MLP
from pgolf.core.quant.base import IN_TURN, code_limit
from pgolf.core.quant.corrected import CorrectedTensor
from pgolf.core.quant.gptq import Gptq
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.core.quant.roles import ByRole
from pgolf.core.quant.sdclip import SdClip
from pgolf.core.quant.steps import entropy
from pgolf.core.quant.variants import CoarseLayers
from pgolf.report.console import Console
from pgolf.stages.coding import add_codes, finished, quantized_model

Cost = Callable[[QuantizedModel], Tensor]
"""A quantized model -> what quantization costs, as parts (N,) of a sum."""

SLACK = 2000
"""Bytes under the budget that may be left over."""
COMPRESSIONS = 12
NUDGES = (math.log(1.2), math.log(1.1), math.log(1.3))
"""Logarithms by which a role's steps are moved to see what they are worth; the first alone for a large model."""
MORE_NUDGES = (math.log(1.4), math.log(1.5), math.log(1.6))
"""Those that are averaged with them where the error is as large as what was found: of a larger move, it is smaller."""
LARGE = 10_000_000
"""Weights from which on one pair of steps tells enough: rounding is a draw, whose noise falls with their number."""
ROUNDS, LARGEST_MOVE = 4, 1.0
TOLERANCE = 0.1
"""Relative difference of what bytes are worth that is left alone, noise or not."""
COARSEST, CLIPPED = 1024.0, 1e-4
"""The largest factor on all steps that is tried; the share of codes that may reach the ends of their width."""


def rounded_to(value: float, digits: int) -> float:
    """A number of so many digits, as a script can state it."""
    return float(f"{value:.{digits}g}")


def uncorrected(model: QuantizedModel) -> dict[str, QTensor | Tensor]:
    """The tensors of a model without low-rank corrections."""
    found = model.tensors.items()
    return {name: tensor.base if isinstance(tensor, CorrectedTensor) else tensor for name, tensor in found}


@dataclass(frozen=True)
class Worth:
    """What bytes of a role are worth: the cost of one byte less, its standard error, the bytes of its codes by their
    order-0 entropy. What is measured may be negative.
    """

    gain: float
    error: float
    bytes: float

    @property
    def clear(self) -> bool:
        """Whether the measure is more than its error."""
        return self.gain > self.error

    @property
    def level(self) -> float:
        """The gain for a logarithm, the error where it is not clear."""
        return max(self.gain, self.error, 1e-30)

    def apart(self, middle: float) -> float:
        """By how much the gain differs from `middle`, over that; 0 within two standard errors or the tolerance."""
        return max(abs(self.gain - middle) / middle - max(2 * self.error / middle, TOLERANCE), 0.0)


@dataclass(frozen=True)
class Steps:
    """How the steps of a quantizer are scaled: by one factor and one for each role that the model has. A quantizer by
    role has the second alone, for those roles that have steps.
    """

    quantizer: Any
    roles: frozenset[str] = frozenset((EMBED, ATTN, MLP, HEAD))

    def __post_init__(self) -> None:
        if not self.scalable():
            raise ConfigError("the steps of this quantizer cannot be scaled", "--budget", "set quant.method=gptq")

    def scalable(self) -> dict[str, SdClip]:
        """The quantizer of each role whose steps can be."""
        one = self.quantizer
        found = one.quantizers() if isinstance(one, ByRole) else dict.fromkeys((EMBED, ATTN, MLP, HEAD), one)
        return {role: own for role, own in found.items() if role in self.roles and isinstance(own, SdClip)}

    @property
    def whole(self) -> float:
        """The factor on all steps."""
        return 1.0 if isinstance(self.quantizer, ByRole) else float(self.quantizer.theta)

    def own(self, role: str) -> float:
        """The factor of a role."""
        one = self.scalable()[role]
        return one.theta if isinstance(self.quantizer, ByRole) else one.own(role).theta

    def limit(self, role: str) -> int:
        """The largest code that a role may have; where steps do not come from a code width, that of 8 bits."""
        one = self.scalable()[role]
        return 127 if isinstance(one, Gptq) and one.planned else code_limit(one.grid(role)[0])

    def free(self) -> Any:
        """The quantizer without a rate that sets its steps."""
        plain: dict[str, Any] = {
            role: dataclasses.replace(one, bits_per_weight=0.0)
            for role, one in self.scalable().items()
            if isinstance(one, Gptq)
        }
        if isinstance(self.quantizer, ByRole):
            return dataclasses.replace(self.quantizer, **plain)
        return plain.get(EMBED, self.quantizer)

    def times(self, theta: float, thetas: Mapping[str, float]) -> Any:
        """The quantizer with these factors."""
        changed: dict[str, Any] = {}
        for role, own in thetas.items():
            one = self.scalable()[role]
            if isinstance(self.quantizer, ByRole):
                changed[role] = dataclasses.replace(one, theta=rounded_to(theta * own, 6))
            else:
                changed |= {"theta": theta, role: dataclasses.replace(one.own(role), theta=own)}
        return dataclasses.replace(self.quantizer, **changed)


def averaged(pairs: Sequence[tuple[float, float]], size: float) -> Worth:
    """What was found with several nudges, (gain, error) each. Their errors are of the same documents; what they differ
    by comes on top.
    """
    gains, errors = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs))
    spread = float(gains.std()) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return Worth(float(gains.mean()), math.hypot(float(errors.mean()), spread), size)


@dataclass(frozen=True)
class Fit:
    """Steps that fit, the model quantized with them, and how they were found."""

    quantizer: Any
    model: QuantizedModel
    total_bytes: int
    worth: dict[str, Worth]
    """By role, measured at these steps."""
    compressions: int

    def document(self) -> dict[str, Any]:
        """The figures of a report; what a kilobyte is worth is in BPB."""
        steps = Steps(self.quantizer)
        roles = {
            role: {
                "theta": steps.own(role),
                "code_bytes": round(one.bytes),
                "bpb_per_kilobyte": 1000 * one.gain,
                "error": 1000 * one.error,
            }
            for role, one in self.worth.items()
        }
        facts = {"theta": steps.whole, "total_bytes": self.total_bytes, "compressions": self.compressions}
        return facts | {"roles": roles}


def outward(layers: int) -> list[int]:
    """Numbers of layers from the centre outward, the later first."""
    centre = layers // 2
    return sorted(range(layers), key=lambda layer: (abs(layer - centre), -layer))


def downgraded(
    budget: int,
    quantizer: CoarseLayers,
    config: RunConfig,
    make: Callable[[CoarseLayers], QuantizedModel],
    total: Callable[[CoarseLayers, QuantizedModel], int],
    console: Console,
) -> Fit:
    """As few coarse layers, outward from the centre, as it takes for a submission of at most `budget` bytes; one
    compression for each. RuleError with the smallest size if all layers do not suffice.
    """
    given = quantizer.numbers
    more = [layer for layer in outward(config.model.num_layers) if layer not in given]
    for count in range(len(more) + 1):
        layers = ",".join(map(str, given + more[:count]))
        trial = dataclasses.replace(quantizer, layers=layers)
        model = make(trial)
        size = total(trial, model)
        console.line(f"budget: coarse layers {layers or 'none'} make {size:,} bytes")
        if size <= budget:
            return Fit(trial, model, size, {}, count + 1)
    what = f"a submission of {budget:,} bytes cannot be reached; with all layers coarse it has {size:,}"
    raise RuleError(what, "--budget", "set quant.coarse.bits lower, or quant.method=gptq")


class Fitter:
    """Looks for the steps. `known` is what a quantizer has to know of each parameter; `total` the bytes of a quantized
    model's submission, its script included.
    """

    def __init__(
        self,
        config: RunConfig,
        weights: Mapping[str, Tensor],
        known: Callable[[Any], Mapping[str, Any]],
        cost: Cost,
        total: Callable[[Any, QuantizedModel], int],
        console: Console,
    ) -> None:
        self.weights, self.known, self.cost, self.total, self.console = weights, known, cost, total, console
        self.config = exported(config.model)
        self.specs = param_specs(self.config)
        present = frozenset(spec.role for spec in self.specs)
        self.start = Steps(config.quant, present).free()
        self.steps = Steps(self.start, present)
        scalable = self.steps.scalable()
        self.roles = list(dict.fromkeys(spec.role for spec in self.specs if spec.role in scalable))
        self.sizes = {role: sum(spec.numel for spec in self.specs if spec.role == role) for role in self.roles}
        self.tried: dict[float, int] = {}
        self.compressions = 0
        self.floors: dict[str, float] = {}
        """By role, the product of both factors below which codes would be wider than they may be."""
        self.best: tuple[Any, QuantizedModel, int] | None = None

    def with_thetas(self, theta: float, thetas: Mapping[str, float]) -> Any:
        """The quantizer with factors on all steps and on those of each role."""
        floors = {role: rounded_to(self.floors.get(role, 0.0) / theta, 5) for role in self.roles}
        return self.steps.times(theta, {role: max(thetas[role], floors[role]) for role in self.roles})

    def own_thetas(self) -> dict[str, float]:
        """The factors by role to begin with."""
        return {role: self.steps.own(role) for role in self.roles}

    def quantized(self, quantizer: Any, base: QuantizedModel | None = None, role: str = "") -> QuantizedModel:
        """The whole model, or `base` with one role quantized anew; calibrated on the float model alone."""
        known, made = self.known(quantizer), QuantizedModel(self.config, uncorrected(base) if base else {})
        anew = [spec for spec in self.specs if base is None or spec.role == role]
        add_codes(made, anew, self.weights, quantizer, known)
        return finished(made, self.weights, quantizer, known)

    def whole(self, quantizer: Any, last: bool) -> QuantizedModel:
        """The model as it would be stored; before the last tries without what takes a forward pass."""
        known = {**self.known(quantizer)}
        if not last:
            known.pop(IN_TURN, None)
        return quantized_model(self.config, self.weights, quantizer, known)

    def code_bytes(self, model: QuantizedModel, role: str) -> float:
        """Bytes of a role's codes by the order-0 entropy of each tensor."""
        coded = [model.tensors[spec.name] for spec in self.specs if spec.role == role]
        return sum(entropy(one.codes) * one.codes.numel() / 8 for one in coded if isinstance(one, QTensor))

    def width(self, model: QuantizedModel, role: str) -> float:
        """The size that all but a few codes of a role have at most, over the largest that there may be."""
        coded = [model.tensors[spec.name] for spec in self.specs if spec.role == role]
        counts = torch.zeros(128, dtype=torch.int64)
        for one in coded:
            if isinstance(one, QTensor):
                counts += torch.bincount(one.codes.flatten().int().abs(), minlength=128)
        beyond = counts.sum() - counts.cumsum(0)
        return int((beyond > CLIPPED * counts.sum()).sum()) / self.steps.limit(role)

    def worths(self, theta: float, thetas: Mapping[str, float]) -> dict[str, Worth]:
        """What the bytes of each role are worth at these steps."""
        base, found = self.quantized(self.with_thetas(theta, thetas)), {}
        nudges = NUDGES if sum(self.sizes.values()) < LARGE else NUDGES[:1]
        for role in self.roles:
            pairs = [self.slope(theta, thetas, base, role, nudge) for nudge in nudges]
            size = self.code_bytes(base, role)
            one = averaged(pairs, size)
            if not one.clear:
                more = (*NUDGES[len(nudges) :], *MORE_NUDGES)
                one = averaged(pairs + [self.slope(theta, thetas, base, role, nudge) for nudge in more], size)
            found[role] = one
            about = f"{1000 * one.gain:.3g} ± {1000 * one.error:.1g}"
            self.console.line(f"budget: a kilobyte of {role} is worth {about} BPB")
        return found

    def slope(
        self, theta: float, thetas: Mapping[str, float], base: QuantizedModel, role: str, nudge: float
    ) -> tuple[float, float]:
        """What a byte less of a role costs between steps coarser and finer by `nudge`, and its error over the cost's
        parts.
        """
        costs, sizes = [], []
        for sign in (1, -1):
            moved = dict(thetas) | {role: thetas[role] * math.exp(sign * nudge)}
            model = self.quantized(self.with_thetas(theta, moved), base, role)
            costs.append(self.cost(model))
            sizes.append(self.code_bytes(model, role))
        rise, saved = costs[0] - costs[1], max(sizes[1] - sizes[0], 1e-9)
        error = float(rise.std()) * len(rise) ** 0.5 if len(rise) > 1 else 0.0
        return float(rise.sum()) / saved, error / saved

    def common(
        self, worth: Mapping[str, Worth], theta: float, thetas: Mapping[str, float]
    ) -> tuple[dict[str, Worth], float]:
        """What bytes are worth of those roles whose steps are not yet as fine as their code width allows, and what that
        is in the middle, by logarithms and numbers of weights.
        """
        floors = {role: 1.01 * self.floors.get(role, 0.0) for role in worth}
        free = {role: one for role, one in worth.items() if theta * thetas[role] > floors[role]}
        total = sum(self.sizes[role] for role in free)
        return free, math.exp(sum(self.sizes[role] / total * math.log(one.level) for role, one in free.items()))

    def balanced(self, theta: float) -> dict[str, float]:
        """Factors by role at which bytes of all roles are worth the same. A role's steps are not made finer than its
        code width allows; its bytes may then be worth more. Of all that were tried, those that are the least apart.
        """
        thetas, found = self.own_thetas(), list[tuple[float, dict[str, float]]]()
        for _ in range(ROUNDS):
            free, middle = self.common(self.worths(theta, thetas), theta, thetas)
            moves = {role: math.log(middle / one.level) / 2 for role, one in free.items()}
            apart = max((one.apart(middle) for one in free.values()), default=0.0)
            found.append((apart, thetas))
            if apart <= 0:
                break
            thetas = dict(thetas)
            for role, move in moves.items():
                factor = math.exp(min(max(move, -LARGEST_MOVE), LARGEST_MOVE))
                thetas[role] = max(rounded_to(thetas[role] * factor, 3), rounded_to(self.floors[role] / theta, 3))
        return min(found, key=lambda one: one[0])[1]

    def bytes_at(self, theta: float, thetas: Mapping[str, float], budget: int, last: bool) -> int:
        """Bytes of the submission at a factor on all steps: quantizes and compresses. The largest that fits is kept."""
        quantizer = self.with_thetas(theta, thetas)
        model = self.whole(quantizer, last)
        size = self.tried[theta] = self.total(quantizer, model)
        self.compressions += 1
        if not self.floors:
            self.floors = {role: theta * thetas[role] * min(self.width(model, role), 1.0) for role in self.roles}
        self.console.line(f"budget: theta {theta:g} makes {size:,} bytes")
        if size <= budget and (self.best is None or size > self.best[2]):
            self.best = quantizer, model, size
        return size

    def next_theta(self, budget: int, lowest: float) -> float:
        """The factor to try next: where a line through the nearest two tries is just below the budget, by logarithm of
        theta; where they do not enclose it, as many bits less of every weight as are too many, and twice as many each
        time that was not enough.
        """
        aim, weights = budget - SLACK // 2, sum(self.sizes.values())
        over = max((theta for theta, size in self.tried.items() if size > budget), default=0.0)
        under = min((theta for theta, size in self.tried.items() if size <= budget), default=0.0)
        if over and under:
            share = (self.tried[over] - aim) / (self.tried[over] - self.tried[under])
            found = math.log(over) + min(max(share, 0.05), 0.95) * math.log(under / over)
        else:
            nearest = over or under
            move = (self.tried[nearest] - aim) * 8 * math.log(2) / weights
            found = math.log(nearest) + move * 2 ** (len(self.tried) - 1)
        return rounded_to(min(max(math.exp(found), lowest), COARSEST), 6)

    def narrowed(self, budget: int, theta: float, thetas: Mapping[str, float], tries: int, last: bool = False) -> float:
        """The last factor of at most so many tries to land below the budget."""
        self.tried, self.best = {}, None
        for _ in range(tries):
            size = self.bytes_at(theta, thetas, budget, last)
            lowest = rounded_to(min(floor / thetas[role] for role, floor in self.floors.items()), 6)
            if 0 <= budget - size <= SLACK or (theta <= lowest and size <= budget):
                break
            if theta == COARSEST and size > budget:
                raise RuleError(
                    f"a submission of {budget:,} bytes cannot be reached; the smallest is {size:,}",
                    "--budget",
                    "train a smaller model",
                )
            theta = self.next_theta(budget, lowest)
        return theta

    def solve(self, budget: int) -> Fit:
        """Steps for a submission of at most `budget` bytes, and of at most 2,000 less unless finer steps would clip.

        RuleError with the smallest size that can be reached if that is more.
        """
        self.compressions, self.floors = 0, {}
        theta = self.narrowed(budget, self.steps.whole, self.own_thetas(), 2)
        thetas = self.balanced(theta)
        self.narrowed(budget, theta, thetas, COMPRESSIONS - self.compressions, last=True)
        if self.best is None:
            least = f"the smallest submission tried had {min(self.tried.values()):,}"
            raise RuleError(f"no steps were found for {budget:,} bytes; {least}", "--budget", "raise it")
        last = Steps(self.best[0])
        thetas = {role: last.own(role) for role in self.roles}
        worth = self.worths(last.whole, thetas)
        free, middle = self.common(worth, last.whole, thetas)
        if uneven := [role for role, one in free.items() if one.apart(middle)]:
            shares = ", ".join(f"{role} {free[role].gain / middle:.2f}" for role in uneven)
            reached = " ".join(f"--set quant.{role}.theta={own:g}" for role, own in thetas.items())
            what = f"bytes of some roles are not worth what others are ({shares} of what is usual)"
            self.console.warn(f"{what}: to go on from here, {reached}")
        return Fit(*self.best, worth, self.compressions)
