"""Fused kernels beside the same computed by torch, eager and compiled. Needs a CUDA device and Triton.

Each row is forward and backward of one training micro-step's loss or MLP in bfloat16. The three take turns in the same
process, and `over_eager` compares the least times.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import parser, seconds_of, show, spread
from pgolf.core.model.kernels import leaky_relu2_mlp, register_kernels
from pgolf.core.model.parts.leaky_relu2 import LeakyRelu2
from pgolf.core.model.parts.tanh_softcap import TanhSoftcap

CAP, MLP = TanhSoftcap(), LeakyRelu2()


def eager_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """As `GPT.forward` computes it."""
    return F.cross_entropy(CAP.apply(logits).float(), targets)


def fused_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """As `FusedGPT.forward` computes it."""
    return CAP.fused_nll(logits, targets).mean()


def eager_mlp(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """As `LeakyRelu2.apply` computes it."""
    return F.linear(MLP.activation(F.linear(x, up)), down).sum()


def fused_mlp(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """As `LeakyRelu2.fused_apply` computes it."""
    return leaky_relu2_mlp(x, up, down, MLP.slope).sum()


def step_of(forward: Callable[..., Tensor], given: tuple[Tensor, ...]) -> Callable[[], None]:
    """Forward and backward, finished when it returns."""

    def step() -> None:
        for tensor in given:
            tensor.grad = None
        torch.autograd.backward(forward(*given))
        torch.cuda.synchronize()

    return step


def measure(name: str, eager: Any, fused: Any, given: tuple[Tensor, ...], rounds: int) -> list[dict[str, Any]]:
    """One row per way of computing."""
    ways = {"eager": eager, "compiled": torch.compile(eager, dynamic=False, fullgraph=True), "fused": fused}
    rows, seconds = [], {way: list[float]() for way in ways}
    memory = dict.fromkeys(ways, 0)
    for turn in range(rounds + 3):
        for way, forward in ways.items():
            torch.cuda.reset_peak_memory_stats()
            taken = seconds_of(step_of(forward, given))
            if turn >= 3:
                seconds[way].append(taken)
                memory[way] = torch.cuda.max_memory_allocated()
    for way, found in seconds.items():
        ratio = round(min(found) / min(seconds["eager"]), 4)
        rows.append({"what": name, "way": way, **spread(found), "over_eager": ratio, "peak_mb": memory[way] // 10**6})
    return rows


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The loss at every vocabulary, the MLP at every width."""
    register_kernels()

    def drawn(*shape: int) -> Tensor:
        whole: Tensor = torch.randn(shape, device="cuda") / shape[-1] ** 0.5
        return whole.bfloat16().requires_grad_()

    rows = []
    for vocab in options.vocab:
        targets = torch.randint(0, vocab, (options.tokens,), device="cuda")
        rows += measure(
            f"loss, V={vocab}", eager_loss, fused_loss, (drawn(options.tokens, vocab), targets), options.rounds
        )
    for width in options.widths:
        given = drawn(options.tokens, width), drawn(4 * width, width), drawn(width, 4 * width)
        rows += measure(f"MLP, C={width}", eager_mlp, fused_mlp, given, options.rounds)
    return rows


def main() -> None:
    """Measure and print; without a GPU or Triton say so and leave with exit code 5."""
    arguments = parser(__doc__)
    arguments.add_argument("--tokens", type=int, default=65536)
    arguments.add_argument("--vocab", type=int, nargs="+", default=[1024, 8192])
    arguments.add_argument("--widths", type=int, nargs="+", default=[512])
    arguments.add_argument("--rounds", type=int, default=20)
    options = arguments.parse_args()
    missing = [] if torch.cuda.is_available() else ["a CUDA device"]
    missing += [] if importlib.util.find_spec("triton") else ["Triton"]
    if missing:
        print(f"error: this benchmark needs {' and '.join(missing)}", file=sys.stderr)
        sys.exit(5)
    show("kernels", options, rows_of(options), [torch.cuda.get_device_name()])


if __name__ == "__main__":
    main()
