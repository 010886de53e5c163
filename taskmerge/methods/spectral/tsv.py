"""Task singular vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskmerge.methods.options import Scale
from taskmerge.methods.pieces import weighted, weighted_mean
from taskmerge.methods.registry import merge_method
from taskmerge.methods.spectral.matrices import are_matrices, polar, triplets

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(source="Task Singular Vectors, arXiv 2412.00081", whole_matrices=True)
def tsv(deltas: Tensor, weights: Tensor, *, scale: Scale = 1.0) -> Tensor:
    """Give each specialist an equal share of singular directions, and make the shares orthogonal to one another.

    The top k = ⌊r/T⌋ triplets of each d_i (r the smaller side) side by side: A = [U_1 … U_T], B = [V_1 … V_T], and the
    result is polar(A) · diag(S) · polar(B)ᵀ. Tensors that are no matrices take the mean.

    deltas (specialists, rows, columns), weights (specialists,), which multiply the deltas first -> (rows, columns).
    """
    import torch

    if not are_matrices(deltas, weights):
        return scale * weighted_mean(deltas, weights)
    share = max(1, min(deltas.shape[1:]) // deltas.shape[0])
    parts = [triplets(delta).first(share) for delta in weighted(deltas, weights)]
    left = polar(torch.cat([part.left for part in parts], dim=1))
    right = polar(torch.cat([part.right for part in parts], dim=0))
    return scale * ((left * torch.cat([part.values for part in parts])) @ right).to(deltas.dtype)
