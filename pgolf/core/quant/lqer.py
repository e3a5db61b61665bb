"""Low-rank correction of quantization errors (LQER, arXiv:2402.02446; PR #1797, #1855; spec: quantization 4)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pgolf.core.quant.corrected import GROUP, Factors, corrected
from pgolf.core.quant.gptq import factorise
from pgolf.core.quant.gptq_lqer import Lqer
from pgolf.core.quant.qtensor import QTensor, QuantizedModel
from pgolf.core.quant.steps import Planned

Root = tuple[Tensor, Tensor]


def low_rank(error_RC: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest matrix of that rank as a product: U S (R,r) and V^T (r,C)."""
    left, values, right = torch.linalg.svd(error_RC.float(), full_matrices=False)
    return left[:, :rank] * values[:rank], right[:rank]


def scaled(values: Tensor, largest: float, low: int, high: int) -> tuple[Tensor, Tensor]:
    """int8 codes of each row in [low, high] and its float16 scale max|row| / largest, which rounds the codes."""
    scale = (values.abs().amax(dim=1) / largest).clamp_min(1e-10).half().clamp_min(2.0**-24)
    return (values / scale.float()[:, None]).round().clamp(low, high).to(torch.int8), scale


def pack_asym(left_Rr: Tensor, right_rC: Tensor) -> Factors:
    """2 bits and one scale for the left factor, 4 bits and a scale for each 64 values of the right one (PR #1855); a
    right factor that 64 does not divide has one scale for each row.
    """
    a_codes, a_scale = scaled(left_Rr.reshape(1, -1), 1.5, -2, 1)
    groups = right_rC.reshape(-1, GROUP) if right_rC.numel() % GROUP == 0 else right_rC
    b_codes, b_scale = scaled(groups, 7.5, -8, 7)
    return Factors(a_codes.view(left_Rr.shape), a_scale, b_codes.view(right_rC.shape), b_scale)


def pack_rows(left_Rr: Tensor, right_rC: Tensor, bits: int) -> Factors:
    """The same width for both, one scale for each row."""
    limit = 2 ** (bits - 1) - 1
    return Factors(*scaled(left_Rr, limit, -limit, limit), *scaled(right_rC, limit, -limit, limit))


def root_of(known: Any, damping: float) -> Root | None:
    """L and L^-1 with L L^T the damped H that a quantizer knows of a parameter, (C,C) float32 each, rows of L being 0
    where columns are dead; None where there is no usable H.
    """
    if known is None:
        return None
    factor = known.factor if isinstance(known, Planned) else factorise(known, damping)
    if factor is None:
        return None
    upper, order, dead = factor
    root, inverse = torch.empty_like(upper), torch.empty_like(upper)
    root[order] = torch.linalg.solve_triangular(upper, torch.eye(len(upper)), upper=True)
    root[dead], inverse[:, order] = 0.0, upper
    return root, inverse


def correction(error_RC: Tensor, quantizer: Lqer, root: Root | None) -> Factors:
    """The low-rank part of an error (R,C) in integers, nearest to it by norm, or with a root of H by tr(E H E^T)."""
    left, right = low_rank(error_RC @ root[0] if root else error_RC, quantizer.rank)
    return quantizer.packed(left, right @ root[1] if root else right)


def gain_per_bit(error_RC: Tensor, factors: Factors, quantizer: Lqer, root: Root) -> float:
    """By how much a correction lowers tr(E H E^T), for each bit of its codes."""
    before, after = ((error @ root[0]).square().sum() for error in (error_RC, error_RC - factors.product()))
    left_bits = 4 if quantizer.packing == "sym4" else 2
    return float(before - after) / (left_bits * factors.a_codes.numel() + 4 * factors.b_codes.numel())


def with_corrections(
    quantizer: Lqer, model: QuantizedModel, weights: Mapping[str, Tensor], known: Mapping[str, Any]
) -> QuantizedModel:
    """The model with corrections for those tensors that want one most."""
    found, changed = [], dict(model.tensors)
    for name, tensor in model.tensors.items():
        if isinstance(tensor, QTensor) and min(tensor.codes.shape) > quantizer.rank:
            error = weights[name].float() - tensor.dequantize()
            if one := quantizer.wanted(error, known.get(name)):
                found.append((-one[0], name, tensor, error, one[1]))
    for _, name, tensor, error, root in sorted(found, key=lambda one: one[:2])[: quantizer.top]:
        changed[name] = corrected(tensor, correction(error, quantizer, root))
    return QuantizedModel(model.config, changed)
