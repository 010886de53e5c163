"""The spectral methods against results computed elsewhere, and the facts about them that users rely on."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from places import TESTS

from taskmerge.methods import find_method
from taskmerge.methods.spectral.matrices import polar, triplets
from taskmerge.methods.spectral.trimmed import calibrated, shrunk

ORACLES: dict[str, Any] = json.loads((TESTS / "oracles" / "spectral.json").read_text())
DELTAS = torch.tensor(ORACLES["inputs"], dtype=torch.float64)


def merged(name: str, deltas: torch.Tensor = DELTAS, **options: Any) -> np.ndarray:
    method = find_method(name)
    weights = torch.ones(deltas.shape[0], dtype=torch.float64)
    return method.merge(deltas, weights, method.options(options)).numpy()


@pytest.mark.parametrize(
    ("name", "options", "result"),
    [
        ("iso_c", {}, "iso_c"),
        ("tsv", {}, "tsv_m"),
        ("actmat", {"ridge": 0.0}, "actmat"),
        ("wudi", {"ridge": 0.0}, "wudi_closed"),
        ("swudi", {}, "swudi_t300_r0.65"),
    ],
)
def test_equals_what_was_computed_elsewhere(name: str, options: dict[str, Any], result: str) -> None:
    np.testing.assert_allclose(merged(name, **options), ORACLES[result], rtol=1e-10, atol=1e-10)


def test_magmax_is_what_was_computed_elsewhere_but_for_ties() -> None:
    found, wanted = merged("magmax"), np.array(ORACLES["magmax"])
    np.testing.assert_array_equal(np.abs(found), np.abs(wanted))
    signs = np.sign(DELTAS.numpy()) * (np.abs(DELTAS.numpy()) == np.abs(wanted))
    tied = (signs.max(axis=0) > 0) & (signs.min(axis=0) < 0)
    assert tied.sum() == 2
    np.testing.assert_array_equal(found[~tied], wanted[~tied])


def test_star_keeps_what_was_computed_elsewhere() -> None:
    kept = shrunk(triplets(DELTAS[0]), 0.4).matrix
    np.testing.assert_allclose(kept.numpy(), ORACLES["star_eta40_task0"], rtol=1e-10, atol=1e-10)


def test_tall_masks_are_what_was_computed_elsewhere() -> None:
    active = np.array(ORACLES["tall_masks_0.4"], bool).sum(axis=0)
    for least in (1, 2, 3):
        wanted = np.where(active >= least, DELTAS.sum(dim=0).numpy(), 0.0)
        np.testing.assert_array_equal(merged("consensus", theta=0.4, minimum=least), wanted)


def test_model_stock_over_one_tensor_is_what_was_computed_elsewhere() -> None:
    step, result = ORACLES["model_stock_global"]
    np.testing.assert_allclose(merged("model_stock"), result, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(merged("model_stock"), step * DELTAS.mean(dim=0).numpy(), rtol=1e-12, atol=1e-12)


def test_della_probabilities_are_what_was_computed_elsewhere_but_for_ties() -> None:
    method, one = find_method("della_linear"), DELTAS[:1]
    options = method.options({"density": 0.7, "epsilon": 0.1})
    kept = method.merge(one, torch.ones(1), options, random_bits=torch.zeros(one.shape, dtype=torch.int64))
    wanted = np.array(ORACLES["della_keep_prob_task0_d0.7_eps0.1"])
    moved = one[0].numpy() != 0  # all are kept, each divided by its own probability
    found = np.where(moved, one[0].numpy() / np.where(moved, kept.numpy(), 1.0), wanted)
    np.testing.assert_allclose(found[:2], wanted[:2], rtol=1e-12)
    # Entries 1, 1, -1 of the last row are equal in magnitude: here they share the mean of what a sort would give them.
    mean = np.array([0.6, *[wanted[2, 1:].mean()] * 3])
    np.testing.assert_allclose(found[2][moved[2]], mean[moved[2]], rtol=1e-12)


def low_rank(rows: int, columns: int, ranks: list[int], seed: int = 0) -> torch.Tensor:
    draw = np.random.default_rng(seed)
    parts = [draw.normal(size=(rows, rank)) @ draw.normal(size=(rank, columns)) for rank in ranks]
    return torch.from_numpy(np.stack(parts))


@pytest.mark.parametrize("name", ["iso_c", "iso_cts", "tsv", "wudi", "actmat", "svc", "knots", "core", "cart", "star"])
def test_rank_deficient_sums_stay_in_their_span_and_are_stable(name: str) -> None:
    deltas = low_rank(64, 48, [4, 4, 4])
    found = merged(name, deltas)
    basis = np.linalg.svd(np.hstack(list(deltas.numpy())))[0][:, :12]
    outside = np.linalg.norm(found - basis @ (basis.T @ found)) / np.linalg.norm(found)
    assert outside < 1e-9
    shaken = merged(name, deltas * (1 + 1e-12 * torch.from_numpy(np.random.default_rng(1).normal(size=deltas.shape))))
    assert np.linalg.norm(shaken - found) / np.linalg.norm(found) < 1e-6


def test_without_the_guard_iso_c_would_be_mostly_noise() -> None:
    """What the guard is for: on a rank-12 sum of 64 × 48 matrices, levelling all 48 values leaves the span."""
    total = low_rank(64, 48, [4, 4, 4]).sum(dim=0).numpy()
    u, s, v = np.linalg.svd(total, full_matrices=False)
    unguarded = s.mean() * u @ v
    basis = u[:, :12]
    outside = np.linalg.norm(unguarded - basis @ (basis.T @ unguarded)) ** 2 / np.linalg.norm(unguarded) ** 2
    assert outside == pytest.approx(0.75, abs=1e-6)


def test_iso_c_is_the_nearest_multiple_of_the_polar_factor() -> None:
    """s̄ · Q = (⟨Q, D⟩ / r) · Q with Q = polar(D)."""
    total = DELTAS.sum(dim=0)
    factor = polar(total)
    np.testing.assert_allclose(merged("iso_c"), ((factor * total).sum() / 3 * factor).numpy(), rtol=1e-12)


def test_wudi_zeroes_its_gradient_where_the_sum_does_not() -> None:
    def gradient(candidate: np.ndarray) -> float:
        parts = [(candidate - d) @ d.T @ d / (d**2).sum() for d in DELTAS.numpy()]
        return float(np.linalg.norm(sum(parts)))

    assert gradient(merged("wudi", ridge=0.0)) < 1e-12
    assert gradient(DELTAS.sum(dim=0).numpy()) > 1.0


def test_swudi_run_forever_over_the_whole_spectrum_ends_at_wudi() -> None:
    # Three 3 x 4 task vectors see every direction, so where the flow starts does not matter in the end.
    for init in ("sum", "mean"):
        np.testing.assert_allclose(
            merged("swudi", time=1e9, density=1.0, init=init), merged("wudi", ridge=0.0), rtol=1e-8
        )
    np.testing.assert_allclose(merged("swudi", time=0.0), DELTAS.sum(dim=0).numpy(), rtol=1e-12)


def test_tsv_of_orthogonal_task_vectors_is_their_sum() -> None:
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    deltas = np.stack([2.0 * basis[:, :4] @ basis[:4], 3.0 * basis[:, 4:] @ basis[4:]])
    found = merged("tsv", torch.from_numpy(deltas))
    # The rows of an orthogonal matrix are orthogonal too, so the two share no direction on either side.
    np.testing.assert_allclose(found, deltas.sum(axis=0), atol=1e-12)


def test_svc_counts_a_shared_task_vector_once() -> None:
    same = DELTAS[:1].expand(3, -1, -1)
    np.testing.assert_allclose(merged("svc", same), DELTAS[0].numpy(), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(
        calibrated(DELTAS[0], DELTAS[:1], 0.1).numpy(), DELTAS[0].numpy(), rtol=1e-10, atol=1e-10
    )


def test_svc_leaves_directions_that_only_one_has() -> None:
    deltas = torch.zeros(2, 4, 4, dtype=torch.float64)
    deltas[0, 0, 0], deltas[1, 1, 1] = 5.0, 2.0
    np.testing.assert_allclose(merged("svc", deltas), deltas.sum(dim=0).numpy(), atol=1e-12)


@pytest.mark.parametrize("name", ["knots", "core"])
def test_a_sum_in_another_space_is_the_sum(name: str) -> None:
    deltas = low_rank(20, 16, [2, 3])
    found = merged(name, deltas, inside="task_arithmetic")
    np.testing.assert_allclose(found, deltas.sum(dim=0).numpy(), atol=1e-9)


@pytest.mark.parametrize("name", ["tsv", "iso_c", "swudi", "star", "svc", "core"])
def test_what_is_no_matrix_streams_as_the_mean(name: str) -> None:
    method = find_method(name)
    program = method.program((0.3, 0.6), method.options({"scale": 2.0}), (7,))
    assert program is not None and program.weights == (0.15, 0.3) and program.scale == 2.0
    assert method.program((0.3, 0.6), method.options(), (7, 3)) is None
