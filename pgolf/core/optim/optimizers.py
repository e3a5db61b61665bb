"""All optimizers of a run behind one step: each parameter in exactly one group."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pgolf.core.dist import World, arrived
from pgolf.core.model.config import layer_shape, param_specs
from pgolf.core.model.gpt import GPT
from pgolf.core.model.params import HEAD, MATRIX, SCALAR, TOKEN
from pgolf.core.optim.config import OptimConfig
from pgolf.core.optim.muon import Stepped


class Optimizers:
    """Muon for matrices, AdamW for the rest, one learning-rate multiplier for all. `norm` is the gradient's before it
    was clipped in the last step (this rank's own in clip_mode local), 0 without clipping.
    """

    def __init__(self, model: GPT, config: OptimConfig, world: World) -> None:
        self.config, self.world = config, world
        self.named = dict(model.named_parameters())
        self.matrices: dict[str, Stepped] = {}
        alike: dict[Any, list[Stepped]] = {}
        self.others: dict[str, Tensor] = {}
        self.waiting: dict[str, Tensor] = {}
        self.norms: list[float] = []
        self.norm: Tensor | float = 0.0
        groups: dict[tuple[str, float], dict[str, Any]] = {}
        rates = {
            TOKEN: (config.token_lr, config.token_weight_decay),
            SCALAR: (config.scalar_lr, config.scalar_weight_decay),
            HEAD: (config.head_lr, 0.0),
        }
        for spec in param_specs(model.config):
            weight, rate = self.named[spec.name], config.lr_scale.factor(spec.name)
            if spec.group == MATRIX:
                blocks = config.matrix.row_blocks(spec.name, spec.shape[0], layer_shape(model.config).head_dim)
                self.matrices[spec.name] = one = Stepped(weight, {}, rate, blocks)
                alike.setdefault((spec.shape, blocks), []).append(one)
            else:
                lr, decay = rates[spec.group]
                wide = config.width_rule.width_factor(spec.group, model.config.model_dim)
                group = {"params": [], "base": (lr * rate * wide, decay / wide)}
                groups.setdefault((spec.group, rate), group)["params"].append(weight)
                self.others[spec.name] = weight
        self.banks = [alike[key] for key in sorted(alike, reverse=True)]  # the largest first, mostly
        for bank in self.banks:
            while len(bank) % world.size:
                bank.append(Stepped(torch.zeros_like(bank[0].weight), {}))
            share = len(bank) // world.size
            for one in bank[world.rank * share :][:share]:
                one.memory |= config.matrix.memory(one.weight)
        fused = world.device.type == "cuda"
        self.adam = torch.optim.AdamW(
            list(groups.values()), betas=(config.beta1, config.beta2), eps=config.eps, fused=fused
        )

    @torch.no_grad()
    def step(
        self,
        step: int,
        lr_scale: float,
        decay: tuple[float, float] = (1.0, 1.0),
        shares: Iterable[list[Tensor]] | None = None,
    ) -> None:
        """Bring the ranks' gradients together and update every parameter that has one, which a part without work in
        this pass has not; `decay` multiplies the weight decay of matrices and of all else; `shares` is what
        `OptimConfig.shares` has given, if that was done before.
        """
        matrix, shares = self.config.matrix, self.config.shares(self) if shares is None else shares
        for group in self.adam.param_groups:
            lr, wd = group["base"]
            group |= {"lr": lr * lr_scale, "weight_decay": wd * decay[1]}
        if self.config.adam_due(self, step):
            self.adam.step()
        coming = [
            self.world.gather(matrix.updates([one for one in bank if one.memory], grads, step))
            for bank, grads in zip(self.banks, shares)
        ]
        for bank, updates in zip(self.banks, coming):
            for one, update in zip(bank, arrived(*updates)):
                if one.weight.grad is not None:
                    matrix.move(one, update, lr_scale, decay[0])
        for weight in self.named.values():
            weight.grad = None

    def state(self) -> dict[str, Tensor]:
        """Every tensor a resumed run needs, by name, whatever the number of ranks; all of them call it together. What
        one rank remembers is the sum of that and the zeros of the others.
        """
        tensors = {}
        for name, one in self.matrices.items():
            for key, value in (one.memory or self.config.matrix.memory(one.weight)).items():
                tensors[f"{key}.{name}"] = self.world.sum_(value)
        for name, weight in self.others.items():
            for key, value in self.adam.state[weight].items():
                tensors[f"{key}.{name}"] = value
        tensors |= {f"waiting.{name}": value for name, value in self.waiting.items()}
        if self.norms:
            tensors["norms"] = torch.tensor(self.norms, dtype=torch.float64)
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over a state made by `state`; KeyError if a tensor is missing."""
        for name, one in self.matrices.items():
            for key, value in one.memory.items():
                value.copy_(tensors[f"{key}.{name}"])
        self.adam.state.clear()
        for name, weight in self.others.items():
            if f"exp_avg.{name}" in tensors:
                keys = ("step", "exp_avg", "exp_avg_sq")
                self.adam.state[weight] = {key: tensors[f"{key}.{name}"].clone().to(weight.device) for key in keys}
            if f"waiting.{name}" in tensors:
                self.waiting[name] = tensors[f"waiting.{name}"].clone().to(weight.device)
        self.norms = tensors["norms"].tolist() if "norms" in tensors else []
