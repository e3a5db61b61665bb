"""The slots of a model, and what a part may do in each of its places.

A part is a frozen dataclass in `parts/`: its fields are its configuration, `params` lists the parameters it adds, and
it overrides those of `Part`'s methods where it acts. The skeleton in `gpt.py` calls every part at every place, in the
order of the slots in `ModelConfig`, and knows none of them by name. A part's module does not import torch when it is
loaded (configuration must load in milliseconds), only inside the function that computes.

Shapes: B batch, T time, C model dim, H query heads, K key/value heads, D head dim, V vocabulary, F hidden width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pgolf.core.model.params import ParamSpec

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """The sizes a part may depend on. `layer` is the physical layer index, -1 for the whole model."""

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    skips: int = 0
    """Long connections in the longest layer plan."""
    layer: int = -1

    @property
    def head_dim(self) -> int:
        """Width of one head, D = C / H."""
        return self.model_dim // self.num_heads


@dataclass
class Flow:
    """What parts share during one forward pass."""

    ids_BT: "Tensor"
    same_BT: "Tensor"
    """Whether the token before belongs to the same document, bool; False at the start of a row."""
    segments_BT: "Tensor | None"
    """Numbers of the stretches that attention may not leave, or None for whole rows."""
    tables: Any
    """What the position part needs."""
    memory: dict[str, Any]
    """What one layer leaves for later ones, by name."""
    start: int = 0
    """First position that the block under way is computed at; of earlier ones it has keys and values only."""

    def before(self, x: "Tensor") -> "Tensor":
        """(B,T,...) one step later in time; zeros first."""
        from torch import cat, zeros_like

        return cat((zeros_like(x[:, :1]), x[:, :-1]), dim=1)


class Part:
    """A technique. Every place is the identity until a part overrides it; `layer` is the physical index."""

    narrows = False
    """Whether attention may see less with it than all that came before."""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """The parameters this part adds to the model (shape.layer -1), or to a block and its `attn.` and `mlp.`."""
        return ()

    def suits(self, shape: LayerShape) -> None:
        """ConfigError, with a key relative to the part's own, if it cannot work on a model of this shape."""

    def fits(self, parts: dict[str, Any], specs: tuple[ParamSpec, ...]) -> None:
        """ConfigError, with a key relative to the part's own, if it cannot work beside the model's other parts (slot ->
        part) or on its parameters.
        """

    def layers(self, num_layers: int) -> Sequence[int]:
        """The layers on which it acts."""
        return range(num_layers)

    # Whole model

    def embedded(self, root: Any, flow: Flow, x_BTC: "Tensor") -> "Tensor":
        """The embedding before its norm."""
        return x_BTC

    def entered(self, root: Any, flow: Flow, x_BTC: "Tensor") -> "Tensor":
        """The normalised embedding, before the blocks."""
        return x_BTC

    def departed(self, root: Any, flow: Flow, x_BTC: "Tensor") -> "Tensor":
        """The stream after the blocks, before the last norm."""
        return x_BTC

    def scored(self, root: Any, logits_BTV: "Tensor") -> "Tensor":
        """Raw logits, before the soft-cap."""
        return logits_BTV

    def extra_loss(
        self, root: Any, hidden_BTC: "Tensor", logits_BTV: "Tensor", targets_BT: "Tensor"
    ) -> "Tensor | float":
        """Added to the mean loss in training, nats."""
        return 0.0

    # Beside the model

    def collect(self, root: Any, shards: "list[ndarray]") -> None:
        """What it takes from the training tokens, before training begins."""

    def stored(self, root: Any) -> "Sequence[tuple[tuple[int, ...], int]]":
        """N-grams of training text that it has kept, and how often each occurred."""
        return ()

    # Export

    def leaves(self, parts: dict[str, Any]) -> bool:
        """Whether an exported model does without it, given all parts (slot -> part): only training needs it, or `fold`
        has the matrices take it up.
        """
        return False

    def fold(self, weights: "dict[str, Tensor]") -> None:
        """Change the weights such that the model computes without the part what it computed with it."""

    # One block

    def scaled(self, layer: int, n_BTC: "Tensor") -> "Tensor":
        """The normalised input of attention and MLP."""
        return n_BTC

    def reach(self, length: int) -> int:
        """How many tokens back a layer's attention may look; 0 is no limit."""
        return 0

    def projected(
        self, attn: Any, flow: Flow, layer: int, n_BTC: "Tensor", q: "Tensor", k: "Tensor", v: "Tensor"
    ) -> "tuple[Tensor, Tensor, Tensor]":
        """Queries (B,T,H,D), keys and values (B,T,K,D) as projected from the block's input n."""
        return q, k, v

    def queries(self, attn: Any, q_BTHD: "Tensor") -> "Tensor":
        """Queries after QK-norm and rotation."""
        return q_BTHD

    def keys(self, attn: Any, flow: Flow, k_BTKD: "Tensor") -> "Tensor":
        """Keys after QK-norm and rotation."""
        return k_BTKD

    def heads(self, attn: Any, y_BTHD: "Tensor", v_BTKD: "Tensor", n_BTC: "Tensor", raw_q_BTHD: "Tensor") -> "Tensor":
        """What attention has gathered, from values v; raw_q are the queries as projected."""
        return y_BTHD

    def attended(self, flow: Flow, layer: int, x_BTC: "Tensor") -> "Tensor":
        """The stream as attention reads it, before the norm."""
        return x_BTC

    def closed(self, block: Any, flow: Flow, layer: int, x_BTC: "Tensor") -> "Tensor":
        """The stream as it leaves a block; each lane, where there are several."""
        return x_BTC

    def required(self, start: int) -> int:
        """First position that the last block must be computed at if all from `start` on are asked for: an earlier one
        for a part that mixes positions of what attention has gathered or a block has made.
        """
        return start

    # Linear maps

    def cover(self, model: Any) -> None:
        """Have the model's `treat` let `weights` and `inputs` act on matrices."""

    def weights(self, weight: "Tensor", role: str) -> "Tensor":
        """A matrix as it is used."""
        return weight

    def inputs(self, x: "Tensor", closing: bool) -> "Tensor":
        """The input of a block's linear map; `closing` says that its output goes to the residual stream."""
        return x


