"""What survives of each delta, and how the survivors agree, on float64 tensors of one piece.

Sums run over the specialists in order, one multiplication and one addition per step, so that no device fuses them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from taskmerge.kernels.program import Active, DropByRank, Elect, Largest, Program
from taskmerge.numbers.randomness import uniform_bits_torch


def keep_between(delta: Tensor, low: float, high: float) -> Tensor:
    """Zero what is, as float32, outside [low, high]."""
    magnitude = delta.abs().to(torch.float32)
    return torch.where((magnitude >= low) & (magnitude <= high), delta, 0.0)


def drop_random(delta: Tensor, key: int, start: int, limit: int, factor: float) -> Tensor:
    """Zero what the random bits drop; multiply the rest by `factor`."""
    bits = uniform_bits_torch(key, start, delta.numel(), delta.device)
    return torch.where(bits < limit, delta * factor, 0.0)


def drop_by_rank(delta: Tensor, key: int, start: int, row: int, drop: DropByRank) -> Tensor:
    """DELLA on whole rows: delta (entries,), a multiple of `row`; start: index of its first entry."""
    chance = torch.full((delta.numel() // row, row), drop.density, dtype=torch.float64, device=delta.device)
    if row > 1:
        magnitude = delta.abs().to(torch.float32).reshape(-1, row)
        ordered = magnitude.sort(dim=1).values
        less = torch.searchsorted(ordered, magnitude, right=False)
        up_to = torch.searchsorted(ordered, magnitude, right=True)
        rank = less.to(torch.float64) + (up_to - less - 1).to(torch.float64) / 2.0
        chance = drop.density - drop.epsilon + 2.0 * drop.epsilon * rank / float(row - 1)
    chance = chance.clamp(0.0, 1.0).flatten()
    bits = uniform_bits_torch(key, start, delta.numel(), delta.device)
    kept = bits < torch.floor(chance * 4294967296.0).to(torch.int64)
    divisor = torch.where(chance > 0.0, chance, 1.0) if drop.rescale else torch.ones_like(chance)
    return torch.where(kept, delta / divisor, 0.0)


def agree(deltas: Sequence[Tensor], weights: Sequence[float], program: Program, like: Tensor) -> Tensor:
    """The consensus of the deltas: float64, shaped as `like`."""
    how = program.consensus
    if isinstance(how, Elect):
        return _elect(deltas, weights, how, like)
    total = torch.zeros_like(like)
    if isinstance(how, Largest):
        for delta, weight in zip(deltas, weights, strict=True):
            value = weight * delta
            total = torch.where(value.abs() > total.abs(), value, total)
        return total
    for delta, weight in zip(deltas, weights, strict=True):
        total = total + weight * delta
    return torch.where(_votes(deltas, how, like) >= how.minimum, total, 0.0) if isinstance(how, Active) else total


def _votes(deltas: Sequence[Tensor], how: Active, like: Tensor) -> Tensor:
    """In how many specialists each entry stands out against the sum of the others."""
    votes = torch.zeros_like(like)
    for i, delta in enumerate(deltas):
        others = torch.zeros_like(like)
        for j, other in enumerate(deltas):
            if j != i:
                others = others + other
        votes = votes + (delta.abs() > how.theta * others.abs()).to(torch.float64)
    return votes


def _elect(deltas: Sequence[Tensor], weights: Sequence[float], how: Elect, like: Tensor) -> Tensor:
    sign, total, divisor = (torch.zeros_like(like) for _ in range(3))
    for delta, weight in zip(deltas, weights, strict=True):
        ballots = {"weighted_mass": weight * delta, "mass": delta}
        sign = sign + ballots.get(how.elect, delta.sign())
    for delta, weight in zip(deltas, weights, strict=True):
        agrees = ((delta > 0) & (sign >= 0)) | ((delta < 0) & (sign < 0))
        total = total + torch.where(agrees, weight * delta, 0.0)
        divisor = divisor + agrees.to(torch.float64) * (weight if how.average == "weight" else 1.0)
    if how.average == "none":
        return total
    return torch.where(divisor != 0.0, total / divisor, 0.0)


def fold(values: Tensor) -> Tensor:
    """Sum over the last axis, a power of two long, by halving: the compiled kernels' order."""
    for _ in range(int(math.log2(values.shape[-1]))):
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    return values[..., 0]
