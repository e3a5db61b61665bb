"""Full-Hessian GPTQ on SDClip's grid (arXiv:2210.17323, PR #1394; spec: quantization 3)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import CONTROL, ParamSpec
from pgolf.core.quant.base import keep_float, round_codes
from pgolf.core.quant.sdclip import SdClip

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from pgolf.core.model.gpt import GPT
    from pgolf.core.quant.qtensor import QTensor
    from pgolf.core.shards import TokenStream


def inverse_factor(hessian_CC: "Tensor", damping: float) -> "Tensor | None":
    """Upper-triangular U with U^T U = H^-1, in float32 from a float64 factorisation; None if H stays indefinite.

    Reversing rows and columns turns a lower Cholesky factor of H into an upper R with R R^T = H; then U = R^-1.
    The damping (a share of the mean diagonal) is raised tenfold at most three times.
    """
    import torch

    work = hessian_CC.double()
    mean = work.diagonal().mean()
    eye = torch.eye(len(work), dtype=work.dtype, device=work.device)
    for attempt in range(4):
        damped = work + eye * (damping * 10**attempt * mean)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not int(failed):
            upper = torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
            if bool(upper.isfinite().all()):
                return upper.float()
    return None


def gptq_codes(
    weight_RC: "Tensor", hessian_CC: "Tensor", scale_R: "Tensor", limit: int, damping: float, block: int
) -> "Tensor | None":
    """int8 codes (R,C) that minimise tr(E H E^T) greedily, column by column; None if H cannot be factorised.

    Columns go in descending order of H's diagonal; each column's rounding error is pushed onto the later ones. Columns
    whose input is always zero get code zero.
    """
    import torch

    hessian, work = hessian_CC.float().clone(), weight_RC.float().clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1.0
    work[:, dead] = 0.0
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    upper = inverse_factor(hessian[order][:, order], damping)
    if upper is None:
        return None
    work, scale = work[:, order], scale_R.float()
    codes = torch.empty_like(work)
    for start in range(0, work.size(1), block):
        stop = min(start + block, work.size(1))
        errors = torch.empty_like(work[:, start:stop])
        for column in range(start, stop):
            codes[:, column] = (work[:, column] / scale).round().clamp(-limit, limit)
            error = (work[:, column] - codes[:, column] * scale) / upper[column, column]
            work[:, column:stop] -= torch.outer(error, upper[column, column:stop])
            errors[:, column - start] = error
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    result = torch.empty_like(codes)
    result[:, order] = codes
    return result.to(torch.int8)


@dataclass(frozen=True, kw_only=True)
class Gptq(SdClip):
    """SDClip's grid with error compensation by H = X^T X from training tokens. Source: PR #1394, PR #1855."""

    damping: float = 0.01
    """Share of the mean diagonal added to H."""
    block: int = 128
    """Columns solved before the rest is updated; changes the speed, not the result."""
    calibration_seqs: int = 64
    """Training sequences the Hessians are collected from."""
    calibration_seq_len: int = 1024
    """Tokens per calibration sequence."""
    calibration_batch: int = 8
    """Calibration sequences per forward pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("block", "calibration_seqs", "calibration_seq_len", "calibration_batch"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} must be at least 1, not {getattr(self, key)}", key)
        if self.damping <= 0:
            raise ConfigError(f"damping must be above 0, not {self.damping}", "damping")

    def hessians(self, model: "GPT", stream: "TokenStream", progress: "Callable[[int], None]") -> "dict[str, Tensor]":
        """Collected from the next calibration_seqs training sequences of the stream, through the float model."""
        import torch

        from pgolf.core.quant.calibration import collect_hessians

        ids = torch.from_numpy(stream.take(self.calibration_seqs * self.calibration_seq_len)).view(
            -1, self.calibration_seq_len
        )
        device = next(model.parameters()).device
        return collect_hessians(model, (batch.to(device) for batch in ids.split(self.calibration_batch)), progress)

    def quantize(self, spec: ParamSpec, weight: "Tensor", hessian: "Tensor | None") -> "QTensor | Tensor":
        """GPTQ codes; plain rounding where there is no usable Hessian."""
        from pgolf.core.quant.qtensor import QTensor

        if spec.role == CONTROL:
            return keep_float(spec, weight)
        limit, scale = self.scales(spec, weight)
        bits, warning = self.grid(spec.role)[0], ""
        codes = None if hessian is None else gptq_codes(weight, hessian, scale, limit, self.damping, self.block)
        if codes is None:
            codes, warning = round_codes(weight, scale, limit), "no usable Hessian, rounded to nearest instead of GPTQ"
        return QTensor(codes, scale, bits, warning)
