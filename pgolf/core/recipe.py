"""A complete run as a value: its `repr` is its source code, which the submission script carries."""

from dataclasses import dataclass

from pgolf.core.codecs.base import Codec
from pgolf.core.codecs.zlib import Zlib
from pgolf.core.errors import ConfigError
from pgolf.core.evals.base import EvalMethod, TttMethod
from pgolf.core.evals.plain import PlainEval
from pgolf.core.model.config import ModelConfig
from pgolf.core.model.parts.whole_rows import WholeRows
from pgolf.core.model.slots import Absent, Part
from pgolf.core.optim.config import OptimConfig
from pgolf.core.quant.base import Quantizer
from pgolf.core.quant.row_quantile import RowQuantile
from pgolf.core.train.config import TrainConfig
from pgolf.core.train.loaders import DocumentLoader
from pgolf.core.ttt.chunk import ChunkTtt


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a submission computes; the defaults are the naive baseline."""

    model: ModelConfig = ModelConfig()
    """Architecture."""
    optim: OptimConfig = OptimConfig()
    """Optimizers and their schedules."""
    train: TrainConfig = TrainConfig()
    """Batches, budget, checkpoints."""
    quant: Quantizer = RowQuantile()
    """Float weights to integer codes."""
    compress: Codec = Zlib()
    """Codes to bytes."""
    eval: EvalMethod = PlainEval()
    """Scoring with fixed weights."""
    ttt: TttMethod = ChunkTtt()
    """Scoring with test-time training."""

    def __post_init__(self) -> None:
        if isinstance(self.train.qat, Part) and not isinstance(self.model.precision, Absent):
            raise ConfigError(
                "weights that model.precision makes have no other quantization in training",
                "train.qat",
                "set train.qat=none",
            )
        if isinstance(self.train.loader, DocumentLoader) and isinstance(self.model.documents, WholeRows):
            raise ConfigError(
                "rows of uncut documents are as long as a micro-batch; attention must stop at documents' ends",
                "train.loader",
                "set model.documents=by_document, or choose another loader",
            )
