"""Full-Hessian GPTQ on SDClip's grid (arXiv:2210.17323, PR #1394; spec: quantization 3)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgolf.core.errors import ConfigError
from pgolf.core.model.params import CONTROL, ParamSpec
from pgolf.core.quant.base import keep_float, round_codes
from pgolf.core.quant.sdclip import SdClip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import torch
    from torch import Tensor

    from pgolf.core.model.gpt import GPT
    from pgolf.core.quant.curvature import Calibration
    from pgolf.core.quant.grid import TrellisTensor
    from pgolf.core.quant.qtensor import QTensor
    from pgolf.core.quant.steps import Planned
    from pgolf.core.shards import TrainStream

    Factor = tuple[Tensor, Tensor, Tensor]


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


def factorise(hessian_CC: "Tensor", damping: float) -> "Factor | None":
    """H ready for the solve: U as of `inverse_factor`, of the columns in descending order of H's diagonal, that order
    (C,), and which columns (C,) have inputs that are always zero. None if H cannot be factorised.
    """
    import torch

    hessian = hessian_CC.float().clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1.0
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    upper = inverse_factor(hessian[order][:, order], damping)
    return None if upper is None else (upper, order, dead)


def compensate(
    weight_RC: "Tensor", factor: "Factor", block: int, code: "Callable[[Tensor, int], tuple[Tensor, Tensor]]"
) -> "Tensor":
    """int8 codes (R,C), column by column; each column's rounding error is pushed onto the later ones. `code` gives
    codes and values (R,) of what one column has become and its place in the order. Dead columns are taken as zero.
    """
    import torch

    (upper, order, dead), work = factor, weight_RC.float().clone()
    work[:, dead] = 0.0
    work = work[:, order]
    codes = torch.empty_like(work)
    for start in range(0, work.size(1), block):
        stop = min(start + block, work.size(1))
        errors = torch.empty_like(work[:, start:stop])
        for column in range(start, stop):
            codes[:, column], value = code(work[:, column], column)
            error = (work[:, column] - value) / upper[column, column]
            work[:, column:stop] -= torch.outer(error, upper[column, column:stop])
            errors[:, column - start] = error
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    result = torch.empty_like(codes)
    result[:, order] = codes
    return result.to(torch.int8)


def gptq_codes(
    weight_RC: "Tensor", hessian_CC: "Tensor", scale_R: "Tensor", limit: int, damping: float, block: int
) -> "Tensor | None":
    """int8 codes (R,C) that minimise tr(E H E^T) greedily; None if H cannot be factorised."""
    factor, scale = factorise(hessian_CC, damping), scale_R.float()

    def nearest(column_R: "Tensor", place: int) -> "tuple[Tensor, Tensor]":
        codes = (column_R / scale).round().clamp(-limit, limit)
        return codes, codes * scale

    return None if factor is None else compensate(weight_RC, factor, block, nearest)


def codes_by_kernel(weight: "Tensor", plan: "Planned", block: int, states: int) -> "TrellisTensor":
    """A tensor rounded along a trellis that a kernel searches."""
    from pgolf.core.quant.trellis_kernel import kernel_codes

    return kernel_codes(weight, plan, block, states)


OTHER_SEARCHES = {"triton": codes_by_kernel}
"""What rounds along a trellis under values of `search` besides torch; a script has those it asks for."""


def check_search(quantizer: Any, device: "torch.device") -> None:
    """SetupError when a kernel is to search trellises, for all roles or for one, on a device where it cannot run."""
    if any(getattr(one, "search", "") == "triton" for one in (quantizer, *vars(quantizer).values())):
        from pgolf.core.quant.trellis_kernel import kernel_device

        kernel_device(device)


def descent(quantizer: Any, made: "QTensor", weight: "Tensor", known: Any) -> "QTensor":
    """Codes and scales as coordinate descent and least squares leave them."""
    from pgolf.core.quant.descent import descended

    return descended(quantizer, made, weight, known)


POLISHES = {"descent": descent}
"""What may be done to GPTQ's codes of a tensor; a script has it if a quantizer asks for it."""


NEEDS = {"triton": check_search}
"""What to look at before training, by what searches trellises; a script looks at what it asks for."""


