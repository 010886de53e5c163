"""What must hold of every method that takes whole tensors, on the inputs that are not like the others."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from taskmerge.methods import find_method

MATRICES = ["actmat", "cart", "core", "iso_c", "iso_cts", "knots", "star", "svc", "swudi", "tact", "tsv", "wudi"]
ENTRIES = ["emr", "pcb", "regmean", "sce"]
EVERY = pytest.mark.parametrize("name", [*MATRICES, *ENTRIES])
SHAPES = pytest.mark.parametrize("shape", [(9, 9), (12, 7), (5, 11)], ids=str)


def merged(
    name: str, deltas: np.ndarray, weights: list[float], noise: list[float] | None = None, **options: str
) -> np.ndarray:
    method = find_method(name)
    found = method.merge(
        torch.from_numpy(deltas),
        torch.tensor(weights, dtype=torch.float64),
        method.options(options),
        noise=None if noise is None else torch.tensor(noise, dtype=torch.float64),
    )
    assert found.dtype == torch.float64 and torch.isfinite(found).all()
    return found.numpy()


def task_vectors(shape: tuple[int, ...], count: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *shape))


def low_rank(shape: tuple[int, int], count: int, rank: int, seed: int = 1) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(count, shape[0], rank)) @ draw.normal(size=(count, rank, shape[1]))


@EVERY
@SHAPES
@pytest.mark.parametrize("zeros", [0, 1, 2])
def test_the_order_of_specialists_does_not_matter_those_without_a_delta_included(
    name: str, shape: tuple[int, int], zeros: int
) -> None:
    for deltas in (task_vectors(shape), low_rank(shape, 3, 2)):
        deltas[:zeros] = 0.0
        weights = [0.5, 1.0, 0.7]
        wanted = merged(name, deltas, weights)
        for order in permutations(range(3)):
            found = merged(name, deltas[list(order)], [weights[index] for index in order])
            np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-8 * np.abs(wanted).max())


AVERAGES_WHO_AGREES = ("core", "knots", "sce")
"""TIES' mean: of the entries that agree by their weights, so that an entry which only one holds counts in full, however
little that one weighs; with weight 0 it is not there."""


@pytest.mark.parametrize("name", [name for name in (*MATRICES, *ENTRIES) if name not in AVERAGES_WHO_AGREES])
@SHAPES
@pytest.mark.parametrize("zero", [[0.0, 1.0, 0.7], [0.4, 0.0, 0.0]])
def test_a_weight_of_zero_is_the_limit_of_small_weights(name: str, shape: tuple[int, int], zero: list[float]) -> None:
    for deltas in (task_vectors(shape), low_rank(shape, 3, 2)):
        for noise in (None, [1e-3] * 3):
            wanted = merged(name, deltas, zero, noise)
            found = merged(name, deltas, [weight or 1e-12 for weight in zero], noise)
            np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-8 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["core", "knots"])
@SHAPES
def test_a_weight_of_zero_in_another_space(name: str, shape: tuple[int, int]) -> None:
    deltas = task_vectors(shape)
    wanted = merged(name, deltas, [0.0, 1.0, 0.7], inside="task_arithmetic")
    np.testing.assert_allclose(merged(name, deltas, [1e-12, 1.0, 0.7], inside="task_arithmetic"), wanted, atol=1e-10)


@EVERY
@SHAPES
def test_task_vectors_that_cancel(name: str, shape: tuple[int, int]) -> None:
    delta = task_vectors(shape, 1)[0]
    found = merged(name, np.stack([0.1 * delta, 0.2 * delta, -0.3 * delta]), [1.0, 1.0, 1.0])
    assert np.linalg.norm(found) < 3 * np.linalg.norm(delta)
    merged(name, np.stack([delta, delta]), [1.0, -1.0])
    merged(name, np.stack([delta, delta]), [-1.0, 0.5])
    merged(name, np.stack([delta, -delta]), [1.0, 1.0])


@EVERY
@SHAPES
def test_equal_task_vectors_give_a_multiple_of_one(name: str, shape: tuple[int, int]) -> None:
    delta = low_rank(shape, 1, 2 if name != "tsv" else 1)[0]  # tsv gives each a third of the directions
    found, alone = merged(name, np.stack([delta] * 3), [1.0] * 3), merged(name, delta[None], [1.0])
    factor = float((found * alone).sum() / (alone * alone).sum())
    np.testing.assert_allclose(found, factor * alone, atol=1e-8)
    assert 0.3 < factor < 3.1


@EVERY
@pytest.mark.parametrize("shape", [(), (0,), (1,), (6,), (3, 0), (0, 4), (1, 1), (1, 5), (5, 1), (2, 3, 4)], ids=str)
def test_tensors_of_any_shape(name: str, shape: tuple[int, ...]) -> None:
    for count in (1, 2):
        deltas = np.asarray(task_vectors(shape, count)).reshape(count, *shape)
        assert merged(name, deltas, [0.5] * count, [0.01] * count).shape == shape
        if name in MATRICES and len(shape) != 2:
            np.testing.assert_allclose(merged(name, deltas, [0.5] * count), 0.5 * deltas.mean(axis=0), rtol=1e-12)


@EVERY
def test_scale_multiplies_what_any_method_gives(name: str) -> None:
    method = find_method(name)
    deltas, weights = torch.from_numpy(task_vectors((6, 5))), torch.ones(3, dtype=torch.float64)
    plain = method(deltas, weights, *[None] * (len(method.inputs) - 2))
    for scale in (1.0, -0.5, 0.0):
        found = method.merge(deltas, weights, method.options({"scale": scale}))
        np.testing.assert_array_equal(found.numpy(), scale * plain.numpy())
    assert [row.name for row in method.parameters].count("scale") == 1


@EVERY
def test_float32_loses_nothing_on_the_way(name: str) -> None:
    deltas = task_vectors((20, 16)).astype(np.float32)
    method, weights = find_method(name), torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    narrow = method.merge(torch.from_numpy(deltas), weights, method.options()).numpy()
    wide = method.merge(torch.from_numpy(deltas.astype(np.float64)), weights, method.options()).numpy()
    np.testing.assert_array_equal(narrow, wide)


def test_wudi_stays_bounded_where_its_formula_does_not() -> None:
    """Four deltas of 24 x 96: as many rows together as columns. The issue: 27 times the length of their sum."""
    draw = np.random.default_rng(16)
    shared = draw.normal(size=(24, 96)) * np.linspace(1, 0.01, 96)
    deltas = np.stack([shared + 0.7 * draw.normal(size=(24, 96)) * np.linspace(1, 0.01, 96) for _ in range(4)])
    length = np.linalg.norm(deltas.sum(axis=0))
    method = find_method("wudi")
    formula = method.merge(torch.from_numpy(deltas), torch.ones(4).double(), method.options({"ridge": 0.0})).numpy()
    assert np.linalg.norm(formula) > 5 * length
    assert np.linalg.norm(merged("wudi", deltas, [1.0] * 4)) < length


@pytest.mark.parametrize("name", MATRICES)
def test_token_tables_are_merged_by_their_mean(name: str) -> None:
    method = find_method(name)
    assert method.decomposes_matrices
    program = method.program((0.3, 0.6), method.options(), (150_000, 8), token_table=True)
    assert program is not None and program.weights == (0.15, 0.3)
    note = method.token_table_note("embed_tokens.weight", (151_936, 1024))
    assert note.startswith(f"embed_tokens.weight (151,936 x 1,024) is a token table: {name} merges matrices")
    assert "{match: 'embed_tokens.weight', method: task_arithmetic}" in note
    assert not find_method("ties").decomposes_matrices


@EVERY
def test_memory_grows_with_specialists_and_size(name: str) -> None:
    method = find_method(name)
    deltas = 3 * 8 * 100 * 200
    assert method.peak_bytes(3, (100, 200)) > deltas
    assert method.peak_bytes(4, (100, 200)) - method.peak_bytes(3, (100, 200)) >= 8 * 100 * 200
    assert method.peak_bytes(3, (200, 200)) > method.peak_bytes(3, (100, 200))
    assert method.peak_bytes(3, (7,)) < 4096
