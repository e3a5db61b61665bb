"""An embedding narrower than the model (spec: model 4.6)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import EMBED, MATRIX, TOKEN, ParamSpec
from pgolf.core.model.slots import LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FactoredEmbed(Part):
    """A tied table of width E with a projection in and one out. Effect: -0.024 from width 128 to 256 in the ternary
    record. Source: ternary record (PR #640); with norm_first an option of PR #1394.
    """

    width: int = 254
    """Width E of the table (upstream: embed_dim, embedding_dim)."""
    init_std: float = 0.005
    """Standard deviation of the initial table."""
    norm_first: bool = False
    """Normalise the row and then project (PR #1394), rather than project and then normalise."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"width must be at least 1, not {self.width}", "width")

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """tok_emb.weight (V,E), embed_proj.weight (C,E), head_proj.weight (E,C)."""
        if shape.layer >= 0:
            return ()
        wide, narrow = shape.model_dim, self.width
        return (
            ParamSpec("tok_emb.weight", (shape.vocab_size, narrow), ("normal", self.init_std), TOKEN, EMBED),
            ParamSpec("embed_proj.weight", (wide, narrow), ("orthogonal", 1.0), MATRIX, EMBED),
            ParamSpec("head_proj.weight", (narrow, wide), ("orthogonal", 1.0), MATRIX, EMBED),
        )

    def lookup(self, root: Any, ids_BT: "Tensor") -> "Tensor":
        """Rows of the table, projected unless the norm comes first."""
        from torch.nn.functional import embedding

        rows = embedding(ids_BT, root.tok_emb.used())
        return rows if self.norm_first else root.embed_proj.linear(rows)

    def widen(self, root: Any, x_BTE: "Tensor") -> "Tensor":
        """To the model's width, unless it has that already."""
        return root.embed_proj.linear(x_BTE) if self.norm_first else x_BTE

    def project(self, root: Any, x_BTC: "Tensor") -> "Tensor":
        """Back to the table's width, then inner products with its rows."""
        return root.tok_emb.linear(root.head_proj.linear(x_BTC), master=True)
