"""What every evaluation method shares. Loaded without torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pgolf.core.errors import ConfigError

if TYPE_CHECKING:
    from pgolf.core.evals.adjusted import AdjustedLedger
    from pgolf.core.evals.adjustment import Adjustment
    from pgolf.core.evals.ledger import Ledger
    from pgolf.core.model.gpt import GPT


class EvalMethod(Protocol):
    """A way to score a stream with fixed weights."""

    learns: bool
    """Whether weights learn from what has been scored."""

    def alone(self) -> bool:
        """Whether each document is scored by itself, as far as this method goes."""

    @property
    def seq_len(self) -> int:
        """Tokens the model sees at once."""

    @property
    def max_tokens(self) -> int:
        """Targets to score; 0 means all."""

    @property
    def batch_seqs(self) -> int:
        """Windows per forward pass."""

    def arrange(self, model: "GPT") -> None:
        """Change how the model computes before anything is scored."""

    def adjusters(self) -> "tuple[Adjusting, ...]":
        """The adjusters that act, in the order in which they act."""

    def run(self, ledger: "Ledger") -> None:
        """Score every target of the ledger exactly once."""


class TttMethod(EvalMethod, Protocol):
    """A way to score a stream with weights that learn from what has been scored."""


class Adjusting(Protocol):
    """Changes the distribution at scored positions; it reads the stream in order."""

    replayable: bool
    """Whether what it knows is a function of the tokens, so that an interrupted evaluation can go on."""
    learns: bool
    """Whether it is built from tokens of the stream; else it may act in any order of scoring."""
    crosses: bool
    """Whether it carries anything from one document to another where a method scores each by itself."""

    def acts(self) -> bool:
        """Whether it does anything."""

    def begin(self, ledger: "AdjustedLedger") -> "Adjustment":
        """What it knows of one stream, at its start."""


@dataclass(frozen=True, kw_only=True)
class Adjuster:
    """What adjusters have in common."""

    replayable = learns = crosses = True

    def acts(self) -> bool:
        """Always."""
        return True


@dataclass(frozen=True, kw_only=True)
class Unadjusted:
    """The model's own distribution. Source: naive baseline."""

    replayable = True
    learns = crosses = False

    def acts(self) -> bool:
        """Never."""
        return False

    def begin(self, ledger: "AdjustedLedger") -> "Adjustment":
        """An adjustment that changes nothing."""
        from pgolf.core.evals.adjustment import Adjustment

        return Adjustment(ledger)


class EvalRope(Protocol):
    """Rotary frequencies for windows longer than those of training."""

    def stretch(self, model: "GPT") -> None:
        """Change the model's frequencies."""


class EvalCompiler(Protocol):
    """Turns the model into a program that scores faster."""

    def compile_for(self, model: "GPT", rows: int, length: int, context: int) -> None:
        """Have the model score batches of `rows` windows of `length` tokens, of which it skips so many, or none."""

    def fixes_length(self) -> bool:
        """Whether windows of one length are scored faster than shorter ones."""


class EvalSlot(Adjusting, Protocol):
    """Tunes something small to each window's context before its scored part."""


class EvalTemperature(Adjusting, Protocol):
    """Sharpens or flattens every distribution."""


class EvalBias(Adjusting, Protocol):
    """A bias on the vocabulary that learns from scored chunks."""


class EvalCache(Adjusting, Protocol):
    """Counts of what followed the same tokens before."""


class EvalMixer(Adjusting, Protocol):
    """Mixes the model with other predictors."""


class EvalTilt(Adjusting, Protocol):
    """Raises one hinted token."""


@dataclass(frozen=True, kw_only=True)
class RopeAsTrained:
    """Rotary frequencies as the model has them. Source: naive baseline."""

    def stretch(self, model: "GPT") -> None:
        """Nothing changes."""


@dataclass(frozen=True, kw_only=True)
class Eager:
    """The model as it is. Source: naive baseline."""

    def compile_for(self, model: "GPT", rows: int, length: int, context: int) -> None:
        """Nothing to do."""

    def fixes_length(self) -> bool:
        """Shorter ones are faster."""
        return False


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """The options every method has. Adjusters act in the order in which they stand here."""

    learns = False
    seq_len: int = 1024
    """Tokens the model sees at once."""
    max_tokens: int = 0
    """Score only this many targets from the start of the validation stream; 0 means all."""
    batch_seqs: int = 32
    """Windows per forward pass. The score does not depend on it."""
    budget_seconds: float = 600.0
    """Seconds a complete pass may take: when it will not suffice, adaptation ends and scoring goes on, and a pass that
    took longer fails with exit code 4 after its score is written. 0 sets no limit.
    """
    num_loops: int = 0
    """Score a looped model with so many passes through its loop, 1 without going back; 0 with as many as it was trained
    with (model.loop.extra_passes + 1).
    """
    compiler: EvalCompiler = Eager()
    """Compiling what scores."""
    rope: EvalRope = RopeAsTrained()
    """Rotary frequencies."""
    slot: EvalSlot = Unadjusted()
    """Tuning to each window's context."""
    temperature: EvalTemperature = Unadjusted()
    """Sharper or flatter distributions."""
    bias: EvalBias = Unadjusted()
    """A vocabulary bias that learns."""
    cache: EvalCache = Unadjusted()
    """Exact counts of what followed."""
    mixer: EvalMixer = Unadjusted()
    """Mixture with other predictors."""
    tilt: EvalTilt = Unadjusted()
    """Hints from repeated phrases."""

    def __post_init__(self) -> None:
        if self.seq_len < 1 or self.batch_seqs < 1 or self.max_tokens < 0:
            raise ConfigError("seq_len and batch_seqs must be at least 1, max_tokens not negative", "")
        if self.budget_seconds < 0:
            raise ConfigError(f"budget_seconds must not be negative, not {self.budget_seconds}", "budget_seconds")
        if self.num_loops < 0:
            raise ConfigError(f"num_loops must not be negative, not {self.num_loops}", "num_loops")

    def alone(self) -> bool:
        """Windows cross documents."""
        return False

    def arrange(self, model: "GPT") -> None:
        """Change how the model computes before anything is scored."""
        self.rope.stretch(model)
        self.compiler.compile_for(model, self.batch_seqs, self.seq_len, self.context())

    def context(self) -> int:
        """Targets at the start of a window that an earlier one has scored."""
        return 0

    def adjusters(self) -> "tuple[Adjusting, ...]":
        """The adjusters that act, in the order in which they act."""
        return tuple(
            one for one in (self.slot, self.temperature, self.bias, self.cache, self.mixer, self.tilt) if one.acts()
        )
