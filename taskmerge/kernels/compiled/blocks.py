"""Loops over one block of float64 deltas, in the first-level cache: what survives, and how the survivors agree.

rows: (specialists, BLOCK) float64, the deltas, in place. Every loop is elementwise and plain: LLVM vectorises it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from taskmerge.kernels.compiled.codes import BY_NOTHING, BY_WEIGHT, MASS, WEIGHTED_MASS
from taskmerge.randomness import FIRST_FACTOR, GOLDEN, SECOND_FACTOR

_GOLDEN = np.uint64(GOLDEN)
_FIRST = np.uint64(FIRST_FACTOR)
_SECOND = np.uint64(SECOND_FACTOR)
_30, _27, _31, _32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)


@njit(nogil=True, error_model="numpy", inline="always")
def random_bits(key: np.uint64, index: np.uint64) -> np.uint64:
    """32 uniform bits for one element, as `taskmerge.randomness.uniform_bits`."""
    z = key + (index + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    return (z ^ (z >> _31)) >> _32


@njit(nogil=True, error_model="numpy")
def keep_between(row: np.ndarray, count: int, low: np.float32, high: np.float32) -> None:
    """Zero the entries whose magnitude, as float32, is outside [low, high]."""
    for j in range(count):
        value = row[j]
        magnitude = np.float32(abs(value))
        row[j] = value if (magnitude >= low) & (magnitude <= high) else 0.0


@njit(nogil=True, error_model="numpy")
def drop_random(
    row: np.ndarray, count: int, key: np.uint64, start: np.uint64, limit: np.uint64, divisor: float, factor: float
) -> None:
    """Zero the entries whose random bits reach `limit`; divide the rest by `divisor`, multiply by `factor`."""
    for j in range(count):
        value = row[j] / divisor * factor
        row[j] = value if random_bits(key, start + np.uint64(j)) < limit else 0.0


@njit(nogil=True, error_model="numpy")
def drop_by_chance(
    row: np.ndarray, count: int, key: np.uint64, start: np.uint64, chances: np.ndarray, rescale: bool
) -> None:
    """Keep each entry with its own probability; survivors ÷ it."""
    for j in range(count):
        chance = chances[j]
        kept = random_bits(key, start + np.uint64(j)) < np.uint64(chance * 4294967296.0)
        divisor = chance if rescale & (chance > 0.0) else 1.0
        row[j] = row[j] / divisor if kept else 0.0


@njit(nogil=True, error_model="numpy")
def add_weighted(row: np.ndarray, count: int, weight: float, total: np.ndarray) -> None:
    for j in range(count):
        total[j] += weight * row[j]


@njit(nogil=True, error_model="numpy")
def elect(
    rows: np.ndarray, count: int, weights: np.ndarray, vote: int, average: int, scratch: np.ndarray, total: np.ndarray
) -> None:
    """TIES' election and disjoint merge into `total`. scratch: (2, BLOCK) float64."""
    sign, divisor = scratch[0], scratch[1]
    for j in range(count):
        sign[j] = 0.0
        divisor[j] = 0.0
        total[j] = 0.0
    for i in range(rows.shape[0]):
        row = rows[i]
        weight = weights[i]
        if vote == WEIGHTED_MASS:
            for j in range(count):
                sign[j] += weight * row[j]
        elif vote == MASS:
            for j in range(count):
                sign[j] += row[j]
        else:
            for j in range(count):
                sign[j] += np.float64(row[j] > 0.0) - np.float64(row[j] < 0.0)
    for i in range(rows.shape[0]):
        row = rows[i]
        weight = weights[i]
        share = weight if average == BY_WEIGHT else 1.0
        for j in range(count):
            value = row[j]
            agrees = ((value > 0.0) & (sign[j] >= 0.0)) | ((value < 0.0) & (sign[j] < 0.0))
            total[j] += weight * value if agrees else 0.0
            divisor[j] += share if agrees else 0.0
    if average != BY_NOTHING:
        for j in range(count):
            mean = total[j] / divisor[j]
            total[j] = mean if divisor[j] != 0.0 else 0.0


@njit(nogil=True, error_model="numpy")
def largest(rows: np.ndarray, count: int, weights: np.ndarray, total: np.ndarray) -> None:
    """Per entry the weighted delta of largest magnitude; the first specialist wins a tie."""
    for j in range(count):
        total[j] = 0.0
    for i in range(rows.shape[0]):
        row = rows[i]
        weight = weights[i]
        for j in range(count):
            value = weight * row[j]
            best = total[j]
            total[j] = value if abs(value) > abs(best) else best


@njit(nogil=True, error_model="numpy")
def active(
    rows: np.ndarray,
    count: int,
    weights: np.ndarray,
    theta: float,
    minimum: int,
    scratch: np.ndarray,
    total: np.ndarray,
) -> None:
    """Consensus TA: the weighted sum where at least `minimum` specialists stand out. scratch: (2, BLOCK) float64."""
    others, votes = scratch[0], scratch[1]
    for j in range(count):
        votes[j] = 0.0
        total[j] = 0.0
    for i in range(rows.shape[0]):
        for j in range(count):
            others[j] = 0.0
        for other in range(rows.shape[0]):
            if other != i:
                row = rows[other]
                for j in range(count):
                    others[j] += row[j]
        row = rows[i]
        weight = weights[i]
        for j in range(count):
            votes[j] += np.float64(abs(row[j]) > theta * abs(others[j]))
            total[j] += weight * row[j]
    least = np.float64(minimum)
    for j in range(count):
        total[j] = total[j] if votes[j] >= least else 0.0
