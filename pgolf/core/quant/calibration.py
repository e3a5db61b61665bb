"""Hessians of every linear map, H = X^T X summed over calibration tokens (spec: quantization 3.1)."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pgolf.core.errors import InputError
from pgolf.core.model.gpt import GPT, Node


class HessianTap:
    """Collects X^T X of everything one node's weight is multiplied with. Taps that see the very same input tensor in
    one forward (q, k and v do) share the product.
    """

    def __init__(self, shared: dict[int, tuple[Tensor, Tensor]]) -> None:
        self.shared = shared
        self.total: Tensor | None = None

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """Add x^T x, (C,C) float32, leading dimensions flattened."""
        if id(x) not in self.shared:
            flat = x.detach().flatten(0, -2).float()
            self.shared[id(x)] = (x, flat.T @ flat)
        product = self.shared[id(x)][1]
        self.total = product.clone() if self.total is None else self.total.add_(product)


@torch.no_grad()
def collect_hessians(
    model: GPT, batches: Iterable[tuple[int, Tensor]], progress: Callable[[int], None]
) -> dict[str, Tensor]:
    """Run numbered (B,T) id batches through the model as evaluation would and return H per weight name, on the CPU.

    Memory: one (C,C) float32 matrix per linear map. InputError when there is no batch.
    """
    shared: dict[int, tuple[Tensor, Tensor]] = {}
    taps = {}
    for name, module in model.named_modules():
        if isinstance(module, Node) and "weight" in dict(module.named_parameters(recurse=False)):
            module.tap = taps[f"{name}.weight"] = HessianTap(shared)
    count = 0
    try:
        for _, ids in batches:
            model.head(model.hidden(ids))
            shared.clear()
            progress(count := count + 1)
    finally:
        for module in model.modules():
            if isinstance(module, Node):
                module.tap = None
    if not count:
        raise InputError("there are no calibration tokens", "training split", "lower quant.calibration_seq_len")
    return {name: tap.total.cpu() for name, tap in taps.items() if tap.total is not None}
