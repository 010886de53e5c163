"""Methods that keep or reduce the leading singular directions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from taskmerge.declarations import Between, Doc
from taskmerge.methods.footprint import held
from taskmerge.methods.registry import merge_method
from taskmerge.methods.spectral.matrices import (
    NOISELESS,
    Noise,
    Triplets,
    are_matrices,
    denoised,
    deviations,
    of_sum,
    triplets,
    white,
)
from taskmerge.methods.tensors import weighted_mean, weighted_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@merge_method(source="CART, arXiv 2412.12153", whole_matrices=True, memory=held(2, 6.7, small=4.8))
def cart(
    deltas: Tensor,
    weights: Tensor,
    noise: Tensor | None = None,
    *,
    rank_share: Annotated[
        float,
        Between(0, 1, open="low"),
        Doc("share of the rank that is kept of each specialist's distance to the mean"),
    ] = 0.08,
    spread: Annotated[float, Doc("the factor of those distances when they are added to the mean")] = 1.0,
) -> Tensor:
    """Add the leading directions of each specialist's distance from the mean to the mean of the specialists.

    mean + spread · Σ svd_k(w_i d_i - mean), mean = Σ w d / T, k the share of the smaller side, at least 1. Weights
    multiply the deltas first; T counts every specialist that has the tensor, and each has its distance to the mean,
    those of weight 0 included.

    deltas (specialists, rows, columns), weights and noise (specialists,) -> (rows, columns).
    """
    deltas = deltas.double()
    if not are_matrices(deltas, weights):
        return weighted_mean(deltas, weights)
    count = max(1, int(rank_share * min(deltas.shape[1:])))
    rounding = deviations(noise, deltas.shape[0])
    cleaned = denoised(deltas, rounding)
    mean = weighted_mean(cleaned, weights)
    merged = mean
    for index, (delta, weight) in enumerate(zip(cleaned, weights.tolist(), strict=True)):
        distance = triplets(weight * delta - mean, _of_distance(rounding, weights.tolist(), index))
        merged = merged + spread * distance.first(count).matrix
    return merged


def _of_distance(noise: Sequence[float], weights: Sequence[float], own: int) -> Noise:
    """The noise of w_i d_i - Σ w d / T."""
    count = len(weights)
    shares = [weight * ((index == own) - 1 / count) for index, weight in enumerate(weights)]
    return white(math.sqrt(math.fsum((share * one) ** 2 for share, one in zip(shares, noise, strict=True))))


def shrunk(found: Triplets, share: float) -> Triplets:
    """Return the fewest leading triplets that hold `share` of the sum of values, scaled up to the old sum (STAR)."""
    total = found.values.sum()
    count = int((found.values.cumsum(0) < share * total).sum()) + 1
    kept = found.first(count)
    return kept._replace(values=kept.values * (total / kept.values.sum()))


@merge_method(source="STAR, arXiv 2502.10339", whole_matrices=True, memory=held(1, 4.75, small=4.65))
def star(
    deltas: Tensor,
    weights: Tensor,
    noise: Tensor | None = None,
    *,
    energy: Annotated[
        float, Between(0, 1, open="low"), Doc("η, the share of the sum of singular values that is kept")
    ] = 0.4,
) -> Tensor:
    """Truncate each task vector's spectrum, restore its nuclear norm, average.

    Per specialist the fewest singular values holding η of their sum are kept and rescaled to the old sum; the result is
    Σ w_i of these / T. T counts every specialist that has the tensor, those of weight 0 included.

    deltas (specialists, rows, columns), weights and noise (specialists,) -> (rows, columns).
    """
    deltas = deltas.double()
    if not are_matrices(deltas, weights):
        return weighted_mean(deltas, weights)
    merged = deltas.new_zeros(deltas.shape[1:])
    for delta, weight, sigma in zip(deltas, weights.tolist(), deviations(noise, deltas.shape[0]), strict=True):
        found = triplets(delta, white(sigma))
        if found.rank:
            merged += shrunk(found, energy).times(weight / deltas.shape[0]).matrix
    return merged


def calibrated(
    merged: Tensor, deltas: Tensor, floor: float, around: Noise = NOISELESS, noise: Sequence[float] = ()
) -> Tensor:
    """SVC: each singular value of a merge, divided by how often the specialists' shares in it were counted.

    (U, S, V) = svd(merged); a_r^i = u_rᵀ d_i; s_r^i = ⟨u_rᵀ merged, a_r^i⟩ / ‖a_r^i‖², 1 where specialist i has nothing
    in that direction; S_r ← S_r · T / Σ_i max(floor, s_r^i).

    merged (rows, columns), deltas (specialists, rows, columns), around: the noise of `merged`, noise: of each delta's
    entries -> (rows, columns), float64.
    """
    found = triplets(merged.double(), around)
    own = found.values[:, None] * found.right
    counted = own.new_zeros(found.rank)
    for index, delta in enumerate(deltas.double()):
        shares = found.left.mT @ delta
        squares = shares.square().sum(dim=1)
        # Shares that are rounding beside the largest, or the noise of storage, say nothing about what was counted.
        least = 1e-24 * squares.max() if found.rank else 0.0
        present = squares > max(float(least), delta.shape[1] * noise[index] ** 2 if noise else 0.0)
        times = (shares * own).sum(dim=1) / squares.where(present, 1.0)
        counted += times.where(present, 1.0).clamp(min=floor)
    return found._replace(values=found.values * deltas.shape[0] / counted).matrix


@merge_method(source="Singular Value Calibration, arXiv 2602.05536", whole_matrices=True, memory=held(2, 6))
def svc(
    deltas: Tensor,
    weights: Tensor,
    noise: Tensor | None = None,
    *,
    floor: Annotated[
        float, Between(0, None, open="low"), Doc("α, the lower limit of a specialist's share in a direction")
    ] = 0.1,
) -> Tensor:
    """Sum by weight, and divide the singular values by how often shared directions were counted.

    A direction that all T specialists agree on is summed T times; it is reduced to one count. Shares are computed from
    the d_i without weights: the weights only decide the sum and are relative, so doubling all of them changes nothing
    except where `floor` applies. T counts every specialist that has the tensor, those of weight 0 included. The same
    finishing step for any other merge is `taskmerge.methods.spectral.trimmed.calibrated`.

    deltas (specialists, rows, columns), weights and noise (specialists,) -> (rows, columns).
    """
    deltas = deltas.double()
    rounding = deviations(noise, deltas.shape[0])
    if not are_matrices(deltas, weights):
        return weighted_mean(deltas, weights)
    cleaned = denoised(deltas, rounding)
    total = weighted_sum(cleaned, weights)
    return calibrated(total, cleaned, floor, of_sum(rounding, weights), rounding)
