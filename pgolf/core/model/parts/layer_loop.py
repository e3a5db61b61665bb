"""Depth recurrence: a stretch of layers runs several times (PR #1204, #1394)."""

from dataclasses import dataclass

from pgolf.core.errors import ConfigError
from pgolf.core.model.slots import LayerShape, Part


@dataclass(frozen=True, kw_only=True)
class LayerLoop(Part):
    """Layers start .. end run extra_passes more times, with the same weights, once training has come to `enable_at`.
    Source: PR #1204, #1334, #1394, #1493.
    """

    start: int = 4
    """First layer of the loop (upstream: loop_start)."""
    end: int = 5
    """Last layer of the loop (upstream: loop_end)."""
    extra_passes: int = 2
    """Passes beyond the first (upstream: num_loops)."""
    enable_at: float = 0.5
    """Fraction of the training budget at which the loop begins; 0 trains with it throughout."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ConfigError(f"the loop from layer {self.start} to {self.end} is none", "start", "start <= end")
        if self.extra_passes < 1:
            raise ConfigError(f"extra_passes must be at least 1, not {self.extra_passes}", "extra_passes")
        if not 0 <= self.enable_at < 1:
            raise ConfigError(f"enable_at must lie in [0, 1), not {self.enable_at}", "enable_at")

    def check(self, shape: LayerShape) -> None:
        """The loop lies within the model."""
        if self.end >= shape.num_layers:
            raise ConfigError(f"layer {self.end} is beyond the last, {shape.num_layers - 1}", "end", "lower it")

    def layers(self, num_layers: int) -> range:
        """Those that run more than once."""
        return range(self.start, self.end + 1)

    def order(self, num_layers: int) -> tuple[int, ...]:
        """Layers in the order they run."""
        loop = tuple(range(self.start, self.end + 1))
        return (*range(self.start), *(loop * (self.extra_passes + 1)), *range(self.end + 1, num_layers))

    def starts(self, fraction: float) -> bool:
        """Whether the loop is on at this fraction of training."""
        return fraction >= self.enable_at
