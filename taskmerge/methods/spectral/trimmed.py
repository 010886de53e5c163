"""Methods that keep, or temper, the leading singular directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from taskmerge.declarations import Between, Doc
from taskmerge.methods.options import Scale
from taskmerge.methods.pieces import weighted, weighted_mean, weighted_sum
from taskmerge.methods.registry import merge_method
from taskmerge.methods.spectral.matrices import Triplets, are_matrices, triplets

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(source="CART, arXiv 2412.12153", whole_matrices=True)
def cart(
    deltas: Tensor,
    weights: Tensor,
    *,
    rank_share: Annotated[
        float,
        Between(0, 1, open="low"),
        Doc("share of the rank that is kept of each specialist's distance to the mean"),
    ] = 0.08,
    spread: Annotated[float, Doc("what those distances are multiplied by when they are added to the mean")] = 1.0,
    scale: Scale = 1.0,
) -> Tensor:
    """The mean of the specialists plus the leading directions in which each of them leaves it.

    mean + spread · Σ svd_k(d_i - mean), k the share of the smaller side, at least 1.
    Weights multiply the deltas first.

    deltas (specialists, rows, columns), weights (specialists,) -> (rows, columns).
    """
    if not are_matrices(deltas, weights):
        return scale * weighted_mean(deltas, weights)
    count = max(1, int(rank_share * min(deltas.shape[1:])))
    scaled = weighted(deltas, weights).double()
    mean = scaled.mean(dim=0)
    merged = mean
    for delta in scaled:
        merged = merged + spread * triplets(delta - mean).first(count).matrix
    return (scale * merged).to(deltas.dtype)


def shrunk(found: Triplets, share: float) -> Triplets:
    """The fewest leading triplets that hold `share` of the sum of values, scaled up to the old sum (STAR)."""
    total = found.values.sum()
    count = int((found.values.cumsum(0) < share * total).sum()) + 1
    kept = found.first(count)
    return kept._replace(values=kept.values * (total / kept.values.sum()))


@merge_method(source="STAR, arXiv 2502.10339", whole_matrices=True)
def star(
    deltas: Tensor,
    weights: Tensor,
    *,
    energy: Annotated[
        float, Between(0, 1, open="low"), Doc("η, the share of the sum of singular values that is kept")
    ] = 0.4,
    scale: Scale = 1.0,
) -> Tensor:
    """Truncate each task vector's spectrum, restore its nuclear norm, average.

    Per specialist the fewest singular values holding η of their sum are kept and rescaled to the old sum.

    deltas (specialists, rows, columns), weights (specialists,), which multiply the deltas first -> (rows, columns).
    """
    import torch

    if not are_matrices(deltas, weights):
        return scale * weighted_mean(deltas, weights)
    parts = [shrunk(triplets(delta), energy).matrix for delta in weighted(deltas, weights) if delta.any()]
    return (scale / deltas.shape[0] * torch.stack(parts).sum(dim=0)).to(deltas.dtype)


def calibrated(merged: Tensor, deltas: Tensor, floor: float) -> Tensor:
    """SVC: each singular value of a merge, divided by how often the specialists' shares in it were counted.

    (U, S, V) = svd(merged); a_r^i = u_rᵀ d_i; s_r^i = ⟨u_rᵀ merged, a_r^i⟩ / ‖a_r^i‖², 1 where specialist i has nothing
    in that direction; S_r ← S_r · T / Σ_i max(floor, s_r^i).

    merged (rows, columns), deltas (specialists, rows, columns) -> (rows, columns), float64.
    """
    found = triplets(merged)
    shares = found.left.mT @ deltas.double()
    own = found.values[:, None] * found.right
    squares = shares.square().sum(dim=2)
    # Shares that are rounding noise beside the largest say nothing about how often they were counted.
    present = squares > 1e-24 * squares.max()
    counted = ((shares * own).sum(dim=2) / squares.where(present, 1.0)).where(present, 1.0)
    values = found.values * deltas.shape[0] / counted.clamp(min=floor).sum(dim=0)
    return found._replace(values=values).matrix


@merge_method(source="Singular Value Calibration, arXiv 2602.05536", whole_matrices=True)
def svc(
    deltas: Tensor,
    weights: Tensor,
    *,
    floor: Annotated[
        float, Between(0, None, open="low"), Doc("α, the least that a specialist's share in a direction counts for")
    ] = 0.1,
    scale: Scale = 1.0,
) -> Tensor:
    """The weighted sum, its singular values divided by how often shared directions were counted.

    A direction that all T specialists agree on is summed T times; it is brought back to once. The same finishing step
    for any other merge is `taskmerge.methods.spectral.trimmed.calibrated`.

    deltas (specialists, rows, columns), weights (specialists,), which multiply the deltas first -> (rows, columns).
    """
    total = weighted_sum(deltas, weights)
    if not are_matrices(deltas, weights) or not total.any():
        return scale * weighted_mean(deltas, weights)
    return (scale * calibrated(total, weighted(deltas, weights), floor)).to(deltas.dtype)
