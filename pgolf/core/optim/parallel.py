"""How gradients come together that several ranks have computed (spec: training 1.7).

Matrices of one shape are a bank, and every rank steps its share of each bank. What is remembered of a matrix is with
the rank that steps it; all ranks then get all updates.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from pgolf.core.optim.optimizers import Optimizers


@dataclass(frozen=True, kw_only=True)
class Replicated:
    """All gradients are averaged at once, for every rank. Source: naive baseline, PR #1394, #1493."""

    def reduce(self, held: "Optimizers") -> "Iterable[list[Tensor]]":
        """Average the gradients, Adam's in place; by bank, those (R,C) of this rank's share."""
        held.world.mean_([weight.grad for weight in held.named.values() if weight.grad is not None])
        return [[one.grad for one in bank if one.memory] for bank in held.banks]


@dataclass(frozen=True, kw_only=True)
class Banks:
    """Parallel Muon: of the matrices each rank gets the averages it steps, by an asynchronous reduce-scatter that goes
    on while all other gradients are averaged and stepped. Effect: none on the result, fewer bytes on the wire. Source:
    PR #399, #549, #1855.
    """

    bfloat16: bool = False
    """Round the gradients of matrices to bfloat16 for the way, as the records do, and so on a single rank; float32
    otherwise.
    """

    def reduce(self, held: "Optimizers") -> "Iterable[list[Tensor]]":
        """Average the gradients, as `Replicated` does; each bank is waited for when it is asked for."""
        import torch

        from pgolf.core.dist import arrived

        world, coming = held.world, []
        for bank in held.banks:
            whole = torch.stack([one.grad for one in bank])
            coming.append(world.scatter(whole.bfloat16() if self.bfloat16 else whole))
        world.mean_([weight.grad for weight in held.others.values() if weight.grad is not None])
        return (list(arrived(*share).float() / world.size) for share in coming)
