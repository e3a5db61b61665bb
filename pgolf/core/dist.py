"""Ranks. The only module that reads torchrun's environment variables."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

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

    def largest(self, *values: float) -> list[float]:
        """The largest of each value over the ranks, which thereby agree on it."""
        if self.size == 1:
            return list(values)
        seen = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(seen, op=distributed.ReduceOp.MAX)
        return [float(value) for value in seen]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; all ranks agree on the answer."""
        return self.largest(flag)[0] > 0

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            distributed.barrier()

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1:
            distributed.destroy_process_group()


def torchrun_rank() -> int:
    """This process's rank as torchrun set it, 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def torchrun_size() -> int:
    """The number of processes torchrun started, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def pick_device(name: str, local_rank: int) -> torch.device:
    """auto: a GPU if there is one, else the CPU. SetupError when CUDA is named and absent."""
    kind, _, number = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and (kind != "cuda" or not number.isdigit())):
        raise ConfigError(f"{name!r} is no device", "--device", "use auto, cpu, cuda or cuda:N")
    present = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if present else "cpu"
    if name.startswith("cuda"):
        if not present:
            raise SetupError(
                "no CUDA device was found", f"--device {name}", "use --device cpu, or install a CUDA build of torch"
            )
        index = int(name.partition(":")[2] or local_rank)
        if index >= torch.cuda.device_count():
            raise SetupError(f"there is no GPU number {index}; {torch.cuda.device_count()} found", f"--device {name}")
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return torch.device(name)


def activation_dtype(precision: str, device: torch.device) -> torch.dtype:
    """float32 or bfloat16 activations; auto is bfloat16 on a GPU and float32 elsewhere."""
    half = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if half else torch.float32


def wants_compile(mode: str, device: torch.device) -> bool:
    """Whether to use torch.compile: on, off, or auto, which compiles on a GPU only."""
    return mode == "on" or (mode == "auto" and device.type == "cuda")


def join_world(device: str = "auto") -> World:
    """The world torchrun describes: NCCL on GPUs, gloo on CPUs; a world of one without torchrun."""
    size = torchrun_size()
    place = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size > 1:
        distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    return World(rank=torchrun_rank(), size=size, device=place)
