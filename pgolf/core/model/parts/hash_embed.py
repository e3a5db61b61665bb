"""Embeddings of hashed token pairs and triples (PR #65, #162)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import CONTROL, EMBED, MATRIX, SCALAR, TOKEN, ParamSpec, control
from pgolf.core.model.slots import Flow, LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BigramHash(Part):
    """Adds c P B[h(x_t, x_t-1)] to the embedding, B a table of hashed pairs that starts at zero. Effect: -0.002 from
    4,096 to 10,240 buckets; in no record since PR #1218, whose vocabulary is larger. Source: PR #162, #549, #638;
    triples in the same table: trigram.
    """

    buckets: int = 4096
    """Rows of the table, the last one for positions without a pair (upstream: bigram_vocab_size)."""
    dim: int = 128
    """Width of the table (upstream: bigram_dim)."""
    scale: float = 0.05
    """Initial factor c."""
    trigram: bool = False
    """Add the triples' rows too."""
    muon: bool = False
    """Step the projection P by Muon (PR #638) and not by Adam (PR #549)."""

    def __post_init__(self) -> None:
        if self.buckets < 2 or self.dim < 1:
            raise ConfigError("a table has at least 2 buckets and 1 dim", "buckets")

    def suits(self, shape: LayerShape) -> None:
        """Hashes stay within int32."""
        limit = 41_701 if self.trigram else 59_138
        if shape.vocab_size > limit:
            raise ConfigError(
                f"the hash is defined for at most {limit:,} ids, there are {shape.vocab_size:,}", "buckets"
            )

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """bigram.scale (), bigram.embed.weight (N,m), bigram.proj.weight (C,m)."""
        if shape.layer >= 0:
            return ()
        group, size = MATRIX if self.muon else SCALAR, (shape.model_dim, self.dim)
        return (
            ParamSpec("bigram.scale", (), ("fill", self.scale), SCALAR, CONTROL),
            ParamSpec("bigram.embed.weight", (self.buckets, self.dim), ("fill", 0.0), TOKEN, EMBED),
            ParamSpec("bigram.proj.weight", size, ("orthogonal", 1.0), group, EMBED),
        )

    def rows(self, flow: Flow) -> "list[Tensor]":
        """Rows of the table, (B,T) each: of pairs, and of triples if asked."""
        from torch import where

        ids, last = flow.ids_BT, self.buckets - 1
        second = flow.before(ids)
        third = flow.before(second)
        paired = flow.same_BT
        found = [where(paired, ((36313 * ids) ^ (27191 * second)) % last, last)]
        if self.trigram:
            linked = paired & flow.before(paired)
            found.append(where(linked, ((36313 * ids) ^ (27191 * second) ^ (51497 * third)) % last, last))
        return found

    def embedded(self, root: Any, flow: Flow, x_BTC: "Tensor") -> "Tensor":
        """Add the pairs' embedding."""
        from torch import stack
        from torch.nn.functional import embedding

        table = root.bigram.embed.used()
        rows = stack([embedding(found, table) for found in self.rows(flow)]).sum(0)
        return x_BTC + root.bigram.scale.to(x_BTC.dtype) * root.bigram.proj.linear(rows.to(x_BTC.dtype))


@dataclass(frozen=True, kw_only=True)
class EngramLite(Part):
    """Two hash heads each for pairs and triples, projected and gated by channel: adds sigma(g) W [rows]. W and g start
    at zero. Effect: unclear. Source: community (spec: model 4.4).
    """

    buckets: int = 3072
    """Rows per hash head, N."""
    dim: int = 32
    """Width of each row, m."""

    def __post_init__(self) -> None:
        if self.buckets < 1 or self.dim < 1:
            raise ConfigError("buckets and dim must be at least 1", "buckets")

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """engram.embed.weight (4N,m), engram.proj.weight (C,4m), engram.gate (C,)."""
        if shape.layer >= 0:
            return ()
        size = (shape.model_dim, 4 * self.dim)
        return (
            ParamSpec("engram.embed.weight", (4 * self.buckets, self.dim), ("normal", 0.01), TOKEN, EMBED),
            ParamSpec("engram.proj.weight", size, ("fill", 0.0), SCALAR, EMBED),
            control("engram.gate", (shape.model_dim,), 0.0),
        )

    def embedded(self, root: Any, flow: Flow, x_BTC: "Tensor") -> "Tensor":
        """Add the gated rows; tokens before a document's first count as 0."""
        from torch import stack
        from torch.nn.functional import embedding

        c = flow.ids_BT
        p = flow.before(c) * flow.same_BT
        q = flow.before(p) * flow.same_BT
        hashes = (
            1009 * p + c,
            (2719 * p + 314159) ^ (3137 * c),
            (36313 * q) ^ (27191 * p) ^ (4903 * c),
            (7919 * q) ^ (4391 * p) ^ (6151 * c),
        )
        slots = stack([found % self.buckets + slot * self.buckets for slot, found in enumerate(hashes)], dim=-1)
        rows = embedding(slots, root.engram.embed.used()).flatten(2).to(x_BTC.dtype)
        return x_BTC + root.engram.gate.to(x_BTC.dtype).sigmoid() * root.engram.proj.linear(rows)
