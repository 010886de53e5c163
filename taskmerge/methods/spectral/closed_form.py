"""Methods whose result minimises how much the specialists interfere in each other's input space, in closed form.

Each task vector represents the inputs that made it: G_i = d_iᵀ d_i.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from taskmerge.declarations import Between, Doc
from taskmerge.methods.covariance import Ridge, conditioned
from taskmerge.methods.footprint import either, held
from taskmerge.methods.registry import merge_method
from taskmerge.methods.spectral.matrices import TOLERANCE, are_matrices, denoised, deviations, limits, white
from taskmerge.methods.tensors import keep_largest, weighted_mean, weighted_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@merge_method(source="ActMat, arXiv 2604.01329", whole_matrices=True, memory=held(2, 2, inputs=6))
def actmat(
    deltas: Tensor,
    weights: Tensor,
    noise: Tensor | None = None,
    *,
    density: Annotated[
        float, Between(0, 1, open="low"), Doc("share of each delta's largest entries used for G_i (TACT: 0.5)")
    ] = 1.0,
    ridge: Ridge = 0.1,
) -> Tensor:
    """Apply RegMean without data: each task vector replaces the covariance of its inputs, G_i = d_iᵀ d_i.

    W = (Σ w_i d_i G_i)(Σ w_i G_i)⁺ with G ← G + ε·mean(diag G)·I. Weights are relative: doubling all changes nothing.
    `ridge: 0` is the paper's formula, a pseudo-inverse that drops eigenvalues below 1e-8 of the largest. It divides
    directions that the task vectors hardly have by next to nothing: a layer with about as many inputs as all its deltas
    have rows together gets a result tens of times as long as their sum. The ridge gives such directions the deltas'
    mean.

    deltas (specialists, outputs, inputs), weights and noise (specialists,) -> (outputs, inputs).
    """
    deltas = deltas.double()
    if not are_matrices(deltas, weights):
        return weighted_mean(deltas, weights)
    rounding = deviations(noise, deltas.shape[0])
    cleaned = denoised(deltas, rounding)
    return _solved(cleaned, density, weights.to(deltas), ridge, 1e-8, rounding)


def _solved(
    deltas: Tensor, density: float, shares: Tensor, ridge: float, tolerance: float, noise: Sequence[float]
) -> Tensor:
    """(Σ s d G)(Σ s G)⁺, G = kᵀ k + ε·mean(diag)·I of each d's largest entries k; eigenvalues made by noise are 0."""
    import torch

    total = deltas.new_zeros(deltas.shape[2], deltas.shape[2])
    moved = deltas.new_zeros(deltas.shape[1:])
    edge = 0.0
    for delta, share, sigma in zip(deltas, shares.tolist(), noise, strict=True):
        seen = delta if density == 1.0 else keep_largest(delta[None], density)[0]
        gram = share * conditioned(seen.mT @ seen, 1.0, ridge)
        total += gram
        moved += delta @ gram
        edge += abs(share) * limits(delta.shape, white(sigma), 1)[0] ** 2
    inverse = torch.linalg.pinv(total, atol=0.0 if ridge else edge, rtol=tolerance, hermitian=True)
    return moved @ inverse


@merge_method(source="TACT, arXiv 2604.01329", whole_matrices=True, memory=either(held(2, 2, inputs=6), held(2, 6)))
def tact(deltas: Tensor, weights: Tensor, noise: Tensor | None = None, *, ridge: Ridge = 0.1) -> Tensor:
    """Apply `actmat` with each G_i computed from the larger half of its task vector's entries.

    deltas (specialists, rows, columns), weights and noise (specialists,) -> (rows, columns).
    """
    return actmat(deltas, weights, noise, density=0.5, ridge=ridge)


def _shares(deltas: Tensor, weights: Tensor) -> Tensor:
    """w_i / ‖d_i‖²; 0 for a task vector of zeros."""
    squares = deltas.square().sum(dim=(1, 2))
    return weights.to(deltas) / squares.where(squares > 0, float("inf"))


