"""Every choice a slot offers: slot -> name -> "module:Class". One line per technique; nothing is imported here."""

from importlib import import_module
from typing import Any

CATALOG: dict[str, dict[str, str]] = {
    "Embed": {
        "tied": "pgolf.core.model.parts.tied_embed:TiedEmbed",
        "untied": "pgolf.core.model.parts.untied_embed:UntiedEmbed",
        "factored": "pgolf.core.model.parts.factored_embed:FactoredEmbed",
    },
    "Documents": {
        "whole_rows": "pgolf.core.model.parts.whole_rows:WholeRows",
        "by_document": "pgolf.core.model.parts.by_document:ByDocument",
    },
    "HashEmbed": {
        "none": "pgolf.core.model.slots:Absent",
        "bigram": "pgolf.core.model.parts.hash_embed:BigramHash",
        "engram_lite": "pgolf.core.model.parts.hash_embed:EngramLite",
    },
    "Smear": {
        "none": "pgolf.core.model.slots:Absent",
        "static": "pgolf.core.model.parts.smear:StaticSmear",
        "gated": "pgolf.core.model.parts.smear:GatedSmear",
        "cumulative": "pgolf.core.model.parts.smear:CumulativeSmear",
    },
    "Position": {
        "rope": "pgolf.core.model.parts.rope:Rope",
        "yarn": "pgolf.core.model.parts.yarn:Yarn",
    },
    "NormScale": {
        "none": "pgolf.core.model.slots:Absent",
        "depth": "pgolf.core.model.parts.depth_scale:DepthScale",
    },
    "HeadMix": {
        "none": "pgolf.core.model.slots:Absent",
        "learned": "pgolf.core.model.parts.head_mix:HeadMixing",
    },
    "ValueEmbed": {
        "none": "pgolf.core.model.slots:Absent",
        "shared": "pgolf.core.model.parts.value_embed:ValueEmbedding",
        "by_layer": "pgolf.core.model.parts.value_embed:LayerValueEmbedding",
    },
    "ValueResidual": {
        "none": "pgolf.core.model.slots:Absent",
        "mix": "pgolf.core.model.parts.value_residual:ValueMix",
        "add": "pgolf.core.model.parts.value_residual:ValueAdd",
    },
    "KeyOffset": {
        "none": "pgolf.core.model.slots:Absent",
        "partial": "pgolf.core.model.parts.key_offset:PartialKeyOffset",
    },
    "QueryHook": {
        "learned": "pgolf.core.model.parts.qk_gain:QkGain",
    },
    "Window": {
        "none": "pgolf.core.model.slots:Absent",
        "sliding": "pgolf.core.model.parts.window:SlidingWindow",
        "pattern": "pgolf.core.model.parts.window:PatternWindow",
    },
    "ValueExclusion": {
        "none": "pgolf.core.model.slots:Absent",
        "xsa": "pgolf.core.model.parts.xsa:Xsa",
        "gated": "pgolf.core.model.parts.xsa:GatedXsa",
    },
    "HeadGate": {
        "none": "pgolf.core.model.slots:Absent",
        "biased": "pgolf.core.model.parts.head_gate:BiasedGate",
        "dense": "pgolf.core.model.parts.head_gate:DenseGate",
        "sparse": "pgolf.core.model.parts.head_gate:SparseGate",
        "output": "pgolf.core.model.parts.head_gate:OutputGate",
    },
    "Mlp": {
        "relu2": "pgolf.core.model.parts.relu2:Relu2",
        "leaky_relu2": "pgolf.core.model.parts.leaky_relu2:LeakyRelu2",
        "learned_leaky_relu2": "pgolf.core.model.parts.leaky_relu2:LearnedLeakyRelu2",
        "swiglu": "pgolf.core.model.parts.swiglu:SwiGlu",
        "low_rank": "pgolf.core.model.parts.low_rank_mlp:LowRankMlp",
    },
    "Mix": {
        "x0": "pgolf.core.model.parts.x0_mix:X0Mix",
        "phase": "pgolf.core.model.parts.phase_mix:PhaseMix",
        "scalar": "pgolf.core.model.parts.phase_mix:ScalarMix",
        "plain": "pgolf.core.model.parts.plain_mix:PlainMix",
    },
    "Skips": {
        "unet": "pgolf.core.model.parts.unet_skips:UnetSkips",
        "gated": "pgolf.core.model.parts.gated_skips:GatedSkips",
        "none": "pgolf.core.model.parts.no_skips:NoSkips",
    },
    "Loop": {
        "none": "pgolf.core.model.parts.fixed_order:FixedOrder",
        "layers": "pgolf.core.model.parts.layer_loop:LayerLoop",
    },
    "Residual": {
        "one_stream": "pgolf.core.model.parts.one_stream:OneStream",
        "parallel": "pgolf.core.model.parts.parallel_residual:ParallelResidual",
        "two_lanes": "pgolf.core.model.parts.two_lanes:TwoLanes",
        "two_lanes_in_turn": "pgolf.core.model.parts.two_lanes_in_turn:TwoLanesInTurn",
    },
    "Retraction": {
        "none": "pgolf.core.model.slots:Absent",
        "backout": "pgolf.core.model.parts.backout:Backout",
    },
    "LogitBias": {
        "none": "pgolf.core.model.slots:Absent",
        "learned": "pgolf.core.model.parts.vocab_bias:VocabBias",
    },
    "Softcap": {
        "tanh": "pgolf.core.model.parts.tanh_softcap:TanhSoftcap",
        "poly5": "pgolf.core.model.parts.poly5_softcap:Poly5Softcap",
        "sigmoid": "pgolf.core.model.parts.sigmoid_softcap:SigmoidSoftcap",
    },
    "AuxLoss": {
        "none": "pgolf.core.model.slots:Absent",
        "z_loss": "pgolf.core.model.parts.z_loss:ZLoss",
    },
    "MultiToken": {
        "none": "pgolf.core.model.slots:Absent",
        "mtp_heads": "pgolf.core.model.parts.multi_token:TokenHeads",
    },
    "Counts": {
        "none": "pgolf.core.model.slots:Absent",
        "ngrams": "pgolf.core.model.parts.ngram_counts:NgramCounts",
    },
    "Precision": {
        "none": "pgolf.core.model.slots:Absent",
        "ternary": "pgolf.core.model.parts.ternary:Ternary",
        "binary": "pgolf.core.model.parts.ternary:Binary",
    },
    "MatrixOptimizer": {
        "muon": "pgolf.core.optim.muon:Muon",
        "normuon": "pgolf.core.optim.muon:NorMuon",
    },
    "Warmdown": {
        "iterations": "pgolf.core.optim.schedules:IterationWarmdown",
        "fraction": "pgolf.core.optim.schedules:FractionWarmdown",
    },
    "Average": {
        "none": "pgolf.core.train.average:LastWeights",
        "ema": "pgolf.core.train.average:Ema",
        "emas": "pgolf.core.train.average:Emas",
        "swa": "pgolf.core.train.average:Swa",
    },
    "Qat": {
        "none": "pgolf.core.train.steady:Steady",
        "straight_through": "pgolf.core.train.qat:StraightThrough",
        "soft_round": "pgolf.core.train.qat:SoftRound",
        "noise": "pgolf.core.train.qat:Noise",
        "crown_q": "pgolf.core.train.qat:CrownQ",
    },
    "WindowSchedule": {
        "none": "pgolf.core.train.steady:Steady",
        "growing": "pgolf.core.train.growth:GrowingWindow",
    },
    "LengthSchedule": {
        "none": "pgolf.core.train.steady:Steady",
        "growing": "pgolf.core.train.growth:GrowingLength",
    },
    "Loss": {
        "mean": "pgolf.core.train.steady:Steady",
        "byte_weighted": "pgolf.core.train.byte_loss:ByteWeighted",
    },
    "DecaySchedule": {
        "none": "pgolf.core.optim.schedules:Unscaled",
        "taper": "pgolf.core.optim.decay:TaperDecay",
        "ramp": "pgolf.core.optim.decay:RampDecay",
    },
    "WidthRule": {
        "none": "pgolf.core.optim.schedules:Unscaled",
        "mup": "pgolf.core.optim.rates:MupWidth",
    },
    "RateScale": {
        "none": "pgolf.core.optim.schedules:Unscaled",
        "by_role": "pgolf.core.optim.rates:RateByRole",
    },
    "Parallel": {
        "replicated": "pgolf.core.optim.parallel:Replicated",
        "banks": "pgolf.core.optim.parallel:Banks",
    },
    "Loader": {
        "sequential": "pgolf.core.train.loaders:SequentialLoader",
        "shuffled": "pgolf.core.train.loaders:ShuffledLoader",
        "coprime": "pgolf.core.train.loaders:CoprimeLoader",
        "documents": "pgolf.core.train.loaders:DocumentLoader",
    },
    "Quantizer": {
        "row_quantile": "pgolf.core.quant.row_quantile:RowQuantile",
        "sdclip": "pgolf.core.quant.sdclip:SdClip",
        "gptq": "pgolf.core.quant.gptq:Gptq",
        "quantile_search": "pgolf.core.quant.quantile_search:QuantileSearch",
        "hessian_clip": "pgolf.core.quant.variants:HessianClip",
        "coarse_layers": "pgolf.core.quant.variants:CoarseLayers",
        "pruned": "pgolf.core.quant.variants:PrunedGptq",
        "lqer": "pgolf.core.quant.gptq_lqer:Lqer",
        "ternary": "pgolf.core.quant.few_values:TernaryCodes",
        "binary": "pgolf.core.quant.few_values:BinaryCodes",
        "fp8": "pgolf.core.quant.casts:Float8Cast",
        "int8_rows": "pgolf.core.quant.casts:Int8Rows",
        "float": "pgolf.core.quant.casts:KeepFloats",
        "by_role": "pgolf.core.quant.roles:ByRole",
    },
    "QuantTuning": {
        "none": "pgolf.core.quant.base:Untuned",
        "kl": "pgolf.core.quant.tuning:KlTuning",
        "cross_entropy": "pgolf.core.quant.tuning:CrossEntropyTuning",
    },
    "Codec": {
        "store": "pgolf.core.codecs.store:Store",
        "zlib": "pgolf.core.codecs.zlib:Zlib",
        "lzma": "pgolf.core.codecs.lzma:Lzma",
        "brotli": "pgolf.core.codecs.brotli:Brotli",
        "zstd": "pgolf.core.codecs.zstd:Zstd",
        "rans": "pgolf.core.codecs.adaptive:Rans",
        "lrzip": "pgolf.layouts.programs:Lrzip",
        "zpaq": "pgolf.layouts.programs:Zpaq",
        "packed": "pgolf.layouts.methods:Packed",
        "pergroup": "pgolf.layouts.methods:PerGroup",
    },
    "EvalMethod": {
        "plain": "pgolf.core.evals.plain:PlainEval",
        "sliding": "pgolf.core.evals.sliding:SlidingEval",
        "document": "pgolf.core.evals.document:DocumentEval",
        "overlap": "pgolf.core.evals.overlap:OverlapEval",
    },
    "EvalCompiler": {
        "none": "pgolf.core.evals.base:Eager",
        "torch": "pgolf.core.evals.compiled:TorchCompile",
    },
    "EvalRope": {
        "as_trained": "pgolf.core.evals.base:RopeAsTrained",
        "ntk": "pgolf.core.evals.stretch:NtkRope",
        "yarn": "pgolf.core.evals.stretch:YarnRope",
    },
    "EvalSlot": {
        "none": "pgolf.core.evals.base:Unadjusted",
        "adamw": "pgolf.core.evals.context_slot:SlotAdamW",
        "lbfgs": "pgolf.core.evals.context_slot:SlotLbfgs",
    },
    "EvalTemperature": {
        "none": "pgolf.core.evals.base:Unadjusted",
        "fixed": "pgolf.core.evals.temperature:FixedTemperature",
    },
    "EvalBias": {
        "none": "pgolf.core.evals.base:Unadjusted",
        "online": "pgolf.core.evals.online_bias:OnlineBias",
    },
    "EvalCache": {
        "none": "pgolf.core.evals.base:Unadjusted",
        "exact": "pgolf.core.evals.exact_cache:ExactCache",
    },
    "EvalMixer": {
        "none": "pgolf.core.evals.base:Unadjusted",
        "hedge": "pgolf.core.evals.hedge:HedgeMixer",
    },
    "EvalTilt": {
        "none": "pgolf.core.evals.base:Unadjusted",
        "token": "pgolf.core.evals.token_tilt:TokenTilt",
    },
    "TttMethod": {
        "chunk": "pgolf.core.ttt.chunk:ChunkTtt",
        "lora": "pgolf.core.ttt.lora:LoraTtt",
        "phased": "pgolf.core.ttt.phased:PhasedTtt",
    },
    "TttOptimizer": {
        "sgd": "pgolf.core.ttt.steppers:TttSgd",
        "adamw": "pgolf.core.ttt.steppers:TttAdamW",
        "muon": "pgolf.core.ttt.steppers:TttMuon",
    },
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
