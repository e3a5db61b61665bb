"""A complete run as a value: its `repr` is its source code, which the submission script carries."""

from dataclasses import dataclass

from pgolf.core.codecs.base import Codec
from pgolf.core.codecs.zlib import Zlib
from pgolf.core.errors import ConfigError
from pgolf.core.evals.base import EvalMethod, TttMethod
from pgolf.core.evals.plain import PlainEval
from pgolf.core.model.config import ModelConfig
from pgolf.core.model.parts.by_document import ByDocument
from pgolf.core.model.parts.multi_token import TokenHeads
from pgolf.core.model.parts.rope import Rope
from pgolf.core.model.parts.whole_rows import WholeRows
from pgolf.core.model.parts.window import PatternWindow, SlidingWindow
from pgolf.core.model.slots import Absent, Part
from pgolf.core.optim.config import OptimConfig
from pgolf.core.quant.base import Quantizer
from pgolf.core.quant.roles import compensating
from pgolf.core.quant.row_quantile import RowQuantile
from pgolf.core.quant.variants import CoarseLayers
from pgolf.core.train.config import TrainConfig
from pgolf.core.train.growth import GrowingWindow
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
        in_turn = any(one.sequential for one in compensating(self.quant))
        if in_turn and not isinstance(self.model.precision, Absent):
            raise ConfigError(
                "weights that model.precision makes are not quantized in turn",
                "quant.sequential",
                "set it to false; quant.method=ternary or binary loses nothing of such matrices",
            )
        heads, rows = self.model.multi_token, self.train.seq_len
        rows = self.train.length_schedule.length(0.0, rows) or rows
        if isinstance(heads, TokenHeads) and heads.extra_tokens >= rows:
            raise ConfigError(
                f"a row of {rows} tokens has none that lies {heads.extra_tokens} after the next",
                "model.multi_token.extra_tokens",
                "set it below train.seq_len, and below the rows that train.length_schedule begins with",
            )
        if isinstance(self.train.loader, DocumentLoader) and isinstance(self.model.documents, WholeRows):
            raise ConfigError(
                "rows of uncut documents are as long as a micro-batch; attention must stop at documents' ends",
                "train.loader",
                "set model.documents=by_document, or choose another loader",
            )

    @property
    def row_tokens(self) -> int:
        """Tokens per row in training."""
        packed = isinstance(self.train.loader, DocumentLoader)
        return self.train.micro_batch_tokens if packed else self.train.seq_len

    @property
    def attended_tokens(self) -> int:
        """The longest stretch of a row that attention sees in training, windows apart."""
        documents = self.model.documents
        limit = documents.max_tokens if isinstance(documents, ByDocument) else 0
        return min(self.row_tokens, limit or self.row_tokens)

    def check_layers(self) -> None:
        """ConfigError where the quantizer names layers that the model lacks. Files are not asked: it had no effect."""
        for name, one in {"": self.quant, **vars(self.quant)}.items():
            if isinstance(one, CoarseLayers) and max(one.numbers, default=0) >= self.model.num_layers:
                raise ConfigError(
                    f"the model has {self.model.num_layers} layers, numbered from 0; there is no {max(one.numbers)}",
                    ".".join(part for part in ("quant", name, "layers") if part),
                )

    def check_training(self) -> None:
        """ConfigError where lengths of model and training do not go together. Files are not asked: an artifact does not
        say how its model was trained, and scores may have another length.
        """
        rows, seen, train, model = self.row_tokens, self.attended_tokens, self.train, self.model
        uncut, position = rows > train.seq_len, model.position
        if uncut and isinstance(position, Rope) and 0 < position.reference < rows:
            raise ConfigError(
                f"the rotary base grows with the length of a row, and rows of uncut documents have {rows:,} tokens: "
                "training would use another base than scores",
                "model.position.reference",
                "set it to 0, or choose another train.loader",
            )
        bound = "train.micro_batch_tokens" if uncut else "train.seq_len"
        if seen < rows:
            bound = "model.documents.max_tokens"
        limits = dict[str, int]()
        if isinstance(model.window, SlidingWindow | PatternWindow):
            limits["model.window.tokens"] = model.window.tokens
        if isinstance(schedule := train.window_schedule, GrowingWindow):
            limits |= {f"train.window_schedule.{key}": getattr(schedule, key) for key in ("first", "last")}
        for key, tokens in limits.items():
            if tokens > seen:
                what = f"a window of {tokens:,} tokens is larger than the {seen:,} that attention sees ({bound})"
                raise ConfigError(what, key, "lower it to that, or leave it out")
