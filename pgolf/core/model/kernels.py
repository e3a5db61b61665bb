"""Fused kernels in Triton and the operators by which torch knows them, so that a compiled model stays one graph.

The eager reference of each stands beside its use in `parts/`: `apply` of a softcap under cross-entropy, `apply` of an
MLP. Triton is imported, and kernels are defined, when `register_kernels` is called. Source: the idea of both is that of
modded-nanogpt and PR #1530.

Shapes: N tokens, V vocabulary, C model dim, F hidden width.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def softcapped_nll(logits_NV: "Tensor", targets_N: "Tensor", scale: float, shift: float, width: float) -> "Tensor":
    """Negative log-likelihood in nats of the targets under scale * sigma((z + shift) / width), (N,) float32.

    Raw logits are float32 or bfloat16, targets int64 in [0, V). Arithmetic is float32; only the logits and one number
    a row are kept for the gradient, which has the logits' dtype and can be taken once, not twice.
    """
    import torch

    return torch.ops.pgolf.softcapped_nll(logits_NV, targets_N, scale, shift, width)[0]


def leaky_relu2_mlp(x_NC: "Tensor", w_FC: "Tensor", proj_CF: "Tensor", slope: float) -> "Tensor":
    """leaky(x W^T)^2 P^T, (N,C), all of one dtype, float32 or bfloat16; sums are float32. Of the hidden units only
    those before the activation are kept for the gradient, which can be taken once, not twice.
    """
    import torch

    return torch.ops.pgolf.leaky_relu2_mlp(x_NC, w_FC, proj_CF, slope)[0]


@cache
def nll_kernels() -> tuple[Any, Any]:
    """Loss and gradient. A program goes once along one row, a block of the vocabulary at a time."""
    import triton
    import triton.language as tl

    @triton.jit
    def nll_loss(
        z,
        targets,
        losses,
        sums,
        vocab,
        scale,
        shift,
        width,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        top = float("-inf")
        total = 0.0
        for start in range(0, vocab, BLOCK):
            column = start + tl.arange(0, BLOCK)
            raw = tl.load(z + row * vocab + column, mask=column < vocab, other=0.0).to(tl.float32)
            capped = tl.where(column < vocab, scale * tl.sigmoid((raw + shift) / width), float("-inf"))
            higher = tl.maximum(top, tl.max(capped, 0))
            total = total * tl.exp(top - higher) + tl.sum(tl.exp(capped - higher), 0)
            top = higher
        log_sum = top + tl.log(total)
        raw = tl.load(z + row * vocab + tl.load(targets + row)).to(tl.float32)
        tl.store(losses + row, log_sum - scale * tl.sigmoid((raw + shift) / width))
        tl.store(sums + row, log_sum)

    @triton.jit
    def nll_slope(
        z,
        targets,
        sums,
        grads,
        z_grads,
        vocab,
        scale,
        shift,
        width,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        target = tl.load(targets + row)
        log_sum = tl.load(sums + row)
        factor = tl.load(grads + row) * (scale / width)
        for start in range(0, vocab, BLOCK):
            column = start + tl.arange(0, BLOCK)
            place = row * vocab + column
            raw = tl.load(z + place, mask=column < vocab, other=0.0).to(tl.float32)
            sigma = tl.sigmoid((raw + shift) / width)
            error = tl.exp(scale * sigma - log_sum) - tl.where(column == target, 1.0, 0.0)
            change = factor * error * sigma * (1.0 - sigma)
            tl.store(z_grads + place, change.to(z_grads.dtype.element_ty), mask=column < vocab)

    return nll_loss, nll_slope


@cache
def mlp_kernel() -> Any:
    """A product of matrices A (N,K) and B (K,F) that ends in the activation. Forward, u = A B is written, and
    phi(u) = leaky(u)^2; backward, u is read, and written are phi'(u) * A B and phi(u).
    """
    import triton
    import triton.language as tl

    @triton.jit
    def activated_product(
        a,
        b,
        u,
        products,
        hidden,
        rows,
        columns,
        depth,
        b_down,
        b_right,
        slope,
        BACKWARD: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
        DEPTH: tl.constexpr,
    ):
        row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for start in range(0, depth, DEPTH):
            inner = start + tl.arange(0, DEPTH)
            left = (row[:, None] < rows) & (inner[None, :] < depth)
            right = (inner[:, None] < depth) & (column[None, :] < columns)
            a_tile = tl.load(a + row[:, None] * depth + inner[None, :], mask=left, other=0.0)
            b_tile = tl.load(b + inner[:, None] * b_down + column[None, :] * b_right, mask=right, other=0.0)
            total = tl.dot(a_tile, b_tile, total, input_precision="ieee")
        place = row[:, None] * columns + column[None, :]
        inside = (row[:, None] < rows) & (column[None, :] < columns)
        if BACKWARD:
            units = tl.load(u + place, mask=inside, other=0.0).to(tl.float32)
        else:
            # phi is taken of what is kept, so that backward finds the very same hidden units again.
            units = total.to(u.dtype.element_ty).to(tl.float32)
        factor = tl.where(units > 0, 1.0, slope)
        leaky = factor * units
        if BACKWARD:
            total = total * 2.0 * leaky * factor
        tl.store(products + place, total.to(products.dtype.element_ty), mask=inside)
        tl.store(hidden + place, (leaky * leaky).to(hidden.dtype.element_ty), mask=inside)

    return activated_product


def vocab_block(vocab: int) -> int:
    """Entries of a row that a program holds at once, a power of two. 1,024 is what the records took."""
    return min(1024, 1 << (vocab - 1).bit_length())


def launch_nll(
    logits_NV: "Tensor", targets_N: "Tensor", scale: float, shift: float, width: float
) -> "tuple[Tensor, Tensor]":
    """Losses and log-sums of exponentials, both (N,) float32; the latter are off by a constant that cancels."""
    import torch

    rows, vocab = logits_NV.shape
    losses, sums = (torch.empty(rows, device=logits_NV.device) for _ in range(2))
    given = logits_NV.contiguous(), targets_N.contiguous(), losses, sums, vocab
    if rows:
        nll_kernels()[0][(rows,)](*given, scale, shift, width, BLOCK=vocab_block(vocab))
    return losses, sums


def launch_nll_gradient(
    grad_N: "Tensor",
    logits_NV: "Tensor",
    targets_N: "Tensor",
    sums_N: "Tensor",
    scale: float,
    shift: float,
    width: float,
) -> "Tensor":
    """(N,V) in the logits' dtype."""
    import torch

    rows, vocab = logits_NV.shape
    out = torch.empty_like(logits_NV, memory_format=torch.contiguous_format)
    given = logits_NV.contiguous(), targets_N.contiguous(), sums_N, grad_N.contiguous(), out, vocab
    if rows:
        nll_kernels()[1][(rows,)](*given, scale, shift, width, BLOCK=vocab_block(vocab))
    return out


