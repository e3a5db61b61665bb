"""Micro-batches on their way to the device."""

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


def feed(
    read: Callable[[int], Any], first: int, ahead: int, device: torch.device
) -> Generator[list[Tensor], None, None]:
    """Inputs and targets of micro-batches `first`, `first` + 1, ... on the device, by way of pinned memory if that is a
    GPU. A thread reads, `ahead` micro-batches beyond the one in use, and ends with the iterator; its errors come out
    here.
    """

    def fetch(number: int) -> list[Tensor]:
        batch = map(torch.from_numpy, read(number))
        return [(ids.pin_memory() if device.type == "cuda" else ids).to(device, non_blocking=True) for ids in batch]

    coming: list[Future[list[Tensor]]] = []
    with ThreadPoolExecutor(1) as thread:
        while True:
            coming.append(thread.submit(fetch, first))
            first += 1
            if len(coming) > ahead:
                yield coming.pop(0).result()
