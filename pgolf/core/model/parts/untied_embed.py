"""Separate input and output matrices (naive baseline with tie_embeddings off)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.model.params import EMBED, HEAD, TOKEN, ParamSpec
from pgolf.core.model.slots import LayerShape, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class UntiedEmbed(Part):
    """An embedding and an output matrix that starts at zero. Source: naive baseline."""

    init_std: float = 1.0
    """Standard deviation of the initial embedding (torch's own default)."""

    def params(self, shape: LayerShape) -> tuple[ParamSpec, ...]:
        """tok_emb.weight (V,C) and lm_head.weight (V,C)."""
        if shape.layer >= 0:
            return ()
        size = (shape.vocab_size, shape.model_dim)
        return (
            ParamSpec("tok_emb.weight", size, ("normal", self.init_std), TOKEN, EMBED),
            ParamSpec("lm_head.weight", size, ("fill", 0.0), HEAD, HEAD),
        )

    def lookup(self, root: Any, ids_BT: "Tensor") -> "Tensor":
        """Rows of the embedding."""
        from torch.nn.functional import embedding

        return embedding(ids_BT, root.tok_emb.used())

    def widen(self, root: Any, x_BTE: "Tensor") -> "Tensor":
        """The embedding is as wide as the model."""
        return x_BTE

    def project(self, root: Any, x_BTC: "Tensor") -> "Tensor":
        """Inner products with every row of the output matrix."""
        return root.lm_head.linear(x_BTC)
