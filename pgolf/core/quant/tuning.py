"""Scales, norms and gates tuned after quantization, as configuration (spec: quantization 9.7, 9.8)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.quant.base import Untuned

if TYPE_CHECKING:
    from torch import Tensor

    from pgolf.core.model.gpt import GPT
    from pgolf.core.quant.qtensor import QuantizedModel
    from pgolf.core.quant.tuned import Predictor
    from pgolf.core.shards import TrainStream


@dataclass(frozen=True, kw_only=True)
class KlTuning(Untuned):
    """Control tensors and float16 row scales go down KL(float || quantized), on training tokens after those of the
    calibration; codes stay, and so do steps on the logarithmic grid. This is training: its seconds belong to
    train.reserve_seconds. Source: docs/quantization.md, with our figures; in no record.
    """

    steps: int = 64
    """Adam steps; the rate falls to 0 in a line."""
    seqs: int = 4
    """Sequences of a step."""
    seq_len: int = 1024
    """Tokens of a sequence."""
    rate: float = 0.01
    """Learning rate over the mean magnitude of a control tensor; scales of rows move at a tenth of their size."""

    def __post_init__(self) -> None:
        for key in ("steps", "seqs"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} must be at least 1, not {getattr(self, key)}", key)
        if self.seq_len < 2:
            raise ConfigError(f"seq_len must be at least 2, not {self.seq_len}", "seq_len")
        if not 0 < self.rate < 1:
            raise ConfigError(f"rate must lie between 0 and 1, not {self.rate}", "rate")

    def batches(self, stream: "TrainStream") -> "Iterator[Tensor]":
        """The ids (seqs, seq_len) of every step."""
        import torch

        for _ in range(self.steps):
            yield torch.from_numpy(stream.take(self.seqs * self.seq_len)).view(self.seqs, -1)

    def loss(self, found_BTV: "Tensor", predictor: "Predictor", ids_BT: "Tensor") -> "Tensor":
        """Nats per token by which log-probabilities diverge from the float model's."""
        import torch

        with torch.no_grad():
            wanted_BTV = predictor(ids_BT)
        return (wanted_BTV.exp() * (wanted_BTV - found_BTV)).sum(-1).mean()


@dataclass(frozen=True, kw_only=True)
class CrossEntropyTuning(KlTuning):
    """The same down the loss itself, which trains on: no gain on a model that is trained well. Source:
    docs/quantization.md, with our figures; in no record.
    """

    def loss(self, found_BTV: "Tensor", predictor: "Predictor", ids_BT: "Tensor") -> "Tensor":
        """Nats per token."""
        return -found_BTV[:, :-1].gather(2, ids_BT[:, 1:, None]).mean()


def tuned_by_gradient(
    quantizer: Any, made: "QuantizedModel", model: "GPT", stream: "TrainStream", progress: Callable[[int], None]
) -> "QuantizedModel":
    """A quantized model tuned beside the float model it was made of, if its quantizer is to."""
    from pgolf.core.quant.tuned import tuned_to

    tuning = quantizer.tune
    if not isinstance(tuning, KlTuning):
        return made
    return tuned_to(tuning, made, model, tuning.batches(stream), progress)


TUNINGS = {"gradient": tuned_by_gradient}
"""What may be done to a quantized model beside its float model; a script without it leaves this out."""
