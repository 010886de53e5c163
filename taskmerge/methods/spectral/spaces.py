"""Merging in another space: low-rank task vectors are aligned first, merged there, and brought back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from taskmerge.declarations import Doc
from taskmerge.methods.footprint import either, held
from taskmerge.methods.options import Density, Each
from taskmerge.methods.registry import merge_method
from taskmerge.methods.spectral.matrices import are_matrices, common_columns, denoised, deviations
from taskmerge.methods.tensors import elect_and_merge, keep_largest, weighted_mean, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

Inside = Annotated[Literal["ties", "task_arithmetic"], Doc("how the aligned task vectors are merged")]


def _merge_inside(aligned: Tensor, weights: Tensor, inside: str, density: Each) -> Tensor:
    if inside == "task_arithmetic":
        return weighted_sum(aligned, weights)
    # An entry that is 0 but for rounding does not vote for its sign and does not enter a mean.
    clear = aligned.where(aligned.abs() > 1e-12 * aligned.abs().max(), 0.0)
    return elect_and_merge(keep_largest(clear, density), weights, "weighted_mass", "weight")


def _basis_of_columns(specialists: int, shape: tuple[int, ...]) -> float:
    """Entries held while `common_columns` works: the deltas, and the SVD of a triangle."""
    rows, columns = shape if len(shape) == 2 else (0, 0)
    return float(specialists * rows * columns + 8.2 * min(rows, specialists * columns) ** 2)


def _basis_of_rows(specialists: int, shape: tuple[int, ...]) -> float:
    return _basis_of_columns(specialists, shape[::-1])


@merge_method(source="KnOTS, arXiv 2410.19735", whole_matrices=True, memory=either(held(6.5, 2.3), _basis_of_columns))
def knots(
    deltas: Tensor,
    weights: Tensor,
    noise: Tensor | None = None,
    *,
    inside: Inside = "ties",
    density: Density = 0.2,
) -> Tensor:
    """Align the task vectors by one common SVD, merge the aligned parts, transform the result back.

    [d_1 … d_T] = U S [V_1 … V_T]; the S·V_i are merged (`inside`), and the result is U times that. They are found as
    Uᵀ d_i, which is equivalent: for a task vector of zeros it is zero, at any position.

    At weight 0 a specialist has no part in the mean of `ties`; with any other weight, however small, it alone decides
    the entries at which no other agrees.

    deltas (specialists, rows, columns), weights and noise (specialists,) -> (rows, columns).
    """
    deltas = deltas.double()
    if not are_matrices(deltas, weights):
        return weighted_mean(deltas, weights)
    rounding = deviations(noise, deltas.shape[0])
    cleaned = denoised(deltas, rounding)
    left = common_columns(cleaned, rounding)
    return left @ _merge_inside(left.mT @ cleaned, weights, inside, density)


@merge_method(
    source="Core Space, arXiv 2509.17786",
    whole_matrices=True,
    memory=either(held(6.5, 4), _basis_of_columns, _basis_of_rows),
)
def core(
    deltas: Tensor,
    weights: Tensor,
    noise: Tensor | None = None,
    *,
    inside: Inside = "ties",
    density: Density = 0.2,
) -> Tensor:
    """Merge low-rank task vectors in the small space that all their rows and columns span.

    U and V are orthonormal bases of all columns and all rows; the Uᵀ d_i V are merged (`inside`) and lifted back, which
    loses nothing. The bases are singular vectors of the task vectors side by side and on top of each other, so the core
    does not depend on the order of specialists. The paper makes its bases from the LoRA factors, [B_1 …] and [A_1; …]:
    the same spaces with other axes, for which `ties` then selects other entries; and it allows any method.

    At weight 0 a specialist has no part in the mean of `ties`; with any other weight, however small, it alone decides
    the entries at which no other agrees.

    deltas (specialists, rows, columns), weights and noise (specialists,) -> (rows, columns).
    """
    deltas = deltas.double()
    if not are_matrices(deltas, weights):
        return weighted_mean(deltas, weights)
    rounding = deviations(noise, deltas.shape[0])
    cleaned = denoised(deltas, rounding)
    left, right = common_columns(cleaned, rounding), common_columns(cleaned.mT, rounding)
    return left @ _merge_inside(left.mT @ cleaned @ right, weights, inside, density) @ right.mT