class Embed(Protocol):
    """Tokens to vectors, and final vectors to raw logits."""

    def lookup(self, root: Any, ids_BT: "Tensor") -> "Tensor":
        """(B,T) int64 -> (B,T,E), before the norm."""

    def widen(self, root: Any, x_BTE: "Tensor") -> "Tensor":
        """(B,T,E) after the norm -> (B,T,C)."""

    def project(self, root: Any, x_BTC: "Tensor") -> "Tensor":
        """(B,T,C) -> (B,T,V) raw logits."""


class Position(Protocol):
    """Tells queries and keys where they stand."""

    def tables(self, length: int, head_dim: int, like: "Tensor") -> Any:
        """Whatever `apply` needs for `length` positions, made once per forward on the device of `like`."""

    def apply(self, x_BTHD: "Tensor", tables: Any) -> "Tensor":
        """Rotate queries or keys, same shape."""


class Mlp(Protocol):
    """The feed-forward half of a block."""

    def apply(self, mlp: Any, x_BTC: "Tensor") -> "Tensor":
        """(B,T,C) -> (B,T,C)."""

    def fused_apply(self, mlp: Any, x_BTC: "Tensor") -> "Tensor":
        """The same by a kernel; only of classes in `FUSIBLE` (`fused.py`)."""


class Mix(Protocol):
    """Mixes the embedding stream x0 into a block's input."""

    def apply(self, block: Any, x_BTC: "Tensor", x0_BTC: "Tensor") -> "Tensor":
        """Same shape as x."""


