"""Causal grouped-query attention by several programs that compute the same thing, and which of them to use where.

Shapes: B batch, T time, H query heads, K key/value heads, D head dim.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.core.errors import SetupError, assure
from pgolf.core.model.config import ModelConfig, attention_names


def attend(
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    v_BTKD: Tensor,
    window: int,
    segments_BT: Tensor | None,
    backend: str = "sdpa",
    memory: dict[str, Any] | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over what a position may see: itself and what is before it, not further back than
    `window` (0: no limit) and not out of its segment; (B,T,H,D). `memory` keeps masks for the layers that follow.
    """
    memory = {} if memory is None else memory
    assure(backend in BACKENDS, f"{backend!r} computes no attention", "attention")
    for name, compute in OTHER_ATTENTION.items():
        if name == backend:
            return compute(q_BTHD, k_BTKD, v_BTKD, window, segments_BT, memory)
    if backend == "sdpa":
        return by_sdpa(q_BTHD, k_BTKD, v_BTKD, window, segments_BT, memory)
    return by_flash(backend, q_BTHD, k_BTKD, v_BTKD, window, segments_BT, memory)


def seen(window: int, segments_BT: Tensor | None, like_BT: Tensor, memory: dict[str, Any]) -> Tensor:
    """True where a query may look at a key: (T,T), with segments (B,1,T,T); made once per forward."""
    name = f"seen {window}"
    if name not in memory:
        place = torch.arange(like_BT.size(1), device=like_BT.device)
        back = place[:, None] - place
        mask = (back >= 0) & (back <= window) if window else back >= 0
        if segments_BT is not None:
            mask = (mask & (segments_BT[:, :, None] == segments_BT[:, None]))[:, None]
        memory[name] = mask
    return memory[name]


