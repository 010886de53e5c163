"""Merging by covariances: least squares solved another way, worked examples, and what cannot be done."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmerge.errors import MergeError
from taskmerge.methods import find_method
from taskmerge.methods.covariance import leading_directions, protected


def merged(
    name: str, deltas: np.ndarray, weights: list[float], covariances: np.ndarray | None, **options: float
) -> np.ndarray:
    method = find_method(name)
    return method.merge(
        torch.from_numpy(deltas),
        torch.tensor(weights, dtype=torch.float64),
        method.options(options),
        covariances=None if covariances is None else torch.from_numpy(covariances),
    ).numpy()


def example(specialists: int, outputs: int, width: int, seed: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Deltas, the inputs of each specialist's layer (rows), and their covariances."""
    rng = np.random.default_rng(seed)
    inputs = [rng.standard_normal((40, width)) * rng.uniform(0.2, 3, width) for _ in range(specialists)]
    covariances = np.stack([rows.T @ rows / len(rows) for rows in inputs])
    return rng.standard_normal((specialists, outputs, width)), inputs, covariances


@settings(max_examples=20, deadline=None)
@given(specialists=st.integers(1, 3), outputs=st.integers(1, 5), width=st.integers(1, 6), seed=st.integers(0, 99))
def test_regmean_is_the_least_squares_fit_of_all_outputs(specialists: int, outputs: int, width: int, seed: int) -> None:
    deltas, inputs, covariances = example(specialists, outputs, width, seed)
    weights = list(np.linspace(0.5, 2, specialists))
    rows = np.concatenate([np.sqrt(w / len(z)) * z for w, z in zip(weights, inputs, strict=True)])
    wanted = np.concatenate([np.sqrt(w / len(z)) * z @ d.T for w, z, d in zip(weights, inputs, deltas, strict=True)])
    solution, *_ = np.linalg.lstsq(rows, wanted, rcond=None)
    found = merged("regmean", deltas, weights, covariances, ridge=0.0)
    np.testing.assert_allclose(found, solution.T, rtol=1e-7, atol=1e-7)


def test_regmean_with_ridge_and_less_off_diagonal_equals_its_formula() -> None:
    deltas, _, covariances = example(2, 3, 4, 7)
    conditioned = [0.9 * c + 0.1 * np.diag(np.diag(c)) + 0.01 * np.mean(np.diag(c)) * np.eye(4) for c in covariances]
    moved = 0.3 * deltas[0] @ conditioned[0] + 0.5 * deltas[1] @ conditioned[1]
    wanted = 2 * moved @ np.linalg.inv(0.3 * conditioned[0] + 0.5 * conditioned[1])
    found = merged("regmean", deltas, [0.3, 0.5], covariances, off_diagonal=0.9, ridge=0.01, scale=2.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_regmean_serves_each_where_only_it_looks() -> None:
    deltas = np.stack([np.full((2, 4), 1.0), np.full((2, 4), -3.0)])
    sees = np.stack([np.diag([1.0, 1, 0, 0]), np.diag([0.0, 0, 1, 1])])
    found = merged("regmean", deltas, [1, 1], sees, ridge=1e-9)
    np.testing.assert_allclose(found, [[1, 1, -3, -3]] * 2, atol=1e-6)


def test_regmean_forgets_the_weights_scale_and_returns_equal_deltas() -> None:
    deltas, _, covariances = example(2, 3, 4, 8)
    first = merged("regmean", deltas, [1, 2], covariances)
    np.testing.assert_allclose(merged("regmean", deltas, [10, 20], covariances), first, rtol=1e-9)
    same = np.stack([deltas[0], deltas[0]])
    np.testing.assert_allclose(merged("regmean", same, [1, 2], covariances), deltas[0], rtol=1e-9)
    assert not merged("regmean", deltas, [0, 0], covariances).any()


def test_regmean_takes_float32_and_computes_in_float64() -> None:
    deltas, _, covariances = example(2, 3, 4, 9)
    method = find_method("regmean")
    found = method.merge(
        torch.from_numpy(deltas).float(), torch.ones(2), method.options(), covariances=torch.from_numpy(covariances)
    )
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), merged("regmean", deltas, [1, 1], covariances), rtol=1e-4, atol=1e-5)


def test_covariances_that_cannot_be_used_are_refused() -> None:
    deltas, _, covariances = example(2, 3, 4, 10)
    with pytest.raises(MergeError, match="cannot be inverted"):
        merged("regmean", deltas, [1, 1], np.zeros((2, 4, 4)), ridge=0.0)
    with pytest.raises(MergeError, match=r"shape \(2, 3, 3\) do not fit deltas of shape \(2, 3, 4\)"):
        merged("regmean", deltas, [1, 1], covariances[:, :3, :3])
    with pytest.raises(MergeError, match="do not fit"):
        protected(torch.from_numpy(deltas), [torch.eye(3), None])


def test_protected_deltas_leave_the_owners_outputs_as_they_were() -> None:
    rng = np.random.default_rng(11)
    deltas = rng.standard_normal((3, 5, 6))
    rows = rng.standard_normal((50, 2)) @ rng.standard_normal((2, 6))  # what specialist 0 sees: two directions of six
    covariance = torch.from_numpy(rows.T @ rows)
    found = protected(torch.from_numpy(deltas), [covariance, None, None], 1 - 1e-12).numpy()
    np.testing.assert_array_equal(found[0], deltas[0])
    np.testing.assert_allclose(rows @ found[1].T, 0, atol=1e-9)
    np.testing.assert_allclose(rows @ found[2].T, 0, atol=1e-9)
    rest = np.linalg.svd(rows)[2][2:]  # outside those directions nothing is lost
    np.testing.assert_allclose(found @ rest.T, deltas @ rest.T, atol=1e-9)


