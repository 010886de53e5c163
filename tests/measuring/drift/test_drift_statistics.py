"""The one-pass statistics against naive formulas on all rows at once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmerge.errors import UsageError
from taskmerge.measuring.drift.statistics import PairMoments, RowSums, gallery_statistics, neighbour_overlap, uniformity


def rows(count: int, width: int, seed: int, far: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, width)) * rng.uniform(0.1, 3, width) + far
    turn, _ = np.linalg.qr(rng.standard_normal((width, width)))
    return x, x @ turn + 0.3 * rng.standard_normal((count, width)) - far


def fed(x: np.ndarray, y: np.ndarray, cuts: list[int]) -> PairMoments:
    moments = PairMoments()
    edges = [0, *sorted(cuts), len(x)]
    for start, stop in pairwise(edges):
        moments.update(x[start:stop], y[start:stop])
    return moments


def naive_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC₁ by its definition, from the two n x n kernels and loops over what they hold."""
    n = len(x)
    k, l = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    ones = np.ones(n)
    trace = sum(k[i, j] * l[j, i] for i in range(n) for j in range(n))
    return (
        trace + (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (ones @ k @ l @ ones)
    ) / (n * (n - 3))


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(5, 40),
    width=st.integers(1, 8),
    seed=st.integers(0, 1000),
    cuts=st.lists(st.integers(0, 40), max_size=5),
)
def test_cka_of_any_cuts_equals_the_definition(count: int, width: int, seed: int, cuts: list[int]) -> None:
    x, y = rows(count, width, seed)
    expected = naive_hsic(x, y) / np.sqrt(naive_hsic(x, x) * naive_hsic(y, y))
    assert fed(x, y, [min(cut, count) for cut in cuts]).debiased_cka() == pytest.approx(expected, rel=1e-8, abs=1e-9)


def test_cka_keeps_its_digits_far_from_the_origin() -> None:
    x, y = rows(200, 6, 3)
    near = fed(x, y, [50, 90]).debiased_cka()
    far = fed(x + 1e5, y - 1e5, [50, 90]).debiased_cka()
    assert far == pytest.approx(near, abs=1e-7)


def test_debiased_cka_of_unrelated_rows_is_about_zero() -> None:
    rng = np.random.default_rng(0)
    values = [fed(rng.standard_normal((50, 40)), rng.standard_normal((50, 40)), []).debiased_cka() for _ in range(40)]
    assert abs(np.mean(values)) < 0.02  # plain CKA of such rows is about 0.45


@settings(max_examples=30, deadline=None)
@given(count=st.integers(4, 30), width=st.integers(2, 6), seed=st.integers(0, 1000), cut=st.integers(0, 30))
def test_moments_equal_numpy_on_all_rows(count: int, width: int, seed: int, cut: int) -> None:
    x, y = rows(count, width, seed, far=5.0)
    moments = fed(x, y, [min(cut, count)])
    np.testing.assert_allclose(moments.means()[1], y.mean(axis=0), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(moments.covariances()[0], np.cov(x.T), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moments.cross(), x.T @ y, rtol=1e-9, atol=1e-8)
    assert moments.covariance_shift() == pytest.approx(
        np.linalg.norm(np.cov(y.T) - np.cov(x.T)) / np.linalg.norm(np.cov(x.T)), rel=1e-8
    )
    spread = np.sqrt(((x - x.mean(axis=0)) ** 2).sum() / (count - 1))
    shift = np.linalg.norm(y.mean(axis=0) - x.mean(axis=0)) / spread
    assert moments.mean_shift() == pytest.approx(shift, rel=1e-8)


def test_frechet_distance_equals_the_product_form() -> None:
    x, y = rows(60, 5, 1)
    a, b = np.cov(x.T), np.cov(y.T)
    eigenvalues = np.linalg.eigvals(a @ b)  # tr (a^½ b a^½)^½ is the sum of the roots of ab's eigenvalues
    assert np.abs(eigenvalues.imag).max() < 1e-9
    gap = x.mean(axis=0) - y.mean(axis=0)
    expected = gap @ gap + np.trace(a) + np.trace(b) - 2 * np.sqrt(eigenvalues.real).sum()
    assert fed(x, y, [20]).frechet_distance() == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_more_dimensions_than_rows() -> None:
    x, _ = rows(5, 12, 2)
    assert fed(x, x, []).frechet_distance() == pytest.approx(0, abs=1e-7)


def test_effective_rank_counts_equal_directions() -> None:
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, -1).T
    x = np.hstack([signs, np.zeros((8, 2))])  # three directions of one size, two empty ones
    ranks = fed(x, signs[:, :1] @ np.ones((1, 4)), []).effective_ranks()
    assert ranks == pytest.approx((3.0, 1.0), abs=1e-6)


def test_rotation_is_found_again() -> None:
    rng = np.random.default_rng(4)
    turn, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    x = rng.standard_normal((40, 5))
    np.testing.assert_allclose(fed(x, x @ turn, [13]).rotation(), turn, atol=1e-10)


