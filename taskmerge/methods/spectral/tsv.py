"""Task singular vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskmerge.methods.footprint import held
from taskmerge.methods.registry import merge_method
from taskmerge.methods.spectral.matrices import (
    are_matrices,
    deviations,
    polar,
    triplets,
    white,
)
from taskmerge.methods.tensors import weighted_mean

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(source="Task Singular Vectors, arXiv 2412.00081", whole_matrices=True, memory=held(1, 5.5, small=5.1))
def tsv(deltas: Tensor, weights: Tensor, noise: Tensor | None = None) -> Tensor:
    """Give each specialist an equal share of singular directions and make the shares orthogonal to one another.

    The top k = ⌊r/T⌋ triplets of each d_i (r the smaller side) side by side: A = [U_1 … U_T], B = [V_1 … V_T], and the
    result is polar(A) · diag(S) · polar(B)ᵀ. T counts every specialist that has the tensor, those of weight 0
    included: weights multiply the S_i; U_i and V_i keep their share for any weight.

    deltas (specialists, rows, columns), weights and noise (specialists,) -> (rows, columns).
    """
    import torch

    deltas = deltas.double()
    if not are_matrices(deltas, weights):
        return weighted_mean(deltas, weights)
    share = max(1, min(deltas.shape[1:]) // deltas.shape[0])
    rounding = deviations(noise, deltas.shape[0])
    parts = [triplets(d, white(sigma)).first(share) for d, sigma in zip(deltas, rounding, strict=True)]
    # A singular vector of value s carries noise of σ / s per entry.
    shaken = [sigma / s for part, sigma in zip(parts, rounding, strict=True) for s in part.values.tolist()]
    values = torch.cat([part.values * weight for part, weight in zip(parts, weights.tolist(), strict=True)])
    left = polar(torch.cat([part.left for part in parts], dim=1), shaken)
    right = polar(torch.cat([part.right.mT for part in parts], dim=1), shaken)
    return (left * values) @ right.mT
