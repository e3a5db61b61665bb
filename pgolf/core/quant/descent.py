"""What GPTQ's single pass leaves: codes by coordinate descent, row scales by least squares (spec: quantization 3.4)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pgolf.core.quant.qtensor import QTensor


def swept(made: QTensor, weight_RC: Tensor, hessian_CC: Tensor, limit: int, block: int) -> QTensor:
    """Codes after a sweep over the columns, in which every code goes to the best value that it can have beside all
    others: none raises tr(E H E^T). With G = E H a column's codes change by round(G_c / (H_cc s)).
    """
    codes, scale = made.codes.float(), made.scale.float()
    slope = (weight_RC - codes * scale[:, None]) @ hessian_CC
    for start in range(0, codes.size(1), block):
        stop = min(start + block, codes.size(1))
        shifts = torch.zeros_like(codes[:, start:stop])
        for column in range(start, stop):
            felt = hessian_CC[column, column]
            if felt > 0:
                old = codes[:, column].clone()
                codes[:, column] = (old + (slope[:, column] / (felt * scale)).round()).clamp(-limit, limit)
                shifts[:, column - start] = (codes[:, column] - old) * scale
                slope[:, column:stop] -= torch.outer(shifts[:, column - start], hessian_CC[column, column:stop])
        slope[:, stop:] -= shifts @ hessian_CC[start:stop, stop:]
    return replace(made, codes=codes.to(torch.int8))


def refitted(made: QTensor, weight_RC: Tensor, hessian_CC: Tensor) -> QTensor:
    """The same codes with the scale of each row at which tr(E H E^T) is least, s = q H w^T / q H q^T, the nearest
    float16. A row without a positive one keeps its own.
    """
    codes = made.codes.float()
    felt = (codes @ hessian_CC).double()
    best = ((felt * weight_RC).sum(1) / (felt * codes).sum(1)).half()
    return replace(made, scale=best.where((best > 0) & best.isfinite(), made.scale))


def descended(quantizer: Any, made: QTensor, weight_RC: Tensor, hessian_CC: Tensor | None) -> QTensor:
    """GPTQ's codes after as many sweeps as the quantizer asks for, and with scales made anew if it does; as they are
    where there was no usable H.
    """
    if hessian_CC is None or made.warning:
        return made
    limit = 2 ** (made.bits - 1) - 1
    for _ in range(quantizer.sweeps):
        made = swept(made, weight_RC.float(), hessian_CC.float(), limit, quantizer.block)
    return refitted(made, weight_RC, hessian_CC.float()) if quantizer.refit else made