def launch_product(
    a_NK: "Tensor", b_KF: "Tensor", u_NF: "Tensor", products_NF: "Tensor", slope: float, backward: bool
) -> "Tensor":
    """Fill `products_NF` (forward it is `u_NF`) and return the hidden units phi(u), (N,F). With these tiles a program
    needs 64 KiB of shared memory at most, 96 KiB in 16 bits on compute capability 9.0, where a GPU gives it 227.
    """
    import torch

    rows, columns, depth = len(a_NK), b_KF.size(1), b_KF.size(0)
    hidden = torch.empty_like(u_NF)
    side, deep = 128, 128 // a_NK.itemsize
    grid = (-(-columns // side), -(-rows // side))
    sizes = rows, columns, depth, *b_KF.stride(), slope
    if rows:
        mlp_kernel()[grid](
            a_NK.contiguous(), b_KF, u_NF, products_NF, hidden, *sizes, backward, side, side, deep, num_warps=8
        )
    return hidden


def launch_mlp(x_NC: "Tensor", w_FC: "Tensor", proj_CF: "Tensor", slope: float) -> "tuple[Tensor, Tensor]":
    """Output (N,C) and hidden units before the activation (N,F)."""
    u_NF = x_NC.new_empty(len(x_NC), len(w_FC))
    hidden = launch_product(x_NC, w_FC.T, u_NF, u_NF, slope, False)
    return hidden @ proj_CF.T, u_NF


def launch_mlp_gradient(grad_NC: "Tensor", proj_CF: "Tensor", u_NF: "Tensor", slope: float) -> "tuple[Tensor, Tensor]":
    """Gradient of the hidden units before the activation, and the hidden units after it, both (N,F)."""
    from torch import empty_like

    u_grad = empty_like(u_NF)
    return u_grad, launch_product(grad_NC, proj_CF, u_NF, u_grad, slope, True)


def keep_for_nll(ctx: Any, inputs: Any, output: Any) -> None:
    """Save what `nll_gradient` needs."""
    logits, targets, *ctx.cap = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(logits, targets, output[1])


def nll_gradient(ctx: Any, grad_N: "Tensor", _: "Tensor") -> "tuple[Tensor | None, ...]":
    """Of the logits only."""
    import torch

    return torch.ops.pgolf.softcapped_nll_gradient(grad_N, *ctx.saved_tensors, *ctx.cap), None, None, None, None


def keep_for_mlp(ctx: Any, inputs: Any, output: Any) -> None:
    """Save what `mlp_gradient` needs."""
    *tensors, ctx.slope = inputs
    ctx.set_materialize_grads(False)  # of the units nobody takes a gradient; no zeros of their size for it
    ctx.save_for_backward(*tensors, output[1])


def mlp_gradient(ctx: Any, grad_NC: "Tensor", _: "Tensor") -> "tuple[Tensor | None, ...]":
    """Of the input and both weights; all products but the first are torch's own."""
    import torch

    x, w, proj, u = ctx.saved_tensors
    u_grad, hidden = torch.ops.pgolf.leaky_relu2_gradient(grad_NC, proj, u, ctx.slope)
    return u_grad @ w, u_grad.T @ x, grad_NC.T @ hidden, None


@cache
def register_kernels() -> None:
    """Make the operators known to torch, without which the functions above fail. ImportError without Triton."""
    from torch import empty_like
    from torch.library import custom_op

    nll_kernels()
    mlp_kernel()
    cap = "float scale, float shift, float width"
    nll = custom_op(
        "pgolf::softcapped_nll",
        launch_nll,
        mutates_args=(),
        schema=f"(Tensor logits, Tensor targets, {cap}) -> (Tensor, Tensor)",
    )
    nll.register_fake(lambda z, *rest: (z.new_empty(len(z)).float(), z.new_empty(len(z)).float()))
    nll.register_autograd(nll_gradient, setup_context=keep_for_nll)
    nll_back = custom_op(
        "pgolf::softcapped_nll_gradient",
        launch_nll_gradient,
        mutates_args=(),
        schema=f"(Tensor grad, Tensor logits, Tensor targets, Tensor sums, {cap}) -> Tensor",
    )
    nll_back.register_fake(lambda grad, z, *rest: z.new_empty(z.shape))
    mlp = custom_op(
        "pgolf::leaky_relu2_mlp",
        launch_mlp,
        mutates_args=(),
        schema="(Tensor x, Tensor w, Tensor proj, float slope) -> (Tensor, Tensor)",
    )
    mlp.register_fake(lambda x, w, proj, slope: (x.new_empty(len(x), len(proj)), x.new_empty(len(x), len(w))))
    mlp.register_autograd(mlp_gradient, setup_context=keep_for_mlp)
    mlp_back = custom_op(
        "pgolf::leaky_relu2_gradient",
        launch_mlp_gradient,
        mutates_args=(),
        schema="(Tensor grad, Tensor proj, Tensor u, float slope) -> (Tensor, Tensor)",
    )
    mlp_back.register_fake(lambda grad, proj, u, slope: (empty_like(u), empty_like(u)))
