"""Matrix methods on LoRA that was stored merged: the rounding of the file is not taken for rank."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from kernel_oracles import stored, valued

from taskmerge.checkpoints.memory import MemoryStateDict
from taskmerge.checkpoints.storage_noise import noise_of
from taskmerge.methods import find_method
from taskmerge.methods.spectral.matrices import denoised, limits, triplets, white

SMOOTH = ["iso_c", "iso_cts", "tsv", "wudi", "swudi", "actmat", "svc", "star", "cart"]
SPACES = ["core", "knots"]


class Stored:
    """Random LoRA of given ranks on one Gaussian base, merged into it and rounded to a number format.

    exact, read: (specialists, rows, columns), what was meant and what the files hold. noise: as the engine finds it.
    """

    def __init__(self, dtype: str, shape: tuple[int, int], ranks: list[int], ratio: float, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        base = valued(stored(0.02 * draw.normal(size=shape), dtype), dtype).reshape(shape)
        exact, read, noise = [], [], []
        for rank in ranks:
            delta = draw.normal(size=(shape[0], rank)) @ draw.normal(size=(rank, shape[1]))
            delta *= ratio * np.linalg.norm(base) / np.linalg.norm(delta)
            entries = stored(base + delta, dtype).reshape(shape)
            held = torch.from_numpy(entries.view(np.int16)).view(torch.bfloat16) if dtype == "BF16" else entries
            exact.append(delta)
            read.append(valued(entries, dtype).reshape(shape) - base)
            noise.append(noise_of(MemoryStateDict({"t": held}), "t"))
        self.exact, self.read, self.noise = np.stack(exact), np.stack(read), noise
        self.ranks = ranks

    def bound(self) -> float:
        """The noise inside the task vectors' own spaces: no rank decision takes it away."""
        rows, columns = self.exact.shape[1:]
        return max(
            sigma * math.sqrt(rank * (rows + columns - rank)) / float(np.linalg.norm(delta))
            for sigma, rank, delta in zip(self.noise, self.ranks, self.exact, strict=True)
        )

    def of_known_rank(self) -> np.ndarray:
        """What somebody would make of the files who was told the ranks."""
        found = []
        for delta, rank in zip(self.read, self.ranks, strict=True):
            u, s, v = np.linalg.svd(delta, full_matrices=False)
            found.append((u[:, :rank] * s[:rank]) @ v[:rank])
        return np.stack(found)


def merged(name: str, deltas: np.ndarray, noise: list[float] | None = None, **options: Any) -> np.ndarray:
    method = find_method(name)
    return method.merge(
        torch.from_numpy(deltas),
        torch.ones(len(deltas), dtype=torch.float64),
        method.options(options),
        noise=None if noise is None else torch.tensor(noise, dtype=torch.float64),
    ).numpy()


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.5])
@pytest.mark.parametrize(("shape", "rank"), [((64, 48), 4), ((64, 48), 8), ((256, 256), 16), ((24, 96), 4)])
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_merging_what_was_stored_is_merging_what_was_meant(
    dtype: str, shape: tuple[int, int], rank: int, ratio: float
) -> None:
    case = Stored(dtype, shape, [rank] * 3, ratio)
    for name in SMOOTH:
        error = distance(merged(name, case.read, case.noise), merged(name, case.exact))
        # star and cart cut a spectrum at a count, svc divides by shares: they may double what noise is in a direction.
        factor = 2.2 if name in ("star", "cart", "svc") else 1.5
        assert error < max(factor * case.bound(), 0.03), name


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize(("shape", "rank"), [((64, 48), 4), ((256, 256), 8)])
def test_spaces_choose_as_if_the_ranks_were_known(name: str, shape: tuple[int, int], rank: int) -> None:
    """TIES in a space of singular vectors turns with them: that much differs, for whoever knows the ranks too."""
    case = Stored("BF16", shape, [rank] * 3, 0.03)
    wanted = merged(name, case.of_known_rank())
    assert distance(merged(name, case.read, case.noise), wanted) < 1e-6
    sum_of_all = merged(name, case.read, case.noise, inside="task_arithmetic")
    assert distance(sum_of_all, case.exact.sum(axis=0)) < 1.4 * case.bound()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_ranks_are_found_one_by_one(dtype: str) -> None:
    case = Stored(dtype, (256, 200), [4, 12, 1], 0.05)
    for delta, noise, rank in zip(case.read, case.noise, case.ranks, strict=True):
        assert triplets(torch.from_numpy(delta), white(noise)).rank == rank


