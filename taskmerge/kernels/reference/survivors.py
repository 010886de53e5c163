"""Survivors of a delta: float64 tensors of any shape. Magnitudes are compared as float32, and ties are all kept.

bits: 32 uniform random bits per entry, int64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskmerge.kernels.program import DropByRank
from taskmerge.numbers.randomness import keep_limit


def magnitudes(delta: Tensor) -> Tensor:
    """Return |d| in the precision of comparisons: float32."""
    return delta.abs().to(torch.float32)


def keep_between(delta: Tensor, low: float, high: float) -> Tensor:
    """Zero what is outside [low, high]."""
    magnitude = magnitudes(delta)
    return torch.where((magnitude >= low) & (magnitude <= high), delta, 0.0)


def drop_random(delta: Tensor, bits: Tensor, density: float, factor: float) -> Tensor:
    """Zero what the random bits drop; multiply the rest by `factor`."""
    return torch.where(bits < keep_limit(density), delta * factor, 0.0)


def drop_by_rank(delta: Tensor, bits: Tensor, drop: DropByRank, factor: float) -> Tensor:
    """DELLA, rows along the last axis; a scalar is a row of one."""
    chance = chances(delta, drop)
    kept = bits < torch.floor(chance * 4294967296.0).to(torch.int64)
    own = drop.rescale == "own_probability"
    divisor = torch.where(chance > 0.0, chance, 1.0) if own else torch.ones_like(chance)
    return torch.where(kept, delta / divisor * factor, 0.0)


def chances(delta: Tensor, drop: DropByRank) -> Tensor:
    """Keep-probabilities by mean rank within rows: as `DropByRank` defines them."""
    row = delta.shape[-1] if delta.dim() else 1
    if row <= 1:
        return torch.full_like(delta, drop.density).clamp(0.0, 1.0)
    magnitude = magnitudes(delta).reshape(-1, row)
    ordered = magnitude.sort(dim=1).values
    less = torch.searchsorted(ordered, magnitude, right=False)
    up_to = torch.searchsorted(ordered, magnitude, right=True)
    rank = less.to(torch.float64) + (up_to - less - 1).to(torch.float64) / 2.0
    chance = drop.density - drop.epsilon + 2.0 * drop.epsilon * rank / float(row - 1)
    return chance.clamp(0.0, 1.0).reshape(delta.shape)
