"""Every choice a slot offers: slot -> name -> "module:Class". One line per technique; nothing is imported here."""

from importlib import import_module
from typing import Any

CATALOG: dict[str, dict[str, str]] = {
    "Embed": {
        "tied": "pgolf.core.model.parts.tied_embed:TiedEmbed",
        "untied": "pgolf.core.model.parts.untied_embed:UntiedEmbed",
    },
    "Position": {"rope": "pgolf.core.model.parts.rope:Rope"},
    "QueryHook": {"learned": "pgolf.core.model.parts.qk_gain:QkGain"},
    "Mlp": {"relu2": "pgolf.core.model.parts.relu2:Relu2"},
    "Mix": {"x0": "pgolf.core.model.parts.x0_mix:X0Mix"},
    "Skips": {"unet": "pgolf.core.model.parts.unet_skips:UnetSkips"},
    "Softcap": {"tanh": "pgolf.core.model.parts.tanh_softcap:TanhSoftcap"},
    "MatrixOptimizer": {"muon": "pgolf.core.optim.muon:Muon"},
    "Warmdown": {
        "iterations": "pgolf.core.optim.schedules:IterationWarmdown",
        "fraction": "pgolf.core.optim.schedules:FractionWarmdown",
    },
    "Loader": {"sequential": "pgolf.core.train.loaders:SequentialLoader"},
    "Quantizer": {
        "row_quantile": "pgolf.core.quant.row_quantile:RowQuantile",
        "sdclip": "pgolf.core.quant.sdclip:SdClip",
        "gptq": "pgolf.core.quant.gptq:Gptq",
    },
    "Codec": {
        "store": "pgolf.core.codecs.store:Store",
        "zlib": "pgolf.core.codecs.zlib:Zlib",
        "lzma": "pgolf.core.codecs.lzma:Lzma",
        "brotli": "pgolf.core.codecs.brotli:Brotli",
        "zstd": "pgolf.core.codecs.zstd:Zstd",
    },
    "EvalMethod": {
        "plain": "pgolf.core.evals.plain:PlainEval",
        "sliding": "pgolf.core.evals.sliding:SlidingEval",
    },
    "TttMethod": {"chunk_sgd": "pgolf.core.ttt.chunk_sgd:ChunkSgd"},
}

METHOD_SLOTS = ("Quantizer", "Codec", "EvalMethod", "TttMethod")
"""Slots that are whole sections: how a stage works is its `method`; what a model is made of has a `kind`."""


def selector(slot: str) -> str:
    """The key that names the choice: method for stages, kind for parts."""
    return "method" if slot in METHOD_SLOTS else "kind"


def load(slot: str, name: str) -> type[Any]:
    """The class behind a name; KeyError for an unknown one."""
    module, _, cls = CATALOG[slot][name].partition(":")
    found: type[Any] = getattr(import_module(module), cls)
    return found


def name_of(slot: str, cls: type) -> str:
    """The name under which the catalog lists a class."""
    target = f"{cls.__module__}:{cls.__qualname__}"
    return next(name for name, where in CATALOG[slot].items() if where == target)
