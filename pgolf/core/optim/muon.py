"""Muon: momentum, then the nearest semi-orthogonal matrix (naive baseline; spec: training 1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from pgolf.core.dist import World

QUINTIC = ((3.4445, -4.7750, 2.0315),)
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Coefficients by step (arXiv:2505.16932), made for five of them; more steps than coefficients repeat the last."""


def orthogonalise(
    updates: "Tensor", steps: int, bfloat16: bool = True, table: tuple[tuple[float, float, float], ...] = QUINTIC
) -> "Tensor":
    """Newton-Schulz iteration on (..., R, C), each matrix on its own; singular values end near one, not at one.

    X <- aX + (bA + cA^2)X with A = XX^T on the wide orientation. Runs in bfloat16 or float32, returns that dtype.
    """
    x = updates.bfloat16() if bfloat16 else updates.float()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    for step in range(steps):
        a, b, c = table[min(step, len(table) - 1)]
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT.contiguous() if tall else x


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Nesterov momentum and orthogonalised updates for matrices. Source: Keller Jordan's Muon, naive baseline."""

    lr: float = 0.04
    """Learning rate (upstream: matrix_lr)."""
    momentum: float = 0.95
    """Momentum after its warm-up (upstream: muon_momentum)."""
    momentum_start: float = 0.85
    """Momentum at step 0 (upstream: muon_momentum_warmup_start)."""
    momentum_warmup_steps: int = 500
    """Steps over which the momentum rises linearly; 0 uses the final value from the start."""
    ns_steps: int = 5
    """Newton-Schulz iterations (upstream: muon_backend_steps)."""
    coefficients: str = "quintic"
    """Of the iteration: quintic (Keller Jordan's) or polar (Polar Express, at most 5 steps; PR #1787, #1855)."""
    rows: str = "none"
    """Rows before the iteration: none, l2 (to length one; MuonEq-R, PR #1217) or rms (NeoMuon, ternary record)."""
    weight_decay: float = 0.0
    """Decoupled decay: p <- p (1 - lr wd)."""
    bfloat16: bool = True
    """Iterate in bfloat16 as the records do; float32 otherwise."""

    def __post_init__(self) -> None:
        if self.lr < 0 or self.weight_decay < 0 or self.ns_steps < 1 or self.momentum_warmup_steps < 0:
            raise ConfigError("lr, weight_decay and momentum_warmup_steps must not be negative, ns_steps at least 1")
        if self.coefficients not in ("quintic", "polar"):
            raise ConfigError(f"{self.coefficients!r} is neither quintic nor polar", "coefficients")
        if self.coefficients == "polar" and self.ns_steps > len(POLAR_EXPRESS):
            raise ConfigError(f"polar coefficients are made for {len(POLAR_EXPRESS)} steps at most", "ns_steps")
        if self.rows not in ("none", "l2", "rms"):
            raise ConfigError(f"{self.rows!r} is neither none nor l2 nor rms", "rows")
        if not 0 <= self.momentum < 1 or not 0 <= self.momentum_start < 1:
            raise ConfigError("momentum and momentum_start must lie in [0, 1)")

    def direction(self, updates: "Tensor") -> "Tensor":
        """Orthogonalised updates (N,R,C), their rows evened out before if asked."""
        from torch.nn.functional import normalize, rms_norm

        if self.rows == "l2":
            updates = normalize(updates, dim=-1, eps=1e-7)
        elif self.rows == "rms":
            updates = rms_norm(updates, (updates.size(-1),))
        table = POLAR_EXPRESS if self.coefficients == "polar" else QUINTIC
        return orthogonalise(updates, self.ns_steps, self.bfloat16, table)

    def momentum_at(self, step: int) -> float:
        """Linear warm-up of the momentum."""
        frac = min(step / self.momentum_warmup_steps, 1.0) if self.momentum_warmup_steps else 1.0
        return (1 - frac) * self.momentum_start + frac * self.momentum

    def step(
        self,
        weights: "Sequence[Tensor]",
        grads: "Sequence[Tensor]",
        buffers: "Sequence[Tensor]",
        lr_scale: float,
        step: int,
        world: "World",
    ) -> None:
        """Update the weights and momentum buffers in place.

        Matrices of one shape are orthogonalised as one batch; with several ranks each does every W-th matrix of the
        batch and a sum over zero-filled buffers gives all of them to everyone.
        """
        import torch

        momentum, lr = self.momentum_at(step), self.lr * lr_scale
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, weight in enumerate(weights):
            by_shape.setdefault(tuple(weight.shape), []).append(index)
        for shape, members in by_shape.items():
            stacked = []
            for index in members:
                buffers[index].mul_(momentum).add_(grads[index])
                stacked.append(grads[index].add(buffers[index], alpha=momentum))
            updates = torch.stack(stacked)
            if world.size == 1:
                updates = self.direction(updates)
            else:
                mine = self.direction(updates[world.rank :: world.size])
                updates = torch.zeros_like(updates, dtype=mine.dtype)
                updates[world.rank :: world.size] = mine
                world.sum_(updates)
            updates *= max(1.0, shape[0] / shape[1]) ** 0.5
            for index, update in zip(members, updates):
                weights[index].mul_(1 - lr * self.weight_decay).add_(update.to(weights[index].dtype), alpha=-lr)
