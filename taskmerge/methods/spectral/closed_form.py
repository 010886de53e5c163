"""Methods whose result minimises how much the specialists interfere in each other's input space, in closed form.

Each task vector stands in for the inputs that made it: G_i = d_iᵀ d_i. (`actmat` is with the covariance methods.)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from taskmerge.declarations import Between, Doc
from taskmerge.methods.covariance import Ridge, actmat
from taskmerge.methods.options import Scale
from taskmerge.methods.pieces import weighted_mean, weighted_sum
from taskmerge.methods.registry import merge_method
from taskmerge.methods.spectral.matrices import TOLERANCE, are_matrices

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(source="TACT, arXiv 2604.01329", whole_matrices=True)
def tact(deltas: Tensor, weights: Tensor, *, ridge: Ridge = 0.1, scale: Scale = 1.0) -> Tensor:
    """`actmat` with each G_i made of the larger half of its task vector's entries.

    deltas (specialists, rows, columns), weights (specialists,) -> (rows, columns).
    """
    return actmat(deltas, weights, density=0.5, ridge=ridge, scale=scale)


def _normal_equations(deltas: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Σ w_i d_i G_i / ‖d_i‖² and Σ w_i G_i / ‖d_i‖²: (rows, columns) and (columns, columns), float64."""
    exact = deltas.double()
    squares = exact.square().sum(dim=(1, 2))
    shares = weights / squares.where(squares > 0, 1.0)
    grams = exact.mT @ exact
    return weighted_sum(exact @ grams, shares), weighted_sum(grams, shares)


@merge_method(source="WUDI-Merging, arXiv 2503.08099, in closed form", whole_matrices=True)
def wudi(deltas: Tensor, weights: Tensor, *, scale: Scale = 1.0) -> Tensor:
    """The delta that minimises Σ w_i ‖(W - d_i) d_iᵀ‖² / ‖d_i‖², where WUDI's gradient descent ends.

    W = (Σ w_i d_i G_i / ‖d_i‖²)(Σ w_i G_i / ‖d_i‖²)⁺. Weights are relative: doubling all of them changes nothing.

    deltas (specialists, rows, columns), weights (specialists,) -> (rows, columns).
    """
    import torch

    if not are_matrices(deltas, weights):
        return scale * weighted_mean(deltas, weights)
    moved, total = _normal_equations(deltas, weights)
    return scale * (moved @ torch.linalg.pinv(total, rtol=TOLERANCE**2, hermitian=True)).to(deltas.dtype)


@merge_method(source="S-WUDI, arXiv 2606.07289", whole_matrices=True)
def swudi(
    deltas: Tensor,
    weights: Tensor,
    *,
    time: Annotated[float, Between(0, None), Doc("t, how far the gradient flow runs")] = 300.0,
    density: Annotated[
        float,
        Between(0, 1),
        Doc("ρ, the share of the spectrum that moves, largest first, rounded up; 0.85 for language models"),
    ] = 0.65,
    init: Annotated[Literal["sum", "mean"], Doc("where the flow starts")] = "sum",
    scale: Scale = 1.0,
) -> Tensor:
    """WUDI's gradient flow stopped early and only along the strongest directions.

    With A = Σ w_i G_i / ‖d_i‖² = Q Λ Qᵀ and B = Σ w_i d_i G_i / ‖d_i‖², starting at τ0:
    τ0 + (B - τ0 A) · Q diag((1 - e^(-λt)) / λ, on the top ρ of the spectrum) Qᵀ.

    deltas (specialists, rows, columns), weights (specialists,) -> (rows, columns).
    """
    import torch

    if not are_matrices(deltas, weights):
        return scale * weighted_mean(deltas, weights)
    moved, total = _normal_equations(deltas, weights)
    start = weighted_sum(deltas.double(), weights)
    start = start / deltas.shape[0] if init == "mean" else start
    values, vectors = torch.linalg.eigh(total)
    kept = math.ceil(density * values.numel())
    limit = TOLERANCE**2 * values[-1:]
    alive = (torch.arange(values.numel(), device=values.device) >= values.numel() - kept) & (values > limit)
    step = (-torch.expm1(-values * time) / values.where(alive, 1.0)).where(alive, 0.0)
    return scale * (start + ((moved - start @ total) @ vectors * step) @ vectors.mT).to(deltas.dtype)
