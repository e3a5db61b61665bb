"""Combinations that are known to hurt: allowed, for somebody may want to know why, but never silently.

What cannot work at all is refused where it stands (`Part.suits`, `Part.fits`, `Recipe`). A row of HAZARDS says when a
combination is there, what it did to whom, and which stage suffers from it; that stage warns of it, and keeps the
sentence with its result.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pgolf.core.model.config import param_specs
from pgolf.core.model.params import ATTN, MLP
from pgolf.core.model.parts.by_document import ByDocument
from pgolf.core.model.parts.factored_embed import FactoredEmbed
from pgolf.core.model.parts.layer_loop import LayerLoop
from pgolf.core.model.parts.rope import Rope
from pgolf.core.model.parts.smear import GatedSmear
from pgolf.core.model.slots import Absent
from pgolf.core.optim.muon import Muon
from pgolf.core.optim.schedules import FractionWarmdown
from pgolf.core.quant.casts import KeepFloats
from pgolf.core.quant.roles import ByRole, compensating
from pgolf.core.quant.sdclip import SdClip
from pgolf.core.recipe import Recipe
from pgolf.core.train.average import Ema, Emas, LastWeights
from pgolf.core.train.growth import GrowingWindow
from pgolf.core.train.qat import CrownQ, Noise, StraightThrough
from pgolf.core.ttt.lora import LoraTtt
from pgolf.core.ttt.phased import PhasedTtt
from pgolf.core.ttt.steppers import TttSgd
from pgolf.core.ttt.weights import WeightTraining

TRAIN, QUANTIZE, EVAL, TTT = "train", "quantize", "eval", "ttt"
STAGES = TRAIN, QUANTIZE, EVAL, TTT
"""Stages that have hazards, in their order."""

PROVEN_RATE = 0.015
"""Rate of SGD times passes that looped weights took well: 0.005 in three passes (PR #1493)."""

TOKENS_BY_INPUT = 8
"""Calibration tokens for each input of the widest matrix at which quantizing in turn was measured to gain."""

FULLY_LOOPED_PASSES = 3
"""Passes through all layers at which rounding was measured to feed on itself (PR #363)."""


@dataclass(frozen=True, kw_only=True)
class Hazard:
    """A combination known to hurt."""

    stages: tuple[str, ...]
    """Stages that suffer from it."""
    keys: tuple[str, ...]
    """What it is set by; STAGE stands for the stage's own section."""
    what: str
    """The combination in words."""
    effect: str
    """What it did, BPB unless it says otherwise."""
    source: str
    """Who found that."""
    holds: Callable[[Recipe, str], bool]
    """Whether a configuration has it, at one of its stages."""
    trained: bool = False
    """Whether one must know how the model was trained to tell, which an artifact does not say."""

    def sentence(self, stage: str) -> str:
        """The warning."""
        keys = ", ".join(key.replace("STAGE", stage) for key in self.keys)
        return f"{self.what}: {self.effect} ({keys}; {self.source})"


def hazards(config: Recipe, stages: Iterable[str] = STAGES, trained: bool = True) -> list[str]:
    """Warnings of everything that is known to hurt in these stages; `trained` says whether `config` tells how the model
    was trained.
    """
    chosen = tuple(stages)
    return [
        row.sentence(stage)
        for row in HAZARDS
        for stage in row.stages
        if stage in chosen and (trained or not row.trained) and row.holds(config, stage)
    ]


# When each of them is there


def first_values_looped(config: Recipe, stage: str) -> bool:
    """A value residual in a looped model."""
    return isinstance(config.model.loop, LayerLoop) and not isinstance(config.model.value_residual, Absent)


def narrow_looped(config: Recipe, stage: str) -> bool:
    """A factored embedding in a looped model."""
    return isinstance(config.model.loop, LayerLoop) and isinstance(config.model.embed, FactoredEmbed)


def blind_smear(config: Recipe, stage: str) -> bool:
    """Attention by document and a smear gate that sees no documents."""
    smear, documents = config.model.smear, config.model.documents
    return isinstance(smear, GatedSmear) and isinstance(documents, ByDocument) and smear.bos_id != documents.bos_id


def few_values(config: Recipe) -> bool:
    """Weights of two or three values."""
    return not isinstance(config.model.precision, Absent)


def few_values_averaged(config: Recipe, stage: str) -> bool:
    """Such weights and any average."""
    return few_values(config) and type(config.train.average) is not LastWeights


def few_values_decayed(config: Recipe, stage: str) -> bool:
    """Such weights and decay of the matrices."""
    return few_values(config) and isinstance(config.optim.matrix, Muon) and config.optim.matrix.weight_decay > 0


def few_values_adapted(config: Recipe, stage: str) -> bool:
    """Such weights and adapters."""
    return few_values(config) and isinstance(config.ttt, LoraTtt)


def rounding(config: Recipe) -> StraightThrough | None:
    """The training that rounds, late in a run, if it does."""
    qat = config.train.qat
    return qat if isinstance(qat, StraightThrough) and not isinstance(qat, CrownQ | Noise) else None


def rounded_and_averaged(config: Recipe, stage: str) -> bool:
    """Weights rounded late in a run, averaged with those before."""
    return rounding(config) is not None and isinstance(config.train.average, Ema | Emas)


def widths(config: Recipe) -> set[int]:
    """Code widths of the matrices in blocks; 0 where that means nothing."""
    quant, found = config.quant, set[int]()
    for role in (ATTN, MLP):
        one = quant.quantizers()[role] if isinstance(quant, ByRole) else quant
        found.add(one.grid(role)[0] if isinstance(one, SdClip) else getattr(one, "bits", 0))
    return found


def other_grid(config: Recipe, stage: str) -> bool:
    """Training for other code widths than those of the export."""
    qat = config.train.qat
    return isinstance(qat, StraightThrough) and not isinstance(qat, CrownQ) and widths(config) != {qat.bits}


def choosy_decay(config: Recipe, stage: str) -> bool:
    """Cautious decay of weights that are to be rounded."""
    matrix = config.optim.matrix
    decays = isinstance(matrix, Muon) and matrix.cautious_decay and matrix.weight_decay > 0
    return decays and not isinstance(config.quant, KeepFloats)


def rough_end(config: Recipe, stage: str) -> bool:
    """Rates that stay high, and the last weights exported."""
    warmdown = config.optim.warmdown
    high = isinstance(warmdown, FractionWarmdown) and 0 < warmdown.min_lr < 1
    return high and type(config.train.average) is LastWeights


def never_whole(config: Recipe, stage: str) -> bool:
    """A limit on attention that never falls in training, and that no score knows of."""
    schedule = config.train.window_schedule
    if not isinstance(schedule, GrowingWindow) or schedule.until < 1:
        return False
    return schedule.horizons[-1].tokens < config.attended_tokens


def rounded_on_every_pass(config: Recipe, stage: str) -> bool:
    """All layers looped often, and trained without noise."""
    loop, layers = config.model.loop, config.model.num_layers
    if not isinstance(loop, LayerLoop) or len(loop.layers(layers)) < layers or isinstance(config.train.qat, Noise):
        return False
    return loop.extra_passes + 1 >= FULLY_LOOPED_PASSES and not isinstance(config.quant, KeepFloats)


def grown(config: Recipe, length: int) -> int:
    """The length that the rotary base of a row goes by; 0 where it goes by none."""
    position = config.model.position
    return max(length, position.reference) if isinstance(position, Rope) and position.reference else 0


def other_base(config: Recipe, stage: str) -> bool:
    """Windows of a length, or of many lengths, whose rotary base is not the one of training. Documents that are scored
    without adapters are filled up to the window then.
    """
    method = getattr(config, stage)
    lengths = [method.seq_len, *([1] if isinstance(method, LoraTtt) else [])]
    return any(grown(config, length) != grown(config, config.row_tokens) for length in lengths)


def learning(config: Recipe) -> WeightTraining | None:
    """How test-time training changes the model's own weights, if it does."""
    found = config.ttt.base if isinstance(config.ttt, PhasedTtt) else config.ttt
    return found if isinstance(found, WeightTraining) and found.epochs and found.lr else None


def base_of_packed_rows(config: Recipe, stage: str) -> bool:
    """Sequences of a step in one row, longer than any window that is scored."""
    steps, length = learning(config), config.ttt.seq_len
    rows = steps.train_seqs if steps is not None and steps.pack else 1
    return grown(config, length) != grown(config, length * rows)


def offset_keys_learn(config: Recipe, stage: str) -> bool:
    """Key offset and steps of SGD."""
    steps = learning(config)
    offset = not isinstance(config.model.key_offset, Absent)
    return offset and steps is not None and isinstance(steps.optimizer, TttSgd)


def looped_weights_learn(config: Recipe, stage: str) -> bool:
    """Steps of SGD on looped weights, larger in all than what went well."""
    loop, steps = config.model.loop, learning(config)
    if not isinstance(loop, LayerLoop) or steps is None or not isinstance(steps.optimizer, TttSgd):
        return False
    passes = loop.extra_passes + 1 if steps.train_loop else 1
    return steps.lr * steps.looped_rate * passes > PROVEN_RATE + 1e-12


def few_tokens_in_turn(config: Recipe, stage: str) -> bool:
    """Matrices quantized in turn with few calibration tokens for their inputs."""
    some = [one for one in compensating(config.quant) if one.sequential]
    tokens = min((one.calibration_seqs * one.calibration_seq_len for one in some), default=0)
    widest = max(spec.shape[1] for spec in param_specs(config.model) if spec.role in (ATTN, MLP))
    return bool(some) and tokens < TOKENS_BY_INPUT * widest


HAZARDS = (
    Hazard(
        stages=(TRAIN,),
        keys=("model.value_residual", "model.loop"),
        what="the first layer's values in a looped model",
        effect="+0.14",
        source="PR #363",
        holds=first_values_looped,
    ),
    Hazard(
        stages=(TRAIN,),
        keys=("model.embed", "model.loop"),
        what="a factored embedding in a looped model",
        effect="+0.05 at width 192 and +0.06 at 256, with 5-bit codes",
        source="PR #363",
        holds=narrow_looped,
    ),
    Hazard(
        stages=(TRAIN,),
        keys=("model.smear.bos_id", "model.documents.bos_id"),
        what="a smear gate that does not see where documents begin",
        effect="the last token of one document leaks into the next",
        source="mended in PR #1851",
        holds=blind_smear,
    ),
    Hazard(
        stages=(TRAIN,),
        keys=("model.precision", "train.average"),
        what="an average of weights that act as two or three values drifts towards zero",
        effect="0.13 to 1.07 lost between the floats and what is stored",
        source="ternary record (PR #640)",
        holds=few_values_averaged,
    ),
    Hazard(
        stages=(TRAIN,),
        keys=("model.precision", "optim.matrix.weight_decay"),
        what="weights that act as two or three values do not go together with decay of the matrices",
        effect="worse; the record has none",
        source="ternary record (PR #640)",
        holds=few_values_decayed,
    ),
    Hazard(
        stages=(TRAIN,),
        keys=("train.qat", "train.average"),
        what="the average mixes weights from before and after rounding begins",
        effect="+0.009 to +0.019",
        source="PR #1493",
        holds=rounded_and_averaged,
    ),
    Hazard(
        stages=(TRAIN,),
        keys=("train.qat.bits", "quant"),
        what="training is for another code width than that of the export",
        effect="noise for 8 bits hurts an export of 5",
        source="PR #363",
        holds=other_grid,
    ),
    Hazard(
        stages=(TRAIN,),
        keys=("optim.matrix.cautious_decay", "quant"),
        what="cautious decay of weights that will be quantized",
        effect="called catastrophic, without a figure",
        source="PR #1512",
        holds=choosy_decay,
    ),
    Hazard(
        stages=(TRAIN,),
        keys=("optim.warmdown.min_lr", "train.average"),
        what="rates that do not fall to zero leave the last weights rough, and no average smooths them",
        effect="+0.0116 against an EMA",
        source="PR #1855",
        holds=rough_end,
    ),
    Hazard(
        stages=(TRAIN,),
        keys=("train.window_schedule.until",),
        what="attention is held short to the end of training and sees everything in scores",
        effect="2.4 BPB and more for a model trained with windows and scored without",
        source="PR #1512",
        holds=never_whole,
    ),
    Hazard(
        stages=(QUANTIZE,),
        keys=("model.loop", "quant"),
        what="the error of rounding comes back in every pass of a model whose layers all loop",
        effect="+1.14 with 6 bits and +0.37 with 8, where train.qat=noise left 0.002",
        source="PR #363",
        holds=rounded_on_every_pass,
        trained=True,
    ),
    Hazard(
        stages=(QUANTIZE,),
        keys=("quant.sequential", "quant.calibration_seqs", "quant.calibration_seq_len"),
        what="matrices quantized in turn with fewer than 8 calibration tokens for each of a matrix's inputs",
        effect="a fifth more loss at 1 token, no gain at 4",
        source="docs/quantization.md",
        holds=few_tokens_in_turn,
    ),
    Hazard(
        stages=(EVAL, TTT),
        keys=("model.position.reference", "STAGE.seq_len", "STAGE.method"),
        what="the rotary base follows the length of a row, and rows here are not as long as those of training",
        effect="2.04 BPB for a model of 4,096 tokens scored at 2,048",
        source="PR #1512",
        holds=other_base,
        trained=True,
    ),
    Hazard(
        stages=(TTT,),
        keys=("model.position.reference", "ttt.pack"),
        what="the rotary base follows the length of a row, and packed sequences learn in longer ones than are scored",
        effect="learned by another base than scored; not measured",
        source="spec: model 1.2",
        holds=base_of_packed_rows,
    ),
    Hazard(
        stages=(TTT,),
        keys=("model.key_offset", "ttt"),
        what="steps of SGD make a model with key offset worse",
        effect="+0.02",
        source="PR #1512",
        holds=offset_keys_learn,
    ),
    Hazard(
        stages=(TTT,),
        keys=("model.loop", "ttt.lr"),
        what="looped weights get the gradients of all their passes at once",
        effect="+0.645 at rate 0.005 on one stack; 0.005 in three passes, less than this, went well in PR #1493",
        source="spec: model 5.3, evaluation 9.1",
        holds=looped_weights_learn,
    ),
    Hazard(
        stages=(TTT,),
        keys=("model.precision", "ttt.method"),
        what="adapters beside weights that act as two or three values",
        effect="called incompatible, without a figure",
        source="ternary record (PR #640)",
        holds=few_values_adapted,
    ),
)
"""Every combination that is known to hurt; of some, only one size."""
