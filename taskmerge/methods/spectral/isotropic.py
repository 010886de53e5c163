"""Isotropic merging: level the singular values of the sum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from taskmerge.declarations import Between, Doc
from taskmerge.methods.options import Scale
from taskmerge.methods.pieces import weighted, weighted_mean, weighted_sum
from taskmerge.methods.registry import merge_method
from taskmerge.methods.spectral.matrices import are_matrices, polar, triplets

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(source="Iso-C, arXiv 2502.04959", whole_matrices=True)
def iso_c(deltas: Tensor, weights: Tensor, *, scale: Scale = 1.0) -> Tensor:
    """The sum of the task vectors with every singular value set to their mean.

    Only the k directions of the numerical rank count: s̄ · U_k V_kᵀ, s̄ the mean of the first k values. Without that
    guard a rank-deficient sum (LoRA) has its null directions filled with noise as strong as the signal.

    deltas (specialists, rows, columns), weights (specialists,) -> (rows, columns).
    """
    total = weighted_sum(deltas, weights)
    if not are_matrices(deltas, weights) or not total.any():
        return scale * weighted_mean(deltas, weights)
    found = triplets(total)
    return scale * (found.values.mean() * (found.left @ found.right)).to(deltas.dtype)


@merge_method(source="Iso-CTS, arXiv 2502.04959", whole_matrices=True)
def iso_cts(
    deltas: Tensor,
    weights: Tensor,
    *,
    common: Annotated[
        float, Between(0, 1), Doc("share of directions taken from the sum; the specialists fill the rest")
    ] = 0.8,
    scale: Scale = 1.0,
) -> Tensor:
    """The sum's leading directions and, of each specialist, the leading ones outside them, all equally strong.

    Of r directions (the smaller side), `common` come from Σ w d; the rest is shared equally among the specialists, from
    what of each lies outside the common left space. Both sides are made orthogonal, values set to their mean.

    deltas (specialists, rows, columns), weights (specialists,) -> (rows, columns).
    """
    import torch

    if not are_matrices(deltas, weights):
        return scale * weighted_mean(deltas, weights)
    specialists, directions = deltas.shape[0], min(deltas.shape[1:])
    each = round((directions - int(common * directions)) / specialists)
    shared = triplets(weighted_sum(deltas, weights)).first(max(directions - each * specialists, 0))
    parts = [shared]
    for delta in weighted(deltas, weights).double():
        outside = delta - shared.left @ (shared.left.mT @ delta)
        # What rounding leaves of a delta inside the common space is no direction of its own.
        parts.append(triplets(outside, largest=delta.norm().item()).first(each))
    left = polar(torch.cat([part.left for part in parts], dim=1))
    right = polar(torch.cat([part.right for part in parts], dim=0))
    values = torch.cat([part.values for part in parts])
    return scale * (values.mean() * (left @ right)).to(deltas.dtype)
