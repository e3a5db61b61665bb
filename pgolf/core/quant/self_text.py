"""Calibration tokens without data: text that the model makes up (PR #1019)."""

import torch
from torch import Tensor

from pgolf.core.model.gpt import GPT


@torch.no_grad()
def made_up(model: GPT, rows: int, length: int, seed: int) -> Tensor:
    """(rows, length) ids: a first token of any kind, then draws at temperature 0.8. Every token is a forward pass over
    all before it.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (rows, 1), generator=generator, device=device)
    while ids.size(1) < length:
        shares = (model.head(model.hidden(ids)[:, -1:])[:, 0] / 0.8).softmax(-1)
        ids = torch.cat((ids, torch.multinomial(shares, 1, generator=generator)), dim=1)
    return ids
