"""All optimizers of a run behind one step: each parameter in exactly one group."""

import torch
from torch import Tensor

from pgolf.core.dist import World
from pgolf.core.model.config import param_specs
from pgolf.core.model.gpt import GPT
from pgolf.core.model.params import HEAD, MATRIX, SCALAR, TOKEN
from pgolf.core.optim.config import OptimConfig


class Optimizers:
    """Muon for matrices, AdamW for the rest, one learning-rate multiplier for all."""

    def __init__(self, model: GPT, config: OptimConfig, world: World) -> None:
        self.config, self.world = config, world
        named = dict(model.named_parameters())
        specs = param_specs(model.config)
        self.matrices = {spec.name: named[spec.name] for spec in specs if spec.group == MATRIX}
        self.buffers = {name: torch.zeros_like(weight) for name, weight in self.matrices.items()}
        self.others = {spec.name: named[spec.name] for spec in specs if spec.group != MATRIX}
        rates = {
            TOKEN: (config.token_lr, config.token_weight_decay),
            SCALAR: (config.scalar_lr, config.scalar_weight_decay),
            HEAD: (config.head_lr, 0.0),
        }
        groups = []
        for group, (lr, weight_decay) in rates.items():
            members = [self.others[spec.name] for spec in specs if spec.group == group]
            if members:
                groups.append({"params": members, "lr": lr, "base_lr": lr, "weight_decay": weight_decay})
        fused = world.device.type == "cuda"
        self.adam = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps, fused=fused)

    @torch.no_grad()
    def step(self, step: int, lr_scale: float) -> float:
        """One update of every parameter that has a gradient, which a part without work in this pass has not; returns
        the global gradient norm (0 when not clipping).
        """
        norm = 0.0
        everything = [*self.matrices.values(), *self.others.values()]
        if self.config.grad_clip > 0:
            norm = float(torch.nn.utils.clip_grad_norm_(everything, self.config.grad_clip))
        moved = [name for name, weight in self.matrices.items() if weight.grad is not None]
        weights, buffers = [self.matrices[name] for name in moved], [self.buffers[name] for name in moved]
        self.config.matrix.step(weights, [weight.grad for weight in weights], buffers, lr_scale, step, self.world)
        for group in self.adam.param_groups:
            group["lr"] = group["base_lr"] * lr_scale
        self.adam.step()
        for weight in everything:
            weight.grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        """Every tensor a resumed run needs, by name."""
        tensors = {f"momentum.{name}": buffer for name, buffer in self.buffers.items()}
        for name, weight in self.others.items():
            for key, value in self.adam.state[weight].items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over a state made by `state`; KeyError if a tensor is missing."""
        for name, buffer in self.buffers.items():
            buffer.copy_(tensors[f"momentum.{name}"])
        self.adam.state.clear()
        for name, weight in self.others.items():
            if f"exp_avg.{name}" in tensors:
                keys = ("step", "exp_avg", "exp_avg_sq")
                self.adam.state[weight] = {key: tensors[f"{key}.{name}"].clone().to(weight.device) for key in keys}
