"""The least time a device could take: arithmetic over the peak or bytes over the bandwidth, whichever is longer."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from benchmarks.report import seconds_of
from pgolf.report.watch.flops import peak_bandwidth, peak_flops

HOST_LINK, PEER_LINK = 64e9, 450e9
"""Bytes per second in one direction between an H100 or H200 (SXM) and the host, PCIe 5, and between two of them by
NVLink: NVIDIA's data sheets, which name twice that for both directions together.
"""
TRIES, LONG = 10, 10**8
"""How often a ceiling is measured, of which the best counts, and the operations that are enough to time products by."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a part of a step has to do at the least."""

    flops: float = 0.0
    product: tuple[int, int, int] = (0, 0, 0)
    """Rows, inner width and columns of the matrix product that is typical of it."""
    half: bool = False
    """Whether its products are in bfloat16."""
    moved: float = 0.0
    """Bytes read and written in the device's memory."""
    carried: float = 0.0
    """Bytes from the host to the device."""
    sent: float = 0.0
    """Bytes from every rank to others."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a device can do at most: by the maker's data sheet where that is known, else, as on every CPU, measured."""

    device: torch.device

    @property
    def name(self) -> str:
        """Of the GPU; nothing on a CPU."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""

    @property
    def known(self) -> bool:
        """Whether data sheets tell the ceilings."""
        return bool(peak_flops(self.name) and peak_bandwidth(self.name))

    def flops(self, product: tuple[int, int, int], half: bool) -> float:
        """Operations per second: the peak in bfloat16, or what one product of that size reaches."""
        peak = peak_flops(self.name) if self.known and half else None
        return peak or product_speed(self.device, product, half)

    def bandwidth(self) -> float:
        """Bytes per second of the device's memory."""
        return peak_bandwidth(self.name) or copy_speed(self.device)

    def floor(self, work: Work) -> tuple[float, str]:
        """Seconds, and what they are bound by."""
        bounds = {"memory": work.moved / self.bandwidth()}
        if work.flops:
            bounds["arithmetic"] = work.flops / self.flops(work.product, work.half)
        for name, amount, link in (("host link", work.carried, HOST_LINK), ("peer link", work.sent, PEER_LINK)):
            bounds[name] = amount / (link if self.known else self.bandwidth())
        name = max(bounds, key=lambda one: bounds[one])
        return bounds[name], name


@cache
def product_speed(device: torch.device, product: tuple[int, int, int], half: bool) -> float:
    """Operations per second of a matrix product."""
    (rows, inner, columns), dtype = product, torch.bfloat16 if half else torch.float32
    left = torch.ones(rows, inner, dtype=dtype, device=device)
    right = torch.ones(inner, columns, dtype=dtype, device=device)
    flops = 2 * rows * inner * columns
    return flops / shortest(device, lambda: left @ right, max(1, LONG // flops))


@cache
def copy_speed(device: torch.device) -> float:
    """Bytes per second that a copy of 64 MB reads and writes."""
    given = torch.ones(2**26, dtype=torch.uint8, device=device)
    into = torch.empty_like(given)
    return 2 * given.nbytes / shortest(device, lambda: into.copy_(given), 1)


def shortest(device: torch.device, action: Callable[[], Tensor], times: int) -> float:
    """Seconds of a call, of `times` in a row, where they were fewest."""

    def several() -> None:
        for _ in range(times):
            action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return min(seconds_of(several) for _ in range(TRIES)) / times
