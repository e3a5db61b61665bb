"""What the names and shapes of a foreign state dict say about its model, and what its metadata adds. Needs no torch.

Three kinds of knowledge, kept apart: *facts*, which a name or a shape proves; what the file's metadata *tells* in the
records' own option names; and *guesses*, the habits of the family a model seems to belong to.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

from pgolf.catalog import load
from pgolf.config.tree import Text, slot_of
from pgolf.core.errors import InputError
from pgolf.core.model.config import ModelConfig

Values = dict[str, dict[str, Any]]
"""Slot -> key -> value."""

PREFIXES = ("_orig_mod.", "module.")
RENAMED = {"embed_proj_rev.weight": "head_proj.weight"}
BANKS = {
    "qo_bank": ("attn.c_q", "attn.proj"),
    "kv_bank": ("attn.c_k", "attn.c_v"),
    "mlp_up_bank": ("mlp.fc",),
    "mlp_down_bank": ("mlp.proj",),
}
"""Bank -> the maps it holds, each for all layers, one after the other (PR #399, #549)."""
FUSED = "attn.c_qkv.weight"
"""Queries, keys and values in one matrix (ternary record)."""


def stripped(name: str) -> str:
    """A tensor name without wrappers' prefixes."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def canonical(name: str) -> str:
    """The name pgolf has for it."""
    return RENAMED.get(stripped(name), stripped(name))


def depth(names: Iterable[str], where: str) -> int:
    """How many layers there are. InputError if one is missing between others."""
    layers = {int(match[1]) for name in names if (match := re.match(r"blocks\.(0|[1-9]\d{0,3})\.", name))}
    for layer in range(len(layers)):
        if layer not in layers:
            raise InputError(f"blocks.{layer} is missing", where, f"there are tensors of blocks.{max(layers)}")
    return len(layers)


def unbank(name: str, shape: tuple[int, ...], layers: int, where: str) -> list[tuple[str, Any]]:
    """Our names for a foreign tensor, each with the index that cuts its part out of the first dimension."""
    name = canonical(name)
    if name in BANKS:
        maps = BANKS[name]
        if len(shape) != 3 or shape[0] != layers * len(maps) or 0 in shape:
            wanted = f"{layers} layers need ({layers * len(maps)}, rows, columns)"
            raise InputError(f"{name} has shape {shape}, but {wanted}", where, "the bank and the blocks disagree")
        return [(f"blocks.{row % layers}.{maps[row // layers]}.weight", row) for row in range(shape[0])]
    if name.endswith(FUSED):
        rows, width = shape if len(shape) == 2 else (0, 0)
        if rows <= width or (rows - width) % 2:
            raise InputError(f"{name} has shape {shape}, which does not hold queries, keys and values", where)
        cuts, stem = (0, width, (rows + width) // 2, rows), name.removesuffix(FUSED)
        return [(f"{stem}attn.c_{map}.weight", slice(cuts[i], cuts[i + 1])) for i, map in enumerate("qkv")]
    return [(name, ...)]


@dataclass(frozen=True)
class Found:
    """Shapes under our names, and the names the file has."""

    shapes: dict[str, tuple[int, ...]]
    names: frozenset[str]
    where: str

    def size(self, name: str, axis: int = 0, dims: int = 2) -> int:
        """One side of a tensor. InputError if it has another number of dimensions, or no values."""
        shape = self.shapes[name]
        if len(shape) != dims or 0 in shape:
            raise InputError(f"{name} has shape {shape}, which it has in no model pgolf knows", self.where)
        return shape[axis]

    def first(self, name: str) -> str:
        """The full name of a tensor of the whole model, or of the first layer that has it, or an empty string."""
        if name in self.shapes:
            return name
        return next((f"blocks.{i}.{name}" for i in range(self.layers) if f"blocks.{i}.{name}" in self.shapes), "")

    def count(self, pattern: str) -> int:
        """How many names match."""
        return sum(bool(re.fullmatch(pattern, name)) for name in self.shapes)

    @property
    def layers(self) -> int:
        """Physical layers."""
        return depth(self.shapes, self.where)

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return self.size("blocks.0.attn.c_q.weight", 1)


def head_gate(found: Found, name: str) -> dict[str, Any]:
    """A gate without a bias sees all channels or the first few."""
    window = found.size(name, 1)
    return {"kind": "dense"} if window == found.width else {"kind": "sparse", "window": window}


Says = Callable[[Found, str], dict[str, Any]]
SIGNS: tuple[tuple[str, str, Says], ...] = (
    ("tok_emb.weight", "embed", lambda f, n: {"kind": "tied"}),
    ("lm_head.weight", "embed", lambda f, n: {"kind": "untied"}),
    ("head_proj.weight", "embed", lambda f, n: {"kind": "factored", "width": f.size(n)}),
    (
        "bigram.embed.weight",
        "hash_embed",
        lambda f, n: {"kind": "bigram", "buckets": f.size(n), "dim": f.size(n, 1)},
    ),
    (
        "engram.embed.weight",
        "hash_embed",
        lambda f, n: {"kind": "engram_lite", "buckets": f.size(n) // 4, "dim": f.size(n, 1)},
    ),
    ("smear.gate", "smear", lambda f, n: {"kind": "static"} if n == "smear.gate" else {"kind": "cumulative"}),
    ("smear_gate.weight", "smear", lambda f, n: {"kind": "gated", "window": f.size(n, 1)}),
    ("attn.q_mix", "head_mix", lambda f, n: {"kind": "learned", "values": bool(f.first("attn.v_mix"))}),
    ("ve_shared.embed.weight", "value_embed", lambda f, n: {"kind": "shared", "dim": f.size(n, 1)}),
    ("attn.vr_lambda", "value_residual", lambda f, n: {"kind": "mix"}),
    ("attn.vrl_alpha", "value_residual", lambda f, n: {"kind": "add"}),
    ("attn.xsa_alpha", "xsa", lambda f, n: {"kind": "gated", "last_n": f.layers - int(n.split(".")[1])}),
    ("attn.attn_gate.weight", "head_gate", lambda f, n: {"kind": "biased"}),
    ("attn.attn_gate_w", "head_gate", head_gate),
    ("attn.attn_gate_proj.weight", "head_gate", lambda f, n: {"kind": "output", "window": f.size(n, 1)}),
    ("mlp.gate.weight", "mlp", lambda f, n: {"kind": "swiglu"}),
    ("mlp.fc_in.weight", "mlp", lambda f, n: {"kind": "low_rank", "rank": f.size(n)}),
    ("resid_mix", "mix", lambda f, n: {"kind": "x0"}),
    ("resid_lambda", "mix", lambda f, n: {"kind": "scalar"}),
    ("skip_weights", "skips", lambda f, n: {"kind": "unet"}),
    ("skip_gates", "skips", lambda f, n: {"kind": "gated"}),
    ("vocab_bias", "logit_bias", lambda f, n: {"kind": "learned"}),
    (
        "mtp_heads.0.weight",
        "multi_token",
        lambda f, n: {"kind": "mtp_heads", "extra_tokens": f.count(r"mtp_heads\.\d+\.weight")},
    ),
)
"""Tensor (of the whole model, or of a block), the slot it speaks of, and what it says; later rows win."""

UNSAID: Values = {
    **{slot: {"kind": "none"} for slot in ("hash_embed", "smear", "head_mix", "value_embed", "value_residual")},
    **{slot: {"kind": "none"} for slot in ("head_gate", "logit_bias", "skips")},
    "mix": {"kind": "plain"},
}
"""What it means that none of a slot's tensors is there."""


def facts(found: Found) -> dict[str, Any]:
    """Everything about the model that its names and shapes prove, as a section `model`."""
    try:
        heads, hidden = found.size("blocks.0.attn.q_gain", dims=1), found.size("blocks.0.mlp.fc.weight")
        vocab, kv_rows = found.size("tok_emb.weight"), found.size("blocks.0.attn.c_k.weight")
        layers, width = found.layers, found.width
    except KeyError as error:
        some = ", ".join(sorted(found.shapes)[:3])
        message = f"the tensors are not those of a model pgolf knows: {error.args[0]} is missing"
        raise InputError(message, found.where, f"found for example {some}") from None
    said: dict[str, Any] = {slot: dict(values) for slot, values in UNSAID.items()}
    for name, slot, says in SIGNS:
        if full := found.first(name):
            said[slot] = says(found, full)
    mult = hidden / width
    said["mlp"] = {**said.get("mlp", {}), "mult": mult if int(mult * width) == hidden else (hidden + 0.5) / width}
    if "skip_weights" in found.shapes and found.shapes["skip_weights"][:1] == (layers // 2,):
        said["loop"] = {"kind": "none"}
    if "embed_proj_rev.weight" in found.names:
        said["embed"]["norm_first"] = False
    sizes = {"vocab_size": vocab, "num_layers": layers, "model_dim": width, "num_heads": heads}
    return {**sizes, "num_kv_heads": max(kv_rows * heads // width, 1), **said}


def guesses(found: Found, known: dict[str, Any], lineage: bool) -> Values:
    """What shapes suggest without proof and, if asked, what the family the model seems to belong to always does."""
    layers, guessed = known["num_layers"], {}
    extra = 2 * found.shapes.get("skip_weights", (0,))[0] - layers
    if "loop" not in known and extra > 0:
        span = max((extra + extra % 2) // 2, 1)
        start = max(layers // 2 + 1 - span, 0)
        guessed["loop"] = {"kind": "layers", "start": start, "end": start + span - 1, "extra_passes": 2}
    if "parallel_post_lambdas" in found.shapes:
        guessed["residual"] = {"kind": "two_lanes", "start": min(8, layers - 1)}
    if scales := found.count(r"ve_layer_scales\.\d+"):
        guessed["value_embed"] = {"on": ",".join(str(layer) for layer in range(max(layers - scales, 0), layers))}
    if known["embed"]["kind"] == "factored" and "norm_first" not in known["embed"]:
        guessed["embed"] = {"norm_first": True}
    return guessed | (family(found, known) if lineage else {})


def family(found: Found, known: dict[str, Any]) -> Values:
    """The habits of the ternary record, of the records since PR #315, or of the naive baseline (which are defaults)."""
    if "embed_proj_rev.weight" in found.names or any(name.endswith(FUSED) for name in found.names):
        return {
            "position": {"kind": "yarn", "base": 5000.0, "longest": 2048, "trained": 1024},
            "logit_softcap": {"kind": "poly5", "cap": 10.0},
            "precision": {"kind": "ternary", "group": math.gcd(128, known["model_dim"])},
        }
    later = known["skips"]["kind"] == "gated" or "parallel_post_lambdas" in found.shapes
    slots = ("hash_embed", "smear", "value_embed", "value_residual", "head_gate")
    if not later and not found.names & BANKS.keys() and all(known[slot]["kind"] == "none" for slot in slots):
        return {}
    dims = min(16, known["model_dim"] // known["num_heads"] // 2 * 2)
    return {
        "position": {"kind": "rope", "dims": dims, "reference": 0 if later else 1024},
        "norm_scale": {"kind": "depth"},
        "xsa": {"kind": "xsa"},
        **({} if "kind" in known["mlp"] else {"mlp": {"kind": "leaky_relu2"}}),
    }


BLIND = re.compile(
    r"model\.((documents|position|norm_scale|window|key_offset|xsa|residual|logit_softcap|precision)\..*|loop\.(?!enable|lora_rank|own).*"
    r"|embed\.norm_first|hash_embed\.trigram|smear\.bos_id|value_embed\.on|head_gate\.(scale|reads)|mlp\.(kind|slope))"
)
"""Keys that change what a model computes and leave no trace in its names and shapes, or an ambiguous one."""


def truth(value: str) -> bool:
    """An option that is on or off."""
    return {"true": True, "1": True, "false": False, "0": False}[value.lower()]


OPTIONS: dict[str, Callable[[str], Values]] = {
    "rope_base": lambda v: {"position": {"base": Text(v)}},
    "rope_dims": lambda v: {"position": {"dims": Text(v)}},
    "rope_type": lambda v: {"position": {"kind": {"yarn": "yarn", "rope": "rope"}[v]}},
    "yarn_max_len": lambda v: {"position": {"longest": Text(v)}},
    "ln_scale": lambda v: {"norm_scale": {"kind": "depth" if truth(v) else "none"}},
    "xsa_last_n": lambda v: {"xsa": {"kind": "xsa", "last_n": int(v)} if int(v) else {"kind": "none"}},
    "num_loops": lambda v: {"loop": {"kind": "layers", "extra_passes": int(v)} if int(v) else {"kind": "none"}},
    "loop_start": lambda v: {"loop": {"start": Text(v)}},
    "loop_end": lambda v: {"loop": {"end": Text(v)}},
    "parallel_residual_start": lambda v: {"residual": {"kind": "parallel", "start": Text(v)}},
    "parallel_start_layer": lambda v: {"residual": {"kind": "two_lanes", "start": Text(v)}},
    "parallel_final_lane": lambda v: {"residual": {"final": Text(v)}},
    "logit_softcap": lambda v: {"logit_softcap": {"cap": Text(v)}},
    "softcap_type": lambda v: {"logit_softcap": {"kind": {"poly": "poly5", "tanh": "tanh"}[v]}},
    "activation": lambda v: {"mlp": {"kind": {"relu2": "relu2", "leaky_relu2": "leaky_relu2"}[v]}},
    "trigram": lambda v: {"hash_embed": {"trigram": truth(v)}},
    "ve_layers": lambda v: {"value_embed": {"on": Text(v)}},
    "sparse_attn_gate_scale": lambda v: {"head_gate": {"scale": Text(v)}},
    "embedding_dim": lambda v: {"embed": {"norm_first": True}},
    "embed_dim": lambda v: {"embed": {"norm_first": False}},
    "group_size": lambda v: {"precision": {"group": Text(v)}},
    "fp_storage": lambda v: {"precision": {"tables": "fp8" if truth(v) else "float"}},
}
"""Option of the records' scripts -> what it says of the model."""

SIZES = ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads")
BESIDE = {
    *SIZES, "architecture", "train_seq_len", "mlp_mult", "tie_embeddings", "skip_gates_enabled", "gate_window",
    "qk_gain_init", "tied_embed_init_std", "bigram_dim", "bigram_vocab_size", "gated_attention", "value_residual",
    "ve_enabled", "ve_dim", "smear", "mtp_num_heads", "mtp_loss_weight",
}  # fmt: skip
"""Options that shapes tell too, or that only training reads."""

SCRIPT: Values = {
    "documents": {"kind": "whole_rows"},
    "position": {"kind": "rope"},
    "mlp": {"kind": "leaky_relu2", "slope": 0.5},
    "logit_softcap": {"kind": "tanh"},
    **{slot: {"kind": "none"} for slot in ("window", "key_offset", "precision")},
}
SCRIPTS = {"pr1394": SCRIPT | {"residual": {"kind": "one_stream"}}, "pr1493": SCRIPT}
"""Architecture a file names -> what its script leaves no choice about."""


def told(options: dict[str, str], found: Found, known: dict[str, Any], assumed: Values) -> tuple[Values, list[str]]:
    """What the metadata tells of the model, less the keys its parts do not have; and the options not read."""
    said: Values = {slot: dict(values) for slot, values in SCRIPTS.get(options.get("architecture", ""), {}).items()}
    for name, value in options.items():
        if name in SIZES and value.removesuffix(".0") != str(known[name]):
            raise InputError(f"the metadata says {name} {value}, the tensors say {known[name]}", found.where)
        try:
            news = OPTIONS[name](value) if name in OPTIONS else {}
        except (KeyError, ValueError):
            raise InputError(f"the metadata says {name} {value!r}, which pgolf does not know", found.where) from None
        for slot, values in news.items():
            said[slot] = said.get(slot, {}) | values
    if length := options.get("train_seq_len"):
        position = said.setdefault("position", {})
        if position.get("kind", assumed.get("position", {}).get("kind")) == "yarn":
            position["trained"] = Text(length)
        elif known["skips"]["kind"] == "gated" and "parallel_post_lambdas" not in found.shapes:
            position["reference"] = Text(length)
    slots = {field.name: (slot_of(field.type), getattr(ModelConfig(), field.name)) for field in fields(ModelConfig)}
    for slot, values in said.items():
        kind = {**assumed.get(slot, {}), **values, **known.get(slot, {})}.get("kind")
        part = load(slots[slot][0], kind) if kind else type(slots[slot][1])
        has = {field.name for field in fields(part)} | {"kind"}
        said[slot] = {key: value for key, value in values.items() if key in has}
    return said, sorted(options.keys() - OPTIONS.keys() - BESIDE)