def by_reference(
    q: Tensor, k: Tensor, v: Tensor, window: int, segments_BT: Tensor | None, memory: dict[str, Any]
) -> Tensor:
    """As the formula says, in float32; what the others are compared with."""
    query, key, value = (x.transpose(1, 2).float().repeat_interleave(q.size(2) // x.size(2), 1) for x in (q, k, v))
    scores = query @ key.mT / q.size(-1) ** 0.5
    weights = scores.masked_fill(~seen(window, segments_BT, q, memory), -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2).to(q.dtype)


def by_sdpa(q: Tensor, k: Tensor, v: Tensor, window: int, segments_BT: Tensor | None, memory: dict[str, Any]) -> Tensor:
    """torch's own: without a mask where whole rows are seen, else with one of all pairs."""
    mask = None
    if window or segments_BT is not None:
        mask = seen(window, segments_BT, q, memory)
    grouped = q.size(2) != k.size(2)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=grouped).transpose(1, 2)


@cache
def compiled_flex() -> Any:
    """flex_attention for a model that is not compiled itself."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def seen_blocks(window: int, segments_BT: Tensor | None, like_BT: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Which blocks of `size` queries and as many keys have pairs that are seen, and which have no others: (B,N,N) each,
    B = 1 without segments. Segments' numbers only grow along a row, so that a block's first and last tell of all.
    """
    length = like_BT.size(1)
    first = torch.arange(0, length, size, device=like_BT.device)
    last = (first + size - 1).clamp(max=length - 1)
    nearest, farthest = first[:, None] - last, last[:, None] - first
    some, whole = farthest >= 0, (nearest >= 0) & (first + size <= length)[:, None]
    if window:
        some, whole = some & (nearest <= window), whole & (farthest <= window)
    if segments_BT is None:
        return some[None], whole[None]
    begin, end = segments_BT[:, first], segments_BT[:, last]
    return some & (end[:, None] >= begin[:, :, None]), whole & (begin[:, None] == end[:, :, None])


def listed(blocks_BNN: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, (B,1,N), and their places before those of all others, (B,1,N,N): int32."""
    places = blocks_BNN.int().argsort(dim=-1, descending=True, stable=True)
    return blocks_BNN.sum(-1, dtype=torch.int32)[:, None], places.int()[:, None]


def by_flex(q: Tensor, k: Tensor, v: Tensor, window: int, segments_BT: Tensor | None, memory: dict[str, Any]) -> Tensor:
    """torch's compiled attention, which leaves out blocks of pairs that are not seen. No gradients on a CPU."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    name, length, size = f"blocks {window}", q.size(1), 128
    if name not in memory:

        def visible(row: Tensor, head: Tensor, here: Tensor, there: Tensor) -> Tensor:
            found = here >= there
            if window:
                found = found & (here - there <= window)
            return found if segments_BT is None else found & (segments_BT[row, here] == segments_BT[row, there])

        some, whole = seen_blocks(window, segments_BT, q, size)
        lists = listed(some & ~whole), listed(whole)
        memory[name] = BlockMask.from_kv_blocks(*lists[0], *lists[1], size, visible, (length, length))
    flex = flex_attention if torch.compiler.is_compiling() else compiled_flex()
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return flex(q, k, v, block_mask=memory[name], enable_gqa=True).transpose(1, 2)


def cu_seqlens(segments_BT: Tensor, bucket: int = 64) -> Tensor:
    """Where segments begin in the flattened batch, then its length, once or more, until the entries are a multiple of
    `bucket`: few shapes to compile for. int32. Source: PR #1530.
    """
    begins = F.pad(segments_BT[:, 1:] != segments_BT[:, :-1], (1, 0), value=True)
    starts = begins.flatten().nonzero().squeeze(1)
    return F.pad(starts, (0, bucket - len(starts) % bucket), value=segments_BT.numel()).int()


def flash_package(backend: str) -> Any:
    """flash-attention 2 or 3. ImportError if it is not installed: `flash_attn` itself may be there without version 2,
    as version 4 has it or without the kernels.
    """
    if backend == "fa2":
        from flash_attn import flash_attn_interface as package
    else:
        import flash_attn_interface as package
    return package


def by_flash(
    backend: str, q: Tensor, k: Tensor, v: Tensor, window: int, segments_BT: Tensor | None, memory: dict[str, Any]
) -> Tensor:
    """The flash-attention packages; segments lie one after another in a single row, however the batch divides it.
    `memory` has their bounds (see `GPT.starts`).
    """
    package = flash_package(backend)
    options: dict[str, Any] = {"causal": True, "window_size": (window, 0) if window else (-1, -1)}
    if segments_BT is None:
        y = package.flash_attn_func(q, k, v, **options)
    else:
        rows = (x.flatten(0, 1) for x in (q, k, v))
        y = package.flash_attn_varlen_func(*rows, *memory["starts"], **options)
    return (y[0] if isinstance(y, tuple) else y).view_as(q)


OTHER_ATTENTION: dict[str, Callable[..., Tensor]] = {"reference": by_reference, "flex": by_flex}
"""Backends besides torch's own and the packages of flash-attention."""
BACKENDS = ("sdpa", "fa2", "fa3", *OTHER_ATTENTION)
"""Names of all."""


def attention_obstacle(name: str, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> str:
    """What keeps a GPU's backend from computing this model there, or nothing."""
    width = config.model_dim // config.num_heads
    if device.type != "cuda":
        return "needs a CUDA device"
    if dtype.itemsize != 2:
        return "needs bfloat16"
    try:
        if name == "flex":
            import triton  # noqa: F401
        else:
            flash_package(name)
    except ImportError as error:
        return f"is missing: {error}"
    if width < 16 if name == "flex" else width % 8 or width > 256:
        return f"cannot have heads of width {width}"
    major = torch.cuda.get_device_capability(device)[0]
    return f"cannot run on compute capability {major}" if major < 8 or (name == "fa3" and major != 9) else ""


def choose_attention(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, wanted: str = "auto"
) -> tuple[str, str]:
    """The fastest backend that can compute this model, or the one wanted, and why. SetupError when that cannot."""
    if wanted != "auto":
        if wanted not in ("reference", "sdpa") and (obstacle := attention_obstacle(wanted, config, device, dtype)):
            raise SetupError(f"{wanted} {obstacle}", "train.attention", "set train.attention=auto")
        return wanted, f"{wanted}: as configured"
    why = "auto: the fastest possible"
    for name in attention_names(config):
        obstacle = attention_obstacle(name, config, device, dtype)
        if not obstacle:
            return name, why
        why += f"; {name} {obstacle}"
    return "sdpa", why
