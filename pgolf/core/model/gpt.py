"""The skeleton of the model: embed -> planned layers -> head.

Techniques live in `parts/`, the order of layers in the plan.

Shapes: B batch, T time, C model dim, H query heads, K key/value heads, D head dim, V vocabulary.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.core.model.config import ModelConfig, layer_plan, param_specs
from pgolf.core.model.params import ParamSpec

RMS_EPS = 1.1920928955078125e-07
"""float32's machine epsilon, the default of the challenge's framework for float32 and bfloat16 inputs."""


def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension, no weight; eps is float32's epsilon for every dtype."""
    return F.rms_norm(x, (x.size(-1),), eps=RMS_EPS)


class Node(nn.Module):
    """A place in the parameter tree. `tap`, when set, sees the input of every linear map through this node's weight."""

    tap: Callable[[Tensor], None] | None = None

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Children and parameters by name."""

    def linear(self, x: Tensor) -> Tensor:
        """x W^T with the weight cast to the dtype of x (float32 masters under bfloat16 activations)."""
        if self.tap is not None:
            self.tap(x)
        return F.linear(x, self.weight.to(x.dtype))


def grow(node: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register `parameter` at a dotted name, making the nodes on the way."""
    head, _, rest = name.partition(".")
    if not rest:
        node.register_parameter(head, parameter)
        return
    children = dict(node.named_children())
    if head not in children:
        children[head] = Node()
        node.add_module(head, children[head])
    grow(children[head], rest, parameter)


@torch.no_grad()
def initialise(parameter: Tensor, spec: ParamSpec, generator: torch.Generator) -> None:
    """Fill a float32 CPU tensor as its spec says, drawing from `generator`."""
    rule, number = spec.init
    if rule == "fill":
        parameter.fill_(number)
    elif rule == "rows":
        parameter.zero_()[0] = number
    elif rule == "normal":
        parameter.normal_(0.0, number, generator=generator)
    elif rule == "linear":
        bound = number / spec.shape[1] ** 0.5
        parameter.uniform_(-bound, bound, generator=generator)
    else:
        raise ValueError(f"unknown init rule {rule}")


class GPT(Node):
    """A decoder-only transformer. Its state dict has exactly the names and shapes of `param_specs(config)`."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.plan = layer_plan(config)
        self.compute_dtype = torch.float32
        generator = torch.Generator().manual_seed(seed)
        for spec in param_specs(config):
            weight = torch.empty(spec.shape)
            initialise(weight, spec, generator)
            grow(self, spec.name, nn.Parameter(weight))
        self.layers: list[Any] = [self.get_submodule(f"blocks.{layer}") for layer in range(config.num_layers)]

    def attention(self, attn: Node, x_BTC: Tensor, tables: object) -> Tensor:
        """Causal grouped-query attention with QK-norm, rotation and query gain; (B,T,C) -> (B,T,C)."""
        config, (B, T, C) = self.config, x_BTC.shape
        D = C // config.num_heads
        q = attn.c_q.linear(x_BTC).view(B, T, config.num_heads, D)
        k = attn.c_k.linear(x_BTC).view(B, T, config.num_kv_heads, D)
        v = attn.c_v.linear(x_BTC).view(B, T, config.num_kv_heads, D)
        q = config.qk_gain.apply(attn, config.position.apply(rms_norm(q), tables))
        k = config.position.apply(rms_norm(k), tables)
        grouped = config.num_heads != config.num_kv_heads
        y_BHTD = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=grouped
        )
        return attn.proj.linear(y_BHTD.transpose(1, 2).reshape(B, T, C))

    def block(self, block: Node, x_BTC: Tensor, x0_BTC: Tensor, tables: object) -> Tensor:
        """One transformer block on the mixed stream."""
        x = self.config.mix.apply(block, x_BTC, x0_BTC)
        x = x + block.attn_scale.to(x.dtype) * self.attention(block.attn, rms_norm(x), tables)
        return x + block.mlp_scale.to(x.dtype) * self.config.mlp.apply(block.mlp, rms_norm(x))

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """Final normalised hidden states (B,T,C) in the compute dtype."""
        config = self.config
        x = rms_norm(config.embed.lookup(self, ids_BT).to(self.compute_dtype))
        x0 = x
        stack: list[Tensor] = []
        tables = config.position.tables(ids_BT.size(1), config.model_dim // config.num_heads, x)
        for step in self.plan:
            if step.skip >= 0:
                x = config.skips.apply(self, x, stack.pop(), step.skip)
            x = self.block(self.layers[step.layer], x, x0, tables)
            if step.push:
                stack.append(x)
        return rms_norm(x)

    def head(self, hidden_BTC: Tensor) -> Tensor:
        """Soft-capped logits (B,T,V) in float32."""
        return self.config.logit_softcap.apply(self.config.embed.project(self, hidden_BTC)).float()

    def nll(self, ids_BT: Tensor, targets_BT: Tensor, start: int = 0) -> Tensor:
        """Negative log-likelihood in nats of the targets from position `start` on: (B, T - start) float32."""
        logits = self.head(self.hidden(ids_BT)[:, start:])
        return F.cross_entropy(logits.flatten(0, 1), targets_BT[:, start:].flatten(), reduction="none").view(
            len(ids_BT), -1
        )

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean loss in nats per token over all positions, float32 scalar."""
        logits = self.head(self.hidden(ids_BT))
        return F.cross_entropy(logits.flatten(0, 1), targets_BT.flatten())