def test_without_the_noise_the_rounding_would_be_rank() -> None:
    case = Stored("BF16", (64, 48), [4] * 3, 0.03)
    assert distance(merged("iso_c", case.read), merged("iso_c", case.exact)) > 0.8
    assert triplets(torch.from_numpy(case.read[0])).rank == 48


@pytest.mark.parametrize("name", [*SMOOTH, *SPACES, "tact"])
def test_no_noise_is_exact(name: str) -> None:
    case = Stored("F16", (40, 56), [5, 3, 4], 0.1)
    np.testing.assert_array_equal(merged(name, case.exact, [0.0] * 3), merged(name, case.exact))


@pytest.mark.parametrize("name", [*SMOOTH, "core"])
def test_an_exact_adapter_beside_stored_models_keeps_its_weak_directions(name: str) -> None:
    case = Stored("BF16", (96, 80), [3, 3], 0.05)
    mixed = np.stack([case.exact[0], case.read[1]])
    options: dict[str, Any] = {"inside": "task_arithmetic"} if name == "core" else {}
    error = distance(merged(name, mixed, [0.0, case.noise[1]], **options), merged(name, case.exact, **options))
    assert error < 1.5 * case.bound()


def test_shared_spaces_do_not_become_two() -> None:
    """LoRA with one common B, stored with rounding of its own each: the two spaces found differ by that alone."""
    draw = np.random.default_rng(3)
    base = valued(stored(0.02 * draw.normal(size=(80, 64)), "BF16"), "BF16").reshape(80, 64)
    common = draw.normal(size=(80, 4))
    exact = np.stack([common @ draw.normal(size=(4, 64)) for _ in range(3)])
    exact *= 0.05 * np.linalg.norm(base) / np.linalg.norm(exact[0])
    read = np.stack([valued(stored(base + d, "BF16"), "BF16").reshape(80, 64) - base for d in exact])
    noise = [float(np.std(read[0] - exact[0]))] * 3
    for name in ("iso_c", "iso_cts", "tsv", "wudi", "actmat"):
        assert distance(merged(name, read, noise), merged(name, exact)) < 0.05, name


def test_what_is_all_noise_is_taken_as_it_is() -> None:
    noisy = np.random.default_rng(0).normal(size=(1, 300, 200))
    assert triplets(torch.from_numpy(noisy[0]), white(1.0)).rank == 200
    np.testing.assert_array_equal(denoised(torch.from_numpy(noisy), [1.0]).numpy(), noisy)
    for name in (*SMOOTH, *SPACES):
        assert np.isfinite(merged(name, noisy, [1.0])).all()


@pytest.mark.parametrize("shape", [(200, 200), (300, 100), (64, 512)])
def test_the_limit_is_that_of_least_error_and_above_all_noise(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(1)
    largest = max(np.linalg.norm(draw.normal(size=shape), 2) for _ in range(20))
    (limit,) = limits(shape, white(1.0), 1)
    assert largest < limit < 1.5 * largest
    assert limits((100, 100), white(2.0), 1)[0] == pytest.approx(2.0 * 4 / math.sqrt(3) * 10)  # Gavish & Donoho


def test_full_fine_tunes_keep_their_rank() -> None:
    draw = np.random.default_rng(2)
    delta = torch.from_numpy(draw.normal(size=(160, 140)))
    # Rounding of a hundredth takes no more than the values that are as small as it.
    assert triplets(delta, white(0.01)).rank >= 139
