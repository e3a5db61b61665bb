"""The skeleton of the model: embed -> planned layers -> head.

Techniques live in `parts/`, the order of layers in the plan.

Shapes: B batch, T time, C model dim, H query heads, K key/value heads, D head dim, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.core.dist import activation_dtype
from pgolf.core.model.attend import attend, choose_attention, cu_seqlens
from pgolf.core.model.config import LayerStep, ModelConfig, layer_plan, model_parts, param_specs
from pgolf.core.model.inits import INITS
from pgolf.core.model.params import ATTN, CONTROL, MLP, ParamSpec
from pgolf.core.model.slots import Flow, Part

RMS_EPS = 1.1920928955078125e-07
"""float32's machine epsilon, the default of the challenge's framework for float32 and bfloat16 inputs."""


def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension, no weight; eps is float32's epsilon for every dtype."""
    return F.rms_norm(x, (x.size(-1),), eps=RMS_EPS)


class Node(nn.Module):
    """A place in the parameter tree. `tap`, when set, sees input and output of every linear map through this node's
    weight; `treatment` is the part that decides what the weight is made of, `closing` whether its output joins the
    stream.
    """

    tap: Callable[[Tensor, Tensor], None] | None = None
    treatment: Part | None = None
    role: str = ""
    closing: bool = False

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Children and parameters by name."""

    def used(self) -> Tensor:
        """The weight as it is used."""
        return self.weight if self.treatment is None else self.treatment.weights(self.weight, self.role)

    def linear(self, x: Tensor, master: bool = False) -> Tensor:
        """x W^T with the weight cast to the dtype of x (float32 masters under bfloat16 activations). With `master` the
        weight is what is stored, whatever its treatment makes of it elsewhere.
        """
        if self.treatment is not None:
            x = self.treatment.inputs(x, self.closing)
        y = F.linear(x, (self.weight if master else self.used()).to(x.dtype))
        if self.tap is not None:
            self.tap(x, y)
        return y


def since(flow: Flow, function: Callable[[Tensor], Tensor], x_BTC: Tensor) -> Tensor:
    """A function of single positions (B,T,C) -> (B,T,E), computed from `flow.start` on; zeros before."""
    return F.pad(function(x_BTC[:, flow.start :]), (0, 0, flow.start, 0)) if flow.start else function(x_BTC)


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


class GPT(Node):
    """A decoder-only transformer. Its state dict has exactly the names and shapes of `param_specs(config)`."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.plans = layer_plan(config, False), layer_plan(config, True)
        # How to compute, which is no part of the model: see `settle` and `starts`.
        self.compute_dtype, self.attention_backend = torch.float32, "sdpa"
        generator = torch.Generator().manual_seed(seed)
        for spec in param_specs(config):
            weight = nn.Parameter(torch.empty(spec.shape))
            with torch.no_grad():
                INITS[spec.init[0]](weight, spec.init[1], generator)
            grow(self, spec.name, weight)
        order = [step.layer for step in self.plans[True]]
        blocks: list[Any] = [self.get_submodule(f"blocks.{layer}") for layer in range(config.num_layers)]
        self.layers = [config.loop.passes(block, order.count(layer)) for layer, block in enumerate(blocks)]
        self.covered: tuple[Any, ...] = ()
        self.attach()

    def attach(self, looping: bool = True, row_length: int = 0, more: tuple[Part, ...] = ()) -> None:
        """Choose what a forward pass is: whether layers loop, and in training the tokens per row, 0 as the loader has
        them, and the parts that act beside the configuration's.
        """
        config = self.config
        self.looping, self.row_length = looping, row_length
        self.parts: list[Any] = [*model_parts(config).values(), *more]
        parts, count = self.parts, config.num_layers
        self.acting = [[part for part in parts if layer in part.layers(count)] for layer in range(count)]
        for node in self.covered:
            del node.treatment  # not None: compiled graphs of before know that there was none
        self.covered = ()
        for part in self.parts:
            part.cover(self)

    def treat(self, part: Part, chosen: Callable[[ParamSpec, int], bool]) -> None:
        """Let a part decide what the matrices are made of that are `chosen` by spec and by how often they are used."""
        order = [step.layer for step in self.plans[True]]
        for spec in param_specs(self.config):
            passes = order.count(int(spec.name.split(".")[1])) if spec.name.startswith("blocks.") else 1
            if len(spec.shape) == 2 and spec.role != CONTROL and chosen(spec, passes):
                node: Any = self.get_submodule(spec.name.rpartition(".")[0])
                node.treatment, node.role = part, spec.role
                node.closing = spec.role in (ATTN, MLP) and spec.init == ("fill", 0.0)
                self.covered += (node,)

    def settle(self, device: torch.device, precision: str = "auto", attention: str = "auto") -> "GPT":
        """Move to a device and decide how to compute there. SetupError when that attention is not possible."""
        self.compute_dtype = activation_dtype(precision, device)
        self.attention_backend = choose_attention(self.config, device, self.compute_dtype, attention)[0]
        return self.to(device)

    def gathered(self, attn: Any, layer: int, n_BTC: Tensor, flow: Flow) -> Tensor:
        """Grouped-query attention with QK-norm and rotation; normalised input (B,T,C) -> (B,T,C)."""
        config, parts = self.config, self.acting[layer]
        raw_q = q = since(flow, attn.c_q.linear, n_BTC).unflatten(-1, (config.num_heads, -1))
        k = attn.c_k.linear(n_BTC).unflatten(-1, (config.num_kv_heads, -1))
        v = attn.c_v.linear(n_BTC).unflatten(-1, (config.num_kv_heads, -1))
        for part in parts:
            q, k, v = part.projected(attn, flow, layer, n_BTC, q, k, v)
        q = config.position.apply(rms_norm(q), flow.tables)
        k = config.position.apply(rms_norm(k), flow.tables)
        window = 0
        for part in parts:
            q = part.queries(attn, q)
            k = part.keys(attn, flow, k)
            window = min(window or part.reach(n_BTC.size(1)), part.reach(n_BTC.size(1)) or window)
        y = attend(q, k, v, window, flow.segments_BT, self.attention_backend, flow.memory)
        for part in parts:
            y = part.heads(attn, y, v, n_BTC, raw_q)
        return since(flow, attn.proj.linear, y.flatten(2))

    def mlp(self, mlp: Any, n_BTC: Tensor) -> Tensor:
        """The feed-forward half of a block; normalised input (B,T,C) -> (B,T,C)."""
        return self.config.mlp.apply(mlp, n_BTC)

    def normalised(self, layer: int, x_BTC: Tensor) -> Tensor:
        """The input of a block's attention or MLP."""
        n = rms_norm(x_BTC)
        for part in self.acting[layer]:
            n = part.scaled(layer, n)
        return n

    def step(self, step: LayerStep, lanes: tuple[Tensor, ...], x0_BTC: Tensor, flow: Flow) -> tuple[Tensor, ...]:
        """One transformer block on the residual lanes."""
        config, block, parts = self.config, self.layers[step.layer][step.turn], self.acting[step.layer]

        def attention(x: Tensor) -> Tensor:
            for part in parts:
                x = part.attended(flow, step.layer, x)
            n = self.normalised(step.layer, x)
            return block.attn_scale.to(x.dtype) * self.gathered(block.attn, step.layer, n, flow)

        def mlp(x: Tensor) -> Tensor:
            return block.mlp_scale.to(x.dtype) * self.mlp(block.mlp, self.normalised(step.layer, x))

        def mix(x: Tensor) -> Tensor:
            return config.mix.apply(block, x, x0_BTC)

        lanes = config.residual.block(self, step.layer, lanes, mix, attention, partial(since, flow, mlp))
        for part in parts:
            lanes = tuple(part.closed(block, flow, step.layer, lane) for lane in lanes)
        return lanes

    def starts(self, ids_BT: Tensor) -> list[Any] | None:
        """What flash-attention must know of documents, for queries and for keys: where they begin, and how long one may
        be. How many there are decides a shape, so training finds it outside the compiled forward, with as many entries
        as one document in 384 tokens needs: all usual batches have one shape, which warm-up compiles.
        """
        flash = self.attention_backend in ("fa2", "fa3")
        segments = self.config.documents.segments(ids_BT) if flash else None
        if segments is None:
            return None
        found = cu_seqlens(segments, max(64, ids_BT.numel() // 384))
        return [found] * 2 + [self.config.documents.longest(ids_BT.size(1))] * 2

    def flow(self, ids_BT: Tensor, like: Tensor, starts: list[Any] | None = None) -> Flow:
        """What parts share in this forward pass."""
        config = self.config
        segments = config.documents.segments(ids_BT)
        marks = torch.zeros_like(ids_BT) if segments is None else segments
        same = torch.cat((torch.zeros_like(marks[:, :1], dtype=torch.bool), marks[:, 1:] == marks[:, :-1]), dim=1)
        tables = config.position.tables(ids_BT.size(1), config.model_dim // config.num_heads, like)
        return Flow(ids_BT, same, segments, tables, {"starts": starts or self.starts(ids_BT)})

    def joined(self, skip_BTC: Tensor, row: int, x_BTC: Tensor) -> Tensor:
        """x with a long connection."""
        return self.config.skips.apply(self, x_BTC, skip_BTC, row)

    def hidden(self, ids_BT: Tensor, starts: list[Any] | None = None, start: int = 0) -> Tensor:
        """Final normalised hidden states (B,T-start,C) from position `start` on in the compute dtype. The last block is
        spared what only earlier positions need: all but their keys and values.
        """
        config = self.config
        x = config.embed.lookup(self, ids_BT).to(self.compute_dtype)
        flow = self.flow(ids_BT, x, starts)
        for part in self.parts:
            x = part.embedded(self, flow, x)
        x = config.embed.widen(self, rms_norm(x))
        for part in self.parts:
            x = part.entered(self, flow, x)
        lanes: tuple[Tensor, ...] = (x,)
        stack: list[Tensor] = []
        plan = self.plans[int(self.looping)]  # torch 2.9 compiles no index that is a bool
        for step in plan:
            if not step.push:
                lanes = config.residual.enter(step.layer, lanes)
            if step.skip >= 0:
                lanes = config.residual.join(lanes, partial(self.joined, stack.pop(), step.skip))
            flow.start = start * (step is plan[-1])
            for part in self.acting[step.layer]:
                flow.start = part.required(flow.start)
            lanes = self.step(step, lanes, x, flow)
            if step.push:
                stack.append(lanes[0])
        x = config.residual.leave(lanes)
        for part in self.parts:
            x = part.departed(self, flow, x)
        return rms_norm(x[:, start:])

    def raw(self, hidden_BTC: Tensor) -> Tensor:
        """Logits (B,T,V) before the soft-cap, in the compute dtype."""
        logits = self.config.embed.project(self, hidden_BTC)
        for part in self.parts:
            logits = part.scored(self, logits)
        return logits

    def head(self, hidden_BTC: Tensor) -> Tensor:
        """Soft-capped logits (B,T,V) in float32."""
        return self.config.logit_softcap.apply(self.raw(hidden_BTC)).float()

    def nll(self, ids_BT: Tensor, targets_BT: Tensor, start: int = 0) -> Tensor:
        """Negative log-likelihood in nats of the targets from position `start` on: (B, T - start) float32."""
        logits = self.head(self.hidden(ids_BT, start=start))
        return F.cross_entropy(logits.flatten(0, 1), targets_BT[:, start:].flatten(), reduction="none").view(
            len(ids_BT), -1
        )

    def forward(self, ids_BT: Tensor, targets_BT: Tensor, starts: list[Any] | None = None) -> Tensor:
        """Training loss, float32 scalar: mean nats per token over all positions, and what parts add to it."""
        hidden = self.hidden(ids_BT, starts)
        logits = self.head(hidden)
        loss = F.cross_entropy(logits.flatten(0, 1), targets_BT.flatten())
        for part in self.parts:
            loss = loss + part.extra_loss(self, hidden, logits, targets_BT)
        return loss
