"""Arithmetic that methods of whole tensors share. deltas: (specialists, *shape), weights: (specialists,), float64.

Trimming and election are Programs, run by their one interpreter; nothing of them is written twice.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from taskmerge.kernels.program import Elect, Program
from taskmerge.methods.options import Each
from taskmerge.methods.pieces import trim

if TYPE_CHECKING:
    from torch import Tensor


def weighted_sum(deltas: Tensor, weights: Tensor) -> Tensor:
    """Compute Σ w_i d_i: (*shape)."""
    total = deltas.new_zeros(deltas.shape[1:])
    for delta, weight in zip(deltas, weights.to(deltas), strict=True):
        total = total + weight * delta
    return total


def weighted(deltas: Tensor, weights: Tensor) -> Tensor:
    """Compute w_i d_i: (specialists, *shape)."""
    return deltas * weights.to(deltas).reshape(-1, *[1] * (deltas.dim() - 1))


def weighted_mean(deltas: Tensor, weights: Tensor) -> Tensor:
    """Compute Σ w_i d_i / T, for tensors that are not matrices in methods of matrices: (*shape)."""
    return weighted_sum(deltas, weights) / deltas.shape[0]


def keep_largest(deltas: Tensor, density: Each) -> Tensor:
    """Return each delta with only its largest entries, the others zero: (specialists, *shape)."""
    import torch

    from taskmerge.kernels import interpret

    hows = trim(density)
    each = hows if isinstance(hows, tuple) else (hows,) * len(deltas)
    return torch.stack([interpret(Program((1.0,), how), delta[None]) for how, delta in zip(each, deltas, strict=True)])


def elect_and_merge(
    deltas: Tensor,
    weights: Tensor,
    elect: Literal["weighted_mass", "mass", "count"],
    average: Literal["weight", "count", "none"],
) -> Tensor:
    """TIES' election alone: (*shape)."""
    from taskmerge.kernels import interpret

    return interpret(Program(tuple(weights.tolist()), None, Elect(elect, average)), deltas)


def largest_entries(values: Tensor, share: float) -> Tensor:
    """Return a mask of the max(1, ⌊share·n⌋) largest values of each row, ties all included: (rows, n), bool."""
    count = values.shape[1]
    last = min(max(1, math.floor(share * count)), count)
    return values >= values.sort(dim=1, descending=True).values[:, last - 1 : last]
