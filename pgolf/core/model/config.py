"""The model as a value: its parts, its parameters and the order of its layers. Nothing here needs torch."""

from dataclasses import dataclass
from typing import Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import ATTN, ParamSpec, control, matrix
from pgolf.core.model.parts.fixed_order import FixedOrder
from pgolf.core.model.parts.one_stream import OneStream
from pgolf.core.model.parts.qk_gain import QkGain
from pgolf.core.model.parts.relu2 import Relu2
from pgolf.core.model.parts.rope import Rope
from pgolf.core.model.parts.tanh_softcap import TanhSoftcap
from pgolf.core.model.parts.tied_embed import TiedEmbed
from pgolf.core.model.parts.unet_skips import UnetSkips
from pgolf.core.model.parts.whole_rows import WholeRows
from pgolf.core.model.parts.x0_mix import X0Mix
from pgolf.core.model.slots import (
    Absent,
    AuxLoss,
    Counts,
    Documents,
    Embed,
    HashEmbed,
    HeadGate,
    HeadMix,
    KeyOffset,
    LayerShape,
    LogitBias,
    Loop,
    Mix,
    Mlp,
    MultiToken,
    NormScale,
    Part,
    Position,
    Precision,
    QueryHook,
    Residual,
    Retraction,
    Skips,
    Smear,
    Softcap,
    ValueEmbed,
    ValueExclusion,
    ValueResidual,
    Window,
)

LARGE = 64
"""Matrices with both sides at least this are drawn orthogonal where that is asked for (PR #162)."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer with grouped-query attention; the defaults are the naive baseline (17,059,912).
    Parts act in the order in which they stand here.
    """

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
    matrix_init: str = "uniform"
    """How linear maps begin: uniform (torch's own), orthogonal (large ones; PR #162) or normal (PR #640)."""
    embed: Embed = TiedEmbed()
    """Input embedding and output projection."""
    documents: Documents = WholeRows()
    """Where attention stops."""
    hash_embed: HashEmbed = Absent()
    """Embeddings of token pairs and triples."""
    smear: Smear = Absent()
    """The token before, mixed into each embedding."""
    position: Position = Rope()
    """Position information in attention."""
    norm_scale: NormScale = Absent()
    """Factor on the normalised input of attention and MLP."""
    head_mix: HeadMix = Absent()
    """Mixing of heads before attention."""
    value_embed: ValueEmbed = Absent()
    """Token embeddings added to values."""
    value_residual: ValueResidual = Absent()
    """The first layer's values in later layers."""
    key_offset: KeyOffset = Absent()
    """Keys of the token before."""
    qk_gain: QueryHook = QkGain()
    """Scaling of the normalised queries."""
    window: Window = Absent()
    """How far back attention looks."""
    xsa: ValueExclusion = Absent()
    """Exclusive self attention."""
    head_gate: HeadGate = Absent()
    """Gates on the heads' outputs."""
    mlp: Mlp = Relu2()
    """Feed-forward part of a block."""
    mix: Mix = X0Mix()
    """How the embedding re-enters each block."""
    skips: Skips = UnetSkips()
    """Connections between the layers' halves."""
    loop: Loop = FixedOrder()
    """Layers that run more than once."""
    residual: Residual = OneStream()
    """How blocks add to the residual stream."""
    backout: Retraction = Absent()
    """An earlier state of the stream, taken out of the last one."""
    logit_bias: LogitBias = Absent()
    """Added to raw logits."""
    logit_softcap: Softcap = TanhSoftcap()
    """Bound on the logits."""
    aux_loss: AuxLoss = Absent()
    """Added to the training loss."""
    multi_token: MultiToken = Absent()
    """Tokens after the next one, predicted in training."""
    precision: Precision = Absent()
    """What weights are made of in training."""
    counts: Counts = Absent()
    """Counts of training text for the evaluation's cache."""

    def __post_init__(self) -> None:
        for key in ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} must be at least 1, not {getattr(self, key)}", key)
        if self.num_layers > 1024:
            raise ConfigError(f"{self.num_layers:,} layers are more than the 1,024 a model may have", "num_layers")
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
        if self.matrix_init not in ("uniform", "orthogonal", "normal"):
            raise ConfigError(f"{self.matrix_init!r} is none of uniform, orthogonal, normal", "matrix_init")
        shape = layer_shape(self)
        for slot, part in model_parts(self).items():
            try:
                part.suits(shape)
            except ConfigError as error:
                raise ConfigError(error.what, f"{slot}.{error.where}" if error.where else slot, error.fix) from None
            if not part.layers(self.num_layers):
                raise ConfigError("it acts on no layer of this model", slot, f"there are {self.num_layers} layers")
        specs = param_specs(self)
        for slot, part in model_parts(self).items():
            try:
                part.fits(model_parts(self), specs)
            except ConfigError as error:
                raise ConfigError(error.what, f"{slot}.{error.where}" if error.where else slot, error.fix) from None


