"""Low-rank adapters beside a model's maps, one set for each row of a batch (spec: evaluation 9.2).

Shapes: N rows, T time, C model dim, R rank.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pgolf.core.errors import ConfigError
from pgolf.core.model.config import ModelConfig, param_specs
from pgolf.core.model.gpt import GPT
from pgolf.core.model.slots import Flow

ABOUT = {"q": "attn.c_q", "k": "attn.c_k", "v": "attn.c_v", "o": "attn.proj", "mlp": "mlp"}
"""What of a block the adapters of a target stand beside; those of lm_head stand beside the output matrix."""


def refuse_targets(config: ModelConfig, targets: list[str]) -> None:
    """ConfigError if a model lacks what an adapter is to stand beside."""
    names = [f"{spec.name}." for spec in param_specs(config)]
    for target in targets:
        if target in ABOUT and not any(f".{ABOUT[target]}." in name for name in names):
            rest = ",".join(one for one in targets if one != target)
            raise ConfigError(
                f"the model has no {ABOUT[target]} in its blocks, beside which adapters of {target} could stand",
                "ttt.targets",
                f"set ttt.targets={rest}" if rest else "use ttt.method=chunk",
            )


class Adapters:
    """A (N,R,in) and B (N,out,R) for each target of each step through the layers, one row per document; the last
    `active` rows are in use. Whatever is added is x A^T B^T, times `scale`.
    """

    def __init__(self, model: GPT, targets: list[str], rank: int, scale: float, rows: int) -> None:
        config = model.config
        refuse_targets(config, targets)
        self.scale, self.active = scale, rows
        wide, narrow = config.model_dim, config.num_kv_heads * config.model_dim // config.num_heads
        sizes = {"lm_head": config.vocab_size, "k": narrow, "v": narrow}
        steps = range(len(model.plans[model.looping]))
        names = [f"{target}.{step}" for target in targets if target != "lm_head" for step in steps]
        names += ["lm_head"] * ("lm_head" in targets)
        generator, bound = torch.Generator().manual_seed(0), wide**-0.5
        self.starts: dict[str, Tensor] = {}
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for name in names:
            start = torch.empty(rank, wide).uniform_(-bound, bound, generator=generator)
            self.starts[name] = start.to(next(model.parameters()).device)
            size = sizes.get(name.partition(".")[0], wide)
            a = self.starts[name].repeat(rows, 1, 1)
            self.pairs[name] = a.requires_grad_(), a.new_zeros(rows, size, rank).requires_grad_()

    @property
    def weights(self) -> list[Tensor]:
        """All of them."""
        return [one for pair in self.pairs.values() for one in pair]

    @torch.no_grad()
    def reset(self, warm: bool) -> None:
        """Say nothing: B is zero, and A as at the start, the same for all rows; `warm` leaves it as it is."""
        for name, (a, b) in self.pairs.items():
            b.zero_()
            if not warm:
                a.copy_(self.starts[name])

    def added(self, name: str, x_NTC: Tensor) -> Tensor:
        """What an adapter adds (N,T,out)."""
        a, b = (one[-self.active :].to(x_NTC.dtype) for one in self.pairs[name])
        return x_NTC @ a.mT @ b.mT * self.scale


class Joined:
    """A linear map and what is added to it."""

    def __init__(self, node: Any, added: Callable[[Tensor], Tensor]) -> None:
        self.node, self.added = node, added

    def linear(self, x: Tensor) -> Tensor:
        """Their sum."""
        y: Tensor = self.node.linear(x)
        return y + self.added(x)


class Beside:
    """A place in the parameter tree, some of which is replaced."""

    def __init__(self, place: Any, **inner: Any) -> None:
        self.place = place
        vars(self).update(inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.place, name)


class AdaptedGPT(GPT):
    """A model with adapters, each row of a batch with its own. It shares all else with the model it is made from."""

    def __init__(self, model: GPT, adapters: Adapters) -> None:
        vars(self).update(vars(model))
        self.layers = [list(passes) for passes in model.layers]
        self.output = adapters.added if "lm_head" in adapters.pairs else None

        def added(target: str, index: int) -> Any:
            name = f"{target}.{index}"
            return partial(adapters.added, name) if name in adapters.pairs else None

        for index, step in enumerate(model.plans[model.looping]):
            block = model.layers[step.layer][step.turn]
            maps = {f"c_{target}": added(target, index) for target in "qkv"}
            joined = {name: Joined(getattr(block.attn, name), beside) for name, beside in maps.items() if beside}
            attn = Beside(block.attn, said=added("o", index), **joined)
            mlp = Beside(block.mlp, said=added("mlp", index))
            self.layers[step.layer][step.turn] = Beside(block, attn=attn, mlp=mlp)

    def gathered(self, attn: Any, layer: int, n_BTC: Tensor, flow: Flow) -> Tensor:
        """The adapter of the output reads what attention reads."""
        y = super().gathered(attn, layer, n_BTC, flow)
        return y + attn.said(n_BTC) if attn.said else y

    def mlp(self, mlp: Any, n_BTC: Tensor) -> Tensor:
        """The adapter reads what the MLP reads."""
        y = super().mlp(mlp, n_BTC)
        return y + mlp.said(n_BTC) if mlp.said else y

    def raw(self, hidden_BTC: Tensor) -> Tensor:
        """Logits and what the head's adapter adds to them, before the soft-cap."""
        logits = super().raw(hidden_BTC)
        return logits + self.output("lm_head", hidden_BTC) if self.output else logits
