"""Depth recurrence: a stretch of layers runs several times (PR #1204, #1394).

Passes beyond the first may have something of their own beside the weights all share.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import CONTROL, MATRIX, MLP, ParamSpec, matrix
from pgolf.core.model.slots import LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


class LaterPass:
    """A place in the parameter tree as a later pass sees it: what that pass has of its own stands before what all
    share; a linear map may have a low-rank addition of its own.
    """

    def __init__(self, shared: Any, own: Any) -> None:
        self.shared, self.own = shared, own
        inner = dict(own.named_children())
        self.names = [name for name, _ in own.named_parameters(recurse=False)]
        self.inner = {
            name: LaterPass(child, inner[name]) if name in inner else child for name, child in shared.named_children()
        }

    def __getattr__(self, name: str) -> Any:
        if name in self.inner:
            return self.inner[name]
        return getattr(self.own if name in self.names else self.shared, name)

    def linear(self, x: "Tensor") -> "Tensor":
        """x W^T with the pass's own W, or with the shared one and x A^T B^T beside it."""
        y: Tensor = self.own.linear(x) if self.names else self.shared.linear(x)
        return y if self.names else y + self.own.lora_b.linear(self.own.lora_a.linear(x))


@dataclass(frozen=True, kw_only=True)
class LayerLoop(Part):
    """Layers start .. end run extra_passes more times, with the same weights, once training has come to `enable_at`.
    Effect: -0.003 for two layers in three passes (PR #1394). Source: PR #1204, #1334, #1394, #1493; low-rank additions:
    arXiv:2410.20672.
    """

    start: int = 4
    """First layer of the loop (upstream: loop_start)."""
    end: int = 5
    """Last layer of the loop (upstream: loop_end)."""
    extra_passes: int = 2
    """Passes beyond the first (upstream: num_loops)."""
    enable_at: float = 0.5
    """Fraction of the training budget at which the loop begins; 0 trains with it throughout."""

    lora_rank: int = 0
    """Rank of what each later pass adds to every matrix of its blocks, nothing at the start; 0 adds nothing."""
    own: str = "none"
    """What later passes have of their own, copied when the loop begins: none, control (gains, scales, mixes), mlp
    (its matrices too).
    """

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ConfigError(f"the loop from layer {self.start} to {self.end} is none", "start", "start <= end")
        if self.extra_passes < 1:
            raise ConfigError(f"extra_passes must be at least 1, not {self.extra_passes}", "extra_passes")
        if not 0 <= self.enable_at < 1:
            raise ConfigError(f"enable_at must lie in [0, 1), not {self.enable_at}", "enable_at")

        if self.lora_rank < 0:
            raise ConfigError(f"lora_rank must not be negative, not {self.lora_rank}", "lora_rank")
        if self.own not in ("none", "control", "mlp"):
            raise ConfigError(f"{self.own!r} is none of none, control, mlp", "own")

    def suits(self, shape: LayerShape) -> None:
        """The loop lies within the model, and low rank is low."""
        if self.lora_rank >= (least := shape.num_kv_heads * shape.head_dim) and self.lora_rank:
            raise ConfigError(f"{self.lora_rank} is not below {least}, the rows of the smallest matrix", "lora_rank")
        if self.end >= shape.num_layers:
            raise ConfigError(f"layer {self.end} is beyond the last, {shape.num_layers - 1}", "end", "lower it")

    def layers(self, num_layers: int) -> range:
        """Those that run more than once."""
        return range(self.start, self.end + 1)

    def order(self, num_layers: int) -> tuple[int, ...]:
        """Layers in the order they run."""
        loop = tuple(range(self.start, self.end + 1))
        return (*range(self.start), *(loop * (self.extra_passes + 1)), *range(self.end + 1, num_layers))

    def is_on(self, fraction: float) -> bool:
        """Whether the loop is on at this fraction of training."""
        return fraction >= self.enable_at

    def later(self, specs: tuple[ParamSpec, ...], layer: int) -> tuple[ParamSpec, ...]:
        """Pass by pass, under `pass1.`, `pass2.` ...: what it takes instead of the block's, and NAME.lora_a (r,in),
        NAME.lora_b (out,r) that it adds to a matrix NAME.
        """
        owned = {"none": (), "control": (CONTROL,), "mlp": (CONTROL, MLP)}[self.own]
        found = list[ParamSpec]()
        for turn in range(1, self.extra_passes + 1) if layer in self.layers(layer + 1) else ():
            for spec in (spec.under(f"pass{turn}") for spec in specs):
                if spec.role in owned:
                    found.append(spec)
                elif self.lora_rank and spec.group == MATRIX:
                    (rows, cols), name = spec.shape, spec.name.removesuffix(".weight")
                    found.append(matrix(f"{name}.lora_a", self.lora_rank, cols, spec.role))
                    found.append(matrix(f"{name}.lora_b", rows, self.lora_rank, spec.role, ("fill", 0.0)))
        return tuple(found)

    def passes(self, block: Any, count: int) -> list[Any]:
        """The block itself, then what later passes make of it."""
        own: dict[str, Any] = dict(block.named_children())
        return [LaterPass(block, own[f"pass{turn}"]) if f"pass{turn}" in own else block for turn in range(count)]

    def begin(self, model: Any) -> None:
        """What later passes have of their own takes the values of the first."""
        from torch import no_grad

        named = dict(model.named_parameters())
        for name, weight in named.items():
            head, _, rest = name.partition(".pass")
            shared = named.get(f"{head}.{rest.partition('.')[2]}") if rest else None
            if shared is not None:
                with no_grad():
                    weight.copy_(shared)