def model_parts(config: ModelConfig) -> dict[str, Any]:
    """Slot -> part, in the order in which parts act, without those that do nothing."""
    return {
        name: part for name, part in vars(config).items() if isinstance(part, Part) and not isinstance(part, Absent)
    }


def attention_names(config: ModelConfig) -> tuple[str, ...]:
    """Backends of attention that auto prefers to sdpa, fastest first. Where all of a row is seen, sdpa itself runs the
    kernel of flash-attention 2.
    """
    return ("fa3", "fa2", "flex") if any(part.narrows for part in model_parts(config).values()) else ("fa3",)


@dataclass(frozen=True)
class LayerStep:
    """One step through the layers: join skip row `skip` (-1: none), run block `layer`, then push the result or not.
    `turn` counts the earlier runs of the same layer.
    """

    layer: int
    skip: int
    push: bool
    turn: int = 0


def layer_plan(config: ModelConfig, looping: bool = True) -> tuple[LayerStep, ...]:
    """The first half pushes its outputs, the second half pops them in reverse before each block."""
    order = config.loop.order(config.num_layers) if looping else tuple(range(config.num_layers))
    half = len(order) // 2
    return tuple(
        LayerStep(layer, index - half if half <= index < 2 * half else -1, index < half, order[:index].count(layer))
        for index, layer in enumerate(order)
    )


def block_specs(config: ModelConfig, shape: LayerShape) -> tuple[ParamSpec, ...]:
    """Parameters of one block, in the baseline's order and under its names."""
    dim, kv_dim = shape.model_dim, shape.num_kv_heads * shape.head_dim
    added = [
        spec
        for part in model_parts(config).values()
        if shape.layer in part.layers(config.num_layers)
        for spec in part.params(shape)
    ]
    inner = [spec for spec in added if spec.name.startswith("attn.")]
    mlp = [spec for spec in added if spec.name.startswith("mlp.")]
    return (
        control("attn_scale", (dim,), 1.0),
        control("mlp_scale", (dim,), 1.0),
        *(spec for spec in added if spec not in inner and spec not in mlp),
        *inner,
        matrix("attn.c_q", dim, dim, ATTN),
        matrix("attn.c_k", kv_dim, dim, ATTN),
        matrix("attn.c_v", kv_dim, dim, ATTN),
        matrix("attn.proj", dim, dim, ATTN, ("fill", 0.0)),
        *mlp,
    )


def layer_shape(config: ModelConfig, layer: int = -1) -> LayerShape:
    """The sizes parts see."""
    return LayerShape(
        vocab_size=config.vocab_size,
        num_layers=config.num_layers,
        model_dim=config.model_dim,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        skips=len(config.loop.order(config.num_layers)) // 2,
        layer=layer,
    )


def param_specs(config: ModelConfig) -> tuple[ParamSpec, ...]:
    """Every parameter once, in canonical order; positions in this tuple are the name ids of the artifact."""
    specs = [spec for part in model_parts(config).values() for spec in part.params(layer_shape(config))]
    for layer in range(config.num_layers):
        block = block_specs(config, layer_shape(config, layer))
        specs += [spec.under(f"blocks.{layer}") for spec in (*block, *config.loop.later(block, layer))]
    return tuple(spec.drawn(config.matrix_init, LARGE) for spec in specs)
