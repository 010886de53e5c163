"""The noise that storage leaves, against the rounding that really happens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kernel_oracles import PRECISION, stored, valued

from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.storage_noise import noise_of, storage_noise, white_equivalent
from taskmerge.numbers.rounding import on_grid, step


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    return valued(stored(values, dtype), dtype).reshape(values.shape)


def weights(values: np.ndarray, dtype: str) -> MemoryStateDict:
    entries = stored(values, dtype).reshape(values.shape)
    held = torch.from_numpy(entries.view(np.int16)).view(torch.bfloat16) if dtype == "BF16" else entries
    return MemoryStateDict({"t": held})


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_it_is_the_deviation_of_real_rounding(dtype: str) -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(size=(400, 300)) * 0.02
    real = float(np.std(rounded(values, dtype) - values))
    assert storage_noise([rounded(values, dtype)], dtype) == pytest.approx(real, rel=0.02)
    assert noise_of(weights(values, dtype), "t") == pytest.approx(real, rel=0.03)
    assert noise_of(weights(values.ravel(), dtype), "t") == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_steps_are_the_distances_between_numbers(dtype: str) -> None:
    digits, least = PRECISION[dtype]
    tiny = 2.0 ** (least - digits + 1)
    given = np.array([1.0, 1.5, 2.0, -3.0, 0.0, 2.0**least, 2.0**least * 0.75, tiny, 1000.0])
    wanted = [2.0 ** (1 - digits)] * 2 + [2.0 ** (2 - digits)] * 2 + [tiny] * 4 + [2.0 ** (10 - digits)]
    np.testing.assert_array_equal(step(given, dtype), wanted)


def test_chunks_do_not_matter() -> None:
    values = rounded(np.random.default_rng(1).normal(size=1000), "BF16")
    whole = storage_noise([values], "BF16")
    assert storage_noise(np.split(values, [1, 10, 999]), "BF16") == pytest.approx(whole, rel=1e-12)
    assert storage_noise([], "BF16") == 0.0
    assert noise_of(MemoryStateDict({"t": np.zeros((3, 0), np.float32)}), "t") == 0.0


def test_a_model_that_was_bf16_before_it_was_stored_wider_has_the_noise_of_bf16() -> None:
    values = rounded(np.random.default_rng(2).normal(size=(50, 40)), "BF16")
    assert on_grid(values, "BF16") and not on_grid(values + 1e-7, "BF16")
    assert noise_of(weights(values, "F32"), "t") == pytest.approx(noise_of(weights(values, "BF16"), "t"))
    assert noise_of(weights(values + 1e-5, "F32"), "t") < 1e-3 * noise_of(weights(values, "BF16"), "t")


def test_entries_that_did_not_move_are_as_uncertain_as_the_others() -> None:
    """LoRA of a hundredth of its base: a fifth of the bf16 entries are the base's own, and the noise is right."""
    draw = np.random.default_rng(3)
    base = rounded(draw.normal(size=(256, 256)), "BF16")
    delta = draw.normal(size=(256, 4)) @ draw.normal(size=(4, 256)) / 2 * 0.01
    moved = rounded(base + delta, "BF16")
    assert 0.1 < (moved == base).mean() < 0.3
    assert storage_noise([moved], "BF16") == pytest.approx(np.std(moved - base - delta), rel=0.03)


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(300, 300), (100, 500)])
def test_rows_and_columns_of_large_entries_count_as_they_do_in_the_largest_singular_value(
    spread: float, shape: tuple[int, int]
) -> None:
    draw = np.random.default_rng(4)
    rows, columns = np.exp(spread * draw.normal(size=(shape[0], 1))), np.exp(spread * draw.normal(size=(1, shape[1])))
    deviations = rows * columns
    largest = np.mean([np.linalg.norm(deviations * draw.normal(size=shape), 2) for _ in range(5)])
    variances = deviations**2
    found = white_equivalent(variances.sum(axis=1), variances.sum(axis=0))
    edge = found * (math.sqrt(shape[0]) + math.sqrt(shape[1]))
    assert 0.9 * largest < edge < 1.25 * largest
    if not spread:
        assert found == pytest.approx(1.0, rel=1e-3)
