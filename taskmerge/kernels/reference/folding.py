"""Sums that nothing changes: not the device, not the number of threads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from taskmerge.kernels.pairs import BLOCK, PIECE


def fold(values: Tensor) -> Tensor:
    """Sum over the last axis, a power of two long, by halving: the compiled kernels' order."""
    for _ in range(int(math.log2(values.shape[-1]))):
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    return values[..., 0]


def fold_pieces(values: Tensor) -> Tensor:
    """Sum over each PIECE: float64 (entries,) -> (PIECEs,)."""
    padded = torch.zeros(-(-values.numel() // PIECE) * PIECE, dtype=torch.float64, device=values.device)
    padded[: values.numel()] = values
    return fold(fold(padded.reshape(-1, PIECE // BLOCK, BLOCK)))


def products(vectors: list[Tensor]) -> Tensor:
    """Compute <v_i, v_j> over each PIECE: float64 (entries,) each -> (PIECEs, vectors, vectors)."""
    sums = [torch.stack([fold_pieces(first * second) for second in vectors], dim=-1) for first in vectors]
    return torch.stack(sums, dim=-2)


def masses(vectors: list[Tensor]) -> Tensor:
    """Compute Σ|v| over each PIECE: float64 (entries,) each -> (PIECEs, vectors)."""
    return torch.stack([fold_pieces(vector.abs()) for vector in vectors], dim=-1)
