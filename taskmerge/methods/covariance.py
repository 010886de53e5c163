"""Methods that weigh each task vector by what its linear layers see: the covariance of their inputs.

covariances: (specialists, inputs, inputs) float64, C_i = E[z zᵀ] of the inputs z of this layer under specialist i,
collected from unlabelled probes (`taskmerge stats`). A tensor without them (norms, biases, embeddings) takes the
weighted sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from taskmerge.declarations import Between, Doc
from taskmerge.errors import MergeError
from taskmerge.methods.options import Scale
from taskmerge.methods.pieces import keep_largest, weighted_mean, weighted_sum
from taskmerge.methods.registry import merge_method

if TYPE_CHECKING:
    from torch import Tensor

Ridge = Annotated[
    float, Between(0, None), Doc("added to the diagonal of each covariance, as a multiple of its mean diagonal")
]
OffDiagonal = Annotated[float, Between(0, 1), Doc("what the covariances' off-diagonal entries are multiplied by")]


@merge_method(source="RegMean, arXiv 2212.09849, on task vectors")
def regmean(
    deltas: Tensor,
    weights: Tensor,
    covariances: Tensor | None,
    *,
    off_diagonal: OffDiagonal = 1.0,
    ridge: Ridge = 1e-3,
    scale: Scale = 1.0,
) -> Tensor:
    """The delta that changes every specialist's layer outputs as its own does, in the least-squares sense.

    W = (Σ w_i d_i C_i)(Σ w_i C_i)⁻¹ minimises Σ w_i E‖(W - d_i) z_i‖², with C ← a·C + (1-a)·diag C + ε·mean(diag C)·I.
    Weights are relative here: doubling all of them changes nothing. Tensors without covariances take Σ w_i d_i.

    deltas (specialists, outputs, inputs), weights (specialists,), covariances (specialists, inputs, inputs) ->
    (outputs, inputs), float64 inside. Raises MergeError when the covariances do not fit or, with ridge 0, cannot be
    inverted.
    """
    if covariances is None:
        return scale * weighted_sum(deltas, weights)
    _check(deltas, covariances)
    seen = _conditioned(covariances.double(), off_diagonal, ridge)
    return scale * _solve(deltas, weights, seen)


@merge_method(source="ActMat, arXiv 2604.01329", whole_matrices=True)
def actmat(
    deltas: Tensor,
    weights: Tensor,
    *,
    density: Annotated[
        float, Between(0, 1, open="low"), Doc("share of each delta's largest entries that G_i is made of (TACT: 0.5)")
    ] = 1.0,
    ridge: Ridge = 0.1,
    scale: Scale = 1.0,
) -> Tensor:
    """RegMean without data: each task vector stands in for the inputs that made it, G_i = d_iᵀ d_i.

    W = (Σ w_i d_i G_i)(Σ w_i G_i)⁺ with G ← G + ε·mean(diag G)·I. Weights are relative: doubling all changes nothing.
    `ridge: 0` is the paper's formula, a pseudo-inverse that drops eigenvalues below 1e-8 of the largest. It divides
    directions that the task vectors hardly have by next to nothing: a layer with about as many inputs as all its deltas
    have rows together comes out tens of times as long as their sum. The ridge gives such directions the deltas' mean.

    deltas (specialists, outputs, inputs), weights (specialists,) -> (outputs, inputs), float64 inside.
    """
    if deltas.dim() != 3:
        return scale * weighted_mean(deltas, weights)
    exact = deltas.double()
    kept = exact if density == 1.0 else keep_largest(deltas, density).double()
    grams = _conditioned(kept.mT @ kept, 1.0, ridge)
    share = weights.double().to(exact.device)[:, None, None]
    merged = (share * (exact @ grams)).sum(dim=0) @ _pseudo_inverse((share * grams).sum(dim=0))
    return scale * merged.to(deltas.dtype)


def protected(deltas: Tensor, covariances: Sequence[Tensor | None], energy: float = 0.9) -> Tensor:
    """Each delta without the directions that carry another specialist's inputs; any method may merge what is left.

    d_j ← d_j (I - Π_i Π_iᵀ) for every i ≠ j with a covariance, Π_i the top eigenvectors of C_i that hold `energy` of
    it.

    deltas (specialists, outputs, inputs); covariances: one (inputs, inputs) a specialist, None for those that are not
    protected -> as deltas, float64 inside. Raises MergeError when a covariance does not fit.
    """
    import torch

    shielded = [delta.double() for delta in deltas]
    for owner, covariance in enumerate(covariances):
        if covariance is None:
            continue
        _check(deltas[:1], covariance[None])
        directions = leading_directions(covariance.double().to(deltas.device), energy)
        for other in range(len(shielded)):
            if other != owner:
                shielded[other] = shielded[other] - (shielded[other] @ directions) @ directions.mT
    return torch.stack(shielded).to(deltas.dtype)


def leading_directions(covariance: Tensor, energy: float) -> Tensor:
    """(inputs, r) orthonormal: the fewest eigenvectors that hold `energy` of a covariance (inputs, inputs)."""
    import torch

    values, vectors = torch.linalg.eigh(covariance)
    held = values.clamp(min=0).flip(0).cumsum(0)
    count = int((held < energy * held[-1]).sum()) + 1
    return vectors[:, -count:] if energy > 0 else vectors[:, :0]


def _conditioned(covariances: Tensor, off_diagonal: float, ridge: float) -> Tensor:
    """a·C + (1-a)·diag C + ε·mean(diag C)·I."""
    import torch

    diagonal = covariances.diagonal(dim1=-2, dim2=-1)
    lifted = (1 - off_diagonal) * diagonal + ridge * diagonal.mean(dim=-1, keepdim=True)
    return off_diagonal * covariances + torch.diag_embed(lifted)


def _solve(deltas: Tensor, weights: Tensor, covariances: Tensor) -> Tensor:
    """(Σ w d C)(Σ w C)⁻¹, by solving (Σ w C) Xᵀ = (Σ w d C)ᵀ."""
    import torch

    share = weights.double().to(deltas.device)[:, None, None]
    if not share.any():
        return torch.zeros_like(deltas[0])
    total = (share * covariances).sum(dim=0)
    moved = (share * (deltas.double() @ covariances)).sum(dim=0)
    try:
        return torch.linalg.solve(total, moved.mT).mT.to(deltas.dtype)
    except torch.linalg.LinAlgError:
        raise MergeError(
            "the summed covariances cannot be inverted", next_move="collect them from more probes, or set ridge above 0"
        ) from None


def _pseudo_inverse(matrix: Tensor) -> Tensor:
    import torch

    return torch.linalg.pinv(matrix, rtol=1e-8, hermitian=True)


def _check(deltas: Tensor, covariances: Tensor) -> None:
    wanted = (deltas.shape[0], deltas.shape[-1], deltas.shape[-1])
    if deltas.dim() != 3 or tuple(covariances.shape) != wanted:
        raise MergeError(
            f"covariances of shape {tuple(covariances.shape)} do not fit deltas of shape {tuple(deltas.shape)}",
            next_move="they belong to another tensor or model: collect them anew with `taskmerge stats`",
        )