@merge_method(source="WUDI-Merging, arXiv 2503.08099, in closed form", whole_matrices=True, memory=held(2, 2, inputs=6))
def wudi(deltas: Tensor, weights: Tensor, noise: Tensor | None = None, *, ridge: Ridge = 0.1) -> Tensor:
    """Find the delta that minimises Σ w_i ‖(W - d_i) d_iᵀ‖² / ‖d_i‖², the limit of WUDI's gradient descent.

    W = (Σ w_i d_i G_i / ‖d_i‖²)(Σ w_i G_i / ‖d_i‖²)⁺ with G ← G + ε·mean(diag G)·I. Weights are relative: doubling all
    of them changes nothing, and only all 0 gives 0. `ridge: 0` is the paper's objective, which divides directions that
    the task vectors hardly have by next to nothing: four deltas of 24 x 96 came out 27 times as long as their sum. The
    ridge gives such directions the deltas' mean. The paper itself stops its descent after 300 steps from Σ d, before it
    gets there (see `swudi`).

    deltas (specialists, rows, columns), weights and noise (specialists,) -> (rows, columns).
    """
    deltas = deltas.double()
    if not are_matrices(deltas, weights):
        return weighted_mean(deltas, weights)
    rounding = deviations(noise, deltas.shape[0])
    cleaned = denoised(deltas, rounding)
    return _solved(cleaned, 1.0, _shares(cleaned, weights), ridge, TOLERANCE**2, rounding)


@merge_method(source="S-WUDI, arXiv 2606.07289", whole_matrices=True, memory=held(2, 2.35, inputs=5.15))
def swudi(
    deltas: Tensor,
    weights: Tensor,
    noise: Tensor | None = None,
    *,
    time: Annotated[float, Between(0, None), Doc("t, the duration of the gradient flow")] = 300.0,
    density: Annotated[
        float,
        Between(0, 1),
        Doc("ρ, the share of the spectrum that changes, largest first, rounded up; 0.85 for language models"),
    ] = 0.65,
    init: Annotated[Literal["sum", "mean"], Doc("the starting point of the flow")] = "sum",
) -> Tensor:
    """Follow WUDI's gradient flow, stopped early and limited to the strongest directions.

    With A = Σ w_i G_i / ‖d_i‖² = Q Λ Qᵀ and B = Σ w_i d_i G_i / ‖d_i‖², starting at τ0 = Σ w d or Σ w d / T:
    τ0 + (B - τ0 A) · Q diag((1 - e^(-λt)) / λ, on the top ρ of the spectrum) Qᵀ. T counts every specialist that has the
    tensor, those of weight 0 included.

    deltas (specialists, rows, columns), weights and noise (specialists,) -> (rows, columns).
    """
    import torch

    deltas = deltas.double()
    if not are_matrices(deltas, weights):
        return weighted_mean(deltas, weights)
    rounding = deviations(noise, deltas.shape[0])
    cleaned = denoised(deltas, rounding)
    total = cleaned.new_zeros(cleaned.shape[2], cleaned.shape[2])
    moved = cleaned.new_zeros(cleaned.shape[1:])
    for delta, share in zip(cleaned, _shares(cleaned, weights).tolist(), strict=True):
        gram = share * (delta.mT @ delta)
        total += gram
        moved += delta @ gram
    start = weighted_sum(cleaned, weights)
    start = start / deltas.shape[0] if init == "mean" else start
    values, vectors = torch.linalg.eigh(total)
    kept = math.ceil(density * values.numel())
    limit = TOLERANCE**2 * values[-1:]
    alive = (torch.arange(values.numel(), device=values.device) >= values.numel() - kept) & (values > limit)
    step = (-torch.expm1(-values * time) / values.where(alive, 1.0)).where(alive, 0.0)
    return start + ((moved - start @ total) @ vectors * step) @ vectors.mT
