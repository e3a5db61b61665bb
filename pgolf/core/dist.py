"""Ranks. The only module of core that reads torchrun's environment variables."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from pgolf.core.errors import ConfigError, SetupError


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among its peers: rank of size, and the device it computes on."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def leads(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def mean_(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by its mean over the ranks, in one reduction of the flattened lot."""
        if self.size > 1:
            group = list(tensors)
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            distributed.all_reduce(flat)
            flat /= self.size
            for tensor, piece in zip(group, flat.split([tensor.numel() for tensor in group])):
                tensor.copy_(piece.view_as(tensor))

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """Elementwise maximum over the ranks, in place."""
        if self.size > 1:
            distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
        return tensor

    def largest(self, *values: float) -> list[float]:
        """The largest of each value over the ranks, which thereby agree on it."""
        if self.size == 1:
            return list(values)
        seen = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(seen, op=distributed.ReduceOp.MAX)
        return list(seen.tolist())

    def scatter(self, whole: Tensor) -> tuple[Tensor, Any]:
        """Begin to sum (W n,...) over the ranks: this rank's rows of the sum, (n,...), for `arrived`."""
        parts = list(whole.chunk(self.size))
        rows = parts[self.rank].clone()
        return rows, self.size > 1 and distributed.reduce_scatter(rows, parts, async_op=True)

    def gather(self, rows: Tensor) -> tuple[Tensor, Any]:
        """Begin to collect (n,...) of every rank: all of it, (W n,...), for `arrived`."""
        whole = torch.cat([rows] * self.size)
        return whole, self.size > 1 and distributed.all_gather(list(whole.chunk(self.size)), rows, async_op=True)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; all ranks agree on the answer."""
        return self.largest(flag)[0] > 0

    def barrier(self) -> None:
        """Wait for every rank."""
        self.largest(0.0)  # NCCL's own barrier warns of a device that it was not told

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1:
            distributed.destroy_process_group()


def arrived(tensor: Tensor, work: Any) -> Tensor:
    """What `World.scatter` or `World.gather` promised, as soon as it is there."""
    if work:
        work.wait()
    return tensor


def torchrun_rank() -> int:
    """This process's rank as torchrun set it, 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def torchrun_size() -> int:
    """The number of processes torchrun started, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def under_torchrun() -> bool:
    """Whether torchrun started this process, be it alone."""
    return "WORLD_SIZE" in os.environ


def pick_device(name: str, local_rank: int) -> torch.device:
    """auto: a GPU if there is one, else the CPU. SetupError when CUDA is named and absent."""
    if name not in ("auto", "cpu", "cuda") and not (name.startswith("cuda:") and name[5:].isdigit()):
        raise ConfigError(f"{name!r} is no device", "--device", "use auto, cpu, cuda or cuda:N")
    found = torch.cuda.is_available() and torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not found):
        return torch.device("cpu")
    index = int(name[5:] or local_rank)
    if index >= found:
        raise SetupError(
            f"none of {found:d} CUDA devices has number {index}",
            f"--device {name}",
            "use --device cpu, or install a CUDA build of torch",
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def activation_dtype(precision: str, device: torch.device) -> torch.dtype:
    """float32 or bfloat16 activations; auto is bfloat16 on a GPU and float32 elsewhere."""
    half = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if half else torch.float32


def wants_compile(mode: str, device: torch.device) -> bool:
    """Whether to use torch.compile: on, off, or auto, which compiles on a GPU only."""
    return mode == "on" or (mode == "auto" and device.type == "cuda")


def join_world(device: str = "auto") -> World:
    """The world torchrun describes: NCCL on GPUs, gloo on CPUs; a world of one without torchrun. A rank that waits for
    others in vain gives up when torch does, after 10 minutes on GPUs and 30 on CPUs.
    """
    size = torchrun_size()
    place = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size > 1:
        distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    return World(rank=torchrun_rank(), size=size, device=place)
