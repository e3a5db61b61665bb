"""The slots of a model: what each part promises the skeleton in `gpt.py`.

A part is a frozen dataclass in `parts/`. Its fields are its configuration, `params` lists the parameters it adds, and
its one other method does the work on `node`, the module that holds those parameters. A part's module does not import
torch when it is loaded (configuration must load in milliseconds), only inside the function that computes.

Shapes: B batch, T time, C model dim, H query heads, K key/value heads, D head dim, V vocabulary, F hidden width.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pgolf.core.model.params import ParamSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """The sizes a part may depend on. `layer` is the physical layer index, -1 for parts of the whole model."""

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    layer: int = -1

    @property
    def head_dim(self) -> int:
        """Width of one head, D = C / H."""
        return self.model_dim // self.num_heads


class Part(Protocol):
    """What every part has in common."""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """The parameters this part adds, relative to its node."""


class Embed(Part, Protocol):
    """Tokens to vectors, and final vectors to raw logits."""

    def lookup(self, root: Any, ids_BT: "Tensor") -> "Tensor":
        """(B,T) int64 -> (B,T,C)."""

    def project(self, root: Any, x_BTC: "Tensor") -> "Tensor":
        """(B,T,C) -> (B,T,V) raw logits, before the soft-cap."""


class Position(Protocol):
    """Tells queries and keys where they stand."""

    def tables(self, length: int, head_dim: int, like: "Tensor") -> Any:
        """Whatever `apply` needs for `length` positions, made once per forward on the device of `like`."""

    def apply(self, x_BTHD: "Tensor", tables: Any) -> "Tensor":
        """Rotate queries or keys, same shape."""


class QueryHook(Part, Protocol):
    """Changes queries after QK-norm and rotation."""

    def apply(self, attn: Any, q_BTHD: "Tensor") -> "Tensor":
        """Same shape."""


class Mlp(Part, Protocol):
    """The feed-forward half of a block."""

    def apply(self, mlp: Any, x_BTC: "Tensor") -> "Tensor":
        """(B,T,C) -> (B,T,C)."""


class Mix(Part, Protocol):
    """Mixes the embedding stream x0 into a block's input."""

    def apply(self, block: Any, x_BTC: "Tensor", x0_BTC: "Tensor") -> "Tensor":
        """Same shape as x."""


class Skips(Part, Protocol):
    """Long connections from the first half of the layers to the second."""

    def apply(self, root: Any, x_BTC: "Tensor", skip_BTC: "Tensor", row: int) -> "Tensor":
        """Join the `row`-th skip into x, same shape."""


class Softcap(Protocol):
    """Bounds the logits."""

    def apply(self, logits: "Tensor") -> "Tensor":
        """Same shape and dtype."""
