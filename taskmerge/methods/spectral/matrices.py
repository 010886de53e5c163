"""Linear algebra of task matrices, in float64: only directions that carry something count.

What a singular value must exceed to count is decided here, once, by two limits; the larger one holds.

* A millionth of the largest value: what float64 arithmetic on float32 models leaves. Methods that level singular values
  would otherwise fill the output with noise, and change it when the input changes in the twelfth digit.
* The storage noise. A delta of models that are stored as bf16 carries white noise of standard deviation σ, and a noise
  matrix (rows, columns) has singular values up to σ(√rows + √columns), the Marchenko-Pastur edge. A value that stands
  out by little is worse kept than dropped: the limit is the threshold of least error (Gavish & Donoho 2014,
  arXiv 1305.5870), 1.15 times the edge for square matrices. Beside k strong directions the noise has only what is left
  of the space, so that the next one is compared with the edge of (rows - k, columns - k).

Where nothing at all stands out there is no telling signal from noise, and the matrix is taken as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from taskmerge.methods.remembered import remembered

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-6
SMALL = 128
"""Matrices whose smaller side is at most this are decomposed whole; of larger ones the leading directions are sought
first."""
ATTEMPTS = (32, 128)
"""How many leading directions are sought, up to an eighth of the smaller side, before a matrix is decomposed whole."""


class Noise(NamedTuple):
    """Standard deviation of independent noise in a matrix: root mean square over its noisiest row, and column."""

    rows: float
    columns: float

    def __bool__(self) -> bool:
        return self.rows > 0 or self.columns > 0


NOISELESS = Noise(0.0, 0.0)


def white(deviation: float) -> Noise:
    """Return noise with the same deviation everywhere."""
    return Noise(deviation, deviation)


def side_by_side(deviations: Sequence[float]) -> Noise:
    """Return the noise of blocks of equal width next to each other, one deviation each."""
    if not deviations:
        return NOISELESS
    return Noise(math.sqrt(math.fsum(d * d for d in deviations) / len(deviations)), max(deviations))


def deviations(noise: Tensor | None, specialists: int) -> list[float]:
    """Return the input `noise` of a merge method as plain numbers, one per specialist; None is 0 for all."""
    return [0.0] * specialists if noise is None else [float(value) for value in noise]


def of_sum(noise: Sequence[float], weights: Tensor) -> Noise:
    """Return the noise of Σ w d: √Σ w² σ²."""
    return white(math.sqrt(math.fsum((weight * one) ** 2 for weight, one in zip(weights.tolist(), noise, strict=True))))


class Triplets(NamedTuple):
    """Singular triplets, largest first. left: (rows, r), values: (r,), right: (r, columns); all float64."""

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """The number of singular values."""
        return self.values.shape[0]

    @property
    def matrix(self) -> Tensor:
        """The matrix that the triplets make: (left * values) @ right."""
        return (self.left * self.values) @ self.right

    def first(self, count: int) -> Triplets:
        """Return the first `count` triplets, as copies, so that the other ones can be freed."""
        if count >= self.rank:
            return self
        # Copies, so that what is not kept is freed.
        return Triplets(self.left[:, :count].clone(), self.values[:count].clone(), self.right[:count].clone())

    def times(self, factor: float) -> Triplets:
        """Return the triplets of the matrix multiplied by a factor."""
        return self._replace(values=self.values * factor)


@remembered
def triplets(matrix: Tensor, noise: Noise = NOISELESS, largest: float | None = None, or_all: bool = True) -> Triplets:
    """Return the singular triplets that exceed the noise.

    matrix (rows, columns); noise: that of its entries; largest: what values are compared with in float64, left out: the
    largest of them; or_all: whether a matrix in which nothing stands out of the noise is taken as it is, or as nothing.
    """
    import torch

    if min(matrix.shape) == 0 or not matrix.any():
        return _none(matrix)
    found = _leading(matrix, noise)
    if found is None:
        found = Triplets(*torch.linalg.svd(matrix, full_matrices=False))
    floor = TOLERANCE * (found.values[0].item() if largest is None else largest)
    counted = _above(found.values, matrix.shape, noise) if noise else found.rank
    if not counted and or_all:
        counted = found.rank
    return found.first(min(counted, int((found.values > floor).sum())))


def _none(matrix: Tensor) -> Triplets:
    return Triplets(matrix[:, :0], matrix.new_zeros(0), matrix[:0])


def limits(shape: Sequence[int], noise: Noise, count: int) -> list[float]:
    """Return the thresholds above which the first `count` singular values of a (rows, columns) matrix exceed noise."""
    found = []
    for strong in range(count):
        rows, columns = shape[0] - strong, shape[1] - strong
        ratio = min(rows, columns) / max(rows, columns)
        best = math.sqrt(2 * (ratio + 1) + 8 * ratio / (ratio + 1 + math.sqrt(ratio**2 + 14 * ratio + 1)))
        edge = noise.rows * math.sqrt(columns) + noise.columns * math.sqrt(rows)
        found.append(best / (1 + math.sqrt(ratio)) * edge)
    return found


def _above(values: Tensor, shape: Sequence[int], noise: Noise) -> int:
    """How many leading values stand out of the noise."""
    stands = values > values.new_tensor(limits(shape, noise, values.shape[0]))
    return int(stands.long().cumprod(0).sum())


def _leading(matrix: Tensor, noise: Noise) -> Triplets | None:
    """The leading triplets of a large matrix, when those that stand out of its noise are few; else None.

    By subspace iteration on a few more directions than stand out: the noise beyond is flat and falls behind at once.
    """
    import torch

    side = min(matrix.shape)
    if not noise or side <= SMALL:
        return None
    for width in ATTEMPTS:
        if width > side // 8:
            return None
        start = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(0), dtype=matrix.dtype)
        basis = torch.linalg.qr(matrix @ start.to(matrix.device)).Q
        seen = basis.mT @ matrix
        # Values found so far are never too large: too many already stay too many.
        if _above(torch.linalg.eigvalsh(seen @ seen.mT).flip(0).clamp(min=0).sqrt(), matrix.shape, noise) > width // 2:
            continue
        for _ in range(4):
            basis = torch.linalg.qr(matrix @ (matrix.mT @ basis)).Q
        turned, values, right = torch.linalg.svd(basis.mT @ matrix, full_matrices=False)
        counted = _above(values, matrix.shape, noise)
        # More than half may be too many to have been found well; none at all: the matrix is taken as it is.
        if 0 < counted <= width // 2:
            return Triplets(basis @ turned, values, right).first(counted)
        if counted == 0:
            return None
    return None


@remembered
def denoised(deltas: Tensor, noise: Sequence[float]) -> Tensor:
    """Return each delta without the storage noise outside its own directions, if these are few enough to matter.

    deltas (specialists, rows, columns), noise: one deviation a specialist -> as deltas. A large delta with more
    directions than `triplets` seeks, a full fine-tune, is unchanged: almost all of its noise is within them.
    """
    cleaned = deltas
    for index, deviation in enumerate(noise):
        delta, around = deltas[index], white(deviation)
        # Noise of less than a thousandth of the delta: the limits that methods set on what they make of it will do.
        if not around or deviation * math.sqrt(delta.numel()) < 1e-3 * delta.norm().item():
            continue
        found = _leading(delta, around) if min(delta.shape) > SMALL else triplets(delta, around)
        if found is not None:
            cleaned = deltas.clone() if cleaned is deltas else cleaned
            cleaned[index] = found.matrix
    return cleaned


@remembered
def common_columns(deltas: Tensor, noise: Sequence[float]) -> Tensor:
    """Return an orthonormal basis of all columns of all deltas: the leading left singular vectors of [d_1 … d_T].

    deltas (specialists, rows, columns), noise: one deviation a specialist -> (rows, r). Found from the triangle R of a
    QR decomposition of [d_1 … d_T]ᵀ, which takes one delta after the other.
    """
    import torch

    triangle = deltas.new_zeros(0, deltas.shape[1])
    for delta in deltas:
        triangle = torch.linalg.qr(torch.cat([triangle, delta.mT]), mode="r").R
    left, values, _ = torch.linalg.svd(triangle.mT, full_matrices=False)
    floor = TOLERANCE * values[0]
    around = side_by_side(noise)
    shape = deltas.shape[1], deltas.shape[0] * deltas.shape[2]
    counted = (_above(values, shape, around) if around else 0) or len(values)
    return left[:, : min(counted, int((values > floor).sum()))]


def polar(matrix: Tensor, noise: Sequence[float] = ()) -> Tensor:
    """Return the orthogonal polar factor U Vᵀ on the directions that exceed the noise: (rows, columns), float64.

    noise: the deviation in the entries of each column. A direction has that of the columns it is made of.
    """
    found = triplets(matrix)
    if any(noise):
        own = (found.right.square() @ found.right.new_tensor(noise).square()).sqrt()
        counted = found.values > own * own.new_tensor(limits(matrix.shape, white(1.0), found.rank))
        found = Triplets(found.left[:, counted], found.values[counted], found.right[counted])
    return found.left @ found.right


def are_matrices(deltas: Tensor, weights: Tensor) -> bool:
    """Return whether the deltas are matrices with a non-zero entry and a non-zero weight; others take the mean."""
    return deltas.dim() == 3 and bool(deltas.any()) and bool(weights.any())
