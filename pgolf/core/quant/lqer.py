"""Low-rank correction of quantization errors (LQER, arXiv:2402.02446; PR #1797, #1855; spec: quantization 4)."""

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 64
"""Values of the right factor that share a scale."""


@dataclass(frozen=True)
class Factors:
    """A low-rank matrix in integers: int8 codes a (R,r) and b (r,C) with their float16 scales."""

    a_codes: Tensor
    a_scale: Tensor
    b_codes: Tensor
    b_scale: Tensor

    def product(self) -> Tensor:
        """float32 (R,C)."""
        grouped = self.b_codes.float().view(self.b_scale.numel(), -1) * self.b_scale.float().view(-1, 1)
        left = self.a_codes.float() * self.a_scale.float().view(-1, 1)
        return left @ grouped.view(self.b_codes.shape)


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