def test_protecting_two_from_each_other() -> None:
    deltas = torch.from_numpy(np.ones((2, 1, 3)))
    sees = [torch.diag(torch.tensor([1.0, 0, 0])).double(), torch.diag(torch.tensor([0.0, 1, 0])).double()]
    np.testing.assert_allclose(protected(deltas, sees, 0.9).numpy(), [[[1, 0, 1]], [[0, 1, 1]]], atol=1e-12)


def test_no_energy_protects_nothing() -> None:
    deltas, _, covariances = example(2, 3, 4, 12)
    found = protected(torch.from_numpy(deltas), [torch.from_numpy(c) for c in covariances], 0.0)
    np.testing.assert_array_equal(found.numpy(), deltas)


@pytest.mark.parametrize(("energy", "count"), [(0.0, 0), (0.5, 1), (0.6, 1), (0.61, 2), (0.9, 2), (0.95, 3), (1.0, 3)])
def test_leading_directions_are_the_fewest_that_hold_the_energy(energy: float, count: int) -> None:
    turn = np.linalg.qr(np.random.default_rng(13).standard_normal((4, 4)))[0]
    covariance = turn @ np.diag([6.0, 3.0, 1.0, 0.0]) @ turn.T
    found = leading_directions(torch.from_numpy(covariance), energy).numpy()
    if energy in (0.6, 0.9, 1.0):  # at the edge rounding may take one more
        assert found.shape[1] in (count, count + 1)
    else:
        assert found.shape[1] == count
    np.testing.assert_allclose(found.T @ found, np.eye(found.shape[1]), atol=1e-12)


def test_actmat_zeroes_the_gradient_of_its_objective() -> None:
    rng = np.random.default_rng(14)
    deltas = rng.standard_normal((3, 4, 6))
    found = merged("actmat", deltas, [1, 1, 1], None, ridge=0.0)
    gradient = sum((found - d) @ d.T @ d for d in deltas)  # of ½ Σ ‖(W - d_i) d_iᵀ‖²
    np.testing.assert_allclose(gradient, 0, atol=1e-9)


def test_actmat_density_makes_the_gram_of_the_largest_entries() -> None:
    rng = np.random.default_rng(15)
    deltas = rng.standard_normal((2, 3, 4))
    kept = np.stack([np.where(np.abs(d) >= np.sort(np.abs(d).ravel())[-6], d, 0) for d in deltas])
    grams = [k.T @ k for k in kept]
    wanted = sum(d @ g for d, g in zip(deltas, grams, strict=True)) @ np.linalg.pinv(sum(grams))
    np.testing.assert_allclose(
        merged("actmat", deltas, [1, 1], None, density=0.5, ridge=0.0), wanted, rtol=1e-8, atol=1e-9
    )


def nearly_singular(seed: int = 16) -> np.ndarray:
    """Four deltas of 24 x 96: all their rows together are square, so that their Gram matrices sum to full rank, barely.
    Strong directions are shared, as those of specialists of one base are."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((24, 96)) * np.linspace(1, 0.01, 96)
    return np.stack([shared + 0.7 * rng.standard_normal((24, 96)) * np.linspace(1, 0.01, 96) for _ in range(4)])


def test_actmat_with_a_ridge_is_least_squares_with_a_pull_to_every_delta() -> None:
    deltas, weights, ridge = nearly_singular(), [1.0, 0.5, 2.0, 0.3], 0.1
    rows, targets = [], []
    for delta, weight in zip(deltas, weights, strict=True):
        pull = np.sqrt(ridge * np.mean(np.sum(delta**2, axis=0))) * np.eye(96)
        seen = np.sqrt(weight) * np.vstack([delta, pull])  # what W and d_i are to do the same to
        rows.append(seen)
        targets.append(seen @ delta.T)
    wanted = np.linalg.lstsq(np.vstack(rows), np.vstack(targets), rcond=None)[0].T
    np.testing.assert_allclose(merged("actmat", deltas, weights, None, ridge=ridge), wanted, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(merged("actmat", deltas, weights, None), wanted, rtol=1e-8, atol=1e-10)  # the default


def test_a_nearly_singular_sum_of_grams_does_not_blow_up_actmat() -> None:
    deltas = nearly_singular()
    longest = max(np.linalg.norm(delta) for delta in deltas)
    assert np.linalg.cond(sum(d.T @ d for d in deltas)) > 1e6
    assert np.linalg.norm(merged("actmat", deltas, [1] * 4, None, ridge=0.0)) > 5 * longest
    assert np.linalg.norm(merged("actmat", deltas, [1] * 4, None)) < 2 * longest
    same = np.stack([deltas[0]] * 3)
    np.testing.assert_allclose(merged("actmat", same, [1] * 3, None), deltas[0], rtol=1e-8, atol=1e-9)
    np.testing.assert_array_equal(merged("actmat", 0 * deltas, [1] * 4, None), 0)
    np.testing.assert_array_equal(merged("actmat", np.stack([deltas[0]] * 2), [1, -1], None), 0)
