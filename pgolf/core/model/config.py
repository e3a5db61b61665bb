"""The model as a value: its parts, its parameters and the order of its layers. Nothing here needs torch."""

from dataclasses import dataclass

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import ATTN, ParamSpec, control, matrix
from pgolf.core.model.parts.qk_gain import QkGain
from pgolf.core.model.parts.relu2 import Relu2
from pgolf.core.model.parts.rope import Rope
from pgolf.core.model.parts.tanh_softcap import TanhSoftcap
from pgolf.core.model.parts.tied_embed import TiedEmbed
from pgolf.core.model.parts.unet_skips import UnetSkips
from pgolf.core.model.parts.x0_mix import X0Mix
from pgolf.core.model.slots import Embed, LayerShape, Mix, Mlp, Position, QueryHook, Skips, Softcap


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer with grouped-query attention; the defaults are the naive baseline (17,059,912)."""

    vocab_size: int = 1024
    """Number of token ids; must be that of the tokenizer."""
    num_layers: int = 9
    """Transformer blocks."""
    model_dim: int = 512
    """Width of the residual stream."""
    num_heads: int = 8
    """Query heads."""
    num_kv_heads: int = 4
    """Key/value heads; query head h reads KV head h // (num_heads / num_kv_heads)."""
    embed: Embed = TiedEmbed()
    """Input embedding and output projection."""
    position: Position = Rope()
    """Position information in attention."""
    qk_gain: QueryHook = QkGain()
    """Scaling of the normalised queries."""
    mlp: Mlp = Relu2()
    """Feed-forward part of a block."""
    mix: Mix = X0Mix()
    """How the embedding re-enters each block."""
    skips: Skips = UnetSkips()
    """Connections between the layers' halves."""
    logit_softcap: Softcap = TanhSoftcap()
    """Bound on the logits."""

    def __post_init__(self) -> None:
        for key in ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} must be at least 1, not {getattr(self, key)}", key)
        if self.vocab_size > 65536:
            raise ConfigError(f"vocab_size is {self.vocab_size:,}; shards hold ids below 65,536", "vocab_size")
        if self.model_dim % self.num_heads:
            raise ConfigError(f"{self.model_dim} is not divisible by num_heads {self.num_heads}", "model_dim")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"{self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}", "num_heads")
        if (self.model_dim // self.num_heads) % 2:
            raise ConfigError(
                f"the head width {self.model_dim // self.num_heads} is odd; rotation needs pairs", "model_dim"
            )
        param_specs(self)


@dataclass(frozen=True)
class LayerStep:
    """One step through the layers: join skip row `skip` (-1: none), run block `layer`, then push the result or not."""

    layer: int
    skip: int
    push: bool


def layer_plan(config: ModelConfig) -> tuple[LayerStep, ...]:
    """The first half pushes its outputs, the second half pops them in reverse before each block."""
    half = config.num_layers // 2
    first = tuple(LayerStep(layer, -1, True) for layer in range(half))
    rest = config.num_layers - half
    return first + tuple(LayerStep(half + j, j if j < half else -1, False) for j in range(rest))


def block_specs(config: ModelConfig, shape: LayerShape) -> tuple[ParamSpec, ...]:
    """Parameters of one block, in the baseline's order and under its names."""
    dim, kv_dim = shape.model_dim, shape.num_kv_heads * shape.head_dim
    attn = (
        *config.qk_gain.params(shape),
        matrix("c_q", dim, dim, ATTN),
        matrix("c_k", kv_dim, dim, ATTN),
        matrix("c_v", kv_dim, dim, ATTN),
        matrix("proj", dim, dim, ATTN, ("fill", 0.0)),
    )
    return (
        control("attn_scale", (dim,), 1.0),
        control("mlp_scale", (dim,), 1.0),
        *config.mix.params(shape),
        *(spec.under("attn") for spec in attn),
        *(spec.under("mlp") for spec in config.mlp.params(shape)),
    )


def layer_shape(config: ModelConfig, layer: int = -1) -> LayerShape:
    """The sizes parts see."""
    return LayerShape(
        vocab_size=config.vocab_size,
        num_layers=config.num_layers,
        model_dim=config.model_dim,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        layer=layer,
    )


def param_specs(config: ModelConfig) -> tuple[ParamSpec, ...]:
    """Every parameter once, in canonical order; positions in this tuple are the name ids of the artifact."""
    specs = [*config.embed.params(layer_shape(config)), *config.skips.params(layer_shape(config))]
    for layer in range(config.num_layers):
        specs += [spec.under(f"blocks.{layer}") for spec in block_specs(config, layer_shape(config, layer))]
    return tuple(specs)
