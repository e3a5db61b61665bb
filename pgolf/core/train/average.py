"""Averages of weights over the steps of a run, which are exported in place of the last weights (spec: training 4)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

    from pgolf.core.dist import World
    from pgolf.core.train.config import TrainConfig
    from pgolf.core.train.loop import TrainState

SOUGHT = 1 << 20
"""Ids among which the beginning of a document is looked for."""


@dataclass(frozen=True, kw_only=True)
class LastWeights:
    """No average: the last weights are exported. Source: naive baseline."""

    copies = 0
    """How many averages are kept beside the weights."""

    def kept(self, model: Any) -> "dict[str, dict[str, Tensor]]":
        """Averages by name, each of all parameters, as they begin; none here."""
        return {}

    def seen(self, shards: "list[ndarray]") -> "list[ndarray]":
        """What is trained on."""
        return shards

    def absorb(self, state: "TrainState", lr_scale: float) -> None:
        """After a step, let its weights count."""

    def export(self, state: "TrainState", train: "TrainConfig", world: "World") -> dict[str, Any]:
        """Give the model the average; what there is to tell about it."""
        return {}


class OneAverage(LastWeights):
    """What averages of a single kind share."""

    copies = 1

    def kept(self, model: Any) -> "dict[str, dict[str, Tensor]]":
        """The initial weights, float32."""
        return {"": floats(model)}

    def export(self, state: "TrainState", train: "TrainConfig", world: "World") -> dict[str, Any]:
        """Nothing to tell."""
        assign(state.model, state.averages[""])
        return {}


@dataclass(frozen=True, kw_only=True)
class Ema(OneAverage):
    """e <- d e + (1 - d) w after every step, from the initial weights on, without a correction for the start. Effect:
    -0.0010 to -0.0013 where rates fall to zero, -0.0116 where they stop at a tenth (PR #1855). Source: PR #287, #1394.
    """

    decay: float = 0.997
    """Share d of the average that stays (upstream: ema_decay)."""

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ConfigError(f"decay must lie between 0 and 1, not {self.decay}", "decay")

    def absorb(self, state: "TrainState", lr_scale: float) -> None:
        """Always."""
        join(state, "", 1 - self.decay)
        state.taken += 1


@dataclass(frozen=True, kw_only=True)
class Emas(LastWeights):
    """Several of the above at once, each a float32 copy of the model. The last documents of the training split, at
    least `tokens` of them, are not trained on; the average with the least loss there is exported. Choosing takes time
    out of the budget, unless train.reserve_seconds holds some back for it.
    """

    decays: str = "0.99,0.995,0.997,0.998"
    """Their decays, with commas between."""
    tokens: int = 262144
    """Training tokens withheld to choose by."""
    bos_id: int = 1
    """Token that begins a document."""

    def __post_init__(self) -> None:
        try:
            values = self.values
        except ValueError:
            raise ConfigError(f"{self.decays!r} is no list of numbers", "decays", "write it as 0.99,0.997") from None
        if not all(0 < value < 1 for value in values) or len(set(values)) < len(values):
            raise ConfigError(f"decays must differ and lie between 0 and 1, not {self.decays}", "decays")
        if self.tokens < 2:
            raise ConfigError(f"tokens must be at least 2, not {self.tokens}", "tokens")

    @property
    def values(self) -> list[float]:
        """The decays as numbers."""
        return [float(word) for word in self.decays.split(",")]

    @property
    def copies(self) -> int:  # type: ignore[override]
        """One for each."""
        return len(self.values)

    def kept(self, model: Any) -> "dict[str, dict[str, Tensor]]":
        """The initial weights for each decay, float32."""
        return {str(value): floats(model) for value in self.values}

    def cut(self, last: "ndarray") -> int:
        """Where what is withheld begins in the last shard: at a document, or if none begins nearby, anywhere."""
        from numpy import flatnonzero

        at = len(last) - self.tokens
        first = max(at // 2, at - SOUGHT)
        starts = flatnonzero(last[first:at] == self.bos_id)
        return first + int(starts[-1]) if len(starts) else at

    def seen(self, shards: "list[ndarray]") -> "list[ndarray]":
        """All but the end of the last shard. InputError when it is shorter than four times what is withheld."""
        if len(shards[-1]) < 4 * self.tokens:
            raise InputError(
                f"the last training shard has {len(shards[-1]):,} tokens, too few to withhold {self.tokens:,}",
                "train.average.tokens",
                "lower it",
            )
        return [*shards[:-1], shards[-1][: self.cut(shards[-1])]]

    def absorb(self, state: "TrainState", lr_scale: float) -> None:
        """Always."""
        for value in self.values:
            join(state, str(value), 1 - value)
        state.taken += 1

    def export(self, state: "TrainState", train: "TrainConfig", world: "World") -> dict[str, Any]:
        """The decay chosen, and the mean loss of each on what was withheld, nats per token."""
        import numpy as np

        from pgolf.core.evals.ledger import EvalWatch, evaluate
        from pgolf.core.evals.plain import PlainEval

        usual = train.validation()
        whole = PlainEval(seq_len=usual.seq_len, batch_seqs=usual.batch_seqs)
        ids = state.shards[-1][self.cut(state.shards[-1]) :]
        losses = {}
        for name, average in state.averages.items():
            assign(state.model, average)
            score, _ = evaluate(state.model, ids, np.ones(len(ids) - 1, np.int32), whole, EvalWatch(world))
            losses[name] = score.val_loss
        best = min(losses, key=losses.__getitem__)
        assign(state.model, state.averages[best])
        return {"average": best, "withheld_losses": losses}


@dataclass(frozen=True, kw_only=True)
class Swa(OneAverage):
    """The mean of the weights after every `every` steps, once the learning rates have fallen below `below` of theirs.
    Effect: in early records only; later ones collect it and export their EMA. Source: PR #162, #265.
    """

    below: float = 0.5
    """Multiplier of the learning rates at which it begins (upstream: swa_start_frac)."""
    every: int = 50
    """Steps from one to the next (upstream: swa_every)."""

    def __post_init__(self) -> None:
        if not 0 < self.below <= 1:
            raise ConfigError(f"below must lie in (0, 1], not {self.below}", "below")
        if self.every < 1:
            raise ConfigError(f"every must be at least 1, not {self.every}", "every")

    def absorb(self, state: "TrainState", lr_scale: float) -> None:
        """Every so many steps, late; the n-th has a share of 1 / n."""
        if lr_scale < self.below and state.step % self.every == 0:
            state.taken += 1
            join(state, "", 1 / state.taken)


def floats(model: Any) -> "dict[str, Tensor]":
    """Every parameter as float32."""
    return {name: weight.detach().float().clone() for name, weight in model.named_parameters()}


def join(state: "TrainState", name: str, share: float) -> None:
    """Give the weights of the moment a share in an average."""
    from torch import _foreach_lerp_

    new = [weight.detach().float() for weight in state.model.parameters()]
    _foreach_lerp_(list(state.averages[name].values()), new, share)


def assign(model: Any, values: "dict[str, Tensor]") -> None:
    """Give parameters new values, each in its own dtype."""
    for name, weight in model.named_parameters():
        weight.data.copy_(values[name])