def test_rotation_with_few_rows_leaves_the_unseen_directions_alone() -> None:
    x = np.zeros((4, 6))
    x[:, :2] = np.random.default_rng(5).standard_normal((4, 2))
    y = x.copy()
    y[:, [0, 1]] = x[:, [1, 0]]
    turn = fed(x, y, []).rotation(toward_identity=1e-3)
    np.testing.assert_allclose(turn[2:, 2:], np.eye(4), atol=1e-9)
    np.testing.assert_allclose(x @ turn, y, atol=1e-2)


def test_row_sums() -> None:
    x = np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    y = np.array([[4.0, 3.0], [0.0, 4.0], [1.0, 0.0]])
    sums = RowSums()
    sums.update(x[:1], y[:1])
    sums.update(x[1:], y[1:])
    assert sums.cosine() == pytest.approx((24 / 25 + 1 + 0) / 3)
    assert sums.relative_norm() == pytest.approx(10 / 7)
    assert sums.relative_change() == pytest.approx((np.sqrt(2) + 2 + 1) / 7)
    assert sums.representation_bias() == pytest.approx((2 + 2 + 1) / 6)
    assert not sums.identical


def test_identical_means_to_the_last_bit() -> None:
    x = np.random.default_rng(6).standard_normal((4, 3)).astype(np.float32)
    y = x.copy()
    sums = RowSums()
    sums.update(x, y)
    assert sums.identical
    y[2, 1] = np.nextafter(y[2, 1], np.float32(9))
    sums.update(x, y)
    assert not sums.identical


@settings(max_examples=30, deadline=None)
@given(probes=st.integers(1, 12), texts=st.integers(2, 12), seed=st.integers(0, 1000))
def test_gallery_statistics_equal_loops(probes: int, texts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    u, w = rng.standard_normal((probes, 4)), rng.standard_normal((texts, 4))
    right = rng.integers(0, texts, probes)
    result = gallery_statistics(u, w, right, neighbours=3, negatives=5)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    for i in range(probes):
        scores = [cosine(u[i], w[j]) for j in range(texts)]
        near = max(1, min(3, texts // 2))
        assert set(result.neighbours[i]) == set(sorted(range(texts), key=lambda j: -scores[j])[:near])
        wrong = sorted((scores[j] for j in range(texts) if j != right[i]), reverse=True)[:5]
        assert result.margins[i] == pytest.approx(scores[right[i]] - sum(wrong) / len(wrong), abs=1e-10)
    unit_u = [row / np.sqrt(row @ row) for row in u]
    unit_w = [row / np.sqrt(row @ row) for row in w]
    assert result.alignment == pytest.approx(
        sum(((unit_u[i] - unit_w[right[i]]) ** 2).sum() for i in range(probes)) / probes
    )
    gap = sum(unit_u) / probes - sum(unit_w) / texts
    assert result.modality_gap == pytest.approx(np.sqrt(gap @ gap))
    if probes > 1:
        terms = [
            np.exp(-2 * ((unit_u[i] - unit_u[j]) ** 2).sum()) for i in range(probes) for j in range(probes) if i != j
        ]
        assert result.uniformity == pytest.approx(np.log(sum(terms) / len(terms)))


def test_neighbour_overlap_ignores_order() -> None:
    first, second = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[3, 1, 2], [6, 7, 8]])
    np.testing.assert_allclose(neighbour_overlap(first, second), [1, 1 / 3])


def test_uniformity_of_one_row_is_not_a_number() -> None:
    assert np.isnan(uniformity(np.ones((1, 3))))


def held(value: object) -> int:
    """Numbers kept by a statistic: entries of its arrays, one for anything else."""
    if isinstance(value, np.ndarray):
        return value.size
    if isinstance(value, (tuple, list)):
        return sum(held(part) for part in value)
    return sum(held(part) for part in vars(value).values()) if hasattr(value, "__dict__") else 1


def test_what_is_kept_does_not_grow_with_the_rows() -> None:
    sizes = set()
    for batches in (2, 200):
        moments, sums = PairMoments(), RowSums()
        for seed in range(batches):
            x, y = rows(16, 6, seed)
            moments.update(x, y)
            sums.update(x, y)
        assert moments.count == sums.count == 16 * batches
        sizes.add(held(moments) + held(sums))
    assert len(sizes) == 1


def test_rows_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(UsageError, match="must have matching rows"):
        PairMoments().update(np.zeros((3, 2)), np.zeros((4, 2)))
    with pytest.raises(UsageError, match="at least 2 rows"):
        fed(np.zeros((1, 2)), np.zeros((1, 2)), []).covariances()
    with pytest.raises(UsageError, match="two distinct texts"):
        gallery_statistics(np.zeros((1, 2)), np.zeros((1, 2)), np.array([0]))
