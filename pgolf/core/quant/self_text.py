"""Calibration tokens without data: text that the model makes up (PR #1019)."""

import torch
from torch import Tensor

from pgolf.core.model.gpt import GPT, Node


@torch.no_grad()
def made_up(model: GPT, rows: int, length: int, seed: int) -> Tensor:
    """(rows, length) ids: a first token of any kind, then draws at temperature 0.8. Every token is a forward pass over
    all before it. Taps do not hear these passes: a calibration under way listens to the finished text alone.
    """
    taps = {module: module.tap for module in model.modules() if isinstance(module, Node)}
    for node in taps:
        node.tap = None
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (rows, 1), generator=generator, device=device)
    while ids.size(1) < length:
        shares = (model.head(model.hidden(ids)[:, -1:])[:, 0] / 0.8).softmax(-1)
        ids = torch.cat((ids, torch.multinomial(shares, 1, generator=generator)), dim=1)
    for node, tap in taps.items():
        node.tap = tap
    return ids
