"""How a run trains, as a value."""

from dataclasses import dataclass
from typing import Any, Protocol

from pgolf.core.errors import ConfigError
from pgolf.core.evals.plain import PlainEval
from pgolf.core.train.average import LastWeights
from pgolf.core.train.loaders import SequentialLoader
from pgolf.core.train.steady import Steady


class Average(Protocol):
    """Averages weights over the steps of a run; see `LastWeights`."""

    @property
    def copies(self) -> int:
        """How many averages are kept beside the weights."""

    def kept(self, model: Any) -> Any:
        """What is kept beside the model, by name."""

    def seen(self, shards: Any) -> Any:
        """What is trained on."""

    def absorb(self, state: Any, lr_scale: float) -> None:
        """After a step, let its weights count."""

    def export(self, state: Any, train: Any, world: Any) -> dict[str, Any]:
        """Give the model the average; what there is to tell about it."""


class Extra(Protocol):
    """Changes training in its course; see `Steady`."""

    @property
    def fusible(self) -> bool:
        """Whether the fused kernels compute what training then computes."""

    def enlist(self, extras: list[Any], device: Any, token_bytes: Any) -> None:
        """Before the first step, join what acts."""

    def extra_parts(self, fraction: float, lr_scale: float) -> tuple[Any, ...]:
        """Parts that act on the model at a fraction of the run."""


class Qat(Extra, Protocol):
    """Lets weights act as they will be exported."""


class WindowSchedule(Extra, Protocol):
    """Bounds attention early in a run."""


class Loss(Extra, Protocol):
    """Weighs the targets of a batch."""

    def token_table(self, tokenizer: Any, vocab_size: int) -> Any:
        """Every id's bytes, where they matter."""


class LengthSchedule(Protocol):
    """Cuts rows early in a run."""

    def enlist(self, extras: list[Any], device: Any, token_bytes: Any) -> None:
        """Before the first step, prepare for it."""

    def length(self, fraction: float, seq_len: int) -> int:
        """Tokens per row, 0 for all of them."""

    def check(self, seq_len: int) -> None:
        """ConfigError unless rows of seq_len can be cut so."""


