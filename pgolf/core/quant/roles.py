"""A quantizer for each role of tensors: three values for MLPs, say, GPTQ for attention, float8 for tables."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import ATTN, EMBED, HEAD, MLP, ParamSpec
from pgolf.core.quant.base import Checked, Quantizer
from pgolf.core.quant.casts import Int8Rows, KeepFloats
from pgolf.core.quant.gptq import Gptq
from pgolf.core.quant.gptq_lqer import Lqer
from pgolf.core.quant.sdclip import Grid, SdClip

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from pgolf.core.model.gpt import GPT
    from pgolf.core.quant.curvature import Calibration
    from pgolf.core.quant.qtensor import QTensor
    from pgolf.core.shards import TrainStream

CALIBRATION_KEYS = ("calibration_source", "calibration_seqs", "calibration_seq_len", "calibration_batch", "sequential")


def of_one_role(quantizer: SdClip, role: str) -> SdClip:
    """A quantizer whose own grid is that of its only role. ConfigError if it states grids by role."""
    usual, grids = type(quantizer)(), dict[str, Any]()
    for name in (EMBED, ATTN, MLP, HEAD):
        grids[name] = Grid()
        if getattr(quantizer, name) not in (Grid(), getattr(usual, name)):
            fix = f"set quant.{role}.bits, step_ratio, k or theta"
            raise ConfigError("a quantizer of one role has one grid", f"{role}.{name}", fix)
    return replace(quantizer, **grids)


@dataclass(frozen=True, kw_only=True)
class ByRole(Checked):
    """Every role of tensors has a quantizer of its own, with the keys that it has alone: `quant.mlp.method=ternary`,
    `quant.mlp.group=64`. One with a grid takes its section's bits, step_ratio, k and theta.
    """

    embed: Quantizer = Gptq(bits=8, k=20.0)
    """Token embeddings; bits=8 and k=20 unless another method is chosen."""
    attn: Quantizer = Gptq()
    """Attention matrices."""
    mlp: Quantizer = Gptq()
    """MLP matrices."""
    head: Quantizer = Gptq(bits=8, k=20.0)
    """An untied output matrix; bits=8 and k=20 unless another method is chosen."""
    control: Quantizer = KeepFloats()
    """Gains, scales, gates; float or int8_rows."""

    def __post_init__(self) -> None:
        for role, one in self.quantizers().items():
            if isinstance(one, ByRole | Lqer):
                fix = "set gptq; quant.method=lqer has grids by role, and quant.gates"
                raise ConfigError("a role's quantizer looks at one tensor at a time", f"{role}.method", fix)
            for key in ("max_gap", "tune"):
                if getattr(one, key) != getattr(Checked, key):
                    raise ConfigError("this is the whole model's", f"{role}.{key}", f"set quant.{key}")
            if role != "control" and getattr(one, "control_dtype", "float32") != "float32":
                raise ConfigError("a matrix is no control tensor", f"{role}.control_dtype", "set quant.control's")
            if isinstance(one, SdClip):
                object.__setattr__(self, role, of_one_role(one, role))
        if type(self.control) not in (KeepFloats, Int8Rows):
            raise ConfigError("control tensors are float or int8_rows", "control.method")
        for key in CALIBRATION_KEYS:
            if len({getattr(one, key) for one in compensating(self)}) > 1:
                raise ConfigError("all roles are calibrated with the same tokens", key, "set it alike for all of them")

    def quantizers(self) -> dict[str, Quantizer]:
        """The quantizer of each role."""
        return {"embed": self.embed, "attn": self.attn, "mlp": self.mlp, "head": self.head, "control": self.control}

    def step_over_sigma(self, spec: ParamSpec) -> float:
        """That of the role's quantizer."""
        return self.quantizers()[spec.role].step_over_sigma(spec)

    def prepare(self, model: "GPT", stream: "TrainStream", progress: "Callable[[int], None]") -> "dict[str, Any]":
        """One calibration for all roles that need one."""
        known = dict[str, Any]()
        for collect in CALIBRATED.values():
            known |= collect(self, model, stream, progress)
        return known

    def quantize(self, spec: ParamSpec, weight: "Tensor", known: Any) -> "QTensor | Tensor":
        """As the role's quantizer does."""
        return self.quantizers()[spec.role].quantize(spec, weight, known)


def compensating(quantizer: Any) -> list[Gptq]:
    """Those that need a calibration, the same for all, among a quantizer and its quantizers by role."""
    found = quantizer.quantizers().values() if isinstance(quantizer, ByRole) else [quantizer]
    return [one for one in found if isinstance(one, Gptq)]


def known_by_role(
    quantizer: ByRole, specs: "Iterable[ParamSpec]", weights: "Mapping[str, Tensor]", found: "Calibration"
) -> "dict[str, Any]":
    """What the roles' quantizers need to know of each parameter."""
    known, every = dict[str, Any](found.inputs), list(specs)
    for role, one in quantizer.quantizers().items():
        if isinstance(one, Gptq) and one.planned:
            known |= one.plan([spec for spec in every if spec.role == role], weights, found)
    return known


def calibrated_roles(
    quantizer: ByRole, model: "GPT", stream: "TrainStream", progress: "Callable[[int], None]"
) -> "dict[str, Any]":
    """The same, calibrated as the first of them asks for."""
    from pgolf.core.model.config import param_specs
    from pgolf.core.quant.calibration import collect_hessians
    from pgolf.core.quant.curvature import Calibration, collect_curvature

    if not (wanting := compensating(quantizer)):
        return {}
    batches = wanting[0].batches(model, stream)
    if any(one.planned for one in wanting):
        found = collect_curvature(model, batches, progress, any(one.couple == "rows" for one in wanting))
    else:
        found = Calibration(inputs=collect_hessians(model, batches, progress))
    return known_by_role(quantizer, param_specs(model.config), model.state_dict(), found)


CALIBRATED: "dict[str, Callable[..., dict[str, Any]]]" = {"gptq": calibrated_roles}
"""How methods that need a calibration get it; a script without them leaves this out."""
