"""Second moments of inputs, output gradients and lookup gradients of every weight (spec: quantization 3.1, 9.8)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pgolf.core.errors import InputError
from pgolf.core.model.gpt import GPT, Node


@dataclass
class Calibration:
    """Sums over `tokens` calibration positions by weight name, float32 on the CPU. The gradients are those of the
    summed loss with labels drawn from the model, so their second moments are the loss's curvature (Fisher).
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    """A = sum of x^T x, (C,C)."""
    outputs: dict[str, Tensor] = field(default_factory=dict)
    """The diagonal of B = sum of g^T g, (R,), g being the gradient of the output."""
    couplings: dict[str, Tensor] = field(default_factory=dict)
    """All of B, (R,R), of the matrices of the blocks, where it is asked for: how errors of different rows interact."""
    lookups: dict[str, Tensor] = field(default_factory=dict)
    """Sum of h^T h, (C,C), h being the gradient of a looked-up row."""
    energies: dict[str, Tensor] = field(default_factory=dict)
    """Sum of |h|^2 by row looked up, (R,)."""
    tokens: int = 0

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """The five kinds by name."""
        return {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "couplings": self.couplings,
            "lookups": self.lookups,
            "energies": self.energies,
        }


def add_to(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Add a value to the sum of that name."""
    sums[name] = sums[name].add_(value) if name in sums else value


class CurvatureTap:
    """Listens to one node: to the inputs of its linear map, and in backward to the gradient of the outputs. Taps that
    see the very same input share its product.
    """

    def __init__(self, name: str, found: Calibration, shared: dict[int, tuple[Tensor, Tensor]], coupled: bool) -> None:
        self.name, self.found, self.shared, self.coupled = name, found, shared, coupled

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """x (..., C), y (..., R)."""
        if id(x) not in self.shared:
            flat = x.detach().flatten(0, -2).float()
            self.shared[id(x)] = (x, flat.T @ flat)
        add_to(self.found.inputs, self.name, self.shared[id(x)][1].clone())
        if y.requires_grad:
            y.register_hook(self.backward)

    def backward(self, grad: Tensor) -> None:
        """Gradient of the outputs (..., R)."""
        flat = grad.flatten(0, -2).float()
        add_to(self.found.outputs, self.name, flat.square().sum(0))
        if self.coupled:
            add_to(self.found.couplings, self.name, flat.T @ flat)


class LookupTap(TorchFunctionMode):
    """Makes what is looked up in tables the start of the graph, and listens to its gradient."""

    def __init__(self, names: Mapping[int, str], found: Calibration) -> None:
        super().__init__()
        self.names, self.found = names, found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every call of torch passes here; those of `embedding` are listened to."""
        out = func(*args, **(kwargs or {}))
        if func is F.embedding:
            ids, table = args[:2]
            out = out.detach().requires_grad_()
            if name := self.names.get(table.data_ptr()):
                out.register_hook(lambda grad: self.backward(name, ids, grad, len(table)))
        return out

    def backward(self, name: str, ids: Tensor, grad: Tensor, rows: int) -> None:
        """Gradient of the rows `ids` (...) of a table, (..., C)."""
        flat = grad.flatten(0, -2).float()
        add_to(self.found.lookups, name, flat.T @ flat)
        energy = torch.zeros(rows, device=flat.device).index_add_(0, ids.flatten(), flat.square().sum(1))
        add_to(self.found.energies, name, energy)


def collect_curvature(
    model: GPT, batches: Iterable[tuple[int, Tensor]], progress: Callable[[int], None], coupled: bool = False
) -> Calibration:
    """Run numbered (B,T) id batches through the model as evaluation would, with loops on, and back again. The labels of
    a batch are drawn by a generator seeded with its number, so that it does not matter which rank takes it. `coupled`
    collects couplings too.

    Memory: per linear map (C,C) + (R,) float32, (R,R) more for couplings, per table (C,C) + (R,), and the graph of one
    batch.
    """
    found, shared, count = Calibration(), dict[int, tuple[Tensor, Tensor]](), 0
    weights = dict(model.named_parameters())
    wanted = {name: weight.requires_grad for name, weight in weights.items()}
    names = {weight.data_ptr(): name for name, weight in weights.items()}
    try:
        for name, module in model.named_modules():
            if isinstance(module, Node) and f"{name}.weight" in weights:
                inside = coupled and name.startswith("blocks.")
                module.tap = CurvatureTap(f"{name}.weight", found, shared, inside)
        model.requires_grad_(False)
        for number, ids in batches:
            with torch.enable_grad(), LookupTap(names, found):
                logits = model.head(model.hidden(ids)).flatten(0, 1)
            generator = torch.Generator(ids.device).manual_seed(number)
            labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
            with torch.enable_grad():
                F.cross_entropy(logits, labels, reduction="sum").backward()
            shared.clear()
            found.tokens += ids.numel()
            progress(count := count + 1)
    finally:
        for module in model.modules():
            if isinstance(module, Node):
                module.tap = None
        for name, weight in weights.items():
            weight.requires_grad_(wanted[name])
    if not count:
        raise InputError("there are no calibration tokens", "training split", "lower quant.calibration_seq_len")
    for group in found.groups().values():
        group.update({name: total.cpu() for name, total in group.items()})
    return found