@dataclass(frozen=True, kw_only=True)
class Gptq(SdClip):
    """SDClip's grid with error compensation by H = X^T X from training tokens; beyond the records, steps by the loss's
    curvature and rounding along a trellis. Source: PR #1394, PR #1855; spec: quantization 9.
    """

    steps: str = "sigma"
    """What a row's step follows: sigma (its standard deviation), or curvature (the loss's curvature too)."""
    rounding: str = "nearest"
    """How a column is rounded: nearest, or trellis (a quarter less error at the same entropy)."""
    states: int = 64
    """States of the trellis: 4, 8, 32, 64 or 256."""
    search: str = "torch"
    """What searches the trellis in a submission's script: torch, or triton (a kernel, which needs a CUDA device).
    `pgolf quantize` takes triton too, and for torch a search compiled for the CPU.
    """
    couple: str = "none"
    """Whether later rows make up for the errors of earlier ones, as columns do: none, or rows (along a trellis, by the
    curvature between outputs; arXiv:2505.22988).
    """
    bits_per_weight: float = 0.0
    """Bits per weight at which theta is found, by order-0 entropy of the tensors rounded to nearest, where steps lie on
    the logarithmic grid (steps = curvature or rounding = trellis); 0 takes theta.
    """
    damping: float = 0.01
    """Share of the mean diagonal added to H."""
    sweeps: int = 0
    """Sweeps over the columns after the solve, each code going to the best value beside all others (with steps = sigma
    and rounding = nearest). They take 2 to 4 % of the layers' loss.
    """
    refit: bool = False
    """Whether row scales are then made anew by least squares under H, for the same codes (with steps = sigma and
    rounding = nearest).
    """
    block: int = 128
    """Columns solved before the rest is updated; changes the speed, not the result."""
    sequential: bool = False
    """Whether matrices are quantized in the order in which they act, each moved first by what makes up for the errors
    of those before it (arXiv:2504.02692). It takes a forward pass over the calibration's first 131,072 tokens. Effect:
    a quarter less loss.
    """
    calibration_source: str = "train"
    """Where calibration tokens come from: train (the training split), or self (text that the model makes up)."""
    calibration_seqs: int = 64
    """Sequences the Hessians are collected from."""
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
        if self.sweeps < 0:
            raise ConfigError(f"sweeps must not be negative, not {self.sweeps}", "sweeps")
        for key, known in (
            ("steps", ("sigma", "curvature")),
            ("rounding", ("nearest", "trellis")),
            ("search", ("torch", "triton")),
            ("couple", ("none", "rows")),
            ("calibration_source", ("train", "self")),
            ("states", (4, 8, 32, 64, 256)),
        ):
            if getattr(self, key) not in known:
                raise ConfigError(f"{getattr(self, key)!r} must be one of {', '.join(map(str, known))}", key)
        if self.couple == "rows" and self.rounding != "trellis":
            raise ConfigError("rows are coupled along a trellis", "couple", "set rounding=trellis")
        if self.search == "triton" and self.rounding != "trellis":
            raise ConfigError("the kernel searches a trellis", "search", "set rounding=trellis")
        if self.search == "triton" and self.couple == "rows":
            raise ConfigError("the kernel knows no coupled rows", "search", "set couple=none or search=torch")
        for key in ("sweeps", "refit"):
            if getattr(self, key) and self.planned:
                reason = "a trellis couples codes" if self.rounding == "trellis" else "scales lie on a grid"
                raise ConfigError(f"{reason}: this works on steps by row", key, "set steps=sigma and rounding=nearest")
        if self.bits_per_weight < 0 or (self.bits_per_weight and not self.planned):
            raise ConfigError("it must go with steps = curvature or rounding = trellis", "bits_per_weight")

    @property
    def planned(self) -> bool:
        """Whether steps lie on the logarithmic grid, and are planned for all parameters together."""
        return self.steps == "curvature" or self.rounding == "trellis"

    def step_over_sigma(self, spec: ParamSpec) -> float:
        """The step that a normal distribution of unit width has at the rate asked for, else that of the role."""
        if self.bits_per_weight and spec.role != CONTROL:
            return float((2 * math.pi * math.e) ** 0.5 * 2**-self.bits_per_weight)
        return super().step_over_sigma(spec)

    def batches(
        self, model: "GPT", stream: "TrainStream", rank: int = 0, ranks: int = 1
    ) -> "Iterable[tuple[int, Tensor]]":
        """The calibration batches that a rank takes, (B,T) ids each, with their numbers among all. Text of the model's
        own is made here and now, before anything listens to its inputs.
        """
        import torch

        size, length = self.calibration_batch, self.calibration_seq_len
        if self.calibration_source == "self":
            from pgolf.core.quant.self_text import made_up

            sizes = [min(size, self.calibration_seqs - start) for start in range(0, self.calibration_seqs, size)]
            return [(n, made_up(model, sizes[n], length, n)) for n in range(rank, len(sizes), ranks)]
        ids = torch.from_numpy(stream.take(self.calibration_seqs * length)).view(-1, length).split(size)
        device = next(model.parameters()).device
        return ((number, batch.to(device)) for number, batch in enumerate(ids) if number % ranks == rank)

    def prepare(self, model: "GPT", stream: "TrainStream", progress: "Callable[[int], None]") -> "dict[str, Any]":
        """H per matrix, or where steps are planned, the plans."""
        if self.steps == "curvature" or self.rounding == "trellis":
            from pgolf.core.model.config import param_specs
            from pgolf.core.quant.curvature import collect_curvature

            found = collect_curvature(model, self.batches(model, stream), progress, self.couple == "rows")
            return self.plan(param_specs(model.config), model.state_dict(), found)
        from pgolf.core.quant.calibration import collect_hessians

        return collect_hessians(model, self.batches(model, stream), progress)

    def plan(
        self, specs: "Iterable[ParamSpec]", weights: "Mapping[str, Tensor]", found: "Calibration"
    ) -> "dict[str, Planned]":
        """What each parameter is to be quantized with."""
        from pgolf.core.quant.steps import plan_steps

        kept = [spec for spec in specs if spec.role != CONTROL]
        tensors = {spec.name: weights[spec.name].detach().cpu().float() for spec in kept}

        def plain(role: str) -> tuple[int, float]:
            bits, ratio = self.grid(role)
            return bits, ratio / (self.theta * self.own(role).theta)

        plans = plan_steps(kept, tensors, found, plain, self.damping, self.steps == "curvature", self.couple == "rows")
        return self.scaled(kept, tensors, plans)

    def scaled(
        self, specs: "Sequence[ParamSpec]", weights: "Mapping[str, Tensor]", plans: "Mapping[str, Planned]"
    ) -> "dict[str, Planned]":
        """Plans with every theta in them."""
        from pgolf.core.quant.steps import bits_at, solve_theta

        found = {spec.name: plans[spec.name].times(self.own(spec.role).theta) for spec in specs}
        theta = self.theta
        if self.bits_per_weight:
            wanted = self.bits_per_weight * sum(spec.numel for spec in specs)
            theta = solve_theta(lambda theta: bits_at(found, weights, theta), wanted)
        return {name: plan.times(theta) for name, plan in found.items()}

    def quantize(self, spec: ParamSpec, weight: "Tensor", known: Any) -> "QTensor | Tensor":
        """GPTQ codes; plain rounding where there is no usable Hessian."""
        if spec.role == CONTROL:
            return keep_float(spec, weight, self.control_dtype)
        if self.rounding == "trellis":
            from pgolf.core.quant.trellis_codes import trellis_codes

            for name, coder in OTHER_SEARCHES.items():
                if self.search == name:
                    return coder(weight, known, self.block, self.states)
            return trellis_codes(weight, known, self.block, self.states)
        if self.steps == "curvature":
            from pgolf.core.quant.steps import grid_codes

            return grid_codes(weight, known, self.block)
        from pgolf.core.quant.qtensor import QTensor

        limit, scale = self.scales(spec, weight)
        bits, warning = self.grid(spec.role)[0], ""
        codes = None if known is None else gptq_codes(weight, known, scale, limit, self.damping, self.block)
        if codes is None:
            codes, warning = round_codes(weight, scale, limit), "rounded to nearest"
        made = QTensor(codes, scale, bits, warning)
        for polish in POLISHES.values():
            made = polish(self, made, weight, known)
        return made
