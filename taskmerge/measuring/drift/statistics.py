"""Statistics that compare two models on the same probes.

`PairMoments` sees rows batch by batch and keeps sums only: its size depends on the rows' width, not on their number.
`gallery_statistics` works on the final embeddings, which retrieval needs whole.
Everything is float64; each value equals the textbook formula on all rows at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taskmerge.errors import UsageError
from taskmerge.metrics.retrieval import BLOCK, normalized
from taskmerge.metrics.rotation import orthogonal_procrustes


class RowSums:
    """The sums for mean cosine, relative norm and representation bias: a few numbers per pair of rows."""

    def __init__(self) -> None:
        self.count = 0
        self.identical = True
        self._cosine = self._norm_x = self._norm_y = self._difference = self._absolute = 0.0
        self._width = 0

    def update(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add rows x, y: (rows, d), the same items under the two models."""
        x, y = _paired(x, y)
        self.identical = self.identical and bool(np.array_equal(x, y))
        lengths_x, lengths_y = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
        product = lengths_x * lengths_y
        self._cosine += float((np.einsum("nd,nd->n", x, y) / np.where(product == 0, 1, product)).sum())
        self._norm_x += float(lengths_x.sum())
        self._norm_y += float(lengths_y.sum())
        self._difference += float(np.linalg.norm(x - y, axis=1).sum())
        self._absolute += float(np.abs(x - y).sum())
        self._width = x.shape[1]
        self.count += len(x)

    def cosine(self) -> float:
        """Mean cosine of paired rows; a zero row counts as cosine 0."""
        return self._cosine / max(self.count, 1)

    def relative_norm(self) -> float:
        """Mean length of the rows of y over the mean length of the rows of x."""
        return self._norm_y / self._norm_x if self._norm_x else float("nan")

    def relative_change(self) -> float:
        """Mean ‖x - y‖ over the mean ‖x‖."""
        return self._difference / self._norm_x if self._norm_x else float("nan")

    def representation_bias(self) -> float:
        """Mean |x - y|₁ / d (Representation Surgery, 2402.02705)."""
        return self._absolute / max(self.count * self._width, 1)


