"""Methods that weight each task vector by the input covariances of its linear layers.

covariances: (specialists, inputs, inputs) float64, C_i = E[z zᵀ] of the inputs z of this layer under specialist i,
collected from unlabelled probes (`taskmerge stats`). A tensor without them (norms, biases, embeddings) takes the
weighted sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from taskmerge.declarations import Between, Doc
from taskmerge.errors import MergeError
from taskmerge.methods.footprint import held
from taskmerge.methods.registry import merge_method
from taskmerge.methods.remembered import remembered
from taskmerge.methods.tensors import weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

Ridge = Annotated[
    float, Between(0, None), Doc("added to the diagonal of each covariance, as a multiple of its mean diagonal")
]
OffDiagonal = Annotated[float, Between(0, 1), Doc("factor of the covariances' off-diagonal entries")]


def _with_covariances(specialists: int, shape: tuple[int, ...]) -> float:
    """Entries held: the deltas and their covariances, and what is made of them."""
    own = held(1, 2.4, inputs=5)(specialists, shape)
    return own + (specialists * shape[1] ** 2 if len(shape) == 2 else 0)


@merge_method(source="RegMean, arXiv 2212.09849, on task vectors", memory=_with_covariances)
def regmean(
    deltas: Tensor,
    weights: Tensor,
    covariances: Tensor | None,
    *,
    off_diagonal: OffDiagonal = 1.0,
    ridge: Ridge = 1e-3,
) -> Tensor:
    """Find the delta that reproduces the changes of every specialist's layer outputs, in the least-squares sense.

    W = (Σ w_i d_i C_i)(Σ w_i C_i)⁻¹ minimises Σ w_i E‖(W - d_i) z_i‖², with C ← a·C + (1-a)·diag C + ε·mean(diag C)·I.
    Weights are relative: doubling all of them changes nothing. Tensors without covariances take Σ w_i d_i.

    deltas (specialists, outputs, inputs), weights (specialists,), covariances (specialists, inputs, inputs) ->
    (outputs, inputs), float64. Raises MergeError when the covariances do not fit or, with ridge 0, cannot be inverted.
    """
    deltas = deltas.double()
    if covariances is None:
        return weighted_sum(deltas, weights)
    _check(deltas, covariances)
    total = deltas.new_zeros(deltas.shape[2], deltas.shape[2])
    moved = deltas.new_zeros(deltas.shape[1:])
    for delta, covariance, weight in zip(deltas, covariances.double(), weights.tolist(), strict=True):
        seen = weight * conditioned(covariance, off_diagonal, ridge)
        total += seen
        moved += delta @ seen
    return _solve(total, moved) if weights.any() else moved


@remembered
def protected(deltas: Tensor, covariances: Sequence[Tensor | None], energy: float = 0.9) -> Tensor:
    """Remove from each delta the directions of other specialists' inputs; any method can merge the result.

    d_j ← d_j (I - Π_i Π_iᵀ) for every i ≠ j with a covariance, Π_i the top eigenvectors of C_i that hold `energy` of
    it.

    deltas (specialists, outputs, inputs); covariances: one (inputs, inputs) a specialist, None for those that are not
    protected -> as deltas, float64. Raises MergeError when a covariance does not fit.
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
    return torch.stack(shielded)


@remembered
def leading_directions(covariance: Tensor, energy: float) -> Tensor:
    """Return the fewest eigenvectors with a share `energy` of a covariance.

    covariance: (inputs, inputs). Returns (inputs, r), orthonormal.
    """
    import torch

    values, vectors = torch.linalg.eigh(covariance)
    held = values.clamp(min=0).flip(0).cumsum(0)
    count = int((held < energy * held[-1]).sum()) + 1
    return vectors[:, -count:] if energy > 0 else vectors[:, :0]


def conditioned(covariances: Tensor, off_diagonal: float, ridge: float) -> Tensor:
    """Compute a·C + (1-a)·diag C + ε·mean(diag C)·I."""
    import torch

    diagonal = covariances.diagonal(dim1=-2, dim2=-1)
    lifted = (1 - off_diagonal) * diagonal + ridge * diagonal.mean(dim=-1, keepdim=True)
    return off_diagonal * covariances + torch.diag_embed(lifted)


def _solve(total: Tensor, moved: Tensor) -> Tensor:
    """(Σ w d C)(Σ w C)⁻¹, by solving (Σ w C) Xᵀ = (Σ w d C)ᵀ."""
    import torch

    try:
        return torch.linalg.solve(total, moved.mT).mT
    except torch.linalg.LinAlgError:
        raise MergeError(
            "the summed covariances cannot be inverted", next_move="collect them from more probes, or set ridge above 0"
        ) from None


def _check(deltas: Tensor, covariances: Tensor) -> None:
    wanted = (deltas.shape[0], deltas.shape[-1], deltas.shape[-1])
    if deltas.dim() != 3 or tuple(covariances.shape) != wanted:
        raise MergeError(
            f"covariances of shape {tuple(covariances.shape)} do not fit deltas of shape {tuple(deltas.shape)}",
            next_move="they belong to another tensor or model: collect them again with `taskmerge stats`",
        )
