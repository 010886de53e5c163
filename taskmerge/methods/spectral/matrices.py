"""Linear algebra of task matrices, in float64: only directions that carry something count.

A singular value counts when it exceeds a millionth of the largest. What lies below is rounding: the difference of two
float32 models carries about that much, while fine-tuning by full matrices leaves values well above. Methods that level
singular values would otherwise fill the output with noise, and change it when the input changes in the twelfth digit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-6


class Triplets(NamedTuple):
    """Singular triplets, largest first. left: (rows, r), values: (r,), right: (r, columns); all float64."""

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        return self.values.shape[0]

    @property
    def matrix(self) -> Tensor:
        return (self.left * self.values) @ self.right

    def first(self, count: int) -> Triplets:
        return Triplets(self.left[:, :count], self.values[:count], self.right[:count])


def triplets(matrix: Tensor, largest: float | None = None) -> Triplets:
    """The singular triplets that count. largest: what values are compared with; left out: the largest of them."""
    import torch

    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    limit = TOLERANCE * (values[0].item() if largest is None else largest)
    return Triplets(left, values, right).first(int((values > limit).sum()))


def polar(matrix: Tensor) -> Tensor:
    """The orthogonal polar factor U Vᵀ on the directions that count: (rows, columns), float64."""
    found = triplets(matrix)
    return found.left @ found.right


def are_matrices(deltas: Tensor, weights: Tensor) -> bool:
    """Whether there are matrices to merge, and any of them moves; all else takes the mean."""
    return deltas.dim() == 3 and bool(deltas.any()) and bool(weights.any())
