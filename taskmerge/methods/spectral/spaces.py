"""Merging in another space: low-rank task vectors are aligned first, merged there, and brought back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from taskmerge.declarations import Doc
from taskmerge.methods.options import Density, Each, Scale
from taskmerge.methods.pieces import elect_and_merge, keep_largest, weighted_mean, weighted_sum
from taskmerge.methods.registry import merge_method
from taskmerge.methods.spectral.matrices import are_matrices, triplets

if TYPE_CHECKING:
    from torch import Tensor

Inside = Annotated[Literal["ties", "task_arithmetic"], Doc("how the aligned task vectors are merged")]


def _merge_inside(aligned: Tensor, weights: Tensor, inside: str, density: Each) -> Tensor:
    if inside == "task_arithmetic":
        return weighted_sum(aligned, weights)
    return elect_and_merge(keep_largest(aligned, density), weights, "weighted_mass", "weight")


@merge_method(source="KnOTS, arXiv 2410.19735", whole_matrices=True)
def knots(
    deltas: Tensor, weights: Tensor, *, inside: Inside = "ties", density: Density = 0.2, scale: Scale = 1.0
) -> Tensor:
    """Align the task vectors by one common SVD, merge what is left of each, bring it back.

    [d_1 … d_T] = U S [V_1 … V_T]; the S·V_i are merged (`inside`), and the result is U times that.

    deltas (specialists, rows, columns), weights (specialists,) -> (rows, columns).
    """
    import torch

    if not are_matrices(deltas, weights):
        return scale * weighted_mean(deltas, weights)
    found = triplets(torch.cat(list(deltas), dim=1))
    aligned = (found.values[:, None] * found.right).reshape(found.rank, deltas.shape[0], -1).transpose(0, 1)
    return (scale * (found.left @ _merge_inside(aligned, weights, inside, density))).to(deltas.dtype)


@merge_method(source="Core Space, arXiv 2509.17786", whole_matrices=True)
def core(
    deltas: Tensor, weights: Tensor, *, inside: Inside = "ties", density: Density = 0.2, scale: Scale = 1.0
) -> Tensor:
    """Merge low-rank task vectors in the small space that all their rows and columns span.

    U and V are orthonormal bases of all columns and all rows; the Uᵀ d_i V are merged (`inside`) and lifted back, which
    loses nothing. The bases are singular vectors, so the core does not depend on the order of specialists.

    deltas (specialists, rows, columns), weights (specialists,) -> (rows, columns).
    """
    import torch

    if not are_matrices(deltas, weights):
        return scale * weighted_mean(deltas, weights)
    left = triplets(torch.cat(list(deltas), dim=1)).left
    right = triplets(torch.cat(list(deltas), dim=0)).right
    cores = left.mT @ deltas.double() @ right.mT
    return (scale * (left @ _merge_inside(cores, weights, inside, density) @ right)).to(deltas.dtype)