class PairMoments:
    """First to fourth moments of paired rows, from which CKA, Procrustes, shifts and ranks follow exactly.

    Rows are shifted by the first batch's mean before they are summed: no statistic here but the mean and XᵀY depends on
    the origin, and both are shifted back; without it, features far from the origin would cancel away their digits.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shift: tuple[np.ndarray, np.ndarray] | None = None

    def update(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add rows x: (rows, d_x), y: (rows, d_y), the same items under the two models."""
        x, y = _paired(x, y, same_width=False)
        if not len(x):
            return
        if self._shift is None:
            self._shift = (x.mean(axis=0), y.mean(axis=0))
            self._start(x.shape[1], y.shape[1])
        x, y = x - self._shift[0], y - self._shift[1]
        squares_x, squares_y = (x * x).sum(axis=1), (y * y).sum(axis=1)
        self.count += len(x)
        self._xx.add(x, x, squares_x, squares_x)
        self._yy.add(y, y, squares_y, squares_y)
        self._xy.add(x, y, squares_x, squares_y)

    def _start(self, width_x: int, width_y: int) -> None:
        self._xx, self._yy = _Hsic(width_x, width_x), _Hsic(width_y, width_y)
        self._xy = _Hsic(width_x, width_y)

    def debiased_cka(self) -> float:
        """Compute debiased linear CKA, HSIC₁(K,L) / √(HSIC₁(K,K)·HSIC₁(L,L)) (Nguyen 2010.15327); NaN below 4 rows."""
        if self.count < 4:
            return float("nan")
        spread = self._xx.value(self.count) * self._yy.value(self.count)
        return self._xy.value(self.count) / float(np.sqrt(spread)) if spread > 0 else float("nan")

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Means of x (d_x,) and y (d_y,)."""
        shift_x, shift_y = self._shifts()
        return shift_x + self._xy.sum_x / self.count, shift_y + self._xy.sum_y / self.count

    def covariances(self) -> tuple[np.ndarray, np.ndarray]:
        """Compute covariances with divisor n - 1: (d_x, d_x) and (d_y, d_y)."""
        self._shifts(at_least=2)

        def covariance(block: _Hsic) -> np.ndarray:
            return (block.cross - np.outer(block.sum_x, block.sum_y) / self.count) / (self.count - 1)

        return covariance(self._xx), covariance(self._yy)

    def cross(self) -> np.ndarray:
        """XᵀY of the rows as given, (d_x, d_y)."""
        shift_x, shift_y = self._shifts()
        return (
            self._xy.cross
            + np.outer(shift_x, self._xy.sum_y)
            + np.outer(self._xy.sum_x, shift_y)
            + self.count * np.outer(shift_x, shift_y)
        )

    def rotation(self, *, toward_identity: float = 0.0) -> np.ndarray:
        """Orthogonal R with X R ≈ Y."""
        return orthogonal_procrustes(self.cross(), toward_identity=toward_identity)

    def mean_shift(self) -> float:
        """Compute ‖mean(y) - mean(x)‖ over the root mean square distance of x's rows from their mean."""
        mean_x, mean_y = self.means()
        spread = float(np.sqrt(np.trace(self.covariances()[0])))
        return float(np.linalg.norm(mean_y - mean_x)) / spread if spread else float("nan")

    def covariance_shift(self) -> float:
        """Compute ‖Σ_y - Σ_x‖_F / ‖Σ_x‖_F."""
        covariance_x, covariance_y = self.covariances()
        size = float(np.linalg.norm(covariance_x))
        return float(np.linalg.norm(covariance_y - covariance_x)) / size if size else float("nan")

    def frechet_distance(self) -> float:
        """Fréchet distance of the two sets of rows, see `frechet_distance`."""
        mean_x, mean_y = self.means()
        covariance_x, covariance_y = self.covariances()
        return frechet_distance(mean_x, covariance_x, mean_y, covariance_y)

    def effective_ranks(self) -> tuple[float, float]:
        """Compute exp(entropy of the normalised singular values of the centred rows), of x and of y."""
        covariance_x, covariance_y = self.covariances()
        return _effective_rank(covariance_x), _effective_rank(covariance_y)

    def _shifts(self, at_least: int = 1) -> tuple[np.ndarray, np.ndarray]:
        if self._shift is None or self.count < at_least:
            raise UsageError(f"this statistic needs at least {at_least} rows, got {self.count}")
        return self._shift


class _Hsic:
    """Sums behind HSIC₁(K, L) with K = XXᵀ, L = YYᵀ, neither of them ever formed."""

    def __init__(self, width_x: int, width_y: int) -> None:
        self.cross = np.zeros((width_x, width_y))
        self.sum_x, self.sum_y = np.zeros(width_x), np.zeros(width_y)
        self._squares_x = self._squares_y = self._squares_both = 0.0
        self._x_times_y = np.zeros(width_x)
        self._y_times_x = np.zeros(width_y)

    def add(self, x: np.ndarray, y: np.ndarray, squares_x: np.ndarray, squares_y: np.ndarray) -> None:
        """x (rows, d_x), y (rows, d_y) and the squared length of every row."""
        self.cross += x.T @ y
        self.sum_x += x.sum(axis=0)
        self.sum_y += y.sum(axis=0)
        self._squares_x += float(squares_x.sum())
        self._squares_y += float(squares_y.sum())
        self._squares_both += float(squares_x @ squares_y)
        self._x_times_y += squares_y @ x
        self._y_times_x += squares_x @ y

    def value(self, count: int) -> float:
        """HSIC₁ of the rows seen so far; K̊ and L̊ have their diagonals set to zero."""
        trace = float((self.cross**2).sum()) - self._squares_both
        total_k = float(self.sum_x @ self.sum_x) - self._squares_x
        total_l = float(self.sum_y @ self.sum_y) - self._squares_y
        both = float(
            self.sum_x @ self.cross @ self.sum_y
            - self.sum_x @ self._x_times_y
            - self.sum_y @ self._y_times_x
            + self._squares_both
        )
        middle = total_k * total_l / ((count - 1) * (count - 2)) - 2 / (count - 2) * both
        return (trace + middle) / (count * (count - 3))


