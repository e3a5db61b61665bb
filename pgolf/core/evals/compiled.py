"""Scoring with a compiled model (spec: evaluation 3, 10)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import SetupError

if TYPE_CHECKING:
    from torch import Tensor

    from pgolf.core.model.gpt import GPT


@dataclass(frozen=True, kw_only=True)
class TorchCompile:
    """Blocks as torch.compile makes them, for batches of one shape: smaller ones are filled up. That takes seconds to
    minutes before the first score, which count; losses differ in their last bits. Source: spec: evaluation 3, 10.
    """

    def fixes_length(self) -> bool:
        """Every length would be compiled for."""
        return True

    def compile_for(self, model: "GPT", rows: int, length: int, context: int) -> None:
        """Compile for windows scored from their start and for those scored after a context, on tokens of no stream.
        Where gradients are kept the model stays eager. SetupError when torch cannot compile.
        """
        import torch
        import torch.nn.functional as F

        eager, graph = model.hidden, torch.compile(model.hidden, dynamic=False)

        def hidden(ids_BT: "Tensor", starts: "list[Any] | None" = None, start: int = 0) -> "Tensor":
            if torch.is_grad_enabled():
                return eager(ids_BT, starts, start)
            filled = F.pad(ids_BT, (0, 0, 0, rows - len(ids_BT)))
            return graph(filled, starts or model.starts(filled), start)[: len(ids_BT)]

        model.hidden = hidden  # type: ignore[method-assign]
        ids = torch.zeros(rows, length, dtype=torch.int64, device=next(model.parameters()).device)
        try:
            with torch.no_grad():
                for start in {0, max(min(context, length - 64), 0)}:
                    hidden(ids, start=start)
        except RuntimeError as error:
            what = str(error).strip().partition("\n")[0]
            raise SetupError(f"torch.compile failed: {what}", "compiler", "set compiler=none") from None