class Loader(Protocol):
    """Decides the order of the training tokens; see `pgolf.core.train.loaders`."""

    def begin(self, train: Any, shards: Any, seed: int, world: Any) -> Any:
        """What reads for this rank: number of a micro-batch -> its inputs and targets."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Batch, budget, validation and checkpoints; the defaults are the naive baseline's."""

    seed: int = 1337
    """Seed of the initial weights."""
    iterations: int = 20000
    """Optimizer steps at most."""
    max_wallclock_seconds: float = 600.0
    """Training budget in seconds, validation excluded; 0 means no budget."""
    reserve_seconds: float = 0.0
    """Part of the budget kept for what follows training, as calibration (upstream: gptq_reserve_seconds)."""
    seq_len: int = 1024
    """Tokens per training sequence (upstream: train_seq_len)."""
    batch_tokens: int = 524288
    """Tokens per optimizer step over all ranks (upstream: train_batch_tokens)."""
    micro_batch_tokens: int = 65536
    """Tokens per forward pass of one rank; gradients accumulate over batch_tokens / (world * this) passes."""
    warmup_steps: int = 20
    """Steps run before the clock starts and then undone, so that compilation costs no budget."""
    val_every: int = 1000
    """Steps between validations; 0 validates only at the end."""
    val_max_tokens: int = 0
    """Validation targets scored while training; 0 means all."""
    log_every: int = 200
    """Steps between log lines after the first ten."""
    checkpoint_every: int = 1000
    """Steps between resumable checkpoints; 0 writes only the final one."""
    keep_checkpoints: int = 2
    """Resumable checkpoints kept on disk."""
    max_loss_rise: float = 2.0
    """Nats above its lowest at which the loss, found there at 50 steps in a row after the tenth, ends the run as
    diverged; 0 never.
    """
    compile: str = "auto"
    """torch.compile: auto (on a GPU only), on, off."""
    attention: str = "auto"
    """What computes attention: auto (the fastest that can), reference, sdpa, flex, fa2, fa3. Not part of the model:
    quantization and scores choose for themselves, as auto does; only sdpa, which can compute every model, holds for
    them as well.
    """
    kernels: str = "auto"
    """What computes MLP and loss in training: eager (torch's operations), triton (fused kernels), or auto, which is
    eager until the kernels have been measured on a GPU. Calibration and scores are always eager.
    """
    precision: str = "auto"
    """Activations, and the embedding table, in float32 or bfloat16; auto is bfloat16 on a GPU, float32 on a CPU."""
    needs_gpu: bool = False
    """Refuse to train on a CPU unless --device cpu is given."""
    average: Average = LastWeights()
    """What is exported: the last weights or an average."""
    loader: Loader = SequentialLoader()
    """Order of the training tokens."""
    prefetch: int = 2
    """Micro-batches prepared ahead of training, by a thread. The result does not depend on it."""
    qat: Qat = Steady()
    """Quantization-aware training."""
    window_schedule: WindowSchedule = Steady()
    """How far attention looks in the course of a run, in training."""
    length_schedule: LengthSchedule = Steady()
    """Tokens per row in the course of a run."""
    loss: Loss = Steady()
    """How the losses of a batch become one."""

    def __post_init__(self) -> None:
        for key, values in (
            ("compile", ("auto", "on", "off")),
            ("attention", ("auto", "reference", "sdpa", "flex", "fa2", "fa3")),
            ("kernels", ("auto", "eager", "triton")),
            ("precision", ("auto", "float32", "bfloat16")),
        ):
            if getattr(self, key) not in values:
                raise ConfigError(f"{getattr(self, key)!r} is none of {', '.join(values)}", key)
        for key in ("iterations", "seq_len", "batch_tokens", "micro_batch_tokens", "keep_checkpoints"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} must be at least 1, not {getattr(self, key)}", key)
        for key in (
            "max_wallclock_seconds",
            "reserve_seconds",
            "warmup_steps",
            "val_every",
            "val_max_tokens",
            "log_every",
            "checkpoint_every",
            "max_loss_rise",
            "prefetch",
        ):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key} must not be negative, not {getattr(self, key)}", key)
        if 0 < self.max_wallclock_seconds <= self.reserve_seconds:
            raise ConfigError(f"a reserve of {self.reserve_seconds} s leaves no time to train", "reserve_seconds")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must lie between 0 and 2^63 - 1, not {self.seed}", "seed")
        if self.micro_batch_tokens % self.seq_len:
            raise ConfigError(
                f"{self.micro_batch_tokens} is not a multiple of seq_len {self.seq_len}", "micro_batch_tokens"
            )
        if self.batch_tokens % self.micro_batch_tokens:
            raise ConfigError(
                f"{self.batch_tokens} is not a multiple of micro_batch_tokens {self.micro_batch_tokens}",
                "batch_tokens",
            )

        self.length_schedule.check(self.seq_len)
        if self.kernels == "triton" and not (self.qat.fusible and self.loss.fusible):
            raise ConfigError("the fused kernels know neither train.qat nor train.loss", "kernels", "set it to eager")

    @property
    def budget_s(self) -> float:
        """Seconds of training; 0 is no limit."""
        return max(self.max_wallclock_seconds - self.reserve_seconds, 0.0)

    @property
    def attention_later(self) -> str:
        """What computes attention when training is over."""
        return "sdpa" if self.attention == "sdpa" else "auto"

    def shown(self, step: int) -> bool:
        """Whether a step becomes a log line."""
        return step <= 10 or (self.log_every > 0 and step % self.log_every == 0)

    def validation(self) -> PlainEval:
        """How validation during training scores: plain windows of the training length."""
        batch = max(1, min(self.micro_batch_tokens, 65536) // self.seq_len)
        return PlainEval(seq_len=self.seq_len, max_tokens=self.val_max_tokens, batch_seqs=batch)

    def micro_steps(self, world_size: int) -> int:
        """Forward passes per optimizer step on each rank. ConfigError if the batch does not divide."""
        per_pass = self.micro_batch_tokens * world_size
        if self.batch_tokens % per_pass:
            raise ConfigError(
                f"{self.batch_tokens:,} tokens do not divide into {world_size} ranks of {self.micro_batch_tokens:,}",
                "train.batch_tokens",
                "choose batch_tokens as a multiple of micro_batch_tokens * world size",
            )
        return self.batch_tokens // per_pass
