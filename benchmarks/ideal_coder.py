"""What codes would take under an ideal adaptive coder, the same for every quantizer, so that quantizers can be compared
at equal bytes whatever coder comes after them.

Codes of a role share the best of four adaptive order-0 models (no classes; 16 column classes; 8 row classes; both),
whose length is exact for the Krichevsky-Trofimov estimator in any order; classes are told by 4 and 3 bits. A trellis
has one table for each parity, which the decoder knows. Scales: 8 bits for a float16 one, else the adaptive length of
its index.
"""

import math
from typing import Any

import numpy as np
from torch import Tensor

from pgolf.core.model.params import CONTROL
from pgolf.core.quant.corrected import Factors
from pgolf.core.quant.grid import StepTensor, TrellisTensor
from pgolf.core.quant.qtensor import QTensor
from pgolf.core.quant.trellis import walk

COLUMN_CLASSES, ROW_CLASSES = 16, 8


def adaptive_bits(counts: np.ndarray) -> float:
    """Length of sequences with these counts (contexts, symbols), each coded adaptively by the estimator n + 1/2."""
    from scipy.special import gammaln

    total, symbols = counts.sum(1), counts.shape[1]
    lengths = gammaln(total + symbols / 2) - gammaln(symbols / 2) - (gammaln(counts + 0.5) - gammaln(0.5)).sum(1)
    return float(lengths[total > 0].sum() / math.log(2))


def integer_bits(values: np.ndarray) -> float:
    """Adaptive length of integers in one context."""
    shifted = values.astype(np.int64).ravel()
    return adaptive_bits(np.bincount(shifted - shifted.min())[None].astype(float))


def ranks(values: list[np.ndarray], classes: int) -> list[np.ndarray]:
    """The class of every number among all, in classes of equal size."""
    joined = np.concatenate(values)
    order = np.argsort(np.argsort(joined, kind="stable"), kind="stable") * classes // len(joined)
    return np.split(order, np.cumsum([len(part) for part in values])[:-1])


def role_bits(matrices: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Bits of the codes of a role under the best of four models, and under that without classes; (codes, parities)."""
    low = min(int(codes.min()) for codes, _ in matrices)
    symbols = max(int(codes.max()) for codes, _ in matrices) - low + 1
    sizes = [np.abs(codes + parity / 2) for codes, parity in matrices]
    columns = ranks([size.mean(0) for size in sizes], COLUMN_CLASSES)
    rows = ranks([size.mean(1) for size in sizes], ROW_CLASSES)
    lengths = []
    for by_column, by_row in ((0, 0), (1, 0), (0, 1), (1, 1)):
        counts = np.zeros(2 * COLUMN_CLASSES * ROW_CLASSES * symbols)
        for (codes, parity), column, row in zip(matrices, columns, rows):
            context = (column[None] * by_column + COLUMN_CLASSES * row[:, None] * by_row) * 2 + parity
            counts += np.bincount((context * symbols + codes - low).ravel(), minlength=len(counts))
        told = sum(4 * by_column * codes.shape[1] + 3 * by_row * codes.shape[0] for codes, _ in matrices)
        lengths.append(adaptive_bits(counts.reshape(-1, symbols)) + told)
    return min(lengths), lengths[0]


def ideal_bytes(specs: Any, tensors: dict[str, Any], factors: dict[str, Factors]) -> tuple[float, float]:
    """Bytes of a quantized model, and bits per weight of its codes without classes."""
    matrices: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    indices: dict[tuple[str, str], list[np.ndarray]] = {}
    bits = 0.0
    for spec in specs:
        tensor: QTensor | Tensor = tensors[spec.name]
        if spec.role == CONTROL or not isinstance(tensor, QTensor):
            bits += 16 * spec.numel
            continue
        codes = tensor.codes.numpy().astype(np.int64)
        parity = np.zeros_like(codes)
        if isinstance(tensor, TrellisTensor):
            parity = walk(tensor.codes, 1 << int(tensor.memory)).numpy() & 1
        matrices.setdefault(spec.role, []).append((codes, parity))
        if isinstance(tensor, StepTensor):
            indices.setdefault((spec.role, "rows"), []).append(tensor.scale.numpy())
            if bool(tensor.columns.any()):
                indices.setdefault((spec.role, "columns"), []).append(tensor.columns.numpy())
        else:
            bits += 8 * tensor.scale.numel()
    found = [role_bits(group) for group in matrices.values()]
    weights = sum(codes.size for group in matrices.values() for codes, _ in group)
    bits += sum(best for best, _ in found) + sum(integer_bits(np.concatenate(group)) for group in indices.values())
    for one in factors.values():
        bits += integer_bits(one.a_codes.numpy()) + integer_bits(one.b_codes.numpy())
        bits += 16 * (one.a_scale.numel() + one.b_scale.numel())
    return bits / 8, sum(plain for _, plain in found) / weights
