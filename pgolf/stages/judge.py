"""What quantizing a model costs, on the last documents of the training split."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pgolf.core.model.gpt import GPT
from pgolf.dataset import Dataset
from pgolf.stages.held_out import find_tail, tail_charges
from pgolf.stages.model_files import ModelFile, ready

TARGETS, BATCH = 8192, 4
"""Targets that are judged, at most, and windows of them per forward pass."""


@dataclass(frozen=True)
class Cost:
    """Bits per byte by window (N,), as parts of a sum: KL(float || other), and the other's score minus the float's."""

    kl: Tensor
    gap: Tensor


class Judge:
    """Compares models with the float model, whose log-probabilities are kept: targets x vocabulary float32, 268 MB for
    a vocabulary of 8,192. InputError when no document begins in the last training tokens.
    """

    def __init__(self, model: ModelFile, dataset: Dataset, device: torch.device, targets: int = TARGETS) -> None:
        self.model, self.device = model, device
        tail = find_tail(dataset, targets)
        self.length = min(model.config.train.seq_len, len(tail.ids) - 1)
        whole = (len(tail.ids) - 1) // self.length * self.length
        ids = torch.from_numpy(tail.ids[: whole + 1].astype("int64"))
        charges = tail_charges(dataset, tail)[1:] if dataset.transformed else dataset.byte_table().charges(tail.ids)
        self.unit = math.log(2) * max(int(charges[:whole].sum()), 1)
        self.targets = whole
        self.inputs = torch.split(ids[:-1].view(-1, self.length), BATCH)
        self.wanted = torch.split(ids[1:].view(-1, self.length), BATCH)
        network = model.build(device)
        self.known = [self.log_probabilities(network, batch) for batch in self.inputs]

    @torch.no_grad()
    def log_probabilities(self, network: GPT, ids_BT: Tensor) -> Tensor:
        """float32 (B,T,V)."""
        return network.head(network.hidden(ids_BT.to(self.device))).float().log_softmax(-1)

    def cost(self, weights: dict[str, Tensor]) -> Cost:
        """Of a model with these weights."""
        network, kl, gap = ready(self.model.config, weights, self.device), [], []
        for ids, targets, known in zip(self.inputs, self.wanted, self.known):
            exact, found = known, self.log_probabilities(network, ids)
            place = targets.to(self.device)[..., None]
            kl.append((exact.exp() * (exact - found)).sum((1, 2)).double().cpu() / self.unit)
            gap.append((exact - found).gather(2, place).sum((1, 2)).double().cpu() / self.unit)
        return Cost(torch.cat(kl), torch.cat(gap))
