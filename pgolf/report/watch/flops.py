"""Floating-point operations of a model, and the share of the device's peak that a run uses."""

import re

from pgolf.core.model.config import ModelConfig, layer_plan, layer_shape, model_parts, param_specs
from pgolf.core.model.params import ATTN, CONTROL, HEAD, MLP, TOKEN

PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}
"""A GPU's name -> dense bfloat16 operations per second with float32 accumulation, from the maker's data sheets. Of
several names that occur in one the longest counts.
"""

PEAK_BANDWIDTH = {
    "H200": 4.8e12,
    "H100": 3.35e12,
    "H100 PCIe": 2.0e12,
    "H100 NVL": 3.9e12,
}
"""A GPU's name -> bytes per second between the device and its memory, from NVIDIA's data sheets (H100 is the SXM)."""

LESSER = re.compile(r"\b(MIG|Laptop|Max-Q|D)\b")
"""Words in the name of what is less than the whole GPU of that name."""


def linear_flops(config: ModelConfig, looping: bool = True) -> dict[str, int]:
    """Operations per token of the linear maps in one forward pass, 2 per multiply-add: of attention (role `attn`), of
    MLPs (`mlp`), and of the head with all else that projects embeddings (`head`). Small control tensors are left out.
    """
    specs = param_specs(config)
    plan = [step.layer for step in layer_plan(config, looping)]
    tied = not any(spec.name == "lm_head.weight" for spec in specs)
    flops = dict.fromkeys((ATTN, MLP, HEAD), 0)
    for spec in specs:
        own, layer = ".pass" in spec.name, spec.name.split(".")[1] if spec.name.startswith("blocks.") else ""
        table = spec.group == TOKEN and not (tied and spec.name == "tok_emb.weight")
        if len(spec.shape) != 2 or spec.role == CONTROL or table or (own and ".lora_" not in spec.name):
            continue
        runs = plan.count(int(layer)) if layer else 1
        later = runs > 1 and looping
        flops[spec.role if spec.role in flops else HEAD] += 2 * spec.numel * (int(later) if own else runs)
    return flops


def forward_flops(config: ModelConfig, seq_len: int, looping: bool = True) -> int:
    """Operations per token of one forward pass, 2 per multiply-add: all linear maps and attention. Attention is counted
    as is usual, over whole rows of `seq_len` tokens or a layer's window, although half of them lie in the future; small
    control tensors, norms and other element-wise work are left out.
    """
    parts, flops = model_parts(config).values(), sum(linear_flops(config, looping).values())
    width = config.num_heads * layer_shape(config).head_dim
    for step in layer_plan(config, looping):
        window = 0
        for part in parts:
            if step.layer in part.layers(config.num_layers):
                window = part.reach(seq_len) or window
        flops += 4 * width * min(seq_len, window + 1 if window else seq_len)
    return flops


def training_flops(config: ModelConfig, seq_len: int, looping: bool = True) -> int:
    """Operations per token of a training step: the forward pass, and twice that for gradients. What the optimizer does
    is not counted.
    """
    return 3 * forward_flops(config, seq_len, looping)


def peak_of(table: dict[str, float], name: str) -> float | None:
    """A table's figure for a GPU by its name; None if it is not known."""
    fitting = [known for known in table if re.search(rf"\b{known}\b", name)]
    return table[max(fitting, key=len)] if fitting and not LESSER.search(name) else None


def peak_flops(name: str) -> float | None:
    """Peak of a GPU by its name; None if it is not known."""
    return peak_of(PEAK_FLOPS, name)


def peak_bandwidth(name: str) -> float | None:
    """Bandwidth of a GPU's memory by its name; None if it is not known."""
    return peak_of(PEAK_BANDWIDTH, name)