@dataclass(frozen=True)
class GalleryStatistics:
    """The position of one model's probes in its own text gallery.

    neighbours: (n, k) gallery rows nearest to each probe, unordered.  margins: (n,) cosine to the right text minus
    the mean of the best wrong ones.  modality_gap: distance of the two means.  alignment: mean squared distance of a
    probe to its text.  uniformity: log mean e^{-2‖u-u'‖²} over pairs of probes (Wang & Isola 2005.10242).
    """

    neighbours: np.ndarray
    margins: np.ndarray
    modality_gap: float
    alignment: float
    uniformity: float


def gallery_statistics(
    probes: np.ndarray, gallery: np.ndarray, right: np.ndarray, *, neighbours: int = 10, negatives: int = 5
) -> GalleryStatistics:
    """Statistics of probes (n, d) in a gallery of distinct texts (m, d); right: (n,) each probe's own text.

    Rows are scaled to length 1. Memory beyond the inputs is a block of queries times the gallery. The neighbours are
    capped at half of the gallery (all of a small gallery is near, and would always overlap), the negatives at what it
    holds.
    """
    if len(gallery) < 2:
        raise UsageError(f"a gallery needs at least two distinct texts, got {len(gallery)}")
    unit_probes, unit_gallery = normalized(probes), normalized(gallery)
    near = max(1, min(neighbours, len(gallery) // 2))
    wrong = min(negatives, len(gallery) - 1)
    found, margins = [], []
    for start in range(0, len(probes), BLOCK):
        scores = unit_probes[start : start + BLOCK] @ unit_gallery.T
        rows = np.arange(len(scores))
        found.append(np.argpartition(-scores, near - 1, axis=1)[:, :near])
        own = scores[rows, right[start : start + BLOCK]].copy()
        scores[rows, right[start : start + BLOCK]] = -np.inf
        margins.append(own - np.partition(scores, -wrong, axis=1)[:, -wrong:].mean(axis=1))
    apart = unit_probes - unit_gallery[right]
    return GalleryStatistics(
        neighbours=np.concatenate(found),
        margins=np.concatenate(margins),
        modality_gap=float(np.linalg.norm(unit_probes.mean(axis=0) - unit_gallery.mean(axis=0))),
        alignment=float((apart**2).sum(axis=1).mean()),
        uniformity=uniformity(unit_probes),
    )


def neighbour_overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute |kNN(x) ∩ kNN(y)| / k per probe: (n, k) gallery rows, distinct within a row -> (n,) float64."""
    return (first[:, :, None] == second[:, None, :]).any(axis=2).mean(axis=1)


def uniformity(unit: np.ndarray) -> float:
    """Compute log mean over pairs i ≠ j of e^{-2‖u_i - u_j‖²}. unit: (n, d) rows of length 1. NaN below two rows."""
    if len(unit) < 2:
        return float("nan")
    total = 0.0
    for start in range(0, len(unit), BLOCK):
        squared = 2 - 2 * (unit[start : start + BLOCK] @ unit.T)
        kernel = np.exp(-2 * squared.clip(min=0))
        rows = np.arange(len(kernel))
        kernel[rows, start + rows] = 0.0
        total += float(kernel.sum())
    return float(np.log(total / (len(unit) * (len(unit) - 1))))


def frechet_distance(
    mean_x: np.ndarray, covariance_x: np.ndarray, mean_y: np.ndarray, covariance_y: np.ndarray
) -> float:
    """Compute ‖Δμ‖² + tr(Σ_x + Σ_y - 2(Σ_x^½ Σ_y Σ_x^½)^½), the squared 2-Wasserstein distance of two Gaussians."""
    values, vectors = np.linalg.eigh(covariance_x)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    middle = np.linalg.eigvalsh(root @ covariance_y @ root).clip(min=0)
    shift = mean_x - mean_y
    total = shift @ shift + np.trace(covariance_x) + np.trace(covariance_y) - 2 * np.sqrt(middle).sum()
    return max(float(total), 0.0)


def _effective_rank(covariance: np.ndarray) -> float:
    values = np.sqrt(np.linalg.eigvalsh(covariance).clip(min=0))
    if not values.sum():
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _paired(x: np.ndarray, y: np.ndarray, *, same_width: bool = True) -> tuple[np.ndarray, np.ndarray]:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or (same_width and x.shape != y.shape):
        raise UsageError(f"the two models must have matching rows: got shapes {x.shape} and {y.shape}")
    return np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
