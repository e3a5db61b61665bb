"""Token embeddings added to values (PR #374)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import CONTROL, EMBED, SCALAR, TOKEN, ParamSpec, control
from pgolf.core.model.slots import Flow, LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ValueEmbedding(Part):
    """v <- v + s_l c P E[token] on some layers, one table for all of them. Effect: none, when taken out of PR #1394's
    forerunner. Source: PR #374.
    """

    dim: int = 128
    """Width of the table (upstream: ve_dim)."""
    on: str = "9,10"
    """Layers, separated by commas (upstream: ve_layers)."""
    scale: float = 0.1
    """Initial common factor c."""

    def __post_init__(self) -> None:
        parts = self.on.split(",")
        if not all(part.strip().isdigit() for part in parts):
            raise ConfigError(f"{self.on!r} is no list of layers like 9,10", "on")
        if self.dim < 1:
            raise ConfigError(f"dim must be at least 1, not {self.dim}", "dim")

    @property
    def chosen(self) -> tuple[int, ...]:
        """The layers."""
        return tuple(sorted({int(part) for part in self.on.split(",")}))

    def suits(self, shape: LayerShape) -> None:
        """The layers are there."""
        if self.chosen[-1] >= shape.num_layers:
            raise ConfigError(f"layer {self.chosen[-1]} is beyond the last, {shape.num_layers - 1}", "on", "lower it")

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """ve_shared.scale (), .embed.weight (V,m), .proj.weight (K D,m), ve_layer_scales.i (1,) per layer."""
        if shape.layer >= 0:
            return ()
        size = (shape.num_kv_heads * shape.head_dim, self.dim)
        return (
            ParamSpec("ve_shared.scale", (), ("fill", self.scale), SCALAR, CONTROL),
            ParamSpec("ve_shared.embed.weight", (shape.vocab_size, self.dim), ("normal", 0.01), TOKEN, EMBED),
            ParamSpec("ve_shared.proj.weight", size, ("orthogonal", 1.0), SCALAR, EMBED),
            *(control(f"ve_layer_scales.{index}", (1,), 1.0) for index in range(len(self.chosen))),
        )

    def entered(self, root: Any, flow: Flow, x_BTC: "Tensor") -> "Tensor":
        """Look the values up once; layers fetch them with their own scale."""
        from torch.nn.functional import embedding

        shared, dtype = root.ve_shared, x_BTC.dtype
        values = shared.proj.linear(embedding(flow.ids_BT, shared.embed.used()).to(dtype)) * shared.scale.to(dtype)
        for index, layer in enumerate(self.chosen):
            flow.memory[f"value_embed.{layer}"] = values * layer_scale(root, index).to(dtype)
        return x_BTC

    def projected(
        self, attn: Any, flow: Flow, layer: int, n_BTC: "Tensor", q: "Tensor", k: "Tensor", v: "Tensor"
    ) -> "tuple[Tensor, Tensor, Tensor]":
        """Add to the values of the chosen layers."""
        found = flow.memory.get(f"value_embed.{layer}")
        return q, k, v if found is None else v + found.view_as(v)


def layer_scale(root: Any, index: int) -> "Tensor":
    """The scale of the index-th chosen layer."""
    found: Tensor = root.ve_layer_scales.get_parameter(str(index))
    return found


@dataclass(frozen=True, kw_only=True)
class LayerValueEmbedding(Part):
    """v <- v + 3 sigma(W n[:12]) E_l[token] per KV head on every other layer, counted from the last, each with a table
    of its own. Source: nanochat.
    """

    init_std: float = 0.01
    """Standard deviation of the initial tables."""
    window: int = 12
    """Channels the gate sees."""

    def suits(self, shape: LayerShape) -> None:
        """The window lies within the model's width."""
        if not 1 <= self.window <= shape.model_dim:
            raise ConfigError(f"window must lie in [1, {shape.model_dim}], not {self.window}", "window")

    def layers(self, num_layers: int) -> range:
        """The last one, and every second before it."""
        return range((num_layers - 1) % 2, num_layers, 2)

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """attn.value_embed.weight (V,K D) and attn.value_gate (K,w) of a layer."""
        if shape.layer < 0:
            return ()
        size = (shape.vocab_size, shape.num_kv_heads * shape.head_dim)
        return (
            ParamSpec("attn.value_embed.weight", size, ("normal", self.init_std), TOKEN, EMBED),
            ParamSpec("attn.value_gate", (shape.num_kv_heads, self.window), ("fill", 0.0), SCALAR, CONTROL),
        )

    def projected(
        self, attn: Any, flow: Flow, layer: int, n_BTC: "Tensor", q: "Tensor", k: "Tensor", v: "Tensor"
    ) -> "tuple[Tensor, Tensor, Tensor]":
        """Add to the values."""
        from torch.nn.functional import embedding

        gate = 3 * (n_BTC[..., : self.window] @ attn.value_gate.to(n_BTC.dtype).T).sigmoid()
        return q, k, v + gate[..., None] * embedding(flow.ids_BT, attn.value_embed.used()).to(v.dtype).view_as(v)
