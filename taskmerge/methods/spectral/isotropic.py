"""Isotropic merging: equalise the singular values of the sum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from taskmerge.declarations import Between, Doc
from taskmerge.methods.footprint import either, held
from taskmerge.methods.registry import merge_method
from taskmerge.methods.spectral.matrices import (
    are_matrices,
    denoised,
    deviations,
    of_sum,
    polar,
    triplets,
    white,
)
from taskmerge.methods.tensors import weighted_mean, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(source="Iso-C, arXiv 2502.04959", whole_matrices=True, memory=either(held(1, 7), held(2, 2)))
def iso_c(deltas: Tensor, weights: Tensor, noise: Tensor | None = None) -> Tensor:
    """Sum the task vectors and set every singular value to their mean.

    Only the k directions of the numerical rank count: s̄ · U_k V_kᵀ, s̄ the mean of the first k values. Without this
    limit, the null directions of a rank-deficient sum (LoRA) would be filled with noise as strong as the signal. The
    paper's code has no limit and takes s̄ over all min(rows, columns) values. A specialist of weight 0 is ignored.

    deltas (specialists, rows, columns), weights and noise (specialists,) -> (rows, columns).
    """
    deltas = deltas.double()
    if not are_matrices(deltas, weights):
        return weighted_mean(deltas, weights)
    rounding = deviations(noise, deltas.shape[0])
    found = triplets(_sum(denoised(deltas, rounding), weights), of_sum(rounding, weights))
    if not found.rank:
        return weighted_mean(deltas, weights)
    return found.values.mean() * (found.left @ found.right)


def _longest(deltas: Tensor, weights: Tensor) -> float:
    """The length of the longest w_i d_i."""
    return float((deltas.flatten(1).norm(dim=1) * weights.to(deltas).abs()).max())


def _sum(deltas: Tensor, weights: Tensor) -> Tensor:
    """Σ w d; zero where task vectors cancel and only rounding is left, which has directions too."""
    total = weighted_sum(deltas, weights)
    return total if total.norm() > 1e-12 * _longest(deltas, weights) else total * 0.0


@merge_method(source="Iso-CTS, arXiv 2502.04959", whole_matrices=True, memory=held(1, 7.7, small=4.9))
def iso_cts(
    deltas: Tensor,
    weights: Tensor,
    noise: Tensor | None = None,
    *,
    common: Annotated[
        float, Between(0, 1), Doc("share of directions taken from the sum; the specialists fill the rest")
    ] = 0.8,
) -> Tensor:
    """Combine the leading directions of the sum with each specialist's own leading directions, all equally strong.

    Of r directions (the smaller side), `common` come from Σ w d; the rest is shared equally among the T specialists
    that have the tensor, those of weight 0 included, from the part of each w d outside the common left space. Both
    sides are made orthogonal, values set to their mean.

    deltas (specialists, rows, columns), weights and noise (specialists,) -> (rows, columns).
    """
    import torch

    deltas = deltas.double()
    if not are_matrices(deltas, weights):
        return weighted_mean(deltas, weights)
    specialists, directions = deltas.shape[0], min(deltas.shape[1:])
    rounding, longest = deviations(noise, specialists), _longest(deltas, weights)
    each = round((directions - int(common * directions)) / specialists)
    cleaned = denoised(deltas, rounding)
    together = of_sum(rounding, weights)
    kept = max(directions - each * specialists, 0)
    parts, levels = [triplets(_sum(cleaned, weights), together).first(kept)], [together.rows]
    for delta, weight, sigma in zip(cleaned, weights.tolist(), rounding, strict=True):
        own = weight * delta
        outside = own - parts[0].left @ (parts[0].left.mT @ own)
        # What rounding, of the delta and of the common space, leaves outside of that is not a direction of its own.
        levels.append(math.hypot(weight * sigma, together.rows))
        parts.append(triplets(outside, white(levels[-1]), largest=longest, or_all=False).first(each))
    values = torch.cat([part.values for part in parts])
    if not values.numel():
        return weighted_mean(deltas, weights)
    shaken = [sigma / s for part, sigma in zip(parts, levels, strict=True) for s in part.values.tolist()]
    left = polar(torch.cat([part.left for part in parts], dim=1), shaken)
    right = polar(torch.cat([part.right.mT for part in parts], dim=1), shaken)
    return values.mean() * (left @ right.mT)
