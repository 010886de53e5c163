"""Agreement of survivors, on float64 tensors of any shape.

Sums run over the specialists in order, one multiplication and one addition per step, so that no device fuses them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskmerge.kernels.program import Active, Consensus, Elect, Largest


def agree(deltas: Sequence[Tensor], weights: Sequence[float], how: Consensus, like: Tensor) -> Tensor:
    """Return the consensus of the deltas: float64, shaped as `like`."""
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
        turned = -delta if how.elect == "weighted_mass" and weight < 0 else delta
        agrees = ((turned > 0) & (sign >= 0)) | ((turned < 0) & (sign < 0))
        total = total + torch.where(agrees, weight * delta, 0.0)
        divisor = divisor + agrees.to(torch.float64) * (weight if how.average == "weight" else 1.0)
    if how.average == "none":
        return total
    return torch.where(divisor != 0.0, total / divisor, 0.0)
