"""One matrix for input and output (naive baseline)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import EMBED, TOKEN, ParamSpec
from pgolf.core.model.slots import LayerShape, Part

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class TiedEmbed(Part):
    """The token embedding serves as output matrix too. Source: naive baseline; its overtone start: the
    1.1748 record.
    """

    init_std: float = 0.005
    """Standard deviation of the initial embedding (upstream: tied_embed_init_std)."""

    spectrum: str = "normal"
    """How the table begins: normal (independent numbers), or overtone (the k-th singular value k^-1/2 of the first)."""

    def __post_init__(self) -> None:
        if self.spectrum not in ("normal", "overtone"):
            raise ConfigError(f"{self.spectrum!r} is neither normal nor overtone", "spectrum")

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """tok_emb.weight (V,C)."""
        if shape.layer >= 0:
            return ()
        size = (shape.vocab_size, shape.model_dim)
        return (ParamSpec("tok_emb.weight", size, (self.spectrum, self.init_std), TOKEN, EMBED),)

    def lookup(self, root: Any, ids_BT: "Tensor") -> "Tensor":
        """Rows of the embedding."""
        from torch.nn.functional import embedding

        return embedding(ids_BT, root.tok_emb.used())

    def widen(self, root: Any, x_BTE: "Tensor") -> "Tensor":
        """The embedding is as wide as the model."""
        return x_BTE

    def project(self, root: Any, x_BTC: "Tensor") -> "Tensor":
        """Inner products with every row of the embedding."""
        return root.tok_emb.linear(x_BTC, master=True)


def overtone(weight: "Tensor", std: float, generator: "Generator") -> None:
    """Normal numbers, their k-th singular value then set to k^-1/2 times the first."""
    from torch import arange
    from torch.linalg import svd

    left, values, right = svd(weight.normal_(0.0, std, generator=generator), full_matrices=False)
    weight.copy_((left * (values[0] / arange(1, len(values) + 1).sqrt())) @ right)
