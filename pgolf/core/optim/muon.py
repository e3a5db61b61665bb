"""Muon: momentum, then the nearest semi-orthogonal matrix (naive baseline; spec: training 1)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

QUINTIC = ((3.4445, -4.7750, 2.0315),)
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Coefficients by step (arXiv:2505.16932), made for five of them; more steps than coefficients repeat the last."""


Table = tuple[tuple[float, float, float], ...]
"""Coefficients (a, b, c) by step."""

BLOCK = 256
"""Rows of a symmetric product that are computed at once on a CPU: with fewer, products lose speed."""


def newton_schulz(x: "Tensor", steps: int, table: Table) -> "Tensor":
    """X <- aX + (bA + cA^2)X with A = XX^T, for wide (N, R, C) of norm below one, R <= C. Products and sums are one
    operation: with half the passes over memory, and half the rounding error in bfloat16, of one after the other.
    """
    for step in range(steps):
        a, b, c = table[min(step, len(table) - 1)]
        gram = x @ x.mT
        x = x.baddbmm(gram.baddbmm(gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def gram_newton_schulz(x: "Tensor", steps: int, table: Table) -> "Tensor":
    """The same result for (N, R, C) or (R, C) with two steps at a time where C >= 2R: what the second makes of X is
    known from A alone, so that X takes part in two products in place of four. Every pair begins from X, for rounding
    errors of A grow: three steps at once made singular values of 5. Below `BLOCK` rows A is float32; from there on it
    has X's dtype, and in bfloat16 the result is off by 3 to 6 % of its norm (`newton_schulz` 1 %, the same with one
    operation after the other 3 to 5 %).
    """
    rows, columns = x.shape[-2:]
    if rows < BLOCK and columns < 2 * rows:
        return newton_schulz(x, steps, table)
    if x.dim() == 3 and len(x) == 1 and rows > BLOCK and x.device.type == "cpu":
        return gram_newton_schulz(x[0].contiguous(), steps, table)[None]
    together = 2 if columns >= 2 * rows else 1
    for step in range(0, steps, together):
        (a, b, c), *second = [table[min(i, len(table) - 1)] for i in range(step, min(step + together, steps))]
        wide = x.float() if rows < BLOCK else x
        gram = symmetric_product(wide.new_empty(*x.shape[:-1], rows), wide, wide.mT, 0.0, 1.0)
        z = symmetric_product(gram, gram, gram, b, c)
        for d, e, f in second:
            half = symmetric_product(gram, z, gram, a, 1.0)
            gram = symmetric_product(half, z, half, a, 1.0)
            next_z = symmetric_product(gram, gram, gram, e, f)
            z, a = symmetric_product(z * d + next_z * a, next_z, z, 1.0, 1.0), a * d
        if rows < BLOCK:
            z.diagonal(dim1=-2, dim2=-1).add_(a)
            x = z.to(x.dtype) @ x
        else:
            x = x.baddbmm(z, x, beta=a) if x.dim() == 3 else x.addmm(z, x, beta=a)
    return x


def symmetric_product(base: "Tensor", left: "Tensor", right: "Tensor", beta: float, alpha: float) -> "Tensor":
    """beta B + alpha LR where that is symmetric; B is not read where beta is 0. Of single matrices on a CPU, blocks
    above the diagonal are copies of those below: a sixth to a quarter of the arithmetic less.
    """
    if left.dim() == 3:
        return base.baddbmm(left, right, beta=beta, alpha=alpha)
    found = base.new_empty(base.shape)
    for start in range(0, len(base), BLOCK):
        end = start + BLOCK
        rows = base[start:end, :end].addmm(left[start:end], right[:, :end], beta=beta, alpha=alpha)
        found[start:end, :end] = rows
        found[:start, start:end] = rows[:, :start].contiguous().T
    return found


def orthogonalise(
    updates: "Tensor",
    steps: int,
    bfloat16: bool = True,
    table: Table = QUINTIC,
    iterate: "Callable[[Tensor, int, Table], Tensor]" = newton_schulz,
) -> "Tensor":
    """Newton-Schulz iteration on (N, R, C), each matrix on its own; singular values end near one, not at one.

    `iterate` gets the wide orientation. Runs in bfloat16 or float32, returns that dtype.
    """
    x = updates.bfloat16() if bfloat16 else updates.float()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if x.size(-2) > x.size(-1):
        return iterate(x.mT, steps, table).mT.contiguous()
    return iterate(x, steps, table)


@dataclass
class Stepped:
    """A matrix (R,C) as its optimizer sees it: what is remembered of it by name (see `Muon.memory`), the multiplier of
    its rate, and in how many row blocks it is orthogonalised. Only the rank that steps it remembers anything.
    """

    weight: "Tensor"
    memory: "dict[str, Tensor]"
    rate: float = 1.0
    blocks: int = 1

    @property
    def grad(self) -> "Tensor":
        """Its gradient, zeros where it has none: nothing is remembered of it then, so its update is zero as well."""
        return self.weight.new_zeros(self.weight.shape) if self.weight.grad is None else self.weight.grad


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
    cautious_decay: bool = False
    """Decay only where update and weight have one sign (modded-nanogpt). In PR #1512 it ruined quantization.
    """
    bfloat16: bool = True
    """Iterate in bfloat16 as the records do; float32 otherwise."""
    iteration: str = "standard"
    """How the iteration is computed: standard, or gram, two steps at a time from R x R products where C >= 2R, and with
    one half of symmetric products on a CPU, matrix by matrix: a quarter less time there on the leader's matrices.
    Unproven on a GPU: another form of it was slower (96.9 ms per step against 83.3 ms).
    """
    paired_heads: bool = False
    """Orthogonalise the rows of every two neighbouring heads of queries and keys apart from the others (-0.00055 BPB on
    PR #1493 with a decay schedule, nothing on banks); needs an even number of them.
    """

    def __post_init__(self) -> None:
        if self.lr < 0 or self.weight_decay < 0 or self.ns_steps < 1 or self.momentum_warmup_steps < 0:
            raise ConfigError("lr, weight_decay and momentum_warmup_steps must not be negative, ns_steps at least 1")
        if self.coefficients not in ("quintic", "polar"):
            raise ConfigError(f"{self.coefficients!r} is neither quintic nor polar", "coefficients")
        if self.coefficients == "polar" and self.ns_steps > len(POLAR_EXPRESS):
            raise ConfigError(f"polar coefficients are made for {len(POLAR_EXPRESS)} steps at most", "ns_steps")
        if self.rows not in ("none", "l2", "rms"):
            raise ConfigError(f"{self.rows!r} is neither none nor l2 nor rms", "rows")
        if self.iteration not in ("standard", "gram"):
            raise ConfigError(f"{self.iteration!r} is neither standard nor gram", "iteration")
        if not 0 <= self.momentum < 1 or not 0 <= self.momentum_start < 1:
            raise ConfigError("momentum and momentum_start must lie in [0, 1)")

    def memory(self, weight: "Tensor") -> "dict[str, Tensor]":
        """What is remembered of a matrix between steps, before the first: its momentum (R,C)."""
        return {"momentum": weight.new_zeros(weight.shape)}

    def pairs(self, name: str) -> bool:
        """Whether the heads of a matrix are taken two by two."""
        return self.paired_heads and name.endswith((".c_q.weight", ".c_k.weight"))

    def row_blocks(self, name: str, rows: int, head_dim: int) -> int:
        """Row blocks of a matrix that are orthogonalised apart; ConfigError when `paired_heads` finds an odd head."""
        if not self.paired_heads or not self.pairs(name):
            return 1
        if rows % (2 * head_dim):
            raise ConfigError(f"{name} has an odd number of heads, {rows // head_dim}", "optim.matrix.paired_heads")
        return rows // (2 * head_dim)

    def direction(self, updates: "Tensor", blocks: int = 1) -> "Tensor":
        """Orthogonalised updates (N,R,C), their rows evened out before if asked, in `blocks` row blocks each."""
        from torch.nn.functional import normalize, rms_norm

        shape = updates.shape
        if self.paired_heads:
            updates = updates.reshape(shape[0] * blocks, -1, shape[2])
        if self.rows == "l2":
            updates = normalize(updates, dim=-1, eps=1e-7)
        elif self.rows == "rms":
            updates = rms_norm(updates, (updates.size(-1),))
        table = POLAR_EXPRESS if self.coefficients == "polar" else QUINTIC
        if self.iteration == "gram":
            updates = orthogonalise(updates, self.ns_steps, self.bfloat16, table, gram_newton_schulz)
        else:
            updates = orthogonalise(updates, self.ns_steps, self.bfloat16, table)
        return updates.view(shape)

    def momentum_at(self, step: int) -> float:
        """Linear warm-up of the momentum."""
        frac = min(step / self.momentum_warmup_steps, 1.0) if self.momentum_warmup_steps else 1.0
        return (1 - frac) * self.momentum_start + frac * self.momentum

    def updates(self, members: "list[Stepped]", grads: "list[Tensor]", step: int) -> "Tensor":
        """What moves matrices of one shape, (N,R,C), given their gradients (R,C): momentum, direction, shape factor.
        What is remembered of them changes in place.
        """
        import torch

        momentum = self.momentum_at(step)
        ahead = [
            grad.add(one.memory["momentum"].mul_(momentum).add_(grad), alpha=momentum)
            for one, grad in zip(members, grads)
        ]
        if self.iteration == "gram" and min(grads[0].shape) > BLOCK and grads[0].device.type == "cpu":
            updates = torch.cat([self.direction(one[None], members[0].blocks) for one in ahead])
        else:
            updates = self.direction(torch.stack(ahead), members[0].blocks)
        return updates * max(1.0, updates.size(1) / updates.size(2)) ** 0.5

    def move(self, one: Stepped, update: "Tensor", lr_scale: float, decay_scale: float) -> None:
        """p <- p (1 - lr wd) - lr O for an update O (R,C), the scales multiplying lr and wd; see `cautious_decay`."""
        lr = self.lr * lr_scale * one.rate
        decay = lr * self.weight_decay * decay_scale
        if self.cautious_decay:
            one.weight.sub_(decay * one.weight * (update * one.weight >= 0)).sub_(update, alpha=lr)
        else:
            one.weight.mul_(1 - decay).sub_(update, alpha=lr)


@dataclass(frozen=True, kw_only=True)
class NorMuon(Muon):
    """Muon whose updates get rows of one length over time: each is divided by the root of the running mean of its
    squares, and the whole keeps its norm. Columns take the place of rows in wide matrices. Effect: unproven; in no
    record. Source: NorMuon (modded-nanogpt, nanochat; spec: training 1.3).
    """

    beta2: float = 0.95
    """Decay of the running mean of squares (modded-nanogpt 0.9; upstream: muon_beta2)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta2 < 1:
            raise ConfigError(f"beta2 must lie in [0, 1), not {self.beta2}", "beta2")

    def memory(self, weight: "Tensor") -> "dict[str, Tensor]":
        """Momentum (R,C), and the running mean (R,1), or (1,C) where C > R."""
        rows, columns = weight.shape
        shape = (rows, 1) if rows >= columns else (1, columns)
        return super().memory(weight) | {"second_moment": weight.new_zeros(shape)}

    def updates(self, members: "list[Stepped]", grads: "list[Tensor]", step: int) -> "Tensor":
        """Muon's, evened out, in float32. What is remembered is that of the update with Muon's shape factor."""
        found = super().updates(members, grads, step).float()
        for one, full in zip(members, found):
            second = one.memory["second_moment"]
            axis = -1 if second.size(-1) == 1 else -2
            second.lerp_(full.square().mean(axis, keepdim=True), 1 - self.beta2)
            even = full * second.clamp_min(1e-10).rsqrt()
            full.copy_(even * (full.norm() / even.norm().clamp_min(1e-10)))
        return found