class Skips(Protocol):
    """Long connections from the first half of the layers to the second."""

    def apply(self, root: Any, x_BTC: "Tensor", skip_BTC: "Tensor", row: int) -> "Tensor":
        """Join the `row`-th skip into x, same shape."""


class Loop(Protocol):
    """The order in which layers run, some of them more than once."""

    def order(self, num_layers: int) -> tuple[int, ...]:
        """Physical layers in the order they run, the loop switched on."""

    def is_on(self, fraction: float) -> bool:
        """Whether the loop is on at this fraction of training."""

    def later(self, specs: tuple[ParamSpec, ...], layer: int) -> tuple[ParamSpec, ...]:
        """What later passes through a layer have of their own, given the parameters of its block."""

    def passes(self, block: Any, count: int) -> list[Any]:
        """The block as each pass through it sees it."""

    def begin(self, model: Any) -> None:
        """Called once in training, when the loop is switched on."""


class Residual(Protocol):
    """How blocks add to the residual stream, which may run in several lanes."""

    def enter(self, layer: int, lanes: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
        """The lanes with which a layer of the second half begins."""

    def join(self, lanes: "tuple[Tensor, ...]", skip: "Callable[[Tensor], Tensor]") -> "tuple[Tensor, ...]":
        """Apply a long connection to the lanes it belongs to."""

    def block(
        self,
        root: Any,
        layer: int,
        lanes: "tuple[Tensor, ...]",
        mix: "Callable[[Tensor], Tensor]",
        attention: "Callable[[Tensor], Tensor]",
        mlp: "Callable[[Tensor], Tensor]",
    ) -> "tuple[Tensor, ...]":
        """One block; `attention` and `mlp` normalise their input and scale their output."""

    def leave(self, lanes: "tuple[Tensor, ...]") -> "Tensor":
        """The lanes as one stream."""


class Retraction(Protocol):
    """Takes an earlier state of the stream out of the last one."""


class Softcap(Protocol):
    """Bounds the logits."""

    def apply(self, logits: "Tensor") -> "Tensor":
        """Same shape and dtype."""

    def fused_nll(self, logits_NV: "Tensor", targets_N: "Tensor") -> "Tensor":
        """Cross-entropy of the bounded logits, (N,) float32 nats, by a kernel; only of classes in `FUSIBLE`."""


class Documents(Protocol):
    """What a document is to attention."""

    def segments(self, ids_BT: "Tensor") -> "Tensor | None":
        """Numbers of the stretches that attention may not leave, or None."""

    def longest(self, length: int) -> int:
        """Tokens of the longest stretch that a row of `length` may have."""


class HashEmbed(Protocol):
    """Embeddings of short sequences of tokens."""


class Smear(Protocol):
    """Mixes the token before into a token's embedding."""


class NormScale(Protocol):
    """Scales normalised block inputs."""


class QueryHook(Protocol):
    """Scales queries."""


class KeyOffset(Protocol):
    """Lets keys speak of the token before."""


class ValueEmbed(Protocol):
    """Adds an embedding of the token to values."""


class ValueResidual(Protocol):
    """Mixes the first layer's values into later ones."""


class HeadMix(Protocol):
    """Mixes heads before attention."""


class Window(Protocol):
    """How far back attention looks."""


class ValueExclusion(Protocol):
    """Takes a token's own value out of what its attention gathers."""


class HeadGate(Protocol):
    """Scales each head's output by what the token says."""


class LogitBias(Protocol):
    """Adds to raw logits."""


class AuxLoss(Protocol):
    """Adds to the training loss."""


class MultiToken(Protocol):
    """Predicts more than the next token in training."""


class Precision(Protocol):
    """The numbers that weights are made of while they are trained."""


class Counts(Protocol):
    """Counts of training text, kept with the model."""


"""Every slot without methods of its own is filled by a `Part`, most often by the one that does nothing."""


@dataclass(frozen=True, kw_only=True)
class Absent(Part):
    """Nothing in this place."""
